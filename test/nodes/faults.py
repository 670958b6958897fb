"""What goes wrong on robots, one function a fault: it is made, seen by an operator, and removed.

Each gives an `Outcome`: what the operator saw, how long it took until all was well again, and what
was lost.
"""

from __future__ import annotations

import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import psutil
from fake_camera import Camera
from hypothesis import example, given, settings
from rclpy.qos import QoSProfile, ReliabilityPolicy
from robot import Robot
from spoiled_frames import send_spoiled, spoiled_frames
from tf2_msgs.msg import TFMessage
from unscene_ros.srv import NamedFile

from unscene_ros.nodes import segmentation_node
from unscene_ros.nodes.live_map import LiveMap
from unscene_ros.scene import Frame

SPOILED_PERIOD_NS = 100_000_000
MAX_GOOD_UNFUSED = 40  # two seconds of what may wait
FULL_DISK_BYTES = 20_000


@dataclass(frozen=True)
class Outcome:
    """`lost` counts by name what is not there any more; `figures` are what else was measured."""

    seen: str
    recovered_s: float
    lost: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)


def dropped_frames(values: dict[str, Any]) -> Counter[str]:
    """By reason, of a fusion node's figures at rest; for how many there is no reason, if any."""
    frames, reasons = values["frames"], values.get("dropped", {})
    lost = Counter({f"frames, {reason}": int(count) for reason, count in reasons.items()})
    lost["frames without a reason"] = int(frames["received"] - frames["used"]) - lost.total()
    return Counter({name: count for name, count in lost.items() if count})


# Processes that end


def kill_fusion(robot: Robot) -> Outcome:
    """The fusion node is killed, and started again with `resume`."""
    operator = robot.operator
    robot.start_process("segmentation_node")
    fusion = robot.start_process("fusion_node")
    ids = robot.spin_until_mapped()
    robot.spin_until_seen("autosave: ", time.monotonic())
    map_id = operator.mesh.map_id
    blocks = robot.next_figures()["map"]["blocks"]
    fused = robot.fused_frames
    fusion.kill()
    seen = robot.spin_until_seen("nobody publishes '/fusion_node/mesh'", time.monotonic())

    began_s = time.monotonic()
    robot.start_process("fusion_node")
    resumed = robot.spin_until_seen("a map of ", began_s)
    robot.spin_until_fused()
    well_s, missing = robot.spin_until_shown(ids)
    frames = int(re.search(r"a map of (\d+) frames", resumed)[1])
    blocks_left = robot.next_figures()["map"]["blocks"]
    return Outcome(
        seen,
        well_s - began_s,
        +Counter(
            {
                "frames since the last autosave": fused - frames,
                "map blocks": round(blocks - blocks_left),
                "ids": len(missing),
                "maps": int(operator.mesh.map_id != map_id),
            }
        ),
        {"frames_resumed": frames},
    )


def kill_segmentation(robot: Robot) -> Outcome:
    """The segmentation node is killed, and started again, while fusion goes on."""
    robot.start("fusion_node")
    segmentation = robot.start_process("segmentation_node")
    ids, fused = robot.spin_until_mapped(), robot.fused_frames
    segmentation.kill()
    seen = robot.spin_until_seen("takes the map no more", time.monotonic())
    fused_meanwhile = robot.fused_frames - fused

    began_s = time.monotonic()
    robot.start_process("segmentation_node")
    well_s, missing = robot.spin_until_shown(ids)
    lost = dropped_frames(robot.settle()) + Counter({"ids": len(missing)})
    return Outcome(seen, well_s - began_s, lost, {"fused_meanwhile": fused_meanwhile})


# Cameras that do not deliver


class CameraElsewhere(Camera):
    """Its topics have other names than the nodes were told."""

    def __init__(self) -> None:
        super().__init__(name="front")

    def is_connected(self) -> bool:
        return True


class CameraWithoutTransforms(Camera):
    """Nobody says where it is."""

    def send_pose(self, *_: Any) -> None:
        pass


