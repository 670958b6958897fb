"""One RGB-D camera of the robot: its topics -> frames, matched in time and placed in the world."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from unscene_ros.nodes.drop_log import DropLog
from unscene_ros.nodes.managed import ManagedNode
from unscene_ros.nodes.picture_topic import PictureTopic, Transport
from unscene_ros.scene import Frame, InputError
from unscene_ros.synchronization import FrameAssembler, StampedPicture, SynchronizationConfig
from unscene_ros.transforms import TIME_JUMP_NS, TransformTree

TOPIC_PREFIX = r"/?[a-zA-Z_]\w*(/[a-zA-Z_]\w*)*"


@dataclass(frozen=True, slots=True)
class CamerasConfig:
    """The cameras that look at one map; each list is empty or has an entry for each name."""

    # Camera `front` has the topics front/rgb/image and so on, the one without a name rgb/image.
    names: tuple[str, ...] = ("",)
    # TF frame of each camera's pictures, of depth as of colour; empty: as they say.
    frames: tuple[str, ...] = ("",)
    # Asks for delivery of every picture, where the driver offers it and the network holds it.
    reliable: tuple[bool, ...] = (False,)

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise InputError(f"cameras.names: expected different names, got {list(self.names)}")
        for name in filter(None, self.names):
            if not re.fullmatch(TOPIC_PREFIX, name, re.ASCII):
                raise InputError(
                    f"cameras.names: expected the first part of a topic's name, got '{name}'"
                )
        for name in ("frames", "reliable"):
            values = getattr(self, name)
            if len(values) not in (1, len(self.names)):
                raise InputError(
                    f"cameras.{name}: expected one for each of {list(self.names)}, or one for "
                    f"all, got {list(values)}"
                )

    def each(self) -> list[tuple[str, str, bool]]:
        """Name, TF frame and reliability of each camera."""
        count = len(self.names)
        frames = self.frames * count if len(self.frames) < count else self.frames
        reliable = self.reliable * count if len(self.reliable) < count else self.reliable
        return list(zip(self.names, frames, reliable, strict=True))


class CameraInput:
    """Hands every frame that is complete to `take`; counts in `drops` what never will be."""

    def __init__(
        self,
        node: ManagedNode,
        undo: ExitStack,
        camera: tuple[str, str, bool],
        transport: Transport,
        max_wait_s: float,
        synchronization: SynchronizationConfig,
        world_frame: str,
        transforms: TransformTree,
        drops: DropLog,
        take: Callable[[Frame], None],
    ) -> None:
        """`camera` is one of `CamerasConfig.each()`."""
        self.name, self.frame, reliable = camera
        self._take = take
        self._drops = drops
        self._newest_ns = 0
        self._frame_at_s = time.monotonic()
        self._assembler = FrameAssembler(
            partial(transforms.lookup, world_frame),
            transforms.lookup,
            drops,
            synchronization,
            max_wait_s=max_wait_s,
        )
        topics = partial(
            PictureTopic,
            node,
            transport=transport,
            max_wait_s=max_wait_s,
            camera=self.name,
            reliable=reliable,
        )
        # Frames and drops are counted by depth pictures; colour alone is nobody's loss.
        self.color = topics("rgb", take=self._on(self._assembler.add_color), drop=drops.warn)
        undo.callback(self.color.close)
        self.depth = topics("depth", take=self._on(self._add_depth), drop=drops.add)
        undo.callback(self.depth.close)

    def _on(self, add: Callable[[StampedPicture], None]) -> Callable[[StampedPicture], None]:
        def on_picture(picture: StampedPicture) -> None:
            if self.frame:
                picture = dataclasses.replace(picture, frame_id=self.frame)
            add(picture)
            self.take_complete_frames()

        return on_picture

    def _add_depth(self, picture: StampedPicture) -> None:
        back_ns = self._newest_ns - picture.stamp_ns
        if back_ns > TIME_JUMP_NS:
            self._drops.warn(
                "time was set back",
                f"by {back_ns / 1e9:.1f} s on '{self.depth.topic}': the map is kept, and what "
                "comes now is fused into it; call ~/reset if it is of another place",
            )
        self._newest_ns = picture.stamp_ns
        self._assembler.add_depth(picture)

    @property
    def idle_s(self) -> float:
        """For how long no frame was complete."""
        return time.monotonic() - self._frame_at_s

    def take_complete_frames(self) -> None:
        """To be called when transforms have come, too."""
        for frame in self._assembler.frames():
            self._frame_at_s = time.monotonic()
            self._take(frame)
