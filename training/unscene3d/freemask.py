"""Segments + features -> pseudo masks: what is alike to each of a few anchors, thinned out.

FreeMask of FreeSOLO (Wang et al., CVPR 2022) on segments, as in UnScene3D (CVPR 2024, appendix
8.3): anchors far apart in feature space, masks of segments alike to them, a maskness from
likeness and area, matrix NMS (SOLOv2, NeurIPS 2020). More masks than cuts give, and noisier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from training.unscene3d.affinity import Affinity, AffinityConfig
from training.unscene3d.features import SegmentFeatures
from training.unscene3d.segment_graph import (
    MaskLimits,
    SegmentGraph,
    SegmentGraphConfig,
    within_limits,
)
from unscene_ros.normalized_cut import connected_parts
from unscene_ros.scene import InputError


@dataclass(frozen=True, slots=True)
class FreeMaskConfig:
    """Settings, chosen on procedural rooms 0 to 15."""

    affinity: AffinityConfig = field(default_factory=AffinityConfig)
    graph: SegmentGraphConfig = field(default_factory=SegmentGraphConfig)
    limits: MaskLimits = field(default_factory=MaskLimits)
    anchors: int = 150
    min_affinity: float = 0.65  # with the anchor, of every segment of a mask
    connected: bool = True  # a mask is the connected part that holds its anchor
    half_area_m2: float = 0.2  # the area at which a mask has half the maskness of an endless one
    min_score: float = 0.2  # of the maskness after matrix NMS
    seed: int = 0  # of the first anchor

    def __post_init__(self) -> None:
        if self.anchors < 1:
            raise InputError(f"freemask.anchors: expected 1 or more, got {self.anchors}")
        if not self.half_area_m2 >= 0:
            raise InputError(f"freemask.half_area_m2: expected 0 or more, got {self.half_area_m2}")


# As far as it is described. It says nothing of parting masks that do not hang together, but whole
# ones fit no object: they hold everything in the scene that is alike.
PAPER_FREEMASK = FreeMaskConfig(
    graph=SegmentGraphConfig(near_m=0.0, without_structure=False),
    limits=MaskLimits(min_segments=8, min_area_m2=0.0, max_length_m=1000.0, max_scene_share=1000.0),
)


def freemask_masks(
    features: Mapping[str, SegmentFeatures],
    graph: SegmentGraph,
    config: FreeMaskConfig | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Masks (K, S) bool that may overlap, best first, and their scores (K,) float32 in 0..1.

    Arguments and errors as those of `masked_cut_masks`.
    """
    config = config or FreeMaskConfig()
    affinity = Affinity(features, config.affinity)
    count = len(graph.movable)
    if affinity.count != count:
        raise InputError(f"freemask: expected features of {count} segments, got {affinity.count}")
    candidates = np.flatnonzero(graph.movable)
    if not len(candidates):
        return np.zeros((0, count), bool), np.zeros(0, np.float32)
    anchors, likeness = farthest_segments(affinity, candidates, config.anchors, config.seed)
    masks = (likeness > config.min_affinity) & graph.movable
    masks[np.arange(len(anchors)), anchors] = True
    if config.connected:
        masks = np.stack(
            [_part_around(anchor, mask, graph) for anchor, mask in zip(anchors, masks, strict=True)]
        )
    kept = within_limits(masks, graph, config.limits)
    masks, likeness = masks[kept], likeness[kept]
    areas = graph.shapes(masks).areas
    mean_likeness = (likeness * masks).sum(axis=1) / masks.sum(axis=1)
    maskness = mean_likeness * areas / np.maximum(areas + config.half_area_m2, 1e-9)
    scores = matrix_nms(masks, maskness, graph.areas_m2)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= config.min_score]
    return masks[order], scores[order].astype(np.float32)


def farthest_segments(
    affinity: Affinity, candidates: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(anchors (A,), their affinity with all (A, S)): each the least alike to those before it.

    candidates (n,): segments that may be an anchor. The first is drawn by the seed; it ends early
    when every candidate is just like an anchor.
    """
    anchors = [int(np.random.default_rng(seed).choice(candidates))]
    rows = [affinity.rows(np.array(anchors))[0]]
    nearest = rows[0][candidates]
    while len(anchors) < min(count, len(candidates)) and nearest.min() < 1 - 1e-4:
        anchors.append(int(candidates[np.argmin(nearest)]))
        rows.append(affinity.rows(np.array(anchors[-1:]))[0])
        nearest = np.maximum(nearest, rows[-1][candidates])
    return np.array(anchors), np.stack(rows)


def _part_around(anchor: int, mask: np.ndarray, graph: SegmentGraph) -> np.ndarray:
    """(S,) bool, the connected part of a mask that holds the anchor."""
    parts = connected_parts(np.flatnonzero(mask), graph.neighbors, len(mask))
    return next(part for part in parts if part[anchor])


def matrix_nms(masks: np.ndarray, scores: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Scores (K,) less the more a mask overlaps with better ones; overlap is IoU by area.

    masks (K, S) bool; scores (K,); areas (S,). The linear kernel of SOLOv2 (section 3.3): a mask's
    score is multiplied by the least (1 - IoU with a better one) / (1 - largest IoU of that better
    one with those better still), at most 1. Among equals the first is the better one.
    """
    order = np.argsort(-scores, kind="stable")
    sorted_masks = masks[order].astype(np.float64)
    common = (sorted_masks * areas) @ sorted_masks.T
    own = np.diag(common)
    iou = np.triu(common / np.maximum(own[:, None] + own - common, 1e-12), 1)
    covered = iou.max(axis=0, initial=0)  # of each mask by a better one
    # One that is wholly covered has no score to defend; its better one decays the others.
    decay = (1 - iou) / np.maximum(1 - covered, 1e-12)[:, None]
    decay = np.where(np.triu(np.ones_like(iou, bool), 1), decay, 1).min(axis=0, initial=1)
    decayed = np.empty(len(scores))
    decayed[order] = scores[order] * decay
    return decayed
