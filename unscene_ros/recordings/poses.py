"""Where the camera of a bag was at any recorded instant, from TF or from a topic of poses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unscene_ros.recordings.bags import Bag, BagMessage
from unscene_ros.recordings.topics import TRANSFORMS, RecordingTopics
from unscene_ros.scene import InputError
from unscene_ros.transforms import (
    PoseTrack,
    TransformError,
    TransformTree,
    matrix_from_pose,
)

_PREFERRED_WORLD_FRAMES = ("map", "odom", "world")
# The tree of frames is judged by what is recorded in this time from its first message on.
_TREE_SAMPLE_NS = 5_000_000_000


class BagPoses:
    """Finds out how a bag tells the camera's pose: by TF alone or by a topic of poses.

    A topic of poses is used when it is named, or when nothing in TF moves the camera.
    """

    def __init__(
        self, bag: Bag, found: RecordingTopics, named: RecordingTopics, camera_frame: str
    ) -> None:
        """Raises InputError when there is neither TF nor a pose topic for this camera."""
        self.tf_topics = [topic for topic, kind in bag.type_of.items() if kind == TRANSFORMS]
        self.static_topics = [topic for topic in self.tf_topics if _is_static(topic)]
        named_world = named.world_frame.strip("/")
        tree = self._sample_tree(bag, camera_frame, {camera_frame.strip("/"), named_world} - {""})
        moves = tree.moves(camera_frame)
        self.pose_topic = named.pose or ("" if moves else found.pose)
        if self.pose_topic:
            frame = bag.first(self.pose_topic).header.frame_id
            self.world_frame = named_world or frame.strip("/") or "world"
            return
        self.world_frame = named_world or _choose_world_frame(bag, tree, camera_frame)
        if self.world_frame not in tree.frames:
            raise InputError(
                f"{bag.path}: the world frame '{self.world_frame}' is not in TF, which holds: "
                f"{', '.join(sorted(tree.frames)) or 'nothing'}"
            )
        if not moves:
            bag.warn(f"{bag.path}: nothing in TF moves the camera '{camera_frame}'")

    def start(self, history_s: float, max_gap_s: float) -> PosesSoFar:
        """Nothing read yet, for one pass over the bag."""
        return PosesSoFar(self.world_frame, bool(self.pose_topic), history_s, max_gap_s)

    def _sample_tree(self, bag: Bag, camera_frame: str, wanted: set[str]) -> TransformTree:
        """The frames known after a few seconds, or as late as the camera moves with all wanted."""
        poses = PosesSoFar("", by_topic=False, history_s=_TREE_SAMPLE_NS / 1e9)
        start_ns = None
        for message in bag.messages(self.tf_topics):
            start_ns = message.recorded_ns if start_ns is None else start_ns
            is_known = poses.tree.moves(camera_frame) and wanted <= poses.tree.frames
            if message.recorded_ns > start_ns + _TREE_SAMPLE_NS and is_known:
                break
            try:
                poses.take_transforms(bag.deserialize(message), message)
            except InputError as error:
                bag.warn(f"topic '{message.topic}': {error}")
        return poses.tree


class PosesSoFar:
    """The transforms and poses read up to now in one pass over a bag."""

    def __init__(
        self, world_frame: str, by_topic: bool, history_s: float, max_gap_s: float = math.inf
    ) -> None:
        self.tree = TransformTree(history_s, max_gap_s)
        self._world_frame = world_frame
        self._by_topic = by_topic
        self._track = PoseTrack(history_s, max_gap_s)
        self._track_parent = self._track_child = ""

    def take_transforms(self, content: Any, message: BagMessage) -> None:
        """Adds a tf2_msgs/TFMessage."""
        for transform in content.transforms:
            self.tree.add(
                transform.header.frame_id,
                transform.child_frame_id,
                stamp_ns_of(transform.header, message),
                _matrix(transform.transform.translation, transform.transform.rotation),
                static=_is_static(message.topic),
            )

    def take_pose(self, content: Any, message: BagMessage) -> None:
        """Adds a message of a pose type.

        Odometry and TransformStamped name the frame they place; the other types place the camera.
        """
        self._track_parent = content.header.frame_id
        self._track_child = getattr(content, "child_frame_id", "")
        if hasattr(content, "transform"):
            pose = _matrix(content.transform.translation, content.transform.rotation)
        else:
            inner = getattr(content.pose, "pose", content.pose)  # with covariance one level deeper
            pose = _matrix(inner.position, inner.orientation)
        self._track.add(stamp_ns_of(content.header, message), pose)

    def world_from_camera(self, camera_frame: str, stamp_ns: int) -> np.ndarray:
        """The camera's pose (4, 4); raises TransformError saying what is missing."""
        if not self._by_topic:
            return self.tree.lookup(self._world_frame, camera_frame, stamp_ns)
        try:
            parent_from_body = self._track.lookup(stamp_ns)
        except TransformError as error:
            raise TransformError(
                f"no pose of '{self._track_child or camera_frame}' in '{self._world_frame}' at "
                f"{stamp_ns / 1e9:.3f} s: {error}",
                error.reason,
                error.gap_ms,
            ) from None
        parent = self._track_parent or self._world_frame
        world_from_parent = self.tree.lookup(self._world_frame, parent, stamp_ns)
        body = self._track_child or camera_frame
        return world_from_parent @ parent_from_body @ self.tree.lookup(body, camera_frame, stamp_ns)


def stamp_ns_of(header: Any, message: BagMessage) -> int:
    """The header's stamp, or the time of recording where a driver left it empty."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec or message.recorded_ns


def _is_static(topic: str) -> bool:
    return topic.endswith("tf_static")


def _choose_world_frame(bag: Bag, tree: TransformTree, camera_frame: str) -> str:
    """The frame that the map is built in: the root of the camera's tree, or a better-known one."""
    chain = tree.ancestors(camera_frame)
    if len(chain) == 1:
        known = ", ".join(sorted(tree.frames)) or "nothing"
        raise InputError(
            f"{bag.path}: expected the pose of the depth camera '{camera_frame}' in TF or on a "
            f"pose topic, got TF that holds {known}: record /tf and /tf_static, or a topic of type "
            f"Odometry or PoseStamped. The bag holds:\n{bag.topic_list()}"
        )
    return next((frame for frame in _PREFERRED_WORLD_FRAMES if frame in chain), chain[-1])


def _matrix(translation: Any, rotation: Any) -> np.ndarray:
    return matrix_from_pose(
        (translation.x, translation.y, translation.z),
        (rotation.x, rotation.y, rotation.z, rotation.w),
    )
