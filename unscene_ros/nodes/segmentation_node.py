"""The newest map in, objects out: instance array, markers with lasting ids, labelled cloud.

Segmenting takes seconds while maps go on coming: a thread works on the newest one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import PointCloud2
from visualization_msgs.msg import MarkerArray

from unscene_ros.keyframes import KeyframeConfig, Keyframes
from unscene_ros.latency import Latency
from unscene_ros.msg import InstanceArray, Keyframe, Mesh
from unscene_ros.nodes import conversions, display, qos
from unscene_ros.nodes.diagnostics import Diagnostics
from unscene_ros.nodes.drop_log import DropLog
from unscene_ros.nodes.newest_worker import NewestWorker
from unscene_ros.nodes.parameters import declare
from unscene_ros.nodes.run import run
from unscene_ros.nodes.warm_up import sample_frames, sample_mesh
from unscene_ros.pipeline import segment_mesh
from unscene_ros.provenance import peak_memory_mb
from unscene_ros.scene import InputError
from unscene_ros.scene import Mesh as SceneMesh
from unscene_ros.segmentation import DEFAULT_SEGMENTER, SegmentationConfig, load_segmenter
from unscene_ros.tracking import InstanceTracker, TrackingConfig

DIAGNOSTICS_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class SegmentationNodeConfig:
    """Parameters of the segmentation node; the sections belong to the stages of the same names."""

    # training-free, default (the network in the package and training-free together), a network's
    # FILE, or consensus:FILE for it and training-free together
    checkpoint: str = DEFAULT_SEGMENTER
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)


class SegmentationNode(Node):
    """fusion_node/mesh and keyframes -> ~/instance_array, ~/instance_markers, ~/labelled_cloud."""

    def __init__(self) -> None:
        super().__init__("segmentation_node")
        self._threads: list[NewestWorker] = []
        config = self._config = declare(self, SegmentationNodeConfig)
        self._segmenter = load_segmenter(config.checkpoint, config.segmentation)
        self.get_logger().info(f"segmenter: {self._segmenter}")
        self._warm_up()
        self._drops = DropLog(self.get_logger().warning)
        self._latency = Latency()
        self._keyframes = Keyframes(config.keyframes)
        self._tracker = InstanceTracker(config.tracking)
        self._revision = 0
        self._shown_ids: set[int] = set()
        self._maps: Counter[str] = Counter()
        self._worker = NewestWorker(
            "segmentation",
            self._segment,
            on_drop=lambda _: self._maps.update(["skipped"]),  # a newer one holds it all
            on_failure=lambda _, error: self._drops.add("map failed", repr(error)),
        )
        self._threads = [self._worker]
        self._array_publisher = self.create_publisher(InstanceArray, "~/instance_array", qos.MAP)
        self._marker_publisher = self.create_publisher(MarkerArray, "~/instance_markers", qos.MAP)
        self._cloud_publisher = self.create_publisher(PointCloud2, "~/labelled_cloud", qos.MAP)
        Diagnostics(self, DIAGNOSTICS_PERIOD_S, self._figures, self._drops.news)
        self.create_subscription(
            Keyframe,
            "fusion_node/keyframes",
            self._on_keyframe,
            qos.latched(config.keyframes.max_frames),
        )
        self.create_subscription(Mesh, "fusion_node/mesh", self._worker.submit, qos.MAP)
        self.get_logger().info(f"ready: maps on {self.resolve_topic_name('fusion_node/mesh')}")

    def _warm_up(self) -> None:
        """Compiles and loads what the first map would otherwise wait for."""
        mesh, keyframes = sample_mesh(), sample_frames()[:2]
        segments, instances = segment_mesh(mesh, self._segmenter, keyframes)
        InstanceTracker().update(mesh, segments, instances)

    def _on_keyframe(self, message: Keyframe) -> None:
        # Choosing again among what the fusion node chose, by the same rule, gives the same set.
        try:
            self._keyframes.offer(conversions.keyframe_from_msg(message))
        except InputError as error:
            self._drops.add("unusable keyframe", str(error))

    def _segment(self, message: Mesh) -> None:
        """In the worker's thread."""
        mesh = conversions.mesh_from_msg(message)
        # The first map of this node, or of a fusion node that began anew.
        start_over = not 0 < self._revision < message.revision
        if start_over:
            self._tracker = InstanceTracker(self._config.tracking)
        self._revision = message.revision
        keyframes = list(self._keyframes.frames)
        segments, instances = segment_mesh(mesh, self._segmenter, keyframes, self._latency)
        with self._latency.measure("tracking"):
            track_ids = self._tracker.update(mesh, segments, instances)
        with self._latency.measure("publishing"):
            array = conversions.instances_to_msg(message, mesh, segments, instances, track_ids)
            self._publish(mesh, array, start_over)

    def _publish(self, mesh: SceneMesh, array: InstanceArray, start_over: bool) -> None:
        ids = {instance.id for instance in array.instances}
        gone = sorted(self._shown_ids - ids)
        self._shown_ids = ids
        self._array_publisher.publish(array)
        self._marker_publisher.publish(display.instances_to_markers(array, gone, start_over))
        self._cloud_publisher.publish(display.labelled_cloud_to_msg(mesh, array))
        self._maps.update(["segmented"])

    def _figures(self) -> dict[str, Any]:
        return {
            "maps": dict(self._maps),
            "dropped": dict(self._drops.counts),
            "revision": self._revision,
            "instances": len(self._shown_ids),
            "latency_ms": self._latency.summary(),
            "memory_mb": {"peak": peak_memory_mb()},
        }

    def destroy_node(self) -> None:
        """Ends the thread first, as it publishes; there is none when starting failed."""
        for thread in self._threads:
            thread.stop()
        super().destroy_node()


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the executable."""
    run(SegmentationNode, arguments)


if __name__ == "__main__":
    main()
