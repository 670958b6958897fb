"""Each layer and gradient of a small network, as real MinkowskiEngine computed them."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unscene_ros.models.sparse_layers import (
    BatchNormalization,
    Convolution,
    TransposedConvolution,
    convolve_normalized,
)
from unscene_ros.models.sparse_tensor import SparseTensor, concatenate, sparse_tensor

ORACLE = Path(__file__).parent / "data" / "minkowski_oracle.npz"
RUNS = [("torch", torch.float64), ("torch", torch.float32), ("native", torch.float32)]
if os.environ.get("TRITON_INTERPRET") == "1":  # set by test_triton_backend.py
    RUNS = [("triton", torch.float32)]
elif importlib.util.find_spec("MinkowskiEngine"):
    RUNS += [("minkowski", torch.float32)]


class Chain(nn.Module):
    """The network whose results MinkowskiEngine 0.5.4 wrote into the oracle."""

    def __init__(self):
        super().__init__()
        self.conv0, self.bn0 = Convolution(6, 16, 5), BatchNormalization(16)
        self.conv1, self.bn1 = Convolution(16, 16, 2, stride=2), BatchNormalization(16)
        self.conv2, self.bn2 = Convolution(16, 24, 3), BatchNormalization(24)
        self.conv3 = Convolution(24, 32, 2, stride=2)
        self.up3, self.up1 = TransposedConvolution(32, 24), TransposedConvolution(48, 16)
        self.final = Convolution(32, 5, 1, bias=True)

    def layers(self, tensor: SparseTensor) -> dict[str, SparseTensor]:
        fine = convolve_normalized(tensor, self.conv0, self.bn0)
        down = convolve_normalized(fine, self.conv1, self.bn1)
        middle = convolve_normalized(down, self.conv2, self.bn2)
        coarse = self.conv3(middle)
        up3 = self.up3(coarse, middle.level)
        up1 = self.up1(concatenate(up3, middle), fine.level)
        return {
            "conv0_bn_relu": fine,
            "conv1_bn_relu": down,
            "conv2_bn_relu": middle,
            "conv3": coarse,
            "up3": up3,
            "up1": up1,
            "final": self.final(concatenate(up1, fine)),
        }


@pytest.fixture(scope="module")
def oracle() -> dict[str, torch.Tensor]:
    with np.load(ORACLE) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def under(prefix: str, tensors) -> dict:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def run_chain(oracle, backend, dtype):
    chain = Chain().eval()
    chain.load_state_dict(under("state.", oracle))
    chain.to(dtype)
    tensor = sparse_tensor(oracle["coordinates"], oracle["features"].to(dtype), backend=backend)
    return chain, chain.layers(tensor)


def at(coordinates: torch.Tensor, tensor: SparseTensor) -> torch.Tensor:
    """The features at these voxels, in this order."""
    rows = {tuple(voxel): row for row, voxel in enumerate(tensor.level.coordinates.tolist())}
    return tensor.features[[rows[tuple(voxel)] for voxel in coordinates.tolist()]]


def assert_equal_to_1e_5(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    """The largest difference is below 1e-5 of the largest value."""
    assert ours.shape == theirs.shape, name
    assert float((ours.detach() - theirs).abs().max() / theirs.abs().max()) < 1e-5, name


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("backend", "dtype"), RUNS)
def test_every_layer_gives_what_minkowski_engine_gave(oracle, backend, dtype, fused):
    with torch.set_grad_enabled(not fused):
        _, layers = run_chain(oracle, backend, dtype)
    for name, tensor in layers.items():
        coordinates = oracle[f"out.{name}.C"]
        assert len(tensor.level) == len(coordinates)
        assert_equal_to_1e_5(at(coordinates, tensor), oracle[f"out.{name}.F"], name)


@pytest.mark.parametrize(("backend", "dtype"), RUNS)
def test_every_gradient_is_what_minkowski_engine_gave(oracle, backend, dtype):
    chain, layers = run_chain(oracle, backend, dtype)
    loss = (layers["final"].features * torch.linspace(-1, 1, 5, dtype=dtype)).sum()
    assert float(loss.detach()) == pytest.approx(float(oracle["loss"]), rel=1e-5)
    loss.backward()
    gradients = under("grad.", oracle)
    assert set(gradients) == {name for name, _ in chain.named_parameters()}
    for name, parameter in chain.named_parameters():
        assert_equal_to_1e_5(parameter.grad, gradients[name], name)
