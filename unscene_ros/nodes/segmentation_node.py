"""The newest map in, objects out: instance array, markers with lasting ids, labelled cloud.

Segmenting takes seconds while maps go on coming: a thread works on the newest one.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sensor_msgs.msg import PointCloud2
from visualization_msgs.msg import MarkerArray

from unscene_ros import DEFAULT_SEGMENTER
from unscene_ros.instance_mesh import write_instance_mesh
from unscene_ros.keyframes import KeyframeConfig, Keyframes
from unscene_ros.latency import Latency
from unscene_ros.msg import InstanceArray, Keyframe, Mesh
from unscene_ros.nodes import conversions, display, qos
from unscene_ros.nodes.background_services import BackgroundServices
from unscene_ros.nodes.detections import DetectionPublisher
from unscene_ros.nodes.diagnostics import (
    GPU_LOST,
    Diagnostics,
    DiagnosticsConfig,
    Problem,
    memory_mb,
)
from unscene_ros.nodes.drop_log import DropLog
from unscene_ros.nodes.known_objects import KnownObjects
from unscene_ros.nodes.lasting_ids import LastingIds
from unscene_ros.nodes.managed import ManagedNode
from unscene_ros.nodes.newest_worker import NewestWorker
from unscene_ros.nodes.run import run
from unscene_ros.nodes.warm_up import sample_frames, sample_mesh
from unscene_ros.pipeline import segment_mesh, track_instances
from unscene_ros.scene import InputError
from unscene_ros.scene import Mesh as SceneMesh
from unscene_ros.segmentation import SegmentationConfig, load_segmenter
from unscene_ros.srv import GetInstances
from unscene_ros.tracking import InstanceTracker, TrackingConfig

DIAGNOSTICS_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class SegmentationNodeConfig:
    """Parameters of the segmentation node; the sections belong to the stages of the same names."""

    autostart: bool = True  # configure and activate at once, without a lifecycle manager
    # training-free, default (the network in the package and training-free together), a network's
    # FILE, or consensus:FILE for it and training-free together
    checkpoint: str = DEFAULT_SEGMENTER
    automatic: bool = True  # segments each new map; else only when ~/segment_now is called
    # Where meshes are saved and the ids of a saved map's objects kept; empty: neither.
    map_folder: str = ""
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)


class SegmentationNode(ManagedNode):
    """fusion_node/mesh and keyframes -> ~/instance_array, ~/instance_markers, ~/labelled_cloud."""

    READ_WHEN_CONFIGURED = ("autostart", "map_folder", "tracking", "keyframes")
    READ_WHEN_ACTIVATED = ("checkpoint", "segmentation")

    def __init__(self) -> None:
        super().__init__("segmentation_node", SegmentationNodeConfig)
        self.drops = DropLog(self.get_logger().warning)
        self._latency = Latency()
        self.maps: Counter[str] = Counter()
        self._segmenter: Any = None  # while active
        self._diagnostics = Diagnostics(
            self, DIAGNOSTICS_PERIOD_S, self._figures, self._problems, self.config.diagnostics
        )
        self.autostart()

    def configure(self, undo: ExitStack) -> None:
        config: SegmentationNodeConfig = self.config
        undo.callback(self._forget_maps)
        self._keyframes = "", Keyframes(config.keyframes)  # of which map they are
        self._newest: Mesh | None = None
        self._segmented: Mesh | None = None
        self._known = KnownObjects()
        self._newest_result: tuple[SceneMesh, InstanceArray] | None = None
        self._segmented_at_s = 0.0
        self._shown_ids: set[int] = set()
        self._array_publisher = self.publish_on(
            undo, InstanceArray, "~/instance_array", qos.INSTANCES
        )
        self._marker_publisher = self.publish_on(undo, MarkerArray, "~/instance_markers", qos.MAP)
        self._cloud_publisher = self.publish_on(undo, PointCloud2, "~/labelled_cloud", qos.MAP)
        self._detections = DetectionPublisher(self, undo)
        self._background = BackgroundServices(self, undo, config.map_folder)
        self._ids = LastingIds(config.tracking, self._background.folder, self.drops.warn)
        self._background.offer("segment_now", self._segment_now)
        self._background.offer_file("save_mesh", (".ply", ".glb"), self._save_mesh)
        self._background.offer_file("save_timings", (".json",), self._latency.save)
        service = self.create_service(GetInstances, "~/get_instances", self._on_get_instances)
        undo.callback(self.destroy_service, service)

    def _forget_maps(self) -> None:
        """Meshes and pictures take what others could use while this node does nothing."""
        for name in (
            "_keyframes", "_ids", "_newest", "_segmented", "_known", "_newest_result",
        ):  # fmt: skip
            vars(self).pop(name, None)

    def apply(self, config: SegmentationNodeConfig) -> None:
        self._diagnostics.config = config.diagnostics

    def activate(self, undo: ExitStack) -> None:
        config: SegmentationNodeConfig = self.config
        undo.callback(self._free_segmenter)
        self._behind_since_s = time.monotonic()
        try:
            self._segmenter = load_segmenter(config.checkpoint, config.segmentation)
            self._warm_up()
        except Exception as error:
            if _is_out_of_memory(error):
                raise InputError(_explained(error)) from error
            raise
        self.get_logger().info(f"segmenter: {self._segmenter}")
        self._worker = NewestWorker(
            "segmentation",
            self._segment,
            on_drop=lambda _: self.maps.update(["skipped"]),  # a newer one holds it all
            on_failure=lambda _, error: self.drops.add("map failed", _explained(error)),
        )
        undo.callback(self._worker.stop)
        self.subscribe(
            undo,
            Keyframe,
            "fusion_node/keyframes",
            self._on_keyframe,
            qos.latched(config.keyframes.max_frames),
        )
        self.subscribe(undo, Mesh, "fusion_node/mesh", self._on_mesh, qos.MAP)
        self._map_topic = self.resolve_topic_name("fusion_node/mesh")
        self.get_logger().info(f"ready: maps on {self._map_topic}")

    def _warm_up(self) -> None:
        """Compiles and loads what the first map would otherwise wait for."""
        mesh, keyframes = sample_mesh(), sample_frames()[:2]
        segments, instances = segment_mesh(mesh, self._segmenter, keyframes)
        InstanceTracker().update(mesh, segments, instances)

    def _free_segmenter(self) -> None:
        self._segmenter = None
        self._return_gpu_memory()

    def _return_gpu_memory(self) -> None:
        """What torch keeps for tensors to come goes back to all who compute on the GPU."""
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:
                self.get_logger().error(f"{GPU_LOST} ({error})")

    def _on_keyframe(self, message: Keyframe) -> None:
        map_id, keyframes = self._keyframes
        if message.map_id != map_id:
            keyframes = Keyframes(self.config.keyframes)
            self._keyframes = message.map_id, keyframes
        # Choosing again among what the fusion node chose, by the same rule, gives the same set.
        try:
            keyframes.offer(conversions.keyframe_from_msg(message))
        except InputError as error:
            self.drops.add("unusable keyframe", str(error))

    def _on_mesh(self, message: Mesh) -> None:
        if self._newest is self._segmented or not self.config.automatic:
            self._behind_since_s = time.monotonic()  # until now there was nothing to do
        self._newest = message
        if self.config.automatic:
            self._worker.submit(message)

    def _segment(self, message: Mesh) -> None:
        """In the worker's thread."""
        segmenter = self._segmenter
        mesh = conversions.mesh_from_msg(message)
        map_id, keyframes = self._keyframes
        frames = list(keyframes.frames) if map_id == message.map_id else []
        segments, instances = segment_mesh(mesh, segmenter, frames, self._latency)
        if self._segmenter is not segmenter:  # deactivated meanwhile, and perhaps others work again
            del segmenter
            self._return_gpu_memory()
            return
        tracker = self._ids.tracker(message.map_id)
        instances, track_ids = track_instances(mesh, segments, instances, tracker, self._latency)
        with self._latency.measure("publishing"):
            array = conversions.instances_to_msg(
                message, mesh, segments, instances, track_ids, tracker.vanished
            )
            self._publish(mesh, array)
            self._ids.save()  # so that what was shown keeps its id when the node starts again
        self._segmented = message

    def _publish(self, mesh: SceneMesh, array: InstanceArray) -> None:
        ids = {instance.id for instance in array.instances}
        hidden = sorted(self._shown_ids - ids)
        self._shown_ids = ids
        self._known.update(array)
        self._newest_result = mesh, array
        self._array_publisher.publish(array)
        self._marker_publisher.publish(display.instances_to_markers(array, hidden))
        self._cloud_publisher.publish(display.labelled_cloud_to_msg(mesh, array))
        self._detections.publish(array)
        self.maps.update(["segmented"])
        self._segmented_at_s = time.monotonic()

    # Services.

    def _segment_now(self) -> str:
        if self.state != "active":
            raise InputError("segment_now: the node is not active: activate it first")
        if self._newest is None:
            raise InputError("segment_now: no map has come yet: is the fusion node running?")
        self._worker.submit(self._newest)
        return f"map {self._newest.revision} is being segmented, see ~/instance_array"

    def _save_mesh(self, path: Path) -> str:
        if self._newest_result is None:
            raise InputError("save_mesh: nothing is segmented yet: call ~/segment_now first")
        mesh, array = self._newest_result
        found = array.instances
        write_instance_mesh(
            path,
            mesh,
            np.frombuffer(array.instance_of_vertex, np.int32),
            np.array([instance.id for instance in found], np.int32),
            [instance.class_name for instance in found],
            np.array([instance.score for instance in found], np.float32),
        )
        return f"{len(mesh.faces)} triangles with {len(found)} objects in {path}"

    def _on_get_instances(
        self, request: GetInstances.Request, _: GetInstances.Response
    ) -> GetInstances.Response:
        return self._known.answer(request)

    # What it says of itself.

    def _figures(self) -> dict[str, Any]:
        if self.state == "unconfigured":
            return {"memory_mb": memory_mb()}
        figures: dict[str, Any] = {
            "maps": dict(self.maps),
            "dropped": dict(self.drops.counts),
            "instances": {"shown": len(self._shown_ids), "known": len(self._known)},
            "latency_ms": self._latency.summary(),
            "recent": self._latency.recent(self.config.diagnostics.recent_s),
            "memory_mb": memory_mb(),
        }
        if self._newest_result:
            figures["instances"]["age_s"] = time.monotonic() - self._segmented_at_s
        # Without a newer map there is nothing to do, however old the last result is.
        if self.state == "active" and self.config.automatic and self._newest is not self._segmented:
            since_s = max(self._behind_since_s, self._segmented_at_s)
            figures["segmentation"] = {"age_s": time.monotonic() - since_s}
        return figures

    def _problems(self) -> Iterator[Problem]:
        yield from self.drops.news()
        if self.state != "active":
            yield Problem("warn", f"the node is {self.state}")
            return
        for reason, explanation in self.drops.recent(self.config.diagnostics.recent_s).items():
            yield Problem("error", f"{reason}: {explanation}")
        if self._background.failed:
            yield Problem("error", self._background.last)
        if not self.count_publishers(self._map_topic):
            nobody = f"nobody publishes '{self._map_topic}'"
            yield Problem("error", f"{nobody}: is the fusion node running, or has it ended?")


def _is_out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported here


def _explained(error: Exception) -> str:
    """What went wrong with a map, and what to do where that is known."""
    if _is_out_of_memory(error):
        return (
            "the GPU's memory is exhausted: set segmentation.network.device to cpu, or "
            f"fusion.voxel_size_m larger ({error})"
        )
    return repr(error)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the executable."""
    run(SegmentationNode, arguments)


if __name__ == "__main__":
    main()
