"""Truths for tests: points 1 m apart on a line, objects as runs of them."""

import numpy as np

from unscene_ros.evaluation import GroundTruth


def truth_of(*runs: tuple[int, int], semantic: list[tuple[int, int]] | None = None) -> GroundTruth:
    """Points 1 m apart on a line; runs of (instance, number of points), likewise the classes."""
    instance = np.concatenate([np.full(count, label, np.int32) for label, count in runs])
    points = np.zeros((len(instance), 3), np.float32)
    points[:, 0] = np.arange(len(instance))
    classes = semantic and np.concatenate([np.full(n, c, np.int32) for c, n in semantic])
    return GroundTruth(points, instance, None if classes is None else classes)


def on_points(count, spans):
    mask = np.zeros(count, bool)
    for first, end in spans:
        mask[first:end] = True
    return mask
