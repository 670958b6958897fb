"""Colour, depth and poses, each arriving in its own time -> frames.

Used live and in replay: pictures are handed in as they come and stay undecoded until everything
that belongs to a frame is there. Waiting is bounded; what is given up is counted with its reason.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass

import numpy as np

from unscene_ros.registration import Calibration, Registration
from unscene_ros.scene import Frame, InputError
from unscene_ros.settings import check_ranges, within
from unscene_ros.transforms import TIME_JUMP_NS, TransformError

_UNKNOWN_COLOR = 128  # grey everywhere stands for "no colour known"


@dataclass(frozen=True, slots=True)
class SynchronizationConfig:
    """How far apart things may be that belong to one frame, and how long they are waited for."""

    max_color_gap_s: float = within(0.03, 0)  # about half a frame at 15 Hz
    max_waiting: int = within(30, 1)  # pictures of each kind held back for a partner or a pose
    pose_history_s: float = within(10.0, 0.1)  # poses are kept this long
    # What moved while its poses were missing for longer has no pose in between.
    max_pose_gap_s: float = within(2.0, 0)

    def __post_init__(self) -> None:
        check_ranges(self, "synchronization")


@dataclass(frozen=True, slots=True, eq=False)
class StampedPicture:
    """One picture as it arrived; `decode` makes the array when it is needed."""

    stamp_ns: int
    frame_id: str
    calibration: Calibration
    decode: Callable[[], np.ndarray]


class Drops:
    """How often each reason left a frame out, and the first such case in one sentence."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.explanations: dict[str, str] = {}

    def add(self, reason: str, explanation: str) -> None:
        """Counts one frame."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.explanations.setdefault(reason, explanation)


class FrameAssembler:
    """Matches depth with colour and pose; one frame or one drop for every depth picture.

    Reasons: "no colour partner", "no transform", "pose not finite", "undecodable", "time set back".
    """

    def __init__(
        self,
        world_from_camera: Callable[[str, int], np.ndarray],
        lookup: Callable[[str, str, int], np.ndarray],
        drops: Drops,
        config: SynchronizationConfig | None = None,
        with_color: bool = True,
        max_wait_s: float = math.inf,
    ) -> None:
        """Both callables give a (4, 4) or raise TransformError.

        world_from_camera(camera_frame, stamp_ns) places a picture; lookup(target, source, stamp_ns)
        gives target_from_source between the two cameras. Without colour every frame is grey.
        A picture is given up when a later one is more than `max_wait_s` ahead of it.
        """
        self._world_from_camera = world_from_camera
        self._lookup = lookup
        self._drops = drops
        self._config = config or SynchronizationConfig()
        self._with_color = with_color
        self._max_wait_ns = max_wait_s * 1e9
        self._max_gap_ns = self._config.max_color_gap_s * 1e9
        self._depths: deque[StampedPicture] = deque()
        # Colour often comes faster than depth, and only a part of it finds a partner.
        self._colors: deque[StampedPicture] = deque(maxlen=4 * self._config.max_waiting)
        self._pairs: deque[tuple[StampedPicture, StampedPicture | None]] = deque()
        self._newest_depth_ns = 0
        self._registration: Registration | None = None

    def add_color(self, picture: StampedPicture) -> None:
        """Takes a colour picture, RGB uint8 when decoded."""
        self._colors.append(picture)
        # Without depth none is taken, and large ones would pile up.
        while self._colors[0].stamp_ns < picture.stamp_ns - self._max_wait_ns - self._max_gap_ns:
            self._colors.popleft()

    def add_depth(self, picture: StampedPicture) -> None:
        """Takes a depth picture, float32 metres when decoded."""
        if picture.stamp_ns < self._newest_depth_ns - TIME_JUMP_NS:
            self._forget_after(picture.stamp_ns + TIME_JUMP_NS)
        self._newest_depth_ns = picture.stamp_ns
        self._depths.append(picture)

    def frames(self, finished: bool = False) -> Iterator[Frame]:
        """Every frame that is complete by now, in order; `finished`: nothing more will come."""
        self._pair(finished)
        while self._pairs:
            depth, color = self._pairs[0]
            try:
                world_from_camera = self._world_from_camera(depth.frame_id, depth.stamp_ns)
                registration = self._register(depth, color)
            except TransformError as error:
                if error.may_resolve and not (finished or self._overdue(depth, self._pairs)):
                    return
                self._pairs.popleft()
                finite = error.reason != "not finite"
                self._drops.add("no transform" if finite else "pose not finite", str(error))
                continue
            self._pairs.popleft()
            try:
                yield _frame(depth, color, registration, world_from_camera)
            except InputError as error:
                self._drops.add("undecodable", str(error))

    def _pair(self, finished: bool) -> None:
        """Gives each depth picture the nearest colour picture, once that one must have come."""
        while self._depths:
            depth = self._depths[0]
            if not self._with_color:
                self._pairs.append((self._depths.popleft(), None))
                continue
            newest_color_ns = self._colors[-1].stamp_ns if self._colors else -1
            may_come = newest_color_ns < depth.stamp_ns
            if may_come and not (finished or self._overdue(depth, self._depths)):
                return
            self._depths.popleft()
            color = self._take_color(depth.stamp_ns)
            if color is not None:
                self._pairs.append((depth, color))

    def _overdue(self, depth: StampedPicture, queue: Sized) -> bool:
        """Whether a picture has waited long enough in its queue."""
        waited_ns = self._newest_depth_ns - depth.stamp_ns
        return len(queue) > self._config.max_waiting or waited_ns > self._max_wait_ns

    def _take_color(self, stamp_ns: int) -> StampedPicture | None:
        """The nearest colour picture, which no other depth picture gets, or None and a drop."""
        gap_ms, nearest = min(
            ((abs(c.stamp_ns - stamp_ns) / 1e6, i) for i, c in enumerate(self._colors)),
            default=(float("inf"), -1),
        )
        if gap_ms > self._max_gap_ns / 1e6:
            self._drops.add(
                "no colour partner",
                f"depth picture at {stamp_ns / 1e9:.3f} s: the nearest colour picture is "
                f"{gap_ms:.1f} ms away, allowed are {self._config.max_color_gap_s * 1e3:.1f} ms",
            )
            return None
        for _ in range(nearest):
            self._colors.popleft()
        return self._colors.popleft()

    def _register(self, depth: StampedPicture, color: StampedPicture | None) -> Registration:
        """The registration for this pair, made anew only when cameras or mounting change."""
        color_from_depth = np.eye(4)
        if color is not None and color.frame_id != depth.frame_id:
            color_from_depth = self._lookup(color.frame_id, depth.frame_id, depth.stamp_ns)
        color_calibration = color.calibration if color else depth.calibration
        last = self._registration
        if (
            last is None
            or last.depth_calibration is not depth.calibration
            or last.color_calibration is not color_calibration
            or not np.allclose(last.color_from_depth, color_from_depth, atol=1e-6)
        ):
            last = Registration(depth.calibration, color_calibration, color_from_depth)
            self._registration = last
        return last

    def _forget_after(self, stamp_ns: int) -> None:
        """Time was set back: what waits belongs to a past that does not go on."""
        for _ in range(len(self._depths) + len(self._pairs)):
            self._drops.add("time set back", "the stamps of the depth pictures went backwards")
        self._depths.clear()
        self._pairs.clear()
        kept = [color for color in self._colors if color.stamp_ns <= stamp_ns]
        self._colors.clear()
        self._colors.extend(kept)


def _frame(
    depth: StampedPicture,
    color: StampedPicture | None,
    registration: Registration,
    world_from_camera: np.ndarray,
) -> Frame:
    depth_picture = depth.decode()
    if color is None:
        color_picture = np.full((*depth_picture.shape, 3), _UNKNOWN_COLOR, np.uint8)
    else:
        color_picture = color.decode()
    color_picture, depth_picture = registration.register(color_picture, depth_picture)
    camera = registration.camera
    return Frame(depth.stamp_ns, camera, color_picture, depth_picture, world_from_camera)
