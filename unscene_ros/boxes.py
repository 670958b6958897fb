"""The upright box around some points: what a marker, a detection or a report shows of an object."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class UprightBox:
    """A box whose third axis is the world's z.

    center (3,) and size (3,) float64 metres, size[0] >= size[1]; the first axis points `yaw_rad`
    (0..pi) to the left of the world's x.
    """

    center: np.ndarray
    size: np.ndarray
    yaw_rad: float


def upright_box(points: np.ndarray) -> UprightBox:
    """The box of smallest footprint around points (P, 3); one of size zero when there are none."""
    if not len(points):
        return UprightBox(np.zeros(3), np.zeros(3), 0.0)
    low, high = points[:, 2].min(), points[:, 2].max()
    # OpenCV works in float32: near the origin it keeps millimetres anywhere in the world.
    origin = points[:, :2].mean(axis=0)
    (x, y), (width, depth), angle_deg = cv2.minAreaRect((points[:, :2] - origin).astype(np.float32))
    if width < depth:
        width, depth, angle_deg = depth, width, angle_deg + 90.0
    center = np.array([x + origin[0], y + origin[1], (low + high) / 2], np.float64)
    size = np.array([width, depth, high - low], np.float64)
    return UprightBox(center, size, float(np.deg2rad(angle_deg % 180.0)))
