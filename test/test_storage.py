"""Mesh and prediction files: what is written comes back, what is wrong is told."""

import errno
import json
import logging
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unscene_ros.scene import InputError, Instances, Mesh, Segments
from unscene_ros.storage import (
    Prediction,
    inside,
    load_prediction,
    prepare_output_folder,
    read_mesh,
    save_prediction,
    whole_file,
    write_mesh,
)

TETRAHEDRON = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
TETRAHEDRON_FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)


def random_mesh(vertex_count: int = 40) -> Mesh:
    random = np.random.default_rng(1)
    normals = random.normal(size=(vertex_count, 3))
    return Mesh(
        random.normal(size=(vertex_count, 3)).astype(np.float32),
        np.array([random.permutation(vertex_count)[:3] for _ in range(60)], np.int32),
        random.integers(0, 256, (vertex_count, 3)).astype(np.uint8),
        (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32),
    )


def random_prediction() -> Prediction:
    """Three instances over five segments of eight vertices; the first two overlap."""
    mesh = random_mesh(40)
    of_vertex = np.repeat(np.arange(5, dtype=np.int32), 8)
    pairs = np.sort(of_vertex[mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)], axis=1)
    neighbors = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).astype(np.int32)
    masks = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], bool)
    scores = np.array([0.5, 0.9, 0.25], np.float32)
    instances = Instances(masks, scores, np.array([-1, 2, 3], np.int32))
    return Prediction(
        mesh, Segments(of_vertex, neighbors, 5), instances, np.array([7, 8, 9], np.int32)
    )


def ascii_ply(path: Path, vertices, faces=(), header_vertices=None) -> Path:
    lines = ["ply", "format ascii 1.0", f"element vertex {header_vertices or len(vertices)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    lines += [" ".join(map(str, vertex)) for vertex in vertices]
    lines += [f"{len(face)} " + " ".join(map(str, face)) for face in faces]
    path.write_text("\n".join(lines) + "\n")
    return path


def glb(path: Path, vertices: np.ndarray, faces: np.ndarray) -> Path:
    blob = vertices.astype("<f4").tobytes() + faces.astype("<u4").tobytes()
    split = vertices.size * 4
    low, high = vertices.min(axis=0).tolist(), vertices.max(axis=0).tolist()
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "buffers": [{"byteLength": len(blob)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": split},
            {"buffer": 0, "byteOffset": split, "byteLength": len(blob) - split},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(vertices), "type": "VEC3"}
            | {"min": low, "max": high},
            {"bufferView": 1, "componentType": 5125, "count": faces.size, "type": "SCALAR"},
        ],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    path.write_bytes(
        struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(blob))
        + struct.pack("<I4s", len(text), b"JSON")
        + text
        + struct.pack("<I4s", len(blob), b"BIN\0")
        + blob
    )
    return path


def obj(path: Path, vertices: np.ndarray, faces: np.ndarray) -> Path:
    lines = ["v " + " ".join(map(str, vertex)) for vertex in vertices]
    path.write_text("\n".join(lines + ["f " + " ".join(map(str, face + 1)) for face in faces]))
    return path


def stl(path: Path, vertices: np.ndarray, faces: np.ndarray) -> Path:
    facets = np.zeros(len(faces), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("n", "<u2")])
    facets["corners"] = vertices[faces]
    path.write_bytes(bytes(80) + struct.pack("<I", len(faces)) + facets.tobytes())
    return path


