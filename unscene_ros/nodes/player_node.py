"""Plays a recorded bag into topics of the same names, with /clock, as `ros2 bag play --clock` does.

For machines without rosbag2. Messages are passed on as they were recorded, without being decoded.
"""

from __future__ import annotations

import importlib
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock as ClockMsg

from unscene_ros.nodes import conversions, qos
from unscene_ros.nodes.diagnostics import Diagnostics
from unscene_ros.nodes.parameters import declare
from unscene_ros.nodes.run import run
from unscene_ros.recordings.bags import Bag, BagMessage
from unscene_ros.scene import InputError

TICK_S = 0.01
DIAGNOSTICS_PERIOD_S = 0.5
QUEUE_DEPTH = 50
LINGER_S = 1.0  # after the last message, so that it is delivered before the publishers are gone


@dataclass(frozen=True, slots=True)
class PlayerNodeConfig:
    """Parameters of the player node; topics are named as they were recorded."""

    bag: str = ""  # folder, .mcap or .db3 file
    rate: float = 1.0  # 2.0 plays twice as fast
    loop: bool = False  # start over at the end, with the recorded stamps again
    topics: tuple[str, ...] = ()  # what to play; everything when empty
    # Topics that need a subscriber before the first message, two if named twice; a raw name means
    # its compressed topic where only that was recorded.
    wait_for: tuple[str, ...] = ()
    wait_timeout_s: float = 60.0  # start without them after this time

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise InputError(f"rate: expected more than 0, got {self.rate}")


class PlayerNode(Node):
    """A bag -> its topics and /clock; the process ends when everything was played."""

    def __init__(self) -> None:
        super().__init__("player_node")
        config = self._config = declare(self, PlayerNodeConfig)
        if not config.bag:
            raise InputError("bag: expected the path of a recording, got none: add -p bag:=PATH")
        self._bag = Bag(Path(config.bag))
        self._publisher_of = {
            topic: self._make_publisher(topic) for topic in self._topics_to_play()
        }
        self._awaited = self._subscribers_to_wait_for()
        self._clock_publisher = self.create_publisher(ClockMsg, "/clock", qos.CLOCK)
        self._played: Counter[str] = Counter()
        self._rewind()
        if self._next is None:
            raise InputError(
                f"{config.bag}: there is nothing to play. It holds:\n{self._bag.topic_list()}"
            )
        for warning in self._bag.warnings:
            self.get_logger().warning(warning)
        self._waiting_since = time.monotonic()
        self._started_at: float | None = None
        self._ended_at: float | None = None
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # /clock stands still until we move it
        self.create_timer(TICK_S, self._tick, clock=steady)
        Diagnostics(self, DIAGNOSTICS_PERIOD_S, self._figures)

    def _topics_to_play(self) -> list[str]:
        """The wanted topics whose message types are installed here."""
        known = self._bag.type_of
        for name in self._config.topics:
            self._check_recorded(name, name in known)
        playable = []
        for topic in self._config.topics or known:
            if _message_class(known[topic]) is None:
                self.get_logger().warning(
                    f"not playing '{topic}': its type {known[topic]} is not installed"
                )
            else:
                playable.append(topic)
        return playable

    def _subscribers_to_wait_for(self) -> Counter[str]:
        """How many subscribers each topic needs."""
        awaited: Counter[str] = Counter()
        for name in self._config.wait_for:
            below = [
                topic for topic in self._publisher_of if topic.startswith(f"{name}/compressed")
            ]
            self._check_recorded(name, name in self._publisher_of or bool(below))
            awaited[name if name in self._publisher_of else below[0]] += 1
        return awaited

    def _check_recorded(self, name: str, is_recorded: bool) -> None:
        if not is_recorded:
            raise InputError(
                f"{self._config.bag}: there is no topic '{name}'. It holds:\n"
                f"{self._bag.topic_list()}"
            )

    def _make_publisher(self, topic: str) -> Publisher:
        if topic.endswith("/tf_static"):
            profile = qos.latched(max(self._bag.count_of[topic], 1))
        else:
            profile = qos.reliable(QUEUE_DEPTH)
        return self.create_publisher(_message_class(self._bag.type_of[topic]), topic, profile)

    def _rewind(self) -> None:
        self._messages = self._bag.messages(self._publisher_of)
        self._next: BagMessage | None = next(self._messages, None)
        self._first_ns = self._next.recorded_ns if self._next else 0

    def _tick(self) -> None:
        now = time.monotonic()
        if self._ended_at is not None:
            if now - self._ended_at > LINGER_S:
                raise SystemExit(0)
        elif self._started_at is None:
            if not self._unmatched() or now - self._waiting_since > self._config.wait_timeout_s:
                self._start(now)
        else:
            played_s = (now - self._started_at) * self._config.rate
            self._play_until(self._first_ns + int(played_s * 1e9))
            if self._next is None:
                self._end(now)

    def _unmatched(self) -> list[str]:
        """Topics that still lack subscribers."""
        return [
            topic
            for topic, count in self._awaited.items()
            if self._publisher_of[topic].get_subscription_count() < count
        ]

    def _start(self, now: float) -> None:
        if unmatched := self._unmatched():
            self.get_logger().warning(
                f"starting, although these topics lack subscribers: {unmatched}"
            )
        self._started_at = now
        self.get_logger().info(
            f"playing {self._config.bag} at {self._config.rate:g}x: {', '.join(self._publisher_of)}"
        )

    def _play_until(self, bag_time_ns: int) -> None:
        while self._next is not None and self._next.recorded_ns <= bag_time_ns:
            message = self._next
            self._publish_clock(message.recorded_ns)
            self._publisher_of[message.topic].publish(bytes(message.data))
            self._played[message.topic] += 1
            self._next = next(self._messages, None)
        if self._next is not None:
            self._publish_clock(bag_time_ns)

    def _end(self, now: float) -> None:
        if self._config.loop:
            self._rewind()
            self._started_at = now
        else:
            self._ended_at = now
            self.get_logger().info(f"played {sum(self._played.values())} messages")

    def _publish_clock(self, stamp_ns: int) -> None:
        self._clock_publisher.publish(ClockMsg(clock=conversions.make_time(stamp_ns)))

    def _figures(self) -> dict[str, Any]:
        return {"finished": self._ended_at is not None, "played": dict(self._played)}


def _message_class(type_name: str) -> Any:
    """The class of a type like "sensor_msgs/msg/Image", or None when it is not installed."""
    package, _, name = type_name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError):
        return None


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the executable."""
    run(PlayerNode, arguments)


if __name__ == "__main__":
    main()
