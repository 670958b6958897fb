"""What a node sees of its inputs: who publishes them and how, what has come, what TF knows.

From the node graph and from what the subscriptions have noted; `causes.py` draws the conclusions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Protocol

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible

from unscene_ros.nodes.picture_topic import Arrivals, PictureTopic
from unscene_ros.transforms import TransformError, TransformTree

PICTURE_TYPES = {"sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"}
NEWEST_PAIRS = 10  # depth pictures whose distance to colour is looked at


class Camera(Protocol):
    """What is asked of a camera: its name, its topics, and a TF frame if the user gave it one."""

    name: str
    frame: str
    color: PictureTopic
    depth: PictureTopic


@dataclass(frozen=True, slots=True)
class Publisher:
    """Somebody who publishes a topic; `conflict` says why his QoS keeps us from getting it."""

    node: str
    type: str
    qos: str
    conflict: str = ""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic that a node listens to, with the type and QoS that it asks for."""

    content: str  # what is on it, in words
    name: str
    type: str
    qos: str
    alias: str = ""  # its name before remapping
    publishers: tuple[Publisher, ...] = ()
    nearest: str = ""  # the most similar topic with such data, where nobody publishes this one so
    received: int | None = None  # None: nobody has counted
    silent_s: float = math.inf  # since the newest message
    encoding: str = ""
    frame_id: str = ""


