"""Segments -> masks of parts and objects: layers of merging what looks alike, every layer kept.

After Part2Object (ECCV 2024): each layer joins a share of the neighbouring regions, the most alike
first; what fills a box of `video_boxes` is an object and grows no further. `merge_segments` of
unscene_ros/merging.py makes a layer of every single merge instead, by contrast and not by features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse

from training.unscene3d.affinity import AffinityConfig
from training.unscene3d.features import SegmentFeatures
from training.unscene3d.segment_graph import (
    MaskLimits,
    SegmentGraph,
    SegmentGraphConfig,
    within_limits,
)
from unscene_ros.inference import first_of_equals
from unscene_ros.scene import InputError, Mesh, Segments

_UNSEEN = 1e-3  # a feature without a view of its own counts where nothing else is known
_FULL = 2.0  # area / length² of a closed body: fuller than this is no better
_MOST_CANDIDATES = 2000  # compared pair by pair


@dataclass(frozen=True, slots=True)
class LayersConfig:
    """How regions grow from layer to layer, and which of them could be objects.

    Shares, balance, overlap and reach are Part2Object's; what it leaves open was chosen on
    procedural rooms of training seeds.
    """

    affinity: AffinityConfig = field(default_factory=lambda: AffinityConfig(modality="2d"))
    graph: SegmentGraphConfig = field(default_factory=SegmentGraphConfig)
    limits: MaskLimits = field(default_factory=MaskLimits)
    shares: tuple[float, ...] = (0.6, 0.5, 0.4, 0.3, 0.2)  # of the pairs, joined in each layer
    # A region that took something in this layer takes nothing so many times larger in the same one.
    balance: float = 3.0
    box_overlap: float = 0.6  # IoU with a box of the prior from which on a region is an object
    # After the last layer a region below the first area joins the neighbour most alike, one below
    # the second only a huge one. Part2Object: 500, 750 and 10,000 points, here of 4 cm².
    crumb_area_m2: float = 0.2
    large_crumb_area_m2: float = 0.3
    huge_area_m2: float = 4.0
    half_area_m2: float = 0.1  # the area at which a mask has half the score of an endless one
    max_overlap: float = 0.5  # intersection over union by area of two masks, at most
    max_masks: int = 200

    def __post_init__(self) -> None:
        if self.affinity.metric != "cosine":
            raise InputError(
                f"layers.affinity.metric: expected cosine, got {self.affinity.metric}: the feature "
                "of a region is a mean of directions"
            )
        if not all(0 <= share <= 1 for share in self.shares):
            raise InputError(f"layers.shares: expected 0..1 each, got {self.shares}")


def layer_masks(
    features: Mapping[str, SegmentFeatures],
    graph: SegmentGraph,
    segment_boxes: np.ndarray,
    prior_boxes: np.ndarray,
    config: LayersConfig | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Masks (K, S) bool that may overlap, best first, and their scores (K,) float32 in 0..1.

    features: by modality, "2d" and "3d"; graph: of the same segments; segment_boxes (S, 6) as from
    `boxes_of_segments`; prior_boxes (M, 6) as from `video_boxes`, may be empty.
    """
    config = config or LayersConfig()
    if not graph.movable.any():
        return np.zeros((0, len(graph.movable)), bool), np.zeros(0, np.float32)
    looks = Looks.of(features, graph, config.affinity)
    links = graph.neighbors[graph.movable[graph.neighbors].all(axis=1)]
    region = np.where(graph.movable, np.arange(len(graph.movable)), -1)
    layers = []
    for share in config.shares:
        pairs = _by_likeness(neighboring_regions(region, links), region, looks)
        done = _fills_a_box(region, segment_boxes, prior_boxes, config.box_overlap)
        pairs = pairs[~done[pairs].any(axis=1)]
        pairs = pairs[: int(share * len(pairs))]
        region = joined_regions(region, pairs, graph.areas_m2, config.balance)
        layers.append(_masks_of(region))
    layers.append(_masks_of(_without_crumbs(region, links, looks, graph.areas_m2, config)))
    masks = np.unique(np.concatenate(layers), axis=0)
    masks = masks[within_limits(masks, graph, config.limits)]
    scores = _scores(masks, links, looks, graph, config)
    order = np.argsort(-scores, kind="stable")[:_MOST_CANDIDATES]
    kept = order[first_of_equals(masks[order], graph.areas_m2, config.max_overlap)]
    kept = kept[: config.max_masks]
    return masks[kept], scores[kept].astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """vectors (S, C) float32, cosines between which are affinities; weights (S,) of the means."""

    vectors: np.ndarray
    weights: np.ndarray

    @staticmethod
    def of(
        features: Mapping[str, SegmentFeatures], graph: SegmentGraph, config: AffinityConfig
    ) -> Looks:
        """Modalities side by side: the cosine of joined vectors is the mean of theirs."""
        count = len(graph.movable)
        parts, trust = [], np.zeros(count)
        for name, share in config.weights().items():
            if name not in features or len(features[name].values) != count:
                raise InputError(f"layers: expected {name} features of {count} segments")
            parts.append(np.sqrt(share) * _unit(features[name].values.astype(np.float32)))
            trust += share * np.where(features[name].valid, 1, _UNSEEN)
        return Looks(np.concatenate(parts, axis=1), graph.areas_m2 * trust)

    def mean(self, region: np.ndarray) -> np.ndarray:
        """(S, C) unit feature of each region id; region (S,), -1 for none.

        The mean over its segments, weighted anew by how alike each is to it: what bled over from
        beside the region counts less.
        """
        first = self._mean(region, self.weights)
        likeness = (self.vectors * first[region]).sum(axis=1)
        return self._mean(region, self.weights * np.maximum(likeness, _UNSEEN))

    def _mean(self, region: np.ndarray, weights: np.ndarray) -> np.ndarray:
        members = np.flatnonzero(region >= 0)
        shape = (len(region), len(region))
        spread = scipy.sparse.coo_array((weights[members], (region[members], members)), shape)
        return _unit(spread.tocsr() @ self.vectors)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def neighboring_regions(region: np.ndarray, links: np.ndarray) -> np.ndarray:
    """(P, 2) the pairs of regions that hold two linked segments, each once, ascending."""
    pairs = np.sort(region[links], axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


def _by_likeness(pairs: np.ndarray, region: np.ndarray, looks: Looks) -> np.ndarray:
    """The pairs of regions, the most alike first."""
    means = looks.mean(region)
    likeness = (means[pairs[:, 0]] * means[pairs[:, 1]]).sum(axis=1)
    return pairs[np.argsort(-likeness, kind="stable")]


def joined_regions(
    region: np.ndarray, pairs: np.ndarray, areas: np.ndarray, balance: float
) -> np.ndarray:
    """(S,) regions after the pairs (P, 2) were joined in this order, the smaller into the larger.

    A region that has taken something takes nothing that is `balance` times as large as all it took
    or larger: what is large itself has to come first. areas (S,) of the segments.
    """
    parent = np.arange(len(region))
    size = np.bincount(region[region >= 0], areas[region >= 0], len(region))
    taken = np.zeros(len(region))
    for pair in pairs.tolist():
        first, second = (_root(parent, end) for end in pair)
        large, small = (first, second) if size[first] >= size[second] else (second, first)
        if large == small or 0 < balance * taken[large] <= size[small]:
            continue
        parent[small] = large
        taken[large] += size[small]
        size[large] += size[small]
    return _followed(parent, region)


def _followed(parent: np.ndarray, region: np.ndarray) -> np.ndarray:
    """(S,) the region that each has become; parent (S,) of each region id, itself if it is one."""
    roots = np.array([_root(parent, number) for number in range(len(parent))], np.int64)
    return np.where(region >= 0, roots[region], -1)


def _root(parent: np.ndarray, number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def _masks_of(region: np.ndarray) -> np.ndarray:
    """(R, S) bool the segments of each region."""
    return region == np.unique(region[region >= 0])[:, None]


def boxes_of_segments(mesh: Mesh, segments: Segments) -> np.ndarray:
    """(S, 6) float64 the low, then the high corner of the box around each segment, metres."""
    return _boxes_around(mesh.vertices, mesh.vertices, segments.of_vertex, segments.count)


def _boxes_around(low: np.ndarray, high: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """(count, 6) boxes around the boxes (n, 3), (n, 3) of each group (n,)."""
    boxes = np.empty((count, 6))
    boxes[:, :3], boxes[:, 3:] = np.inf, -np.inf
    np.minimum.at(boxes[:, :3], group, low)
    np.maximum.at(boxes[:, 3:], group, high)
    return boxes


def box_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(A, B) intersection over union of boxes (A, 6), (B, 6); 0 for those without a volume."""
    low = np.maximum(first[:, None, :3], second[:, :3])
    high = np.minimum(first[:, None, 3:], second[:, 3:])
    common = np.prod(np.maximum(high - low, 0), axis=2)
    volumes = [np.prod(boxes[:, 3:] - boxes[:, :3], axis=1) for boxes in (first, second)]
    return common / np.maximum(volumes[0][:, None] + volumes[1] - common, 1e-12)


def _fills_a_box(
    region: np.ndarray, segment_boxes: np.ndarray, prior_boxes: np.ndarray, least: float
) -> np.ndarray:
    """(S,) bool, which region ids overlap a box of the prior by more than this."""
    filled = np.zeros(len(region), bool)
    inside = region >= 0
    ids, number = np.unique(region[inside], return_inverse=True)
    boxes = segment_boxes[inside]
    boxes = _boxes_around(boxes[:, :3], boxes[:, 3:], number, len(ids))
    filled[ids] = (box_overlaps(boxes, prior_boxes) > least).any(axis=1)
    return filled


def _without_crumbs(
    region: np.ndarray, links: np.ndarray, looks: Looks, areas: np.ndarray, config: LayersConfig
) -> np.ndarray:
    """Regions (S,) after small ones have joined the neighbour that is most alike."""
    size = np.bincount(region[region >= 0], areas[region >= 0], len(region))
    target = np.arange(len(region))
    pairs = _by_likeness(neighboring_regions(region, links), region, looks)
    both_ways = np.stack([pairs, pairs[:, ::-1]], axis=1).reshape(-1, 2)
    for crumb, neighbor in both_ways.tolist():
        huge = size[neighbor] > config.huge_area_m2
        limit = config.large_crumb_area_m2 if huge else config.crumb_area_m2
        # Always into the larger one, so that no two wait for each other.
        if target[crumb] == crumb and size[crumb] < min(limit, size[neighbor]):
            target[crumb] = neighbor
    return _followed(target, region)


def _scores(
    masks: np.ndarray,
    links: np.ndarray,
    looks: Looks,
    graph: SegmentGraph,
    config: LayersConfig,
) -> np.ndarray:
    """(K,) how alike a mask's segments are and how unlike those around it, times its shape.

    More the larger it is, and the more surface it shows for its length.
    """
    weights = masks * looks.weights
    means = _unit(weights @ looks.vectors)
    likeness = means @ looks.vectors.T
    inside = (likeness * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-12)
    ends = np.concatenate([links, links[:, ::-1]]).T
    shape = (len(graph.movable), len(graph.movable))
    touching = scipy.sparse.coo_array((np.ones(ends.shape[1], np.float32), ends), shape).tocsr()
    around = (masks.astype(np.float32) @ touching > 0) & ~masks
    across = (likeness * around).sum(axis=1) / np.maximum(around.sum(axis=1), 1)
    shapes = graph.shapes(masks)
    size = shapes.areas / (shapes.areas + config.half_area_m2)
    full = np.minimum(shapes.fullness, _FULL) / _FULL
    return np.clip((inside - across) / 2, 0, 1) * size * full
