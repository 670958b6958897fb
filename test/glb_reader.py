"""Binary glTF read by hand for tests: the container, the document and the arrays, all checked."""

import json
import struct
from typing import Any

import numpy as np

COMPONENTS = {5121: np.dtype("u1"), 5125: np.dtype("<u4"), 5126: np.dtype("<f4")}
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def read_glb(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(the JSON document, the binary chunk); asserts what the container must fulfil."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    chunks, start = {}, 12
    while start < len(data):
        assert start % 4 == 0
        size, kind = struct.unpack_from("<I4s", data, start)
        assert size % 4 == 0 and start + 8 + size <= len(data)
        chunks[kind] = data[start + 8 : start + 8 + size]
        start += 8 + size
    assert list(chunks) in ([b"JSON"], [b"JSON", b"BIN\0"])
    document = json.loads(chunks[b"JSON"])
    assert document["asset"]["version"] == "2.0"
    assert not _empty_lists(document)
    return document, chunks.get(b"BIN\0", b"")


def _empty_lists(value: Any) -> bool:
    if isinstance(value, list):
        return not value or any(map(_empty_lists, value))
    return isinstance(value, dict) and any(map(_empty_lists, value.values()))


def read_accessor(document: dict[str, Any], binary: bytes, index: int) -> np.ndarray:
    """The rows of an accessor; asserts that they lie aligned and inside the view and the buffer."""
    accessor = document["accessors"][index]
    view = document["bufferViews"][accessor["bufferView"]]
    component, width = COMPONENTS[accessor["componentType"]], WIDTHS[accessor["type"]]
    start, count = view["byteOffset"], accessor["count"]
    assert "byteStride" not in view and "byteOffset" not in accessor and view["buffer"] == 0
    assert count > 0 and start % 4 == 0
    assert view["byteLength"] == count * width * component.itemsize
    assert start + view["byteLength"] <= document["buffers"][0]["byteLength"] <= len(binary)
    rows = np.frombuffer(binary, component, count * width, start).reshape(count, width)
    if "min" in accessor:
        assert accessor["min"] == rows.min(axis=0).tolist()
        assert accessor["max"] == rows.max(axis=0).tolist()
    return rows


def read_parts(data: bytes) -> dict[str, dict[str, Any]]:
    """What hangs below the root, by name: `extras`, and of a mesh mode, arrays and faces."""
    document, binary = read_glb(data)
    root = document["nodes"][document["scenes"][document["scene"]]["nodes"][0]]
    parts = {}
    for node in (document["nodes"][child] for child in root["children"]):
        assert node["name"] not in parts
        part = parts[node["name"]] = {"extras": node["extras"]}
        if "mesh" not in node:
            continue
        mesh = document["meshes"][node["mesh"]]
        (primitive,) = mesh["primitives"]
        assert mesh["name"] == node["name"]
        assert "max" in document["accessors"][primitive["attributes"]["POSITION"]]
        part["mode"] = primitive["mode"]
        for name, index in primitive["attributes"].items():
            part[name] = read_accessor(document, binary, index)
        assert len({len(part[name]) for name in primitive["attributes"]}) == 1
        if "indices" in primitive:
            corners = read_accessor(document, binary, primitive["indices"]).ravel()
            assert corners.max() < len(part["POSITION"])
            part["faces"] = corners.reshape(-1, 3)
    return parts
