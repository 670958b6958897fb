"""Res16UNet34C on the voxels of a room: time and memory of each backend and of other libraries.

A pass begins with the voxels, so all maps are made anew; a training step is forward, cross entropy,
backward and AdamW. Another library gets our parameters and must compute our results before it is
timed. All are measured in turn, so that they suffer from the same disturbances.

A share of the peak counts two operations for each pair of neighbouring voxels and of channels,
without the 1³ convolutions. The peak is torch.mm in the same type, just before and after each
round. Memory is what a fresh process grows by in its second pass; the first is over few voxels.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import LeftOut, row, seconds
from benchmarks.sparse_engines import (
    CONFIG,
    CPU,
    CUDA,
    Device,
    Engine,
    Room,
    load_engines,
    make_room,
    those_that_agree,
)
from unscene_ros.models.backends import Epilogue
from unscene_ros.models.backends.torch_backend import TorchBackend
from unscene_ros.models.kernel_map import KernelMap
from unscene_ros.models.sparse_convolution import convolve
from unscene_ros.models.sparse_tensor import Level, SparseTensor, sparse_tensor
from unscene_ros.models.sparse_unet import SparseUNet
from unscene_ros.scene import InputError

AREA = "sparse"
INFERENCE_ROUNDS, ONE_THREAD_ROUNDS, TRAINING_ROUNDS, LAYER_ROUNDS = 5, 3, 3, 3
LAYERS = ((0, 32), (0, 96), (1, 96), (2, 128), (3, 256), (4, 256))  # level, channels in and out
FEW_VOXELS = 1000


@dataclass(frozen=True)
class Table:
    """What is compared on a device: names of backends and of other libraries."""

    device: Device
    own: tuple[str, ...]  # rows of the first backend do not name it
    peers: tuple[str, ...]  # a row has the first peer that is not itself; further ones get rows
    trained: tuple[str, ...]
    layers: tuple[str, ...]  # backends
    ending: str  # of the names of rows
    time_unit: str

    def name(self, what: str, engine: str, figure: str) -> str:
        """The name of a row."""
        backend = "" if engine == self.own[0] else f"_{engine}"
        return f"sparse_{what}{backend}{self.ending}_{figure}"

    def compared(
        self, what: str, figure: str, unit: str, values: Mapping[str, list[float]]
    ) -> Iterator[dict]:
        """Medians of our backends against their peers; smaller is better."""
        medians = {name: statistics.median(each) for name, each in values.items()}
        for name in self.own:
            if name not in medians:
                continue
            value, runs = medians[name], len(values[name])
            main, *others = (peer for peer in self.peers if peer != name)
            for peer in (main, *others):
                words = what if peer == main else f"{what}_vs_{peer.replace('-', '_')}"
                words = self.name(words, name, figure)
                if peer in medians:
                    label = f"{peer} backend" if peer in self.own else peer
                    ratio = medians[peer] / value
                    yield row(AREA, words, value, unit, runs, label, medians[peer], ratio)
                elif peer == main:
                    yield row(AREA, words, value, unit, runs)

    def times(self, what: str, values: Mapping[str, list[float]]) -> Iterator[dict]:
        """`compared` for seconds."""
        factor = {"s": 1, "ms": 1000}[self.time_unit]
        scaled = {name: [factor * value for value in each] for name, each in values.items()}
        return self.compared(what, self.time_unit, self.time_unit, scaled)


TABLES = (
    Table(
        CPU,
        own=("native", "torch"),
        peers=("MinkowskiEngine", "torch"),
        trained=("native", "torch", "MinkowskiEngine"),
        layers=("native", "torch", "minkowski"),
        ending="",
        time_unit="s",
    ),
    Table(
        CUDA,
        own=("triton", "torch"),
        peers=("torch", "spconv-triton"),
        trained=("triton", "torch"),
        layers=("triton", "torch"),
        ending="_fp16",
        time_unit="ms",
    ),
)


class OperationCounter(TorchBackend):
    """Adds up what a network asks for, and computes zeros."""

    def __init__(self) -> None:
        self.operations = 0

    def convolve(
        self,
        features: Tensor,
        weight: Tensor,
        kernel_map: KernelMap,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        _, inputs, outputs = weight.shape
        self.operations += count_operations(kernel_map, inputs, outputs)
        return features.new_zeros(len(kernel_map.target), outputs)


def count_operations(kernel_map: KernelMap, inputs: int, outputs: int) -> int:
    """Multiplications and additions of one convolution."""
    return 2 * int((kernel_map.rows >= 0).sum()) * inputs * outputs


def count_operations_of_network(room: Room) -> int:
    """Those of one forward pass, without 1³ convolutions."""
    tensor = sparse_tensor(room.coordinates, room.features, backend="torch")
    tensor.level.backend = counter = OperationCounter()
    with torch.no_grad():
        SparseUNet(CONFIG).to(room.features).eval()(tensor)
    return counter.operations


def rows() -> Iterator[dict]:
    left_out: list[str] = []
    for table in TABLES:
        if table.device.type == "cuda" and not torch.cuda.is_available():
            left_out.append("sparse_*_fp16_*: no CUDA device")
        else:
            yield from table_rows(table, left_out)
    if left_out:
        raise LeftOut("; ".join(left_out))


def table_rows(table: Table, left_out: list[str]) -> Iterator[dict]:
    """The rows of one device; what is missing here is appended to `left_out`."""
    room = make_room(table.device)
    operations = count_operations_of_network(room)
    names = dict.fromkeys((*table.own, *table.peers))
    engines = load_engines(names, table.device, left_out)
    engines = those_that_infer(engines, room, table.device, left_out)
    if table.device.type == "cpu":
        yield from room_rows(room, operations)
    yield from inference_rows(engines, room, operations, table)
    if table.device.type == "cpu":
        yield from one_thread_rows(engines, room, table, left_out)
    trained = {name: engine for name, engine in engines.items() if name in table.trained}
    trained = those_that_train(trained, room, table.device, left_out)
    yield from training_rows(trained, room, table)
    yield from memory_rows(trained, table)
    yield from layer_rows(room, table)


def those_that_infer(
    engines: Mapping[str, Engine], room: Room, device: Device, left_out: list[str]
) -> dict[str, Engine]:
    """Those whose logits are right."""
    return those_that_agree(engines, lambda engine: engine.infer(room), "logits", device, left_out)


def those_that_train(
    engines: Mapping[str, Engine], room: Room, device: Device, left_out: list[str]
) -> dict[str, Engine]:
    """Those whose loss in a first training step is right."""
    # On CUDA, kernels are chosen and compiled for the sizes that they meet first.
    first = room.part(FEW_VOXELS) if device.type == "cpu" else room
    return those_that_agree(engines, lambda engine: engine.train(first), "loss", device, left_out)


def room_rows(room: Room, operations: int) -> Iterator[dict]:
    """What the network has to do."""
    level = sparse_tensor(room.coordinates, room.features, backend="torch").level
    for number, each in enumerate(levels_from(level)):
        yield row(AREA, f"sparse_room_level_{number}_voxels", len(each), "voxels", 1)
    yield row(AREA, "sparse_inference_gigaflop", operations / 1e9, "GFLOP", 1)


def inference_rows(
    engines: Mapping[str, Engine], room: Room, operations: int, table: Table
) -> Iterator[dict]:
    works = {name: partial(engine.infer, room) for name, engine in engines.items()}
    times, peaks = in_rounds(works, INFERENCE_ROUNDS, table.device)
    yield from table.times("inference", times)
    own = {name: each for name, each in times.items() if name in table.own}
    yield from share_rows("inference", own, peaks, operations, table)
    peak = statistics.median(peaks) / 1e9
    yield row(AREA, f"sparse_peak{table.ending}_gflops", peak, "GFLOP/s", len(peaks))


def training_rows(engines: Mapping[str, Engine], room: Room, table: Table) -> Iterator[dict]:
    works = {name: partial(engine.train, room) for name, engine in engines.items()}
    times, _ = in_rounds(works, TRAINING_ROUNDS, table.device)
    yield from table.times("training_step", times)


def memory_rows(names: Iterable[str], table: Table) -> Iterator[dict]:
    for what, train in (("inference", False), ("training", True)):
        grown = {}
        for name in names:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                grown[name] = fresh.submit(memory_growth, name, table.device, train).result()
        megabytes = {name: [each / 1e6] for name, each in grown.items()}
        yield from table.compared(what, "memory_mb", "MB", megabytes)


def memory_growth(name: str, device: Device, train: bool) -> int:
    """Bytes that this process takes beyond what it holds after a pass over few voxels."""
    room, engine = make_room(device), Engine(name, device)
    work = engine.train if train else engine.infer
    device.finish(partial(work, room.part(FEW_VOXELS)))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        device.finish(partial(work, room))
        return torch.cuda.max_memory_allocated() - before
    forget_peak_memory()
    before = peak_memory()
    work(room)
    return peak_memory() - before


def forget_peak_memory() -> None:
    """The peak of this process is then what it holds now; on Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes of this process; on Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line for line in lines if line.startswith("VmHWM")).split()[1]
    return 1024 * int(kilobytes)


