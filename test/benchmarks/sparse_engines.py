"""What bench_sparse_convolution measures: a network in a room, by our backends and other libraries.

The room is 3.6 x 3.0 x 2.4 m, open above, with four boxes, in voxels of 2 cm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import LeftOut, seconds
from benchmarks.sparse_peers import Library, Minkowski, PeerUNet, Spconv
from unscene_ros.models.backends import choose_backend
from unscene_ros.models.sparse_tensor import sparse_tensor
from unscene_ros.models.sparse_unet import SparseUNet, SparseUNetConfig
from unscene_ros.scene import InputError

CONFIG = SparseUNetConfig("Res16UNet34C", output_channels=20, stem_kernel_size=5)
LIBRARIES: dict[str, Callable[[], Library]] = {
    "MinkowskiEngine": Minkowski,
    "spconv": partial(Spconv, "spconv.pytorch"),
    "spconv-triton": partial(Spconv, "spconv_triton.pytorch"),
}

VOXEL_M, NOISE_M = 0.02, 0.003
ROOM_M = 3.6, 3.0, 2.4
CORNER_M = -1.736, -1.886, -1.702  # not at the edge of a voxel
BOXES_M = (  # corner, size
    ((0.3, 0.3, 0.0), (1.5, 0.8, 0.5)),
    ((2.5, 0.2, 0.0), (0.6, 0.6, 1.5)),
    ((2.3, 1.8, 0.0), (1.0, 0.9, 0.7)),
    ((0.3, 2.2, 0.0), (1.0, 0.5, 1.0)),
)


@dataclass(frozen=True)
class Device:
    """Where and in which type something is measured."""

    type: str
    dtype: torch.dtype
    peak_size: int  # rows and columns of the matrices whose product shows the peak
    tolerance: float  # between engines: of logits to the largest one, and of losses

    def finish(self, work: Callable[[], object]) -> None:
        """Calls it and waits until all is computed."""
        work()
        if self.type == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> float:
        """Operations that torch.mm does in a second."""
        matrix = _matrix(self)
        taken = seconds(partial(self.finish, partial(torch.mm, matrix, matrix)), 3)
        return 2 * self.peak_size**3 / taken


CPU = Device("cpu", torch.float32, 2048, 1e-3)
CUDA = Device("cuda", torch.float16, 8192, 0.05)


@cache
def _matrix(device: Device) -> Tensor:
    shape = device.peak_size, device.peak_size
    return torch.rand(shape, dtype=device.dtype, device=device.type)


class Room(NamedTuple):
    """coordinates (N, 4) int32, features (N, 3) float32, labels (N,) int64."""

    coordinates: Tensor
    features: Tensor
    labels: Tensor

    def part(self, voxels: int) -> Room:
        """The first voxels."""
        return Room(*(tensor[:voxels] for tensor in self))


def make_room(device: Device) -> Room:
    """The voxels that hold points of the surfaces, with random colours and labels."""
    random = np.random.default_rng(0)
    points = []
    for corner, along in surfaces():
        counts = np.rint(along.sum(1) / VOXEL_M).astype(int)
        cells = np.indices(counts).reshape(2, -1).T
        points.append(corner + (cells + random.random(cells.shape)) / counts @ along)
    cloud = np.concatenate(points) + CORNER_M
    cloud += random.normal(0, NOISE_M, cloud.shape)

    cells = np.unique(np.floor(cloud / VOXEL_M).astype(np.int32), axis=0)
    coordinates = np.pad(cells, ((0, 0), (1, 0)))
    colors = random.random(cells.shape, dtype=np.float32) - 0.5
    labels = random.integers(CONFIG.output_channels, size=len(cells))
    return Room(*(torch.from_numpy(a).to(device.type) for a in (coordinates, colors, labels)))


def surfaces() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(corner (3,), edges (2, 3)) of floor, walls and the six sides of each box, in metres."""
    for number, (corner, size) in enumerate((((0.0, 0.0, 0.0), ROOM_M), *BOXES_M)):
        edges = np.diag(size)
        for axis in range(3):
            for far in range(2):
                if (number, axis, far) != (0, 2, 1):  # the ceiling
                    yield corner + far * edges[axis], np.delete(edges, axis, axis=0)


class Engine:
    """The network, its convolutions computed by a backend of ours or by another library.

    All engines begin with the same parameters. Raises LeftOut with the reason where the backend or
    the library is not here.
    """

    def __init__(self, name: str, device: Device) -> None:
        self.name, self.device = name, device
        torch.manual_seed(0)
        network = SparseUNet(CONFIG)
        if name in LIBRARIES:
            library = _library(name)
            peer = PeerUNet(library, CONFIG)
            peer.load_state_dict(library.state(network.state_dict()))
            # Half precision as spconv wants it at inference, where it does not follow autocast.
            self.network = peer.to(device.type, device.dtype)
        else:
            _check_backend(name, device)
            self.network = network.to(device.type)
        self._optimizer = torch.optim.AdamW(self.network.parameters())

    def infer(self, room: Room) -> Tensor:
        """(N, classes) logits."""
        self.network.eval()
        with torch.no_grad():
            return self._logits(room)

    def train(self, room: Room) -> Tensor:
        """One step with cross entropy; gives the loss."""
        self.network.train()
        self._optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self._logits(room).float(), room.labels)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _logits(self, room: Room) -> Tensor:
        if isinstance(self.network, PeerUNet):
            return self.network(room.coordinates, room.features.to(self.device.dtype))
        half = self.device.dtype == torch.float16
        with torch.autocast(self.device.type, torch.float16, enabled=half):
            tensor = sparse_tensor(room.coordinates, room.features, backend=self.name)
            return self.network(tensor).at_points()


def load_engines(names: Iterable[str], device: Device, left_out: list[str]) -> dict[str, Engine]:
    """The engines that are here; the reasons why others are not are appended to `left_out`."""
    engines = {}
    for name in names:
        try:
            engines[name] = Engine(name, device)
        except LeftOut as reason:
            left_out.append(str(reason))
    return engines


def those_that_agree(
    engines: Mapping[str, Engine],
    compute: Callable[[Engine], Tensor],
    what: str,
    device: Device,
    left_out: list[str],
) -> dict[str, Engine]:
    """The first engine and those that compute the same; `what` names it.

    A library that computes something else or fails is appended to `left_out` with the reason.
    Raises ValueError where a backend of ours computes something else: that must not go unnoticed.
    """
    (first, reference), *others = engines.items()
    expected = compute(reference).float()
    agreeing = {first: reference}
    for name, engine in others:
        try:
            difference = (compute(engine) - expected).abs().max() / expected.abs().max()
        except Exception as error:  # whatever a library may raise
            if name not in LIBRARIES:
                raise
            left_out.append(f"{name}: {type(error).__name__}: {error}")
            continue
        if difference <= device.tolerance:
            agreeing[name] = engine
            continue
        reason = (
            f"{name}: expected the {what} of {first}, got a difference of {difference:.2g} of the "
            "largest"
        )
        if name not in LIBRARIES:
            raise ValueError(reason)
        left_out.append(reason)
    return agreeing


def _library(name: str) -> Library:
    try:
        return LIBRARIES[name]()
    except ImportError as error:
        raise LeftOut(f"{name}: {error}") from error


def _check_backend(name: str, device: Device) -> None:
    try:
        choose_backend(name, torch.device(device.type))  # type: ignore[arg-type]
    except InputError as error:
        raise LeftOut(str(error)) from error
