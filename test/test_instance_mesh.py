"""A map is written with its objects: colours and ids for each vertex, or a named part for each."""

from pathlib import Path

import numpy as np
import pytest
from glb_reader import read_parts

from unscene_ros.instance_mesh import colors_by_instance, write_instance_mesh
from unscene_ros.palette import instance_colors
from unscene_ros.ply import read_vertex_property
from unscene_ros.scene import InputError, Mesh
from unscene_ros.storage import read_mesh


def grid(width: int, height: int) -> Mesh:
    """A floor of width x height vertices, row by row, its squares cut into two triangles each."""
    y, x = np.divmod(np.arange(width * height), width)
    first = np.arange(width * (height - 1)).reshape(height - 1, width)[:, :-1].ravel()
    upper = np.stack([first, first + 1, first + width], axis=1)
    lower = np.stack([first + 1, first + width + 1, first + width], axis=1)
    return Mesh(
        np.stack([x, y, 0 * x], axis=1).astype(np.float32),
        np.concatenate([upper, lower]).astype(np.int32),
        np.tile(np.uint8([100, 150, 250]), (len(x), 1)),
        np.tile(np.float32([0, 0, 1]), (len(x), 1)),
    )


def write(path: Path, mesh: Mesh, instance_of_vertex, ids=(), class_names=None) -> Path:
    """With class "object" and score 0.5 for each, where no other classes are given."""
    write_instance_mesh(
        path,
        mesh,
        np.asarray(instance_of_vertex, np.int32),
        np.asarray(ids, np.int32),
        class_names or ["object"] * len(ids),
        np.full(len(ids), 0.5, np.float32),
    )
    return path


def triangles(vertices: np.ndarray, faces: np.ndarray) -> set[tuple]:
    return {tuple(map(tuple, corners)) for corners in vertices[faces].tolist()}


def test_a_vertex_has_the_instance_s_color_and_outside_the_map_s_own_darkened():
    instance_of_vertex = np.array([0, -1, 1, 0], np.int32)
    ids = np.array([7, 70000], np.int32)
    colors = colors_by_instance(grid(2, 2), instance_of_vertex, ids)
    of_7, of_70000 = instance_colors(ids)
    assert colors.tolist() == [of_7.tolist(), [40, 60, 100], of_70000.tolist(), of_7.tolist()]


def test_ply_says_the_lasting_id_of_each_vertex_and_stays_a_mesh(tmp_path):
    mesh = grid(3, 2)
    instance_of_vertex = np.array([-1, 0, 0, 1, 1, -1], np.int32)
    ids = np.array([70000, 3], np.int32)
    path = write(tmp_path / "mesh.ply", mesh, instance_of_vertex, ids)
    assert read_vertex_property(path, "instance").tolist() == [-1, 70000, 70000, 3, 3, -1]
    read = read_mesh(path)
    assert np.array_equal(read.vertices, mesh.vertices)
    assert np.array_equal(read.faces, mesh.faces)
    assert np.array_equal(read.normals, mesh.normals)
    assert np.array_equal(read.colors, colors_by_instance(mesh, instance_of_vertex, ids))


def test_glb_has_a_named_part_for_each_instance_and_one_for_the_rest(tmp_path):
    # Two rows of squares: the left columns are a chair, the right ones an object.
    mesh = grid(5, 3)
    instance_of_vertex = np.tile(np.int32([0, 0, -1, 1, 1]), 3)
    path = write(tmp_path / "m.glb", mesh, instance_of_vertex, [7, 70000], ["chair", "object"])
    parts = read_parts(path.read_bytes())
    assert list(parts) == ["chair #7", "object #70000", "rest"]
    assert parts["chair #7"]["extras"] == {"id": 7, "class_name": "chair", "score": 0.5}
    assert parts["object #70000"]["extras"] == {"id": 70000, "class_name": "object", "score": 0.5}
    assert [len(part["faces"]) for part in parts.values()] == [4, 4, 8]
    assert [len(part["POSITION"]) for part in parts.values()] == [6, 6, 9]
    low, high = parts["object #70000"]["POSITION"].min(0), parts["object #70000"]["POSITION"].max(0)
    assert low.tolist() == [3, 0, 0] and high.tolist() == [4, 2, 0]


def test_a_glb_part_is_the_triangles_with_all_corners_in_the_instance(tmp_path):
    mesh = grid(12, 9)
    blocks = np.array([[0, 1, -1], [2, 0, 3], [-1, 2, 1]], np.int32)
    instance_of_vertex = np.kron(blocks, np.ones((3, 4), np.int32)).ravel()
    parts = read_parts(write(tmp_path / "m.glb", mesh, instance_of_vertex, range(4)).read_bytes())
    painted = colors_by_instance(mesh, instance_of_vertex, np.arange(4))
    expected: dict[str, list] = {f"object #{i}": [] for i in range(4)} | {"rest": []}
    for face in mesh.faces:
        instances = set(instance_of_vertex[face].tolist())
        inside = len(instances) == 1 and instances != {-1}
        expected[f"object #{instances.pop()}" if inside else "rest"].append(face)
    for name, faces in expected.items():
        part = parts[name]
        assert triangles(part["POSITION"], part["faces"]) == triangles(mesh.vertices, faces)
        assert len(part["faces"]) == len(faces)
        assert len(part["POSITION"]) == len(np.unique(faces))  # none twice, none unused
        vertices = (part["POSITION"][:, 0] + 12 * part["POSITION"][:, 1]).astype(int)
        light = [[as_light(value) for value in color] for color in painted[vertices].tolist()]
        assert part["COLOR_0"][:, :3].tolist() == light


