"""Bags and scan folders there and back: encodings, topics, poses, damage, and what is wrong."""

import dataclasses
import itertools
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.scans.to_bag import (
    COLOR_TOPIC,
    DEPTH_TOPIC,
    LINK,
    LINK_FROM_OPTICAL,
    MAP,
    OPTICAL,
    BagFormat,
    BagWriter,
    write_bag,
)
from unscene_ros.recordings import RecordingTopics, open_recording
from unscene_ros.recordings.bags import Bag
from unscene_ros.recordings.scan_folder import ScanFolder
from unscene_ros.scene import Camera, Frame, InputError
from unscene_ros.synchronization import Drops, SynchronizationConfig
from unscene_ros.transforms import matrix_from_pose

SECOND = 1_000_000_000
PERIOD = SECOND // 5
CAMERA = Camera(48, 36, np.array([[50.0, 0, 23.5], [0, 50, 17.5], [0, 0, 1]]))
OFFICE = Path(__file__).parent / "data" / "office_kitchen"


def make_frames(count=5):
    """Smooth pictures, a slanted surface with holes, a camera that moves and turns."""
    v, u = np.mgrid[:36, :48]
    for i in range(count):
        color = np.stack([4 * u + i, 5 * v, 120 + u - v], axis=-1).astype(np.uint8)
        depth = np.round(1 + 0.01 * u + 0.02 * v + 0.05 * i, 3).astype(np.float32)
        depth[:4, :4] = 0
        angle = 0.1 * i
        pose = matrix_from_pose((0.3 * i, 1, 2), (0, np.sin(angle), 0, np.cos(angle)))
        yield Frame((i + 1) * PERIOD, CAMERA, color, depth, pose)


def bag_of(path, count=5, **bag_format):
    write_bag(path, make_frames(count), BagFormat(**bag_format))
    return path


def write_frame(writer, frame, color=True, depth=True, info=True, optical=OPTICAL):
    """One frame's pictures, without transforms."""
    if info:
        for topic in (COLOR_TOPIC, DEPTH_TOPIC):
            writer.write_camera_info(topic, frame.camera, optical, frame.stamp_ns)
    if color:
        writer.write_color(frame.color, optical, frame.stamp_ns)
    if depth:
        writer.write_depth(frame.depth, optical, frame.stamp_ns)


def assert_same(frames, expected, color_error=0, depth_error=0.0):
    frames, expected = list(frames), list(expected)
    assert [f.stamp_ns for f in frames] == [f.stamp_ns for f in expected]
    for ours, theirs in zip(frames, expected, strict=True):
        np.testing.assert_allclose(ours.world_from_camera, theirs.world_from_camera, atol=1e-9)
        np.testing.assert_allclose(ours.camera.intrinsics, theirs.camera.intrinsics)
        assert np.abs(ours.color.astype(int) - theirs.color).max() <= color_error
        np.testing.assert_allclose(ours.depth, theirs.depth, atol=depth_error)


# Bags that are as they should be


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("color", ["png", "rgb8", "bgr8", "rgba8", "bgra8"])
def test_lossless_color_survives_a_bag(tmp_path, color, storage):
    bag = bag_of(tmp_path / "bag", color=color, depth="16UC1", storage=storage)
    recording = open_recording(bag)
    assert_same(recording, make_frames())
    assert recording.read == 5
    assert recording.dropped == {}
    assert recording.warnings == []


@pytest.mark.parametrize(
    ("depth", "error"),
    [("16UC1", 0), ("32FC1", 0), ("compressedDepth", 0), ("compressedDepth 32FC1", 5e-4)],
)
def test_depth_survives_a_bag(tmp_path, depth, error):
    bag = bag_of(tmp_path / "bag", color="png", depth=depth)
    assert_same(open_recording(bag), make_frames(), depth_error=error)


def test_jpeg_color_survives_nearly(tmp_path):
    bag = bag_of(tmp_path / "bag", color="jpeg", jpeg_quality=95)
    assert_same(open_recording(bag), make_frames(), color_error=12)


def test_grey_color_becomes_three_equal_channels(tmp_path):
    for frame, original in zip(
        open_recording(bag_of(tmp_path / "bag", color="mono8")), make_frames(), strict=True
    ):
        grey = cv2.cvtColor(original.color, cv2.COLOR_RGB2GRAY)
        np.testing.assert_array_equal(frame.color, grey[..., None].repeat(3, axis=2))


@pytest.mark.parametrize(("storage", "suffix"), [("mcap", ".mcap"), ("sqlite3", ".db3")])
def test_a_storage_file_alone_is_a_recording(tmp_path, storage, suffix):
    bag = bag_of(tmp_path / "bag", color="png", storage=storage)
    (file,) = bag.glob("*" + suffix)
    alone = file.rename(tmp_path / ("alone" + suffix))
    recording = open_recording(alone)
    assert recording.name == "alone"
    assert_same(recording, make_frames())


