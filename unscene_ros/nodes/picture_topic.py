"""The image topic of a camera with its CameraInfo -> stamped pictures, raw or compressed."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from unscene_ros.nodes import qos
from unscene_ros.nodes.conversions import picture_from_msg, stamp_ns_of
from unscene_ros.registration import Calibration, is_rectified
from unscene_ros.scene import InputError
from unscene_ros.synchronization import StampedPicture

Transport = Literal["auto", "raw", "compressed"]

LOOK_FOR_PUBLISHERS_S = 0.5
MAX_EARLY = 30  # pictures kept until their first CameraInfo
NEWEST_STAMPS = 40
COMPRESSED_NAME = {"rgb": "compressed", "depth": "compressedDepth"}


@dataclass(slots=True)
class Arrivals:
    """What has come on a topic: how much, and what the newest message said of itself."""

    count: int = 0
    at_s: float = -math.inf  # when the newest came, on the monotonic clock
    stamps_ns: deque[int] = field(default_factory=lambda: deque(maxlen=NEWEST_STAMPS))
    frame_id: str = ""
    encoding: str = ""  # or the format of a compressed picture

    def add(self, header: Header, encoding: str = "") -> None:
        """Notes one message that has come now."""
        self.count += 1
        self.at_s = time.monotonic()
        self.stamps_ns.append(stamp_ns_of(header))
        self.frame_id = header.frame_id
        self.encoding = encoding


class PictureTopic:
    """Subscribes to `<kind>/image` and `<kind>/camera_info` for a kind of "rgb" or "depth".

    Transport "auto" takes the raw topic, and changes over between it and the compressed one when
    only the other is published: subscribing to both would make a camera driver compress for
    nothing.
    """

    def __init__(
        self,
        node: Node,
        kind: Literal["rgb", "depth"],
        transport: Transport,
        max_wait_s: float,
        take: Callable[[StampedPicture], None],
        drop: Callable[[str, str], None],
        camera: str = "",
        reliable: bool = False,
    ) -> None:
        """A picture waits for the first CameraInfo until a later one is `max_wait_s` ahead of it.

        `drop(reason, explanation)` is called for each picture that `take` will not get. The topics
        of a camera with a name are below it. `reliable` asks for the delivery of every message.

        `topic` and `info_topic` are the resolved names, of the raw pictures and of CameraInfo;
        `pictures` and `infos` tell what has come.
        """
        self.pictures = Arrivals()
        self.infos = Arrivals()
        self._node = node
        self._take = take
        self._drop = drop
        self._max_wait_ns = max_wait_s * 1e9
        self._kind = kind
        self._early: deque[Image | CompressedImage] = deque()
        self._calibration: Calibration | None = None
        self._calibration_problem = "none has arrived"
        # Remapping the raw topic moves the compressed one along, as image_transport does it.
        place = f"{camera}/{kind}" if camera else kind
        self.topic = node.resolve_topic_name(f"{place}/image")
        self._compressed_topic = f"{self.topic}/{COMPRESSED_NAME[kind]}"
        self.info_topic = node.resolve_topic_name(f"{place}/camera_info")
        self._qos = qos.reliable(qos.SENSOR.depth) if reliable else qos.SENSOR
        self._info_subscription = node.create_subscription(
            CameraInfo, self.info_topic, self._take_info, self._qos
        )
        self._subscription = self._subscribe(compressed=transport == "compressed")
        self._look_timer = node.create_timer(
            LOOK_FOR_PUBLISHERS_S,
            self._take_what_is_published,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        if transport != "auto":
            self._look_timer.cancel()

    def close(self) -> None:
        """Ends both subscriptions."""
        self._node.destroy_timer(self._look_timer)
        self._node.destroy_subscription(self._subscription)
        self._node.destroy_subscription(self._info_subscription)

    @property
    def received(self) -> int:
        """The number of pictures."""
        return self.pictures.count

    @property
    def subscribed_topic(self) -> str:
        """The topic that pictures are taken from now, raw or compressed."""
        return self._subscription.topic_name

    @property
    def info_problem(self) -> str:
        """What is wrong with CameraInfo; empty when one was usable."""
        return "" if self._calibration else self._calibration_problem

    def _subscribe(self, compressed: bool):
        message_type = CompressedImage if compressed else Image
        topic = self._compressed_topic if compressed else self.topic
        return self._node.create_subscription(message_type, topic, self._take_image, self._qos)

    def _take_what_is_published(self) -> None:
        """Changes over to the other topic when it is the only one that is published."""
        is_raw = self.subscribed_topic == self.topic
        other = self._compressed_topic if is_raw else self.topic
        count = self._node.count_publishers
        if count(other) and not count(self.subscribed_topic):
            self._node.destroy_subscription(self._subscription)
            self._subscription = self._subscribe(compressed=is_raw)

    def _take_info(self, message: CameraInfo) -> None:
        self.infos.add(message.header)
        try:
            new = Calibration.from_camera_info(message, is_rectified(self.topic))
        except InputError as error:
            self._calibration_problem = str(error)
            return
        # The same object as long as nothing changes: what is computed from it is kept.
        if self._calibration is None or not new.equals(self._calibration):
            self._calibration = new
        while self._early:
            self._take(picture_from_msg(self._kind, self._early.popleft(), self._calibration))

    def _take_image(self, message: Image | CompressedImage) -> None:
        compressed = isinstance(message, CompressedImage)
        self.pictures.add(message.header, message.format if compressed else message.encoding)
        if self._calibration is not None:
            self._take(picture_from_msg(self._kind, message, self._calibration))
            return
        self._early.append(message)
        newest_ns = stamp_ns_of(message.header)
        oldest_ns = stamp_ns_of(self._early[0].header)
        if len(self._early) > MAX_EARLY or newest_ns - oldest_ns > self._max_wait_ns:
            self._early.popleft()
            self._drop(
                "no CameraInfo",
                f"{self._kind} picture at {oldest_ns / 1e9:.3f} s: no usable CameraInfo on "
                f"'{self.info_topic}' ({self._calibration_problem})",
            )
