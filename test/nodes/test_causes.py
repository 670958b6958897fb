"""Conclusions from made-up observations; `test_explanation.py` has those from real topics."""

import math
from dataclasses import replace

import pytest

from unscene_ros.nodes.causes import duration, likely_causes
from unscene_ros.nodes.observation import Observation, ObservedCamera, Publisher, Topic
from unscene_ros.transforms import TransformError

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"


def picture_topic(name, encoding):
    driver = Publisher("/driver", IMAGE, "reliable, volatile")
    return Topic(
        f"{name} pictures",
        f"/{name}/image",
        IMAGE,
        "best effort, volatile",
        f"{name}/image",
        (driver,),
        received=100,
        silent_s=0.1,
        encoding=encoding,
        frame_id="camera",
    )


def info_topic(name):
    driver = Publisher("/driver", "sensor_msgs/msg/CameraInfo", "reliable, volatile")
    return Topic(
        f"{name} CameraInfo",
        f"/{name}/camera_info",
        "sensor_msgs/msg/CameraInfo",
        "best effort, volatile",
        f"{name}/camera_info",
        (driver,),
        received=100,
        silent_s=0.1,
    )


GOOD_CAMERA = ObservedCamera(
    color=picture_topic("rgb", "rgb8"),
    depth=picture_topic("depth", "16UC1"),
    color_info=info_topic("rgb"),
    depth_info=info_topic("depth"),
    color_stamp_ns=10,
    depth_stamp_ns=10,
)
CLOCK = Topic("simulated time", "/clock", "rosgraph_msgs/msg/Clock", "best effort, volatile")


def observation(camera=GOOD_CAMERA, **changes):
    seen = Observation(
        cameras=(camera,),
        transform_topics=(),
        frames=("camera", "map"),
        transform_stamp_ns=10,
        clock=CLOCK,
        simulated=False,
        clock_ns=10,
        clock_still_s=0.0,
        drops={},
    )
    return replace(seen, **changes)


def kinds(seen):
    return [cause.kind for cause in likely_causes(seen, max_color_gap_ms=30.0)]


def silent(topic):
    return replace(topic, received=0, silent_s=math.inf)


def test_where_all_is_well_no_cause_is_made_up():
    assert kinds(observation()) == ["unknown"]
    assert kinds(observation(drops={"too slow": "newer frames were waiting"})) == ["dropped"]


def test_pictures_asked_for_reliably_of_a_best_effort_driver():
    conflict = "best effort publisher and reliable subscription"
    driver = Publisher("/driver", IMAGE, "best effort, volatile", conflict)
    depth = replace(silent(GOOD_CAMERA.depth), publishers=(driver,), qos="reliable, volatile")
    seen = observation(replace(GOOD_CAMERA, depth=depth))
    [cause] = likely_causes(seen, 30.0)
    assert cause.kind == "incompatible QoS"
    assert cause.text == (
        f"'/depth/image' is not delivered, {conflict}: /driver offers best effort, volatile, this "
        "node asks for reliable, volatile; make the publisher offer that, or set "
        "cameras.reliable to false"
    )


def test_one_publisher_that_fits_is_enough():
    others = Publisher("/other", IMAGE, "best effort, volatile", "conflict")
    depth = silent(GOOD_CAMERA.depth)
    depth = replace(depth, publishers=(*depth.publishers, others))
    assert kinds(observation(replace(GOOD_CAMERA, depth=depth))) == ["silent"]


def test_a_camera_that_is_off_is_silent_and_its_camera_info_is_not_blamed():
    camera = replace(
        GOOD_CAMERA,
        color=silent(GOOD_CAMERA.color),
        depth=silent(GOOD_CAMERA.depth),
        color_info=silent(GOOD_CAMERA.color_info),
        depth_info=silent(GOOD_CAMERA.depth_info),
        color_info_problem="none has arrived",
        depth_info_problem="none has arrived",
    )
    assert kinds(observation(camera)) == ["silent", "silent"]


