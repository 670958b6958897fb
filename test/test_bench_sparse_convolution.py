"""The benchmark of sparse convolutions: its room, counts and peers, and a run in a tiny room."""

import dataclasses
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from benchmarks import LeftOut, sparse_engines
from benchmarks import bench_sparse_convolution as bench
from benchmarks.sparse_engines import CPU, Engine, make_room

from unscene_ros.models.sparse_tensor import sparse_tensor
from unscene_ros.models.sparse_unet import SparseUNet, SparseUNetConfig

SMALL = SparseUNetConfig("Res16UNet14A", output_channels=20)


@pytest.fixture
def small(monkeypatch):
    """A box of 16 x 14 x 12 cm at negative coordinates, and a network with few layers."""
    for name, value in {
        "ROOM_M": (0.16, 0.14, 0.12),
        "BOXES_M": (),
        "CORNER_M": (-0.301, -0.305, -0.303),
        "CONFIG": SMALL,
    }.items():
        monkeypatch.setattr(sparse_engines, name, value)
    monkeypatch.setattr(bench, "CONFIG", SMALL)


def test_room_is_as_large_as_its_description_says():
    coordinates = make_room(CPU).coordinates
    assert 113_000 < len(coordinates) < 120_000
    assert len(coordinates.unique(dim=0)) == len(coordinates)
    batch, *xyz = (coordinates.amax(0) - coordinates.amin(0)).tolist()
    assert batch == 0
    for cells, size_m in zip(xyz, (3.6, 3.0, 2.4), strict=True):
        assert abs(cells * 0.02 - size_m) < 0.05


def test_operations_are_counted_by_pairs_of_neighbours():
    pair = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.int32)
    neighbors = sparse_tensor(pair, torch.zeros(2, 1)).level.neighbors(3)
    assert bench.count_operations(neighbors, 3, 5) == 2 * 4 * 3 * 5  # each sees itself and one


def test_operations_of_the_network_are_those_of_its_kernels(small):
    kernels = [p for p in SparseUNet(SMALL).parameters() if p.ndim == 3]
    assert len(kernels) == 1 + 4 + 2 * 8 + 4  # the stem, ways down, blocks of two, ways up
    one_voxel = make_room(CPU).part(1)  # each kernel meets one pair
    expected = sum(2 * kernel.shape[1] * kernel.shape[2] for kernel in kernels)
    assert bench.count_operations_of_network(one_voxel) == expected


class DenseTensor:
    """What is documented of spconv's tensors."""

    def __init__(self, features, indices, spatial_shape, batch_size, indice_dict=None):
        assert indices.dtype == torch.int32 and indices.is_contiguous()
        assert indices[:, 1:].min() >= 0 and batch_size == 1
        assert all(top < size for top, size in zip(indices.amax(0)[1:], spatial_shape, strict=True))
        self.features, self.indices, self.spatial_shape = features, indices, spatial_shape
        self.indice_dict = {} if indice_dict is None else indice_dict

    def replace_feature(self, features):
        return DenseTensor(features, self.indices, self.spatial_shape, 1, self.indice_dict)

    def at(self, indices, grid):
        """This tensor's successor: the values of the grid (C, X, Y, Z) at these places."""
        features = grid[(slice(None), *indices[:, 1:].long().T)].T
        return DenseTensor(features, indices, list(grid.shape[1:]), 1, self.indice_dict)

    def grid(self):
        empty = self.features.new_zeros(*self.spatial_shape, self.features.shape[1])
        places = tuple(self.indices[:, 1:].long().T)
        return empty.index_put(places, self.features).permute(3, 0, 1, 2)


class DenseConvolution(torch.nn.Module):
    """What is documented of spconv's layers, computed by dense convolutions."""

    def __init__(self, inputs, outputs, size, stride=1, padding=0, bias=True, indice_key=None):
        super().__init__()
        self.stride, self.padding, self.key = stride, padding, indice_key
        self.weight = torch.nn.Parameter(torch.empty(outputs, size, size, size, inputs))
        self.bias = torch.nn.Parameter(torch.empty(outputs)) if bias else None


class SubMConv3d(DenseConvolution):
    def forward(self, tensor):
        if self.weight[0, ..., 0].numel() == 1:  # read in another order than documented
            weight = self.weight.view(self.weight.shape[-1], len(self.weight))
            bias = 0 if self.bias is None else self.bias
            return tensor.replace_feature(tensor.features @ weight + bias)
        weight = self.weight.permute(0, 4, 1, 2, 3)
        grid = torch.nn.functional.conv3d(tensor.grid(), weight, self.bias, padding=self.padding)
        return tensor.at(tensor.indices, grid)


