"""What the Triton kernels compute, against the torch backend in double precision.

test_triton_backend.py runs this file in a process of its own, because Triton decides when it is
imported whether kernels are compiled for a GPU or run by its interpreter on the processor.
"""

import numpy as np
import pytest
import torch
from sparse_voxels import random_voxels

from unscene_ros.models.backends import Epilogue, choose_backend, triton_backend, triton_kernels
from unscene_ros.models.backends.triton_tiles import cut_chunks, cut_tiles, list_pairs
from unscene_ros.models.backends.triton_tuning import Config
from unscene_ros.models.sparse_tensor import sparse_tensor

# The interpreter of Triton 3.6 says so; nothing that is ours.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

INTERPRETED = triton_kernels.INTERPRETED
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
SMALL = Config(rows=16, columns=16, channels=16, splits=1, warps=4, stages=5)
TOLERANCES = {torch.float64: 0, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
MAPS = ["27", pytest.param("125", marks=pytest.mark.slow), "down", "up"]


@pytest.fixture(autouse=True)
def _interpreter_knows_bfloat16(monkeypatch):
    """It keeps bfloat16 as integers, and would multiply them as such."""
    if not INTERPRETED:
        return
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder

    multiply = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):
        if a.dtype.scalar == bfloat16:
            a, b = self.cast_impl(a, float32), self.cast_impl(b, float32)
        return multiply(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture
def backend():
    return choose_backend("triton", DEVICE)


def level_of(count):
    voxels = random_voxels(count=count)
    coordinates, features = voxels.level.coordinates.to(DEVICE), voxels.features.to(DEVICE)
    return sparse_tensor(coordinates, features, scenes=2, backend="torch").level


def problem(name, channels, columns, dtype=torch.float32, count=60):
    """(features, weight, gradient of the output, map)."""
    level = level_of(count)
    _, down = level.coarser
    maps = {"27": level.neighbors(3), "125": level.neighbors(5), "down": down, "up": down.opposite}
    torch.manual_seed(1)
    kernel_map = maps[name]
    features = torch.randn(len(kernel_map.source), channels, device=DEVICE)
    weight = torch.randn(kernel_map.rows.shape[1], channels, columns, device=DEVICE)
    gradient = torch.randn(len(kernel_map.target), columns, device=DEVICE)
    return features.to(dtype), weight.to(dtype), gradient.to(dtype), kernel_map


def assert_near(result, exact, dtype=torch.float32):
    assert result.dtype == dtype
    atol = TOLERANCES[dtype] * exact.abs().max().item()
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=atol)


def exact_convolution(features, weight, kernel_map, epilogue=None):
    if epilogue is not None:
        tensors = (part if part is None else part.double() for part in epilogue[:3])
        epilogue = Epilogue(*tensors, epilogue.relu)
    torch_backend = choose_backend("torch", DEVICE)
    return torch_backend.convolve(features.double(), weight.double(), kernel_map, epilogue)


def exact_weight_gradient(features, gradient, kernel_map):
    torch_backend = choose_backend("torch", DEVICE)
    return torch_backend.weight_gradient(features.double(), gradient.double(), kernel_map)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("channels", "columns"), [(3, 5), (33, 20)])
def test_convolution_and_weight_gradient_equal_the_torch_backend(backend, name, channels, columns):
    features, weight, gradient, kernel_map = problem(name, channels, columns)
    output = backend.convolve(features, weight, kernel_map)
    assert_near(output, exact_convolution(features, weight, kernel_map))
    of_weight = backend.weight_gradient(features, gradient, kernel_map)
    assert_near(of_weight, exact_weight_gradient(features, gradient, kernel_map))


@pytest.mark.parametrize("name", MAPS)
def test_gradient_of_features_takes_the_transposed_view_of_the_weight(backend, name):
    _, weight, gradient, kernel_map = problem(name, 20, 33)
    transposed = weight.transpose(1, 2)
    output = backend.convolve(gradient, transposed, kernel_map.opposite)
    assert_near(output, exact_convolution(gradient, transposed, kernel_map.opposite))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["27", "up"])
def test_half_types_are_rounded_once(backend, name, dtype):
    features, weight, gradient, kernel_map = problem(name, 40, 20, dtype)
    output = backend.convolve(features, weight, kernel_map)
    assert_near(output, exact_convolution(features, weight, kernel_map), dtype)
    of_weight = backend.weight_gradient(features, gradient, kernel_map)
    assert_near(of_weight, exact_weight_gradient(features, gradient, kernel_map), dtype)


def test_double_precision_is_left_to_the_torch_backend(backend):
    features, weight, gradient, kernel_map = problem("27", 5, 7, torch.float64)
    output = backend.convolve(features, weight, kernel_map)
    assert_near(output, exact_convolution(features, weight, kernel_map), torch.float64)
    of_weight = backend.weight_gradient(features, gradient, kernel_map)
    assert_near(of_weight, exact_weight_gradient(features, gradient, kernel_map), torch.float64)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("parts", [["scale"], ["shift"], ["residual"], Epilogue._fields])
