"""The doors of the data types: what is well formed passes, what is not is named in the message."""

import dataclasses

import numpy as np
import pytest

from unscene_ros.scene import (
    Camera,
    Frame,
    InputError,
    Instances,
    Mesh,
    Segments,
    Voxels,
    check_array,
    check_pose,
)

CAMERA = Camera(4, 3, np.array([[2.0, 0, 1.5], [0, 2.0, 1.0], [0, 0, 1]]))


def frame(**changes) -> Frame:
    fields = {
        "stamp_ns": 0,
        "camera": CAMERA,
        "color": np.zeros((3, 4, 3), np.uint8),
        "depth": np.zeros((3, 4), np.float32),
        "world_from_camera": np.eye(4),
    }
    return Frame(**(fields | changes))


def triangle(**changes) -> Mesh:
    fields = {
        "vertices": np.eye(3, dtype=np.float32),
        "faces": np.array([[0, 1, 2]], np.int32),
        "colors": np.zeros((3, 3), np.uint8),
        "normals": np.zeros((3, 3), np.float32),
    }
    return Mesh(**(fields | changes))


def test_array_of_any_length_passes_and_another_dtype_is_named():
    check_array("points", np.zeros((0, 3), np.float32), (None, 3), np.float32)
    with pytest.raises(InputError, match=r"points: expected \(any, 3\) float32, got .* float64"):
        check_array("points", np.zeros((2, 3)), (None, 3), np.float32)


@pytest.mark.parametrize("array", [np.zeros(3, np.float32), np.zeros((2, 4), np.float32)])
def test_array_of_another_shape_is_refused(array):
    with pytest.raises(InputError, match=r"points: expected \(any, 3\)"):
        check_array("points", array, (None, 3), np.float32)


def test_list_is_not_an_array():
    with pytest.raises(InputError, match="points: expected a numpy array, got list"):
        check_array("points", [[1, 2, 3]], (None, 3), np.float32)


@pytest.mark.parametrize(
    ("size", "intrinsics", "message"),
    [
        ((0, 3), np.eye(3), "Camera: expected a positive size, got 0x3"),
        ((4, -3), np.eye(3), "Camera: expected a positive size"),
        ((4, 3), np.eye(4), "Camera.intrinsics: expected"),
        ((4, 3), np.diag([0.0, 1, 1]), "positive focal lengths, got fx=0.0"),
        ((4, 3), np.diag([5.0, 5, 0]), "0 0 1, got 5 0 0, 0 5 0, 0 0 0$"),
        ((4, 3), np.float64([[1, 1, 0], [1, 1, 0], [0, 0, 1]]), "got 1 1 0, 1 1 0, 0 0 1$"),
        ((4, 3), np.diag([1.0, -2, 1]), "fy=-2.0"),
        ((4, 3), np.diag([1.0, np.nan, 1]), "Camera.intrinsics: expected finite"),
    ],
)
def test_impossible_camera_is_refused(size, intrinsics, message):
    with pytest.raises(InputError, match=message):
        Camera(*size, intrinsics)


def test_resized_camera_sees_the_same_ray_at_the_scaled_pixel():
    camera = Camera(640, 480, np.array([[500.0, 0, 320], [0, 510.0, 240], [0, 0, 1]]))
    small = camera.resized(320, 120)
    assert (small.width, small.height) == (320, 120)
    point = np.array([0.3, -0.2, 2.0])
    u, v, depth = camera.intrinsics @ point
    small_u, small_v, small_depth = small.intrinsics @ point
    np.testing.assert_allclose(small_u / small_depth, 0.5 * u / depth)
    np.testing.assert_allclose(small_v / small_depth, 0.25 * v / depth)
    np.testing.assert_array_equal(small.intrinsics[2], [0, 0, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"color": np.zeros((4, 3, 3), np.uint8)}, "Frame.color: expected"),
        ({"color": np.zeros((3, 4, 3), np.float32)}, "Frame.color: expected"),
        ({"depth": np.zeros((3, 4), np.uint16)}, "Frame.depth: expected"),
        ({"depth": np.zeros((6, 8), np.float32)}, r"Frame.depth: expected \(3, 4\)"),
        ({"world_from_camera": np.full((4, 4), np.nan)}, "world_from_camera: expected finite"),
    ],
)
def test_frame_that_does_not_fit_its_camera_is_refused(changes, message):
    frame()
    with pytest.raises(InputError, match=message):
        frame(**changes)


def test_pose_with_few_digits_passes():
    angle = 0.3
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    check_pose("pose", pose.round(3))


