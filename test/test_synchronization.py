"""Colour, depth and poses that arrive out of step."""

import numpy as np
import pytest

from unscene_ros.registration import Calibration
from unscene_ros.scene import Camera, InputError
from unscene_ros.synchronization import (
    Drops,
    FrameAssembler,
    StampedPicture,
    SynchronizationConfig,
)
from unscene_ros.transforms import TransformTree, matrix_from_pose

MS = 1_000_000
CALIBRATION = Calibration.pinhole(Camera(4, 3, np.array([[4.0, 0, 2], [0, 4, 1.5], [0, 0, 1]])))


def color_at(ms, value=0, frame_id="camera"):
    picture = np.full((3, 4, 3), value, np.uint8)
    return StampedPicture(ms * MS, frame_id, CALIBRATION, lambda: picture)


def depth_at(ms, frame_id="camera"):
    return StampedPicture(ms * MS, frame_id, CALIBRATION, lambda: np.full((3, 4), 2.0, np.float32))


def still(camera_frame, stamp_ns):
    return np.eye(4)


def assembler_with(poses=still, tree=None, **settings):
    tree = tree or TransformTree()
    drops = Drops()
    options = {key: settings.pop(key) for key in ("with_color", "max_wait_s") if key in settings}
    config = SynchronizationConfig(**settings)
    return FrameAssembler(poses, tree.lookup, drops, config, **options), drops


