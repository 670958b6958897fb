"""Tells, in the log and on /diagnostics, why a node makes no frames, and what it sees."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rclpy.node import Node

from unscene_ros.nodes.causes import duration, likely_causes
from unscene_ros.nodes.diagnostics import DiagnosticsConfig
from unscene_ros.nodes.drop_log import DropLog
from unscene_ros.nodes.observation import (
    Camera,
    Observation,
    ObservedCamera,
    StillClock,
    Topic,
    observe,
)
from unscene_ros.synchronization import SynchronizationConfig
from unscene_ros.transforms import TransformTree

LOG_AGAIN_S = 60.0  # the same causes
LOG_NEWS_S = 5.0  # other causes


class Explanation:
    """Says why no frame was made for a while.

    A node makes one when its cameras are subscribed, and asks it at each diagnostics message, also
    while frames come, as it watches the clock from call to call:

        explanation = Explanation(self, cameras, transforms, world_frame, drops)
        Diagnostics(self, 1.0, figures, lambda: [Problem("error", explanation.sentence(idle_s()))])

    To watch each of several cameras by itself, make one for each.
    """

    def __init__(
        self,
        node: Node,
        cameras: Sequence[Camera],
        transforms: TransformTree,
        world_frame: str,
        drops: DropLog,
        synchronization: SynchronizationConfig | None = None,
        config: DiagnosticsConfig | None = None,
    ) -> None:
        """`config`, an attribute too, may be replaced at any time."""
        self.config = config or DiagnosticsConfig()
        self._node = node
        self._cameras = cameras
        self._transforms = transforms
        self._world_frame = world_frame
        self._drops = drops
        self._max_color_gap_ms = (synchronization or SynchronizationConfig()).max_color_gap_s * 1e3
        self._clock = StillClock(node)
        self._logged_kinds: list[str] = []
        self._logged_at_s = 0.0

    def sentence(self, idle_s: float) -> str:
        """The likely cause and what to do in the first line, then all that was seen.

        idle_s: for how long no frame was made. Empty while that is less than `no_data_after_s`.
        The log gets it too: at once, when the causes change, and again after a while.
        """
        clock_still_s = self._clock.still_s()
        if idle_s < self.config.no_data_after_s:
            self._log_return()
            return ""
        seen = observe(
            self._node,
            self._cameras,
            self._transforms,
            self._world_frame,
            clock_still_s,
            self._drops.recent(self.config.no_data_after_s),
        )
        causes = likely_causes(seen, self._max_color_gap_ms)
        lines = [
            f"no frame for {idle_s:.0f} s, likely cause: {causes[0].text}",
            *(f"also: {cause.text}" for cause in causes[1:]),
            "seen:",
            *(f"- {fact}" for fact in facts(seen)),
        ]
        self._log([cause.kind for cause in causes], "\n".join(lines))
        return "\n".join(lines)

    def _log(self, kinds: list[str], text: str) -> None:
        now = time.monotonic()
        period_s = LOG_AGAIN_S if kinds == self._logged_kinds else LOG_NEWS_S
        if not self._logged_kinds or now - self._logged_at_s >= period_s:
            self._logged_kinds, self._logged_at_s = kinds, now
            self._node.get_logger().error(text)

    def _log_return(self) -> None:
        if self._logged_kinds:
            self._logged_kinds = []
            self._node.get_logger().info("frames come again")


def facts(seen: Observation) -> Iterator[str]:
    """What was seen, a line each."""
    for camera in seen.cameras:
        for topic in (camera.color, camera.color_info, camera.depth, camera.depth_info):
            yield _fact(topic)
        yield f"stamps of {camera.depth.content}: {', '.join(_stamps(camera, seen))}"
    for topic in seen.transform_topics:
        yield _fact(topic)
    yield f"TF frames: {', '.join(seen.frames) or 'none'}"
    if seen.simulated:
        yield f"{_fact(seen.clock)}; it is {seen.clock_ns / 1e9:.3f} s"
    for reason, explanation in seen.drops.items():
        yield f"dropped, {reason}: {explanation}"


def _fact(topic: Topic) -> str:
    words = [f"{topic.content}: '{topic.name}' {topic.type} ({topic.qos})"]
    publishers = ", ".join(f"{p.node} {p.type} ({p.qos})" for p in topic.publishers)
    words.append(f"published by {publishers or 'nobody'}")
    if topic.received is not None:
        words.append(f"{topic.received} came")
    if topic.received:
        words[-1] += f", the last {topic.silent_s:.1f} s ago in frame '{topic.frame_id}'"
        words[-1] += f" as {topic.encoding}" if topic.encoding else ""
    return "; ".join(words)


def _stamps(camera: ObservedCamera, seen: Observation) -> Iterator[str]:
    """Of the newest depth picture, and how far the others are from it."""
    if camera.depth_stamp_ns is None:
        yield "none"
        return
    yield f"{camera.depth_stamp_ns / 1e9:.3f} s"
    if camera.color_stamp_ns is not None:
        yield f"{duration(camera.color_gap_ms)} from the nearest colour picture"
    if seen.transform_stamp_ns is not None:
        ahead_ms = (seen.transform_stamp_ns - camera.depth_stamp_ns) / 1e6
        side = "after" if ahead_ms > 0 else "before"
        yield f"the newest transform {duration(abs(ahead_ms))} {side} it"
    yield f"this node's clock at {seen.clock_ns / 1e9:.3f} s"
