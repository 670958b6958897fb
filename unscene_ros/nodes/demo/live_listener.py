"""What a subscriber of the live nodes receives: the newest results, how many, and how late.

Memory does not grow with the length of the run.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, PointCloud2
from visualization_msgs.msg import MarkerArray

from unscene_ros.keyframes import KeyframeConfig, Keyframes
from unscene_ros.latency import Latency
from unscene_ros.msg import InstanceArray, Keyframe, Mesh
from unscene_ros.nodes import qos
from unscene_ros.nodes.conversions import (
    instances_from_msg,
    keyframe_from_msg,
    mesh_from_msg,
    stamp_ns_of,
)
from unscene_ros.nodes.demo.received_maps import ReceivedMaps
from unscene_ros.nodes.diagnostics import diagnostics_from_msg
from unscene_ros.storage import Prediction

MESH = "/fusion_node/mesh"
ARRAY = "/segmentation_node/instance_array"
RESULTS = qos.latched(10)  # some in reserve, so that a busy moment of this process loses none
MARKERS = "/segmentation_node/instance_markers"
NEWEST_PICTURES = 10_000  # of older ones it is forgotten when they came


class LiveListener(Node):
    """Subscribes to all results and keeps the newest.

    `instances` belongs to `segmented_mesh`, `mesh` may be newer; `keyframes` is a bounded set;
    `diagnostics` has the values by node and `diagnostics_times` when they came; `track_ids` are
    all that were ever seen.
    """

    def __init__(self, depth_info_topic: str, maps: ReceivedMaps | None = None) -> None:
        """The CameraInfo that comes with each depth picture tells when it was sent.

        maps: where every segmented map is put.
        """
        super().__init__("live_listener")
        self._maps = maps
        self.mesh: Mesh | None = None
        self.segmented_mesh: Mesh | None = None
        self.instances: InstanceArray | None = None
        self.keyframes = Keyframes(KeyframeConfig())
        self.diagnostics: dict[str, dict[str, Any]] = {}
        self.diagnostics_times: dict[str, float] = {}
        self.track_ids: set[int] = set()
        self._unsegmented: dict[int, Mesh] = {}
        self._pictures = _PictureTimes()
        self._first_instances_at: float | None = None
        self._arrivals: dict[str, _Arrivals] = {}
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
            "first_instances_s": self._pictures.seconds_at(first) if first else None,
            "topics": {
                topic: {
                    "messages": arrivals.count,
                    "rate_hz": arrivals.rate_hz,
                    "latency_ms": lateness.get(topic),
                }
                for topic, arrivals in self._arrivals.items()
            },
        }

    def prediction(self) -> Prediction:
        """The newest instances on their mesh; there must be some."""
        segments, instances, track_ids = instances_from_msg(self.instances)
        return Prediction(mesh_from_msg(self.segmented_mesh), segments, instances, track_ids)

    def _listen(
        self,
        message_type: type,
        topic: str,
        profile: QoSProfile,
        keep: Callable[[Any], None] | None = None,
        raw: bool = False,
    ) -> None:
        arrivals = self._arrivals[topic] = _Arrivals()

        def on_message(message: Any) -> None:
            now = time.monotonic()
            arrivals.add(now)
            stamp_ns = None if raw else _stamp_ns(message)
            if stamp_ns is not None and (sent_at := self._pictures.time_of(stamp_ns)) is not None:
                self._lateness.add(topic, now - sent_at)
            if keep:
                keep(message)

        self.create_subscription(message_type, topic, on_message, profile, raw=raw)

    def _keep_mesh(self, message: Mesh) -> None:
        self.mesh = self._unsegmented[message.revision] = message

    def _keep_keyframe(self, message: Keyframe) -> None:
        # Choosing again among what the fusion node chose, by the same rule, gives the same set.
        self.keyframes.offer(keyframe_from_msg(message))

    def _keep_instances(self, message: InstanceArray) -> None:
        now = time.monotonic()
        if message.map_revision in self._unsegmented:
            self.instances = message
            self.segmented_mesh = self._unsegmented[message.map_revision]
            if self._maps is not None:
                # Without a picture of that stamp, the map is taken to be as old as its result.
                sent_at = self._pictures.time_of(stamp_ns_of(message.header)) or now
                seconds = self._pictures.seconds_at(sent_at), self._pictures.seconds_at(now)
                self._maps.add(self.prediction(), *seconds)
        for revision in [r for r in self._unsegmented if r <= message.map_revision]:
            del self._unsegmented[revision]
        self.track_ids.update(instance.id for instance in message.instances)
        if message.instances and self._first_instances_at is None:
            self._first_instances_at = now

    def _on_picture(self, message: CameraInfo) -> None:
        self._pictures.add(stamp_ns_of(message.header), time.monotonic())

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        news = diagnostics_from_msg(message)
        self.diagnostics |= news
        self.diagnostics_times |= dict.fromkeys(news, time.monotonic())


class _PictureTimes:
    """When the pictures came by, on the monotonic clock."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._stamps_ns: list[int] = []
        self._times: list[float] = []

    def add(self, stamp_ns: int, at: float) -> None:
        if self._first is None:
            self._first = at
        if len(self._times) == 2 * NEWEST_PICTURES:
            del self._stamps_ns[:NEWEST_PICTURES], self._times[:NEWEST_PICTURES]
        self._stamps_ns.append(stamp_ns)
        self._times.append(at)

    def time_of(self, stamp_ns: int) -> float | None:
        """When the first picture of this stamp or a later one came by."""
        place = bisect.bisect_left(self._stamps_ns, stamp_ns)
        return self._times[place] if place < len(self._times) else None

    def seconds_at(self, at: float) -> float:
        """From the first picture on; 0 as long as none has come."""
        return 0.0 if self._first is None else at - self._first


@dataclass(slots=True)
class _Arrivals:
    """How many messages of a topic came, and when the first and the newest did."""

    count: int = 0
    first: float = 0.0
    newest: float = 0.0

    def add(self, at: float) -> None:
        if not self.count:
            self.first = at
        self.count += 1
        self.newest = at

    @property
    def rate_hz(self) -> float:
        return (self.count - 1) / (self.newest - self.first) if self.count > 1 else 0.0


def _stamp_ns(message: Any) -> int | None:
    """The stamp of the message or of its first marker; None for an array without markers."""
    if isinstance(message, MarkerArray):
        return stamp_ns_of(message.markers[0].header) if message.markers else None
    return stamp_ns_of(message.header)