@dataclass(frozen=True, slots=True)
class ObservedCamera:
    """The topics of one camera and how they fit together."""

    color: Topic
    depth: Topic
    color_info: Topic
    depth_info: Topic
    color_info_problem: str = ""
    depth_info_problem: str = ""
    color_stamp_ns: int | None = None  # of the newest picture
    depth_stamp_ns: int | None = None
    color_gap_ms: float = 0.0  # from a depth picture to the nearest colour picture, typically
    pose_errors: tuple[TransformError, ...] = ()  # why the newest depth picture has no place


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that an explanation is drawn from."""

    cameras: tuple[ObservedCamera, ...]
    transform_topics: tuple[Topic, ...]
    frames: tuple[str, ...]  # that TF has named
    transform_stamp_ns: int | None  # of the newest transform
    clock: Topic
    simulated: bool  # use_sim_time
    clock_ns: int
    clock_still_s: float
    drops: dict[str, str]  # reason -> the newest explanation, of the time without frames


class StillClock:
    """For how long the clock of a node has not moved; it has to be asked again and again."""

    def __init__(self, node: Node) -> None:
        self._clock = node.get_clock()
        self._last_ns = -1
        self._moved_at_s = time.monotonic()

    def still_s(self) -> float:
        """Seconds since a call saw it move."""
        now_s, now_ns = time.monotonic(), self._clock.now().nanoseconds
        if now_ns != self._last_ns and self._last_ns >= 0:
            self._moved_at_s = now_s
        self._last_ns = now_ns
        return now_s - self._moved_at_s


def observe(
    node: Node,
    cameras: Iterable[Camera],
    transforms: TransformTree,
    world_frame: str,
    clock_still_s: float,
    drops: dict[str, str],
) -> Observation:
    """The state of things now; `drops` and `clock_still_s` are handed through."""
    tf, tf_static, clock = map(node.resolve_topic_name, ("/tf", "/tf_static", "/clock"))
    return Observation(
        cameras=tuple(_camera(node, camera, transforms, world_frame) for camera in cameras),
        transform_topics=(
            _topic(node, "transforms", tf),
            _topic(node, "fixed transforms", tf_static),
        ),
        frames=tuple(sorted(transforms.frames)),
        transform_stamp_ns=transforms.newest_ns,
        clock=_topic(node, "simulated time", clock),
        simulated=node.get_parameter("use_sim_time").value,
        clock_ns=node.get_clock().now().nanoseconds,
        clock_still_s=clock_still_s,
        drops=drops,
    )


def _camera(
    node: Node, camera: Camera, transforms: TransformTree, world_frame: str
) -> ObservedCamera:
    color, depth = camera.color, camera.depth
    prefix = f"{camera.name}/" if camera.name else ""
    owner = f"{camera.name} " if camera.name else ""
    color_stamps, depth_stamps = list(color.pictures.stamps_ns), list(depth.pictures.stamps_ns)
    errors: tuple[TransformError, ...] = ()
    if depth_stamps:
        depth_frame = camera.frame or depth.pictures.frame_id
        color_frame = camera.frame or color.pictures.frame_id or depth_frame
        targets = (world_frame, color_frame)
        errors = _pose_errors(transforms, targets, depth_frame, depth_stamps[-1])

    def topic(content: str, alias: str, name: str, arrivals: Arrivals) -> Topic:
        return _topic(node, owner + content, name, prefix + alias, arrivals)

    return ObservedCamera(
        color=topic("colour pictures", "rgb/image", color.subscribed_topic, color.pictures),
        depth=topic("depth pictures", "depth/image", depth.subscribed_topic, depth.pictures),
        color_info=topic("colour CameraInfo", "rgb/camera_info", color.info_topic, color.infos),
        depth_info=topic("depth CameraInfo", "depth/camera_info", depth.info_topic, depth.infos),
        color_info_problem=color.info_problem,
        depth_info_problem=depth.info_problem,
        color_stamp_ns=color_stamps[-1] if color_stamps else None,
        depth_stamp_ns=depth_stamps[-1] if depth_stamps else None,
        color_gap_ms=_gap_ms(depth_stamps[-NEWEST_PAIRS:], color_stamps),
        pose_errors=errors,
    )


def _pose_errors(
    transforms: TransformTree, targets: Iterable[str], source: str, stamp_ns: int
) -> tuple[TransformError, ...]:
    errors = []
    for target in targets:
        try:
            transforms.lookup(target, source, stamp_ns)
        except TransformError as error:
            errors.append(error)
    return tuple(errors)


def _gap_ms(depth_stamps_ns: Sequence[int], color_stamps_ns: Sequence[int]) -> float:
    """The median distance from a depth stamp to the nearest colour stamp; 0 where none is known."""
    if not depth_stamps_ns or not color_stamps_ns:
        return 0.0
    gaps = np.abs(np.subtract.outer(depth_stamps_ns, color_stamps_ns)).min(axis=1)
    return float(np.median(gaps)) / 1e6


def _topic(
    node: Node, content: str, name: str, alias: str = "", arrivals: Arrivals | None = None
) -> Topic:
    """A topic, by its resolved name, as the graph shows it with our own subscription."""
    us = node.get_name(), node.get_namespace()
    subscriptions = node.get_subscriptions_info_by_topic(name)
    ours = [s for s in subscriptions if (s.node_name, s.node_namespace) == us]
    wanted_type = ours[0].topic_type if ours else ""
    wanted_qos = ours[0].qos_profile if ours else None
    publishers = tuple(
        Publisher(
            _full_name(publisher.node_namespace, publisher.node_name),
            publisher.topic_type,
            _text(publisher.qos_profile),
            _conflict(publisher.qos_profile, wanted_qos) if wanted_qos else "",
        )
        for publisher in node.get_publishers_info_by_topic(name)
    )
    lacking = all(publisher.type != wanted_type for publisher in publishers)
    came = arrivals or Arrivals()
    return Topic(
        content,
        name,
        wanted_type,
        _text(wanted_qos) if wanted_qos else "",
        alias,
        publishers,
        _nearest(node, name, wanted_type) if lacking else "",
        came.count if arrivals else None,
        time.monotonic() - came.at_s,
        came.encoding,
        came.frame_id,
    )


def _full_name(namespace: str, name: str) -> str:
    if "UNKNOWN" in name:  # known by its topic, not yet by its node
        return "an unknown node"
    return f"{namespace.rstrip('/')}/{name}"


def _text(profile: QoSProfile) -> str:
    policies = profile.reliability.short_key, profile.durability.short_key
    return ", ".join(policy.replace("_", " ") for policy in policies)


def _conflict(offered: QoSProfile, wanted: QoSProfile) -> str:
    """Both sides of what keeps messages from being delivered, in words."""
    compatibility, reason = qos_check_compatible(offered, wanted)
    if compatibility != QoSCompatibility.ERROR:
        return ""
    errors = [part for part in reason.split(";") if part.startswith("ERROR: ")]
    return " and ".join(error.removeprefix("ERROR: ").lower() for error in errors)


def _nearest(node: Node, wanted: str, wanted_type: str) -> str:
    """The published topic of this type whose name is most like the wanted one; empty for none."""
    types = PICTURE_TYPES if wanted_type in PICTURE_TYPES else {wanted_type}
    us = node.get_name(), node.get_namespace()
    taken = {name for name, _ in node.get_subscriber_names_and_types_by_node(*us)}
    names = [
        name
        for name, found in node.get_topic_names_and_types()
        if types & set(found) and name not in taken and node.count_publishers(name)
    ]
    return max(names, key=lambda name: _likeness(name, wanted), default="")


def _likeness(name: str, wanted: str) -> tuple[bool, int, float]:
    """Depth or not counts most, then the parts at the end, then the letters."""
    same_end = 0
    for part, wanted_part in zip(name.split("/")[::-1], wanted.split("/")[::-1], strict=False):
        if part != wanted_part:
            break
        same_end += 1
    same_kind = ("depth" in name) == ("depth" in wanted)
    return same_kind, same_end, SequenceMatcher(None, name, wanted).ratio()
