import numpy as np
import pytest

from unscene_ros.keyframes import KeyframeConfig, Keyframes, narrowed
from unscene_ros.scene import Camera, Frame, InputError

CAMERA = Camera(8, 6, np.array([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]]))


def frame_at(x: float, yaw_deg: float = 0.0, depth_m: float = 1.0) -> Frame:
    """A frame at (x, 0, 0), turned around its vertical axis."""
    pose = np.eye(4)
    angle = np.radians(yaw_deg)
    pose[[0, 0, 2, 2], [0, 2, 0, 2]] = (
        np.cos(angle),
        np.sin(angle),
        -np.sin(angle),
        np.cos(angle),
    )
    pose[0, 3] = x
    color = np.zeros((6, 8, 3), np.uint8)
    return Frame(0, CAMERA, color, np.full((6, 8), depth_m, np.float32), pose)


def offered(frames: list[Frame], **settings: float) -> Keyframes:
    keyframes = Keyframes(KeyframeConfig(**settings))
    for frame in frames:
        keyframes.offer(frame)
    return keyframes


def positions(keyframes: Keyframes) -> list[float]:
    return [float(frame.world_from_camera[0, 3]) for frame in keyframes.frames]


def test_first_frame_is_taken_and_the_same_pose_is_not():
    keyframes = Keyframes(KeyframeConfig())
    assert keyframes.offer(frame_at(0))
    assert not keyframes.offer(frame_at(0))
    assert len(keyframes.frames) == 1


@pytest.mark.parametrize(
    ("x", "yaw_deg", "taken"),
    [(0.29, 0, False), (0.31, 0, True), (0, 19, False), (0, 21, True), (0.29, 19, False)],
)
def test_a_pose_is_new_when_it_moved_or_turned_far_enough(x, yaw_deg, taken):
    keyframes = offered([frame_at(0)])
    assert keyframes.offer(frame_at(x, yaw_deg)) is taken


def test_a_frame_without_depth_is_not_taken():
    assert not Keyframes(KeyframeConfig()).offer(frame_at(0, depth_m=0))


def test_full_set_widens_its_spacing_until_one_frame_can_leave():
    # Gaps are in units of 0.3 m: 0 and 0.4 are closest, and the later of them leaves.
    keyframes = offered([frame_at(x) for x in (0, 0.4, 1, 2, 4)], max_frames=4)
    assert positions(keyframes) == [0, 1, 2, 4]
    assert not keyframes.offer(frame_at(2.35))


def test_only_keyframe_stays():
    keyframes = offered([frame_at(x) for x in (0, 1, 2)], max_frames=1)
    assert positions(keyframes) == [0]


@pytest.mark.parametrize("max_frames", [2, 10, 24])
def test_set_stays_bounded_and_covers_a_long_walk_evenly(max_frames):
    keyframes = offered([frame_at(0.05 * step) for step in range(1000)], max_frames=max_frames)
    kept = positions(keyframes)
    assert max_frames / 2 <= len(kept) <= max_frames
    gaps = np.diff([*kept, 50])
    assert gaps.max() < 2.5 * gaps[:-1].min()


def test_choice_is_deterministic():
    random = np.random.default_rng(0)
    frames = [frame_at(x, yaw) for x, yaw in random.uniform((0, 0), (5, 180), (200, 2))]
    first, second = (positions(offered(frames, max_frames=8)) for _ in range(2))
    assert first == second


def test_wide_frames_are_kept_small_with_the_geometry_of_the_picture():
    camera = Camera(640, 480, np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]))
    depth = np.tile(np.arange(640, dtype=np.float32), (480, 1))
    frame = Frame(7, camera, np.zeros((480, 640, 3), np.uint8), depth, np.eye(4))
    small = narrowed(frame, 320)
    assert (small.camera.width, small.camera.height, small.stamp_ns) == (320, 240, 7)
    assert small.camera.intrinsics[0].tolist() == [250, 0, 160]
    assert set(np.unique(small.depth)) <= set(range(640))  # no reading is a mixture
    assert narrowed(small, 320) is small


@pytest.mark.parametrize("settings", [{"max_frames": 0}, {"min_rotation_deg": -1.0}])
def test_senseless_settings_are_refused_by_name(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        KeyframeConfig(**settings)
