"""A map with its objects as one file: ply with an id for each vertex, or glb with named parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from unscene_ros.glb import Part, glb_bytes
from unscene_ros.palette import instance_colors
from unscene_ros.ply import ply_bytes
from unscene_ros.scene import InputError, Mesh
from unscene_ros.storage import whole_file

INSTANCE_MESH_FORMATS = (".ply", ".glb")
UNLABELLED_BRIGHTNESS = 0.4  # of the map's own colour, so that the objects stand out
REST = "rest"


def write_instance_mesh(
    path: Path,
    mesh: Mesh,
    instance_of_vertex: np.ndarray,
    ids: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray,
) -> None:
    """Writes the mesh with each instance in its colour, in the format that the ending names.

    instance_of_vertex (V,) int32, -1 none; for each instance ids (N,) int32, the lasting ones,
    class_names (N,) and scores (N,) float32.
    .ply: the vertex property `instance` is the lasting id, -1 for none.
    .glb: a node for each instance, such as "chair #7", with `id`, `class_name` and `score` in its
    extras, and a node "rest". A triangle belongs to an instance when all its corners do.
    Raises InputError for another ending, and when the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in INSTANCE_MESH_FORMATS:
        expected = " or ".join(INSTANCE_MESH_FORMATS)
        raise InputError(f"mesh {path}: expected the ending {expected}, got '{suffix}'")
    colors = colors_by_instance(mesh, instance_of_vertex, ids)
    painted = Mesh(mesh.vertices, mesh.faces, colors, mesh.normals)
    if suffix == ".ply":
        id_of_vertex = np.append(ids, -1)[instance_of_vertex]  # index -1 is the last, the -1
        data = ply_bytes(painted, instance=id_of_vertex)
    else:
        *of_instances, rest = _split(painted, instance_of_vertex, len(ids))
        parts = [
            Part(f"{name} #{id_}", part, {"id": id_, "class_name": name, "score": score})
            for part, id_, name, score in zip(
                of_instances, ids.tolist(), class_names, scores.tolist(), strict=True
            )
        ]
        data = glb_bytes([*parts, Part(REST, rest, {})])
    with whole_file(path) as file:
        file.write(data)


def colors_by_instance(mesh: Mesh, instance_of_vertex: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(V, 3) uint8 RGB: the instance's colour, outside the map's own one darkened."""
    colors = (mesh.colors * UNLABELLED_BRIGHTNESS).astype(np.uint8)
    inside = instance_of_vertex >= 0
    colors[inside] = instance_colors(ids)[instance_of_vertex[inside]]
    return colors


def _split(mesh: Mesh, instance_of_vertex: np.ndarray, count: int) -> Iterator[Mesh]:
    """The triangles with all corners in instance 0, 1, .. count - 1, and last all others.

    A point cloud is split by its points.
    """
    corners = mesh.faces if len(mesh.faces) else np.arange(len(mesh.vertices))[:, None]
    of_corner = instance_of_vertex[corners]
    inside = (of_corner[:, 0] >= 0) & (of_corner == of_corner[:, :1]).all(axis=1)
    part = np.where(inside, of_corner[:, 0], count)
    order = np.argsort(part, kind="stable")
    ends = np.searchsorted(part[order], np.arange(1, count + 1))
    for piece in np.split(corners[order], ends):
        vertices, corners_here = np.unique(piece, return_inverse=True)
        faces = corners_here if len(mesh.faces) else np.zeros(0)
        yield Mesh(
            mesh.vertices[vertices],
            faces.reshape(-1, 3).astype(np.int32),
            mesh.colors[vertices],
            mesh.normals[vertices],
        )
