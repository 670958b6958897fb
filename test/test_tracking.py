"""Ids over a sequence of maps made by hand: a row of unit patches on a line."""

import numpy as np

from unscene_ros.scene import Instances, Mesh, Segments
from unscene_ros.tracking import InstanceTracker

PATCH = 40  # vertices of one patch


def row_of_patches(positions):
    """A mesh of square patches at these x positions in metres; one segment each."""
    side = np.linspace(0, 0.9, 8)
    x, y = np.meshgrid(side, side[:5])
    patch = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
    vertices = [patch + np.array([position, 0, 0]) for position in positions]
    vertices = np.concatenate([np.zeros((0, 3)), *vertices]).astype(np.float32)
    count = len(vertices)
    mesh = Mesh(
        vertices,
        np.zeros((0, 3), np.int32),
        np.zeros((count, 3), np.uint8),
        np.zeros((count, 3), np.float32),
    )
    segment_of_vertex = np.repeat(np.arange(len(positions)), PATCH).astype(np.int32)
    return mesh, Segments(segment_of_vertex, np.zeros((0, 2), np.int32), len(positions))


def instances_of(segment_sets, count):
    masks = np.zeros((len(segment_sets), count), bool)
    for mask, members in zip(masks, segment_sets, strict=True):
        mask[list(members)] = True
    scores = np.linspace(1, 0.5, len(masks)).astype(np.float32)
    return Instances(masks, scores, np.full(len(masks), -1, np.int32))


def update(tracker, positions, segment_sets):
    mesh, segments = row_of_patches(positions)
    return list(tracker.update(mesh, segments, instances_of(segment_sets, segments.count)))


def test_ids_start_at_one_and_stay_when_nothing_changes():
    tracker = InstanceTracker()
    assert update(tracker, [0, 2, 4], [{0}, {1}, {2}]) == [1, 2, 3]
    assert update(tracker, [0, 2, 4], [{0}, {1}, {2}]) == [1, 2, 3]


def test_order_of_the_instances_does_not_matter():
    tracker = InstanceTracker()
    update(tracker, [0, 2, 4], [{0}, {1}, {2}])
    assert update(tracker, [0, 2, 4], [{2}, {0}, {1}]) == [3, 1, 2]


def test_a_new_object_gets_a_new_id():
    tracker = InstanceTracker()
    update(tracker, [0, 2], [{0}, {1}])
    assert update(tracker, [0, 2, 4], [{0}, {1}, {2}]) == [1, 2, 3]


def test_an_object_that_grows_into_unseen_surface_keeps_its_id():
    tracker = InstanceTracker()
    update(tracker, [0], [{0}])
    assert update(tracker, [0, 1, 2, 3], [{0, 1, 2, 3}]) == [1]


def test_an_object_missed_once_gets_its_id_back():
    tracker = InstanceTracker()
    update(tracker, [0, 2], [{0}, {1}])
    assert update(tracker, [0, 2], [{0}]) == [1]
    assert update(tracker, [0, 2], [{0}, {1}]) == [1, 2]


def test_split_keeps_the_id_with_the_larger_part():
    tracker = InstanceTracker()
    update(tracker, [0, 1, 2], [{0, 1, 2}])
    assert update(tracker, [0, 1, 2], [{0}, {1, 2}]) == [2, 1]


def test_merge_takes_the_larger_ones_id_and_a_later_split_restores_both():
    tracker = InstanceTracker()
    update(tracker, [0, 1, 2], [{0}, {1, 2}])
    assert update(tracker, [0, 1, 2], [{0, 1, 2}]) == [2]
    assert update(tracker, [0, 1, 2], [{0}, {1, 2}]) == [1, 2]


def test_an_object_whose_surface_vanished_is_forgotten_and_its_id_not_reused():
    tracker = InstanceTracker()
    update(tracker, [0, 2], [{0}, {1}])
    assert update(tracker, [0], [{0}]) == [1]
    assert update(tracker, [0, 2], [{0}, {1}]) == [1, 3]


def test_nothing_seen_and_nothing_found():
    tracker = InstanceTracker()
    assert update(tracker, [], []) == []
    assert update(tracker, [0], []) == []
    assert update(tracker, [0], [{0}]) == [1]
