"""What a subscriber of the live nodes receives: the newest results, how many, and how late."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, PointCloud2
from visualization_msgs.msg import MarkerArray

from unscene_ros.latency import Latency
from unscene_ros.msg import InstanceArray, Keyframe, Mesh
from unscene_ros.nodes import qos
from unscene_ros.nodes.conversions import stamp_ns_of
from unscene_ros.nodes.diagnostics import diagnostics_from_msg

MESH = "/fusion_node/mesh"
ARRAY = "/segmentation_node/instance_array"
RESULTS = qos.latched(10)  # some in reserve, so that a busy moment of this process loses none
MARKERS = "/segmentation_node/instance_markers"


class LiveListener(Node):
    """Subscribes to all results and keeps the newest.

    `instances` belongs to `segmented_mesh`, `mesh` may be newer; `diagnostics` has the values by
    node and `diagnostics_times` when they came; `track_ids` are all that were ever seen.
    """

    def __init__(self, depth_info_topic: str) -> None:
        """The CameraInfo that comes with each depth picture tells when it was sent."""
        super().__init__("live_listener")
        self.mesh: Mesh | None = None
        self.segmented_mesh: Mesh | None = None
        self.instances: InstanceArray | None = None
        self.keyframes: list[Keyframe] = []
        self.diagnostics: dict[str, dict[str, Any]] = {}
        self.diagnostics_times: dict[str, float] = {}
        self.track_ids: set[int] = set()
        self._unsegmented: dict[int, Mesh] = {}
        self._picture_stamps: list[int] = []
        self._picture_times: list[float] = []
        self._first_instances_at: float | None = None
        self._times: dict[str, list[float]] = {}
        self._lateness = Latency()
        self.create_subscription(CameraInfo, depth_info_topic, self._on_picture, qos.SENSOR)
        self.create_subscription(
            DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.DIAGNOSTICS
        )
        self._listen(Mesh, MESH, RESULTS, self._keep_mesh)
        self._listen(Keyframe, "/fusion_node/keyframes", qos.latched(100), self._keep_keyframe)
        self._listen(InstanceArray, ARRAY, RESULTS, self._keep_instances)
        self._listen(MarkerArray, MARKERS, RESULTS)
        self._listen(PointCloud2, "/segmentation_node/labelled_cloud", RESULTS)
        # Counted, not decoded: as lists of points the mesh would keep this process busy.
        self._listen(MarkerArray, "/fusion_node/mesh_markers", qos.reliable(10), raw=True)

    def received(self) -> dict[str, Any]:
        """What came, as `report.write_report` takes it; latencies are from picture to result."""
        first = self._first_instances_at
        lateness = self._lateness.summary()
        return {
            "first_instances_s": first - self._picture_times[0] if first else None,
            "topics": {
                topic: {
                    "messages": len(times),
                    "rate_hz": _rate_hz(times),
                    "latency_ms": lateness.get(topic),
                }
                for topic, times in self._times.items()
            },
        }

    def _listen(
        self,
        message_type: type,
        topic: str,
        profile: QoSProfile,
        keep: Callable[[Any], None] | None = None,
        raw: bool = False,
    ) -> None:
        self._times[topic] = []

        def on_message(message: Any) -> None:
            now = time.monotonic()
            self._times[topic].append(now)
            if keep:
                keep(message)
            stamp_ns = None if raw else _stamp_ns(message)
            if stamp_ns is not None and (sent_at := self._picture_time(stamp_ns)) is not None:
                self._lateness.add(topic, now - sent_at)

        self.create_subscription(message_type, topic, on_message, profile, raw=raw)

    def _keep_mesh(self, message: Mesh) -> None:
        self.mesh = self._unsegmented[message.revision] = message

    def _keep_keyframe(self, message: Keyframe) -> None:
        self.keyframes.append(message)

    def _keep_instances(self, message: InstanceArray) -> None:
        if message.map_revision in self._unsegmented:
            self.instances = message
            self.segmented_mesh = self._unsegmented[message.map_revision]
        for revision in [r for r in self._unsegmented if r <= message.map_revision]:
            del self._unsegmented[revision]
        self.track_ids.update(instance.id for instance in message.instances)
        if message.instances and self._first_instances_at is None:
            self._first_instances_at = time.monotonic()

    def _on_picture(self, message: CameraInfo) -> None:
        self._picture_stamps.append(stamp_ns_of(message.header))
        self._picture_times.append(time.monotonic())

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        news = diagnostics_from_msg(message)
        self.diagnostics |= news
        self.diagnostics_times |= dict.fromkeys(news, time.monotonic())

    def _picture_time(self, stamp_ns: int) -> float | None:
        """When the first depth picture of this stamp or a later one came by."""
        place = bisect.bisect_left(self._picture_stamps, stamp_ns)
        return self._picture_times[place] if place < len(self._picture_times) else None


def _stamp_ns(message: Any) -> int | None:
    """The stamp of the message or of its first marker; None for an array without markers."""
    if isinstance(message, MarkerArray):
        return stamp_ns_of(message.markers[0].header) if message.markers else None
    return stamp_ns_of(message.header)


def _rate_hz(times: list[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
