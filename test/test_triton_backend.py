"""The Triton backend: how work is cut and configurations are kept, and what the kernels compute."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sparse_voxels import random_voxels

from unscene_ros.models import backends
from unscene_ros.models.backends.triton_backend import TritonBackend
from unscene_ros.models.backends.triton_tiles import cut_chunks, cut_tiles, list_pairs
from unscene_ros.models.backends.triton_tuning import (
    Choices,
    Config,
    cache_path,
    convolve_candidates,
    weight_gradient_candidates,
)
from unscene_ros.models.sparse_tensor import sparse_tensor
from unscene_ros.scene import InputError

CONFIG = Config(64, 32, 32, 1, 4, 5)
OTHER = Config(128, 32, 32, 2, 4, 5)


def run_tests(name, tmp_path, interpret, which="slow or not slow"):
    """Runs a file of tests, those with these marks; its output is shown when it fails."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": interpret,
        "XDG_CACHE_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",  # the matrices are tiny
    }
    tests = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", str(tests), "-p", "no:cacheprovider", "-m", which]
    result = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


def test_kernels_compute_what_the_torch_backend_computes(tmp_path):
    pytest.importorskip("triton")
    run_tests("triton_values.py", tmp_path, interpret="1", which="not slow")


@pytest.mark.slow
def test_large_kernels_compute_what_the_torch_backend_computes(tmp_path):
    pytest.importorskip("triton")
    run_tests("triton_values.py", tmp_path, interpret="1", which="slow")


@pytest.mark.slow  # a minute in the interpreter
def test_every_layer_and_gradient_is_what_minkowski_engine_gave(tmp_path):
    pytest.importorskip("triton")
    run_tests("test_minkowski_oracle.py", tmp_path, interpret="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_compute_what_the_torch_backend_computes_on_a_gpu(tmp_path):
    run_tests("triton_values.py", tmp_path, interpret="0")


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["convolve", "weight gradient"])
def test_kernels_compile_to_tensor_cores_and_asynchronous_loads(
    capability, kind, tmp_path, monkeypatch
):
    """No GPU is needed to compile for one; the code says what the hardware will do."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = compiled(kind, capability)
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in code
    assert "cp.async.cg.shared.global" in code  # 16 bytes at once, past the registers


def compiled(kind, capability):
    """PTX for float16 and channels that are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from unscene_ros.models.backends import triton_kernels

    if kind == "convolve":
        kernel, config = triton_kernels._convolve, convolve_candidates(2**17, 27, 64, 64, 1)[0]
        constants = {"SPLITS": 1, "RELU": False, "d_stride": 1} | dict.fromkeys(
            ("partial", "scale", "shift", "residual")
        )
    else:
        kernel, config = (
            triton_kernels._weight_gradient,
            weight_gradient_candidates(9, 64, 64, 1)[1],
        )
        constants = {}
    constants |= {"ROWS": config.rows, "COLUMNS": config.columns}
    constants |= {"CHANNELS": config.channels, "PRECISION": "ieee"}
    types = dict.fromkeys(("features", "weight", "output", "gradient"), "*fp16")
    types |= dict.fromkeys(("targets", "first_step", "cells", "sources"), "*i32")
    types |= {"partial": "*fp32", "bounds": "*i64"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        kernel,
        {name: types.get(name, "i32") for name in kernel.arg_names},
        constants,
        {
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(kernel.arg_names)
            if name not in constants
        },
    )
    options = {"num_warps": config.warps, "num_stages": config.stages}
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=options).asm["ptx"]


def kernel_rows(name, count=200):
    level = random_voxels(count=count).level
    _, down = level.coarser
    if name in ("down", "up"):
        return down.rows if name == "down" else down.opposite.rows
    return level.neighbors(int(name)).rows


@pytest.mark.parametrize("size", [16, 64, 512])
@pytest.mark.parametrize("name", ["3", "5", "7", "down", "up"])
def test_tiles_hold_every_row_once_and_step_through_the_cells_it_has(name, size):
    rows = kernel_rows(name)
    tiles = cut_tiles(rows, size)
    filled = tiles.targets[tiles.targets >= 0]
    assert sorted(filled.tolist()) == list(range(len(rows)))
    steps = []
    for tile, targets in enumerate(tiles.targets.tolist()):
        seen = [
            rows[target].tolist() if target >= 0 else [-1] * rows.shape[1] for target in targets
        ]
        cells = [k for k in range(rows.shape[1]) if any(row[k] >= 0 for row in seen)]
        mine = slice(tiles.first_step[tile], tiles.first_step[tile + 1])
        assert tiles.cells[mine].tolist() == cells
        assert tiles.sources[mine].tolist() == [[row[k] for row in seen] for k in cells]
        steps.append(len(cells))
    assert steps == sorted(steps, reverse=True)
    assert len(tiles.cells) == sum(steps)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_sorted_tiles_step_through_fewer_cells_than_consecutive_rows(kernel_size):
    """Two walls of a room: rows of one wall have no neighbours beside it."""
    wall = torch.cartesian_prod(torch.zeros(1).long(), torch.arange(24), torch.arange(24))
    walls = torch.cat([wall, wall.flip(1)])
    coordinates = torch.cat([torch.zeros(len(walls), 1).long(), walls], 1)
    tensor = sparse_tensor(coordinates, torch.zeros(len(walls), 1), backend="torch")
    rows = tensor.level.neighbors(kernel_size).rows
    consecutive = sum(int((part >= 0).any(0).sum()) for part in rows.split(32))
    assert len(cut_tiles(rows, 32).cells) < 0.85 * consecutive