@pytest.mark.parametrize(
    "pose",
    [
        np.diag([1.1, 1.1, 1.1, 1.0]),
        np.diag([1.0, 1.0, -1.0, 1.0]),
        np.diag([1.0, 1.0, 1.0, 2.0]),
        np.zeros((4, 4)),
    ],
    ids=["scaled", "mirrored", "projective", "zero"],
)
def test_pose_that_is_not_rigid_is_refused(pose):
    with pytest.raises(InputError, match="odometry: expected a rigid transform"):
        check_pose("odometry", pose)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vertices": np.zeros((3, 2), np.float32)}, "Mesh.vertices: expected"),
        ({"faces": np.array([[0, 1, 2]], np.int64)}, "Mesh.faces: expected .* int32, got .* int64"),
        ({"faces": np.array([[0, 1, 3]], np.int32)}, r"Mesh.faces: .* 0..2, got 0..3"),
        ({"faces": np.array([[-1, 1, 2]], np.int32)}, r"Mesh.faces: .* got -1..2"),
        ({"colors": np.zeros((2, 3), np.uint8)}, r"Mesh.colors: expected \(3, 3\)"),
        ({"normals": np.zeros((0, 3), np.float32)}, "Mesh.normals: expected"),
        (
            {"vertices": np.array([[0, 0, 0], [0, np.nan, 0], [np.inf, 0, 0]], np.float32)},
            "Mesh.vertices: expected finite positions, got 2 that are not",
        ),
    ],
)
def test_malformed_mesh_is_refused(changes, message):
    triangle()
    with pytest.raises(InputError, match=message):
        triangle(**changes)


def test_empty_mesh_is_a_mesh():
    mesh = Mesh.empty()
    assert len(mesh.vertices) == len(mesh.faces) == len(mesh.colors) == len(mesh.normals) == 0


def test_face_of_a_mesh_without_vertices_is_refused():
    with pytest.raises(InputError, match="faces"):
        dataclasses.replace(Mesh.empty(), faces=np.zeros((1, 3), np.int32))


@pytest.mark.parametrize(
    ("of_vertex", "neighbors", "message"),
    [
        ([0, 2], [[0, 1]], r"Segments.of_vertex: expected ids 0..1, got 0..2"),
        ([0, -1], [[0, 1]], r"Segments.of_vertex: .* got -1..0"),
        ([0, 1], [[0, 2]], r"Segments.neighbors: expected ids 0..1"),
    ],
)
def test_segment_ids_beyond_the_count_are_refused(of_vertex, neighbors, message):
    with pytest.raises(InputError, match=message):
        Segments(np.array(of_vertex, np.int32), np.array(neighbors, np.int32), 2)


def test_no_segments_at_all_are_segments():
    segments = Segments(np.zeros(0, np.int32), np.zeros((0, 2), np.int32), 0)
    assert Instances.empty(segments.count).of_vertex(segments).shape == (0,)


def test_voxels_need_one_row_of_features_each():
    coordinates, of_vertex = np.zeros((2, 3), np.int32), np.zeros(5, np.int32)
    Voxels(coordinates, np.zeros((2, 6), np.float32), of_vertex)
    with pytest.raises(InputError, match=r"Voxels.features: expected \(2, any\)"):
        Voxels(coordinates, np.zeros((3, 6), np.float32), of_vertex)


@pytest.mark.parametrize(
    ("scores", "class_ids", "message"),
    [
        (np.zeros(2, np.float32), np.zeros(1, np.int32), "Instances.scores: expected"),
        (np.zeros(1, np.float64), np.zeros(1, np.int32), "Instances.scores: expected"),
        (np.zeros(1, np.float32), np.zeros(0, np.int32), "Instances.class_ids: expected"),
    ],
)
def test_instances_need_one_score_and_class_each(scores, class_ids, message):
    with pytest.raises(InputError, match=message):
        Instances(np.ones((1, 3), bool), scores, class_ids)


def test_best_scored_instance_gets_a_shared_segment():
    masks = np.array([[1, 1, 0, 0], [0, 1, 1, 0]], bool)
    for scores, expected in (([0.9, 0.4], [0, 0, 1, -1]), ([0.4, 0.9], [0, 1, 1, -1])):
        instances = Instances(masks, np.array(scores, np.float32), np.full(2, -1, np.int32))
        np.testing.assert_array_equal(instances.of_segment(), expected)


def test_vertex_belongs_to_the_instance_of_its_segment():
    segments = Segments(np.array([2, 0, 0, 1], np.int32), np.zeros((0, 2), np.int32), 3)
    masks = np.array([[0, 0, 1], [1, 0, 0]], bool)
    instances = Instances(masks, np.array([0.2, 0.1], np.float32), np.zeros(2, np.int32))
    of_vertex = instances.of_vertex(segments)
    np.testing.assert_array_equal(of_vertex, [0, 1, 1, -1])
    assert of_vertex.dtype == np.int32


def test_no_instances_leave_every_vertex_free():
    segments = Segments(np.array([0, 1, 1], np.int32), np.array([[0, 1]], np.int32), 2)
    np.testing.assert_array_equal(Instances.empty(2).of_vertex(segments), [-1, -1, -1])


def test_fields_cannot_be_set_or_invented():
    mesh = Mesh.empty()
    with pytest.raises(dataclasses.FrozenInstanceError):
        mesh.faces = np.zeros((0, 3), np.int32)
    with pytest.raises((AttributeError, TypeError)):
        mesh.labels = np.zeros(0)
