"""One colour for each lasting id: the same in markers, clouds and reports."""

from __future__ import annotations

import cv2
import numpy as np

_GOLDEN_TURN = 0.6180339887498949  # successive ids land far apart on the colour circle
_SATURATIONS = (200, 140, 240)
_BRIGHTNESSES = (255, 225, 190)


def instance_colors(ids: np.ndarray) -> np.ndarray:
    """RGB (N, 3) uint8 of ids (N,); light enough for labels on dark and pictures on white."""
    ids = np.asarray(ids, np.int64)
    hue = (ids * _GOLDEN_TURN) % 1.0 * 180
    saturation = np.take(_SATURATIONS, ids % 3)
    brightness = np.take(_BRIGHTNESSES, ids // 3 % 3)
    hsv = np.stack([hue, saturation, brightness], axis=-1).astype(np.uint8)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] if len(hsv) else np.zeros((0, 3), np.uint8)
