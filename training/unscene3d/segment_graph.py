"""Mesh + segments -> what masks are made of and judged by: neighbours, sizes, structure.

Every method that proposes masks without labels works on this graph and drops what cannot be an
object by the same limits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from unscene_ros.hypotheses import Shapes, segment_moments, shapes_of
from unscene_ros.oversegmentation import pool_over_segments, segment_neighbors_within
from unscene_ros.scene import InputError, Mesh, Segments
from unscene_ros.structure import StructureConfig, find_structure, vertex_areas


@dataclass(frozen=True, slots=True)
class SegmentGraphConfig:
    """Which segments are neighbours, and which can be in a mask at all."""

    near_m: float = 0.05  # segments at most this far apart are neighbours; 0: touching ones only
    without_structure: bool = True  # floor, walls and ceiling are in no mask
    structure: StructureConfig = field(default_factory=StructureConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.near_m < np.inf:
            raise InputError(f"graph.near_m: expected 0 or more metres, got {self.near_m}")


@dataclass(frozen=True, slots=True, eq=False)
class SegmentGraph:
    """moments (S, 10) as from `segment_moments`; neighbors (E, 2) int32; movable (S,) bool."""

    moments: np.ndarray
    neighbors: np.ndarray
    movable: np.ndarray

    @property
    def areas_m2(self) -> np.ndarray:
        """(S,) square metres of each segment."""
        return self.moments[:, 0]

    def shapes(self, masks: np.ndarray) -> Shapes:
        """Area, length and fullness of each mask (K, S) bool."""
        return shapes_of(masks @ self.moments)


def segment_graph(
    mesh: Mesh, segments: Segments, config: SegmentGraphConfig | None = None
) -> SegmentGraph:
    """Measures the segments of a mesh; a segment is movable unless most of it is structure."""
    config = config or SegmentGraphConfig()
    neighbors = segments.neighbors
    if config.near_m > 0:
        neighbors = segment_neighbors_within(mesh, segments, config.near_m)
    structure = np.zeros(len(mesh.vertices), bool)
    if config.without_structure:
        structure = find_structure(mesh, config.structure)
    share = pool_over_segments(structure[:, None].astype(np.float32), segments)[:, 0]
    moments = segment_moments(mesh, segments, vertex_areas(mesh))
    return SegmentGraph(moments, neighbors, share <= 0.5)


@dataclass(frozen=True, slots=True)
class MaskLimits:
    """What an object can be by its size; lengths are those of a rod of the same spread."""

    min_segments: int = 1
    min_area_m2: float = 0.04
    min_length_m: float = 0.0
    max_length_m: float = 4.0
    max_scene_share: float = 0.8  # of the length of everything in the scene


def within_limits(masks: np.ndarray, graph: SegmentGraph, limits: MaskLimits) -> np.ndarray:
    """(K,) bool, which of the masks (K, S) bool could be objects by their size."""
    shapes = graph.shapes(masks)
    scene_length = graph.shapes(np.ones((1, len(graph.moments)), bool)).lengths[0]
    longest = min(limits.max_length_m, limits.max_scene_share * scene_length)
    possible = (shapes.lengths >= limits.min_length_m) & (shapes.lengths <= longest)
    possible &= shapes.areas >= limits.min_area_m2
    return possible & (masks.sum(axis=1) >= limits.min_segments)
