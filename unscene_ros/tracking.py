"""Keeps an object's id the same from one map update to the next, by overlap on the shared surface.

A track remembers the surface cells its object was last seen on, also while nothing is detected
there, so an object that is missed once gets its old id back. Rules:
  split   the part that covers more of the old surface keeps the id, the other gets a new one;
  merge   the whole takes the id it overlaps most; the other track keeps its surface, and its id
          returns when the object is seen on its own again;
  gone    a track whose surface has vanished from the map is forgotten, and its id is never reused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
from scipy.optimize import linear_sum_assignment

from unscene_ros.scene import InputError, Instances, Mesh, Segments
from unscene_ros.settings import check_ranges, within
from unscene_ros.storage import Layout, read_arrays, whole_file

MAX_FILE_BYTES = 500e6  # a map of 1 GB has a tenth of it in surface cells
MAX_ID = 1 << 30  # leaves room for as many again in 32 bits
LAYOUT: Layout = {
    "map_id": (("map id",), np.uint8),
    "cell_m": ((), np.float64),
    "next_id": ((), np.int64),
    "track_of_cell": (("cells",), np.int64),
    "cells": (("cells",), np.int64),
    "map_cells": (("map cells",), np.int64),
}


@dataclass(frozen=True, slots=True)
class TrackingConfig:
    """How much two surfaces must share to be one object."""

    # Surface is compared in cells of this size, above the fusion's jitter.
    cell_m: float = within(0.06, 0.001, 1)
    # Intersection over union on the surface that both maps have.
    min_overlap: float = within(0.25, 0, 1)
    min_surface_left: float = within(0.2, 0, 1)  # a track with less of its cells left is forgotten

    def __post_init__(self) -> None:
        check_ranges(self, "tracking")


class InstanceTracker:
    """Gives lasting ids to the instances of successive maps of one place.

    `map_id` is that of the place's map, and `vanished` are the ids that the last update has
    forgotten, because their surface had left the map.
    """

    def __init__(self, config: TrackingConfig | None = None, map_id: str = "") -> None:
        self.config = config or TrackingConfig()
        self.map_id = map_id
        self.vanished: list[int] = []
        self._cells_of_track: dict[int, np.ndarray] = {}
        self._map_cells = np.zeros(0, np.int64)
        self._next_id = 1

    def update(self, mesh: Mesh, segments: Segments, instances: Instances) -> np.ndarray:
        """Track ids (N,) int32, from 1, of the instances found in the newest map."""
        cell_of_vertex = _cells(mesh.vertices, self.config.cell_m)
        map_cells = np.unique(cell_of_vertex)
        instance_of_vertex = instances.of_vertex(segments)
        cells = [
            np.unique(cell_of_vertex[instance_of_vertex == i]) for i in range(len(instances.masks))
        ]
        self._forget_vanished(map_cells)
        track_ids = self._match(cells, map_cells)
        for track_id, instance_cells in zip(track_ids, cells, strict=True):
            if len(instance_cells):
                self._cells_of_track[int(track_id)] = instance_cells
        self._map_cells = map_cells
        return track_ids

    def _forget_vanished(self, map_cells: np.ndarray) -> None:
        self.vanished = [
            track_id
            for track_id, cells in self._cells_of_track.items()
            if np.isin(cells, map_cells, assume_unique=True).mean() < self.config.min_surface_left
        ]
        for track_id in self.vanished:
            del self._cells_of_track[track_id]

    def _match(self, cells: list[np.ndarray], map_cells: np.ndarray) -> np.ndarray:
        """One-to-one assignment of instances to tracks of the largest total overlap."""
        known = list(self._cells_of_track)
        track_ids = np.full(len(cells), -1, np.int32)
        # Only surface in both maps can speak for or against: an object half seen before may grow.
        shared = np.intersect1d(self._map_cells, map_cells, assume_unique=True)
        tracks = _incidence([self._cells_of_track[t] for t in known], shared)
        found = _incidence(cells, shared)
        common = (tracks @ found.T).toarray()
        union = tracks.sum(axis=1).reshape(-1, 1) + found.sum(axis=1).reshape(1, -1) - common
        overlap = common / np.maximum(union, 1)
        overlap[overlap < self.config.min_overlap] = 0  # what is too little must not decide
        for track, instance in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
            if overlap[track, instance] > 0:
                track_ids[instance] = known[track]
        new = np.flatnonzero(track_ids < 0)
        track_ids[new] = np.arange(self._next_id, self._next_id + len(new))
        self._next_id += len(new)
        return track_ids

    def save(self, path: Path | str) -> None:
        """Writes the tracks to a .npz file, whole or not at all; InputError when that fails."""
        ids, cells = [*self._cells_of_track], [*self._cells_of_track.values()]
        with whole_file(Path(path)) as file:
            np.savez_compressed(
                file,
                map_id=np.frombuffer(self.map_id.encode(), np.uint8),
                cell_m=np.float64(self.config.cell_m),
                next_id=np.int64(self._next_id),
                track_of_cell=np.repeat(np.array(ids, np.int64), [len(each) for each in cells]),
                cells=np.concatenate([np.zeros(0, np.int64), *cells]),
                map_cells=self._map_cells,
            )

    @classmethod
    def load(cls, path: Path | str, config: TrackingConfig | None = None) -> InstanceTracker:
        """A saved tracker, which goes on with the same ids; its `map_id` says for which map.

        Raises InputError for a file that is missing, damaged, of another kind or another cell size.
        """
        arrays = read_arrays(Path(path), LAYOUT, MAX_FILE_BYTES)
        if wrong := _senseless(arrays):
            raise InputError(f"{path}: expected sound tracks, got {wrong}: start without them")
        tracker = cls(config, arrays["map_id"].tobytes().decode(errors="replace"))
        if arrays["cell_m"] != tracker.config.cell_m:
            raise InputError(
                f"{path}: expected cells of {tracker.config.cell_m} m, got {arrays['cell_m']} m: "
                "set tracking.cell_m to that or start without the file"
            )
        ids, starts = np.unique(arrays["track_of_cell"], return_index=True)
        cells = np.split(arrays["cells"], starts[1:])
        tracker._cells_of_track = dict(zip(ids.tolist(), cells, strict=False))  # [[]] if no ids
        tracker._map_cells = arrays["map_cells"]
        tracker._next_id = int(arrays["next_id"])
        return tracker


def _senseless(arrays: dict[str, np.ndarray]) -> str:
    """What no tracker can hold, or nothing."""
    tracks, cells, map_cells = (arrays[name] for name in ("track_of_cell", "cells", "map_cells"))
    if not tracks.max(initial=0) < arrays["next_id"] <= MAX_ID or tracks.min(initial=1) < 1:
        return "ids out of range"
    same_track = tracks[1:] == tracks[:-1]
    ascending = (tracks[1:] > tracks[:-1]) | (same_track & (cells[1:] > cells[:-1]))
    if not ascending.all() or not (map_cells[1:] > map_cells[:-1]).all():
        return "cells out of order"
    return ""


def _cells(positions: np.ndarray, cell_m: float) -> np.ndarray:
    """(V,) int64, one number for each cell of a grid of 2^21 cells a side around the origin."""
    index = np.floor(positions.astype(np.float64) / cell_m).astype(np.int64) + (1 << 20)
    return (index[:, 0] << 42) | (index[:, 1] << 21) | index[:, 2]


def _incidence(cell_sets: list[np.ndarray], shared: np.ndarray) -> scipy.sparse.csr_array:
    """(sets, shared cells) int64 matrix, 1 where a set holds a cell; others are left out."""
    rows = np.repeat(np.arange(len(cell_sets)), [len(cells) for cells in cell_sets])
    cells = np.concatenate([np.zeros(0, np.int64), *cell_sets])
    columns = np.searchsorted(shared, cells)
    inside = columns < len(shared)
    inside[inside] = shared[columns[inside]] == cells[inside]
    ones = np.ones(int(inside.sum()), np.int64)
    shape = (len(cell_sets), len(shared))
    return scipy.sparse.csr_array((ones, (rows[inside], columns[inside])), shape=shape)