def test_a_folder_of_storage_files_without_metadata_is_a_recording(tmp_path):
    bag = bag_of(tmp_path / "bag", color="png")
    (bag / "metadata.yaml").unlink()
    assert_same(open_recording(bag), make_frames())


def test_the_files_of_a_split_bag_are_read_in_order_of_time(tmp_path):
    frames = list(make_frames(6))
    folder = tmp_path / "split"
    folder.mkdir()
    for name, part in (("split_10", frames[:3]), ("split_2", frames[3:])):
        write_bag(tmp_path / name, part, BagFormat(color="png"))
        (tmp_path / name / f"{name}.mcap").rename(folder / f"{name}.mcap")
    recording = open_recording(folder)
    assert len(recording) == 6
    assert_same(recording, frames)


def test_every_iteration_reads_the_recording_anew(tmp_path):
    recording = open_recording(bag_of(tmp_path / "bag", color="png"))
    assert len(list(itertools.islice(recording, 2))) == 2
    assert recording.read == 2
    assert_same(recording, make_frames())
    assert recording.read == len(recording) == 5


def test_summary_names_topics_and_world(tmp_path):
    summary = open_recording(bag_of(tmp_path / "kitchen")).summary()
    for part in ("kitchen", "5 depth pictures", COLOR_TOPIC, DEPTH_TOPIC, "'map'", "TF"):
        assert part in summary


def test_the_bundled_recording_is_whole():
    recording = open_recording(OFFICE)
    assert len(recording) == 187
    assert recording.name == "office_kitchen"
    frames = list(itertools.islice(recording, 10))
    assert [f.stamp_ns for f in frames] == [PERIOD * n for n in range(1, 11)]
    assert frames[0].color.shape == (360, 540, 3)
    assert frames[0].camera.intrinsics[0, 0] == pytest.approx(495.5678)
    # The camera is held upright: the picture's down is the map's down.
    assert all(frame.world_from_camera[2, 1] < -0.8 for frame in frames)
    assert recording.dropped == {}
    assert sum(f.stat().st_size for f in OFFICE.iterdir()) < 15_000_000


