"""Keyframes -> one feature vector per vertex and per segment, from what the pictures look like.

A provider turns a colour picture into a dense map of features: a self-supervised transformer
(DINO), or hand-made statistics that need no download. Maps are lifted to the mesh where the depth
camera confirms that a vertex was seen, and averaged over all views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np
from numba import njit
from scipy.sparse import coo_array

from unscene_ros.oversegmentation import pool_over_segments
from unscene_ros.scene import Frame, Mesh, Segments
from unscene_ros.settings import check_ranges, within

FeatureProvider = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 -> (h, w, C) float32


@dataclass(frozen=True, slots=True)
class ImageFeaturesConfig:
    """Which features are taken from the pictures, and which vertices count as seen."""

    provider: Literal["filters", "dino"] = "filters"  # filters need no download; dino means more
    image_width: int = within(256, 1)  # pictures are resized to this width and keep their shape
    model: str = ""  # dino: local folder or hub id, such as facebook/dino-vits8
    facet: Literal["key", "query", "value", "token"] = "key"  # dino: what is taken from the block
    layer: int = -2  # dino: block, as a list index; -1 is the last
    overlap: int = within(2, 1, 16)  # dino: patches per patch length; 1 is the model's own grid
    normalization: Literal["imagenet", "half"] = "imagenet"  # dino: half is UnScene3D's
    device: Literal["auto", "cuda", "cpu"] = "auto"  # dino
    # A vertex is seen where its depth and the camera's differ by at most the larger of both.
    depth_tolerance_m: float = within(0.04, 0)
    depth_tolerance_ratio: float = within(0.02, 0, 1)  # of the depth
    border_px: int = within(10, 0)  # nothing is taken from this margin of the frame

    def __post_init__(self) -> None:
        check_ranges(self, "image_features")


@dataclass(frozen=True, slots=True, eq=False)
class LiftedFeatures:
    """values (V, C) float32: mean over the views of each vertex, 0 without; view_counts (V,) int32.

    C is 0 when there were no frames at all.
    """

    values: np.ndarray
    view_counts: np.ndarray


def load_image_features(config: ImageFeaturesConfig | None = None) -> FeatureProvider:
    """The provider of `provider(color (H, W, 3) uint8 RGB) -> (h, w, C) float32`.

    The h x w cells tile the picture. Raises InputError when a model cannot be loaded.
    """
    config = config or ImageFeaturesConfig()
    if config.provider == "filters":
        return FilterFeatures(config.image_width)
    # torch takes seconds to import and is needed for this provider only.
    from unscene_ros.models.vision_transformer import VisionTransformerFeatures

    return VisionTransformerFeatures(
        config.model,
        config.facet,
        config.layer,
        config.overlap,
        config.image_width,
        config.normalization,
        config.device,
    )


class FilterFeatures:
    """Hand-made statistics of colour and texture; nothing is learned.

    Per cell of CELL_PX pixels: mean colour (CIE Lab, 3 channels), shares of the gradient
    orientations (ORIENTATIONS), strength of three band-pass filters (3). They tell a red cushion
    from a grey sofa and a grating from a plain wall. They know nothing of objects: two parts of
    one chair in different paint look as different as two things. DINO is far stronger.

    Every group is centred and scaled by what is typical indoors, so that opposite looks have
    opposite signs; cells have unit length.
    """

    CELL_PX = 4  # of the resized picture
    ORIENTATIONS = 8  # over 180 degrees
    BAND_SIGMAS_PX = (0.7, 1.4, 2.8, 5.6)  # neighbours give one band-pass filter each
    # What is typical of pictures of homes and offices, rounded. Colour counts most, because it
    # alone tells the most about what belongs together: its spread is a third of the typical one.
    COLOR_MIDDLE = np.array((50, 2, 8), np.float32)
    COLOR_SPREAD = np.array((7, 4, 5), np.float32)
    BAND_MIDDLE = np.array((-0.2, 0.0, 0.4), np.float32)  # of the logarithm, its spread is near 1

    def __init__(self, image_width: int) -> None:
        self._columns = max(image_width // self.CELL_PX, 1)

    def __call__(self, color: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (h, w, 14) float32, unit length."""
        rows = max(round(self._columns * color.shape[0] / color.shape[1]), 1)
        size = (self._columns * self.CELL_PX, rows * self.CELL_PX)
        small = cv2.resize(color, size, interpolation=cv2.INTER_AREA)
        lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        lightness = np.ascontiguousarray(lab[..., 0])
        groups = (self._colors(lab), self._orientations(lightness), self._bands(lightness))
        features = np.concatenate(groups, axis=-1)
        length = np.linalg.norm(features, axis=-1, keepdims=True)
        return features / np.maximum(length, 1e-6)

    def _cells(self, channels: np.ndarray) -> np.ndarray:
        """Mean over each cell."""
        size = (channels.shape[1] // self.CELL_PX, channels.shape[0] // self.CELL_PX)
        return cv2.resize(channels, size, interpolation=cv2.INTER_AREA)

    def _colors(self, lab: np.ndarray) -> np.ndarray:
        """(h, w, 3) how far the mean colour is from the typical one."""
        return (self._cells(lab) - self.COLOR_MIDDLE) / self.COLOR_SPREAD

    def _orientations(self, lightness: np.ndarray) -> np.ndarray:
        """(h, w, 8) share of the gradient in each direction, less the even share; 0 when flat."""
        across = cv2.Sobel(lightness, cv2.CV_32F, 1, 0, scale=1 / 8)
        down = cv2.Sobel(lightness, cv2.CV_32F, 0, 1, scale=1 / 8)
        strength, angle = cv2.cartToPolar(across, down)
        histogram = _direction_cells(strength, angle, self.CELL_PX, self.ORIENTATIONS)
        histogram = cv2.blur(histogram, (5, 5))
        # A gradient below one lightness step (of 100) a pixel may be noise: it claims little.
        total = histogram.sum(axis=-1, keepdims=True)
        return (histogram - total / self.ORIENTATIONS) * (2 / (total + 1))

    def _bands(self, lightness: np.ndarray) -> np.ndarray:
        """(h, w, 3) how strong the texture is at each size, beside what is typical."""
        blurred = [cv2.GaussianBlur(lightness, (0, 0), sigma) for sigma in self.BAND_SIGMAS_PX]
        energies = [
            cv2.blur(self._cells(np.abs(fine - coarse)), (3, 3))
            for fine, coarse in pairwise(blurred)
        ]
        logarithms = np.log(np.stack(energies, axis=-1) + 0.1)
        return logarithms - self.BAND_MIDDLE


@njit(cache=True)
def _direction_cells(strength, angle, cell_px, directions):
    """(h, w, directions) mean strength in each cell, split over directions that repeat every pi."""
    rows, columns = strength.shape[0] // cell_px, strength.shape[1] // cell_px
    cells = np.zeros((rows, columns, directions), np.float32)
    for y in range(rows * cell_px):
        for x in range(columns * cell_px):
            place = angle[y, x] * np.float32(directions / np.pi)
            low = int(place)
            share = strength[y, x] * (place - low)
            cells[y // cell_px, x // cell_px, low % directions] += strength[y, x] - share
            cells[y // cell_px, x // cell_px, (low + 1) % directions] += share
    return cells / np.float32(cell_px * cell_px)


def lift_to_mesh(
    mesh: Mesh,
    frames: Sequence[Frame],
    provider: FeatureProvider,
    config: ImageFeaturesConfig | None = None,
) -> LiftedFeatures:
    """Mean feature of each vertex over the frames that saw it."""
    return lift_maps(mesh, frames, (provider(frame.color) for frame in frames), config)


def lift_maps(
    mesh: Mesh,
    frames: Sequence[Frame],
    maps: Iterable[np.ndarray],
    config: ImageFeaturesConfig | None = None,
) -> LiftedFeatures:
    """As `lift_to_mesh`, from one feature map (h, w, C) per frame that the caller has kept.

    A vertex is seen where the frame has a depth reading that agrees with it; maps are read
    bilinearly.
    """
    config = config or ImageFeaturesConfig()
    view_counts = np.zeros(len(mesh.vertices), np.int32)
    sums = np.zeros((len(mesh.vertices), 0), np.float32)
    tolerance = (config.depth_tolerance_m, config.depth_tolerance_ratio)
    for frame, features in zip(frames, maps, strict=True):
        if not sums.shape[1]:
            sums = np.zeros((len(mesh.vertices), features.shape[2]), np.float32)
        camera_from_world = np.linalg.inv(frame.world_from_camera)
        _add_view(
            mesh.vertices,
            frame.camera.intrinsics,
            camera_from_world,
            frame.depth,
            np.ascontiguousarray(features, np.float32),
            tolerance,
            config.border_px,
            sums,
            view_counts,
        )
    return LiftedFeatures(sums / np.maximum(view_counts, 1)[:, None], view_counts)


@njit(cache=True)
def _add_view(
    vertices, intrinsics, camera_from_world, depth, features, tolerance, border, sums, view_counts
):
    """Adds one map to the sums of the vertices that the frame sees."""
    height, width = depth.shape
    rows, columns, channels = features.shape
    projection = intrinsics @ camera_from_world[:3].copy()
    for vertex in range(len(vertices)):
        x, y, z = vertices[vertex]
        u = projection[0, 0] * x + projection[0, 1] * y + projection[0, 2] * z + projection[0, 3]
        v = projection[1, 0] * x + projection[1, 1] * y + projection[1, 2] * z + projection[1, 3]
        w = projection[2, 0] * x + projection[2, 1] * y + projection[2, 2] * z + projection[2, 3]
        if w <= 0:
            continue
        u, v = u / w, v / w
        inside = border <= u <= width - 1 - border and border <= v <= height - 1 - border
        if not inside:
            continue
        seen = depth[int(v + 0.5), int(u + 0.5)]
        if seen <= 0 or abs(seen - w) > max(tolerance[0], tolerance[1] * w):
            continue
        # Pixel and cell centres are at whole numbers; the cells tile the picture.
        column = min(max((u + 0.5) * columns / width - 0.5, 0.0), columns - 1.0)
        row = min(max((v + 0.5) * rows / height - 0.5, 0.0), rows - 1.0)
        left, top = int(column), int(row)
        right, bottom = min(left + 1, columns - 1), min(top + 1, rows - 1)
        right_share, bottom_share = np.float32(column - left), np.float32(row - top)
        view_counts[vertex] += 1
        for c in range(channels):
            upper = features[top, left, c]
            upper += right_share * (features[top, right, c] - upper)
            lower = features[bottom, left, c]
            lower += right_share * (features[bottom, right, c] - lower)
            sums[vertex, c] += upper + bottom_share * (lower - upper)


def segment_features(lifted: LiftedFeatures, segments: Segments) -> tuple[np.ndarray, np.ndarray]:
    """((S, C) float32 mean over all views of all vertices, (S,) bool whether there was a view).

    Segments without a view take the mean of their neighbours, again and again until nothing
    changes; pieces that no view reaches take the mean of the segments with a view, or 0.
    """
    values = pool_over_segments(lifted.values, segments, lifted.view_counts)
    views = np.bincount(segments.of_vertex, lifted.view_counts, minlength=segments.count)
    valid = views > 0
    return _filled_from_neighbors(values, valid, segments), valid


def _filled_from_neighbors(values: np.ndarray, valid: np.ndarray, segments: Segments) -> np.ndarray:
    first, second = segments.neighbors.T
    ends = np.concatenate((first, second)), np.concatenate((second, first))
    ones = np.ones(len(ends[0]), np.float32)
    touching = coo_array((ones, ends), shape=(segments.count, segments.count)).tocsr()
    filled = valid.copy()
    while True:
        sources = touching @ filled.astype(np.float32)
        reached = ~filled & (sources > 0)
        if not reached.any():
            break
        sums = touching[reached] @ (values * filled[:, None])
        values[reached] = sums / sources[reached, None]
        filled |= reached
    values[~filled] = values[valid].mean(axis=0) if valid.any() else 0
    return values
