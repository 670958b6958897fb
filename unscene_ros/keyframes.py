"""A stream of frames to a few that see the place from well-spread poses, for image features."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from unscene_ros.scene import Frame
from unscene_ros.settings import check_ranges, within


@dataclass(frozen=True, slots=True)
class KeyframeConfig:
    """Settings of the choice of keyframes."""

    max_frames: int = within(24, 1)
    # A pose is new when it moved this far from every kept one.
    min_translation_m: float = within(0.3, 0.001)
    min_rotation_deg: float = within(20.0, 0.1, 180)  # or turned this far
    max_width_px: int = within(320, 1)  # wider frames are kept smaller, which keeps features cheap

    def __post_init__(self) -> None:
        check_ranges(self, "keyframes")


class Keyframes:
    """A bounded set of frames; `frames` holds them, the first taken first.

    The doubling algorithm for clustering a stream (Charikar et al., STOC 1997) with a smaller
    factor: poses keep a spacing, which grows whenever there are too many of them.
    """

    def __init__(self, config: KeyframeConfig) -> None:
        self.config = config
        self.frames: list[Frame] = []
        self._spacing = 1.0

    def offer(self, frame: Frame) -> bool:
        """Takes a frame with depth and a new pose, made smaller; whether it did."""
        gaps = self._gaps([*self.frames, frame])[-1]
        if gaps.min() < self._spacing or not (frame.depth > 0).any():
            return False
        taken = narrowed(frame, self.config.max_width_px)
        self.frames.append(taken)
        while len(self.frames) > self.config.max_frames:
            self._spacing *= 1.25
            self._thin_out()
        return self.frames[-1] is taken

    def _thin_out(self) -> None:
        """Drops each frame that is closer than the spacing to one taken before it."""
        gaps = self._gaps(self.frames)
        kept: list[int] = []
        for index in range(len(self.frames)):
            if (gaps[index, kept] >= self._spacing).all():
                kept.append(index)
        self.frames = [self.frames[index] for index in kept]

    def _gaps(self, frames: list[Frame]) -> np.ndarray:
        """(N, N) gaps between poses, 1 where they begin to differ; infinite to itself."""
        poses = np.stack([frame.world_from_camera for frame in frames])
        centers, rotations = poses[:, :3, 3], poses[:, :3, :3]
        translation = np.linalg.norm(centers[:, None] - centers, axis=2)
        trace = np.einsum("aij,bij->ab", rotations, rotations)
        rotation = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
        gaps = np.maximum(
            translation / self.config.min_translation_m, rotation / self.config.min_rotation_deg
        )
        np.fill_diagonal(gaps, np.inf)
        return gaps


def narrowed(frame: Frame, max_width_px: int) -> Frame:
    """The frame scaled down to at most this width; depth keeps single readings, unmixed."""
    camera = frame.camera
    if camera.width <= max_width_px:
        return frame
    size = (max_width_px, max(round(camera.height * max_width_px / camera.width), 1))
    return Frame(
        frame.stamp_ns,
        camera.resized(*size),
        cv2.resize(frame.color, size, interpolation=cv2.INTER_AREA),
        cv2.resize(frame.depth, size, interpolation=cv2.INTER_NEAREST),
        frame.world_from_camera,
    )
