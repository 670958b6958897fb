"""Which topics of a bag hold depth, colour, calibration and poses.

Topics that are not named are found by message type and the encoding of their first message; where
several fit, names decide (depth that is aligned with colour first), then the alphabet.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from unscene_ros.image_codecs import COLOR_ENCODINGS, is_depth_format
from unscene_ros.recordings.bags import Bag
from unscene_ros.scene import InputError

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
TRANSFORMS = "tf2_msgs/msg/TFMessage"
POSE_TYPES = (
    "nav_msgs/msg/Odometry",
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/PoseWithCovarianceStamped",
    "geometry_msgs/msg/TransformStamped",
)


@dataclass(frozen=True, slots=True)
class RecordingTopics:
    """Topics of a recording by their names; an empty name means: find it."""

    color: str = ""  # Image or CompressedImage
    depth: str = ""  # Image or CompressedImage
    color_info: str = ""  # CameraInfo of the colour topic
    depth_info: str = ""  # CameraInfo of the depth topic
    pose: str = ""  # Odometry, PoseStamped, PoseWithCovarianceStamped or TransformStamped
    world_frame: str = ""  # the frame to build the map in


@dataclass(frozen=True, slots=True)
class _ImageTopic:
    name: str
    is_compressed: bool
    is_depth: bool
    frame_id: str

    def says(self, *words: str) -> bool:
        return any(word in self.name.lower() for word in words)


def choose_topics(bag: Bag, named: RecordingTopics) -> RecordingTopics:
    """`named` with every empty topic filled in, except a colour or pose topic that is not there.

    `world_frame` is left as it is. Raises InputError, listing what the bag holds, for a named topic
    that is missing or of a wrong type, and when there is no depth or no CameraInfo for it.
    """
    for name, types in (
        (named.color, (IMAGE, COMPRESSED_IMAGE)),
        (named.depth, (IMAGE, COMPRESSED_IMAGE)),
        (named.color_info, (CAMERA_INFO,)),
        (named.depth_info, (CAMERA_INFO,)),
        (named.pose, POSE_TYPES),
    ):
        if name:
            _check_topic(bag, name, types)
    images = _image_topics(bag)
    depth = _look_at(bag, named.depth) if named.depth else _choose_depth(bag, images)
    color = _look_at(bag, named.color) if named.color else _choose_color(images, depth)
    infos = _recorded(bag, CAMERA_INFO)
    depth_info = named.depth_info or _info_of(depth.name, infos)
    color_info = named.color_info or (_info_of(color.name, infos) if color else "")
    if not depth_info and _is_aligned(depth):
        depth_info = color_info
    if not depth_info and len(infos) == 1:
        depth_info = infos[0]
    if not depth_info:
        raise InputError(
            f"{bag.path}: expected a CameraInfo topic beside the depth topic '{depth.name}', got "
            f"none: name it or record it. The bag holds:\n{bag.topic_list()}"
        )
    return replace(
        named,
        depth=depth.name,
        depth_info=depth_info,
        color=color.name if color else "",
        color_info=color_info or depth_info,
        pose=named.pose or next(iter(_recorded(bag, *POSE_TYPES)), ""),
    )


def _check_topic(bag: Bag, name: str, types: tuple[str, ...]) -> None:
    if name not in bag.type_of:
        near = difflib.get_close_matches(name, bag.type_of, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise InputError(
            f"{bag.path}: there is no topic '{name}'{hint}. The bag holds:\n{bag.topic_list()}"
        )
    if bag.type_of[name] not in types:
        raise InputError(
            f"{bag.path}: topic '{name}': expected {' or '.join(types)}, got {bag.type_of[name]}"
        )
    if not bag.count_of[name]:
        raise InputError(f"{bag.path}: topic '{name}' has no messages: name another one")


def _recorded(bag: Bag, *types: str) -> list[str]:
    """The topics of these types that have messages, types in the given order, names sorted."""
    return [
        topic
        for wanted in types
        for topic in sorted(bag.type_of)
        if bag.type_of[topic] == wanted and bag.count_of[topic]
    ]


def _look_at(bag: Bag, name: str) -> _ImageTopic:
    """What the first message of an image topic says about it."""
    message = bag.first(name)
    is_compressed = bag.type_of[name] == COMPRESSED_IMAGE
    image_format = message.format if is_compressed else message.encoding
    is_color = not is_compressed and image_format in COLOR_ENCODINGS
    is_depth = is_depth_format(image_format)
    if not is_compressed and not is_color and not is_depth:
        is_depth = "depth" in name.lower()  # an encoding that nobody here knows
    return _ImageTopic(name, is_compressed, is_depth, message.header.frame_id)


def _image_topics(bag: Bag) -> list[_ImageTopic]:
    """All image topics whose first message is readable."""
    images = []
    for name in _recorded(bag, IMAGE, COMPRESSED_IMAGE):
        try:
            images.append(_look_at(bag, name))
        except InputError as error:
            bag.warn(str(error))
    return images


def _is_aligned(depth: _ImageTopic) -> bool:
    return depth.says("aligned", "registered")


def _choose_depth(bag: Bag, images: list[_ImageTopic]) -> _ImageTopic:
    candidates = [image for image in images if image.is_depth]
    if not candidates:
        raise InputError(
            f"{bag.path}: expected a depth topic (Image 16UC1 or 32FC1, or compressedDepth), got "
            f"none: name one or record one. The bag holds:\n{bag.topic_list()}"
        )
    return min(
        candidates,
        key=lambda d: (not _is_aligned(d), not d.says("depth"), d.is_compressed, d.name),
    )


def _choose_color(images: list[_ImageTopic], depth: _ImageTopic) -> _ImageTopic | None:
    candidates = [image for image in images if not image.is_depth]
    return min(
        candidates,
        key=lambda c: (
            c.frame_id != depth.frame_id,
            not c.says("color", "rgb"),
            c.says("infra", "/ir/", "mono", "gray", "grey"),
            -_shared_namespaces(c.name, depth.name),
            c.is_compressed,
            c.name,
        ),
        default=None,
    )


def _shared_namespaces(one: str, other: str) -> int:
    """How many leading parts two topic names share."""
    pairs = zip(one.split("/"), other.split("/"), strict=False)
    same = [a == b for a, b in pairs]
    return same.index(False) if False in same else len(same)


def _info_of(image_topic: str, infos: list[str]) -> str:
    """The CameraInfo topic beside an image topic, or beside the raw one of a compressed topic."""
    parents = image_topic.split("/")
    for depth in (1, 2):
        beside = "/".join([*parents[:-depth], "camera_info"])
        if beside in infos:
            return beside
    return ""