class CameraWithUnreliableTransforms(Camera):
    """Its transforms are offered in a way that no node takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.destroy_publisher(self.tf)
        offered = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.tf = self.create_publisher(TFMessage, "/tf", offered)

    def is_connected(self) -> bool:
        return bool(self.depth.get_subscription_count())


def replace_camera(
    robot: Robot, make_camera: Callable[[], Camera] | None, words: str, for_s: float = 0.0
) -> Outcome:
    """For a while there is another camera, or none."""
    robot.start("fusion_node")
    robot.spin_until_fused()
    robot.replace_camera(make_camera)
    began_s = time.monotonic()
    seen = robot.spin_until_seen(words, began_s)
    robot.spin_for(max(0.0, began_s + for_s - time.monotonic()))

    robot.replace_camera(Camera)
    began_s = time.monotonic()
    well_s = robot.spin_until_fused()
    return Outcome(seen, well_s - began_s, dropped_frames(robot.settle()))


def start_over(robot: Robot, back_s: float = 60.0) -> Outcome:
    """Time goes backwards, as when a recording is played again."""
    robot.start("fusion_node")
    robot.spin_until_fused()
    map_id = robot.operator.mesh.map_id
    began_s = time.monotonic()
    robot.shift_ns -= round(back_s * 1e9)
    well_s = robot.spin_until_fused()
    seen = robot.spin_until_seen("time was set back", began_s)
    lost = dropped_frames(robot.settle())
    lost["maps"] += robot.operator.mesh.map_id != map_id
    return Outcome(seen, well_s - began_s, +lost)


def spoil_messages(robot: Robot, count: int, compressed: bool = False) -> Outcome:
    """Messages that are cut off, do not fit together or make no sense, each before good ones."""
    robot.replace_camera(partial(Camera, compressed))
    camera, spoiled, good, recovered_s = robot.camera, 0, set(), 0.0

    with watched_fusion() as fused:
        node = robot.start("fusion_node")
        robot.spin_until_fused()

        def send(send_frame: Callable[[Frame], None]) -> int:
            robot.shift_ns += SPOILED_PERIOD_NS
            frame, received = robot.next_frame(), node._received
            send_frame(frame)
            robot.spin_until(lambda: node._received > received)
            return frame.stamp_ns

        @settings(max_examples=count, deadline=None, database=None, derandomize=True)
        @example({"depth": {"data": 100}})
        @given(spoiled_frames())
        def send_one(changes: dict[str, dict[str, Any]]) -> None:
            nonlocal spoiled, recovered_s
            send(lambda frame: send_spoiled(camera, frame, changes))
            spoiled += 1
            began_s, sent = time.monotonic(), set()
            while not sent & fused.keys():
                # Good ones wait behind a bad one as long as what that one lacks may come.
                assert len(sent) <= MAX_GOOD_UNFUSED, f"nothing is fused after {changes}"
                sent.add(send(camera.send))
                robot.spin_for(0.01)
            good.update(sent)
            recovered_s = max(recovered_s, time.monotonic() - began_s)

        began_s = time.monotonic()
        with robot.silence():
            send_one()
            lost = dropped_frames(robot.settle())
    seen = robot.spin_until_seen("undecodable", began_s)
    lost["good frames"] = len(good - fused.keys())
    return Outcome(seen, recovered_s, +lost, {"spoiled": spoiled})


# Resources that end


def exhaust_gpu(robot: Robot) -> Outcome:
    """The segmenter finds no memory on the GPU, then it does again."""
    import torch

    failing = False
    load = segmentation_node.load_segmenter

    def load_failing(*arguments: Any) -> Any:
        segmenter = load(*arguments)
        segment = segmenter.segment

        def segment_or_fail(*things: Any, **more: Any) -> Any:
            if failing:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return segment(*things, **more)

        return mock.Mock(
            wraps=segmenter, segment=segment_or_fail, oversegmentation=segmenter.oversegmentation
        )

    with mock.patch.object(segmentation_node, "load_segmenter", load_failing):
        robot.start("fusion_node")
        robot.start("segmentation_node")
    ids = robot.spin_until_mapped()
    failing = True
    seen = robot.spin_until_seen("map failed", time.monotonic())
    failing, began_s = False, time.monotonic()
    well_s, missing = robot.spin_until_shown(ids)
    lost = dropped_frames(robot.settle()) + Counter({"ids": len(missing)})
    return Outcome(seen, well_s - began_s, lost)


def fill_disk(robot: Robot) -> Outcome:
    """A map is saved where there is no room for it, then there is."""
    fusion = robot.start_process("fusion_node")
    robot.spin_until_fused()
    client = robot.operator.create_client(NamedFile, "/fusion_node/save_map")

    def save() -> None:
        answer = client.call_async(NamedFile.Request(name="kitchen.npz"))
        robot.spin_until(answer.done)

    began_s = time.monotonic()
    save()
    robot.spin_until_seen("save_map: ", began_s)
    saved = (robot.folder / "kitchen.npz").read_bytes()
    before = resource.prlimit(fusion.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(fusion.pid, resource.RLIMIT_FSIZE, (FULL_DISK_BYTES, before[1]))
    full_s = time.monotonic()
    save()
    seen = robot.spin_until_seen("save_map failed", full_s)
    damaged = (robot.folder / "kitchen.npz").read_bytes() != saved
    left_over = len(list(robot.folder.glob("*.part")))
    robot.spin_until_fused()

    resource.prlimit(fusion.pid, resource.RLIMIT_FSIZE, before)
    began_s = time.monotonic()
    save()
    robot.spin_until_seen("save_map: ", began_s)
    well_s = time.monotonic()
    lost = dropped_frames(robot.settle()) + Counter({"saved maps": damaged})
    return Outcome(seen, well_s - began_s, lost, {"left_over": left_over})


@contextmanager
def watched_fusion(at_least_s: float = 0.0) -> Iterator[dict[int, float]]:
    """Stamp -> when of each frame that is fused; fusing takes at least so long."""
    fused: dict[int, float] = {}
    integrate = LiveMap.integrate

    def integrate_slowly(self: LiveMap, frame: Any) -> Any:
        time.sleep(at_least_s)
        result = integrate(self, frame)
        fused[frame.stamp_ns] = time.monotonic()
        return result

    with mock.patch.object(LiveMap, "integrate", integrate_slowly):
        yield fused


def overload(robot: Robot, for_s: float, fusing_s: float = 0.2) -> Outcome:
    """Pictures come five times as fast as they can be fused, then at half that speed."""
    process = psutil.Process()
    waiting = 0
    with watched_fusion(fusing_s) as fused:
        node = robot.start("fusion_node")
        robot.rate_hz = 0.5 / fusing_s
        robot.spin_until_fused()
        robot.rate_hz = 5 / fusing_s
        began_s = time.monotonic()
        robot.spin_for(for_s / 5)  # until all queues are as full as they get
        memory_mb = process.memory_info().rss / 1e6
        while time.monotonic() < began_s + for_s:
            robot.spin_for(fusing_s)
            waiting = max(waiting, node._worker.pending)
        growth_mb = process.memory_info().rss / 1e6 - memory_mb
        seen = robot.spin_until_seen("of the frames of", began_s)

        robot.rate_hz = 0.5 / fusing_s
        began_s = time.monotonic()
        well_s = robot.spin_until_fused()
        lost = dropped_frames(robot.settle())
    figures = {
        "latency_s": max(at_s - robot.sent[stamp_ns] for stamp_ns, at_s in fused.items()),
        "waiting": waiting,
        "growth_mb": growth_mb,
        "newest_is_fused": max(fused) == max(robot.sent),
        "fused": len(fused),
        "sent": len(robot.sent),
    }
    return Outcome(seen, well_s - began_s, lost, figures)
