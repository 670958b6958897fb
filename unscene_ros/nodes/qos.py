"""How each kind of topic is delivered (REP 2003)."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos import qos_profile_sensor_data as SENSOR


def reliable(depth: int) -> QoSProfile:
    """Everything arrives, as long as the receiver is at most `depth` messages behind."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=ReliabilityPolicy.RELIABLE
    )


def latched(depth: int) -> QoSProfile:
    """Reliable, and who comes late still gets the newest `depth` messages."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


MAP = latched(1)
INSTANCES = latched(10)  # what is gone is told once, so that none may be missed
TRANSFORMS = reliable(100)
STATIC_TRANSFORMS = latched(100)
CLOCK = reliable(1)
DIAGNOSTICS = reliable(10)

__all__ = [
    "CLOCK",
    "DIAGNOSTICS",
    "INSTANCES",
    "MAP",
    "SENSOR",
    "STATIC_TRANSFORMS",
    "TRANSFORMS",
    "latched",
    "reliable",
]
