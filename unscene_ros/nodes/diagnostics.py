"""What a node says of itself on /diagnostics: its figures, and what is wrong."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from std_msgs.msg import Header

from unscene_ros.nodes import qos
from unscene_ros.provenance import peak_memory_mb
from unscene_ros.scene import InputError
from unscene_ros.settings import check_ranges, within

Level = Literal["warn", "error"]
LEVELS = {"warn": DiagnosticStatus.WARN, "error": DiagnosticStatus.ERROR}
GPU_LOST = (
    "the GPU refuses this process, as it does after a fault of CUDA: end this node and start it "
    "again; where that recurs, set segmentation.network.device to cpu and look for Xid in dmesg"
)


class Problem(NamedTuple):
    """Something that is wrong; without a text it is not."""

    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class DiagnosticsConfig:
    """When the status of a node is WARN, and when it is ERROR."""

    # ERROR, with an explanation, when no frame was fused for so long.
    no_data_after_s: float = within(5.0, 0.1)
    recent_s: float = within(10.0, 1.0, 600.0)  # rates, latencies and drop share are of this period
    max_drop_share: float = within(0.5, 0.0, 1.0)  # ERROR when more of the frames were dropped
    warn_latency_s: float = within(10.0, 0.001)  # WARN when the p95 of a stage is longer
    error_latency_s: float = within(60.0, 0.001)  # ERROR when the p95 of a stage is longer
    warn_segmentation_age_s: float = within(30.0, 0.1)  # WARN when a map waits so long for one
    error_segmentation_age_s: float = within(120.0, 0.1)  # ERROR when a map waits so long
    # WARN when a larger part of the GPU's memory is taken, by anyone.
    max_gpu_memory_share: float = within(0.95, 0.0, 1.0)

    def __post_init__(self) -> None:
        check_ranges(self, "diagnostics")
        for name in ("latency_s", "segmentation_age_s"):
            warn, error = getattr(self, f"warn_{name}"), getattr(self, f"error_{name}")
            if warn > error:
                raise InputError(
                    f"diagnostics.warn_{name}: expected at most error_{name}, {error:g}, "
                    f"got {warn:g}"
                )


class Diagnostics:
    """Publishes a node's status again and again, in real time whatever simulated time does.

    It is as bad as the worst of what the node's `problems` say and of what its `figures` exceed in
    `config`, which may be replaced at any time. See `exceeded` for the figures that are watched.
    Figures with `frames.used` and `dropped` get a `frames.drop_share`.
    """

    def __init__(
        self,
        node: Node,
        period_s: float,
        figures: Callable[[], Mapping[str, Any]],
        problems: Callable[[], Iterable[Problem]] = tuple,
        config: DiagnosticsConfig | None = None,
    ) -> None:
        """Both functions are called at each message."""
        self.config = config or DiagnosticsConfig()
        self._node = node
        self._figures = figures
        self._problems = problems
        self._counts: deque[tuple[float, int, int]] = deque()  # when; frames used, dropped
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        node.create_timer(period_s, self._publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _publish(self) -> None:
        figures = dict(self._figures())
        if {"frames", "dropped"} <= figures.keys():
            share = self._drop_share(figures["frames"]["used"], sum(figures["dropped"].values()))
            figures["frames"] = {**figures["frames"], "drop_share": share}
        problems = [*self._problems(), *exceeded(figures, self.config)]
        now = self._node.get_clock().now().to_msg()
        self._publisher.publish(diagnostics_to_msg(self._node.get_name(), now, problems, figures))

    def _drop_share(self, used: int, dropped: int) -> float:
        """Of all frames since `recent_s` ago, when these are the counts by now."""
        now = time.monotonic()
        if self._counts and (used < self._counts[-1][1] or dropped < self._counts[-1][2]):
            self._counts.clear()  # the node began anew
        self._counts.append((now, used, dropped))
        while self._counts[0][0] < now - self.config.recent_s:
            self._counts.popleft()
        _, used_before, dropped_before = self._counts[0]
        newly_dropped = dropped - dropped_before
        return newly_dropped / max(newly_dropped + used - used_before, 1)


def exceeded(figures: Mapping[str, Any], config: DiagnosticsConfig) -> Iterator[Problem]:
    """What is beyond its threshold.

    Watched are frames.drop_share, recent.<stage>.p95_ms (from `Latency.recent`), segmentation.age_s
    and memory_mb (from `memory_mb`), each as far as it is there.
    """
    share = figures.get("frames", {}).get("drop_share", 0.0)
    if share > config.max_drop_share:
        yield Problem("error", f"{share:.0%} of the frames of {config.recent_s:g} s were dropped")
    for stage, recent in figures.get("recent", {}).items():
        p95_s = recent.get("p95_ms", 0.0) / 1000
        if p95_s > config.warn_latency_s:
            text = f"{stage} takes up to {p95_s:.1f} s (p95)"
            yield Problem(_level(p95_s, config.error_latency_s), text)
    age_s = figures.get("segmentation", {}).get("age_s", 0.0)
    if age_s > config.warn_segmentation_age_s:
        text = f"no map was segmented for {age_s:.0f} s, though new ones came"
        yield Problem(_level(age_s, config.error_segmentation_age_s), text)
    memory = figures.get("memory_mb", {})
    if memory.get("gpu_lost"):
        yield Problem("error", GPU_LOST)
    taken = 1 - memory["gpu_free"] / memory["gpu_total"] if "gpu_total" in memory else 0.0
    if taken > config.max_gpu_memory_share:
        yield Problem("warn", f"{taken:.0%} of the GPU's {memory['gpu_total']:.0f} MB are taken")


def _level(value: float, error_above: float) -> Level:
    return "error" if value > error_above else "warn"


def memory_mb() -> dict[str, float]:
    """The most memory this process has held and, where it computes on a GPU, what it holds there.

    torch is asked only where somebody else has imported and used it; `gpu_lost` says that the GPU
    does not answer.
    """
    figures = {"peak": peak_memory_mb()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        try:
            free, total = torch.cuda.mem_get_info()
        except RuntimeError:  # after a fault on the GPU every call of CUDA fails in this process
            return figures | {"gpu_lost": 1.0}
        held, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        names = ("gpu", "gpu_peak", "gpu_free", "gpu_total")
        figures |= dict(zip(names, (n / 1e6 for n in (held, most, free, total)), strict=True))
    return figures


def diagnostics_to_msg(
    node_name: str, stamp: Time, problems: Iterable[Problem], values: Mapping[str, Any]
) -> DiagnosticArray:
    """One status: as bad as the worst problem, its message their texts, the worst first.

    Sections of `values` become keys with dots: {"dropped": {"too slow": 2}} is "dropped.too slow".
    """
    wrong = sorted(
        (problem for problem in problems if problem.text), key=lambda p: p.level != "error"
    )
    status = DiagnosticStatus(
        level=LEVELS[wrong[0].level] if wrong else DiagnosticStatus.OK,
        name=node_name,
        message="\n".join(problem.text for problem in wrong) or "ok",
        values=[KeyValue(key=key, value=_text(value)) for key, value in _flat(values)],
    )
    return DiagnosticArray(header=Header(stamp=stamp), status=[status])


def diagnostics_from_msg(message: DiagnosticArray) -> dict[str, dict[str, Any]]:
    """The values of each status by its name, with their sections."""
    return {status.name: _sections(status.values) for status in message.status}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _text(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(int(value))


def _sections(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        *path, key = pair.key.split(".")
        section = values
        for part in path:
            section = section.setdefault(part, {})
        section[key] = float(pair.value)
    return values
