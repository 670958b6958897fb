"""Binary glTF is what its specification says and what other readers understand."""

import numpy as np
import pytest
from glb_reader import read_glb, read_parts

from unscene_ros.glb import Part, glb_bytes
from unscene_ros.scene import Mesh


def some_mesh(vertex_count: int, face_count: int, seed: int = 0) -> Mesh:
    random = np.random.default_rng(seed)
    normals = random.normal(size=(vertex_count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    faces = [random.permutation(vertex_count)[:3] for _ in range(face_count)]
    return Mesh(
        random.normal(size=(vertex_count, 3)).astype(np.float32),
        np.array(faces, np.int32).reshape(-1, 3),
        random.integers(0, 256, (vertex_count, 3)).astype(np.uint8),
        normals.astype(np.float32),
    )


def test_each_part_is_read_back_with_its_arrays_and_extras():
    meshes = {"a": some_mesh(20, 30), "b": some_mesh(7, 5, seed=1)}
    data = glb_bytes([Part(name, mesh, {"of": name}) for name, mesh in meshes.items()])
    parts = read_parts(data)
    assert list(parts) == ["a", "b"]
    for name, mesh in meshes.items():
        part = parts[name]
        assert part["extras"] == {"of": name}
        assert part["mode"] == 4
        assert np.array_equal(part["POSITION"], mesh.vertices)
        assert np.array_equal(part["NORMAL"], mesh.normals)
        assert np.array_equal(part["faces"], mesh.faces)
        assert part["COLOR_0"].dtype == np.uint8 and (part["COLOR_0"][:, 3] == 255).all()


def test_colors_are_amounts_of_light_as_bytes_from_0_to_1():
    # IEC 61966-2-1 by hand: 10/255/12.92 = 0.00304; ((188/255 + 0.055) / 1.055)^2.4 = 0.5029.
    srgb, light = [0, 10, 188, 255], [0, 1, 128, 255]
    colors = np.array([srgb] * 3, np.uint8).T
    cloud = some_mesh(4, 0)
    data = glb_bytes([Part("cloud", Mesh(cloud.vertices, cloud.faces, colors, cloud.normals), {})])
    assert read_parts(data)["cloud"]["COLOR_0"][:, :3].T.tolist() == [light] * 3
    accessors = read_glb(data)[0]["accessors"]
    assert [accessor.get("normalized", False) for accessor in accessors] == [False, False, True]


def test_up_is_y_after_the_turn_of_the_root():
    document, _ = read_glb(glb_bytes([Part("a", some_mesh(3, 1), {})]))
    root = document["nodes"][document["scenes"][0]["nodes"][0]]
    axis, w = np.array(root["rotation"][:3]), root["rotation"][3]
    for in_map, in_gltf in [
        ((0, 0, 1), (0, 1, 0)),
        ((1, 0, 0), (1, 0, 0)),
        ((0, 1, 0), (0, 0, -1)),
    ]:
        once = np.cross(axis, in_map)  # v + 2 w (q x v) + 2 q x (q x v), Hamilton's product
        assert np.allclose(in_map + 2 * w * once + 2 * np.cross(axis, once), in_gltf)


def test_the_material_is_not_metal():
    document, _ = read_glb(glb_bytes([Part("a", some_mesh(3, 1), {})]))
    (material,) = document["materials"]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert document["meshes"][0]["primitives"][0]["material"] == 0


def test_points_have_no_faces_and_nothing_is_a_node_alone():
    data = glb_bytes([Part("cloud", some_mesh(5, 0), {}), Part("nothing", Mesh.empty(), {"n": 1})])
    parts = read_parts(data)
    assert parts["cloud"]["mode"] == 0 and len(parts["cloud"]["POSITION"]) == 5
    assert "faces" not in parts["cloud"]
    assert parts["nothing"] == {"extras": {"n": 1}}


def test_a_scene_of_nothing_has_no_binary_chunk():
    document, binary = read_glb(glb_bytes([Part("nothing", Mesh.empty(), {})]))
    assert not binary and not {"meshes", "buffers", "bufferViews", "accessors"} & set(document)


@pytest.mark.parametrize("name", ["椅子", "chaise à bascule", 'a "quoted" \\ \n name', "a", "ab"])
def test_any_name_is_kept_and_leaves_the_chunks_aligned(name):
    parts = read_parts(glb_bytes([Part(name, some_mesh(4, 2), {"class_name": name})]))
    assert parts[name]["extras"] == {"class_name": name}


def test_open3d_reads_the_same_triangles_with_y_up(tmp_path):
    open3d = pytest.importorskip("open3d")
    meshes = [some_mesh(20, 30), some_mesh(7, 5, seed=1)]
    path = tmp_path / "scene.glb"
    path.write_bytes(glb_bytes([Part(f"#{i}", mesh, {}) for i, mesh in enumerate(meshes)]))
    parts = read_parts(path.read_bytes()).values()
    for read in (
        open3d.io.read_triangle_mesh(path),
        open3d.io.read_triangle_model(path).meshes[0].mesh,
    ):
        corners = np.asarray(read.triangles)  # of all parts in one, the vertices in another order
        for of_vertex, of_parts in (
            (read.vertices, [y_up(part["POSITION"])[part["faces"]] for part in parts]),
            (read.vertex_normals, [y_up(part["NORMAL"])[part["faces"]] for part in parts]),
            (read.vertex_colors, [part["COLOR_0"][part["faces"], :3] / 255 for part in parts]),
        ):
            assert np.allclose(np.asarray(of_vertex)[corners], np.concatenate(of_parts), atol=1e-6)


def y_up(vectors: np.ndarray) -> np.ndarray:
    x, y, z = vectors.T
    return np.stack([x, z, -y], axis=1)
