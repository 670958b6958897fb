"""Own recordings (bags or scan folders) -> Scene, to learn from. There are no labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from unscene_ros.fusion import FusionConfig
from unscene_ros.pipeline import build_mesh
from unscene_ros.recordings import Recording, RecordingTopics, open_recording
from unscene_ros.scene import Frame, Scene


class RecordedFrames(Sequence[Frame]):
    """The usable frames of a recording by index, read when asked for; nothing is kept.

    Forwards is streaming; an index behind the last one starts reading from the beginning.
    """

    def __init__(self, recording: Recording, count: int) -> None:
        self._recording = recording
        self._count = count
        self._rest: Iterator[Frame] = iter(())
        self._next_index = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._recording)

    def __getitem__(self, index: int) -> Frame:
        index = range(self._count)[index]
        if index < self._next_index:
            self._rest, self._next_index = iter(self._recording), 0
        for frame in self._rest:
            self._next_index += 1
            if self._next_index > index:
                return frame
        raise IndexError(f"{self._recording.name}: frame {index} can no longer be read")


def load_scene(
    path: Path, topics: RecordingTopics | None = None, fusion: FusionConfig | None = None
) -> Scene:
    """One recording as a Scene, fused with the robot's own stage.

    Raises InputError when it cannot be read; a recording without usable frames has an empty mesh.
    """
    recording = open_recording(path, topics)
    mesh = build_mesh(recording, fusion)
    usable = recording.read - sum(recording.dropped.values())
    return Scene(recording.name, mesh, RecordedFrames(recording, usable))
