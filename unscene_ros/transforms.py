"""Poses over time: stamped transforms between frames -> one transform at one instant.

Used live and in replay, so that both place a picture alike. Rotations are interpolated on the
shortest arc, translations linearly. Nothing is extrapolated, and nobody guesses where a thing went
while it was not seen for long.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from unscene_ros.scene import InputError

# Stamps that went through floating-point seconds are off by less than this: not extrapolation.
TOLERANCE_NS = 1_000_000
# A stamp this much older than the newest one means that time was set back, as when a recording
# starts over; publishers that merely overtake each other stay below it.
TIME_JUMP_NS = 1_000_000_000
# A thing that is found again this near to where it was has stood still meanwhile.
STILL_M = 0.05
STILL_RAD = math.radians(3)

Reason = Literal[
    "unknown frame", "not connected", "in the future", "too old", "gap", "no data", "not finite"
]


class TransformError(LookupError):
    """No pose at this instant; `reason` says why and `gap_ms` how far the nearest sample is."""

    def __init__(self, message: str, reason: Reason, gap_ms: float = math.inf) -> None:
        super().__init__(message)
        self.reason = reason
        self.gap_ms = gap_ms

    @property
    def may_resolve(self) -> bool:
        """Whether more messages can make the same lookup succeed."""
        return self.reason in ("unknown frame", "not connected", "in the future", "no data")


def matrix_from_pose(translation: Sequence[float], quaternion_xyzw: Sequence[float]) -> np.ndarray:
    """(4, 4) rigid transform; the quaternion is normalised, one of length 0 gives NaN."""
    x, y, z, w = quaternion_xyzw
    norm = x * x + y * y + z * z + w * w
    s = 2.0 / norm if norm > 0 else math.nan
    return np.array(
        [
            [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w), translation[0]],
            [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w), translation[1]],
            [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y), translation[2]],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )


def interpolate_pose(first: np.ndarray, second: np.ndarray, fraction: float) -> np.ndarray:
    """The pose at `fraction` of the way from `first` to `second`, both (4, 4)."""
    rotation = first[:3, :3]
    turn = cv2.Rodrigues(rotation.T @ second[:3, :3])[0]  # axis times angle
    pose = np.eye(4)
    pose[:3, :3] = rotation @ cv2.Rodrigues(fraction * turn)[0]
    pose[:3, 3] = (1 - fraction) * first[:3, 3] + fraction * second[:3, 3]
    return pose


class PoseTrack:
    """Stamped poses of one moving thing, the newest `history_s` seconds of them.

    Between two that are more than `max_gap_s` and a movement apart there is no pose.
    """

    def __init__(self, history_s: float = 10.0, max_gap_s: float = math.inf) -> None:
        self._history_ns = int(history_s * 1e9)
        self._max_gap_ns = max_gap_s * 1e9
        self._stamps: list[int] = []
        self._poses: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def newest_ns(self) -> int | None:
        """The stamp of the newest pose."""
        return self._stamps[-1] if self._stamps else None

    def add(self, stamp_ns: int, pose: np.ndarray) -> None:
        """Adds a pose (4, 4); samples may overtake each other, the later word on a stamp wins.

        A stamp more than a second behind the newest means that time was set back: the track is
        cleared first. A pose that is not finite is kept as the statement that it is unknown.
        """
        if self._stamps and stamp_ns < self._stamps[-1] - TIME_JUMP_NS:
            self._stamps.clear()
            self._poses.clear()
        place = bisect.bisect_left(self._stamps, stamp_ns)
        if place < len(self._stamps) and self._stamps[place] == stamp_ns:
            self._poses[place] = pose
            return
        self._stamps.insert(place, stamp_ns)
        self._poses.insert(place, pose)
        expired = bisect.bisect_left(self._stamps, self._stamps[-1] - self._history_ns)
        del self._stamps[:expired], self._poses[:expired]

    def lookup(self, stamp_ns: int) -> np.ndarray:
        """The interpolated pose (4, 4); raises TransformError outside the span and in a gap."""
        if not self._stamps:
            raise TransformError("no pose has arrived yet", "no data")
        oldest, newest = self._stamps[0], self._stamps[-1]
        if stamp_ns > newest + TOLERANCE_NS:
            raise _outside("in the future", "after the newest", stamp_ns - newest)
        if stamp_ns < oldest - TOLERANCE_NS:
            raise _outside("too old", "before the oldest", oldest - stamp_ns)
        after = bisect.bisect_left(self._stamps, stamp_ns)
        after = min(after, len(self._stamps) - 1)
        if stamp_ns >= self._stamps[after] or after == 0:
            return _finite(self._poses[after])
        start, end = self._stamps[after - 1], self._stamps[after]
        first, second = _finite(self._poses[after - 1]), _finite(self._poses[after])
        if end - start > self._max_gap_ns and not _stood_still(first, second):
            nearest_ms = min(stamp_ns - start, end - stamp_ns) / 1e6
            raise TransformError(
                f"it moved between two samples that are {(end - start) / 1e9:.1f} s apart (gap)",
                "gap",
                nearest_ms,
            )
        return interpolate_pose(first, second, (stamp_ns - start) / (end - start))


class TransformTree:
    """Frames that hang on each other by fixed or moving transforms, as ROS tf2 keeps them.

    The moving ones are PoseTracks with this history and this longest gap.
    """

    def __init__(self, history_s: float = 10.0, max_gap_s: float = math.inf) -> None:
        self._history_s = history_s
        self._max_gap_s = max_gap_s
        self._parent_of: dict[str, str] = {}
        self._parent_from: dict[str, np.ndarray | PoseTrack] = {}  # by child; fixed or moving

    def add(
        self, parent: str, child: str, stamp_ns: int, matrix: np.ndarray, static: bool = False
    ) -> None:
        """Adds parent_from_child (4, 4); a child that changes its parent starts a new history."""
        parent, child = _name(parent), _name(child)
        if not parent or not child or parent == child:
            raise InputError(f"transform: expected two frames, got '{parent}' and '{child}'")
        edge = self._parent_from.get(child)
        if static:
            self._parent_from[child] = matrix
        else:
            if not isinstance(edge, PoseTrack) or self._parent_of[child] != parent:
                edge = self._parent_from[child] = PoseTrack(self._history_s, self._max_gap_s)
            edge.add(stamp_ns, matrix)
        self._parent_of[child] = parent

    @property
    def frames(self) -> set[str]:
        """Every frame that was named so far."""
        return {*self._parent_of, *self._parent_of.values()}

    @property
    def newest_ns(self) -> int | None:
        """The newest stamp of all moving transforms; None where nothing moves."""
        tracks = (edge for edge in self._parent_from.values() if isinstance(edge, PoseTrack))
        return max((t.newest_ns for t in tracks if t.newest_ns is not None), default=None)

    def moves(self, frame: str) -> bool:
        """Whether any transform between `frame` and the root of its tree is a moving one."""
        return any(isinstance(self._parent_from.get(f), PoseTrack) for f in self.ancestors(frame))

    def ancestors(self, frame: str) -> list[str]:
        """`frame`, its parent, its parent's parent, up to the root of its tree."""
        chain = [_name(frame)]
        while (parent := self._parent_of.get(chain[-1])) is not None and parent not in chain:
            chain.append(parent)
        return chain

    def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
        """target_from_source (4, 4) at this instant, over the frames' common ancestor.

        Raises TransformError naming both frames, the instant, the gap in ms and the reason.
        """
        target, source = _name(target), _name(source)
        if target == source:
            return np.eye(4)
        target_chain, source_chain = self.ancestors(target), self.ancestors(source)
        common = next((frame for frame in source_chain if frame in target_chain), None)
        if common is None:
            raise self._unconnected(target, source)
        common_from_source = self._chain(source_chain, common, target, source, stamp_ns)
        common_from_target = self._chain(target_chain, common, target, source, stamp_ns)
        return inverse_pose(common_from_target) @ common_from_source

    def _chain(
        self, chain: list[str], common: str, target: str, source: str, stamp_ns: int
    ) -> np.ndarray:
        """common_from_frame for the first frame of `chain`."""
        common_from_frame = np.eye(4)
        for child in chain[: chain.index(common)]:
            edge = self._parent_from[child]
            try:
                step = edge.lookup(stamp_ns) if isinstance(edge, PoseTrack) else _finite(edge)
            except TransformError as error:
                raise TransformError(
                    f"no transform from '{source}' to '{target}' at {stamp_ns / 1e9:.3f} s: "
                    f"'{child}' in '{self._parent_of[child]}': {error}",
                    error.reason,
                    error.gap_ms,
                ) from None
            common_from_frame = step @ common_from_frame
        return common_from_frame

    def _unconnected(self, target: str, source: str) -> TransformError:
        missing = [frame for frame in (source, target) if frame not in self.frames]
        reason: Reason
        if missing:
            names = ", ".join(sorted(self.frames)) or "none"
            why, reason = f"frame '{missing[0]}' is unknown, known are: {names}", "unknown frame"
        else:
            roots = self.ancestors(source)[-1], self.ancestors(target)[-1]
            why = f"not connected, their trees end at '{roots[0]}' and '{roots[1]}'"
            reason = "not connected"
        return TransformError(f"no transform from '{source}' to '{target}': {why}", reason)


def inverse_pose(pose: np.ndarray) -> np.ndarray:
    """The inverse of a rigid (4, 4)."""
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse


def _stood_still(first: np.ndarray, second: np.ndarray) -> bool:
    moved_m = np.linalg.norm(second[:3, 3] - first[:3, 3])
    turned_rad = np.linalg.norm(cv2.Rodrigues(first[:3, :3].T @ second[:3, :3])[0])
    return bool(moved_m < STILL_M and turned_rad < STILL_RAD)


def _name(frame: str) -> str:
    return frame.strip("/")  # recordings made by old drivers say "/map"


def _finite(pose: np.ndarray) -> np.ndarray:
    if not np.isfinite(pose).all():
        raise TransformError("the pose there is NaN or infinite", "not finite", 0.0)
    return pose


def _outside(reason: Reason, where: str, gap_ns: int) -> TransformError:
    gap_ms = gap_ns / 1e6
    return TransformError(f"{gap_ms:.1f} ms {where} sample ({reason})", reason, gap_ms)
