"""MinkowskiEngine's weights and results: real outputs and gradients, names, layouts, refusals."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from unscene_ros.models.minkowski import import_weights, read_tensors
from unscene_ros.models.sparse_fpn import SparseFPN, SparseFPNConfig
from unscene_ros.models.sparse_layers import (
    BatchNormalization,
    Convolution,
    TransposedConvolution,
    convolve_normalized,
)
from unscene_ros.models.sparse_tensor import SparseTensor, concatenate, sparse_tensor
from unscene_ros.models.sparse_unet import ARCHITECTURES, SparseUNet, SparseUNetConfig
from unscene_ros.scene import InputError

ORACLE = Path(__file__).parent / "data" / "minkowski_oracle.npz"
BACKENDS = ["torch", "native"]
RUNS = [*((backend, torch.float32) for backend in BACKENDS), ("torch", torch.float64)]


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


# Names and shapes as the public repositories define them, written down without our networks.


def normalization(name, channels):
    statistics = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.bn.{part}": (channels,) for part in statistics} | {
        f"{name}.bn.num_batches_tracked": ()
    }


def stage(name, inputs, outputs, blocks):
    shapes = {}
    for block in range(blocks):
        unit = f"{name}.{block}"
        shapes[f"{unit}.conv1.kernel"] = (27, inputs, outputs)
        shapes |= normalization(f"{unit}.norm1", outputs)
        shapes[f"{unit}.conv2.kernel"] = (27, outputs, outputs)
        shapes |= normalization(f"{unit}.norm2", outputs)
        if inputs != outputs:
            shapes[f"{unit}.downsample.0.kernel"] = (inputs, outputs)
            shapes |= normalization(f"{unit}.downsample.1", outputs)
        inputs = outputs
    return shapes


def encoder(inputs, planes, blocks, stem):
    shapes = {"conv0p1s1.kernel": (stem**3, inputs, 32)} | normalization("bn0", 32)
    before = 32
    for number, name in enumerate(("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")):
        shapes[f"{name}.kernel"] = (8, before, before)
        shapes |= normalization(f"bn{number + 1}", before)
        shapes |= stage(f"block{number + 1}", before, planes[number], blocks[number])
        before = planes[number]
    return shapes


def published_unet(planes, blocks, inputs=3, outputs=20, stem=5):
    shapes = encoder(inputs, planes, blocks, stem)
    before, skips = planes[3], (planes[2], planes[1], planes[0], 32)
    names = ("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")
    for number, (name, skip) in enumerate(zip(names, skips, strict=True), start=4):
        shapes[f"{name}.kernel"] = (8, before, planes[number])
        shapes |= normalization(f"bntr{number}", planes[number])
        joined = planes[number] + skip
        shapes |= stage(f"block{number + 1}", joined, planes[number], blocks[number])
        before = planes[number]
    return shapes | {"final.kernel": (before, outputs), "final.bias": (1, outputs)}


def published_fpn(inputs=6, stem=5):
    planes = (32, 64, 128, 256)
    shapes = encoder(inputs, planes, (2, 2, 2, 2), stem)
    for number, channels in enumerate(reversed(planes), start=1):
        shapes[f"delayer{number}.linear.weight"] = (128, channels)
    return shapes


UNET14A = ((32, 64, 128, 256, 128, 128, 96, 96), (1,) * 8)
UNET34C = ((32, 64, 128, 256, 256, 128, 96, 96), (2, 3, 4, 6, 2, 2, 2, 2))


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Small numbers, different in each tensor."""
    return {
        name: torch.tensor(7) if name.endswith("tracked") else torch.full(shape, 0.001 * index)
        for index, (name, shape) in enumerate(shapes.items())
    }


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def unet14a(outputs=20) -> SparseUNet:
    return SparseUNet(SparseUNetConfig("Res16UNet14A", 3, outputs, stem_kernel_size=5))


def saved(tmp_path, content) -> Path:
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def as_before_0_5(tensors):
    """1³ kernels with a leading axis, biases without one."""
    return {
        name: t[None]
        if name.endswith("kernel") and t.ndim == 2
        else t.reshape(-1)
        if name == "final.bias"
        else t
        for name, t in tensors.items()
    }


def contrastive_scene_contexts(tensors):
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    return {"curr_iter": 9, "state_dict": tensors, "optimizer": optimizer, "scheduler": {}}


def point_contrast(tensors):
    return {"state_dict": prefixed("module.", as_before_0_5(tensors)), "arch": "Res16UNet34C"}


def mask3d(tensors):
    around = {
        "criterion.empty_weight": torch.ones(3),
        "model.mask_features_head.kernel": torch.ones(96, 128),
        "model.mask_features_head.bias": torch.ones(1, 128),
    }
    return {"epoch": 5, "state_dict": around | prefixed("model.backbone.", tensors)}


def unscene3d(tensors):
    around = {"class_embed_head.weight": torch.ones(3, 128)}
    return {"state_dict": around | prefixed("backbone.", tensors)}


UNET_FILES = [contrastive_scene_contexts, point_contrast, mask3d, unscene3d]


