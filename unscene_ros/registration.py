"""Lenses and camera mounting: raw colour and depth pictures -> one undistorted RGB-D picture.

In: pictures as the sensors deliver them, with what their CameraInfo says. Out: colour and depth of
equal size, pixel on pixel, as a pinhole camera without distortion would see them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from unscene_ros.scene import Camera, InputError

# Distortion models of CameraInfo and how many parameters each may have.
_LENS_MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8,), "equidistant": (4,)}
# Two cameras closer together than this share one viewpoint: their pictures map pixel to pixel.
_SAME_PLACE_M = 1e-4
_SAME_DIRECTION = 1e-5  # largest difference in a rotation matrix
_MAX_DISTORTION = 1e6  # beyond the parameters of any lens, as in memory that nobody filled
_UNSEEN = -1.0  # a pixel coordinate outside every picture


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The pinhole and lens of one camera: intrinsics (3, 3) float64, distortion (N,) float64.

    `lens` is the distortion model of that name in sensor_msgs/CameraInfo.
    """

    width: int
    height: int
    intrinsics: np.ndarray
    distortion: np.ndarray
    lens: str = "plumb_bob"

    def __post_init__(self) -> None:
        Camera(self.width, self.height, self.intrinsics)  # the same checks
        if not (np.abs(self.distortion) < _MAX_DISTORTION).all():  # NaN is not below it either
            raise InputError(
                f"CameraInfo: expected the distortion parameters of a lens, got "
                f"{self.distortion.tolist()}: calibrate the camera, or use rectified pictures"
            )
        if self.is_distorted and len(self.distortion) not in _LENS_MODELS.get(self.lens, ()):
            raise InputError(
                f"CameraInfo: expected a distortion model out of {', '.join(_LENS_MODELS)}, got "
                f"'{self.lens}' with {len(self.distortion)} parameters: use rectified pictures"
            )

    @staticmethod
    def pinhole(camera: Camera) -> Calibration:
        """A camera whose pictures are already undistorted."""
        return Calibration(camera.width, camera.height, camera.intrinsics, np.zeros(0))

    @staticmethod
    def from_camera_info(info: Any, rectified: bool = False) -> Calibration:
        """What a sensor_msgs/CameraInfo says about the pictures of its topic.

        The calibration is of the full sensor; the pictures show its region of interest, reduced by
        binning. `rectified`: the pictures are undistorted already, so the projection P holds.
        Raises InputError for an uncalibrated camera.
        """
        intrinsics: np.ndarray = np.array(info.k, float).reshape(3, 3)
        distortion = np.array(info.d, float)
        if rectified:
            distortion = np.zeros(0)
            projection: np.ndarray = np.array(info.p, float).reshape(3, 4)[:, :3]
            intrinsics = projection if projection[0, 0] > 0 else intrinsics
        binning = np.array([max(info.binning_x, 1), max(info.binning_y, 1)], float)
        roi = info.roi
        offset = np.array([roi.x_offset, roi.y_offset], float)
        size = np.array([roi.width or info.width, roi.height or info.height])
        intrinsics[:2, 2] -= offset
        intrinsics[:2] /= binning[:, None]
        width, height = (int(length) for length in size // binning)
        return Calibration(width, height, intrinsics, distortion, info.distortion_model)

    @property
    def camera(self) -> Camera:
        """The pinhole that remains after undistortion."""
        return Camera(self.width, self.height, self.intrinsics)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    @property
    def is_distorted(self) -> bool:
        """Whether the lens bends rays at all."""
        return bool(self.distortion.any())

    def equals(self, other: Calibration) -> bool:
        """Whether both describe the same pictures."""
        return (
            self.size == other.size
            and np.array_equal(self.intrinsics, other.intrinsics)
            and self.is_distorted == other.is_distorted
            and (not self.is_distorted or np.array_equal(self.distortion, other.distortion))
        )

    def project(self, points: np.ndarray) -> np.ndarray:
        """Where the lens shows points (..., 3): pixels (..., 2) float32, -1 for unseen ones."""
        flat = points.reshape(-1, 3).astype(np.float64)
        seen = flat[:, 2] > 1e-6
        rays = flat[:, :2] / np.where(seen, flat[:, 2], 1.0)[:, None]
        low, high = self._field_of_view()
        seen &= ((rays >= low) & (rays <= high)).all(axis=1)
        rays = np.where(seen[:, None], rays, 0.0)
        zero = np.zeros(3)
        if not self.is_distorted:
            pixels = rays * self.intrinsics[[0, 1], [0, 1]] + self.intrinsics[:2, 2]
        elif self.lens == "equidistant":
            pixels = cv2.fisheye.distortPoints(rays[:, None], self.intrinsics, self.distortion)
        else:
            rays3 = np.column_stack([rays, np.ones(len(rays))])
            pixels = cv2.projectPoints(rays3, zero, zero, self.intrinsics, self.distortion)[0]
        pixels = np.where(seen[:, None], pixels.reshape(-1, 2), _UNSEEN)
        return pixels.astype(np.float32).reshape(*points.shape[:-1], 2)

    def _field_of_view(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of x/z and y/z that the picture holds.

        Beyond them a distortion polynomial means nothing and may fold back into the picture.
        """
        across, down = np.arange(-0.5, self.width), np.arange(-0.5, self.height)
        right, bottom = self.width - 0.5, self.height - 0.5
        border = np.concatenate(
            [
                np.stack(np.broadcast_arrays(x, y), axis=-1)
                for x, y in ((across, -0.5), (across, bottom), (-0.5, down), (right, down))
            ]
        )[:, None]
        if not self.is_distorted:
            rays = (border - self.intrinsics[:2, 2]) / self.intrinsics[[0, 1], [0, 1]]
        elif self.lens == "equidistant":
            rays = cv2.fisheye.undistortPoints(border, self.intrinsics, self.distortion)
        else:
            rays = cv2.undistortPoints(border, self.intrinsics, self.distortion)
        return rays.min(axis=(0, 1)), rays.max(axis=(0, 1))


def is_rectified(image_topic: str) -> bool:
    """Whether a topic's name says that its pictures are undistorted, as image_proc names them."""
    return any(part.startswith("image_rect") for part in image_topic.split("/"))


class Registration:
    """Brings one camera's colour into the view of a depth camera; keeps its pixel maps."""

    def __init__(
        self,
        depth: Calibration,
        color: Calibration,
        color_from_depth: np.ndarray | None = None,
    ) -> None:
        """`color_from_depth` (4, 4) is where the cameras are mounted; None: one viewpoint."""
        self.depth_calibration = depth
        self.color_calibration = color
        self.color_from_depth = np.eye(4) if color_from_depth is None else color_from_depth
        self.camera = depth.camera
        shift = np.abs(self.color_from_depth - np.eye(4))
        self._one_viewpoint = (
            shift[:3, 3].max() < _SAME_PLACE_M and shift[:3, :3].max() < _SAME_DIRECTION
        )
        self._is_registered = self._one_viewpoint and color.equals(depth) and not depth.is_distorted

    def register(self, color: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colour (H, W, 3) uint8 and depth (H, W) float32 of `camera`.

        Depth where the colour camera does not look becomes 0. A surface that only the depth camera
        sees around an edge takes the colour of what hides it. Raises InputError for a picture of
        another size than its calibration.
        """
        _check_size("depth", depth, self.depth_calibration)
        _check_size("colour", color, self.color_calibration)
        if self._is_registered:
            return color, depth
        if self.depth_calibration.is_distorted:
            depth = _remap(depth, self._depth_map, cv2.INTER_NEAREST)
        if self._one_viewpoint:
            color_map = self._color_map
            seen = color_map[..., 0] > _UNSEEN
        else:
            if self.color_calibration.is_distorted:
                color = _remap(color, self._color_lens_map, cv2.INTER_LINEAR)
            color_map = self._color_map_at(depth)
            seen = _remap(self._color_seen, color_map, cv2.INTER_NEAREST) > 0
        color = _remap(color, color_map, cv2.INTER_LINEAR)
        color[~seen] = 0
        return color, np.where(seen, depth, np.float32(0))

    def _color_map_at(self, depth: np.ndarray) -> np.ndarray:
        """(H, W, 2) float32 pixels of the undistorted colour picture that show these surfaces.

        A pixel without depth is put at the median depth, so that it shows a likely colour.
        """
        readings = depth[depth > 0]
        filled = np.where(depth > 0, depth, np.median(readings) if len(readings) else 1.0)
        points = self._turned_rays * filled[..., None].astype(np.float32) + self._shift
        pixels = points[..., :2] / np.maximum(points[..., 2:], np.float32(1e-6))
        k = self.color_calibration.intrinsics.astype(np.float32)
        return pixels * k[[0, 1], [0, 1]] + k[:2, 2]

    # What does not change from frame to frame. It is made for the first pictures that have the
    # size which the calibration promises.

    @cached_property
    def _depth_map(self) -> np.ndarray:
        """(H, W, 2) where each undistorted depth pixel lies in the raw picture."""
        return self.depth_calibration.project(_pixel_rays(self.camera))

    @cached_property
    def _color_map(self) -> np.ndarray:
        """(H, W, 2) raw colour pixels that share the depth pixels' rays: with one viewpoint."""
        return self.color_calibration.project(_pixel_rays(self.camera))

    @cached_property
    def _color_lens_map(self) -> np.ndarray:
        """(h, w, 2) where each undistorted colour pixel lies in the raw picture."""
        return self.color_calibration.project(_pixel_rays(self.color_calibration.camera))

    @cached_property
    def _color_seen(self) -> np.ndarray:
        """(h, w) uint8, 1 where the undistorted colour picture shows something."""
        if self.color_calibration.is_distorted:
            return (self._color_lens_map[..., 0] > _UNSEEN).astype(np.uint8)
        return np.ones(self.color_calibration.size[::-1], np.uint8)

    @cached_property
    def _turned_rays(self) -> np.ndarray:
        """(H, W, 3) float32 rays of the depth pixels in the colour camera's directions."""
        rays = _pixel_rays(self.camera) @ self.color_from_depth[:3, :3].T
        return rays.astype(np.float32)

    @cached_property
    def _shift(self) -> np.ndarray:
        return self.color_from_depth[:3, 3].astype(np.float32)


def _pixel_rays(camera: Camera) -> np.ndarray:
    """(H, W, 3) float64 points at z = 1 behind the pixel centres."""
    v, u = np.mgrid[: camera.height, : camera.width].astype(np.float64)
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1)
    return pixels @ np.linalg.inv(camera.intrinsics).T


def _remap(picture: np.ndarray, pixel_map: np.ndarray, interpolation: int) -> np.ndarray:
    # Colour may be asked for up to half a pixel outside the outermost pixel centres.
    border = cv2.BORDER_REPLICATE if interpolation == cv2.INTER_LINEAR else cv2.BORDER_CONSTANT
    both_in_one = np.zeros(0, np.float32)  # OpenCV's second map: pixel_map holds x and y already
    return cv2.remap(picture, pixel_map, both_in_one, interpolation, borderMode=border)


def _check_size(what: str, picture: np.ndarray, calibration: Calibration) -> None:
    if picture.shape[1::-1] != calibration.size:
        raise InputError(
            f"{what} picture: its CameraInfo says {calibration.width}x{calibration.height}, got "
            f"{picture.shape[1]}x{picture.shape[0]}: record the CameraInfo of the same topic"
        )
