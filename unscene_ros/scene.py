"""The data between the stages: Camera, Frame, Mesh, Segments, Voxels, Instances.

Frozen dataclasses, checked once when they are made; inside the stages arrays are trusted.
Shape letters: H, W image; V vertices; F faces; S segments; E neighbour pairs; M voxels;
N instances; C channels. Positions are metres in the world frame; cameras look along +z, x right,
y down.
Poses are `a_from_b`: `world_from_camera @ point_in_camera = point_in_world`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class InputError(Exception):
    """A user's mistake in one sentence: the thing, what was expected, what came, what to do."""


def check_array(name: str, array: np.ndarray, shape: tuple[int | None, ...], dtype: type) -> None:
    """Raises InputError unless `array` has this dtype and shape (None = any length)."""
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name}: expected a numpy array, got {type(array).__name__}")
    fits = len(array.shape) == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype != dtype:
        wanted = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
        raise InputError(
            f"{name}: expected {wanted} {np.dtype(dtype)}, got {array.shape} {array.dtype}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """A pinhole camera without distortion; `intrinsics` (3, 3) float64 in pixels."""

    width: int
    height: int
    intrinsics: np.ndarray

    def __post_init__(self) -> None:
        check_array("Camera.intrinsics", self.intrinsics, (3, 3), np.float64)
        if self.width <= 0 or self.height <= 0:
            raise InputError(f"Camera: expected a positive size, got {self.width}x{self.height}")
        focal = self.intrinsics[[0, 1], [0, 1]]
        if not np.isfinite(self.intrinsics).all() or (focal <= 0).any():
            raise InputError(
                f"Camera.intrinsics: expected finite values and positive focal lengths, "
                f"got fx={focal[0]} fy={focal[1]}"
            )
        below = self.intrinsics[[1, 2, 2, 2], [0, 0, 1, 2]]
        if (below != (0, 0, 0, 1)).any():  # it could not be inverted
            raise InputError(
                "Camera.intrinsics: expected fx s cx, 0 fy cy, 0 0 1, got "
                + ", ".join(" ".join(f"{value:g}" for value in row) for row in self.intrinsics)
            )

    def resized(self, width: int, height: int) -> Camera:
        """The same camera seen at another picture size."""
        scale = np.array([width / self.width, height / self.height, 1.0])
        return Camera(width, height, self.intrinsics * scale[:, None])


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One registered RGB-D picture and where it was taken from.

    color (H, W, 3) uint8 RGB; depth (H, W) float32 metres, 0 where there is no reading;
    world_from_camera (4, 4) float64, rigid.
    """

    stamp_ns: int
    camera: Camera
    color: np.ndarray
    depth: np.ndarray
    world_from_camera: np.ndarray

    def __post_init__(self) -> None:
        size = (self.camera.height, self.camera.width)
        check_array("Frame.color", self.color, (*size, 3), np.uint8)
        check_array("Frame.depth", self.depth, size, np.float32)
        check_pose("Frame.world_from_camera", self.world_from_camera)


def check_pose(name: str, pose: np.ndarray) -> None:
    """Raises InputError unless `pose` (4, 4) float64 is finite and rigid."""
    check_array(name, pose, (4, 4), np.float64)
    if not np.isfinite(pose).all():
        raise InputError(f"{name}: expected finite values, got NaN or infinity")
    rotation = pose[:3, :3]
    # 1e-2 lets poses through that were written with few digits; scale and mirror are caught.
    rigid = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-2) and np.linalg.det(rotation) > 0
    if not rigid or not np.allclose(pose[3], (0, 0, 0, 1)):
        raise InputError(f"{name}: expected a rigid transform, got a scaled or mirrored one")


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """A triangle mesh, or a point cloud when `faces` is empty.

    vertices (V, 3) float32 metres; faces (F, 3) int32; colors (V, 3) uint8 RGB (one single colour
    everywhere means that colour is unknown); normals (V, 3) float32 unit length.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    normals: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.vertices)
        check_array("Mesh.vertices", self.vertices, (None, 3), np.float32)
        check_array("Mesh.faces", self.faces, (None, 3), np.int32)
        check_array("Mesh.colors", self.colors, (count, 3), np.uint8)
        check_array("Mesh.normals", self.normals, (count, 3), np.float32)
        if not np.isfinite(self.vertices).all():
            bad = int((~np.isfinite(self.vertices).all(axis=1)).sum())
            raise InputError(f"Mesh.vertices: expected finite positions, got {bad} that are not")
        if len(self.faces) and not (self.faces.min() >= 0 and self.faces.max() < count):
            raise InputError(
                f"Mesh.faces: expected vertex indices 0..{count - 1}, "
                f"got {self.faces.min()}..{self.faces.max()}"
            )

    @staticmethod
    def empty() -> Mesh:
        """A mesh of nothing, which every stage accepts."""
        return Mesh(
            np.zeros((0, 3), np.float32),
            np.zeros((0, 3), np.int32),
            np.zeros((0, 3), np.uint8),
            np.zeros((0, 3), np.float32),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """A partition of the vertices into small smooth patches, the atoms of every mask.

    of_vertex (V,) int32 with ids 0..count-1, every id used; neighbors (E, 2) int32, each touching
    pair once with the smaller id first.
    """

    of_vertex: np.ndarray
    neighbors: np.ndarray
    count: int

    def __post_init__(self) -> None:
        check_array("Segments.of_vertex", self.of_vertex, (None,), np.int32)
        check_array("Segments.neighbors", self.neighbors, (None, 2), np.int32)
        for name, ids in (("of_vertex", self.of_vertex), ("neighbors", self.neighbors)):
            if ids.size and not (ids.min() >= 0 and ids.max() < self.count):
                raise InputError(
                    f"Segments.{name}: expected ids 0..{self.count - 1}, "
                    f"got {ids.min()}..{ids.max()}"
                )


@dataclass(frozen=True, slots=True, eq=False)
class Voxels:
    """A mesh as sparse voxels.

    coordinates (M, 3) int32; features (M, C) float32; of_vertex (V,) int32, the vertex's voxel.
    """

    coordinates: np.ndarray
    features: np.ndarray
    of_vertex: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.coordinates)
        check_array("Voxels.coordinates", self.coordinates, (None, 3), np.int32)
        check_array("Voxels.features", self.features, (count, None), np.float32)
        check_array("Voxels.of_vertex", self.of_vertex, (None,), np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """Objects as sets of segments, best first is not required; masks may overlap.

    masks (N, S) bool over segments; scores (N,) float32 in 0..1; class_ids (N,) int32, -1 unknown.
    """

    masks: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.masks)
        check_array("Instances.masks", self.masks, (None, None), np.bool_)
        check_array("Instances.scores", self.scores, (count,), np.float32)
        check_array("Instances.class_ids", self.class_ids, (count,), np.int32)

    @staticmethod
    def empty(segment_count: int) -> Instances:
        """No instances over this many segments."""
        return Instances(
            np.zeros((0, segment_count), bool), np.zeros(0, np.float32), np.zeros(0, np.int32)
        )

    def of_segment(self) -> np.ndarray:
        """(S,) int32 index of the best-scored instance that holds each segment, -1 for none."""
        instance_of_segment = np.full(self.masks.shape[1], -1, np.int32)
        for instance in np.argsort(self.scores, kind="stable"):
            instance_of_segment[self.masks[instance]] = instance
        return instance_of_segment

    def of_vertex(self, segments: Segments) -> np.ndarray:
        """(V,) int32 index of the best-scored instance at each vertex, -1 for none."""
        return self.of_segment()[segments.of_vertex]
