"""Masks over vertices -> what the network is to predict: masks over the segments it works on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unscene_ros.scene import Mesh, Segments


@dataclass(frozen=True, slots=True)
class TargetsConfig:
    """Which masks are taught."""

    min_share: float = 0.5  # of a segment's vertices that a mask must hold to hold the segment
    # Masks that reach over more of the scene's length along x or y are background. In a small room
    # furniture along a wall may, so there it is better switched off by 1.
    max_extent: float = 0.8
    min_score: float = 0.0
    max_masks: int = 200  # the best scored ones


def target_masks(
    masks: np.ndarray,
    scores: np.ndarray,
    mesh: Mesh,
    segments: Segments,
    config: TargetsConfig,
) -> np.ndarray:
    """(K', S) bool from masks (K, V) bool and scores (K,), best first, no mask empty.

    A segment belongs to a mask that holds more than `min_share` of its vertices.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= config.min_score]
    extent = np.maximum(np.ptp(mesh.vertices[:, :2], axis=0), 1e-6) if len(mesh.vertices) else 1
    chosen = []
    for mask in masks[order]:
        reach = np.ptp(mesh.vertices[mask, :2], axis=0) / extent if mask.any() else np.zeros(2)
        chosen.append(bool((reach <= config.max_extent).all()))
    targets = masks_over_segments(masks[order[chosen]], segments, config.min_share)
    return targets[targets.any(axis=1)][: config.max_masks]


def masks_over_segments(
    masks: np.ndarray, segments: Segments, min_share: float = 0.5
) -> np.ndarray:
    """(K, S) bool from (K, V) bool: the segments of which a mask holds more than a share."""
    sizes = np.maximum(np.bincount(segments.of_vertex, minlength=segments.count), 1)
    shares = [
        np.bincount(segments.of_vertex[mask], minlength=segments.count) / sizes for mask in masks
    ]
    return np.array(shares).reshape(len(masks), segments.count) > min_share