def test_camera_info_is_needed_only_once():
    info = replace(silent(GOOD_CAMERA.depth_info), publishers=())
    assert kinds(observation(replace(GOOD_CAMERA, depth_info=info))) == ["unknown"]
    lacking = replace(GOOD_CAMERA, depth_info=info, depth_info_problem="none has arrived")
    assert kinds(observation(lacking)) == ["no CameraInfo"]


def test_a_clock_that_stands_still_is_no_cause_while_pictures_come():
    still = {"simulated": True, "clock_still_s": 60.0}
    assert kinds(observation(**still)) == ["unknown"]
    off = replace(GOOD_CAMERA, color=silent(GOOD_CAMERA.color), depth=silent(GOOD_CAMERA.depth))
    assert kinds(observation(off, **still)) == ["sim time", "silent", "silent"]
    assert kinds(observation(off, simulated=True, clock_still_s=0.1)) == ["silent", "silent"]


@pytest.mark.parametrize(
    ("stream", "topic_type", "encoding", "is_known"),
    [
        ("depth", IMAGE, "32FC1", True),
        ("depth", IMAGE, "mono16", False),
        ("depth", COMPRESSED, "16UC1; compressedDepth png", True),
        ("depth", COMPRESSED, "16UC1; png compressed", True),
        ("depth", COMPRESSED, "bgr8; jpeg compressed bgr8", False),
        ("color", IMAGE, "bgra8", True),
        ("color", IMAGE, "16UC1", False),
        ("color", COMPRESSED, "rgb8; jpeg compressed bgr8", True),
        ("color", COMPRESSED, "16UC1; compressedDepth png", False),
    ],
)
def test_encodings_that_fit_the_kind_of_picture(stream, topic_type, encoding, is_known):
    topic = replace(getattr(GOOD_CAMERA, stream), type=topic_type, encoding=encoding)
    found = kinds(observation(replace(GOOD_CAMERA, **{stream: topic})))
    assert found == (["unknown"] if is_known else ["wrong encoding"])


def test_colour_and_depth_hours_apart_are_of_different_clocks():
    assert kinds(observation(replace(GOOD_CAMERA, color_gap_ms=29.0))) == ["unknown"]
    assert kinds(observation(replace(GOOD_CAMERA, color_gap_ms=31.0))) == ["unsynchronised"]
    seen = observation(replace(GOOD_CAMERA, color_gap_ms=7.2e6))
    [cause] = likely_causes(seen, 30.0)
    assert cause.kind == "other clock"
    assert "'/rgb/image' and '/depth/image' are stamped 2.0 h apart" in cause.text


@pytest.mark.parametrize(
    ("reason", "gap_ms", "kind"),
    [
        ("in the future", 100.0, "unknown"),  # transforms always come a little late
        ("in the future", 5e3, "TF too old"),
        ("in the future", 3.6e6, "other clock"),
        ("too old", 100.0, "TF too old"),
        ("too old", 3.6e6, "other clock"),
        ("unknown frame", math.inf, "TF not connected"),
        ("not connected", math.inf, "TF not connected"),
        ("not finite", 0.0, "TF not connected"),
        ("gap", 900.0, "TF too seldom"),
    ],
)
def test_why_a_picture_has_no_place(reason, gap_ms, kind):
    error = TransformError("no transform from 'camera' to 'map'", reason, gap_ms)
    [cause] = likely_causes(observation(replace(GOOD_CAMERA, pose_errors=(error,))), 30.0)
    assert cause.kind == kind
    assert ("no transform from 'camera' to 'map'" in cause.text) == (kind != "unknown")


def test_of_several_cameras_each_is_looked_at():
    rear = replace(GOOD_CAMERA.depth, name="/rear/depth/image", publishers=(), silent_s=9.0)
    seen = observation(cameras=(GOOD_CAMERA, replace(GOOD_CAMERA, depth=rear)))
    [cause] = likely_causes(seen, 30.0)
    assert "nobody publishes '/rear/depth/image'" in cause.text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(35.04, "35.0 ms"), (4400, "4.4 s"), (180e3, "3.0 min"), (10.8e6, "3.0 h")],
)
def test_durations_have_the_unit_that_suits_them(milliseconds, text):
    assert duration(milliseconds) == text
