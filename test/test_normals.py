"""Normals from faces and from neighbours, against shapes whose normals are known."""

import numpy as np

from unscene_ros.normals import normals_from_faces, normals_from_neighbors


def sphere_points(count: int = 2000) -> np.ndarray:
    """Evenly spread points on the unit sphere (Fibonacci lattice)."""
    index = np.arange(count) + 0.5
    height = 1 - 2 * index / count
    angle = np.pi * (1 + 5**0.5) * index
    ring = np.sqrt(1 - height**2)
    return np.stack((ring * np.cos(angle), ring * np.sin(angle), height), 1).astype(np.float32)


def naive_face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    sums = np.zeros((len(vertices), 3))
    for a, b, c in faces:
        for corner in (a, b, c):
            sums[corner] += np.cross(vertices[b] - vertices[a], vertices[c] - vertices[a])
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def test_face_normals_follow_counter_clockwise_order():
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    assert np.allclose(normals_from_faces(square, faces), (0, 0, 1))
    assert np.allclose(normals_from_faces(square, faces[:, ::-1]), (0, 0, -1))


def test_face_normals_equal_the_naive_sum():
    random = np.random.default_rng(0)
    vertices = random.normal(size=(30, 3)).astype(np.float32)
    faces = np.array([random.permutation(30)[:3] for _ in range(80)], np.int32)
    assert np.allclose(
        normals_from_faces(vertices, faces), naive_face_normals(vertices, faces), atol=1e-5
    )


def test_vertex_normals_weigh_faces_by_area():
    corners = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 3), (9, 9, 9)], np.float32)
    normals = normals_from_faces(corners, np.array([(0, 1, 2), (0, 2, 3)], np.int32))
    assert np.allclose(normals[0], np.array([3, 0, 1]) / np.sqrt(10))
    assert np.allclose(normals[[1, 4]], (0, 0, 1))


def test_a_vertex_without_area_gets_a_unit_normal():
    vertices = np.zeros((4, 3), np.float32)
    normals = normals_from_faces(vertices, np.array([[0, 1, 2]], np.int32))
    assert np.allclose(normals, (0, 0, 1))


def test_cloud_normals_of_a_sphere_all_point_the_same_way_out_or_in():
    points = sphere_points()
    alignment = (normals_from_neighbors(points) * points).sum(axis=1)
    assert np.abs(alignment).min() > 0.99
    assert len(set(np.sign(alignment))) == 1


def test_cloud_normals_agree_within_each_separate_piece():
    flat = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2) * 0.1
    level = np.column_stack((flat, np.zeros(400)))
    upright = np.column_stack((np.full(400, 50.0), flat))
    normals = normals_from_neighbors(np.concatenate((level, upright)).astype(np.float32))
    assert np.allclose(np.abs(normals[:400].sum(axis=0)), (0, 0, 400), atol=1e-2)
    assert np.allclose(np.abs(normals[400:].sum(axis=0)), (400, 0, 0), atol=1e-2)


def test_few_points_and_points_on_top_of_each_other_still_get_unit_normals():
    for points in (np.zeros((0, 3)), np.zeros((2, 3)), np.zeros((40, 3)), np.eye(3)):
        normals = normals_from_neighbors(points.astype(np.float32))
        assert normals.shape == points.shape and normals.dtype == np.float32
        assert np.allclose(np.linalg.norm(normals, axis=1), 1)
