"""Camera topics and TF in, the map out: a mesh at `mesh_rate_hz` and the keyframes it was made of.

Callbacks only match pictures with poses; fusing, meshing and files have a thread each, so that none
of them holds up the camera.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from std_srvs.srv import SetBool
from tf2_msgs.msg import TFMessage

from unscene_ros.fusion import FusionConfig
from unscene_ros.keyframes import KeyframeConfig
from unscene_ros.latency import Latency
from unscene_ros.msg import Keyframe
from unscene_ros.nodes import conversions, qos
from unscene_ros.nodes.camera_input import CameraInput, CamerasConfig
from unscene_ros.nodes.diagnostics import (
    Diagnostics,
    DiagnosticsConfig,
    Problem,
    memory_mb,
)
from unscene_ros.nodes.drop_log import DropLog
from unscene_ros.nodes.explanation import Explanation
from unscene_ros.nodes.live_map import LiveMap
from unscene_ros.nodes.managed import ManagedNode
from unscene_ros.nodes.map_publisher import MapPublisher
from unscene_ros.nodes.map_services import MapServices
from unscene_ros.nodes.newest_worker import NewestWorker
from unscene_ros.nodes.picture_topic import Transport
from unscene_ros.nodes.run import run
from unscene_ros.nodes.warm_up import sample_mesh
from unscene_ros.pose_jumps import PoseJumpConfig, PoseJumpWatch
from unscene_ros.scene import Frame, InputError
from unscene_ros.settings import check_ranges, within
from unscene_ros.synchronization import SynchronizationConfig
from unscene_ros.transforms import TransformError, TransformTree

DIAGNOSTICS_PERIOD_S = 1.0
LOG_PERIOD_S = 10.0


@dataclass(frozen=True, slots=True)
class FusionNodeConfig:
    """Parameters of the fusion node; the sections belong to the stages of the same names."""

    autostart: bool = True  # configure and activate at once, without a lifecycle manager
    world_frame: str = "map"  # TF frame that the map is built in, z up
    transport: Transport = "auto"  # auto: raw pictures, compressed where only these are published
    mesh_rate_hz: float = within(1.0, 0.001, 100)  # how often a changed map is published
    # A picture waits this long for its partner, transform or CameraInfo, and a frame to be fused
    # while newer ones wait, too.
    max_wait_s: float = within(2.0, 0.001)
    # Most triangles in one message of ~/mesh_markers.
    max_marker_triangles: int = within(200_000, 1)
    map_folder: str = ""  # the only place where services read and write; empty: they refuse
    autosave_s: float = within(0.0, 0)  # how often a changed map is saved in map_folder; 0 never
    resume: bool = False  # begins with the map that was saved there by itself, if there is one
    cameras: CamerasConfig = field(default_factory=CamerasConfig)
    synchronization: SynchronizationConfig = field(default_factory=SynchronizationConfig)
    pose_jumps: PoseJumpConfig = field(default_factory=PoseJumpConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)

    def __post_init__(self) -> None:
        check_ranges(self)


class FusionNode(ManagedNode):
    """rgb/image, depth/image, their camera_info and TF -> ~/mesh, ~/mesh_markers, ~/keyframes."""

    READ_WHEN_CONFIGURED = (
        "autostart", "world_frame", "max_marker_triangles", "map_folder", "autosave_s", "resume",
        "fusion.voxel_size_m", "fusion.min_weight", "fusion.max_megabytes", "fusion.device",
        "keyframes.max_frames",
    )  # fmt: skip
    READ_WHEN_ACTIVATED = (
        "transport", "max_wait_s", "cameras", "synchronization", "pose_jumps",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__("fusion_node", FusionNodeConfig)
        self.drops = DropLog(self.get_logger().warning)
        self._latency = Latency()
        self._cameras: list[CameraInput] = []
        self._explanations: list[Explanation] = []
        self._paused = False
        self._jump_count = 0
        self._diagnostics = Diagnostics(
            self, DIAGNOSTICS_PERIOD_S, self._figures, self._problems, self.config.diagnostics
        )
        self.autostart()

    # The map, from configure on.

    def configure(self, undo: ExitStack) -> None:
        config: FusionNodeConfig = self.config
        sample_mesh(config.fusion)  # compiles what the first frame would otherwise wait for
        undo.callback(self._forget_map)
        self._paused = False
        self._received_before = 0
        self.live_map = LiveMap(config.fusion, config.keyframes, self._latency)
        self._map_publisher = MapPublisher(
            self,
            undo,
            self.live_map,
            self._latency,
            config.world_frame,
            config.max_marker_triangles,
        )
        self._keyframe_publisher = self.publish_on(
            undo, Keyframe, "~/keyframes", qos.latched(config.keyframes.max_frames)
        )
        self._publish_timer = self.repeat(
            undo, 1.0 / config.mesh_rate_hz, self._map_publisher.publish_changes
        )
        self._map_services = MapServices(
            self,
            undo,
            self.live_map,
            self._latency,
            config.map_folder,
            config.autosave_s,
            config.resume,
        )
        pause = self.create_service(SetBool, "~/pause", self._on_pause)
        undo.callback(self.destroy_service, pause)

    def _forget_map(self) -> None:
        """It may take a gigabyte, which a node without a map must not hold."""
        for name in ("live_map", "_map_publisher", "_publish_timer", "_map_services"):
            vars(self).pop(name, None)

    def apply(self, config: FusionNodeConfig) -> None:
        self._diagnostics.config = config.diagnostics
        for explanation in self._explanations:
            explanation.config = config.diagnostics
        if self.state == "unconfigured":
            return
        self.live_map.apply(config.fusion, config.keyframes)
        if config.mesh_rate_hz != self.config.mesh_rate_hz:
            self._publish_timer.timer_period_ns = round(1e9 / config.mesh_rate_hz)
            self._publish_timer.reset()  # else the old period has to end first

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._paused = request.data
        response.success = True
        response.message = "no frame is fused until ~/pause false" if self._paused else "goes on"
        return response

    # Frames, while active.

    def activate(self, undo: ExitStack) -> None:
        config: FusionNodeConfig = self.config
        # TF is kept in our own tree, on robots too: replay uses the same one, so that a picture
        # gets the same pose live and offline, and its errors say what is missing.
        self._transforms = TransformTree(
            config.synchronization.pose_history_s, config.synchronization.max_pose_gap_s
        )
        self._pose_jumps = PoseJumpWatch(config.pose_jumps)
        self._worker = NewestWorker(
            "fusion",
            self._fuse,
            on_drop=lambda _: self.drops.add("too slow", "newer frames were waiting to be fused"),
            on_failure=lambda _, error: self.drops.add("failed", repr(error)),
            # When TF comes back, all that waited for it comes at once.
            capacity=config.synchronization.max_waiting * len(config.cameras.names),
            patience_s=config.max_wait_s,
        )
        undo.callback(self._worker.stop)
        undo.callback(self._forget_cameras)
        # Before the cameras: of all that waits, what was subscribed first is taken first.
        for topic, profile, static in (
            ("/tf", qos.TRANSFORMS, False),
            ("/tf_static", qos.STATIC_TRANSFORMS, True),
        ):
            take = partial(self._on_transforms, static)
            self.subscribe(undo, TFMessage, topic, take, profile)
        self._cameras = [
            CameraInput(
                self,
                undo,
                camera,
                config.transport,
                config.max_wait_s,
                config.synchronization,
                config.world_frame,
                self._transforms,
                self.drops,
                self._take,
            )
            for camera in config.cameras.each()
        ]
        self._explanations = [
            Explanation(
                self,
                [camera],
                self._transforms,
                config.world_frame,
                self.drops,
                config.synchronization,
                config.diagnostics,
            )
            for camera in self._cameras
        ]
        self.repeat(undo, LOG_PERIOD_S, self._log_counts)
        topics = ", ".join(f"{c.color.topic} and {c.depth.topic}" for c in self._cameras)
        self.get_logger().info(f"ready: pictures on {topics}, map in '{config.world_frame}'")

    def _forget_cameras(self) -> None:
        self._received_before = self._received
        self._cameras, self._explanations = [], []

    def _on_transforms(self, static: bool, message: TFMessage) -> None:
        for parent, child, stamp_ns, matrix in conversions.transforms_from_msg(message):
            try:
                self._transforms.add(parent, child, stamp_ns, matrix, static)
            except InputError as error:
                self.drops.warn("unusable transform", str(error))
        for camera in self._cameras:
            camera.take_complete_frames()

    def _take(self, frame: Frame) -> None:
        if not self._paused:
            world_from_odom = self._world_from_odom(frame.stamp_ns)
            self._worker.submit((frame, world_from_odom, self.live_map.map_id))

    def _world_from_odom(self, stamp_ns: int) -> np.ndarray | None:
        world, odom = self.config.world_frame, self.config.pose_jumps.frame
        try:
            return self._transforms.lookup(world, odom, stamp_ns)
        except TransformError:
            return None  # nobody corrects an odometry here

    def _fuse(self, item: tuple[Frame, np.ndarray | None, str]) -> None:
        """In the worker's thread."""
        frame, world_from_odom, map_id = item
        if self._paused:
            return
        if map_id != self.live_map.map_id:
            self.drops.add("map replaced", "it was taken for the map before")
            return
        if world_from_odom is not None:
            self._watch_for_jump(frame, world_from_odom)
        dropped, keyframe, map_id = self.live_map.integrate(frame)
        for reason in dropped:
            self.drops.add(reason, f"frame at {frame.stamp_ns / 1e9:.3f} s")
        if keyframe:
            message = conversions.keyframe_to_msg(keyframe, self.config.world_frame, map_id)
            self._keyframe_publisher.publish(message)

    def _watch_for_jump(self, frame: Frame, world_from_odom: np.ndarray) -> None:
        """Loop closure moves the map under the robot: what was fused before is doubled near it.

        In the worker's thread, so that frames from before the jump are fused before it.
        """
        config: PoseJumpConfig = self.config.pose_jumps
        camera = np.linalg.solve(world_from_odom, frame.world_from_camera)[:3, 3]
        jump = self._pose_jumps.update(frame.stamp_ns, world_from_odom, camera)
        if jump is None:
            return
        self._jump_count += 1
        done = "the map is kept"
        if config.policy == "clear":
            blocks = self.live_map.clear_around(jump.camera_before, config.clear_radius_m)
            done = f"{blocks} blocks within {config.clear_radius_m:g} m were cleared"
        self.get_logger().warning(
            f"'{config.frame}' jumped in '{self.config.world_frame}', which carried the camera "
            f"{jump.translation_m:.2f} m and turned it {jump.rotation_deg:.1f} degrees: {done}"
        )

    # What it says of itself.

    @property
    def _received(self) -> int:
        return self._received_before + sum(camera.depth.received for camera in self._cameras)

    def _log_counts(self) -> None:
        if self._received:
            self.get_logger().info(
                f"{self._received} depth pictures, {self.live_map.frames_used} frames used, "
                f"dropped: {self.drops.counts or 'none'}"
            )

    def _figures(self) -> dict[str, Any]:
        if self.state == "unconfigured":
            return {"memory_mb": memory_mb()}
        return {
            "frames": {
                "received": self._received,
                "used": self.live_map.frames_used,
                "waiting": self._worker.pending if self.state == "active" else 0,
            },
            "dropped": dict(self.drops.counts),
            "map": {**self._map_publisher.figures(), **self.live_map.figures()},
            "pose_jumps": self._jump_count,
            "latency_ms": self._latency.summary(),
            "recent": self._latency.recent(self.config.diagnostics.recent_s),
            "memory_mb": memory_mb(),
        }

    def _problems(self) -> Iterator[Problem]:
        yield from self.drops.news()
        if self.state != "active":
            yield Problem("warn", f"the node is {self.state}")
            return
        for name in self._map_publisher.lost_takers():
            text = f"node '{name}' takes the map no more: has it ended?"
            self.get_logger().warning(text)
            yield Problem("warn", text)
        if self._map_services.background.failed:
            yield Problem("error", self._map_services.background.last)
        if self._paused:
            yield Problem("warn", "paused: call ~/pause with false to go on")
            return
        for camera, explanation in zip(self._cameras, self._explanations, strict=True):
            yield Problem("error", explanation.sentence(camera.idle_s))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the executable."""
    run(FusionNode, arguments)


if __name__ == "__main__":
    main()
