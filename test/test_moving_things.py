"""What was taken away or walked through leaves the map; what stays does not suffer from it."""

import dataclasses

import numpy as np
import open3d as o3d
import pytest
from rendered_room import ROOM_M, fused, looking, room, seen

from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.scene import Frame

CONFIG = FusionConfig()  # what is shown for the defaults holds for a robot
AS_LONG_AS_ANY = dataclasses.replace(CONFIG, max_weight_seen_free=CONFIG.max_weight)
EYE = (-1.6, 0.0, 0.2)
AHEAD = looking(EYE, (1.0, 0.0, -0.6))
HALL_M = np.array((14.0, 3.1, 2.7))
RANDOM = np.random.default_rng(0)

# Boxes: corner and size.
TABLE = ((0.3, -0.8, -1.35), (0.9, 1.6, 0.65))
ON_TABLE = ((0.6, -0.3, -0.7), (0.4, 0.4, 0.3))
CUP_ON_TABLE = ((0.6, 0.3, -0.7), (0.12, 0.12, 0.14))
ON_FLOOR = ((-0.7, -1.1, -1.35), (0.5, 0.5, 0.9))
IN_THE_AIR = ((0.5, -0.25, 0.2), (0.5, 0.5, 0.5))
AT_THE_WALL = ((1.75, 0.7, -0.5), (0.3, 0.7, 1.0))


def noisy(frame: Frame, share: float = 0.003) -> Frame:
    """The frame with an error that grows with the square of the depth, as of a stereo camera."""
    error = RANDOM.normal(0, share, frame.depth.shape) * frame.depth**2
    return dataclasses.replace(frame, depth=(frame.depth + error).astype(np.float32))


def ghosts(volume: TsdfVolume, scene, corner, size) -> int:
    """Vertices in and around a box that lie on no surface of the scene."""
    vertices = volume.extract_mesh().vertices
    low, high = np.array(corner) - 0.1, np.add(corner, size) + 0.1
    near = vertices[((vertices > low) & (vertices < high)).all(axis=1)]
    off_m = scene.compute_distance(o3d.core.Tensor(near)).numpy()
    return int(np.count_nonzero(off_m > 2 * volume.config.voxel_size_m))


@pytest.mark.parametrize("share", [0, 0.003])
def test_things_that_were_seen_long_are_gone_ten_frames_after_they_were_taken_away(share):
    things = ON_TABLE, CUP_ON_TABLE, ON_FLOOR, IN_THE_AIR, AT_THE_WALL
    empty = room(TABLE)
    with_things, without = seen(room(TABLE, *things), AHEAD), seen(empty, AHEAD)
    volume = fused([noisy(with_things, share) for _ in range(60)], CONFIG)
    assert all(ghosts(volume, empty, *thing) > 5 for thing in things)
    for _ in range(10):
        volume.integrate(noisy(without, share))
    assert [ghosts(volume, empty, *thing) for thing in things] == [0] * len(things)


@pytest.mark.parametrize("size_m", [ROOM_M, HALL_M], ids=["room", "hall"])
def test_a_person_who_walked_through_has_left_nothing_after_25_frames(size_m):
    """In the hall what is behind the person is out of range: that tells that all before is free."""
    pose = looking((0.4 - size_m[0] / 2, 0, 0.2), (0, 0, 0))
    scene = room(TABLE, size_m=size_m)
    without = seen(scene, pose)
    volume, undisturbed = (fused([noisy(without) for _ in range(15)], CONFIG) for _ in range(2))
    start, size = pose[:3, 3] + np.array((2.4, -1.3, -1.55)), (0.3, 0.5, 1.7)
    for step in range(11):  # 1.2 m/s at 5 Hz
        person = start + np.array((0, 0.24 * step, 0)), size
        volume.integrate(noisy(seen(room(TABLE, person, size_m=size_m), pose)))
    way = start, (0.3, 2.9, 1.7)
    assert ghosts(volume, scene, *way) > 100
    for _ in range(25):
        volume.integrate(noisy(without))
        undisturbed.integrate(noisy(without))
    assert ghosts(volume, scene, *way) == 0
    count, wanted = (len(each.extract_mesh().vertices) for each in (volume, undisturbed))
    assert count == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(("share", "rougher"), [(0.003, 0.02), (0.005, 0.05)])
def test_noise_costs_a_still_scene_no_surface(share, rougher):
    scene = room(TABLE, ON_TABLE)
    poses = [looking((-1.6, 0.02 * step, 0.2), (1.0, 0, -0.6)) for step in range(-10, 10)]
    frames = [noisy(seen(scene, pose), share) for pose in poses * 2]
    count, plain_count = (
        len(fused(frames, config).extract_mesh().vertices) for config in (CONFIG, AS_LONG_AS_ANY)
    )
    assert 0.99 * plain_count < count < (1 + rougher) * plain_count


def test_a_thin_pole_stays_though_the_camera_shakes():
    empty, pole = room(), ((0.2, 0.1, -1.35), (0.04, 0.04, 2.0))
    poses = [looking(RANDOM.normal(EYE, 0.01), (1.0, 0, -0.2)) for _ in range(40)]
    frames = [noisy(seen(room(pole), pose)) for pose in poses]
    count, plain_count = (
        ghosts(fused(frames, config), empty, *pole) for config in (CONFIG, AS_LONG_AS_ANY)
    )
    assert count > 0.9 * plain_count > 50


def test_a_hole_in_the_depth_and_what_stands_before_it_do_not_remove_a_thing():
    empty, scene = room(), room(IN_THE_AIR)
    frame = seen(scene, AHEAD)
    volume = fused([frame] * 40, CONFIG)
    before = ghosts(volume, empty, *IN_THE_AIR)
    hole = frame.depth.copy()
    hole[seen(empty, AHEAD).depth != frame.depth] = 0  # all of the thing
    hidden = seen(room(IN_THE_AIR, ((-0.8, -1.0, -1.0), (0.1, 2.0, 2.0))), AHEAD)
    for _ in range(25):
        volume.integrate(dataclasses.replace(frame, depth=hole))
        volume.integrate(hidden)
    assert ghosts(volume, empty, *IN_THE_AIR) == before > 100


def test_a_wall_that_is_out_of_range_by_now_stays():
    """It is seen from nearer first, then in bad readings that are just beyond the range."""
    scene = room(size_m=HALL_M)
    nearer, farther = (seen(scene, looking((x, 0, 0), (7, 0, 0))) for x in (3.0, 1.8))
    volume = fused([noisy(nearer) for _ in range(20)], CONFIG)

    def wall_vertices() -> int:
        return int(np.count_nonzero(np.abs(volume.extract_mesh().vertices[:, 0] - 7) < 0.06))

    before = wall_vertices()
    for _ in range(30):
        volume.integrate(noisy(farther, 0.01))
    assert wall_vertices() > 0.98 * before > 1000


def test_readings_out_of_range_alone_show_that_a_thing_is_gone():
    thing = ((-4.0, -0.4, -0.4), (0.5, 0.8, 0.8))
    pose = looking((-6.6, 0, 0), (0, 0, 0))
    empty = room(size_m=HALL_M)
    volume = fused([seen(room(thing, size_m=HALL_M), pose)] * 40, CONFIG)
    without = seen(empty, pose)
    without.depth[without.depth < CONFIG.depth_max_m] = 0
    before = ghosts(volume, empty, *thing)
    for _ in range(10):
        assert volume.integrate(without).added == 0
    assert ghosts(volume, empty, *thing) == 0 < before