def test_rows_of_a_transposed_convolution_share_tiles_of_one_octant():
    tiles = cut_tiles(kernel_rows("up", count=600), 16)
    assert len(tiles.cells) <= len(tiles.targets) + 7  # each octant ends within some tile


def test_no_rows_make_no_tiles():
    tiles = cut_tiles(torch.empty(0, 27, dtype=torch.int32), 16)
    assert tiles.targets.shape == (0, 16)
    assert tiles.first_step.tolist() == [0]


@pytest.mark.parametrize("count", [1, 5, 40, 10_000])
def test_chunks_cover_the_pairs_of_each_cell_in_turn(count):
    rows = kernel_rows("3")
    pairs = list_pairs(rows)
    chunks = cut_chunks(pairs, count)
    assert len(chunks.bounds) <= count + 27
    lengths = chunks.bounds[:, 1] - chunks.bounds[:, 0]
    assert lengths.min() > 0 and lengths.max() <= -(-len(pairs.targets) // count)
    position = 0
    for cell, of_cell in enumerate(chunks.of_cell.tolist()):
        expected = [(m, n) for m, n in enumerate(rows[:, cell].tolist()) if n >= 0]
        found = []
        for first, last in chunks.bounds[position : position + of_cell].tolist():
            found += zip(
                chunks.targets[first:last].tolist(),
                chunks.sources[first:last].tolist(),
                strict=True,
            )
        assert found == expected
        position += of_cell


def test_a_cell_without_pairs_has_no_chunk():
    rows = torch.tensor([[0, -1, 1]], dtype=torch.int32)
    chunks = cut_chunks(list_pairs(rows), 8)
    assert chunks.of_cell.tolist() == [1, 0, 1]
    assert chunks.bounds.tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize(("channels", "columns"), [(3, 32), (96, 96), (256, 512), (1, 1)])
def test_candidates_are_powers_of_two_that_triton_can_multiply(channels, columns):
    candidates = convolve_candidates(600, 27, channels, columns, processors=132)
    candidates += weight_gradient_candidates(9000, channels, columns, processors=132)
    for config in candidates:
        for size in (config.rows, config.columns, config.channels):
            assert size >= 16 and size & (size - 1) == 0
        assert config.splits >= 1


def test_only_few_rows_are_split():
    assert {c.splits for c in convolve_candidates(2**20, 27, 64, 64, processors=132)} == {1}
    assert max(c.splits for c in convolve_candidates(600, 27, 64, 64, processors=132)) == 8


def never(candidates):
    raise AssertionError("nothing to measure")


def test_choices_are_remembered_by_later_processes(tmp_path):
    path = tmp_path / "new" / "triton.json"
    first = Choices(path, "1")
    second = Choices(path, "1")  # runs beside the first
    assert first.choose("a", lambda: [CONFIG, OTHER], lambda candidates: OTHER) == OTHER
    assert second.choose("b", lambda: [CONFIG], lambda candidates: CONFIG) == CONFIG
    assert first.choose("a", lambda: [CONFIG, OTHER], never) == OTHER
    later = Choices(path, "1")
    assert later.choose("a", lambda: [CONFIG, OTHER], never) == OTHER
    assert later.choose("b", lambda: [CONFIG], never) == CONFIG
    assert [file.name for file in path.parent.iterdir()] == ["triton.json"]


def test_choices_for_other_versions_and_of_old_candidates_are_measured_again(tmp_path):
    path = tmp_path / "triton.json"
    Choices(path, "1").choose("a", lambda: [OTHER], lambda candidates: OTHER)
    assert Choices(path, "1").choose("a", lambda: [CONFIG], lambda _: CONFIG) == CONFIG
    assert Choices(path, "2").choose("a", lambda: [CONFIG, OTHER], lambda _: OTHER) == OTHER
    assert json.loads(path.read_text())["version"] == "2"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"version": "1"}', '{"version": "1", "configs": {"a": {"rows": 3}}}'],
)
def test_a_damaged_file_is_told_once_and_replaced(text, tmp_path, caplog):
    path = tmp_path / "triton.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        Choices(path, "1").choose("a", lambda: [CONFIG], lambda candidates: CONFIG)
    assert [record.message.count(str(path)) for record in caplog.records] == [1]
    assert Choices(path, "1").choose("a", lambda: [CONFIG], never) == CONFIG


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path, caplog):
    (tmp_path / "file").touch()
    choices = Choices(tmp_path / "file" / "triton.json", "1")
    for key in "ab":
        assert choices.choose(key, lambda: [CONFIG], lambda candidates: CONFIG) == CONFIG
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_the_cache_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_path() == tmp_path / "unscene_ros" / "triton.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_path() == Path.home() / ".cache/unscene_ros/triton.json"


def test_the_processor_is_refused():
    pytest.importorskip("triton")
    with pytest.raises(InputError, match="expected features on a CUDA device, got cpu"):
        TritonBackend("cpu")


def test_a_missing_triton_is_told_with_the_way_out(monkeypatch):
    name = "unscene_ros.models.backends.triton_kernels"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(backends, "triton_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(InputError, match="install PyTorch for CUDA") as error:
        TritonBackend("cuda")
    assert "\n" not in str(error.value)