def stamps_ms(frames):
    return [frame.stamp_ns // MS for frame in frames]


def test_a_pair_with_a_pose_is_a_frame():
    assembler, drops = assembler_with()
    assembler.add_color(color_at(100, value=7))
    assembler.add_depth(depth_at(100))
    (frame,) = assembler.frames()
    assert frame.stamp_ns == 100 * MS
    assert (frame.color == 7).all()
    assert (frame.depth == 2).all()
    assert list(assembler.frames(finished=True)) == []
    assert drops.counts == {}


def test_nothing_gives_nothing():
    assembler, drops = assembler_with()
    assert list(assembler.frames(finished=True)) == []
    assert drops.counts == {}


def test_depth_waits_for_color_that_may_still_come():
    assembler, drops = assembler_with()
    assembler.add_color(color_at(90, value=1))
    assembler.add_depth(depth_at(100))
    assert list(assembler.frames()) == []
    assembler.add_color(color_at(103, value=2))
    (frame,) = assembler.frames()
    assert (frame.color == 2).all()
    assert drops.counts == {}


def test_takes_the_nearest_color_and_each_only_once():
    assembler, drops = assembler_with(max_color_gap_s=0.030)
    for ms, value in ((80, 1), (95, 2), (120, 3)):
        assembler.add_color(color_at(ms, value))
    for ms in (100, 101, 102):
        assembler.add_depth(depth_at(ms))
    frames = list(assembler.frames(finished=True))
    assert [int(frame.color[0, 0, 0]) for frame in frames] == [2, 3]
    assert drops.counts == {"no colour partner": 1}


def test_color_too_far_away_is_no_partner():
    assembler, drops = assembler_with(max_color_gap_s=0.010)
    assembler.add_color(color_at(100))
    assembler.add_depth(depth_at(111))
    assert list(assembler.frames(finished=True)) == []
    assert drops.counts == {"no colour partner": 1}
    explanation = drops.explanations["no colour partner"]
    assert "11.0 ms away" in explanation
    assert "10.0 ms" in explanation


def test_waiting_for_color_is_bounded():
    assembler, drops = assembler_with(max_waiting=5)
    for ms in range(0, 1000, 100):
        assembler.add_depth(depth_at(ms))
        assert list(assembler.frames()) == []
    assert drops.counts == {"no colour partner": 5}


def test_frames_wait_for_a_late_transform():
    tree = TransformTree()
    poses = lambda camera, stamp: tree.lookup("map", camera, stamp)  # noqa: E731
    assembler, drops = assembler_with(poses, tree)
    tree.add("map", "camera", 0, np.eye(4))
    for ms in (100, 200):
        assembler.add_color(color_at(ms))
        assembler.add_depth(depth_at(ms))
    assert list(assembler.frames()) == []
    tree.add("map", "camera", 150 * MS, matrix_from_pose((3, 0, 0), (0, 0, 0, 1)))
    (frame,) = assembler.frames()
    assert frame.world_from_camera[0, 3] == pytest.approx(2.0)
    tree.add("map", "camera", 250 * MS, np.eye(4))
    assert stamps_ms(assembler.frames()) == [200]
    assert drops.counts == {}


def test_waiting_for_a_transform_is_bounded_and_explained():
    tree = TransformTree()
    poses = lambda camera, stamp: tree.lookup("map", camera, stamp)  # noqa: E731
    assembler, drops = assembler_with(poses, tree, max_waiting=3)
    tree.add("map", "camera", 0, np.eye(4))
    for ms in (100, 200, 300, 400, 500):
        assembler.add_color(color_at(ms))
        assembler.add_depth(depth_at(ms))
        assert list(assembler.frames()) == []
    assert drops.counts == {"no transform": 2}
    assert "100.0 ms after the newest sample" in drops.explanations["no transform"]
    assert list(assembler.frames(finished=True)) == []
    assert drops.counts == {"no transform": 5}


def test_colour_without_depth_does_not_pile_up():
    assembler, drops = assembler_with(max_wait_s=0.2)
    for ms in range(100, 5000, 20):
        assembler.add_color(color_at(ms))
    assert len(assembler._colors) <= 1 + (200 + 30) / 20
    assembler.add_depth(depth_at(4800))  # as late as it may be
    assert stamps_ms(assembler.frames()) == [4800]
    assert drops.counts == {}


def test_waiting_ends_when_later_pictures_are_far_ahead():
    tree = TransformTree()
    poses = lambda camera, stamp: tree.lookup("map", camera, stamp)  # noqa: E731
    assembler, drops = assembler_with(poses, tree, max_wait_s=0.2)
    for ms in (100, 200, 300):
        assembler.add_color(color_at(ms))
        assembler.add_depth(depth_at(ms))
        assert list(assembler.frames()) == []
    assert drops.counts == {}
    assembler.add_depth(depth_at(350))  # has no colour yet
    assert list(assembler.frames()) == []
    assert drops.counts == {"no transform": 1}
    assembler.add_depth(depth_at(600))
    assert list(assembler.frames()) == []
    assert drops.counts == {"no transform": 3, "no colour partner": 1}


def test_a_frame_that_can_never_get_its_transform_does_not_hold_up_others():
    tree = TransformTree()
    poses = lambda camera, stamp: tree.lookup("map", camera, stamp)  # noqa: E731
    assembler, drops = assembler_with(poses, tree)
    tree.add("map", "camera", 200 * MS, np.eye(4))
    for ms in (100, 200):
        assembler.add_color(color_at(ms))
        assembler.add_depth(depth_at(ms))
    assert stamps_ms(assembler.frames()) == [200]
    assert drops.counts == {"no transform": 1}


def test_a_pose_that_is_not_finite_has_its_own_reason():
    tree = TransformTree()
    tree.add("map", "camera", 0, np.full((4, 4), np.nan))
    poses = lambda camera, stamp: tree.lookup("map", camera, stamp)  # noqa: E731
    assembler, drops = assembler_with(poses, tree)
    assembler.add_color(color_at(0))
    assembler.add_depth(depth_at(0))
    assert list(assembler.frames()) == []
    assert drops.counts == {"pose not finite": 1}


def test_a_broken_picture_costs_one_frame():
    def broken():
        raise InputError("image: broken")

    assembler, drops = assembler_with()
    for ms in (100, 200):
        assembler.add_color(color_at(ms))
    assembler.add_depth(StampedPicture(100 * MS, "camera", CALIBRATION, broken))
    assembler.add_depth(depth_at(200))
    assert stamps_ms(assembler.frames()) == [200]
    assert drops.counts == {"undecodable": 1}
    assert drops.explanations == {"undecodable": "image: broken"}


def test_only_pictures_that_become_frames_are_decoded():
    decoded = []

    def color(ms):
        def decode():
            decoded.append(ms)
            return np.zeros((3, 4, 3), np.uint8)

        return StampedPicture(ms * MS, "camera", CALIBRATION, decode)

    assembler, _ = assembler_with()
    for ms in (0, 10, 20, 30, 40):
        assembler.add_color(color(ms))
    assembler.add_depth(depth_at(31))
    assert len(list(assembler.frames())) == 1
    assert decoded == [30]


def test_without_color_frames_are_grey():
    assembler, drops = assembler_with(with_color=False)
    assembler.add_depth(depth_at(100))
    (frame,) = assembler.frames()
    assert np.unique(frame.color).tolist() == [128]
    assert drops.counts == {}


def test_the_color_camera_is_placed_by_its_transform():
    tree = TransformTree()
    tree.add("depth", "color", 0, matrix_from_pose((0.5, 0, 0), (0, 0, 0, 1)), static=True)
    assembler, drops = assembler_with(tree=tree)
    picture = np.arange(4, dtype=np.uint8)[None, :, None].repeat(3, 0).repeat(3, 2)
    assembler.add_color(StampedPicture(0, "color", CALIBRATION, lambda: picture))
    assembler.add_depth(depth_at(0, "depth"))
    (frame,) = assembler.frames()
    # 4 px focal length, 0.5 m to the right, 2 m away: one pixel to the left.
    np.testing.assert_array_equal(frame.color[0, 1:, 0], [0, 1, 2])
    assert drops.counts == {}


def test_a_color_camera_without_transform_is_explained():
    assembler, drops = assembler_with()
    assembler.add_color(color_at(0, frame_id="color"))
    assembler.add_depth(depth_at(0, frame_id="depth"))
    assert list(assembler.frames(finished=True)) == []
    assert drops.counts == {"no transform": 1}
    assert "'depth' to 'color'" in drops.explanations["no transform"]


def test_time_set_back_starts_over():
    assembler, drops = assembler_with()
    for ms in (9000, 9100):
        assembler.add_depth(depth_at(ms))
    assembler.add_color(color_at(10, value=5))
    assembler.add_depth(depth_at(10))
    (frame,) = assembler.frames()
    assert frame.stamp_ns == 10 * MS
    assert (frame.color == 5).all()
    assert drops.counts == {"time set back": 2}
