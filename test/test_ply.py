"""PLY in every flavour gives the same numbers; what is damaged is told."""

import struct
from pathlib import Path

import numpy as np
import pytest

from unscene_ros.ply import ply_bytes, read_ply, read_vertex_property
from unscene_ros.scene import InputError, Mesh

VERTICES = [(0.0, 0.5, -1.0, 255, 0, 51), (1.0, 0.0, 0.0, 0, 0, 0), (2.0, 2.0, 2.0, 1, 2, 3)] * 3
POLYGONS = [[0, 1, 2], [3, 4, 5, 6], [0, 1, 2], [8, 7, 6, 5, 4], [1, 2]]
TRIANGLES = [[0, 1, 2], [3, 4, 5], [3, 5, 6], [0, 1, 2], [8, 7, 6], [8, 6, 5], [8, 5, 4]]


def header(form: str, vertex_count: int = 9, extra: str = "") -> bytes:
    return (
        f"ply\nformat {form} 1.0\ncomment made by hand\nelement vertex {vertex_count}\n"
        "property double x\nproperty double y\nproperty double z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\n"
        f"{extra}element face 5\nproperty short part\nproperty list uchar uint vertex_index\n"
        "end_header\n"
    ).encode()


def body(form: str) -> bytes:
    if form == "ascii":
        lines = [" ".join(map(str, vertex)) for vertex in VERTICES]
        lines += [f"7 {len(p)} " + " ".join(map(str, p)) for p in POLYGONS]
        return "\n".join(lines).encode()
    order = "<" if form == "binary_little_endian" else ">"
    rows = [struct.pack(order + "dddBBB", *vertex) for vertex in VERTICES]
    rows += [struct.pack(f"{order}hB{len(p)}I", 7, len(p), *p) for p in POLYGONS]
    return b"".join(rows)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "mesh.ply"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_every_form_gives_the_same_vertices_colors_and_fans(tmp_path, form):
    path = write(tmp_path, header(form) + body(form))
    vertices, triangles, colors, normals = read_ply(path)
    assert vertices.tolist() == [list(vertex[:3]) for vertex in VERTICES]
    assert triangles.tolist() == TRIANGLES
    assert np.allclose(colors[0], (1, 0, 0.2))
    assert len(normals) == 0


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_one_property_of_the_vertices_is_read_alone(tmp_path, form):
    path = write(tmp_path, header(form) + body(form))
    assert read_vertex_property(path, "red").tolist() == [vertex[3] for vertex in VERTICES]
    assert len(read_vertex_property(path, "label")) == 0
    assert len(read_vertex_property(path, "part")) == 0  # it is one of the faces
    with pytest.raises(InputError, match=r"ends early|expected numbers"):
        read_vertex_property(write(tmp_path, header(form) + body(form)[:9]), "red")


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_a_file_cut_anywhere_is_told(tmp_path, form):
    rows = body(form)
    for length in range(0, len(rows) - 4, 3):
        path = write(tmp_path, header(form) + rows[:length])
        with pytest.raises(InputError, match=r"ends early|expected numbers"):
            read_ply(path)


def test_mixed_polygons_in_any_number_are_read(tmp_path):
    random = np.random.default_rng(0)
    lengths = [3] * 3000 + random.integers(3, 6, 3000).tolist()
    polygons = [random.integers(0, 9, length).tolist() for length in lengths]
    text = "ply\nformat binary_little_endian 1.0\nelement face 6000\n"
    text += "property list int int vertex_indices\nend_header\n"
    rows = b"".join(struct.pack(f"<i{len(p)}i", len(p), *p) for p in polygons)
    fans = [[p[0], p[i], p[i + 1]] for p in polygons for i in range(1, len(p) - 1)]
    assert read_ply(write(tmp_path, text.encode() + rows))[1].tolist() == fans


def test_unknown_tables_and_float_colors_are_understood(tmp_path):
    text = (
        "ply\nformat ascii 1.0\nelement camera 1\nproperty list int float view\n"
        "element vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
        "property float red\nproperty float green\nproperty float blue\n"
        "property float nx\nproperty float ny\nproperty float nz\nend_header\n"
        "2 9.5 9.5\n1 2 nan 0.5 0 1 0 0 1\n"
    )
    vertices, triangles, colors, normals = read_ply(write(tmp_path, text.encode()))
    assert np.array_equal(vertices, [[1, 2, np.nan]], equal_nan=True)
    assert triangles.shape == (0, 3)
    assert colors.tolist() == [[0.5, 0, 1]] and normals.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"plywood",
        b"ply\n",
        b"ply\nformat ascii 1.0\nelement vertex\nend_header\n",
        b"ply\nformat middle_endian 1.0\nend_header\n",
        b"ply\nformat ascii 1.0\nelement vertex 1\nproperty string x\nend_header\n",
        b"ply\nformat ascii 1.0\nproperty float x\nend_header\n",
        b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\nhello\n",
        b"ply\nformat ascii 1.0\nelement face 1\nproperty list int int v\nend_header\n-3 1\n",
        b"ply\nformat ascii 1.0\nelement face 1\nproperty list int int v\nend_header\nnan 1\n",
    ],
)
def test_what_is_no_sound_ply_is_an_input_error(tmp_path, content):
    with pytest.raises(InputError, match=r"mesh\.ply"):
        read_ply(write(tmp_path, content))


def test_the_written_form_is_read_back_by_open3d(tmp_path):
    open3d = pytest.importorskip("open3d")
    random = np.random.default_rng(0)
    mesh = Mesh(
        random.normal(size=(20, 3)).astype(np.float32),
        np.array([random.permutation(20)[:3] for _ in range(30)], np.int32),
        random.integers(0, 256, (20, 3)).astype(np.uint8),
        np.tile(np.array([0, 0, 1], np.float32), (20, 1)),
    )
    read = open3d.io.read_triangle_mesh(write(tmp_path, ply_bytes(mesh)))
    assert np.array_equal(np.asarray(read.vertices, np.float32), mesh.vertices)
    assert np.array_equal(np.asarray(read.triangles), mesh.faces)
    assert np.array_equal(np.rint(np.asarray(read.vertex_colors) * 255), mesh.colors)
    assert np.array_equal(np.asarray(read.vertex_normals, np.float32), mesh.normals)
