"""Baselines: planes, clusters, instances on segments, and their common command."""

from __future__ import annotations

import numpy as np
import pytest

from training.baselines import euclidean_clusters, felzenszwalb, hdbscan
from training.baselines.clusters import instances_of_clusters, spread, thin
from training.baselines.euclidean_clusters import (
    EuclideanClustersConfig,
    euclidean_cluster_instances,
    large_planes,
)
from training.baselines.felzenszwalb import FelzenszwalbConfig, felzenszwalb_instances
from training.baselines.hdbscan import HdbscanConfig, hdbscan_instances
from unscene_ros.oversegmentation import OversegmentationConfig
from unscene_ros.scene import Mesh, Segments
from unscene_ros.structure import vertex_areas

ALL = [felzenszwalb_instances, hdbscan_instances, euclidean_cluster_instances]


def grid(
    origin: tuple[float, float, float],
    along: tuple[float, float, float],
    across: tuple[float, float, float],
    color: tuple[int, int, int],
    step: float = 0.04,
) -> Mesh:
    """A meshed rectangle."""
    a, b = np.array(along, float), np.array(across, float)
    columns, rows = (max(2, round(np.linalg.norm(side) / step) + 1) for side in (a, b))
    u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    vertices = np.array(origin) + u.reshape(-1, 1) * a + v.reshape(-1, 1) * b
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + columns + 1], axis=-1),
            np.stack([corner, corner + columns + 1, corner + columns], axis=-1),
        ]
    )
    normal = np.cross(a, b) / np.linalg.norm(np.cross(a, b))
    return Mesh(
        vertices.astype(np.float32),
        faces.astype(np.int32),
        np.tile(np.array(color, np.uint8), (len(vertices), 1)),
        np.tile(normal.astype(np.float32), (len(vertices), 1)),
    )


