"""The streaming reader of .sens files: what is kept, what is skipped, what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from scan_sources import (
    COLOR_K,
    DEPTH_K,
    UNKNOWN_POSE,
    color_picture,
    depth_picture,
    pose,
    sens_frame,
    sens_header,
    write_sens,
)

from training.scans.sens import SensStream
from unscene_ros.image_codecs import decode_compressed_color
from unscene_ros.scene import InputError
from unscene_ros.synchronization import Drops


def read(path, every=1):
    drops = Drops()
    return list(SensStream(path).frames(drops, every)), drops


def written(tmp_path, *parts):
    path = tmp_path / "scene.sens"
    path.write_bytes(b"".join(parts))
    return path


# What a whole file gives


def test_the_header_says_what_all_frames_share(tmp_path):
    header = SensStream(write_sens(tmp_path / "a.sens")).header
    assert (header.sensor, header.frame_count) == ("StructureSensor", 6)
    assert (header.color_format, header.depth_format) == ("jpeg", "zlib_ushort")
    assert header.depth_units_per_m == 1000
    assert (header.color_camera.width, header.color_camera.height) == (24, 18)
    assert (header.depth_camera.width, header.depth_camera.height) == (16, 12)
    np.testing.assert_array_equal(header.color_camera.intrinsics, COLOR_K)
    np.testing.assert_array_equal(header.depth_camera.intrinsics, DEPTH_K)
    np.testing.assert_array_equal(header.color_extrinsics, np.eye(4))


def test_frames_come_in_order_with_their_pictures_and_poses(tmp_path):
    frames, drops = read(write_sens(tmp_path / "a.sens"))
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert not drops.counts
    for frame in frames:
        color = decode_compressed_color("jpeg", frame.color)
        assert np.abs(color.astype(int) - color_picture(frame.number)).max() < 12
        np.testing.assert_array_equal(frame.depth_mm, depth_picture(frame.number))
        np.testing.assert_array_equal(frame.world_from_camera, pose(frame.number))


def test_stamps_are_those_of_colour_or_follow_from_the_number(tmp_path):
    frames = sens_frame(0), sens_frame(1, stamp_us=1234)
    (unknown, known), _ = read(written(tmp_path, sens_header(2), *frames))
    assert unknown.stamp_ns == round(1e9 / 30)
    assert known.stamp_ns == 1_234_000


def test_depth_may_be_unpacked_and_in_other_units(tmp_path):
    half_millimetres = np.full((12, 16), 5000, "<u2")
    half_millimetres[0] = 0
    parts = (
        sens_header(1, formats=(2, 0), units_per_m=2000),
        sens_frame(0, depth=half_millimetres.tobytes()),
    )
    (frame,), _ = read(written(tmp_path, *parts))
    assert frame.depth_mm.dtype == np.uint16
    assert (frame.depth_mm[0] == 0).all() and (frame.depth_mm[1:] == 2500).all()


def test_depth_that_does_not_fit_millimetres_is_no_reading(tmp_path):
    centimetres = np.full((12, 16), 7000, "<u2")
    parts = (
        sens_header(1, formats=(2, 0), units_per_m=100),
        sens_frame(0, depth=centimetres.tobytes()),
    )
    (frame,), _ = read(written(tmp_path, *parts))
    assert (frame.depth_mm == 0).all()


def test_a_stream_without_frames_is_empty(tmp_path):
    assert read(write_sens(tmp_path / "a.sens", count=0))[0] == []


# Skipping


def test_every_third_frame(tmp_path):
    frames, drops = read(write_sens(tmp_path / "a.sens"), every=3)
    assert [frame.number for frame in frames] == [0, 3]
    assert not drops.counts


def test_skipped_frames_are_not_read(tmp_path, monkeypatch):
    """Pictures of skipped frames may be damaged, and their bytes are jumped over."""
    big = bytes(1_000_000)
    parts = [sens_header(4), sens_frame(0), *(sens_frame(n, color=big) for n in (1, 2))]
    path = written(tmp_path, *parts, sens_frame(3))
    read_bytes = []

    class Counting(io.FileIO):
        def readinto(self, buffer):
            count = super().readinto(buffer)
            read_bytes.append(count)
            return count

        def readall(self):
            raise AssertionError("the whole file is read at once")

    monkeypatch.setattr(
        "pathlib.Path.open", lambda self, mode: io.BufferedReader(Counting(self, "r"))
    )
    frames, drops = read(path, every=3)
    assert [frame.number for frame in frames] == [0, 3] and not drops.counts
    assert sum(read_bytes) < 100_000


# Damage: what was readable is kept, the rest is counted


@pytest.mark.parametrize("bad", [UNKNOWN_POSE, np.full((4, 4), np.nan)])
def test_a_pose_that_is_not_finite_costs_its_frame(tmp_path, bad):
    frames, drops = read(
        written(tmp_path, sens_header(3), sens_frame(0), sens_frame(1, bad), sens_frame(2))
    )
    assert [frame.number for frame in frames] == [0, 2]
    assert drops.counts == {"pose not finite": 1}
    assert "frame 1" in drops.explanations["pose not finite"]


def test_a_pose_that_is_no_rigid_motion_costs_its_frame(tmp_path):
    frames, drops = read(
        written(tmp_path, sens_header(2), sens_frame(0, np.zeros((4, 4))), sens_frame(1))
    )
    assert [frame.number for frame in frames] == [1]
    assert drops.counts == {"pose not rigid": 1}


@pytest.mark.parametrize(
    "depth",
    [b"", b"no zlib", zlib.compress(bytes(10)), zlib.compress(bytes(10_000_000))],
    ids=["nothing", "no zlib", "too small", "unfolds without end"],
)
def test_depth_that_cannot_be_unpacked_costs_its_frame(tmp_path, depth):
    parts = sens_header(2), sens_frame(0, depth=depth), sens_frame(1)
    frames, drops = read(written(tmp_path, *parts))
    assert [frame.number for frame in frames] == [1]
    assert drops.counts == {"undecodable": 1}


@pytest.mark.parametrize("kept_of_frame_3", [0, 50, 96, 200])
def test_a_file_cut_off_in_a_frame_keeps_those_before_it(tmp_path, kept_of_frame_3):
    parts = [sens_header(6), *(sens_frame(number) for number in range(3))]
    path = written(tmp_path, *parts, sens_frame(3)[:kept_of_frame_3])
    frames, drops = read(path)
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert drops.counts == {"cut off": 3}
    assert "frame 3 of 6" in drops.explanations["cut off"]
    frames, drops = read(path, every=2)
    assert [frame.number for frame in frames] == [0, 2]
    assert drops.counts == {"cut off": 1}  # only frame 4 was asked for


@pytest.mark.parametrize("size", [1 << 40, (1 << 64) - 1])
def test_a_frame_of_impossible_size_ends_the_stream(tmp_path, size):
    damaged = bytearray(sens_frame(1))
    damaged[80:88] = struct.pack("<Q", size)
    path = written(tmp_path, sens_header(3), sens_frame(0), bytes(damaged), sens_frame(2))
    frames, drops = read(path)
    assert [frame.number for frame in frames] == [0]
    assert drops.counts == {"cut off": 2}


# What is refused


@pytest.mark.parametrize("kept", [0, 3, 11, 20, 100, 290, 318])
def test_a_file_cut_off_in_its_header_is_refused(tmp_path, kept):
    whole = sens_header(1)
    assert kept < len(whole)
    with pytest.raises(InputError, match="cut off in its header"):
        SensStream(written(tmp_path, whole[:kept]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "version 4, got 3"),
        ({"name": b"x" * 1001}, "name of 1001 bytes"),
        ({"sizes": (0, 18, 16, 12)}, "pictures of 0x18"),
        ({"sizes": (24, 18, 16, 1 << 31)}, "16x2147483648"),
        ({"units_per_m": 0.0}, "depth units"),
        ({"units_per_m": float("nan")}, "depth units"),
        ({"formats": (2, 2)}, "got occi_ushort: take scannet_frames_25k"),
        ({"formats": (0, 1)}, "colour as jpeg, png, got raw"),
        ({"formats": (77, 1)}, "got 77"),
    ],
)
def test_headers_that_cannot_be_used_say_why(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        SensStream(write_sens(tmp_path / "a.sens", **changes))


def test_a_promise_of_endless_frames_is_damage(tmp_path):
    with pytest.raises(InputError, match="damaged"):
        SensStream(written(tmp_path, sens_header(1 << 60)))


def test_a_camera_without_focal_length_is_damage(tmp_path):
    header = bytearray(sens_header(0))
    header[27:31] = struct.pack("<f", 0.0)
    with pytest.raises(InputError, match=r"damaged.*focal"):
        SensStream(written(tmp_path, bytes(header)))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        SensStream(tmp_path / "none.sens")