def test_memory_does_not_grow_with_the_recording(tmp_path):
    large = Camera(192, 144, CAMERA.intrinsics)
    color, depth = np.zeros((144, 192, 3), np.uint8), np.ones((144, 192), np.float32)
    peaks = []
    for count in (50, 200):
        bag = tmp_path / f"{count}"
        frames = (Frame((i + 1) * PERIOD, large, color, depth, np.eye(4)) for i in range(count))
        write_bag(bag, frames, BagFormat(color="rgb8", depth="16UC1"))
        tracemalloc.start()
        assert sum(1 for _ in open_recording(bag)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


# Transforms and poses


def write_moving(writer, frame, **options):
    map_from_link = frame.world_from_camera @ np.linalg.inv(LINK_FROM_OPTICAL)
    writer.write_transform(MAP, LINK, frame.stamp_ns, map_from_link, **options)


def write_mounting(writer, recorded_ns=0):
    writer.write_transform(
        LINK, OPTICAL, 0, LINK_FROM_OPTICAL, static=True, recorded_ns=recorded_ns
    )


def test_transforms_recorded_after_their_pictures_are_waited_for(tmp_path):
    with BagWriter(tmp_path / "bag", BagFormat(color="png")) as writer:
        for frame in make_frames(8):
            write_frame(writer, frame)
            write_moving(writer, frame, recorded_ns=frame.stamp_ns + SECOND)
        write_mounting(writer, recorded_ns=9 * SECOND)
    assert_same(open_recording(tmp_path / "bag"), make_frames(8))


def test_pictures_that_transforms_do_not_reach_are_dropped_with_the_reason(tmp_path):
    with BagWriter(tmp_path / "bag", BagFormat(color="png")) as writer:
        write_mounting(writer)
        for index, frame in enumerate(make_frames(6)):
            write_frame(writer, frame)
            if 1 <= index <= 3:
                write_moving(writer, frame)
    recording = open_recording(tmp_path / "bag")
    assert_same(recording, list(make_frames(6))[1:4])
    assert recording.dropped == {"no transform": 3}
    assert recording.read == 6
    (warning,) = recording.warnings
    assert "'camera_color_optical_frame' to 'map'" in warning


def test_the_pose_is_interpolated_at_the_depth_picture(tmp_path):
    with BagWriter(tmp_path / "bag", BagFormat(color="png")) as writer:
        write_mounting(writer)
        for second in range(3):
            pose = matrix_from_pose((second, 0, 0), (0, 0, 0, 1))
            writer.write_transform(MAP, LINK, second * SECOND, pose)
        for frame in make_frames(5):
            write_frame(writer, frame)
    for frame in open_recording(tmp_path / "bag"):
        assert frame.world_from_camera[0, 3] == pytest.approx(frame.stamp_ns / SECOND)


def test_the_best_known_frame_of_the_tree_is_the_world(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for frame in make_frames(3):
            for parent, child in (("earth", "odom"), ("odom", OPTICAL), ("wheel", "screw")):
                writer.write_transform(parent, child, frame.stamp_ns, frame.world_from_camera)
            write_frame(writer, frame)
    recording = open_recording(tmp_path / "bag")
    assert "in 'odom'" in recording.summary()
    np.testing.assert_allclose(
        [f.world_from_camera for f in recording], [f.world_from_camera for f in make_frames(3)]
    )
    named = open_recording(tmp_path / "bag", RecordingTopics(world_frame="earth"))
    twice = [f.world_from_camera @ f.world_from_camera for f in make_frames(3)]
    np.testing.assert_allclose([f.world_from_camera for f in named], twice, atol=1e-9)


def test_poses_that_are_not_finite_are_dropped(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for index, frame in enumerate(make_frames(4)):
            pose = frame.world_from_camera
            if index == 2:
                pose = pose.copy()
                pose[0, 3] = np.nan
            writer.write_transform(MAP, OPTICAL, frame.stamp_ns, pose)
            write_frame(writer, frame)
    recording = open_recording(tmp_path / "bag")
    assert len(list(recording)) == 3
    assert recording.dropped == {"pose not finite": 1}


def ros_pose(writer, pose):
    """geometry_msgs/Pose of a rotation about y and a position, as `make_frames` has them."""
    half = np.arctan2(pose[0, 2], pose[0, 0]) / 2
    x, y, z = (float(v) for v in pose[:3, 3])
    return writer.message(
        "geometry_msgs/msg/Pose",
        position=writer.message("geometry_msgs/msg/Point", x=x, y=y, z=z),
        orientation=writer.message(
            "geometry_msgs/msg/Quaternion",
            x=0.0, y=float(np.sin(half)), z=0.0, w=float(np.cos(half)),
        ),
    )  # fmt: skip


def pose_message(writer, kind, frame, pose, child):
    header = writer.header("odom", frame.stamp_ns)
    inner = ros_pose(writer, pose)
    zero = np.zeros(36)
    if kind == "geometry_msgs/msg/PoseStamped":
        return writer.message(kind, header=header, pose=inner)
    covered = writer.message("geometry_msgs/msg/PoseWithCovariance", pose=inner, covariance=zero)
    if kind == "geometry_msgs/msg/PoseWithCovarianceStamped":
        return writer.message(kind, header=header, pose=covered)
    if kind == "geometry_msgs/msg/TransformStamped":
        at = inner.position
        shift = writer.message("geometry_msgs/msg/Vector3", x=at.x, y=at.y, z=at.z)
        transform = writer.message(
            "geometry_msgs/msg/Transform", translation=shift, rotation=inner.orientation
        )
        return writer.message(kind, header=header, child_frame_id=child, transform=transform)
    still = writer.message("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
    twist = writer.message("geometry_msgs/msg/Twist", linear=still, angular=still)
    covered_twist = writer.message(
        "geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=zero
    )
    return writer.message(
        kind, header=header, child_frame_id=child, pose=covered, twist=covered_twist
    )


@pytest.mark.parametrize(
    ("kind", "places_body"),
    [
        ("geometry_msgs/msg/PoseStamped", False),
        ("geometry_msgs/msg/PoseWithCovarianceStamped", False),
        ("geometry_msgs/msg/TransformStamped", True),
        ("nav_msgs/msg/Odometry", True),
    ],
)
def test_poses_may_come_from_a_topic(tmp_path, kind, places_body):
    """Where the message names a body, the camera is found on it by the fixed transform."""
    with BagWriter(tmp_path / "bag", BagFormat(color="png")) as writer:
        write_mounting(writer)
        for frame in make_frames():
            write_frame(writer, frame)
            pose = pose_message(writer, kind, frame, frame.world_from_camera, LINK)
            writer.write("/where", pose, frame.stamp_ns)
    recording = open_recording(tmp_path / "bag")
    assert "in 'odom' from /where" in recording.summary()
    mounting = LINK_FROM_OPTICAL if places_body else np.eye(4)
    expected = [frame.world_from_camera @ mounting for frame in make_frames()]
    poses = [frame.world_from_camera for frame in recording]
    np.testing.assert_allclose(poses, expected, atol=1e-9)


def test_a_named_pose_topic_goes_before_tf(tmp_path):
    bag = tmp_path / "bag"
    with BagWriter(bag) as writer:
        for frame in make_frames():
            writer.write_transform(MAP, OPTICAL, frame.stamp_ns, np.eye(4))
            write_frame(writer, frame)
            kind = "geometry_msgs/msg/PoseStamped"
            pose = pose_message(writer, kind, frame, frame.world_from_camera, "")
            writer.write("/where", pose, frame.stamp_ns)
    np.testing.assert_allclose(
        [f.world_from_camera for f in open_recording(bag)], np.eye(4)[None].repeat(5, 0)
    )
    named = open_recording(bag, RecordingTopics(pose="/where"))
    np.testing.assert_allclose(
        [f.world_from_camera for f in named], [f.world_from_camera for f in make_frames()]
    )


# Pictures


def test_color_and_depth_are_paired_by_their_stamps(tmp_path):
    """Depth at 5 Hz, colour 12 ms later; the third colour picture is missing."""
    with BagWriter(tmp_path / "bag", BagFormat(color="png")) as writer:
        for index, frame in enumerate(make_frames()):
            writer.write_transform(MAP, OPTICAL, frame.stamp_ns, frame.world_from_camera)
            write_frame(writer, frame, color=False)
            if index != 2:
                writer.write_color(frame.color, OPTICAL, frame.stamp_ns + 12_000_000)
    recording = open_recording(tmp_path / "bag")
    assert_same(recording, [f for i, f in enumerate(make_frames()) if i != 2])
    assert recording.dropped == {"no colour partner": 1}
    strict = open_recording(
        tmp_path / "bag", synchronization=SynchronizationConfig(max_color_gap_s=0.01)
    )
    assert list(strict) == []
    assert strict.dropped == {"no colour partner": 5}


def test_color_of_another_size_comes_in_the_size_of_the_depth(tmp_path):
    large = Camera(96, 72, np.diag([2.0, 2.0, 1.0]) @ CAMERA.intrinsics)
    with BagWriter(tmp_path / "bag", BagFormat(color="png")) as writer:
        for frame in make_frames(2):
            writer.write_transform(MAP, OPTICAL, frame.stamp_ns, frame.world_from_camera)
            writer.write_camera_info(COLOR_TOPIC, large, OPTICAL, frame.stamp_ns)
            writer.write_camera_info(DEPTH_TOPIC, CAMERA, OPTICAL, frame.stamp_ns)
            color = frame.color.repeat(2, axis=0).repeat(2, axis=1)
            writer.write_color(color, OPTICAL, frame.stamp_ns)
            writer.write_depth(frame.depth, OPTICAL, frame.stamp_ns)
    assert_same(open_recording(tmp_path / "bag"), make_frames(2))


def test_pictures_of_another_size_than_their_camera_info_are_dropped(tmp_path):
    with BagWriter(tmp_path / "bag", BagFormat(color="png")) as writer:
        for frame in make_frames(2):
            writer.write_transform(MAP, OPTICAL, frame.stamp_ns, frame.world_from_camera)
            write_frame(writer, frame, depth=False)
            writer.write_depth(frame.depth[1:], OPTICAL, frame.stamp_ns)
    recording = open_recording(tmp_path / "bag")
    assert list(recording) == []
    assert recording.dropped == {"undecodable": 2}
    assert "CameraInfo says 48x36, got 48x35" in recording.warnings[0]


def test_a_changed_camera_info_holds_from_then_on(tmp_path):
    wide = Camera(48, 36, np.array([[25.0, 0, 23.5], [0, 25, 17.5], [0, 0, 1]]))
    with BagWriter(tmp_path / "bag", BagFormat(color="png")) as writer:
        for index, frame in enumerate(make_frames(4)):
            writer.write_transform(MAP, OPTICAL, frame.stamp_ns, frame.world_from_camera)
            for topic in (COLOR_TOPIC, DEPTH_TOPIC):
                camera = CAMERA if index < 2 else wide
                writer.write_camera_info(topic, camera, OPTICAL, frame.stamp_ns)
            write_frame(writer, frame, info=False)
    focal = [frame.camera.intrinsics[0, 0] for frame in open_recording(tmp_path / "bag")]
    assert focal == [50, 50, 25, 25]


def test_a_lens_is_undone(tmp_path):
    distortion = np.array([-0.3, 0.1, 0, 0, 0])
    with BagWriter(tmp_path / "bag", BagFormat(color="png")) as writer:
        for frame in make_frames(1):
            writer.write_transform(MAP, OPTICAL, frame.stamp_ns, frame.world_from_camera)
            for topic in (COLOR_TOPIC, DEPTH_TOPIC):
                writer.write_camera_info(topic, CAMERA, OPTICAL, frame.stamp_ns, d=distortion)
            write_frame(writer, frame, info=False)
    (original,), (frame,) = make_frames(1), open_recording(tmp_path / "bag")
    k = CAMERA.intrinsics
    twin = cv2.undistort(original.color, k, distortion)
    # OpenCV's own undistortion interpolates in steps of 1/32 pixel.
    assert np.abs(frame.color[5:-5, 5:-5].astype(int) - twin[5:-5, 5:-5]).max() <= 2
    maps = cv2.initUndistortRectifyMap(k, distortion, None, k, (48, 36), cv2.CV_32FC1)
    depth_twin = cv2.remap(original.depth, *maps, cv2.INTER_NEAREST)
    assert (frame.depth == depth_twin).mean() > 0.98
    assert not np.array_equal(frame.depth, original.depth)


def test_a_recording_without_color_gives_grey_frames(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for frame in make_frames(3):
            writer.write_transform(MAP, OPTICAL, frame.stamp_ns, frame.world_from_camera)
            write_frame(writer, frame, color=False)
    recording = open_recording(tmp_path / "bag")
    assert [np.unique(frame.color).tolist() for frame in recording] == [[128]] * 3
    assert "no colour topic" in recording.warnings[0]


def test_an_unknown_encoding_is_explained(tmp_path):
    with BagWriter(tmp_path / "bag", BagFormat(depth="16UC1")) as writer:
        for frame in make_frames(2):
            writer.write_transform(MAP, OPTICAL, frame.stamp_ns, frame.world_from_camera)
            write_frame(writer, frame, color=False)
            picture = writer.message(
                "sensor_msgs/msg/Image",
                header=writer.header(OPTICAL, frame.stamp_ns),
                height=36, width=48, encoding="yuv422_yuy2", is_bigendian=0, step=96,
                data=np.zeros(36 * 96, np.uint8),
            )  # fmt: skip
            writer.write(COLOR_TOPIC + "/image_raw", picture, frame.stamp_ns)
    recording = open_recording(tmp_path / "bag")
    assert list(recording) == []
    assert recording.dropped == {"undecodable": 2}
    assert "'yuv422_yuy2', expected one of rgb8" in recording.warnings[0]


# Topics


def write_cameras(path, topics, infos):
    """A bag of one still frame on several image topics: topic -> (encoding, frame id)."""
    with BagWriter(path) as writer:
        (frame,) = make_frames(1)
        writer.write_transform(MAP, "left_optical", frame.stamp_ns, np.eye(4))
        writer.write_transform(MAP, "right_optical", frame.stamp_ns, np.eye(4))
        for topic, (encoding, frame_id) in topics.items():
            pixel_bytes = {"16UC1": 2, "mono8": 1, "rgb8": 3}[encoding]
            picture = writer.message(
                "sensor_msgs/msg/Image",
                header=writer.header(frame_id, frame.stamp_ns),
                height=36, width=48, encoding=encoding, is_bigendian=0, step=48 * pixel_bytes,
                data=np.full(36 * 48 * pixel_bytes, 4, np.uint8),
            )  # fmt: skip
            writer.write(topic, picture, frame.stamp_ns)
        for info in infos:
            writer.write_camera_info(
                info.removesuffix("/camera_info"), CAMERA, "left_optical", frame.stamp_ns
            )
    return path


def found_topics(bag):
    recording = open_recording(bag)
    assert len(list(recording)) == 1, recording.warnings
    summary = recording.summary().replace(",", "").split()
    return summary[summary.index("on") + 1], summary[summary.index("colour") + 2]


def test_aligned_depth_and_real_color_are_preferred(tmp_path):
    bag = write_cameras(
        tmp_path / "bag",
        {
            "/camera/depth/image_rect_raw": ("16UC1", "right_optical"),
            "/camera/aligned_depth_to_color/image_raw": ("16UC1", "left_optical"),
            "/camera/infra1/image_rect_raw": ("mono8", "right_optical"),
            "/camera/color/image_raw": ("rgb8", "left_optical"),
        },
        ["/camera/color/camera_info", "/camera/depth/camera_info"],
    )
    assert found_topics(bag) == (
        "/camera/aligned_depth_to_color/image_raw",
        "/camera/color/image_raw",
    )


def test_color_is_taken_from_the_camera_of_the_depth(tmp_path):
    bag = write_cameras(
        tmp_path / "bag",
        {
            "/left/rgb/image": ("rgb8", "left_optical"),
            "/right/depth/image": ("16UC1", "right_optical"),
            "/right/rgb/image": ("rgb8", "right_optical"),
        },
        ["/left/rgb/camera_info", "/right/rgb/camera_info", "/right/depth/camera_info"],
    )
    assert found_topics(bag) == ("/right/depth/image", "/right/rgb/image")


def test_a_single_camera_info_serves_both(tmp_path):
    bag = write_cameras(
        tmp_path / "bag",
        {"/d": ("16UC1", "left_optical"), "/c": ("rgb8", "left_optical")},
        ["/calibration/camera_info"],
    )
    assert found_topics(bag) == ("/d", "/c")


def test_topics_may_be_named(tmp_path):
    bag = bag_of(tmp_path / "bag", color="png", depth="16UC1")
    topics = RecordingTopics(
        color=COLOR_TOPIC + "/image_raw/compressed",
        depth=DEPTH_TOPIC + "/image_raw",
        color_info=COLOR_TOPIC + "/camera_info",
        depth_info=COLOR_TOPIC + "/camera_info",
    )
    assert_same(open_recording(bag, topics), make_frames())


@pytest.mark.parametrize(
    ("topics", "words"),
    [
        (RecordingTopics(depth="/camera/depth/image"), "did you mean '/camera/depth/image_raw'"),
        (RecordingTopics(color="/tf"), "expected sensor_msgs/msg/Image or .*, got tf2_msgs"),
        (RecordingTopics(pose="/camera/color/camera_info"), "expected nav_msgs/msg/Odometry or"),
        (RecordingTopics(depth_info="/nowhere"), "there is no topic '/nowhere'"),
        (RecordingTopics(world_frame="mars"), "'mars' is not in TF, which holds: camera_"),
    ],
)
def test_wrong_names_are_explained(tmp_path, topics, words):
    bag = bag_of(tmp_path / "bag", depth="16UC1")
    with pytest.raises(InputError, match=words):
        open_recording(bag, topics)


def test_a_malformed_topic_nobody_needs_is_no_obstacle(tmp_path):
    """Its type is announced as Image, but what it carries is a CameraInfo."""
    with BagWriter(tmp_path / "bag", BagFormat(color="png", depth="16UC1")) as writer:
        for frame in make_frames():
            writer.write_transform(MAP, OPTICAL, frame.stamp_ns, frame.world_from_camera)
            write_frame(writer, frame)
            writer.write_camera_info("/broken", CAMERA, OPTICAL, frame.stamp_ns)
    metadata = tmp_path / "bag" / "metadata.yaml"
    broken_from = metadata.read_text().index("/broken/camera_info")
    head, tail = metadata.read_text()[:broken_from], metadata.read_text()[broken_from:]
    metadata.write_text(head + tail.replace("msg/CameraInfo", "msg/Image", 1))
    recording = open_recording(tmp_path / "bag")
    assert_same(recording, make_frames())
    assert "a message on '/broken/camera_info' is no sensor_msgs/msg/Image" in recording.warnings[0]


# What is missing or broken


def test_a_bag_without_depth_lists_what_it_holds(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for frame in make_frames(2):
            write_frame(writer, frame, depth=False)
    with pytest.raises(InputError, match="expected a depth topic") as caught:
        open_recording(tmp_path / "bag")
    assert "/camera/color/image_raw/compressed (sensor_msgs/msg/CompressedImage, 2" in str(
        caught.value
    )


def test_a_bag_without_camera_info_says_so(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for frame in make_frames(2):
            write_frame(writer, frame, info=False)
    with pytest.raises(InputError, match="expected a CameraInfo topic beside the depth topic"):
        open_recording(tmp_path / "bag")


def test_a_bag_without_poses_says_what_to_record(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for frame in make_frames(2):
            write_frame(writer, frame)
    with pytest.raises(InputError, match="record /tf and /tf_static, or a topic of type Odometry"):
        open_recording(tmp_path / "bag")


def test_a_camera_that_tf_does_not_know_is_named(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for frame in make_frames(2):
            writer.write_transform("odom", "base", frame.stamp_ns, frame.world_from_camera)
            write_frame(writer, frame)
    with pytest.raises(InputError, match=f"'{OPTICAL}'.*got TF that holds base, odom"):
        open_recording(tmp_path / "bag")


def test_an_uncalibrated_camera_is_refused(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for frame in make_frames(2):
            writer.write_transform(MAP, OPTICAL, frame.stamp_ns, frame.world_from_camera)
            write_frame(writer, frame, info=False)
            for topic in (COLOR_TOPIC, DEPTH_TOPIC):
                writer.write_camera_info(topic, CAMERA, OPTICAL, frame.stamp_ns, k=np.zeros(9))
    with pytest.raises(InputError, match=r"camera_info': .*positive focal lengths, got fx=0"):
        open_recording(tmp_path / "bag")


def test_a_camera_that_moves_only_after_a_while_is_placed_by_tf(tmp_path):
    """Odometry often starts long after the fixed transforms, and after much else that moves."""
    frames = list(make_frames(2))
    late_ns = 8_000_000_000
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_transform("base", OPTICAL, frames[0].stamp_ns, np.eye(4), static=True)
        for tenth in range(100):
            stamp_ns = frames[0].stamp_ns + tenth * 100_000_000
            writer.write_transform("base", "wheel", stamp_ns, np.eye(4))
        for frame in frames:
            stamp_ns = frame.stamp_ns + late_ns
            writer.write_transform("odom", "base", stamp_ns, frame.world_from_camera)
            write_frame(writer, dataclasses.replace(frame, stamp_ns=stamp_ns))
    recording = open_recording(tmp_path / "bag")
    for frame, given in zip(recording, frames, strict=True):
        np.testing.assert_allclose(frame.world_from_camera, given.world_from_camera, atol=1e-6)
    assert "poses in 'odom' from TF" in recording.summary()


def test_a_camera_that_nothing_moves_is_warned_about(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_transform("base", OPTICAL, 1, np.eye(4), static=True)
        for frame in make_frames(2):
            write_frame(writer, frame)
    recording = open_recording(tmp_path / "bag")
    assert len(list(recording)) == 2
    assert "nothing in TF moves the camera" in recording.warnings[0]


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_cut_off_mcap_is_read_up_to_the_cut(tmp_path, share):
    count = 400
    whole = next(bag_of(tmp_path / "bag", count, color="rgb8", depth="32FC1").glob("*.mcap"))
    data = whole.read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(data[: int(share * len(data))])
    recording = open_recording(cut)
    frames = list(recording)
    assert 0.2 * count < len(frames) < share * count + 1
    # Pictures and their transform may lie on different sides of the cut.
    assert sum(recording.dropped.values()) <= 1
    assert "cut off, read up to" in recording.warnings[0]
    assert_same(frames[:20], list(make_frames(count))[:20], depth_error=1e-6)


def test_a_bag_folder_whose_file_is_cut_off_is_read_too(tmp_path):
    bag = bag_of(tmp_path / "bag", 120, color="rgb8", depth="32FC1")
    (file,) = bag.glob("*.mcap")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    recording = open_recording(bag)
    assert len(list(recording)) > 30
    assert any("cut off" in warning for warning in recording.warnings)


def test_a_bag_that_was_cut_off_before_its_first_message_says_so(tmp_path):
    (file,) = bag_of(tmp_path / "bag").glob("*.mcap")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match=r"got none: .*cut off, read up to"):
        open_recording(file)


def test_an_empty_bag_says_so(tmp_path):
    with BagWriter(tmp_path / "bag"):
        pass
    with pytest.raises(InputError, match="expected recorded messages, got none: it is empty"):
        open_recording(tmp_path / "bag")


def test_damage_in_the_middle_ends_the_reading_there(tmp_path):
    (file,) = bag_of(tmp_path / "bag", 120, color="rgb8", depth="32FC1").glob("*.mcap")
    data = bytearray(file.read_bytes())
    start = len(data) * 2 // 3
    data[start : start + 2000] = bytes(2000)
    file.write_bytes(data)
    recording = open_recording(tmp_path / "bag")
    assert 30 < len(list(recording)) < 120
    assert any("damaged" in warning for warning in recording.warnings)


@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
@pytest.mark.parametrize("data", [b"", b"no bag at all", bytes(4000)])
def test_files_that_are_no_bags_are_refused(tmp_path, suffix, data):
    file = tmp_path / ("x" + suffix)
    file.write_bytes(data)
    with pytest.raises(InputError, match="expected a ROS 2 bag"):
        open_recording(file)


@pytest.mark.parametrize("name", ["nothing.mcap", "nothing.db3", "nothing"])
def test_a_bag_that_does_not_exist_is_named(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}: there is no such file or folder"):
        Bag(tmp_path / name)


def test_what_is_no_recording_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such file or folder"):
        open_recording(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"expected a ROS 2 bag .* or a scan folder"):
        open_recording(tmp_path)
    old = tmp_path / "ros1.bag"
    old.write_bytes(b"#ROSBAG V2.0")
    with pytest.raises(InputError, match="rosbags-convert"):
        open_recording(old)


# Scan folders


def write_scan(folder, count=4, poses_in_one_file=False, suffix=".png"):
    for name in ("color", "depth", "pose"):
        (folder / name).mkdir(parents=True)
    lines = []
    for index, frame in enumerate(make_frames(count)):
        number = 2 * index
        cv2.imwrite(str(folder / f"color/{number:05d}{suffix}"), frame.color[..., ::-1])
        millimetres = np.round(frame.depth * 1000).astype(np.uint16)
        cv2.imwrite(str(folder / f"depth/{number:05d}.png"), millimetres)
        np.savetxt(folder / f"pose/{number:05d}.txt", frame.world_from_camera)
        lines.append([number, *frame.world_from_camera.ravel()])
    if poses_in_one_file:
        np.savetxt(folder / "poses.txt", lines)
        for file in (folder / "pose").iterdir():
            file.unlink()
    np.savetxt(folder / "intrinsic.txt", CAMERA.intrinsics)
    return folder


@pytest.mark.parametrize("poses_in_one_file", [False, True])
def test_a_scan_folder_is_a_recording(tmp_path, poses_in_one_file):
    recording = open_recording(write_scan(tmp_path / "scan", poses_in_one_file=poses_in_one_file))
    assert recording.name == "scan"
    assert len(recording) == 4
    assert "4 depth pictures" in recording.summary()
    assert_same(recording, make_frames(4))
    assert recording.dropped == {}


def test_a_scan_folder_may_have_time_stamps(tmp_path):
    folder = write_scan(tmp_path / "scan")
    np.savetxt(folder / "timestamps.txt", [[0, 1.5], [2, 1.75], [4, 2.0], [6, 3.0]])
    stamps = [frame.stamp_ns for frame in open_recording(folder)]
    assert stamps == [1_500_000_000, 1_750_000_000, 2_000_000_000, 3_000_000_000]


def test_a_scan_folder_may_have_larger_color(tmp_path):
    folder = write_scan(tmp_path / "scan")
    for file in (folder / "color").iterdir():
        large = cv2.imread(str(file)).repeat(2, axis=0).repeat(2, axis=1)
        cv2.imwrite(str(file), large)
    np.savetxt(folder / "intrinsic_color.txt", np.diag([2.0, 2.0, 1.0]) @ CAMERA.intrinsics)
    assert_same(open_recording(folder), make_frames(4))


def test_what_a_scan_folder_lacks_is_dropped_with_reasons(tmp_path):
    folder = write_scan(tmp_path / "scan", count=6)
    (folder / "pose/00000.txt").unlink()
    (folder / "color/00002.png").unlink()
    np.savetxt(folder / "pose/00004.txt", np.full((4, 4), -np.inf))
    (folder / "depth/00006.png").write_bytes(b"no picture")
    np.savetxt(folder / "pose/00008.txt", np.diag([2.0, 2, 2, 1]))
    recording = open_recording(folder)
    assert_same(recording, list(make_frames(6))[5:])
    assert recording.dropped == {
        "no transform": 1,
        "no colour partner": 1,
        "pose not finite": 1,
        "undecodable": 2,
    }
    assert recording.read == 6
    assert all(str(folder) in warning for warning in recording.warnings)


def test_frames_of_a_scan_folder_are_readable_by_index(tmp_path):
    scan = ScanFolder(write_scan(tmp_path / "scan"))
    in_order = list(scan.frames(Drops()))
    np.testing.assert_array_equal(scan.frame(2).depth, in_order[2].depth)
    assert scan.depth_path(2).name == "00004.png"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("intrinsic.txt", None, "intrinsic.txt: expected a text file"),
        ("intrinsic.txt", "1 2 3\n4 5\n", "equally many numbers"),
        ("intrinsic.txt", "1 2\n3 4\n", "expected a 3x3 or 4x4 matrix"),
        ("intrinsic.txt", "0 0 0\n0 0 0\n0 0 1\n", "positive focal lengths"),
        ("poses.txt", "0 1 2 3\n", "a number and 16 values a line, got 4"),
        ("poses.txt", "nan" + 16 * " 1" + "\n", "poses.txt: expected finite numbers.* line 1"),
        ("pose/00000.txt", "1 2\n3 4\n", "pose 0: expected a 4x4 matrix"),
        ("timestamps.txt", "0 1\n2 2\n", r"none for \[4, 6\]"),
        ("timestamps.txt", "0\n2\n", "number and seconds a line"),
        ("timestamps.txt", "0 1\n2 inf\n", "timestamps.txt: expected finite numbers.* line 2"),
    ],
)
def test_wrong_files_of_a_scan_folder_are_named(tmp_path, file, content, words):
    folder = write_scan(tmp_path / "scan")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=words):
        open_recording(folder)


def test_an_empty_scan_folder_is_refused(tmp_path):
    (tmp_path / "color").mkdir()
    (tmp_path / "depth").mkdir()
    with pytest.raises(InputError, match="got 0 and 0 pictures"):
        open_recording(tmp_path)
