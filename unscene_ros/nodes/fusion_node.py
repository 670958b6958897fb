"""Camera topics and TF in, the map out: a mesh at `mesh_rate_hz` and the keyframes it was made of.

Callbacks only match pictures with poses; fusing and meshing have a thread each, so that neither
holds up the camera.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from tf2_msgs.msg import TFMessage

from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.keyframes import KeyframeConfig, Keyframes
from unscene_ros.latency import Latency
from unscene_ros.msg import Keyframe
from unscene_ros.nodes import conversions, qos
from unscene_ros.nodes.diagnostics import Diagnostics
from unscene_ros.nodes.drop_log import DropLog
from unscene_ros.nodes.map_publisher import MapPublisher
from unscene_ros.nodes.newest_worker import NewestWorker
from unscene_ros.nodes.parameters import declare
from unscene_ros.nodes.picture_topic import PictureTopic, Transport
from unscene_ros.nodes.run import run
from unscene_ros.nodes.warm_up import sample_mesh
from unscene_ros.provenance import peak_memory_mb
from unscene_ros.scene import Frame, InputError
from unscene_ros.settings import check_ranges, within
from unscene_ros.synchronization import FrameAssembler, StampedPicture, SynchronizationConfig
from unscene_ros.transforms import TransformTree

DIAGNOSTICS_PERIOD_S = 1.0
LOG_PERIOD_S = 10.0


@dataclass(frozen=True, slots=True)
class FusionNodeConfig:
    """Parameters of the fusion node; the sections belong to the stages of the same names."""

    world_frame: str = "map"  # TF frame that the map is built in, z up
    transport: Transport = "auto"  # auto: raw pictures, compressed where only these are published
    mesh_rate_hz: float = within(1.0, 0.001, 100)  # how often a changed map is published
    # A picture waits this long for its partner, transform or CameraInfo.
    max_wait_s: float = within(2.0, 0.001)
    # Frames that wait to be fused; beyond it the oldest is dropped.
    max_waiting_frames: int = within(5, 1)
    # Most triangles in one message of ~/mesh_markers.
    max_marker_triangles: int = within(200_000, 1)
    synchronization: SynchronizationConfig = field(default_factory=SynchronizationConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)

    def __post_init__(self) -> None:
        check_ranges(self)


class FusionNode(Node):
    """rgb/image, depth/image, their camera_info and TF -> ~/mesh, ~/mesh_markers, ~/keyframes."""

    def __init__(self) -> None:
        super().__init__("fusion_node")
        self._threads: list[NewestWorker | MapPublisher] = []
        config = self._config = declare(self, FusionNodeConfig)
        sample_mesh(config.fusion)  # compiles what the first frame would otherwise wait for
        self._drops = DropLog(self.get_logger().warning)
        self._latency = Latency()
        self._frames_used = 0
        self._keyframes = Keyframes(config.keyframes)
        self._volume = TsdfVolume(config.fusion)
        self._volume_lock = threading.Lock()
        self._map = MapPublisher(
            self,
            self._volume,
            self._volume_lock,
            self._latency,
            config.world_frame,
            config.max_marker_triangles,
        )
        self._worker = NewestWorker(
            "fusion",
            self._fuse,
            on_drop=lambda _: self._drops.add("too slow", "newer frames were waiting to be fused"),
            on_failure=lambda _, error: self._drops.add("failed", repr(error)),
            capacity=config.max_waiting_frames,
        )
        self._threads = [self._worker, self._map]
        self._keyframe_publisher = self.create_publisher(
            Keyframe, "~/keyframes", qos.latched(config.keyframes.max_frames)
        )
        # Steady, so that the map goes on when simulated time stands still, as behind a recording.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0 / config.mesh_rate_hz, self._map.publish_changes, clock=steady)
        self.create_timer(LOG_PERIOD_S, self._log_counts, clock=steady)
        Diagnostics(self, DIAGNOSTICS_PERIOD_S, self._figures, self._drops.news)
        self._subscribe()
        self.get_logger().info(
            f"ready: pictures on {self._color.topic} and {self._depth.topic}, "
            f"map in '{config.world_frame}'"
        )

    def _subscribe(self) -> None:
        config = self._config
        # TF is kept in our own tree, on robots too: replay uses the same one, so that a picture
        # gets the same pose live and offline, and its errors say what is missing.
        self._transforms = TransformTree(config.synchronization.pose_history_s)
        self._assembler = FrameAssembler(
            partial(self._transforms.lookup, config.world_frame),
            self._transforms.lookup,
            self._drops,
            config.synchronization,
            max_wait_s=config.max_wait_s,
        )
        for topic, profile, static in (
            ("/tf", qos.TRANSFORMS, False),
            ("/tf_static", qos.STATIC_TRANSFORMS, True),
        ):
            take = partial(self._on_transforms, static)
            self.create_subscription(TFMessage, topic, take, profile)
        # Frames and drops are counted by depth pictures; colour alone is nobody's loss.
        options = config.transport, config.max_wait_s
        self._color = PictureTopic(self, "rgb", *options, self._on_color, self._drops.warn)
        self._depth = PictureTopic(self, "depth", *options, self._on_depth, self._drops.add)

    def _on_color(self, picture: StampedPicture) -> None:
        self._assembler.add_color(picture)
        self._fuse_complete_frames()

    def _on_depth(self, picture: StampedPicture) -> None:
        self._assembler.add_depth(picture)
        self._fuse_complete_frames()

    def _on_transforms(self, static: bool, message: TFMessage) -> None:
        for parent, child, stamp_ns, matrix in conversions.transforms_from_msg(message):
            try:
                self._transforms.add(parent, child, stamp_ns, matrix, static)
            except InputError as error:
                self._drops.warn("unusable transform", str(error))
        self._fuse_complete_frames()

    def _fuse_complete_frames(self) -> None:
        for frame in self._assembler.frames():
            self._worker.submit(frame)

    def _fuse(self, frame: Frame) -> None:
        """In the worker's thread."""
        with self._volume_lock, self._latency.measure("fusion"):
            dropped_before = self._volume.dropped.copy()
            if self._volume.integrate(frame):
                self._frames_used += 1
                self._map.add_frame(frame.stamp_ns)
            dropped = self._volume.dropped - dropped_before
        for reason in dropped:
            self._drops.add(reason, f"frame at {frame.stamp_ns / 1e9:.3f} s")
        with self._latency.measure("keyframes"):
            if not dropped and self._keyframes.offer(frame):
                kept = self._keyframes.frames[-1]
                message = conversions.keyframe_to_msg(kept, self._config.world_frame)
                self._keyframe_publisher.publish(message)

    def _log_counts(self) -> None:
        if self._depth.received:
            self.get_logger().info(
                f"{self._depth.received} depth pictures, {self._frames_used} frames used, "
                f"dropped: {self._drops.counts or 'none'}"
            )

    def _figures(self) -> dict[str, Any]:
        return {
            "frames": {
                "received": self._depth.received,
                "used": self._frames_used,
                "waiting": self._worker.pending,
            },
            "dropped": dict(self._drops.counts),
            "map": self._map.figures(),
            "latency_ms": self._latency.summary(),
            "memory_mb": {"peak": peak_memory_mb()},
        }

    def destroy_node(self) -> None:
        """Ends the threads first, as they publish; there are none when starting failed."""
        for thread in self._threads:
            thread.stop()
        super().destroy_node()


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the executable."""
    run(FusionNode, arguments)


if __name__ == "__main__":
    main()