def layer_rows(room: Room, table: Table) -> Iterator[dict]:
    """3³ convolutions alone, with maps that are there."""
    device, levels = table.device, {}
    for name in table.layers:
        with suppress(InputError):  # said when the engines were loaded
            tensor = sparse_tensor(room.coordinates, room.features, backend=name)
            levels[name] = levels_from(tensor.level)
    for number, channels in LAYERS:
        features = torch.randn(len(levels["torch"][number]), channels)
        weight = torch.randn(27, channels, channels).to(device.type, device.dtype)
        works = {
            name: partial(convolve, SparseTensor(features.to(weight), each[number]), weight)
            for name, each in levels.items()
        }
        for work in works.values():
            work()
        times, peaks = in_rounds(works, LAYER_ROUNDS, device)
        count = count_operations(levels["torch"][number].neighbors(3), channels, channels)
        what = f"layer_l{number}_{channels}"
        yield from share_rows(what, times, peaks, count, table)


def one_thread_rows(
    engines: Mapping[str, Engine], room: Room, table: Table, left_out: list[str]
) -> Iterator[dict]:
    """Against spconv, whose results on the processor are right with one thread only."""
    spconv = load_engines(["spconv"], table.device, left_out)
    own = {name: engines[name] for name in table.own[:1] if name in engines}
    if not spconv or not own:
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compared = those_that_infer(own | spconv, room, table.device, left_out)
        if "spconv" not in compared:
            return
        works = {name: partial(engine.infer, room) for name, engine in compared.items()}
        times, _ = in_rounds(works, ONE_THREAD_ROUNDS, table.device)
    finally:
        torch.set_num_threads(threads)
    yield from replace(table, peers=("spconv",)).times("inference_one_thread", times)


