"""The labels of scans as masks over vertices and segments, and scans whose labels are of no use."""

import numpy as np
import pytest
from box_world import Box, surface_of, walled_room
from labelled_library import write_labelled_library
from small_library import small_mesh
from small_scan import BOXES

from training.probes.labels import (
    labelled_hash,
    labelled_scans,
    object_masks,
    read_labels,
    true_scene,
)
from training.unscene3d.recipe import UnScene3DConfig
from unscene_ros.evaluation import GroundTruth
from unscene_ros.scene import InputError, Mesh


def test_each_vertex_takes_the_object_of_the_nearest_point_within_reach():
    near, far = [0.0, 0, 0.04], [0.0, 0, 0.06]
    vertices = np.array([[0, 0, 0], near, far, [1, 0, 0], [2, 0, 0], [3, 0, 0]], np.float32)
    mesh = Mesh(vertices, np.zeros((0, 3), np.int32), np.zeros((6, 3), np.uint8), vertices * 0)
    points = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0.01], [9, 9, 9]], np.float32)
    truth = GroundTruth(points, np.array([4, 7, -1, -2, 5], np.int32))
    masks = object_masks(mesh, truth)  # of 4 and 7: the mesh does not show 5
    assert masks.astype(int).tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]]


def test_masks_over_a_surface_are_its_objects():
    boxes = Box((0.4, 0.4, 0), (0.8, 0.8, 0.4)), Box((1.6, 1.2, 0), (2.4, 2.0, 0.8))
    mesh, box_of_vertex = surface_of(walled_room(*boxes))
    instance = (box_of_vertex - 2).astype(np.int32)  # the shell and the air come before the boxes
    masks = object_masks(mesh, GroundTruth(mesh.vertices, np.maximum(instance, -2)))
    assert np.array_equal(masks, [box_of_vertex == 2, box_of_vertex == 3])


def test_nothing_labelled_as_an_object_and_an_empty_mesh_give_no_masks():
    points = np.zeros((3, 3), np.float32)
    stuff = GroundTruth(points, np.full(3, -2, np.int32))
    assert object_masks(small_mesh(), stuff).shape == (0, len(small_mesh().vertices))
    thing = GroundTruth(points, np.zeros(3, np.int32))
    assert object_masks(Mesh.empty(), thing).shape == (0, 0)


def test_true_objects_are_targets_over_segments(tmp_path):
    scan = write_labelled_library(tmp_path, "a").scan("a")
    scene = true_scene(scan, UnScene3DConfig())
    assert scene.name == "a"
    assert scene.targets.shape == (2, scene.segments.count)
    for target, (low, high) in zip(scene.targets, BOXES, strict=True):
        vertices = scene.mesh.vertices[target[scene.segments.of_vertex]]
        assert len(vertices) > 100
        inside = ((vertices > low - 0.08) & (vertices < high + 0.08)).all(axis=1)
        assert inside.mean() > 0.95


def test_an_object_as_large_as_the_scene_stays_a_target(tmp_path):
    scan = write_labelled_library(tmp_path, "a").scan("a")
    truth = read_labels(scan)
    np.savez(scan.folder / "gt.npz", points=truth.points, instance=truth.instance * 0)
    assert true_scene(scan, UnScene3DConfig()).targets.mean() > 0.9


def test_scans_without_labels_are_none_and_damaged_ones_are_failures(tmp_path):
    library = write_labelled_library(tmp_path, "a", "b", "c", "d")
    (library.scan("a").folder / "gt.npz").unlink()
    (library.scan("b").folder / "gt.npz").write_bytes(b"PK")
    (library.scan("c").folder / "mesh.ply").write_bytes(b"ply")
    scans = [library.scan(name) for name in library.names()]
    usable, failures = labelled_scans(scans)
    assert [scan.name for scan in usable] == ["d"]
    assert [failure.name for failure in failures] == ["b", "c"]
    assert "gt.npz" in failures[0].message and "mesh.ply" in failures[1].message
    with pytest.raises(InputError, match=r"expected scans with gt\.npz, got none among 3.*mesh"):
        labelled_scans(scans[:3])


def test_other_labels_are_another_training(tmp_path):
    library = write_labelled_library(tmp_path, "a", "b")
    first = labelled_hash(library.scan("a"))
    assert first == labelled_hash(library.scan("b"))  # the same files
    truth = read_labels(library.scan("b"))
    np.savez(library.scan("b").folder / "gt.npz", points=truth.points, instance=truth.instance + 1)
    assert labelled_hash(library.scan("b")) != first
