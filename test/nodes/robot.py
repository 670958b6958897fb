"""A robot to try: a camera, our nodes, and an operator who knows only what comes over ROS.

The nodes run in this process or as processes of their own; the camera sends whenever time passes.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from fake_camera import Camera
from rcl_interfaces.msg import Log
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from small_scan import small_frames
from unscene_ros.msg import InstanceArray, Mesh

from unscene_ros.nodes import conversions, fusion_node, qos, segmentation_node
from unscene_ros.nodes.demo.node_process import NodeProcess
from unscene_ros.nodes.diagnostics import diagnostics_from_msg
from unscene_ros.scene import Frame

NODES = {
    "fusion_node": fusion_node.FusionNode,
    "segmentation_node": segmentation_node.SegmentationNode,
}
DEFAULTS = (
    "fusion_node:fusion.voxel_size_m:=0.04",
    "fusion_node:mesh_rate_hz:=10.0",
    "fusion_node:autosave_s:=1.0",
    "fusion_node:resume:=true",
    "segmentation_node:checkpoint:=training-free",
)
KEPT_MESSAGES = 10_000
LET_COME_S = 10.0
FIRST_STAMP_NS = 100_000_000_000


class Operator(Node):
    """Keeps what the log and /diagnostics say, and the newest results."""

    def __init__(self) -> None:
        super().__init__("operator")
        self.said: deque[tuple[float, str]] = deque(maxlen=KEPT_MESSAGES)
        self.values: dict[str, dict[str, Any]] = {}
        self.values_at_s: dict[str, float] = {}
        self.mesh: Mesh | None = None
        self.ids: set[int] = set()
        self.objects_at_s = 0.0
        self.shown_at_s: dict[int, float] = {}
        self.create_subscription(Log, "/rosout", self._on_log, qos.latched(1000))
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 100)
        self.create_subscription(Mesh, "/fusion_node/mesh", self._on_mesh, qos.MAP)
        topic = "/segmentation_node/instance_array"
        self.create_subscription(InstanceArray, topic, self._on_objects, qos.MAP)

    def saw(self, words: str, since_s: float) -> str:
        """The first message since then that has these words, its first line; or nothing."""
        lines = (text.partition("\n")[0] for at_s, text in self.said if at_s >= since_s)
        return next((line for line in lines if words in line), "")

    def _on_log(self, message: Log) -> None:
        if message.name != self.get_name():
            self.said.append((time.monotonic(), message.msg))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            for text in status.message.splitlines():
                self.said.append((time.monotonic(), text))
            self.values_at_s[status.name] = time.monotonic()
        self.values |= diagnostics_from_msg(message)

    def _on_mesh(self, message: Mesh) -> None:
        self.mesh = message

    def _on_objects(self, message: InstanceArray) -> None:
        self.ids = {instance.id for instance in message.instances}
        self.objects_at_s = time.monotonic()
        self.shown_at_s |= dict.fromkeys(self.ids, self.objects_at_s)


class Robot:
    """A camera that sends without pause, nodes in this process or of their own, and an operator."""

    def __init__(self, folder: Path, rate_hz: float = 10.0, parameters: tuple[str, ...] = ()):
        """`parameters` like "fusion_node:max_wait_s:=1.0"; files, maps and logs go to `folder`."""
        self.rate_hz = rate_hz
        self.frames = small_frames(20)
        self.sent: dict[int, float] = {}  # stamp -> when
        self.shift_ns = 0  # of the stamps
        self.folder = folder
        self._parameters = (*DEFAULTS, *(f"{n}:map_folder:={folder}" for n in NODES), *parameters)
        words = [word for parameter in self._parameters for word in ("-p", parameter)]
        rclpy.init(args=["--ros-args", *words])
        self._executor = SingleThreadedExecutor()
        self._nodes: list[Node] = []
        self._processes: dict[str, NodeProcess] = {}
        self._started_s = time.monotonic()
        self._next_s = 0.0
        self.operator = self.add(Operator())
        self.camera: Camera | None = self.add(Camera())

    def __enter__(self) -> Robot:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.stop()
        for node in self._nodes:
            node.destroy_node()
        rclpy.try_shutdown()

    # Nodes.

    def add(self, node: Any) -> Any:
        """A node that is spun here."""
        self._nodes.append(node)
        self._executor.add_node(node)
        return node

    def remove(self, node: Node) -> None:
        """Ends it."""
        self._executor.remove_node(node)
        self._nodes.remove(node)
        node.destroy_node()

    def start(self, name: str) -> Any:
        """One of our nodes in this process."""
        return self.add(NODES[name]())

    def start_process(self, name: str) -> NodeProcess:
        """One of our nodes in a process of its own."""
        given = [text.partition(":") for text in self._parameters]
        pairs = [text.split(":=") for node, _, text in given if node == name]
        values = {key: yaml.safe_load(value) for key, value in pairs}
        self._processes[name] = NodeProcess(name, values, {}, dict(os.environ), self.folder)
        return self._processes[name]

    # Time.

    def spin_until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        """Sends and listens; gives what `condition` gave in the end, or fails."""
        end_s = time.monotonic() + timeout_s
        while not (met := condition()):
            if time.monotonic() > end_s:
                said = "\n".join(text for _, text in list(self.operator.said)[-20:])
                raise TimeoutError(f"waited {timeout_s:.0f} s; the last messages:\n{said}")
            self._spin_once()
        return met

    def spin_for(self, seconds: float) -> None:
        """Sends and listens."""
        end_s = time.monotonic() + seconds
        self.spin_until(lambda: time.monotonic() >= end_s, seconds + 60)

    def spin_until_seen(self, words: str, since_s: float) -> str:
        """What the operator reads that has these words."""
        return self.spin_until(lambda: self.operator.saw(words, since_s))

    def _spin_once(self) -> None:
        now_s = time.monotonic()
        if self.camera and now_s >= self._next_s and self.camera.is_connected():
            self._next_s = max(self._next_s + 1 / self.rate_hz, now_s - 1 / self.rate_hz)
            frame = self.next_frame()
            self.sent[frame.stamp_ns] = now_s
            self.camera.send(frame)
        self._executor.spin_once(timeout_sec=0.005)

    def next_frame(self) -> Frame:
        """What the camera sees now, stamped by its clock."""
        elapsed_ns = round((time.monotonic() - self._started_s) * 1e9)
        frame = self.frames[len(self.sent) % len(self.frames)]
        return dataclasses.replace(frame, stamp_ns=FIRST_STAMP_NS + elapsed_ns + self.shift_ns)

    def replace_camera(self, make_camera: Callable[[], Camera] | None) -> None:
        """Unplugs the one that there is, and plugs in another or none."""
        if self.camera:
            self.remove(self.camera)
        self.camera = self.add(make_camera()) if make_camera else None

    @contextmanager
    def silence(self) -> Iterator[None]:
        """The camera sends nothing meanwhile."""
        camera, self.camera = self.camera, None
        yield
        self.camera = camera

    # What there is.

    @property
    def fused_frames(self) -> int:
        """How many of what was sent is as old as the newest picture in the map, or older."""
        stamp_ns = conversions.stamp_ns_of(self.operator.mesh.header)
        return sum(sent_ns <= stamp_ns for sent_ns in self.sent)

    def spin_until_fused(self) -> float:
        """Until a picture that is sent from now on is in the map that comes back; when that was."""
        since_s = time.monotonic()

        def is_fused() -> bool:
            mesh = self.operator.mesh
            stamp_ns = conversions.stamp_ns_of(mesh.header) if mesh else 0
            return self.sent.get(stamp_ns, 0.0) > since_s

        self.spin_until(is_fused)
        return time.monotonic()

    def spin_until_objects(self, count: int = 2) -> float:
        """Until a map is segmented from now on with so many objects; when that was."""
        since_s = time.monotonic()
        operator = self.operator
        self.spin_until(lambda: operator.objects_at_s > since_s and len(operator.ids) >= count)
        return time.monotonic()

    def spin_until_mapped(self) -> set[int]:
        """Until all that the camera passes is in the map; the ids of the objects there."""
        self.spin_until_fused()
        self.spin_for(len(self.frames) / self.rate_hz)
        self.spin_until_objects()
        return set(self.operator.ids)

    def spin_until_shown(self, ids: set[int]) -> tuple[float, set[int]]:
        """Until objects are shown from now on, each of these; when that was, and who did not come.

        Not all objects are in all results, so that they have a while to come.
        """
        since_s = time.monotonic()
        well_s = self.spin_until_objects(1)
        while missing := {i for i in ids if self.operator.shown_at_s[i] < since_s}:
            if time.monotonic() > well_s + LET_COME_S:
                break
            self.spin_for(0.1)
        return well_s, missing

    def settle(self) -> dict[str, Any]:
        """What the fusion node says of itself when nothing is on its way any more."""
        with self.silence():
            self.spin_for(0.3)
            counts: tuple[float, ...] = ()
            while True:
                values = self.next_figures()
                frames, before = values["frames"], counts
                counts = frames["received"], frames["used"]
                if counts == before and not frames["waiting"]:
                    return values

    def next_figures(self) -> dict[str, Any]:
        """What the fusion node says of itself next."""
        since_s = time.monotonic()
        self.spin_until(lambda: self.operator.values_at_s.get("fusion_node", 0.0) > since_s)
        return self.operator.values["fusion_node"]
