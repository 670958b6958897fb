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

import numpy as np
import scipy.sparse
from scipy.optimize import linear_sum_assignment

from unscene_ros.scene import Instances, Mesh, Segments
from unscene_ros.settings import check_ranges, within


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
    """Gives lasting ids to the instances of successive maps of one place."""

    def __init__(self, config: TrackingConfig | None = None) -> None:
        self.config = config or TrackingConfig()
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
        for track_id, cells in list(self._cells_of_track.items()):
            left = np.isin(cells, map_cells, assume_unique=True).mean()
            if left < self.config.min_surface_left:
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
        for track, instance in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
            if overlap[track, instance] >= self.config.min_overlap:
                track_ids[instance] = known[track]
        new = np.flatnonzero(track_ids < 0)
        track_ids[new] = np.arange(self._next_id, self._next_id + len(new))
        self._next_id += len(new)
        return track_ids


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
