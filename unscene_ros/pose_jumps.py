"""Corrections of the pose, as they come, to the moments when one is a jump.

Odometry drifts without jumps; localisation corrects it by a transform, map <- odom in REP 105, that
creeps while it follows the drift and jumps when a loop closes. After a jump, what was mapped
shortly before lies beside where the same things are mapped now.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unscene_ros.settings import check_ranges, within


@dataclass(frozen=True, slots=True)
class PoseJumpConfig:
    """What a jump is, and what to do about the map."""

    frame: str = "odom"  # TF frame that drifts but never jumps; empty: jumps are not looked for
    # A jump carries the camera farther, or turns it by more, than this within `window_s`. One
    # correction may take several pictures, as poses between two transforms are interpolated.
    max_translation_m: float = within(0.2, 0)
    max_rotation_deg: float = within(5.0, 0, 180)
    window_s: float = within(1.0, 0)
    # keep: the map stays as it is; clear: it is forgotten around where the camera was before
    policy: Literal["keep", "clear"] = "keep"
    clear_radius_m: float = within(5.0, 0)  # around there; the range of the camera or more

    def __post_init__(self) -> None:
        check_ranges(self, "pose_jumps")


@dataclass(frozen=True, slots=True, eq=False)
class PoseJump:
    """How a correction moves and turns the camera, and its positions (3,) in the world, metres."""

    translation_m: float
    rotation_deg: float
    camera_before: np.ndarray
    camera_after: np.ndarray


class PoseJumpWatch:
    """Compares each correction with the one that held `window_s` before."""

    def __init__(self, config: PoseJumpConfig) -> None:
        self.config = config
        self._recent: deque[tuple[int, np.ndarray]] = deque(maxlen=1000)  # stamp and correction

    def update(
        self, stamp_ns: int, world_from_odom: np.ndarray, camera_in_odom: np.ndarray
    ) -> PoseJump | None:
        """The jump that a correction (4, 4) is, None for a small one and for the first.

        camera_in_odom (3,): where the camera is at that time. It decides how far things move, since
        a slight turn about a distant origin carries them far. Each jump is told once; a correction
        from before the last one is passed over, unless time itself has begun anew.
        """
        recent, window_ns = self._recent, self.config.window_s * 1e9
        if recent and stamp_ns < recent[-1][0]:
            if stamp_ns >= recent[-1][0] - window_ns:
                return None
            recent.clear()
        recent.append((stamp_ns, world_from_odom))
        while len(recent) > 1 and recent[1][0] <= stamp_ns - window_ns:
            recent.popleft()
        jump = _jump(recent[0][1], world_from_odom, camera_in_odom)
        config = self.config
        if (
            jump.translation_m <= config.max_translation_m
            and jump.rotation_deg <= config.max_rotation_deg
        ):
            return None
        recent.clear()
        recent.append((stamp_ns, world_from_odom))
        return jump


def _jump(before: np.ndarray, after: np.ndarray, camera_in_odom: np.ndarray) -> PoseJump:
    """From one correction (4, 4) to another."""
    camera_before = before[:3, :3] @ camera_in_odom + before[:3, 3]
    camera_after = after[:3, :3] @ camera_in_odom + after[:3, 3]
    turn = after[:3, :3] @ before[:3, :3].T
    # From sine and cosine, since the cosine alone tells small angles badly.
    twice_sine = np.linalg.norm((turn - turn.T)[[2, 0, 1], [1, 2, 0]])
    return PoseJump(
        translation_m=float(np.linalg.norm(camera_after - camera_before)),
        rotation_deg=float(np.degrees(np.arctan2(twice_sine, np.trace(turn) - 1))),
        camera_before=camera_before,
        camera_after=camera_after,
    )
