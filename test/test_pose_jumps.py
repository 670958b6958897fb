"""Corrections of a pose: creeping is no jump, jumping is, wherever the camera is."""

import numpy as np
import pytest

from unscene_ros.pose_jumps import PoseJumpConfig, PoseJumpWatch
from unscene_ros.scene import InputError

PERIOD_NS = 200_000_000  # between two pictures
ORIGIN = np.zeros(3)


def correction(x: float = 0, y: float = 0, turn_deg: float = 0) -> np.ndarray:
    """World from odom (4, 4): turned about z, then shifted."""
    cosine, sine = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    return np.array([[cosine, -sine, 0, x], [sine, cosine, 0, y], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def jumps(corrections, camera=ORIGIN, config=None, period_ns=PERIOD_NS) -> list:
    """What each of these, one after the other, is."""
    watch = PoseJumpWatch(config or PoseJumpConfig())
    return [
        watch.update(place * period_ns, each, np.asarray(camera, float))
        for place, each in enumerate(corrections)
    ]


def test_the_first_correction_is_no_jump():
    assert jumps([correction(x=100, turn_deg=90)]) == [None]


def test_a_shift_beyond_the_threshold_is_a_jump_and_is_told_once():
    first, jump, third = jumps([correction(), correction(x=0.3, y=0.4), correction(x=0.3, y=0.4)])
    assert first is None and third is None
    assert jump.translation_m == pytest.approx(0.5)
    assert jump.rotation_deg == pytest.approx(0)


def test_a_shift_below_the_threshold_is_none():
    assert jumps([correction(), correction(x=0.19)]) == [None, None]


def test_a_turn_is_a_jump_even_where_the_camera_stays():
    _, jump = jumps([correction(turn_deg=-3), correction(turn_deg=4)])
    assert jump.rotation_deg == pytest.approx(7)
    assert jump.translation_m == pytest.approx(0)
    assert jumps([correction(), correction(turn_deg=4.9)]) == [None, None]


@pytest.mark.parametrize("turn_deg", [1e-5, 0.01, 30, 90, 179, 180])
def test_angles_small_and_large_are_exact(turn_deg):
    config = PoseJumpConfig(max_rotation_deg=0)
    _, jump = jumps([correction(), correction(turn_deg=turn_deg)], config=config)
    assert jump.rotation_deg == pytest.approx(turn_deg, rel=1e-6)


def test_a_slight_turn_about_a_distant_origin_is_a_jump():
    _, jump = jumps([correction(), correction(turn_deg=1)], camera=(100, 0, 0))
    assert jump.rotation_deg == pytest.approx(1)
    assert jump.translation_m == pytest.approx(2 * 100 * np.sin(np.radians(0.5)))
    assert np.allclose(jump.camera_before, (100, 0, 0))
    expected = 100 * np.cos(np.radians(1)), 100 * np.sin(np.radians(1)), 0
    assert np.allclose(jump.camera_after, expected)


def test_a_turn_and_a_shift_that_leave_the_camera_where_it_is_are_no_jump():
    turned = correction(turn_deg=4)
    turned[:3, 3] = np.array((50, 0, 0)) - turned[:3, :3] @ (50, 0, 0)
    assert np.linalg.norm(turned[:3, 3]) > 3
    assert jumps([correction(), turned], camera=(50, 0, 0)) == [None, None]


def test_steady_creeping_is_never_a_jump():
    creeping = [correction(x=0.03 * place, turn_deg=0.5 * place) for place in range(200)]
    assert not any(jumps(creeping))


def test_a_jump_that_is_spread_over_interpolated_poses_is_one():
    spread = [correction(x=x) for x in [0] * 20 + [*np.linspace(0, 0.3, 20)] + [0.3] * 60]
    told = [jump for jump in jumps(spread, period_ns=33_000_000) if jump]
    assert len(told) == 1
    assert 0.2 < told[0].translation_m < 0.23


def test_corrections_that_come_seldom_are_compared_all_the_same():
    assert [*map(bool, jumps([correction(), correction(x=1)], period_ns=30_000_000_000))] == [0, 1]


def test_a_picture_that_comes_late_is_passed_over():
    watch = PoseJumpWatch(PoseJumpConfig())
    assert watch.update(1_000_000_000, correction(), ORIGIN) is None
    assert watch.update(1_200_000_000, correction(x=1), ORIGIN)
    assert watch.update(1_100_000_000, correction(), ORIGIN) is None
    assert watch.update(1_300_000_000, correction(x=1), ORIGIN) is None


def test_time_that_begins_anew_is_no_jump_but_the_next_one_is():
    watch = PoseJumpWatch(PoseJumpConfig())
    assert watch.update(60_000_000_000, correction(x=5), ORIGIN) is None
    assert watch.update(0, correction(), ORIGIN) is None
    assert watch.update(200_000_000, correction(x=5), ORIGIN)


@pytest.mark.parametrize(
    "settings",
    [{"max_translation_m": -1.0}, {"max_rotation_deg": 181.0}, {"window_s": float("nan")}],
    ids=str,
)
def test_senseless_settings_are_refused(settings):
    with pytest.raises(InputError, match="pose_jumps"):
        PoseJumpConfig(**settings)
