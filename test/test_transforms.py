"""Interpolated poses and the tree of frames, against hand-computed values and scipy's Slerp."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from unscene_ros.scene import InputError, check_pose
from unscene_ros.transforms import (
    PoseTrack,
    TransformError,
    TransformTree,
    interpolate_pose,
    inverse_pose,
    matrix_from_pose,
)

SECOND = 1_000_000_000


def shift(x, y=0.0, z=0.0):
    return matrix_from_pose((x, y, z), (0, 0, 0, 1))


def turn_z(degrees, x=0.0):
    half = np.deg2rad(degrees) / 2
    return matrix_from_pose((x, 0, 0), (0, 0, np.sin(half), np.cos(half)))


def random_pose(rng):
    return matrix_from_pose(rng.normal(size=3), rng.normal(size=4))


def test_matrix_of_a_quarter_turn_about_z_maps_x_to_y():
    pose = turn_z(90, x=5.0)
    np.testing.assert_allclose(pose @ (1, 0, 0, 1), (5, 1, 0, 1), atol=1e-12)


def test_matrix_agrees_with_scipy_for_unnormalised_quaternions():
    rng = np.random.default_rng(0)
    for _ in range(20):
        quaternion = rng.normal(size=4) * 7
        pose = matrix_from_pose((1, 2, 3), quaternion)
        np.testing.assert_allclose(pose[:3, :3], Rotation.from_quat(quaternion).as_matrix())
        check_pose("pose", pose)


def test_quaternion_of_length_zero_gives_no_valid_pose():
    assert np.isnan(matrix_from_pose((0, 0, 0), (0, 0, 0, 0))[:3, :3]).any()


def test_halfway_is_half_the_turn_and_the_mean_position():
    middle = interpolate_pose(turn_z(0, x=1), turn_z(90, x=3), 0.5)
    np.testing.assert_allclose(middle, turn_z(45, x=2), atol=1e-12)


def test_rotation_takes_the_short_way_round():
    middle = interpolate_pose(turn_z(170), turn_z(-170), 0.5)
    np.testing.assert_allclose(middle, turn_z(180), atol=1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_interpolation_agrees_with_scipy_slerp(seed, fraction):
    rng = np.random.default_rng(seed)
    first, second = random_pose(rng), random_pose(rng)
    twin = Slerp([0, 1], Rotation.from_matrix([first[:3, :3], second[:3, :3]]))(fraction)
    pose = interpolate_pose(first, second, fraction)
    np.testing.assert_allclose(pose[:3, :3], twin.as_matrix(), atol=1e-6)
    np.testing.assert_allclose(
        pose[:3, 3], (1 - fraction) * first[:3, 3] + fraction * second[:3, 3]
    )


def test_track_interpolates_between_the_neighbours_of_the_instant():
    track = PoseTrack()
    for second in range(4):
        track.add(second * SECOND, shift(second * 10.0))
    assert track.lookup(int(2.25 * SECOND))[0, 3] == pytest.approx(22.5)
    assert track.lookup(3 * SECOND)[0, 3] == 30.0


def test_track_accepts_samples_that_overtake_each_other():
    track = PoseTrack()
    for tenth in (0, 2, 1, 3):
        track.add(tenth * SECOND // 10, shift(tenth))
    assert track.lookup(SECOND // 10)[0, 3] == 1.0
    assert len(track) == 4


def test_track_takes_the_later_word_on_a_stamp():
    track = PoseTrack()
    track.add(5, shift(1))
    track.add(5, shift(2))
    assert track.lookup(5)[0, 3] == 2.0
    assert len(track) == 1


def test_track_keeps_only_its_history():
    track = PoseTrack(history_s=2.0)
    for second in range(100):
        track.add(second * SECOND, shift(second))
    assert len(track) == 3
    with pytest.raises(TransformError) as caught:
        track.lookup(90 * SECOND)
    assert caught.value.reason == "too old"
    assert caught.value.gap_ms == pytest.approx(7000)
    assert not caught.value.may_resolve


def test_track_starts_over_when_time_is_set_back():
    track = PoseTrack()
    for second in range(5):
        track.add(second * SECOND, shift(second))
    track.add(SECOND, shift(100))
    assert len(track) == 1
    assert track.lookup(SECOND)[0, 3] == 100.0


@pytest.mark.parametrize(
    ("moved", "max_gap_s", "found"),
    [
        (shift(0.5), 2.0, False),
        (turn_z(10), 2.0, False),
        (shift(0.04), 2.0, True),  # it stood still, or nearly
        (shift(0.5), 3.0, True),
    ],
)
def test_in_a_long_gap_only_what_stood_still_has_a_pose(moved, max_gap_s, found):
    track = PoseTrack(max_gap_s=max_gap_s)
    for second, pose in ((0, np.eye(4)), (1, np.eye(4)), (4, moved), (5, moved)):
        track.add(second * SECOND, pose)
    for second in (0.5, 1, 4, 4.5):  # beside the gap
        track.lookup(int(second * SECOND))
    if found:
        np.testing.assert_allclose(
            track.lookup(int(2.5 * SECOND)), interpolate_pose(np.eye(4), moved, 0.5)
        )
        return
    with pytest.raises(
        TransformError, match=r"moved between two samples that are 3\.0 s apart"
    ) as e:
        track.lookup(2 * SECOND)
    assert (e.value.reason, e.value.gap_ms) == ("gap", 1000)
    assert not e.value.may_resolve


def test_track_without_samples_says_so():
    with pytest.raises(TransformError) as caught:
        PoseTrack().lookup(0)
    assert caught.value.reason == "no data"
    assert caught.value.may_resolve


def test_chain_goes_over_the_common_ancestor():
    rng = np.random.default_rng(1)
    world_from_robot, robot_from_left, robot_from_right = (random_pose(rng) for _ in range(3))
    tree = TransformTree()
    tree.add("world", "robot", 7, world_from_robot)
    tree.add("robot", "left", 0, robot_from_left, static=True)
    tree.add("robot", "right", 0, robot_from_right, static=True)
    np.testing.assert_allclose(tree.lookup("world", "left", 7), world_from_robot @ robot_from_left)
    # Between the two eyes the robot's own motion does not matter, whatever the instant.
    expected = np.linalg.inv(robot_from_left) @ robot_from_right
    np.testing.assert_allclose(tree.lookup("left", "right", 99 * SECOND), expected, atol=1e-12)
    back = tree.lookup("right", "world", 7)
    np.testing.assert_allclose(back @ world_from_robot @ robot_from_right, np.eye(4), atol=1e-12)


def test_each_moving_edge_is_interpolated_at_the_instant():
    tree = TransformTree()
    tree.add("map", "odom", 0, shift(0))
    tree.add("map", "odom", SECOND, shift(1))
    tree.add("odom", "base", 0, turn_z(0))
    tree.add("odom", "base", SECOND, turn_z(90))
    expected = shift(0.5) @ turn_z(45)
    np.testing.assert_allclose(tree.lookup("map", "base", SECOND // 2), expected, atol=1e-12)


def test_a_frame_in_itself_is_the_identity_even_if_unknown():
    np.testing.assert_array_equal(TransformTree().lookup("a", "/a", 3), np.eye(4))


def test_slashes_of_old_drivers_are_ignored():
    tree = TransformTree()
    tree.add("/map", "/base", 0, shift(3), static=True)
    assert tree.lookup("map", "base", 0)[0, 3] == 3.0


def test_refuses_the_future_with_frames_gap_and_reason():
    tree = TransformTree()
    tree.add("map", "base", SECOND, shift(0))
    tree.add("base", "camera", 0, shift(1), static=True)
    with pytest.raises(TransformError) as caught:
        tree.lookup("map", "camera", SECOND + 35_000_000)
    assert caught.value.reason == "in the future"
    assert caught.value.gap_ms == pytest.approx(35.0)
    for part in ("'camera'", "'map'", "'base'", "35.0 ms", "in the future"):
        assert part in str(caught.value)


def test_refuses_the_past_before_the_first_sample():
    tree = TransformTree()
    tree.add("map", "base", SECOND, shift(0))
    with pytest.raises(TransformError, match=r"500\.0 ms before the oldest sample \(too old\)"):
        tree.lookup("map", "base", SECOND // 2)


def test_stamps_rounded_by_floating_point_seconds_are_no_extrapolation():
    tree = TransformTree()
    tree.add("map", "base", SECOND, shift(4))
    assert tree.lookup("map", "base", SECOND + 900)[0, 3] == 4.0
    assert tree.lookup("map", "base", SECOND - 900)[0, 3] == 4.0


def test_names_the_unknown_frame_and_the_known_ones():
    tree = TransformTree()
    tree.add("map", "base", 0, shift(0), static=True)
    with pytest.raises(TransformError, match="'camera' is unknown, known are: base, map") as caught:
        tree.lookup("map", "camera", 0)
    assert caught.value.reason == "unknown frame"
    assert caught.value.may_resolve


def test_names_the_roots_of_trees_that_are_not_connected():
    tree = TransformTree()
    tree.add("map", "base", 0, shift(0), static=True)
    tree.add("world", "camera", 0, shift(0), static=True)
    with pytest.raises(TransformError, match="end at 'world' and 'map'") as caught:
        tree.lookup("base", "camera", 0)
    assert caught.value.reason == "not connected"


def test_a_pose_that_is_not_finite_is_refused_where_it_holds():
    tree = TransformTree()
    tree.add("map", "base", 0, shift(0))
    tree.add("map", "base", SECOND // 2, shift(np.nan))
    tree.add("map", "base", SECOND, shift(1))
    tree.add("map", "base", SECOND + SECOND // 2, shift(2))
    with pytest.raises(TransformError) as caught:
        tree.lookup("map", "base", SECOND // 4)
    assert caught.value.reason == "not finite"
    assert tree.lookup("map", "base", SECOND + SECOND // 4)[0, 3] == 1.5


def test_a_new_parent_replaces_the_old_one():
    tree = TransformTree()
    tree.add("map", "base", 0, shift(1))
    tree.add("odom", "base", 0, shift(2))
    assert tree.ancestors("base") == ["base", "odom"]
    assert tree.lookup("odom", "base", 0)[0, 3] == 2.0


def test_a_loop_of_frames_ends():
    tree = TransformTree()
    tree.add("a", "b", 0, shift(1), static=True)
    tree.add("b", "a", 0, shift(1), static=True)
    assert tree.ancestors("a") == ["a", "b"]


def test_knows_what_moves():
    tree = TransformTree()
    tree.add("map", "base", 0, shift(0))
    tree.add("base", "camera", 0, shift(0), static=True)
    tree.add("wall", "clock", 0, shift(0), static=True)
    assert tree.moves("camera")
    assert not tree.moves("clock")
    assert not tree.moves("elsewhere")
    assert tree.frames == {"map", "base", "camera", "wall", "clock"}


def test_tells_the_newest_stamp_of_what_moves():
    tree = TransformTree()
    tree.add("base", "camera", 99, shift(0), static=True)
    assert tree.newest_ns is None
    tree.add("map", "base", 7, shift(0))
    tree.add("odom", "wheel", 5, shift(0))
    assert tree.newest_ns == 7
    assert PoseTrack().newest_ns is None


@pytest.mark.parametrize(("parent", "child"), [("a", "a"), ("", "a"), ("a", "/")])
def test_refuses_a_transform_without_two_frames(parent, child):
    with pytest.raises(InputError, match="expected two frames"):
        TransformTree().add(parent, child, 0, shift(0))


def test_inverse_undoes_a_pose():
    pose = random_pose(np.random.default_rng(2))
    np.testing.assert_allclose(inverse_pose(pose) @ pose, np.eye(4), atol=1e-12)
