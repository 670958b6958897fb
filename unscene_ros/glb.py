"""Binary glTF (.glb): named meshes in one file, for browsers, Blender and game engines.

Own code because Open3D's writer knows one mesh a file, without names. Format: Khronos Group,
"glTF 2.0 Specification", version 2.0.1, 2021.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unscene_ros.scene import Mesh

ROOT = "map"
Y_UP_FROM_Z_UP = (-(0.5**0.5), 0.0, 0.0, 0.5**0.5)  # quaternion x y z w: a quarter turn around x
# Not metal, as it would be by default, and dull: its colour shows under any light. Backs stay
# hidden, also by default, so that a room shows its inside when it is seen from outside.
MATERIAL = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}

# What the specification calls the values (3.6.2.2), topologies (3.7.2.1) and uses of a view (5.11).
COMPONENT_TYPES = {"|u1": 5121, "<u4": 5125, "<f4": 5126}
ELEMENT_TYPES = {(): "SCALAR", (3,): "VEC3", (4,): "VEC4"}
POINTS, TRIANGLES = 0, 4
ATTRIBUTES, INDICES = 34962, 34963


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A mesh under a name; `extras` go with it as JSON and are left alone by viewers."""

    name: str
    mesh: Mesh
    extras: dict[str, Any]


@dataclass(slots=True, eq=False)
class _Binary:
    """Arrays one after the other; each is 4-byte values or rows of 4 bytes, so all are aligned."""

    arrays: list[bytes] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)
    length: int = 0

    def append(self, array: np.ndarray, target: int, **facts: Any) -> int:
        """Index of the accessor that reads the array; `facts` are written into it."""
        data = array.tobytes()
        accessor = {
            "bufferView": len(self.views),
            "componentType": COMPONENT_TYPES[array.dtype.str],
            "type": ELEMENT_TYPES[array.shape[1:]],
            "count": len(array),
        }
        view = {"buffer": 0, "byteOffset": self.length, "byteLength": len(data), "target": target}
        self.arrays.append(data)
        self.views.append(view)
        self.accessors.append(accessor | facts)
        self.length += len(data)
        return len(self.accessors) - 1


def glb_bytes(parts: Sequence[Part]) -> bytes:
    """One or more parts as a scene: a root that turns z up into y up, and a node for each part.

    A mesh without faces becomes points, and one without vertices a node alone.
    """
    binary = _Binary()
    nodes: list[dict[str, Any]] = []
    meshes: list[dict[str, Any]] = []
    for part in parts:
        node: dict[str, Any] = {"name": part.name, "extras": part.extras}
        if len(part.mesh.vertices):
            node["mesh"] = len(meshes)
            meshes.append({"name": part.name, "primitives": [_primitive(part.mesh, binary)]})
        nodes.append(node)
    children = list(range(len(nodes)))
    nodes.append({"name": ROOT, "rotation": Y_UP_FROM_Z_UP, "children": children})
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "unscene_ros"},
        "scene": 0,
        "scenes": [{"nodes": [len(children)]}],
        "nodes": nodes,
    }
    if meshes:  # glTF has no empty lists
        document["meshes"] = meshes
        document["materials"] = [MATERIAL]
        document["accessors"] = binary.accessors
        document["bufferViews"] = binary.views
        document["buffers"] = [{"byteLength": binary.length}]
    return _container(json.dumps(document, allow_nan=False).encode(), binary.arrays)


def _primitive(mesh: Mesh, binary: _Binary) -> dict[str, Any]:
    """The triangles, or the points, of a mesh with vertices; its arrays go to `binary`."""
    vertices = mesh.vertices.astype("<f4")
    bounds = {"min": vertices.min(axis=0).tolist(), "max": vertices.max(axis=0).tolist()}
    primitive = {
        "attributes": {
            "POSITION": binary.append(vertices, ATTRIBUTES, **bounds),
            "NORMAL": binary.append(mesh.normals.astype("<f4"), ATTRIBUTES),
            "COLOR_0": binary.append(_linear_rgba(mesh.colors), ATTRIBUTES, normalized=True),
        },
        "material": 0,
        "mode": POINTS,
    }
    if len(mesh.faces):
        primitive["indices"] = binary.append(mesh.faces.ravel().astype("<u4"), INDICES)
        primitive["mode"] = TRIANGLES
    return primitive


def _linear_rgba(colors: np.ndarray) -> np.ndarray:
    """(V, 4) uint8 amounts of light, opaque, of sRGB (V, 3) uint8: glTF's colours are linear.

    Source: IEC 61966-2-1.
    """
    encoded = np.arange(256) / 255
    light = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    rgba = np.full((len(colors), 4), 255, np.uint8)
    rgba[:, :3] = np.rint(light * 255).astype(np.uint8)[colors]
    return rgba


def _container(text: bytes, arrays: list[bytes]) -> bytes:
    """Header, JSON chunk and, when there are arrays, binary chunk (section 4.4)."""
    text += b" " * (-len(text) % 4)
    chunks = [struct.pack("<I4s", len(text), b"JSON"), text]
    if arrays:
        chunks += [struct.pack("<I4s", sum(map(len, arrays)), b"BIN\0"), *arrays]
    return b"".join([struct.pack("<4sII", b"glTF", 2, 12 + sum(map(len, chunks))), *chunks])