@pytest.mark.parametrize("layout", UNET_FILES)
def test_weights_of_published_u_nets_load_whole(tmp_path, layout):
    theirs = filled(published_unet(*UNET14A))
    network = unet14a()
    report = import_weights(saved(tmp_path, layout(theirs)), network)
    assert set(report.matched) == set(theirs)
    assert not report.not_filled and not report.not_used
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_weights_of_the_feature_pyramid_load_whole(tmp_path):
    theirs = filled(published_fpn())
    network = SparseFPN(SparseFPNConfig())
    report = import_weights(saved(tmp_path, theirs), network)
    assert set(report.matched) == set(theirs)
    assert (report.prefix, report.elsewhere) == ("", 0)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_architectures_have_the_published_names_and_shapes(architecture):
    with torch.device("meta"):
        network = SparseUNet(SparseUNetConfig(architecture, 6, 13, stem_kernel_size=3))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    stages = {
        "Res16UNet14A": UNET14A,
        "Res16UNet18A": (UNET14A[0], (2,) * 8),
        "Res16UNet34C": UNET34C,
        "MinkUNet18C": ((32, 64, 128, 256, 192, 192, 128, 128), (2,) * 8),
    }
    assert shapes == published_unet(*stages[architecture], inputs=6, outputs=13, stem=3)


def test_the_report_tells_what_was_loaded_and_what_was_not(tmp_path):
    network = unet14a(outputs=13)
    untouched = network.final.kernel.detach().clone()
    path = saved(tmp_path, mask3d(filled(published_unet(*UNET14A, outputs=20))))
    report = import_weights(path, network, allowed_rest=["final"])
    assert torch.equal(network.final.kernel, untouched)
    assert set(report.not_filled) == {"final.kernel", "final.bias"}
    text = str(report)
    assert f"{len(report.matched)} tensors loaded from 'state_dict.model.backbone.*'" in text
    assert "final.kernel: (96, 20) in the file, (96, 13) wanted" in text
    assert "3 tensors of other parts of the file" in text


def test_a_head_that_the_network_does_not_have_must_be_allowed(tmp_path):
    tensors = filled(published_unet(*UNET14A)) | {"offsets.kernel": torch.ones(96, 3)}
    path = saved(tmp_path, contrastive_scene_contexts(tensors))
    with pytest.raises(InputError, match=r"state_dict.offsets.kernel: not in the network"):
        import_weights(path, unet14a())
    report = import_weights(path, unet14a(), allowed_rest=["offsets"])
    assert list(report.not_used) == ["state_dict.offsets.kernel"]


@pytest.mark.parametrize("layout", [*UNET_FILES, dict])
def test_a_missing_tensor_is_refused_and_the_network_left_alone(tmp_path, layout):
    theirs = filled(published_unet(*UNET14A))
    del theirs["block3.0.norm2.bn.running_var"]
    network = unet14a()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError, match=r"block3.0.norm2.bn.running_var: not in the file"):
        import_weights(saved(tmp_path, layout(theirs)), network)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_allowing_final_does_not_allow_names_that_begin_alike(tmp_path):
    tensors = filled(published_unet(*UNET14A)) | {"final_offsets.kernel": torch.ones(96, 3)}
    with pytest.raises(InputError, match="final_offsets"):
        import_weights(saved(tmp_path, tensors), unet14a(), allowed_rest=["final"])


def test_a_network_of_another_depth_is_refused(tmp_path):
    path = saved(tmp_path, filled(published_unet(UNET14A[0], (2,) * 8)))
    with pytest.raises(InputError, match=r"block1.1.conv1.kernel: not in the network"):
        import_weights(path, unet14a())


def test_a_file_with_two_networks_asks_which_one(tmp_path):
    student, teacher = (filled(published_unet(*UNET14A)) for _ in range(2))
    teacher["bn0.bn.weight"] = torch.full((32,), 5.0)
    path = saved(tmp_path, {"student": student, "teacher": teacher})
    with pytest.raises(InputError, match=r"found it under 'student.', 'teacher.'"):
        import_weights(path, unet14a())
    network = unet14a()
    import_weights(path, network, prefix="teacher.")
    assert (network.bn0.bn.weight == 5).all()


def test_a_file_without_the_network_is_refused_and_told_apart(tmp_path):
    with pytest.raises(InputError, match=r"no tensor of the network .* it has fc.weight"):
        import_weights(saved(tmp_path, {"fc.weight": torch.ones(2)}), unet14a())
    with pytest.raises(InputError, match="it has none"):
        import_weights(saved(tmp_path, {"epoch": 3}), unet14a())


def test_safetensors_are_read_too(tmp_path):
    theirs = filled(published_unet(*UNET14A))
    safetensors.torch.save_file(theirs, tmp_path / "weights.safetensors")
    assert len(import_weights(tmp_path / "weights.safetensors", unet14a()).matched) == len(theirs)


def test_a_file_that_needs_code_is_refused_with_a_way_to_convert_it(tmp_path):
    path = saved(tmp_path, {"state_dict": {}, "config": argparse.Namespace(lr=0.1)})
    with pytest.raises(InputError) as refusal:
        read_tensors(path)
    assert "argparse.Namespace" in str(refusal.value)
    assert "weights_only=False" in str(refusal.value)


class Mischief:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_file_that_brings_code_is_not_run(tmp_path):
    path = saved(tmp_path, {"state_dict": Mischief(str(tmp_path / "made"))})
    with pytest.raises(InputError, match="holds more than tensors"):
        read_tensors(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"solid ball\n" * 40, b"PK\x03\x04" + b"0" * 99]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_other_kinds_are_refused(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected a PyTorch file of tensors"):
        read_tensors(path)


def test_a_file_that_is_cut_off_or_missing_is_refused(tmp_path):
    path = saved(tmp_path, {"a": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        read_tensors(path)
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "nowhere.pth")