def joined(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate(
            [mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]
        ).astype(np.int32),
        np.concatenate([mesh.colors for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
    )


def block(x: float, y: float, size: float, color: tuple[int, int, int]) -> Mesh:
    """The four sides and the top of a cube standing on the floor, a little above it."""
    s, z = size, 0.06
    sides = [
        grid((x, y, z), (s, 0, 0), (0, 0, s), color),
        grid((x + s, y, z), (0, s, 0), (0, 0, s), color),
        grid((x + s, y + s, z), (-s, 0, 0), (0, 0, s), color),
        grid((x, y + s, z), (0, -s, 0), (0, 0, s), color),
        grid((x, y, z + s), (s, 0, 0), (0, s, 0), color),
    ]
    return joined(*sides)


FLOOR = grid((0, 0, 0), (3, 0, 0), (0, 3, 0), (120, 120, 120))
WALL = grid((0, 3, 0), (3, 0, 0), (0, 0, 2.4), (200, 200, 190))
RED, BLUE = block(0.5, 0.5, 0.48, (200, 30, 30)), block(1.8, 1.2, 0.6, (20, 40, 200))
ROOM = joined(FLOOR, WALL, RED, BLUE)
OBJECT_OF_VERTEX = np.repeat(
    [-1, -1, 0, 1], [len(mesh.vertices) for mesh in (FLOOR, WALL, RED, BLUE)]
)


def best_iou(segments: Segments, masks: np.ndarray, number: int) -> float:
    truth = number == OBJECT_OF_VERTEX
    inside = masks[:, segments.of_vertex]
    ious = (inside & truth).sum(axis=1) / (inside | truth).sum(axis=1)
    return float(ious.max(initial=0))


def test_two_blocks_in_a_room_become_two_euclidean_clusters():
    segments, instances = euclidean_cluster_instances(ROOM)
    assert len(instances.masks) == 2
    assert best_iou(segments, instances.masks, 0) > 0.95
    assert best_iou(segments, instances.masks, 1) > 0.95


def test_hdbscan_separates_blocks_that_differ_in_place_and_colour():
    config = HdbscanConfig(thinning_m=0.05, normal_weight_m=0.0, min_cluster_size=150)
    segments, instances = hdbscan_instances(ROOM, config)
    assert best_iou(segments, instances.masks, 0) > 0.9
    assert best_iou(segments, instances.masks, 1) > 0.9


def test_felzenszwalb_makes_an_instance_of_every_large_segment():
    segments, instances = felzenszwalb_instances(ROOM)
    areas = np.bincount(segments.of_vertex, vertex_areas(ROOM), segments.count)
    assert len(instances.masks) == (areas >= 0.02).sum() > 2
    assert (instances.masks.sum(axis=1) == 1).all()
    strict = FelzenszwalbConfig(min_area_m2=1.0)
    assert len(felzenszwalb_instances(ROOM, strict)[1].masks) == (areas >= 1.0).sum()


def test_large_planes_are_the_floor_and_the_wall_only():
    found = large_planes(ROOM, vertex_areas(ROOM), EuclideanClustersConfig())
    structure = OBJECT_OF_VERTEX < 0
    assert found[structure].mean() > 0.99
    assert found[~structure].mean() < 0.05


def test_planes_below_the_smallest_area_stay():
    config = EuclideanClustersConfig(min_plane_area_m2=8.0)
    found = large_planes(ROOM, vertex_areas(ROOM), config)
    assert found[: len(FLOOR.vertices)].mean() > 0.99
    wall = slice(len(FLOOR.vertices), len(FLOOR.vertices) + len(WALL.vertices))
    assert found[wall].mean() < 0.05


def test_a_slanted_plane_is_found_whatever_its_side():
    slanted = grid((0, 0, 0), (2, 0, 1), (0, 2, 0.5), (9, 9, 9))
    flipped = slanted.normals * np.where(np.arange(len(slanted.normals)) % 2, 1, -1)[:, None]
    mesh = Mesh(slanted.vertices, slanted.faces, slanted.colors, flipped.astype(np.float32))
    assert large_planes(mesh, vertex_areas(mesh), EuclideanClustersConfig()).all()


def test_clusters_within_the_tolerance_are_one_and_beyond_it_two():
    near = joined(block(0, 0, 0.4, (1, 1, 1)), block(0.44, 0, 0.4, (1, 1, 1)))
    far = joined(block(0, 0, 0.4, (1, 1, 1)), block(0.50, 0, 0.4, (1, 1, 1)))
    assert len(euclidean_cluster_instances(near)[1].masks) == 1
    assert len(euclidean_cluster_instances(far)[1].masks) == 2


def test_clusters_agree_with_growing_them_point_by_point():
    points = np.random.default_rng(0).uniform(0, 1, (120, 3))
    number = np.full(len(points), -1)
    for start in range(len(points)):
        if number[start] >= 0:
            continue
        front = [start]
        while front:
            point = front.pop()
            if number[point] < 0:
                number[point] = start
                distance = np.linalg.norm(points - points[point], axis=1)
                front += list(np.flatnonzero((distance < 0.12) & (number < 0)))
    got = euclidean_clusters._clusters(points, 0.12)
    same = got[:, None] == got
    np.testing.assert_array_equal(same, number[:, None] == number)
    assert 5 < len(np.unique(got)) < 115


def test_a_segment_goes_to_the_cluster_that_holds_most_of_its_vertices():
    segments = Segments(np.array([0, 0, 0, 1, 1, 1, 2, 2], np.int32), np.zeros((0, 2), np.int32), 3)
    clusters = np.array([0, 0, 1, 1, 1, -1, -1, -1])
    scores = np.array([0.3, 0.6, 0.9])  # the last cluster wins nothing
    instances = instances_of_clusters(clusters, scores, segments)
    np.testing.assert_array_equal(instances.masks, [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(instances.scores, [0.3, 0.6])


def test_thinning_keeps_one_point_per_cube_and_no_more_than_asked():
    points = np.array([(0.01, 0, 0), (0.02, 0, 0), (0.11, 0, 0), (0.25, 0, 0)])
    np.testing.assert_array_equal(thin(points, 0.1, 100), [0, 2, 3])
    many = np.random.default_rng(0).uniform(0, 1, (5000, 3)) * (1, 1, 0)
    assert 100 < len(thin(many, 0.01, 500)) <= 500
    assert len(thin(np.zeros((0, 3)), 0.1, 10)) == 0


def test_spreading_takes_the_nearest_label_within_reach():
    points = np.array([(0, 0, 0), (0.3, 0, 0), (1, 0, 0), (9, 0, 0)], float)
    got = spread(points, np.array([0, 2]), np.array([5, 7]), 0.5)
    np.testing.assert_array_equal(got, [5, 5, 7, -1])
    nothing = spread(points, np.zeros(0, int), np.zeros(0, int), 0.5)
    np.testing.assert_array_equal(nothing, [-1] * 4)


@pytest.mark.parametrize("find", ALL)
def test_nothing_in_nothing_out(find):
    segments, instances = find(Mesh.empty())
    assert segments.count == 0
    assert instances.masks.shape == (0, 0)


@pytest.mark.parametrize("find", ALL)
def test_a_point_cloud_and_a_single_vertex_are_accepted(find):
    cloud = Mesh(ROOM.vertices, np.zeros((0, 3), np.int32), ROOM.colors, ROOM.normals)
    segments, instances = find(cloud)
    assert len(segments.of_vertex) == len(ROOM.vertices)
    assert len(instances.masks) >= 1
    single = Mesh(ROOM.vertices[:1], np.zeros((0, 3), np.int32), ROOM.colors[:1], ROOM.normals[:1])
    assert find(single)[0].count == 1


@pytest.mark.parametrize("find", ALL)
def test_the_same_mesh_gives_the_same_instances(find):
    one, two = find(ROOM), find(ROOM)
    np.testing.assert_array_equal(one[0].of_vertex, two[0].of_vertex)
    np.testing.assert_array_equal(one[1].masks, two[1].masks)


@pytest.mark.parametrize("module", [felzenszwalb, hdbscan, euclidean_clusters])
def test_the_command_takes_a_mesh_or_a_recording_and_writes_a_prediction(module, tmp_path):
    from training.baselines.command import run
    from training.scans import rooms
    from unscene_ros.evaluation import evaluate, read_ground_truth
    from unscene_ros.storage import load_prediction, write_mesh

    name = module.__name__.rpartition(".")[2]
    find = {
        "felzenszwalb": (FelzenszwalbConfig, felzenszwalb_instances),
        "hdbscan": (HdbscanConfig, hdbscan_instances),
        "euclidean_clusters": (EuclideanClustersConfig, euclidean_cluster_instances),
    }[name]
    write_mesh(tmp_path / "room.ply", ROOM)
    out = tmp_path / "out"
    assert run(name, "", *find, [str(tmp_path / "room.ply"), "-o", str(out)]) == 0
    saved = load_prediction(out)
    np.testing.assert_array_equal(saved.instances.masks, find[1](ROOM)[1].masks)

    sizes = ["--set=image_width=80", "--set=image_height=60", "--set=frame_count=12"]
    assert rooms.main(["3", "-o", str(tmp_path), *sizes]) == 0
    scan = tmp_path / "room_00003"
    arguments = [str(scan), "-o", str(out), "--set", "fusion.voxel_size_m=0.08"]
    assert run(name, "", *find, arguments) == 0
    figures = evaluate([(load_prediction(out), read_ground_truth(scan / "gt.npz"))])
    assert 0 <= figures["ap25"] <= 1
    assert figures["objects"] > 0


def test_wrong_input_is_one_sentence_and_code_two(tmp_path, capsys):
    from training.baselines.command import run

    common = "felzenszwalb", "", FelzenszwalbConfig, felzenszwalb_instances
    assert run(*common, [str(tmp_path / "none.ply"), "-o", str(tmp_path / "out")]) == 2
    assert "none.ply" in capsys.readouterr().err
    arguments = ["x.ply", "-o", str(tmp_path), "--set", "oversegmentation.min_vertixes=3"]
    assert run(*common, arguments) == 2
    assert "min_vertices" in capsys.readouterr().err


def test_the_settings_of_the_segments_are_used():
    coarse = OversegmentationConfig(k=50.0, min_vertices=400)
    config = EuclideanClustersConfig(oversegmentation=coarse)
    assert euclidean_cluster_instances(ROOM, config)[0].count < 10
