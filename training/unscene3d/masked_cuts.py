"""Segments + features -> pseudo masks: objects cut off an affinity graph one after the other.

Masked normalised cuts after UnScene3D (CVPR 2024, section 4.2 and Algorithm 1; `PAPER_CUTS`), and
the default: only near segments are tied, floor and walls are left out, every part that separates is
a mask, cuts end where they become dear. Ideas of the default: FoundObj (arXiv 2605.27178).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import scipy.sparse

from training.unscene3d.affinity import Affinity, AffinityConfig
from training.unscene3d.features import SegmentFeatures
from training.unscene3d.segment_graph import (
    MaskLimits,
    SegmentGraph,
    SegmentGraphConfig,
    within_limits,
)
from unscene_ros.normalized_cut import Cut, Graph, NormalizedCutConfig, connected_parts, cut_graph
from unscene_ros.scene import InputError

_MOST_SEGMENTS = 12_000  # with edges between all pairs: at the worst they take 1 GB
_ROWS = 1024  # of that matrix that are filled at a time


@dataclass(frozen=True, slots=True)
class MaskedCutsConfig:
    """Settings of the cuts, chosen on procedural rooms 0 to 15; the paper's are `PAPER_CUTS`."""

    affinity: AffinityConfig = field(default_factory=AffinityConfig)
    graph: SegmentGraphConfig = field(default_factory=SegmentGraphConfig)
    limits: MaskLimits = field(default_factory=MaskLimits)
    tied: Literal["near", "all"] = "near"  # pairs that can have an edge: neighbours, or all
    min_affinity: float = 0.7  # pairs that are less alike have no edge
    edges: Literal["binary", "soft"] = "binary"  # soft: an edge weighs as much as its affinity
    flip_by: Literal["area", "segments"] = "area"  # what cut.flip_share is a share of
    # Of a foreground's connected parts, which one is the mask: all (each one), the one with the
    # largest entry of the eigenvector, with the largest mean entry, with the most surface; or none
    # (not separated).
    separation: Literal["all", "max", "avg", "largest", "none"] = "all"
    keep_rest: bool = True  # what no cut takes apart is a mask as well
    cut: NormalizedCutConfig = field(default_factory=lambda: NormalizedCutConfig(max_cost=0.01))

    def __post_init__(self) -> None:
        if not 0 <= self.min_affinity <= 1:
            raise InputError(f"cuts.min_affinity: expected 0..1, got {self.min_affinity}")


# Both modalities; 2D alone takes the same threshold.
PAPER_CUTS = MaskedCutsConfig(
    graph=SegmentGraphConfig(near_m=0.0, without_structure=False),
    limits=MaskLimits(min_segments=8, min_area_m2=0.0, max_length_m=1000.0, max_scene_share=1000.0),
    tied="all",
    min_affinity=0.65,
    flip_by="segments",
    separation="max",
    keep_rest=False,
    cut=NormalizedCutConfig(flip_share=0.5, max_cost=2.0, max_cuts=20),
)
PAPER_CUTS_3D = replace(PAPER_CUTS, affinity=AffinityConfig(modality="3d"), min_affinity=0.55)


