"""Baselines that look at pictures: graph cuts of clusters, projected masks, and their command."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from box_world import Box, surface_of
from small_scan import BOXES, small_frames

from training.baselines.command import run_on_frames
from training.baselines.nunes import NunesConfig, cluster, cut_clusters, nunes_instances
from training.baselines.projected_masks import (
    ProjectedMasksConfig,
    projected_mask_instances,
    vertices_of_masks,
)
from training.unscene3d.frame_masks import FrameMasksConfig
from unscene_ros.fusion import FusionConfig
from unscene_ros.image_features import ImageFeaturesConfig, load_image_features
from unscene_ros.oversegmentation import OversegmentationConfig, oversegment
from unscene_ros.pipeline import build_mesh
from unscene_ros.scene import Mesh
from unscene_ros.storage import load_prediction, write_mesh

COARSE = ImageFeaturesConfig(image_width=80, border_px=2)
NUNES = NunesConfig(image_features=COARSE)
PROJECTED = ProjectedMasksConfig(
    image_features=COARSE, frame_masks=FrameMasksConfig(min_similarity=0.5)
)
AIR = Box((-0.2, -0.2, -0.2), (1.4, 0.6, 0.6), None)
BOTH = pytest.mark.parametrize(
    ("find", "config"), [(nunes_instances, NUNES), (projected_mask_instances, PROJECTED)]
)


@pytest.fixture(scope="module")
def frames():
    return small_frames()


@pytest.fixture(scope="module")
def mesh(frames):
    return build_mesh(frames, FusionConfig(voxel_size_m=0.03))


def best_overlap(mesh, segments, instances, box):
    """IoU by vertices of the best instance with what is inside a box, clear of the floor."""
    low, high = box[0] - 0.03, box[1] + 0.03
    above = mesh.vertices[:, 2] > 0.05
    inside = ((mesh.vertices >= low) & (mesh.vertices <= high)).all(axis=1) & above
    masks = instances.masks[:, segments.of_vertex] & above
    union = (masks | inside).sum(axis=1)
    return ((masks & inside).sum(axis=1) / union).max(initial=0)


def test_the_boxes_of_a_scan_are_its_clusters(mesh, frames):
    segments, instances = nunes_instances(mesh, frames, NUNES)
    for box in BOXES:
        assert best_overlap(mesh, segments, instances, box) > 0.8
    assert len(instances.masks) == 2


def test_the_boxes_of_a_scan_are_seen_in_its_pictures(mesh, frames):
    segments, instances = projected_mask_instances(mesh, frames, PROJECTED)
    for box in BOXES:  # sides that are never seen together may part
        assert best_overlap(mesh, segments, instances, box) > 0.5


@BOTH
def test_nothing_in_nothing_out(find, config, frames):
    segments, instances = find(Mesh.empty(), frames[:2], config)
    assert segments.count == 0
    assert instances.masks.shape == (0, 0)


@BOTH
def test_a_mesh_without_frames_and_frames_without_depth_are_accepted(find, config, mesh, frames):
    blind = [replace(frame, depth=np.zeros_like(frame.depth)) for frame in frames[:2]]
    for seen in ([], blind):
        segments, instances = find(mesh, seen, config)
        assert instances.masks.shape[1] == segments.count
        if find is projected_mask_instances:
            assert len(instances.masks) == 0


@BOTH
def test_the_same_frames_give_the_same_instances(find, config, mesh, frames):
    one, two = find(mesh, frames[:3], config), find(mesh, frames[:3], config)
    np.testing.assert_array_equal(one[1].masks, two[1].masks)


def touching_boxes():
    """(mesh of two boxes side by side, its segments, box of each vertex, box of each segment)."""
    mesh, number = surface_of(
        [AIR, Box((0, 0, 0), (0.4, 0.4, 0.4), (200, 30, 30)), Box((0.4, 0, 0), (0.8, 0.4, 0.4))]
    )
    box_of_vertex = number - 1
    segments = oversegment(mesh, OversegmentationConfig(k=0.03, min_vertices=10))
    share = np.bincount(segments.of_vertex, box_of_vertex, segments.count)
    box_of_segment = share / np.bincount(segments.of_vertex) > 0.5
    return mesh, segments, box_of_vertex, box_of_segment.astype(int)


def test_a_cut_keeps_what_looks_like_the_seed_of_a_cluster():
    mesh, segments, box_of_vertex, box_of_segment = touching_boxes()
    looks = np.array([[1.0, 0], [-0.8, 0.6]])[box_of_segment]
    everything = np.zeros(len(mesh.vertices), int)  # one cluster over both
    everything[box_of_vertex == 1] = np.where(mesh.vertices[box_of_vertex == 1, 0] < 0.7, 0, -1)
    free = np.ones(len(mesh.vertices), bool)
    masks = cut_clusters(mesh, segments, free, everything, looks, replace(NUNES, membership=0.5))
    np.testing.assert_array_equal(masks, [box_of_segment == 0])


def test_a_cut_takes_in_what_a_cluster_missed():
    mesh, segments, box_of_vertex, box_of_segment = touching_boxes()
    looks = np.array([[1.0, 0], [-0.8, 0.6]])[box_of_segment]
    part = np.where((box_of_vertex == 0) & (mesh.vertices[:, 2] > 0.1), 0, -1)
    free = np.ones(len(mesh.vertices), bool)
    config = replace(NUNES, membership=0.2, reach_m=0.5)
    masks = cut_clusters(mesh, segments, free, part, looks, config)
    np.testing.assert_array_equal(masks, [box_of_segment == 0])
    near = replace(config, membership=5.0)  # the cluster is trusted more than any likeness
    alone = cut_clusters(mesh, segments, free, part, looks, near)
    assert alone.sum() < (box_of_segment == 0).sum()


def test_what_is_not_free_is_in_no_cluster_and_in_no_cut():
    mesh, segments, box_of_vertex, box_of_segment = touching_boxes()
    free = box_of_vertex == 0
    clusters = cluster(mesh, free, NUNES)
    assert (clusters[~free] == -1).all()
    assert (clusters[free] >= 0).mean() > 0.9
    same = np.ones((segments.count, 2))
    masks = cut_clusters(mesh, segments, free, clusters, same, NUNES)
    assert masks.any() and not masks[:, box_of_segment == 1].any()


def test_density_clusters_are_what_lies_apart():
    mesh, box_of_vertex = surface_of(
        [AIR, Box((0, 0, 0), (0.4, 0.4, 0.4)), Box((0.8, 0, 0), (1.2, 0.4, 0.4))]
    )
    clusters = cluster(mesh, np.ones(len(mesh.vertices), bool), NUNES)
    assert set(clusters.tolist()) == {0, 1}
    for box in (1, 2):
        assert len(set(clusters[box_of_vertex == box].tolist())) == 1
    assert (cluster(mesh, np.zeros(len(mesh.vertices), bool), NUNES) == -1).all()


def test_masks_cover_the_vertices_that_their_picture_shows(mesh, frames):
    provider = load_image_features(COARSE)
    sets, frame_of_set = vertices_of_masks(mesh, frames[:3], provider, PROJECTED)
    assert set(frame_of_set.tolist()) <= {0, 1, 2} and len(sets) == len(frame_of_set) > 2
    for number, vertices in zip(frame_of_set, sets, strict=True):
        frame = frames[number]
        camera_from_world = np.linalg.inv(frame.world_from_camera)
        points = mesh.vertices[vertices] @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
        pixels = points @ frame.camera.intrinsics.T
        columns, rows = np.rint(pixels[:, :2] / pixels[:, 2:]).astype(int).T
        assert (np.abs(frame.depth[rows, columns] - points[:, 2]) < 0.08).all()


def test_an_instance_is_seen_in_enough_pictures(mesh, frames):
    once = projected_mask_instances(mesh, frames[:1], PROJECTED)[1]
    assert len(once.masks) == 0
    lenient = replace(PROJECTED, min_frames=1)
    assert len(projected_mask_instances(mesh, frames[:1], lenient)[1].masks) > 0


def test_the_command_takes_a_recording_and_refuses_a_mesh(tmp_path, capsys, mesh):
    from training.scans import rooms

    sizes = ["--set=image_width=80", "--set=image_height=60", "--set=frame_count=8"]
    assert rooms.main(["3", "-o", str(tmp_path), *sizes]) == 0
    out = tmp_path / "out"
    common = "projected_masks", "", ProjectedMasksConfig, projected_mask_instances
    few = ["--set", "fusion.voxel_size_m=0.08", "--set", "keyframes.max_frames=4"]
    assert run_on_frames(*common, [str(tmp_path / "room_00003"), "-o", str(out), *few]) == 0
    saved = load_prediction(out)
    assert saved.instances.masks.shape[1] == saved.segments.count > 0

    write_mesh(tmp_path / "mesh.ply", mesh)
    assert run_on_frames(*common, [str(tmp_path / "mesh.ply"), "-o", str(out)]) == 2
    assert "expected a recording" in capsys.readouterr().err
    wrong = [str(tmp_path / "room_00003"), "-o", str(out), "--set", "keyframes.max_frame=4"]
    assert run_on_frames(*common, wrong) == 2
    assert "max_frames" in capsys.readouterr().err
