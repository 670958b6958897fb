"""A point cloud -> the surface that it was measured on.

Kazhdan and Hoppe, "Screened Poisson surface reconstruction", ACM Transactions on Graphics 2013, as
Open3D has it. Where there are few points the method invents a surface, which is cut away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import open3d as o3d

from unscene_ros.normals import normals_from_faces, normals_from_neighbors
from unscene_ros.scene import InputError, Mesh
from unscene_ros.storage import UNKNOWN_COLOR

FEWEST_POINTS = 100


@dataclass(frozen=True, slots=True)
class PoissonConfig:
    """How fine the surface is, and where it ends."""

    point_spacing_m: float = 0.02  # the cloud is thinned to one point in a cube of this size
    cell_m: float = 0.03  # the finest cells of the octree
    min_density: float = 0.25  # of the median density of points; what is sparser is cut away

    def __post_init__(self) -> None:
        for name in ("point_spacing_m", "cell_m", "min_density"):
            if not getattr(self, name) > 0:
                raise InputError(f"poisson.{name}: expected more than 0, got {getattr(self, name)}")


def reconstruct_surface(
    points: np.ndarray,
    colors: np.ndarray,
    normals: np.ndarray,
    config: PoissonConfig | None = None,
) -> Mesh:
    """The surface through points (P, 3) in metres.

    colors (P, 3) 0..1 and normals (P, 3) have no rows when unknown. Unknown normals are fitted and
    look into the middle of the cloud, as the walls of a room do.
    Raises InputError for fewer than 100 different points.
    """
    config = config or PoissonConfig()
    cloud = _thinned(points, colors, normals, config.point_spacing_m)
    if len(cloud.points) < FEWEST_POINTS:
        raise InputError(
            f"point cloud: expected {FEWEST_POINTS} points or more, got {len(cloud.points)} that "
            f"are {config.point_spacing_m} m apart"
        )
    # One thread: the same sums, and so the same surface, every time.
    surface, densities = o3d.geometry.TriangleMesh.create_from_point_cloud_poisson(
        cloud, depth=0, width=config.cell_m, n_threads=1
    )
    # The density is told as the depth of an octree, whose cells have a quarter of the area a level.
    level = np.asarray(densities)
    surface.remove_vertices_by_mask(level < np.median(level) + math.log(config.min_density, 4))
    surface.remove_unreferenced_vertices()
    vertices = np.asarray(surface.vertices).astype(np.float32)
    faces = np.asarray(surface.triangles).astype(np.int32)
    paint = np.full(vertices.shape, UNKNOWN_COLOR, np.uint8)
    if cloud.has_colors():
        paint = np.rint(np.clip(surface.vertex_colors, 0, 1) * 255).astype(np.uint8)
    return Mesh(vertices, faces, paint, normals_from_faces(vertices, faces))


def _thinned(
    points: np.ndarray, colors: np.ndarray, normals: np.ndarray, spacing_m: float
) -> o3d.geometry.PointCloud:
    """Few points with normals, in Open3D's form."""
    finite = np.isfinite(points).all(axis=1)
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points[finite]))
    if len(colors):
        cloud.colors = o3d.utility.Vector3dVector(colors[finite])
    if len(normals):
        cloud.normals = o3d.utility.Vector3dVector(normals[finite])
    cloud = cloud.voxel_down_sample(spacing_m)
    if not len(normals):
        positions = np.asarray(cloud.points)
        fitted = normals_from_neighbors(positions).astype(np.float64)
        inwards = cloud.get_center() - positions
        fitted *= 1 if np.einsum("pc,pc->", fitted, inwards) >= 0 else -1
        cloud.normals = o3d.utility.Vector3dVector(fitted)
    cloud.normalize_normals()
    return cloud
