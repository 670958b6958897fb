"""PLY files: text or binary, any scalar types, polygons; written as little-endian triangles.

Own code because Open3D's reader leaves zeros, without an error, where a file ends or holds no
number. Format: Turk, "The PLY Polygon File Format", 1994.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from unscene_ros.scene import InputError, Mesh

NUMPY_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
BYTE_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
MIXED_ROWS = 1024  # rows looked at together where polygons have different numbers of corners


@dataclass(frozen=True, slots=True)
class Property:
    """A value in each row, or a list with its length before it when `length_type` is set."""

    name: str
    type: str
    length_type: str | None = None


@dataclass(frozen=True, slots=True)
class Element:
    """A table of the file: `count` rows of these properties."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Reads vertices (V, 3) float64, triangles (F, 3) int64, and the vertices' colors and normals.

    colors are 0..1; colors and normals have no rows where the file has none. Polygons become fans.
    Raises InputError when the file is no PLY or ends early, OSError when it cannot be opened.
    """
    vertices: list[np.ndarray] = []
    triangles = [np.zeros((0, 3), np.int64)]
    color_scale = 1.0
    for element, rows in _tables(path):
        if element.name == "vertex":
            vertices.append(rows)
            if any(p.name == "red" and p.type == "u1" for p in element.properties):
                color_scale = 1 / 255
        elif element.name == "face":
            triangles.append(_triangles(rows))
    return (
        _columns(vertices, ("x", "y", "z")),
        np.concatenate(triangles),
        _columns(vertices, ("red", "green", "blue")) * color_scale,
        _columns(vertices, ("nx", "ny", "nz")),
    )


def read_vertex_property(path: Path, name: str) -> np.ndarray:
    """(V,) one number of each vertex, such as a label; no rows when the file has none.

    Raises errors as `read_ply` does.
    """
    runs = [rows for element, rows in _tables(path) if element.name == "vertex"]
    if not runs or name not in (runs[0].dtype.names or ()):
        return np.zeros(0)
    return np.concatenate([rows[name] for rows in runs])


def _tables(path: Path) -> Iterator[tuple[Element, np.ndarray]]:
    """The rows of each table in turn, as structured arrays; one with lists may come in parts."""
    with path.open("rb") as file:
        text, byte_order, elements = _read_header(path, file)
        data = file.read()
    if text:
        data = _as_doubles(path, data)
    start = 0
    for element in elements:
        for rows in _runs_of_rows(path, data, start, element, text, byte_order):
            start += rows.nbytes
            yield element, rows


def _read_header(path: Path, file: BinaryIO) -> tuple[bool, str, list[Element]]:
    """(whether the rows are text, byte order, tables in the order of the file)."""
    elements: list[Element] = []
    text, byte_order = False, "="
    if file.readline(100).strip() != b"ply":
        raise InputError(f"mesh {path}: expected a PLY file, got no PLY header")
    while (line := file.readline(1000)).strip() != b"end_header":
        words = line.decode(errors="replace").split()
        try:
            if words[0] == "format":
                text, byte_order = words[1] == "ascii", BYTE_ORDERS[words[1]]
            elif words[0] == "element":
                elements.append(Element(words[1], int(words[2])))
            elif words[:2] == ["property", "list"]:
                length_type, item_type = (NUMPY_TYPES[word] for word in words[2:4])
                elements[-1].properties.append(Property(words[4], item_type, length_type))
            elif words[0] == "property":
                elements[-1].properties.append(Property(words[2], NUMPY_TYPES[words[1]]))
        except (IndexError, KeyError, ValueError) as error:
            shown = " ".join(words) or "nothing"
            raise InputError(f"mesh {path}: expected a PLY header line, got: {shown}") from error
    return text, byte_order, elements


def _as_doubles(path: Path, text: bytes) -> bytes:
    """The numbers of a text body as the bytes of float64, which hold every PLY type exactly."""
    try:
        return np.array(text.split(), dtype="S").astype(np.float64).tobytes()
    except ValueError as error:
        raise InputError(f"mesh {path}: expected numbers after the header") from error


def _runs_of_rows(
    path: Path, data: bytes, start: int, element: Element, text: bool, byte_order: str
) -> Iterator[np.ndarray]:
    """The element's rows as structured arrays; lists have one length within each array."""
    left, together = element.count if element.properties else 0, element.count
    while left:
        row, lengths = _row_type(data, start, element, text, byte_order)
        if row is None or len(data) - start < row.itemsize:
            raise InputError(
                f"mesh {path}: ends early: expected {element.count} rows of '{element.name}', "
                f"got {element.count - left}"
            )
        count = min(left, together, (len(data) - start) // row.itemsize)
        rows = np.frombuffer(data, row, count, start)
        differs = np.zeros(count, bool)
        for name, length in lengths.items():
            differs |= rows[f"{name} length"] != length
        if differs.any():
            rows, together = rows[: int(differs.argmax())], MIXED_ROWS
        yield rows
        left, start = left - len(rows), start + rows.nbytes


def _row_type(
    data: bytes, start: int, element: Element, text: bool, byte_order: str
) -> tuple[np.dtype | None, dict[str, int]]:
    """(type of the row at `start`, or None where the data end; lengths of its lists)."""
    fields: list[tuple] = []
    lengths: dict[str, int] = {}
    for item in element.properties:
        item_type = "f8" if text else byte_order + item.type
        if item.length_type is None:
            fields.append((item.name, item_type))
            continue
        fields.append((f"{item.name} length", "f8" if text else byte_order + item.length_type))
        until_here = np.dtype(fields)
        if len(data) - start < until_here.itemsize:
            return None, {}
        length = np.frombuffer(data, until_here, 1, start)[0][-1]
        if not 0 <= length <= len(data):
            return None, {}
        lengths[item.name] = int(length)
        fields.append((item.name, item_type, (int(length),)))
    return np.dtype(fields), lengths


def _columns(runs: list[np.ndarray], names: tuple[str, str, str]) -> np.ndarray:
    """(V, 3) float64 of three properties; no rows when the file lacks one."""
    if not runs or not set(names) <= set(runs[0].dtype.names or ()):
        return np.zeros((0, 3))
    return np.concatenate([np.stack([rows[name] for name in names], axis=1) for rows in runs])


def _triangles(rows: np.ndarray) -> np.ndarray:
    """(F, 3) int64: each polygon as a fan of triangles around its first corner."""
    name = next((n for n in ("vertex_indices", "vertex_index") if n in rows.dtype.names), None)
    corners = rows[name].astype(np.int64) if name else np.zeros((0, 0), np.int64)
    fans = [corners[:, [0, i, i + 1]] for i in range(1, corners.shape[1] - 1)]
    return np.stack(fans, axis=1).reshape(-1, 3) if fans else np.zeros((0, 3), np.int64)


def ply_bytes(mesh: Mesh, **integers: np.ndarray) -> bytes:
    """The mesh as a binary PLY with normals, colours and (V,) int32 properties by their names."""
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(mesh.vertices)}\n"
        + "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
        + "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
        + "".join(f"property int {name}\n" for name in integers)
        + f"element face {len(mesh.faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    fields: list[tuple] = [("position", "<f4", 3), ("normal", "<f4", 3), ("color", "u1", 3)]
    fields += [(name, "<i4") for name in integers]
    vertices = np.empty(len(mesh.vertices), fields)
    vertices["position"], vertices["normal"] = mesh.vertices, mesh.normals
    vertices["color"] = mesh.colors
    for name, values in integers.items():
        vertices[name] = values
    faces = np.empty(len(mesh.faces), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.faces
    return header.encode() + vertices.tobytes() + faces.tobytes()
