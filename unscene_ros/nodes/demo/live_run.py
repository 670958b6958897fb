"""A bag through the live nodes: starts them as processes, listens to what they publish, sums it up.

Only what came over ROS topics is known here, as any other subscriber would know it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

from unscene_ros.nodes.demo.live_listener import MARKERS, MESH, LiveListener
from unscene_ros.nodes.demo.node_process import LiveRunFailed, NodeProcess
from unscene_ros.nodes.demo.played_bag import PlayedBag
from unscene_ros.nodes.demo.received_maps import ReceivedMaps
from unscene_ros.scene import Frame
from unscene_ros.storage import Prediction

START_TIMEOUT_S = 180.0  # numba compiles for a minute on a machine that never ran this
FINISH_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class LiveResult:
    """What was received of a run; the fields of metrics.json have its layout."""

    prediction: Prediction
    keyframes: list[Frame]
    frames: dict[str, Any]
    latency_ms: dict[str, dict[str, float]]
    memory_mb: dict[str, float]
    tracks: int
    received: dict[str, Any]


class LiveRun:
    """The live nodes, a player and a listener, from start to stop; a context manager.

    The processes have a ROS domain of their own, and end with the run whatever happens.
    """

    def __init__(
        self,
        bag: PlayedBag,
        log_folder: Path,
        rate: float = 1.0,
        parameters: dict[str, dict[str, Any]] | None = None,
        maps: ReceivedMaps | None = None,
    ) -> None:
        """`parameters`: by node, over the defaults; `maps`: gets every segmented map."""
        self._bag = bag
        self._log_folder = log_folder
        self._rate = rate
        self._parameters = parameters or {}
        self._processes: list[NodeProcess] = []
        self._played_at = 0.0
        self._environment = _environment()
        rclpy.init(domain_id=int(self._environment["ROS_DOMAIN_ID"]))
        self._executor = SingleThreadedExecutor()
        self.listener = LiveListener(bag.depth_info_topic, maps)
        self._executor.add_node(self.listener)

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.stop()
        self.listener.destroy_node()
        rclpy.try_shutdown()

    @property
    def processes(self) -> dict[str, NodeProcess]:
        """Those that were started, by the name of their node."""
        return {process.name: process for process in self._processes}

    def play(self, on_progress: Callable[[LiveListener], None] = lambda _: None) -> LiveResult:
        """Plays the bag once; returns what had come back when the last map was segmented.

        Raises LiveRunFailed when a node ends, never gets ready or gives no result, and
        KeyboardInterrupt when this process is asked to end.
        """
        fusion_parameters = {"world_frame": self._bag.world_frame}
        nodes = [
            self._start("fusion_node", fusion_parameters, self._bag.fusion_remappings),
            self._start("segmentation_node", {}, {}),
        ]
        # The nodes subscribe when they are ready; the listener is the other one here.
        if not self._spin_until(
            lambda: self.listener.count_subscribers(MESH) > 1, START_TIMEOUT_S, nodes
        ):
            raise LiveRunFailed(f"the nodes were not ready after {START_TIMEOUT_S:.0f} s")
        playing = {
            "bag": str(self._bag.path),
            "rate": self._rate,
            "topics": sorted(set(self._bag.topics)),
            # The listener looks at this one, too.
            "wait_for": [*self._bag.topics, self._bag.depth_info_topic],
        }
        player = self._start("player_node", playing, self._bag.player_remappings)
        while player.exit_code is None:
            self._spin(nodes)
            on_progress(self.listener)
        if player.exit_code:
            player.check_alive()
        self._played_at = time.monotonic()
        self._spin_until(self._everything_came, FINISH_TIMEOUT_S, nodes)
        on_progress(self.listener)
        return self._result()

    def _start(
        self, name: str, parameters: dict[str, Any], remappings: dict[str, str]
    ) -> NodeProcess:
        process = NodeProcess(
            name,
            {**parameters, **self._parameters.get(name, {})},
            remappings,
            self._environment,
            self._log_folder,
        )
        self._processes.append(process)
        return process

    def _spin(self, nodes: list[NodeProcess]) -> None:
        try:
            self._executor.spin_once(timeout_sec=0.05)
        except ExternalShutdownException as end:  # SIGTERM
            raise KeyboardInterrupt from end
        for node in nodes:
            node.check_alive()

    def _spin_until(
        self, condition: Callable[[], bool], timeout_s: float, nodes: list[NodeProcess]
    ) -> bool:
        """Whether it became true."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                return False
            self._spin(nodes)
        return True

    def _everything_came(self) -> bool:
        """Whether all that was played has got into the last map, and that was segmented."""
        if self.listener.diagnostics_times.get("fusion_node", 0.0) < self._played_at:
            return False
        fusion = self.listener.diagnostics["fusion_node"]
        frames, instances = fusion["frames"], self.listener.instances
        if frames["waiting"] or frames["used"] > fusion["map"]["frames"]:
            return False
        segmented = instances.map_revision if instances else 0
        return segmented == fusion["map"]["revision"]

    def _result(self) -> LiveResult:
        listener, frames = self.listener, self._frames()
        if listener.instances is None:
            raise LiveRunFailed(
                f"no instances were published; of {frames['read']} frames {frames['used']} were "
                f"used, dropped were {frames['dropped']}: see the logs in {self._log_folder}"
            )
        nodes = [listener.diagnostics.get(n, {}) for n in ("fusion_node", "segmentation_node")]
        received = listener.received()
        received["stamp_to_marker_ms"] = received["topics"][MARKERS]["latency_ms"]
        received["drop_share"] = 1 - frames["used"] / frames["read"]
        return LiveResult(
            prediction=listener.prediction(),
            keyframes=listener.keyframes.frames,
            frames=frames,
            latency_ms={stage: v for node in nodes for stage, v in node["latency_ms"].items()},
            memory_mb={"peak": sum(node["memory_mb"]["peak"] for node in nodes)},
            tracks=len(listener.track_ids),
            received=received,
        )

    def _frames(self) -> dict[str, Any]:
        """Read, used and dropped frames as metrics.json has them."""
        played = self.listener.diagnostics.get("player_node", {}).get("played", {})
        read = int(played.get(self._bag.depth_topic, 0))
        fusion = self.listener.diagnostics.get("fusion_node", {})
        frames = fusion.get("frames", {"received": 0, "used": 0})
        dropped = {reason: int(count) for reason, count in fusion.get("dropped", {}).items()}
        lost = read - int(frames["received"])
        unfinished = int(frames["received"]) - int(frames["used"]) - sum(dropped.values())
        for reason, count in (("lost on the way", lost), ("unfinished at the end", unfinished)):
            if count > 0:
                dropped[reason] = count
        return {"read": read, "used": int(frames["used"]), "dropped": dropped}


def _environment() -> dict[str, str]:
    """What the nodes of one run share, and nobody else on this machine or network has."""
    environment = {
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "PYTHONUNBUFFERED": "1",
        "RCUTILS_COLORIZED_OUTPUT": "0",
    }
    # The listener is a participant as well.
    os.environ.update(environment)
    return dict(os.environ)
