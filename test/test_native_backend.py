"""The C library: all its instruction sets, and its absence."""

import copy
import logging
import pickle
import subprocess
from pathlib import Path

import pytest
import torch
from sparse_voxels import random_voxels

from unscene_ros.models import backends
from unscene_ros.models.backends import choose_backend, native_backend
from unscene_ros.models.backends.native_backend import NativeBackend
from unscene_ros.models.sparse_convolution import convolve
from unscene_ros.models.sparse_tensor import sparse_tensor
from unscene_ros.scene import InputError

CPU = torch.device("cpu")


@pytest.fixture
def limit_vectors():
    """Sets the widest vectors allowed, in bytes; returns those in use."""
    library = NativeBackend("cpu")._library

    def limit(vector_bytes):
        library.unscene_limit_vector_bytes(vector_bytes)
        return library.unscene_vector_bytes()

    yield limit
    limit(64)


@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set_equals_torch(limit_vectors, vector_bytes, dtype):
    if limit_vectors(vector_bytes) != vector_bytes:
        pytest.skip(f"this processor has no vectors of {vector_bytes} bytes")
    results = {}
    for backend in ("torch", "native"):
        tensor = random_voxels(37, count=900, backend=backend, dtype=dtype)
        weight = torch.randn(27, 37, 45, generator=torch.Generator().manual_seed(0), dtype=dtype)
        operands = [tensor.features.requires_grad_(), weight.requires_grad_()]
        output = convolve(tensor, weight).features
        results[backend] = output, *torch.autograd.grad(output.sum(), operands)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for ours, expected in zip(results["native"], results["torch"], strict=True):
        assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_single(dtype):
    tensor = random_voxels(backend="native", dtype=dtype)
    weight = torch.randn(27, 5, 7).to(dtype).requires_grad_()
    output = convolve(tensor, weight).features
    expected = convolve(tensor.with_features(tensor.features.float()), weight.float()).features
    assert output.dtype == dtype
    assert torch.equal(output, expected.to(dtype))
    output.sum().backward()
    assert weight.grad.dtype == dtype


@pytest.fixture
def without_library(monkeypatch, tmp_path):
    monkeypatch.setattr(native_backend, "__file__", str(tmp_path / "native_backend.py"))
    backends._choose.cache_clear()
    yield tmp_path
    backends._choose.cache_clear()


def test_without_the_library_torch_takes_over_and_says_once_how_to_get_it(without_library, caplog):
    with caplog.at_level(logging.INFO, "unscene_ros"):
        outputs = [convolve(random_voxels(backend="auto"), weight).features for weight in _two()]
    warning, choice = (record.getMessage() for record in caplog.records)
    expected = [convolve(random_voxels(backend="torch"), weight).features for weight in _two()]
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert "install a C compiler and run `pip install .` again" in warning
    assert choice == "sparse convolutions: torch backend on cpu"
    with pytest.raises(InputError, match="is not built"):
        choose_backend("native", CPU)


def _two():
    return torch.randn(2, 27, 5, 7, generator=torch.Generator().manual_seed(0)).double()


def test_a_library_that_does_not_load_is_named(without_library):
    (without_library / "native_kernel.so").write_text("not a library")
    with pytest.raises(InputError, match=r"native_kernel\.so does not load"):
        choose_backend("native", CPU)


def test_a_library_of_other_sources_is_not_called(without_library):
    library = Path(native_backend.__file__).with_name("native_kernel.so")
    source = "long unscene_struct_bytes(void) { return 8; }"
    command = ["gcc", "-x", "c", "-", "-shared", "-fPIC", "-o", library]
    subprocess.run(command, input=source, text=True, check=True)
    with pytest.raises(InputError, match=r"built from other sources.*run `pip install .` again"):
        choose_backend("native", CPU)


def test_sparse_tensors_travel_to_other_processes():
    tensor = random_voxels(backend="native")
    weight = torch.randn(27, 5, 7, dtype=torch.float64)
    for copied in (pickle.loads(pickle.dumps(tensor)), copy.deepcopy(tensor)):
        assert copied.level.backend.name == "native"
        assert torch.equal(convolve(copied, weight).features, convolve(tensor, weight).features)


def test_the_choice_is_told_once(caplog):
    backends._choose.cache_clear()
    with caplog.at_level(logging.INFO, "unscene_ros"):
        for _ in range(3):
            assert choose_backend("auto", CPU).name == "native"
    assert [record.getMessage() for record in caplog.records] == [
        "sparse convolutions: native backend on cpu"
    ]


def test_other_devices_are_refused():
    with pytest.raises(InputError, match="expected the device cpu, got cuda"):
        NativeBackend("cuda")


def test_a_large_map_needs_no_more_memory_than_its_rows():
    count = 40_000
    coordinates = torch.randint(-60, 60, (count, 4), generator=torch.Generator().manual_seed(0))
    coordinates[:, 0] = 0
    tensor = sparse_tensor(coordinates, torch.zeros(count, 1), backend="native")
    rows = tensor.level.neighbors(3).rows
    assert rows.untyped_storage().nbytes() == len(tensor.level) * 27 * 4
