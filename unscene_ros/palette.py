"""One colour for each lasting id and each class: the same in markers, clouds and reports."""

from __future__ import annotations

import functools

import cv2
import numpy as np

COLOR_COUNT = 256  # larger ids begin again
LIGHTNESS = (58.0, 88.0)  # CIELAB: lighter than the darkened map, darker than a report's paper
LEAST_CHROMA = 40.0  # CIELAB: grey is for what belongs to no object
_LEVELS = 18  # of red, green and blue, to choose from


def instance_colors(ids: np.ndarray) -> np.ndarray:
    """RGB (N, 3) uint8 of ids (N,), by the id alone; the smaller the ids, the more they differ."""
    return _distinct_colors()[np.asarray(ids, np.int64) % COLOR_COUNT]


def class_colors(class_ids: np.ndarray) -> np.ndarray:
    """RGB (N, 3) uint8 of class ids (N,), by the class alone; white for -1, unknown."""
    known = np.asarray(class_ids, np.int64)[:, None] >= 0
    return np.where(known, instance_colors(class_ids), np.uint8(255))


@functools.cache
def _distinct_colors() -> np.ndarray:
    """(COLOR_COUNT, 3) uint8, each as far in CIELAB as can be from all before it.

    Glasbey et al., "Colour displays for categorical images", Color Research & Application 2007.
    """
    level = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    rgb = np.stack(np.meshgrid(level, level, level), axis=-1).reshape(-1, 3)
    lab = cv2.cvtColor(rgb[None] / np.float32(255), cv2.COLOR_RGB2Lab)[0]
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    legible = (LIGHTNESS[0] <= lab[:, 0]) & (lab[:, 0] <= LIGHTNESS[1]) & (chroma >= LEAST_CHROMA)
    rgb, lab, chroma = rgb[legible], lab[legible], chroma[legible]
    chosen = [int(chroma.argmax())]
    nearest = np.full(len(lab), np.inf)
    while len(chosen) < COLOR_COUNT:
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(nearest.argmax()))
    return rgb[chosen]