class SparseConv3d(DenseConvolution):
    def forward(self, tensor):
        tensor.indice_dict[self.key] = tensor.indices
        weight = self.weight.permute(0, 4, 1, 2, 3)
        grid = torch.nn.functional.conv3d(tensor.grid(), weight, stride=self.stride)
        batch, xyz = tensor.indices[:, :1], tensor.indices[:, 1:] // 2
        return tensor.at(torch.cat([batch, xyz], 1).unique(dim=0), grid)


class SparseInverseConv3d(DenseConvolution):
    def forward(self, tensor):
        weight = self.weight.permute(4, 0, 1, 2, 3)
        grid = torch.nn.functional.conv_transpose3d(tensor.grid(), weight, stride=2)
        return tensor.at(tensor.indice_dict[self.key], grid)


@pytest.fixture
def dense_spconv(monkeypatch):
    stand_in = types.ModuleType("spconv.pytorch")
    stand_in.SparseConvTensor = DenseTensor
    for layer in (SubMConv3d, SparseConv3d, SparseInverseConv3d):
        setattr(stand_in, layer.__name__, layer)
    monkeypatch.setitem(sys.modules, "spconv", types.ModuleType("spconv"))
    monkeypatch.setitem(sys.modules, "spconv.pytorch", stand_in)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def agree(name):
    torch_engine, other = Engine("torch", CPU), Engine(name, CPU)
    left_out = []
    bench.those_that_infer({"torch": torch_engine, name: other}, make_room(CPU), CPU, left_out)
    assert left_out == []
    return torch_engine, other


def test_the_network_in_layers_of_spconv_computes_the_same(small, dense_spconv):
    agree("spconv")


def test_the_network_in_spconv_computes_the_same(small, one_thread):
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    agree("spconv")


def test_the_network_in_layers_of_minkowski_engine_computes_and_learns_the_same(small, monkeypatch):
    pytest.importorskip("MinkowskiEngine", reason="MinkowskiEngine is not installed")
    # Batch normalisation of MinkowskiEngine needs two voxels on the coarsest level.
    monkeypatch.setattr(sparse_engines, "ROOM_M", (0.6, 0.4, 0.3))
    ours, theirs = agree("MinkowskiEngine")
    for _ in range(2):
        losses = [engine.train(make_room(CPU)) for engine in (ours, theirs)]
        torch.testing.assert_close(*losses, rtol=1e-3, atol=0)


def wrong_engine():
    engine = Engine("torch", CPU)
    torch.nn.init.zeros_(engine.network.final.kernel)
    return engine


def failing_engine():
    engine = Engine("torch", CPU)
    del engine.network.final
    return engine


@pytest.mark.parametrize("choose", [bench.those_that_infer, bench.those_that_train])
def test_libraries_that_compute_something_else_or_fail_are_left_out(small, choose):
    engines = {
        "torch": Engine("torch", CPU),
        "spconv": wrong_engine(),
        "spconv-triton": failing_engine(),
        "MinkowskiEngine": Engine("torch", CPU),
    }
    left_out = []
    assert list(choose(engines, make_room(CPU), CPU, left_out)) == ["torch", "MinkowskiEngine"]
    wrong, failing = left_out
    assert wrong.startswith("spconv: expected the lo") and "of torch, got a difference" in wrong
    assert failing.startswith("spconv-triton: AttributeError: ")


@pytest.mark.parametrize(
    ("make", "error"), [(wrong_engine, ValueError), (failing_engine, AttributeError)]
)
def test_backend_of_ours_that_is_wrong_fails_the_benchmark(small, make, error):
    engines = {"torch": Engine("torch", CPU), "native": make()}
    with pytest.raises(error):
        bench.those_that_infer(engines, make_room(CPU), CPU, [])


def test_one_thread_rows_are_left_out_where_spconv_is_wrong(small, monkeypatch):
    monkeypatch.setattr(bench, "load_engines", lambda *_: {"spconv": wrong_engine()})
    table = dataclasses.replace(bench.TABLES[0], own=("torch",))
    threads, left_out = torch.get_num_threads(), []
    own = {"torch": Engine("torch", CPU)}
    assert list(bench.one_thread_rows(own, make_room(CPU), table, left_out)) == []
    assert len(left_out) == 1
    assert torch.get_num_threads() == threads


