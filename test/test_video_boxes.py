"""Boxes from constructed frames whose things are known; plain twins of matching and merging."""

from dataclasses import replace

import numpy as np
import pytest
from small_scan import BOXES, CAMERA, COLORS, small_frames

from training.unscene3d.frame_masks import FrameMasksConfig
from training.unscene3d.video_boxes import (
    VideoBoxesConfig,
    joined_labels,
    largest_part,
    merge_over_frames,
    mutual_matches,
    place_keys,
    points_in,
    thinned,
    video_boxes,
)
from unscene_ros.scene import Frame, InputError

CELL_PX = 8
# The cells are coarse: what lies behind the rim of a mask falls into many parts.
CONFIG = VideoBoxesConfig(frame_masks=FrameMasksConfig(min_similarity=0.5), max_parts=100)


def paint(color):
    """A provider of features: which of three colours the middle pixel of each cell is near."""
    cells = color[CELL_PX // 2 :: CELL_PX, CELL_PX // 2 :: CELL_PX].astype(int)
    distance = np.abs(cells[:, :, None] - COLORS.astype(int)).sum(axis=3)
    return np.eye(3, dtype=np.float32)[distance.argmin(axis=2)]


@pytest.fixture(scope="module")
def frames():
    return small_frames()


def without_depth(frame):
    return replace(frame, depth=np.zeros_like(frame.depth))


def blob(center, count=60, size=0.1, seed=0):
    random = np.random.default_rng(seed)
    return np.array(center) + random.uniform(-size / 2, size / 2, (count, 3))


def test_the_boxes_are_those_of_the_things_in_the_scan(frames):
    found = video_boxes(frames, paint, CONFIG)
    assert found.shape == (2, 6)
    for low, high in BOXES:
        error = np.abs(found - np.concatenate([low, high])).max(axis=1)
        assert error.min() < 0.03


def test_nothing_seen_gives_no_boxes(frames):
    def plain(color):
        return np.ones((30, 40, 3), np.float32)

    assert video_boxes([], paint, CONFIG).shape == (0, 6)
    assert video_boxes(frames, plain, CONFIG).shape == (0, 6)
    assert video_boxes([without_depth(frame) for frame in frames], paint, CONFIG).shape == (0, 6)


def test_one_frame_is_not_enough_unless_told_so(frames):
    assert video_boxes(frames[:1], paint, CONFIG).shape == (0, 6)
    lenient = replace(CONFIG, min_frames=1)
    assert video_boxes(frames[:1], paint, lenient).shape == (2, 6)


def test_frames_without_depth_or_masks_change_nothing(frames):
    with_gaps = [*frames]
    black = replace(frames[0], color=np.zeros_like(frames[0].color))
    with_gaps[3:3] = [without_depth(frames[2]), black]
    np.testing.assert_allclose(
        video_boxes(with_gaps, paint, CONFIG), video_boxes(frames, paint, CONFIG), atol=1e-9
    )


def test_frames_are_read_once_and_the_result_is_the_same_every_time(frames):
    once = video_boxes(iter(frames), paint, CONFIG)
    np.testing.assert_array_equal(once, video_boxes(frames, paint, CONFIG))


def test_readings_beyond_the_range_are_left_out(frames):
    assert len(video_boxes(frames, paint, replace(CONFIG, max_depth_m=0.5))) == 0


def test_points_are_where_depth_and_pose_put_them():
    world_from_camera = np.eye(4)
    world_from_camera[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    world_from_camera[:3, 3] = 10, 20, 30
    depth = np.zeros((120, 160), np.float32)
    depth[59, 79] = depth[59, 149] = 2.0
    depth[100, 100] = 5.0
    color = np.zeros((120, 160, 3), np.uint8)
    frame = Frame(1, CAMERA, color, depth, world_from_camera)
    right = (149 - 79.5) / 140 * 2
    middle = (79 - 79.5) / 140 * 2
    level = (59 - 59.5) / 140 * 2
    whole = points_in(frame, np.ones((3, 4), bool), 4.0)
    expected = [(10 - level, 20 + middle, 32), (10 - level, 20 + right, 32)]
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    half = np.zeros((3, 4), bool)
    half[:, :2] = True
    np.testing.assert_allclose(points_in(frame, half, 4.0), expected[:1], atol=1e-6)


def test_thinning_keeps_the_first_point_of_each_cube():
    points = np.array([(0.01, 0, 0), (0.015, 0, 0), (-0.01, 0, 0), (0.03, 0, 0)])
    np.testing.assert_array_equal(thinned(points, 0.02), points[[0, 2, 3]])
    assert thinned(np.zeros((0, 3)), 0.02).shape == (0, 3)


@pytest.mark.parametrize(("others", "kept"), [(0, True), (1, True), (3, True), (4, False)])
def test_of_few_parts_the_largest_is_the_thing_and_many_are_none(others, kept):
    large = blob((0, 0, 0), count=90)
    small = [blob((number, 0, 0), count=40, seed=number) for number in range(1, others + 1)]
    found = largest_part(np.concatenate([large, *small]), VideoBoxesConfig())
    np.testing.assert_array_equal(found, large if kept else large[:0])


def test_scattered_points_are_no_part():
    far_apart = np.arange(30)[:, None] * np.ones((1, 3))
    assert len(largest_part(far_apart, VideoBoxesConfig())) == 0
    assert len(largest_part(far_apart[:0], VideoBoxesConfig())) == 0


def test_mutual_matches_are_those_of_the_plain_twin():
    random = np.random.default_rng(0)
    first, second = random.standard_normal((40, 5)), random.standard_normal((55, 5))
    expected = []
    for a in range(len(first)):
        b = max(range(len(second)), key=lambda b: first[a] @ second[b])
        if a == max(range(len(first)), key=lambda a: first[a] @ second[b]):
            expected.append((a, b))
    assert 5 < len(expected) < 40
    np.testing.assert_array_equal(mutual_matches(first, second), expected)
    assert mutual_matches(first[:0], second).shape == (0, 2)
    assert mutual_matches(first, second[:0]).shape == (0, 2)


def test_links_join_labels_along_chains():
    labels = joined_labels(5, [(0, 2), (2, 4)])
    assert labels[0] == labels[2] == labels[4]
    assert len({labels[0], labels[1], labels[3]}) == 3
    assert len(set(joined_labels(3, []).tolist())) == 3
    assert joined_labels(0, []).shape == (0,)


def test_places_tell_points_apart_anywhere_in_the_world():
    corners = 0.05 * np.array([(0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, -1, 0), (-7, 9, -2)]) + 0.01
    keys = place_keys(corners, 0.05)
    assert len(keys) == 5
    np.testing.assert_array_equal(place_keys(corners + 0.02, 0.05), keys)
    np.testing.assert_array_equal(keys, np.sort(keys))


def plain_merge(sets, frame_of_set, label_of_set, min_shared):
    """Merging with Python sets, frame by frame and pair by pair."""
    labels = list(label_of_set)
    nodes = [[i for i in range(len(sets)) if frame_of_set[i] == f] for f in range(16)]
    while len(nodes) > 1:
        joined = []
        for left, right in zip(nodes[::2], nodes[1::2], strict=True):
            places = [{}, {}]
            for side, members in zip(places, (left, right), strict=True):
                for member in members:
                    side.setdefault(labels[member], set()).update(sets[member].tolist())
            pairs = [
                (a, b)
                for a in places[0]
                for b in places[1]
                if len(places[0][a] & places[1][b])
                >= min_shared * min(len(places[0][a]), len(places[1][b]))
            ]
            joined.append((left + right, pairs))
        for _, pairs in joined:
            groups = {label: {label} for label in labels}
            for a, b in pairs:
                union = groups[a] | groups[b]
                for label in union:
                    groups[label] = union
            labels = [min(groups[label]) for label in labels]
        nodes = [members for members, _ in joined]
    return np.array(labels)


@pytest.mark.parametrize("seed", range(6))
def test_merging_agrees_with_the_plain_twin(seed):
    random = np.random.default_rng(seed)
    starts = random.integers(0, 120, 30)
    sets = [start + np.arange(random.integers(4, 14)) for start in starts]
    frame_of_set = np.sort(random.integers(0, 16, 30))
    got = merge_over_frames(sets, frame_of_set, np.arange(30), 0.5)
    expected = plain_merge(sets, frame_of_set, np.arange(30), 0.5)
    np.testing.assert_array_equal(got[:, None] == got, expected[:, None] == expected)
    assert 1 < len(np.unique(got)) < 30


def test_masks_of_one_frame_stay_apart_and_known_labels_together():
    places = [np.arange(10), np.arange(10), np.arange(100, 110)]
    alone = merge_over_frames(places, np.array([0, 0, 1]), np.arange(3), 0.5)
    assert len(np.unique(alone)) == 3
    linked = merge_over_frames(places, np.array([0, 0, 1]), np.array([0, 1, 0]), 0.5)
    assert linked[0] == linked[2] != linked[1]


def test_what_is_shared_is_measured_by_the_smaller_thing():
    large, small = np.arange(100), np.arange(95, 105)
    frames = np.array([0, 1])
    joined = merge_over_frames([large, small], frames, np.arange(2), 0.5)
    assert joined[0] == joined[1]
    apart = merge_over_frames([large, small + 1], frames, np.arange(2), 0.5)
    assert apart[0] != apart[1]


def test_merging_nothing():
    nothing = np.zeros(0, int)
    assert merge_over_frames([], nothing, nothing, 0.5).shape == (0,)
    empty = merge_over_frames([nothing, nothing], np.array([0, 1]), np.arange(2), 0.5)
    np.testing.assert_array_equal(empty, [0, 1])


def test_settings_without_meaning_are_refused():
    with pytest.raises(InputError, match="spacing_m"):
        VideoBoxesConfig(spacing_m=0.0)
    with pytest.raises(InputError, match="window_frames"):
        VideoBoxesConfig(window_frames=0)
