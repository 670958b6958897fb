"""Worlds of axis-aligned boxes for tests: the surface of a grid of cells, with its truth."""

from dataclasses import dataclass

import numpy as np

from unscene_ros.normals import normals_from_faces
from unscene_ros.scene import Mesh

CELL_M = 0.04  # of the fused maps of a robot, by default
GREY = (150, 150, 150)


@dataclass(frozen=True)
class Box:
    """A solid from `low` to `high`, metres, or a hole (no color); the later of two counts."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    color: tuple[int, int, int] | None = GREY


def surface_of(boxes: list[Box], cell_m: float = CELL_M) -> tuple[Mesh, np.ndarray]:
    """(the surface between the boxes and the air, (V,) int32 box of each vertex).

    Faces look into the air; there is none at the edge of the world. Boxes share vertices where they
    touch, as in a fused map; those belong to the later box.
    """
    start = np.min([box.low for box in boxes], axis=0)
    ends = np.array([(box.low - start, box.high - start) for box in boxes])
    ends = np.rint(ends / cell_m).astype(int)
    box_of_cell = np.full(ends[:, 1].max(axis=0), -1)
    for number, (box, (low, high)) in enumerate(zip(boxes, ends, strict=True)):
        inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        box_of_cell[inside] = -1 if box.color is None else number
    quads, owners = [], []
    for axis in range(3):
        for step in (1, -1):
            solid = np.argwhere((box_of_cell >= 0) & _air_beside(box_of_cell, axis, step))
            quads.append(_side(solid, axis, step))
            owners.append(box_of_cell[tuple(solid.T)])
    corners, quad = np.unique(np.concatenate(quads).reshape(-1, 3), axis=0, return_inverse=True)
    quad = quad.reshape(-1, 4)
    box_of_vertex = np.full(len(corners), -1, np.int32)
    np.maximum.at(box_of_vertex, quad, np.concatenate(owners)[:, None])
    vertices = (start + corners * cell_m).astype(np.float32)
    faces = np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]).astype(np.int32)
    colors = np.array([box.color or GREY for box in boxes], np.uint8)[box_of_vertex]
    return Mesh(vertices, faces, colors, normals_from_faces(vertices, faces)), box_of_vertex


def _air_beside(box_of_cell: np.ndarray, axis: int, step: int) -> np.ndarray:
    air = np.roll(box_of_cell < 0, -step, axis)
    edge = [slice(None)] * 3
    edge[axis] = -1 if step > 0 else 0
    air[tuple(edge)] = False
    return air


def _side(cells: np.ndarray, axis: int, step: int) -> np.ndarray:
    """(n, 4, 3) grid corners of one side of each cell, counter-clockwise from the air."""
    around = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])[::step]
    offsets = np.insert(around, 0, step > 0, axis=1)  # along the axis, then the next two
    return cells[:, None] + np.roll(offsets, axis, axis=1)


def walled_room(*furniture: Box, size=(3.2, 2.8, 2.4)) -> list[Box]:
    """A closed room of `size` around the air from (0, 0, 0), then what stands in it."""
    shell = Box((-CELL_M,) * 3, tuple(length + CELL_M for length in size), (190, 185, 175))
    return [shell, Box((0, 0, 0), size, None), *furniture]


def as_cloud(mesh: Mesh) -> Mesh:
    """The vertices alone."""
    return Mesh(mesh.vertices, np.zeros((0, 3), np.int32), mesh.colors, mesh.normals)


def moved(mesh: Mesh, rotation=None, offset=(0.0, 0.0, 0.0)) -> Mesh:
    """The mesh turned around the origin, then shifted."""
    rotation = np.eye(3) if rotation is None else rotation
    vertices = mesh.vertices @ rotation.T + np.array(offset)
    return Mesh(
        vertices.astype(np.float32),
        mesh.faces,
        mesh.colors,
        (mesh.normals @ rotation.T).astype(np.float32),
    )