class Holder:
    """An engine whose pass holds a kilobyte for each voxel."""

    def __init__(self, name, device):
        pass

    def infer(self, room):
        return torch.ones(len(room.coordinates), 250)


def growth_by_a_holder():
    bench.Engine = Holder
    return bench.memory_growth("holder", CPU, train=False)


def test_memory_grows_by_what_a_pass_holds():
    held = 1000 * len(make_room(CPU).coordinates)
    # A fresh process, as for the rows: this one may give memory that earlier tests have freed.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        assert fresh.submit(growth_by_a_holder).result() == pytest.approx(held, rel=0.05)


def test_memory_of_a_training_step_is_measured(small):
    assert bench.memory_growth("torch", CPU, train=True) >= 0


def test_rows_of_a_tiny_room(small, monkeypatch):
    for rounds in ("INFERENCE_ROUNDS", "TRAINING_ROUNDS", "LAYER_ROUNDS"):
        monkeypatch.setattr(bench, rounds, 1)
    monkeypatch.setattr(bench, "LAYERS", ((0, 32), (4, 8)))
    monkeypatch.setattr(bench, "memory_rows", lambda names, table: iter(()))
    for library in ("MinkowskiEngine", "spconv.pytorch"):
        monkeypatch.setitem(sys.modules, library, None)
    device = dataclasses.replace(CPU, peak_size=64)
    table = dataclasses.replace(bench.TABLES[0], device=device, own=("torch",), layers=("torch",))
    monkeypatch.setattr(bench, "TABLES", (table,))
    rows = {}
    with pytest.raises(LeftOut, match=r"MinkowskiEngine: .*; spconv: "):
        for row in bench.rows():
            rows[row["name"]] = row
    assert list(rows) == [
        *(f"sparse_room_level_{level}_voxels" for level in range(5)),
        "sparse_inference_gigaflop",
        "sparse_inference_s",
        "sparse_inference_of_peak",
        "sparse_peak_gflops",
        "sparse_training_step_s",
        "sparse_layer_l0_32_of_peak",
        "sparse_layer_l4_8_of_peak",
    ]
    assert rows["sparse_room_level_0_voxels"]["value"] == len(make_room(CPU).coordinates)
    assert rows["sparse_inference_s"]["peer"] is None
    share, peak = (rows[f"sparse_{name}"]["value"] for name in ("inference_of_peak", "peak_gflops"))
    taken, work = (rows[f"sparse_inference_{name}"]["value"] for name in ("s", "gigaflop"))
    assert share == pytest.approx(work / taken / peak)


def test_one_thread_is_compared_with_one_thread(small, monkeypatch):
    threads_of_passes = []

    class Noted(Engine):
        def infer(self, room):
            threads_of_passes.append(torch.get_num_threads())
            return super().infer(room)

    monkeypatch.setattr(bench, "load_engines", lambda names, *_: {names[0]: Noted("torch", CPU)})
    device = dataclasses.replace(CPU, peak_size=64)
    table = dataclasses.replace(bench.TABLES[0], device=device, own=("torch",))
    before = torch.get_num_threads()
    own = {"torch": Engine("torch", CPU)}
    (row,) = bench.one_thread_rows(own, make_room(CPU), table, [])
    assert set(threads_of_passes) == {1}
    assert torch.get_num_threads() == before
    assert (row["name"], row["peer"]) == ("sparse_inference_one_thread_s", "spconv")
    assert row["ratio"] == row["peer_value"] / row["value"]


def test_rows_name_our_backend_and_its_peers():
    times = {"native": [1.0, 3.0, 2.0], "torch": [4.0], "MinkowskiEngine": [6.0]}
    table = bench.TABLES[0]
    rows = list(table.times("inference", times))
    assert [(row["name"], row["peer"], row["ratio"], row["runs"]) for row in rows] == [
        ("sparse_inference_s", "MinkowskiEngine", 3.0, 3),
        ("sparse_inference_vs_torch_s", "torch backend", 2.0, 3),
        ("sparse_inference_torch_s", "MinkowskiEngine", 1.5, 1),
    ]
    (alone,) = table.times("inference", {"torch": [4.0]})
    assert (alone["name"], alone["value"], alone["peer"]) == ("sparse_inference_torch_s", 4.0, None)
    on_cuda = bench.TABLES[1].times("inference", {"triton": [0.01], "torch": [0.05]})
    names = {row["name"]: (row["value"], row["ratio"]) for row in on_cuda}
    assert names == {
        "sparse_inference_fp16_ms": (10.0, 5.0),
        "sparse_inference_torch_fp16_ms": (50.0, None),
    }
