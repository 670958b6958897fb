"""Ids over a sequence of maps made by hand: a row of unit patches on a line."""

import numpy as np
import pytest

from unscene_ros.scene import InputError, Instances, Mesh, Segments
from unscene_ros.tracking import InstanceTracker, TrackingConfig

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


def test_overlaps_that_are_too_small_do_not_decide_who_keeps_an_id():
    """The large part shares 0.6 with track 1, a little with track 2; the small one 0.4 with 1."""
    tracker = InstanceTracker(TrackingConfig(min_overlap=0.3))
    places = [2 * place for place in range(13)]
    assert update(tracker, places, [set(range(10))]) == [1]
    assert update(tracker, places, [{0, 1, 10, 11, 12}]) == [2]
    assert update(tracker, places, [{0, 1, 2, 3, 4, 5}, {6, 7, 8, 9}]) == [1, 3]


def test_no_overlap_gives_no_id_whatever_the_setting():
    tracker = InstanceTracker(TrackingConfig(min_overlap=0.0))
    assert update(tracker, [0, 2], [{0}]) == [1]
    assert update(tracker, [0, 2], [{1}]) == [2]


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


def test_tracks_that_vanish_are_told_once():
    tracker = InstanceTracker()
    update(tracker, [0, 2, 4], [{0}, {1}, {2}])
    assert tracker.vanished == []
    update(tracker, [2], [{0}])
    assert tracker.vanished == [1, 3]
    update(tracker, [2], [{0}])
    assert tracker.vanished == []


def test_an_object_that_is_not_found_has_not_vanished():
    tracker = InstanceTracker()
    update(tracker, [0, 2], [{0}, {1}])
    update(tracker, [0, 2], [{1}])
    assert tracker.vanished == []


def test_ids_outlive_a_restart(tmp_path):
    tracker = InstanceTracker(map_id="the house")
    update(tracker, [0, 2, 4, 6], [{0}, {1}, {2}, {3}])
    update(tracker, [0, 2, 6], [{0}, {2}])  # 3 has vanished, 2 is missed
    tracker.save(tmp_path / "tracks.npz")
    loaded = InstanceTracker.load(tmp_path / "tracks.npz")
    assert loaded.map_id == "the house"
    assert loaded.vanished == []
    for each in (tracker, loaded):
        assert update(each, [0, 2, 4], [{2}, {1}, {0}]) == [5, 2, 1]
        assert each.vanished == [4]


def test_a_tracker_without_tracks_can_be_saved(tmp_path):
    InstanceTracker().save(tmp_path / "tracks.npz")
    assert update(InstanceTracker.load(tmp_path / "tracks.npz"), [0], [{0}]) == [1]


def test_tracks_in_cells_of_another_size_are_refused(tmp_path):
    InstanceTracker().save(tmp_path / "tracks.npz")
    with pytest.raises(InputError, match=r"expected cells of 0\.1 m, got 0\.06 m: set tracking"):
        InstanceTracker.load(tmp_path / "tracks.npz", TrackingConfig(cell_m=0.1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"track_of_cell": [2, 1, 2]}, "cells out of order"),
        ({"cells": [5, 5, 6]}, "cells out of order"),
        ({"map_cells": [2, 1]}, "cells out of order"),
        ({"map_cells": [1, 1]}, "cells out of order"),
        ({"track_of_cell": [0, 1, 2]}, "ids out of range"),
        ({"track_of_cell": [1, 1, 3]}, "ids out of range"),
        ({"next_id": 1 << 31}, "ids out of range"),
        ({"cells": [5, 6]}, "cells: expected"),
    ],
    ids=str,
)
def test_tracks_that_make_no_sense_are_refused(tmp_path, changes, said):
    path = tmp_path / "tracks.npz"
    arrays = {
        "map_id": np.zeros(0, np.uint8),
        "cell_m": 0.06,
        "next_id": 3,
        "track_of_cell": [1, 1, 2],
        "cells": [4, 5, 5],
        "map_cells": [1, 2],
    }
    np.savez(path, **arrays)
    InstanceTracker.load(path)
    np.savez(path, **arrays | changes)
    with pytest.raises(InputError, match=rf"tracks\.npz: .*{said}"):
        InstanceTracker.load(path)