def masked_cut_masks(
    features: Mapping[str, SegmentFeatures],
    graph: SegmentGraph,
    config: MaskedCutsConfig | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Masks (K, S) bool that do not overlap, best first, and their scores (K,) float32 in 0..1.

    features: by modality, "2d" and "3d"; graph: of the same segments, by `segment_graph`. A score
    is 1 - the cost of the cut, less for masks that are thinner than a square: torn-off strips.
    Raises InputError for features that do not fit, and for too many segments for all pairs.
    """
    config = config or MaskedCutsConfig()
    affinity = Affinity(features, config.affinity)
    count = len(graph.movable)
    if affinity.count != count:
        raise InputError(f"cuts: expected features of {count} segments, got {affinity.count}")
    if not count:
        return np.zeros((0, 0), bool), np.zeros(0, np.float32)
    masks: list[np.ndarray] = []
    costs: list[float] = []
    for nodes, edges, links in _graphs(affinity, graph, config):
        for mask, cost in _cut_off(nodes, edges, links, graph.areas_m2, config):
            masks.append(mask)
            costs.append(cost)
    found = np.array(masks, bool).reshape(-1, count)
    kept = within_limits(found, graph, config.limits)
    found, cost_of_mask = found[kept], np.array(costs)[kept]
    scores = (1 - np.clip(cost_of_mask, 0, 1)) * np.minimum(graph.shapes(found).fullness, 1)
    order = np.argsort(-scores, kind="stable")
    return found[order], scores[order].astype(np.float32)


def _graphs(
    affinity: Affinity, graph: SegmentGraph, config: MaskedCutsConfig
) -> Iterator[tuple[np.ndarray, Graph, np.ndarray]]:
    """(nodes, edges (S, S), links (E, 2) along which masks hang together) of each graph to cut."""
    count = len(graph.movable)
    if config.tied == "all":
        yield np.flatnonzero(graph.movable), _all_edges(affinity, config), graph.neighbors
        return
    usable = graph.neighbors[graph.movable[graph.neighbors].all(axis=1)]
    alike = affinity.pairs(usable)
    links, alike = usable[alike > config.min_affinity], alike[alike > config.min_affinity]
    weights = _weights(alike, config)
    one_way = scipy.sparse.coo_array((weights, links.T), shape=(count, count))
    own = scipy.sparse.eye_array(count, dtype=np.float32)
    edges = (one_way + one_way.T + own).tocsr()
    # Parts without an edge between them need no cut, and would spend the number of cuts.
    for part in connected_parts(np.flatnonzero(graph.movable), links, count):
        if graph.areas_m2[part].sum() >= config.limits.min_area_m2:
            yield np.flatnonzero(part), edges, links


def _all_edges(affinity: Affinity, config: MaskedCutsConfig) -> Graph:
    if affinity.count > _MOST_SEGMENTS:
        raise InputError(
            f"cuts.tied=all: expected at most {_MOST_SEGMENTS} segments, got {affinity.count}: "
            f"use coarser segments, or cuts.tied=near"
        )
    blocks = []
    for start in range(0, affinity.count, _ROWS):
        rows = affinity.rows(np.arange(start, min(start + _ROWS, affinity.count)))
        alike = rows > config.min_affinity
        blocks.append(scipy.sparse.csr_array(_weights(rows, config) * alike))
    return scipy.sparse.vstack(blocks, format="csr")


def _weights(affinities: np.ndarray, config: MaskedCutsConfig) -> np.ndarray:
    return np.ones_like(affinities) if config.edges == "binary" else affinities


def _cut_off(
    nodes: np.ndarray,
    edges: Graph,
    links: np.ndarray,
    areas_m2: np.ndarray,
    config: MaskedCutsConfig,
) -> Iterator[tuple[np.ndarray, float]]:
    """Masks (S,) bool in the order in which they are cut off, each with the cost of its cut.

    A mask's nodes are deleted, whether its size makes it an object or not: none is found twice.
    (The published code sets their rows to the background weight, so that they come back as noise
    and have to be subtracted.)
    """
    remaining, cost = nodes, 0.0
    for _ in range(config.cut.max_cuts):
        cut = cut_graph(edges[remaining][:, remaining], config.cut)
        if cut is None or cut.cost > config.cut.max_cost:
            break
        cost = cut.cost
        foreground, vector = _foreground(cut, areas_m2[remaining], config)
        strength = np.full(len(areas_m2), -np.inf)
        strength[remaining] = vector
        taken = _separated(remaining[foreground], strength, links, areas_m2, config.separation)
        for mask in taken:
            yield mask, cost
        remaining = remaining[~np.any(taken, axis=0)[remaining]]
    if config.keep_rest:
        for mask in connected_parts(remaining, links, len(areas_m2)):
            yield mask, cost


def _foreground(
    cut: Cut, areas_m2: np.ndarray, config: MaskedCutsConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The side that is not the background (n,) bool, and the vector (n,) that is large on it."""
    sizes = areas_m2 if config.flip_by == "area" else np.ones(len(areas_m2))
    if sizes[cut.foreground].sum() > config.cut.flip_share * sizes.sum():
        return ~cut.foreground, -cut.vector
    return cut.foreground, cut.vector


def _separated(
    nodes: np.ndarray, strength: np.ndarray, links: np.ndarray, areas_m2: np.ndarray, mode: str
) -> list[np.ndarray]:
    """The masks (S,) bool that one foreground gives."""
    if mode == "none":
        mask = np.zeros(len(areas_m2), bool)
        mask[nodes] = True
        return [mask]
    parts = connected_parts(nodes, links, len(areas_m2))
    if mode == "max":
        return [max(parts, key=lambda part: strength[part].max())]
    if mode == "avg":
        return [max(parts, key=lambda part: strength[part].mean())]
    if mode == "largest":
        return [max(parts, key=lambda part: areas_m2[part].sum())]
    return parts
