"""What is seen of a node's inputs -> why no frame comes of it, and what to do about that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from unscene_ros import image_codecs
from unscene_ros.nodes.observation import PICTURE_TYPES, Observation, ObservedCamera, Topic
from unscene_ros.transforms import TransformError

PAUSE_S = 2.0  # a camera, a clock or TF that pauses for less is at work
OTHER_CLOCK_S = 600.0  # no delay is that long: these stamps are of different clocks

ONE_CLOCK = (
    "play a recording with `ros2 bag play --clock`, use_sim_time true everywhere and nothing live "
    "beside it; synchronise the clocks of several computers (chrony)"
)


class Cause(NamedTuple):
    """Something that keeps frames from being made, and what to do about it."""

    kind: Literal[
        "sim time",
        "wrong topic",
        "wrong type",
        "incompatible QoS",
        "silent",
        "no CameraInfo",
        "wrong encoding",
        "unsynchronised",
        "no TF",
        "TF not connected",
        "TF too old",
        "TF too seldom",
        "other clock",
        "dropped",
        "unknown",
    ]
    text: str


def likely_causes(seen: Observation, max_color_gap_ms: float) -> list[Cause]:
    """All that can be the cause, in the order in which data flows; at least one."""
    causes = list(_sim_time(seen))
    for camera in seen.cameras:
        causes += _camera(camera, max_color_gap_ms)
    causes += _transforms(seen)
    if causes:
        return causes
    if seen.drops:
        reasons = "; ".join(f"{reason}: {text}" for reason, text in seen.drops.items())
        return [Cause("dropped", f"every frame is dropped, {reasons}")]
    return [Cause("unknown", "none that is known, as pictures, CameraInfo and TF come and fit")]


def duration(milliseconds: float) -> str:
    """In the unit that suits it."""
    for limit, unit, size in ((2e3, "ms", 1), (120e3, "s", 1e3), (7.2e6, "min", 60e3)):
        if milliseconds < limit:
            return f"{milliseconds / size:.1f} {unit}"
    return f"{milliseconds / 3.6e6:.1f} h"


def _is_live(topic: Topic) -> bool:
    return topic.silent_s < PAUSE_S


def _sim_time(seen: Observation) -> Iterator[Cause]:
    """Only without pictures: those that come are used whatever the node's own clock says."""
    pictures = [topic for camera in seen.cameras for topic in (camera.color, camera.depth)]
    if not seen.simulated or seen.clock_still_s < PAUSE_S or any(map(_is_live, pictures)):
        return
    if seen.clock.publishers:
        yield Cause(
            "sim time",
            f"simulated time has stood still for {seen.clock_still_s:.0f} s, "
            f"'{seen.clock.name}' is at {seen.clock_ns / 1e9:.3f} s: is the simulation or the "
            "recording paused?",
        )
    else:
        yield Cause(
            "sim time",
            f"use_sim_time is true, but nobody publishes '{seen.clock.name}': start the simulation "
            "or `ros2 bag play --clock`; on a robot set use_sim_time to false",
        )


def _camera(camera: ObservedCamera, max_color_gap_ms: float) -> Iterator[Cause]:
    color, depth = camera.color, camera.depth
    for topic, info, info_problem, is_known in (
        (color, camera.color_info, camera.color_info_problem, _is_color),
        (depth, camera.depth_info, camera.depth_info_problem, _is_depth),
    ):
        yield from _delivery(topic)
        if info_problem:
            yield from _camera_info(info, info_problem, has_pictures=_is_live(topic))
        if _is_live(topic) and not is_known(topic):
            yield Cause(
                "wrong encoding",
                f"'{topic.name}' carries '{topic.encoding}', which {topic.content} cannot be: "
                f"remap `{topic.alias}` to the topic that has them",
            )
    if _is_live(color) and _is_live(depth) and camera.color_gap_ms > max_color_gap_ms:
        apart = (
            f"'{color.name}' and '{depth.name}' are stamped {duration(camera.color_gap_ms)} apart"
        )
        if camera.color_gap_ms > OTHER_CLOCK_S * 1e3:
            yield Cause("other clock", f"{apart}, so by different clocks: {ONE_CLOCK}")
        else:
            yield Cause(
                "unsynchronised",
                f"{apart}, allowed are {max_color_gap_ms:.1f} ms: switch on the driver's "
                "synchronisation or raise synchronization.max_color_gap_s",
            )


def _is_color(topic: Topic) -> bool:
    if topic.type.endswith("CompressedImage"):
        return not image_codecs.is_depth_format(topic.encoding)
    return topic.encoding in image_codecs.COLOR_ENCODINGS


def _is_depth(topic: Topic) -> bool:
    if topic.type.endswith("CompressedImage"):
        return image_codecs.is_depth_format(topic.encoding) or "png" in topic.encoding
    return topic.encoding in image_codecs.DEPTH_ENCODINGS


