"""Ray-casts a room (Open3D) and colours what the rays hit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import open3d as o3d

from training.scans.procedural.shading import pixel_rays, rays_to, shade
from training.scans.procedural.shapes import Part, transformed
from training.scans.procedural.textures import PATTERNS
from unscene_ros.scene import Camera

WINDOW_LIGHT = np.array((0.78, 0.86, 0.95), np.float32)  # what is seen through an open window


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """What the N pixels of a picture see, row by row.

    rays (N, 6) float32 origin and direction; depths (N,) float32 m, inf where nothing is hit;
    parts (N,) int32, any number where nothing is hit; normals (N, 3) float32 of either sign.
    """

    rays: np.ndarray
    depths: np.ndarray
    parts: np.ndarray
    normals: np.ndarray

    def points(self, chosen: np.ndarray) -> np.ndarray:
        """(n, 3) float32 positions of the chosen (N,) bool hits."""
        return self.rays[chosen, :3] + self.depths[chosen, None] * self.rays[chosen, 3:]


class Renderer:
    """The triangles of a room's P parts, with their textures and one lamp, in the world frame."""

    def __init__(self, parts: Sequence[tuple[np.ndarray, Part]], lamp: np.ndarray) -> None:
        """parts: (world_from_object, part) each; lamp (3,)."""
        world_from_part = np.array([world @ part.object_from_part for world, part in parts])
        solids = [part for _, part in parts]
        vertices = [
            transformed(matrix, solid.vertices)
            for matrix, solid in zip(world_from_part, solids, strict=True)
        ]
        first_vertices = np.cumsum([0] + [len(solid.vertices) for solid in solids[:-1]])
        triangles = [
            solid.faces + first for solid, first in zip(solids, first_vertices, strict=True)
        ]
        self._part_of_triangle = np.repeat(
            np.arange(len(solids), dtype=np.int32), [len(solid.faces) for solid in solids]
        )
        self._lamp = np.asarray(lamp, np.float32)
        textures = [solid.texture for solid in solids]
        self._looks = (
            np.linalg.inv(world_from_part)[:, :3].astype(np.float32),
            np.array([PATTERNS.index(texture.pattern) for texture in textures]),
            np.array([(look.color, look.second_color) for look in textures], np.float32),
            np.array([texture.scale_m for texture in textures], np.float32),
            np.array([np.argmax(np.ptp(solid.vertices, axis=0)) for solid in solids]),
            np.array([texture.seed for texture in textures]),
        )
        self._raycaster = o3d.t.geometry.RaycastingScene()
        self._raycaster.add_triangles(
            o3d.core.Tensor(np.concatenate(vertices).astype(np.float32)),
            o3d.core.Tensor(np.concatenate(triangles).astype(np.uint32)),
        )

    def cast(self, camera: Camera, world_from_camera: np.ndarray) -> Hits:
        """What a camera at this pose (4, 4) sees."""
        rays = pixel_rays(camera.width, camera.height, camera.intrinsics, world_from_camera)
        found = self._raycaster.cast_rays(o3d.core.Tensor(rays))
        depths = found["t_hit"].numpy()
        triangles = np.where(np.isfinite(depths), found["primitive_ids"].numpy(), 0)
        parts = self._part_of_triangle[triangles]
        return Hits(rays, depths, parts, found["primitive_normals"].numpy())

    def colors(self, hits: Hits) -> np.ndarray:
        """(N, 3) float32 colours in about 0..1 of the hits, with the shadows of the lamp."""
        to_lamp = rays_to(self._lamp, hits.rays, hits.depths, hits.normals)
        shadowed = self._raycaster.test_occlusions(o3d.core.Tensor(to_lamp), 0.005, 0.99).numpy()
        surface = hits.rays, hits.depths, hits.normals, hits.parts
        return shade(*surface, ~shadowed, self._lamp, WINDOW_LIGHT, *self._looks)
