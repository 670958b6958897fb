"""Voxels of meshes: hand-made meshes, a naive twin, and the way back."""

import numpy as np
import pytest

from unscene_ros.oversegmentation import oversegment
from unscene_ros.scene import InputError, Mesh, Segments, Voxels
from unscene_ros.voxels import (
    VoxelsConfig,
    make_voxels,
    part_of_voxels,
    segment_of_voxel,
    to_vertices,
)


def cloud(vertices, colors=None, normals=None) -> Mesh:
    vertices = np.asarray(vertices, np.float32).reshape(-1, 3)
    count = len(vertices)
    colors = np.zeros((count, 3)) if colors is None else np.asarray(colors)
    normals = np.tile([0.0, 0.0, 1.0], (count, 1)) if normals is None else np.asarray(normals)
    return Mesh(
        vertices, np.zeros((0, 3), np.int32), colors.astype(np.uint8), normals.astype(np.float32)
    )


def random_cloud(seed=0, count=400) -> Mesh:
    random = np.random.default_rng(seed)
    normals = random.normal(size=(count, 3))
    return cloud(
        random.uniform(-0.3, 0.3, (count, 3)),
        random.integers(0, 256, (count, 3)),
        normals / np.linalg.norm(normals, axis=1, keepdims=True),
    )


def segments_of(ids) -> Segments:
    ids = np.asarray(ids, np.int32)
    return Segments(ids, np.zeros((0, 2), np.int32), int(ids.max(initial=-1)) + 1)


def test_coordinates_are_rounded_down_on_both_sides_of_the_origin():
    mesh = cloud([[0.05, 0.0, 0.19], [-0.05, -0.11, 0.1], [0.09, 0.01, 0.11]])
    voxels = make_voxels(mesh, VoxelsConfig(voxel_size_m=0.1))
    np.testing.assert_array_equal(voxels.coordinates, [[-1, -2, 1], [0, 0, 1]])
    np.testing.assert_array_equal(voxels.of_vertex, [1, 0, 1])


def test_colors_are_means_of_the_vertices_and_centred():
    mesh = cloud([[0.01] * 3, [0.02] * 3, [0.15] * 3], [[0, 255, 30], [255, 255, 0], [0, 0, 0]])
    voxels = make_voxels(mesh, VoxelsConfig(voxel_size_m=0.1))
    np.testing.assert_allclose(
        voxels.features, [[0, 0.5, 15 / 255 - 0.5], [-0.5, -0.5, -0.5]], atol=1e-6
    )
    scaled = VoxelsConfig(0.1, color_mean=(0.25, 0, 0), color_spread=(0.5, 1, 2))
    np.testing.assert_allclose(
        make_voxels(mesh, scaled).features, [[0.5, 1, 7.5 / 255], [-0.5, 0, 0]], atol=1e-6
    )


def test_unknown_colors_are_zero():
    mesh = cloud([[0, 0, 0], [1, 1, 1]], [[200, 10, 10], [200, 10, 10]])
    assert not make_voxels(mesh).features.any()


def test_channels_stand_in_the_order_of_the_setting():
    mesh = cloud(
        [[0.01] * 3, [0.02] * 3, [0.35, 0.05, 0.05]],
        [[255, 255, 255], [255, 255, 255], [0, 0, 0]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    )
    config = VoxelsConfig(0.1, channels=("position", "normal", "color"))
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        make_voxels(mesh, config).features,
        [[-1.5, 0, 0, half, half, 0, 0.5, 0.5, 0.5], [1.5, 0, 0, 0, 0, 1, -0.5, -0.5, -0.5]],
        atol=1e-6,
    )


def test_opposite_normals_cancel_without_becoming_nan():
    mesh = cloud([[0, 0, 0], [0, 0, 0]], normals=[[0, 0, 1], [0, 0, -1]])
    np.testing.assert_array_equal(
        make_voxels(mesh, VoxelsConfig(channels=("normal",))).features, [[0, 0, 0]]
    )


def test_voxels_equal_those_of_a_loop_over_vertices():
    mesh, size = random_cloud(), 0.07
    voxels = make_voxels(mesh, VoxelsConfig(size))
    vertices_of_cell = {}
    for vertex, xyz in enumerate(mesh.vertices.astype(float)):
        vertices_of_cell.setdefault(tuple(int(np.floor(c / size)) for c in xyz), []).append(vertex)
    cells = sorted(vertices_of_cell)
    np.testing.assert_array_equal(voxels.coordinates, cells)
    for row, cell in enumerate(cells):
        vertices = vertices_of_cell[cell]
        assert set(voxels.of_vertex[vertices]) == {row}
        color = mesh.colors[vertices].mean(axis=0) / 255 - 0.5
        np.testing.assert_allclose(voxels.features[row], color, atol=1e-6)