def test_epilogue_is_applied_once(parts, splits):
    features, weight, _, kernel_map = problem("down", 5, 20)
    every_part = Epilogue(
        scale=torch.linspace(-2, 2, 20, device=DEVICE),
        shift=torch.linspace(-9, 9, 20, device=DEVICE),
        residual=torch.randn(len(kernel_map.target), 40, device=DEVICE)[:, ::2],  # a view with gaps
        relu=True,
    )
    epilogue = Epilogue(**{part: getattr(every_part, part) for part in parts})
    tiles = cut_tiles(kernel_map.rows, SMALL.rows)
    config = SMALL._replace(splits=splits)
    output = triton_kernels.convolve(features, weight, tiles, epilogue, config, "ieee")
    assert_near(output, exact_convolution(features, weight, kernel_map, epilogue))


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        SMALL._replace(rows=32, splits=2),
        SMALL._replace(channels=32, splits=4),
        SMALL._replace(columns=64, splits=12),  # more parts than a tile has cells
    ],
)
def test_every_configuration_gives_the_same_values_and_the_same_bits_each_time(config):
    features, weight, gradient, kernel_map = problem("down", 20, 20)
    rows = kernel_map.rows

    def run():
        tiles, chunks = cut_tiles(rows, config.rows), cut_chunks(list_pairs(rows), config.splits)
        return (
            triton_kernels.convolve(features, weight, tiles, None, config, "ieee"),
            triton_kernels.weight_gradient(features, gradient, chunks, config, "ieee"),
        )

    output, of_weight = run()
    assert_near(output, exact_convolution(features, weight, kernel_map))
    assert_near(of_weight, exact_weight_gradient(features, gradient, kernel_map))
    output_again, of_weight_again = run()
    assert torch.equal(output, output_again)
    assert torch.equal(of_weight, of_weight_again)


@pytest.mark.parametrize("name", MAPS)
def test_no_voxels_give_no_rows_and_no_gradient(backend, name):
    features, weight, gradient, kernel_map = problem(name, 5, 7, count=0)
    assert backend.convolve(features, weight, kernel_map).shape == (0, 7)
    of_weight = backend.weight_gradient(features, gradient, kernel_map)
    assert torch.equal(of_weight, torch.zeros_like(weight))


def test_a_voxel_alone_sees_itself(backend):
    features, weight, _, kernel_map = problem("27", 5, 7, count=1)
    output = backend.convolve(features, weight, kernel_map)
    torch.testing.assert_close(output, features @ weight[13])


def test_features_of_more_than_2_31_numbers_are_addressed():
    features = torch.from_numpy(np.zeros((2**25 + 8, 64), np.float16))  # most pages never exist
    features[-1], features[5] = 1, 2
    rows = torch.full((20, 8), -1, dtype=torch.int32)
    rows[3, 2], rows[4, 2], rows[4, 7] = len(features) - 1, 5, len(features) - 1
    weight = torch.ones(8, 64, 16, dtype=torch.float16, device=DEVICE)
    tiles = cut_tiles(rows.to(DEVICE), SMALL.rows)
    output = triton_kernels.convolve(features.to(DEVICE), weight, tiles, None, SMALL, "ieee")
    assert output[:, 0].tolist() == [0, 0, 0, 64, 192] + [0] * 15


def test_each_shape_is_measured_once_for_all_processes(monkeypatch, tmp_path):
    measured = []

    def measure(candidates, run, device):
        measured.append(len(candidates))
        run(candidates[0])
        return candidates[0]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(triton_kernels, "INTERPRETED", False)
    monkeypatch.setattr(triton_backend, "fastest", measure)
    monkeypatch.setattr(triton_backend, "_gpu", lambda device: ("a GPU", 4))
    features, weight, gradient, kernel_map = problem("down", 5, 7)
    for _ in ("first process", "second process"):
        backend = triton_backend.TritonBackend("cuda")
        for _ in range(2):
            backend.convolve(features, weight, kernel_map)
            backend.weight_gradient(features, gradient, kernel_map)
    assert len(measured) == 2
    assert min(measured) > 1


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="the interpreter would take hours")
@pytest.mark.parametrize(
    ("dtype", "tf32", "tolerance"),
    [
        (torch.float32, False, 1e-5),
        (torch.float32, True, 2e-3),
        (torch.float16, False, 1e-3),
        (torch.bfloat16, False, 8e-3),
    ],
)
@pytest.mark.parametrize("name", MAPS)
def test_measured_configurations_serve_full_tiles(
    backend, monkeypatch, name, dtype, tf32, tolerance
):
    monkeypatch.setitem(TOLERANCES, dtype, tolerance)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    features, weight, gradient, kernel_map = problem(name, 96, 64, dtype, count=3000)
    output = backend.convolve(features, weight, kernel_map)
    assert_near(output, exact_convolution(features, weight, kernel_map), dtype)
    of_weight = backend.weight_gradient(features, gradient, kernel_map)
    assert_near(of_weight, exact_weight_gradient(features, gradient, kernel_map), dtype)
