"""What a node says of itself on /diagnostics: counts, latencies, memory, and what it dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from std_msgs.msg import Header

from unscene_ros.nodes import qos


class Diagnostics:
    """Publishes a node's figures again and again, in real time whatever simulated time does."""

    def __init__(
        self,
        node: Node,
        period_s: float,
        figures: Callable[[], Mapping[str, Any]],
        problem: Callable[[], str] = lambda: "",
    ) -> None:
        """Both are called at each message; see `diagnostics_to_msg`."""
        self._node = node
        self._figures = figures
        self._problem = problem
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        node.create_timer(period_s, self._publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _publish(self) -> None:
        now = self._node.get_clock().now().to_msg()
        name = self._node.get_name()
        self._publisher.publish(diagnostics_to_msg(name, now, self._problem(), self._figures()))


def diagnostics_to_msg(
    node_name: str, stamp: Time, problem: str, values: Mapping[str, Any]
) -> DiagnosticArray:
    """One status: WARN with the problem as its message, or OK when `problem` is empty.

    Sections of `values` become keys with dots: {"dropped": {"too slow": 2}} is "dropped.too slow".
    """
    status = DiagnosticStatus(
        level=DiagnosticStatus.WARN if problem else DiagnosticStatus.OK,
        name=node_name,
        message=problem or "ok",
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