def as_light(srgb: int) -> int:
    """Source: IEC 61966-2-1."""
    encoded = srgb / 255
    return round(255 * (encoded / 12.92 if srgb <= 10 else ((encoded + 0.055) / 1.055) ** 2.4))


def test_an_instance_without_a_whole_triangle_is_a_node_with_its_facts(tmp_path):
    path = write(tmp_path / "m.glb", grid(3, 3), [-1, -1, -1, -1, 0, -1, -1, -1, -1], [5])
    parts = read_parts(path.read_bytes())
    assert parts["object #5"] == {"extras": {"id": 5, "class_name": "object", "score": 0.5}}
    assert len(parts["rest"]["faces"]) == 8


def test_three_hundred_instances_with_large_ids_keep_their_ids(tmp_path):
    mesh = grid(40, 30)
    x, y = mesh.vertices[:, 0].astype(int), mesh.vertices[:, 1].astype(int)
    instance_of_vertex = y // 2 * 20 + x // 2  # blocks of 2 x 2, two triangles each
    ids = np.arange(300) * 7_000_001
    ply = write(tmp_path / "mesh.ply", mesh, instance_of_vertex, ids)
    assert np.array_equal(read_vertex_property(ply, "instance"), ids[instance_of_vertex])
    parts = read_parts(write(tmp_path / "m.glb", mesh, instance_of_vertex, ids).read_bytes())
    rest = parts.pop("rest")
    assert [part["extras"]["id"] for part in parts.values()] == ids.tolist()
    assert all(len(part["faces"]) == 2 for part in parts.values())
    assert len(rest["faces"]) == len(mesh.faces) - 600


def test_without_instances_all_is_the_rest(tmp_path):
    mesh = grid(2, 2)
    ply = write(tmp_path / "mesh.ply", mesh, [-1] * 4)
    assert read_vertex_property(ply, "instance").tolist() == [-1] * 4
    parts = read_parts(write(tmp_path / "m.glb", mesh, [-1] * 4).read_bytes())
    assert list(parts) == ["rest"] and len(parts["rest"]["faces"]) == 2


@pytest.mark.parametrize("ids", [[], [7]])
def test_an_empty_map_is_written(tmp_path, ids):
    ply = write(tmp_path / "mesh.ply", Mesh.empty(), [], ids)
    assert b"element vertex 0\n" in ply.read_bytes()
    assert len(read_vertex_property(ply, "instance")) == 0
    parts = read_parts(write(tmp_path / "m.glb", Mesh.empty(), [], ids).read_bytes())
    assert list(parts) == [f"object #{instance_id}" for instance_id in ids] + ["rest"]


def test_a_cloud_is_split_by_its_points(tmp_path):
    surface = grid(3, 1)
    path = write(tmp_path / "m.glb", surface, [0, -1, 0], [7])
    parts = read_parts(path.read_bytes())
    assert parts["object #7"]["POSITION"][:, 0].tolist() == [0, 2]
    assert parts["rest"]["POSITION"][:, 0].tolist() == [1]


def test_class_names_in_any_writing_are_kept(tmp_path):
    path = write(tmp_path / "m.glb", grid(2, 2), [0] * 4, [7], ['椅子 "à"'])
    parts = read_parts(path.read_bytes())
    assert parts['椅子 "à" #7']["extras"]["class_name"] == '椅子 "à"'


def test_open3d_reads_the_glb_with_the_box_of_the_map(tmp_path):
    open3d = pytest.importorskip("open3d")
    mesh = grid(5, 3)
    path = write(tmp_path / "m.glb", mesh, np.tile(np.int32([0, 0, -1, 1, 1]), 3), [7, 8])
    read = open3d.io.read_triangle_mesh(path)
    assert len(read.triangles) == len(mesh.faces)
    assert np.allclose(read.get_min_bound(), (0, 0, -2), atol=1e-6)  # y is up, so z is -y
    assert np.allclose(read.get_max_bound(), (4, 0, 0), atol=1e-6)


def test_the_ending_may_be_in_capitals_and_any_other_names_both(tmp_path):
    assert write(tmp_path / "MESH.GLB", grid(2, 2), [-1] * 4).read_bytes()[:4] == b"glTF"
    for name in ("mesh.obj", "mesh"):
        with pytest.raises(InputError, match=r"\.ply or \.glb"):
            write(tmp_path / name, grid(2, 2), [-1] * 4)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["mesh.ply", "mesh.glb"])
def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, name):
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "no folder" / name, grid(2, 2), [-1] * 4)
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / name, grid(2, 2), [-1] * 4)
    assert [path.name for path in tmp_path.iterdir()] == [name]