def test_a_written_mesh_comes_back_exactly(tmp_path):
    mesh = random_mesh()
    write_mesh(tmp_path / "mesh.ply", mesh)
    back = read_mesh(tmp_path / "mesh.ply")
    assert np.array_equal(back.vertices, mesh.vertices)
    assert np.array_equal(back.faces, mesh.faces)
    assert np.array_equal(back.colors, mesh.colors)
    assert np.allclose(back.normals, mesh.normals, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.ply"]


@pytest.mark.parametrize("write", [obj, glb, stl])
def test_other_formats_give_one_connected_surface_with_outward_normals(tmp_path, write):
    path = write(tmp_path / f"mesh.{write.__name__}", TETRAHEDRON, TETRAHEDRON_FACES)
    mesh = read_mesh(path)
    assert sorted(map(tuple, mesh.vertices)) == sorted(map(tuple, TETRAHEDRON))
    assert len(mesh.faces) == 4
    outward = mesh.vertices - TETRAHEDRON.mean(axis=0)
    assert (np.einsum("vc,vc->v", mesh.normals, outward) > 0).all()


def test_missing_colors_are_one_grey_and_missing_normals_come_from_the_faces(tmp_path):
    square = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    mesh = read_mesh(ascii_ply(tmp_path / "square.ply", square, [[0, 1, 2, 3]]))
    assert len(np.unique(mesh.colors)) == 1
    assert np.allclose(mesh.normals, (0, 0, 1))
    assert len(mesh.faces) == 2


def test_a_point_cloud_gets_normals_from_its_neighbours(tmp_path):
    ground = [[x * 0.1, y * 0.1, 0] for x in range(10) for y in range(10)]
    mesh = read_mesh(ascii_ply(tmp_path / "ground.ply", ground))
    assert len(mesh.faces) == 0
    assert np.allclose(np.abs(mesh.normals.sum(axis=0)), (0, 0, 100), atol=1e-3)


def test_a_pcd_point_cloud_is_read(tmp_path):
    (tmp_path / "cloud.pcd").write_text(
        "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 3\nHEIGHT 1\n"
        "VIEWPOINT 0 0 0 1 0 0 0\nPOINTS 3\nDATA ascii\n0 0 0\n1 0 0\nnan 1 0\n"
    )
    assert read_mesh(tmp_path / "cloud.pcd").vertices.tolist() == [[0, 0, 0], [1, 0, 0]]


def test_vertices_that_are_not_finite_are_dropped_with_their_faces_and_told(tmp_path, caplog):
    vertices = [*TETRAHEDRON.tolist(), ["nan", 0, 0], ["inf", 0, 0], [1, 1, 1]]
    faces = [[0, 4, 1], [1, 2, 6], [5, 2, 3]]
    with caplog.at_level(logging.WARNING):
        mesh = read_mesh(ascii_ply(tmp_path / "holes.ply", vertices, faces))
    assert len(mesh.vertices) == 5
    assert mesh.vertices[mesh.faces].tolist() == [[[1, 0, 0], [0, 1, 0], [1, 1, 1]]]
    assert "2 vertices that are not finite dropped" in caplog.text


def test_unreadable_meshes_are_input_errors_that_name_the_file(tmp_path):
    whole = tmp_path / "whole.ply"
    write_mesh(whole, random_mesh())
    (tmp_path / "cut.ply").write_bytes(whole.read_bytes()[:-100])
    for suffix in ("ply", "obj", "glb", "stl", "pcd", "docx"):
        (tmp_path / f"junk.{suffix}").write_bytes(b"hello" * 50)
    (tmp_path / "header.ply").write_text("ply\nelement vertex many\nend_header\n")
    ascii_ply(tmp_path / "short.ply", TETRAHEDRON, header_vertices=9)
    ascii_ply(tmp_path / "range.ply", TETRAHEDRON, [[0, 1, 9]])
    ascii_ply(tmp_path / "nothing.ply", [])
    ascii_ply(tmp_path / "nowhere.ply", [["nan", 0, 0]])
    whole.unlink()
    for path in [*tmp_path.iterdir(), tmp_path / "missing.ply", tmp_path]:
        with pytest.raises(InputError, match=path.name):
            read_mesh(path)


def test_a_prediction_comes_back_exactly(tmp_path):
    prediction = random_prediction()
    save_prediction(tmp_path, prediction)
    back = load_prediction(tmp_path)
    assert np.array_equal(back.instances.masks, prediction.instances.masks)
    assert np.array_equal(back.instances.scores, prediction.instances.scores)
    assert np.array_equal(back.instances.class_ids, prediction.instances.class_ids)
    assert np.array_equal(back.track_ids, prediction.track_ids)
    assert np.array_equal(back.segments.of_vertex, prediction.segments.of_vertex)
    assert np.array_equal(back.segments.neighbors, prediction.segments.neighbors)
    assert np.array_equal(back.mesh.vertices, prediction.mesh.vertices)


def test_the_stored_arrays_are_those_of_the_documented_format(tmp_path):
    save_prediction(tmp_path, random_prediction())
    with np.load(tmp_path / "instances.npz", allow_pickle=False) as arrays:
        first = np.unpackbits(arrays["masks"], axis=1, count=40, bitorder="little")[0]
        assert first.tolist() == [1] * 16 + [0] * 24
        assert arrays["masks"].shape == (3, 5) and arrays["masks"].dtype == np.uint8
        best = [0] * 8 + [1] * 16 + [-1] * 8 + [2] * 8  # the better score wins the shared segment
        assert arrays["instance_of_vertex"].tolist() == best
        assert {name: arrays[name].dtype.name for name in arrays.files} == {
            "masks": "uint8",
            "scores": "float32",
            "class_ids": "int32",
            "track_ids": "int32",
            "instance_of_vertex": "int32",
            "segment_of_vertex": "int32",
        }


def test_an_empty_prediction_comes_back_empty(tmp_path):
    segments = Segments(np.zeros(0, np.int32), np.zeros((0, 2), np.int32), 0)
    empty = Prediction(Mesh.empty(), segments, Instances.empty(0), np.zeros(0, np.int32))
    save_prediction(tmp_path, empty)
    back = load_prediction(tmp_path)
    assert len(back.mesh.vertices) == len(back.track_ids) == back.segments.count == 0


def test_a_damaged_prediction_is_an_input_error(tmp_path):
    save_prediction(tmp_path, random_prediction())
    path = tmp_path / "instances.npz"
    good = path.read_bytes()
    with np.load(path) as arrays:
        parts = dict(arrays)
    cut_mask = parts["masks"].copy()
    cut_mask[0, 0] ^= 1
    for wrong in (
        {"scores": parts["scores"][:2]},
        {"masks": parts["masks"][:, :3]},
        {"masks": cut_mask},
        {"class_ids": parts["class_ids"].astype(np.int64)},
        {"segment_of_vertex": parts["segment_of_vertex"] - 1},
        {"segment_of_vertex": parts["segment_of_vertex"] * (1 << 28)},
    ):
        np.savez(path, **(parts | wrong))
        with pytest.raises(InputError):
            load_prediction(tmp_path)
    np.savez(path, scores=parts["scores"])
    with pytest.raises(InputError, match="masks"):
        load_prediction(tmp_path)
    np.savez(path, scores=np.array([{}], object))
    with pytest.raises(InputError, match=r"instances\.npz"):
        load_prediction(tmp_path)
    for content in (good[: len(good) // 2], b"junk", b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"instances\.npz"):
            load_prediction(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        load_prediction(tmp_path)


def test_a_prediction_with_parts_that_do_not_fit_is_refused():
    good = random_prediction()
    with pytest.raises(InputError, match="track_ids"):
        Prediction(good.mesh, good.segments, good.instances, np.zeros(2, np.int32))
    with pytest.raises(InputError, match="instances"):
        Prediction(good.mesh, good.segments, Instances.empty(4), np.zeros(0, np.int32))
    with pytest.raises(InputError, match="segments"):
        Prediction(random_mesh(41), good.segments, good.instances, good.track_ids)


def test_an_output_folder_is_made_or_refused_before_the_work_starts(tmp_path):
    prepare_output_folder(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/unscene")):
        with pytest.raises(InputError, match="cannot be written"):
            prepare_output_folder(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_mesh(tmp_path / "mesh.ply", random_mesh(10))
    before = (tmp_path / "mesh.ply").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"mesh\.ply: cannot be written \(No space"):
        write_mesh(tmp_path / "mesh.ply", random_mesh(20))
    assert (tmp_path / "mesh.ply").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.ply"]


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def note_fsync(descriptor):
        status = os.fstat(descriptor)
        steps.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        fsync(descriptor)

    def note_replace(*paths):
        steps.append("replace")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    with whole_file(tmp_path / "map.npz") as file:
        file.write(b"four")
    assert steps == [4, "replace", "folder"]


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from unscene_ros.storage import whole_file

with whole_file(Path(sys.argv[1])) as file:
    file.write(b"begun")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    for name in ("map[1].npz", "map1.npz"):
        subprocess.run([sys.executable, "-c", KILLED_WRITER, tmp_path / name])
    assert len(list(tmp_path.iterdir())) == 2
    with whole_file(tmp_path / "map[1].npz") as slow:
        slow.write(b"slow")
        slow.flush()
        with whole_file(tmp_path / "map[1].npz") as quick:
            quick.write(b"quick")
        assert (tmp_path / "map[1].npz").read_bytes() == b"quick"
    assert (tmp_path / "map[1].npz").read_bytes() == b"slow"
    [other] = set(tmp_path.iterdir()) - {tmp_path / "map[1].npz"}
    assert other.name.startswith(".map1.npz.") and other.read_bytes() == b"begun"


@pytest.mark.parametrize(
    "name", ["map.npz", "floor 2/map.npz", "./map.npz", "a/./b", "..map", "link"]
)
def test_names_inside_a_folder_are_taken(tmp_path, name):
    folder = tmp_path / "maps"
    folder.mkdir()
    (folder / "link").symlink_to(folder / "map.npz")
    assert inside(folder, name).is_relative_to(folder.resolve())


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "./",
            "/",
            "//",
            "/etc/passwd",
            "..",
            "../maps",
            "../maps/map.npz",
            "a/../map.npz",
        ),
        *(
            "a/../../map.npz",
            "out",
            "out/map.npz",
            "up",
            "up/map.npz",
            "zero\0byte",
            "\udcff\ud800",
        ),
    ],
)
def test_names_that_lead_out_of_a_folder_are_refused(tmp_path, name):
    folder = tmp_path / "maps"
    folder.mkdir()
    (folder / "out").symlink_to("/etc")
    (folder / "up").symlink_to("..")
    with pytest.raises(InputError, match="expected the name of a file inside"):
        inside(folder, name)
    with pytest.raises(InputError, match="expected the name of a file inside"):
        inside(folder, str(folder / "map.npz"))


def test_a_folder_reached_by_a_link_holds_its_files(tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "maps")
    assert inside(tmp_path / "link", "map.npz") == (tmp_path / "maps" / "map.npz").resolve()


def test_a_link_to_itself_leads_nowhere(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert inside(tmp_path, "loop") == tmp_path.resolve() / "loop"
