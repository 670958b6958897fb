"""The messages of a bag -> frames: topics chosen, pictures paired, poses looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unscene_ros import image_codecs
from unscene_ros.recordings.bags import Bag, BagMessage
from unscene_ros.recordings.poses import BagPoses, PosesSoFar, stamp_ns_of
from unscene_ros.recordings.topics import RecordingTopics, choose_topics
from unscene_ros.registration import Calibration, is_rectified
from unscene_ros.scene import Frame, InputError
from unscene_ros.synchronization import (
    Drops,
    FrameAssembler,
    StampedPicture,
    SynchronizationConfig,
)

Taker = Callable[[Any, BagMessage], None]  # gets a message deserialised and as it was recorded


class BagFrames:
    """The frames of one bag. Opening it finds topics, world frame and where poses come from."""

    def __init__(
        self,
        path: Path,
        topics: RecordingTopics | None = None,
        synchronization: SynchronizationConfig | None = None,
    ) -> None:
        """Raises InputError when the bag cannot give frames, saying what it holds instead."""
        self._bag = Bag(path)
        self.warnings = self._bag.warnings
        self._synchronization = synchronization or SynchronizationConfig()
        named = topics or RecordingTopics()
        self.topics = choose_topics(self._bag, named)
        camera_frame = self._bag.first(self.topics.depth).header.frame_id
        self._poses = BagPoses(self._bag, self.topics, named, camera_frame)
        self._pictures()  # refuses an uncalibrated camera now
        if not self.topics.color:
            self._bag.warn(f"{path}: no colour topic: all frames are grey")

    def __len__(self) -> int:
        return self._bag.count_of[self.topics.depth]

    def summary(self) -> str:
        """What was found, in a few words."""
        return (
            f"{len(self)} depth pictures on {self.topics.depth}, colour on "
            f"{self.topics.color or 'no topic'}, poses in '{self._poses.world_frame}' from "
            f"{self._poses.pose_topic or 'TF'}"
        )

    def frames(self, drops: Drops) -> Iterator[Frame]:
        """The frames in recorded order; what cannot be used is counted in `drops`."""
        config = self._synchronization
        poses = self._poses.start(config.pose_history_s, config.max_pose_gap_s)
        assembler = FrameAssembler(
            poses.world_from_camera,
            poses.tree.lookup,
            drops,
            config,
            with_color=bool(self.topics.color),
        )
        takers = self._takers(poses, assembler)
        # A fixed transform holds from the start, however late it was recorded; of several for one
        # frame the first is taken last, so that it is in force when reading begins.
        fixed = list(self._bag.messages(self._poses.static_topics))
        for message in reversed(fixed):
            self._take(takers, message, drops)
        for message in self._bag.messages(takers):
            self._take(takers, message, drops)
            yield from assembler.frames()
        yield from assembler.frames(finished=True)

    def _pictures(self) -> tuple[_PictureTopic, _PictureTopic | None]:
        """The depth and the colour topic, with their first CameraInfo."""
        topics = self.topics
        depth = _PictureTopic(self._bag, topics.depth, topics.depth_info, is_depth=True)
        if not topics.color:
            return depth, None
        return depth, _PictureTopic(self._bag, topics.color, topics.color_info, is_depth=False)

    def _takers(self, poses: PosesSoFar, assembler: FrameAssembler) -> dict[str, list[Taker]]:
        """What is done with the messages of each topic."""
        depth, color = self._pictures()
        takers: dict[str, list[Taker]] = {
            self.topics.depth: [depth.passing_to(assembler.add_depth)]
        }
        takers[self.topics.depth_info] = [depth.take_info]
        if color:
            takers[self.topics.color] = [color.passing_to(assembler.add_color)]
            takers.setdefault(self.topics.color_info, []).append(color.take_info)
        for topic in self._poses.tf_topics:
            takers[topic] = [poses.take_transforms]
        if self._poses.pose_topic:
            takers[self._poses.pose_topic] = [poses.take_pose]
        return takers

    def _take(self, takers: dict[str, list[Taker]], message: BagMessage, drops: Drops) -> None:
        """A malformed message costs itself, never the recording."""
        try:
            content = self._bag.deserialize(message)
            for take in takers[message.topic]:
                take(content, message)
        except InputError as error:
            if message.topic == self.topics.depth:
                drops.add("undecodable", str(error))
            else:
                self._bag.warn(f"topic '{message.topic}': {error}")


class _PictureTopic:
    """One image topic and the newest word of its CameraInfo."""

    def __init__(self, bag: Bag, image_topic: str, info_topic: str, is_depth: bool) -> None:
        self._is_depth = is_depth
        self._is_rectified = is_rectified(image_topic)
        info = bag.first(info_topic)
        try:
            self._calibration = Calibration.from_camera_info(info, self._is_rectified)
        except InputError as error:
            raise InputError(f"{bag.path}: topic '{info_topic}': {error}") from error

    def take_info(self, content: Any, message: BagMessage) -> None:
        """Follows a camera that changes its picture, as when it zooms."""
        calibration = Calibration.from_camera_info(content, self._is_rectified)
        if not calibration.equals(self._calibration):
            self._calibration = calibration

    def passing_to(self, receive: Callable[[StampedPicture], None]) -> Taker:
        """Hands the pictures on, undecoded."""

        def take_image(content: Any, message: BagMessage) -> None:
            stamp_ns = stamp_ns_of(content.header, message)
            decode = partial(_decode, content, self._is_depth)
            receive(StampedPicture(stamp_ns, content.header.frame_id, self._calibration, decode))

        return take_image


def _decode(content: Any, is_depth: bool) -> np.ndarray:
    """The picture in a sensor_msgs Image or CompressedImage."""
    if hasattr(content, "format"):
        if is_depth:
            return image_codecs.decode_compressed_depth(content.format, content.data)
        return image_codecs.decode_compressed_color(content.format, content.data)
    decode = image_codecs.decode_depth if is_depth else image_codecs.decode_color
    layout = (content.encoding, content.height, content.width, content.step, content.is_bigendian)
    return decode(*layout, content.data)