def test_the_order_of_the_vertices_does_not_matter():
    mesh = random_cloud()
    order = np.random.default_rng(1).permutation(len(mesh.vertices))
    shuffled = Mesh(mesh.vertices[order], mesh.faces, mesh.colors[order], mesh.normals[order])
    config = VoxelsConfig(0.07, channels=("color", "normal", "position"))
    one, other = make_voxels(mesh, config), make_voxels(shuffled, config)
    np.testing.assert_array_equal(one.coordinates, other.coordinates)
    np.testing.assert_allclose(one.features, other.features, atol=1e-5)
    np.testing.assert_array_equal(one.of_vertex[order], other.of_vertex)


def test_values_come_back_to_the_vertices():
    mesh = cloud([[0.05] * 3, [0.15] * 3, [0.06] * 3])
    voxels = make_voxels(mesh, VoxelsConfig(0.1))
    np.testing.assert_array_equal(
        to_vertices(np.array([[1, 2], [3, 4]]), voxels), [[1, 2], [3, 4], [1, 2]]
    )
    with pytest.raises(InputError, match="expected values of 2 voxels, got 3"):
        to_vertices(np.zeros(3), voxels)


def test_a_voxel_belongs_to_the_segment_of_most_of_its_vertices():
    mesh = cloud([[0.01] * 3, [0.02] * 3, [0.03] * 3, [0.15] * 3, [0.16] * 3])
    voxels = make_voxels(mesh, VoxelsConfig(0.1))
    # The second voxel holds one vertex of each of two segments: the smaller id has it.
    ids = segment_of_voxel(voxels, segments_of([1, 0, 1, 2, 0]))
    np.testing.assert_array_equal(ids, [1, 0])
    assert ids.dtype == np.int32
    with pytest.raises(InputError, match="expected segments of 5 vertices, got 2"):
        segment_of_voxel(voxels, segments_of([0, 1]))


def test_segments_of_voxels_equal_those_of_a_loop():
    mesh = random_cloud()
    voxels = make_voxels(mesh, VoxelsConfig(0.15))
    ids = np.random.default_rng(2).integers(0, 4, len(mesh.vertices))
    expected = [
        np.bincount(ids[voxels.of_vertex == voxel]).argmax()
        for voxel in range(len(voxels.coordinates))
    ]
    np.testing.assert_array_equal(segment_of_voxel(voxels, segments_of(ids)), expected)


def test_an_empty_mesh_has_no_voxels():
    config = VoxelsConfig(channels=("color", "normal", "position"))
    voxels = make_voxels(Mesh.empty(), config)
    assert voxels.coordinates.shape == (0, 3)
    assert voxels.features.shape == (0, 9)
    assert to_vertices(np.zeros((0, 5)), voxels).shape == (0, 5)
    assert segment_of_voxel(voxels, oversegment(Mesh.empty())).shape == (0,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VoxelsConfig(voxel_size_m=0.0), "voxel_size_m: expected a positive size, got 0.0"),
        (VoxelsConfig(voxel_size_m=float("nan")), "voxel_size_m: expected a positive size"),
        (VoxelsConfig(channels=()), "channels: expected color, normal or position"),
        (VoxelsConfig(color_spread=(1, 0, 1)), "color_spread: expected positive"),
    ],
)
def test_settings_without_meaning_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        make_voxels(random_cloud(), config)


def test_a_mesh_too_large_for_its_voxels_is_refused():
    with pytest.raises(InputError, match="remove far outliers, or increase voxel_size_m"):
        make_voxels(cloud([[0, 0, 0], [1e9, 0, 0]]))
    with pytest.raises(InputError, match="remove far outliers, or increase voxel_size_m"):
        make_voxels(cloud([[0, 0, 0], [3e7, 3e7, 3e7]]))


def test_positions_are_counted_from_the_middle_of_a_part():
    config = VoxelsConfig(0.05, ("color", "position"))
    features = np.arange(18, dtype=np.float32).reshape(3, 6)
    voxels = Voxels(np.zeros((3, 3), np.int32), features, np.zeros(0, np.int32))
    part = part_of_voxels(voxels, np.array([0, 2]), config)
    np.testing.assert_array_equal(part.features[:, :3], features[[0, 2], :3])
    np.testing.assert_array_equal(part.features[:, 3:], [[-6] * 3, [6] * 3])
    assert features[0, 3] == 3  # those of the whole are kept