def share_rows(
    what: str,
    times: Mapping[str, list[float]],
    peaks: list[float],
    operations: int,
    table: Table,
) -> Iterator[dict]:
    """How much of the peak each backend reaches."""
    shares = {
        name: statistics.median(operations / t / peak for t, peak in zip(each, peaks, strict=True))
        for name, each in times.items()
    }
    for name, share in shares.items():
        peer = (
            () if name == "torch" else ("torch backend", shares["torch"], share / shares["torch"])
        )
        words = table.name(what, name, "of_peak")
        yield row(AREA, words, share, "share", len(peaks), *peer)


def in_rounds(
    works: Mapping[str, Callable[[], object]], rounds: int, device: Device
) -> tuple[dict[str, list[float]], list[float]]:
    """(seconds of each work, the peak), one of each in every round."""
    times: dict[str, list[float]] = {name: [] for name in works}
    peaks = []
    for _ in range(rounds):
        before = device.peak()
        for name, work in works.items():
            times[name].append(seconds(partial(device.finish, work)))
        peaks.append((before + device.peak()) / 2)
    return times, peaks


def levels_from(level: Level) -> list[Level]:
    """The five levels of the network."""
    levels = [level]
    for _ in range(4):
        levels.append(levels[-1].coarser[0])
    return levels
