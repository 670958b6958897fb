"""Recordings -> frames: a ROS 2 bag (mcap, sqlite3) or a scan folder, without ROS.

Reading is streaming: memory does not grow with the recording. What cannot be used is left out and
counted with its reason; only a recording that cannot give any frame at all is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from unscene_ros.recordings.bags import is_bag
from unscene_ros.recordings.frames import BagFrames
from unscene_ros.recordings.scan_folder import ScanFolder, is_scan_folder
from unscene_ros.recordings.topics import RecordingTopics
from unscene_ros.scene import Frame, InputError
from unscene_ros.synchronization import Drops, SynchronizationConfig

__all__ = ["Recording", "RecordingTopics", "open_recording"]


class FrameSource(Protocol):
    """What a kind of recording has to offer."""

    warnings: list[str]

    def __len__(self) -> int: ...

    def frames(self, drops: Drops) -> Iterator[Frame]: ...

    def summary(self) -> str: ...


class Recording:
    """The frames of one recording in order of time; each iteration reads them anew.

    `len` is the number of depth pictures, of which each becomes a frame or a drop.
    """

    def __init__(self, name: str, source: FrameSource) -> None:
        self.name = name
        self._source = source
        self._drops = Drops()
        self._used = 0

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Frame]:
        self._drops, self._used = Drops(), 0
        for frame in self._source.frames(self._drops):
            self._used += 1
            yield frame

    @property
    def read(self) -> int:
        """Depth pictures read so far in this iteration, used or dropped."""
        return self._used + sum(self.dropped.values())

    @property
    def dropped(self) -> dict[str, int]:
        """How many depth pictures were left out so far, by reason."""
        return dict(self._drops.counts)

    @property
    def warnings(self) -> list[str]:
        """What a user should know: damage, and the first case of each reason in `dropped`."""
        explained = [f"{reason}: {why}" for reason, why in self._drops.explanations.items()]
        return [*self._source.warnings, *explained]

    def summary(self) -> str:
        """What was found in the recording, in a few words."""
        return f"{self.name}: {self._source.summary()}"


def open_recording(
    path: Path | str,
    topics: RecordingTopics | None = None,
    synchronization: SynchronizationConfig | None = None,
) -> Recording:
    """Opens a bag folder, a .mcap or .db3 file, or a scan folder.

    `topics` and `synchronization` concern bags; the default finds the topics itself. Raises
    InputError when this is no recording, or one without depth, CameraInfo or poses.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"recording {path}: there is no such file or folder")
    name = path.resolve().name if path.is_dir() else path.stem
    if is_bag(path):
        return Recording(name, BagFrames(path, topics, synchronization))
    if is_scan_folder(path):
        return Recording(name, ScanFolder(path))
    hint = ": convert it with rosbags-convert" if path.suffix == ".bag" else ""
    raise InputError(
        f"recording {path}: expected a ROS 2 bag (a folder, .mcap or .db3) or a scan folder with "
        f"color/, depth/ and poses, got neither{hint}"
    )