def _camera_info(info: Topic, problem: str, has_pictures: bool) -> Iterator[Cause]:
    if info.received:
        yield Cause("no CameraInfo", f"CameraInfo on '{info.name}' cannot be used: {problem}")
        return
    for cause in _delivery(info):
        if has_pictures or cause.kind != "silent":  # a camera that is off sends neither
            yield Cause("no CameraInfo", cause.text)


def _delivery(topic: Topic) -> Iterator[Cause]:
    """Why nothing comes on a topic."""
    if _is_live(topic):
        return
    of_type = [publisher for publisher in topic.publishers if publisher.type == topic.type]
    if not topic.publishers:
        nobody = f"nobody publishes '{topic.name}' ({topic.content}, {topic.type})"
        yield Cause("wrong topic", f"{nobody}; {_remedy(topic)}")
    elif not of_type:
        types = ", ".join(f"{p.type} from {p.node}" for p in topic.publishers)
        wrong = f"'{topic.name}' has {types}, but {topic.content} have to be {topic.type}"
        yield Cause("wrong type", f"{wrong}; {_remedy(topic)}")
    elif all(publisher.conflict for publisher in of_type):
        yield _conflict(topic)
    else:
        since = f"for {topic.silent_s:.0f} s" if topic.received else "so far"
        lost = ", or does the network lose large messages (config/fastdds.xml)"
        yield Cause(
            "silent",
            f"nothing has come on '{topic.name}' {since}, though {of_type[0].node} publishes it: "
            f"is the sensor at work (`ros2 topic hz {topic.name}`)"
            f"{lost if topic.type in PICTURE_TYPES else ''}?",
        )


def _remedy(topic: Topic) -> str:
    if not topic.nearest:
        return "no other topic has such data: is the driver running, and in our ROS_DOMAIN_ID?"
    if _raw(topic.nearest) == _raw(topic.name):
        return f"'{topic.nearest}' is published: set the parameter transport to auto"
    return (
        f"the nearest topic with such data is '{topic.nearest}': remap `{topic.alias}` to "
        f"{_raw(topic.nearest)}"
    )


def _raw(name: str) -> str:
    """The topic that a compressed one hangs on, which is the one to remap."""
    return name.removesuffix("/compressed").removesuffix("/compressedDepth")


def _conflict(topic: Topic) -> Cause:
    publisher = next(publisher for publisher in topic.publishers if publisher.conflict)
    ask_less = ", or set cameras.reliable to false" if topic.alias else ""
    return Cause(
        "incompatible QoS",
        f"'{topic.name}' is not delivered, {publisher.conflict}: {publisher.node} offers "
        f"{publisher.qos}, this node asks for {topic.qos}; make the publisher offer that{ask_less}",
    )


def _transforms(seen: Observation) -> Iterator[Cause]:
    for topic in seen.transform_topics:
        if any(publisher.conflict for publisher in topic.publishers):
            yield _conflict(topic)
    if not seen.frames:
        names = " or ".join(f"'{topic.name}'" for topic in seen.transform_topics)
        nodes = [p.node for topic in seen.transform_topics for p in topic.publishers]
        who = f"though {nodes[0]} publishes" if nodes else "as nobody publishes"
        yield Cause(
            "no TF",
            f"no transform has come on {names}, {who} there: start the localisation and "
            "robot_state_publisher; a recording has to hold both topics",
        )
        return
    for camera in seen.cameras:
        for error in camera.pose_errors:
            yield from _pose_error(error, seen.frames)


def _pose_error(error: TransformError, frames: tuple[str, ...]) -> Iterator[Cause]:
    gap, behind = duration(error.gap_ms), error.reason == "in the future"
    if error.reason in ("unknown frame", "not connected"):
        yield Cause(
            "TF not connected",
            f"{error}; frames that exist: {', '.join(frames)}. Publish what is missing, or correct "
            "world_frame or the camera's frame (its driver's frame_id, or cameras.frames)",
        )
    elif error.reason == "not finite":
        yield Cause("TF not connected", f"{error}: what publishes this transform is at fault")
    elif error.reason == "gap":
        yield Cause("TF too seldom", f"{error}: synchronization.max_pose_gap_s allows longer gaps")
    elif error.gap_ms > OTHER_CLOCK_S * 1e3:
        yield Cause(
            "other clock",
            f"the pictures are stamped {gap} {'after' if behind else 'before'} TF, so by different "
            f"clocks ({error}): {ONE_CLOCK}",
        )
    elif not behind:
        yield Cause("TF too old", f"the pictures come too late for TF, by {gap}: {error}")
    elif error.gap_ms > PAUSE_S * 1e3:
        yield Cause(
            "TF too old",
            f"TF is {gap} behind the pictures: {error}; is what publishes it still running?",
        )
