"""The tracker of the present map, kept in a file of each map, so that ids outlast a restart."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from unscene_ros.scene import InputError
from unscene_ros.storage import inside
from unscene_ros.tracking import InstanceTracker, TrackingConfig

ENDING = ".tracks.npz"
MAX_FILES = 100  # a map that is begun anew with every start must not fill the disk


class LastingIds:
    """Files go to `folder`, named after their map; without a folder ids last as long as the node.

    `warn(subject, text)` is told of what cannot be read or saved, which costs ids and no more.
    """

    def __init__(
        self, config: TrackingConfig, folder: Path | None, warn: Callable[[str, str], object]
    ) -> None:
        self._config = config
        self._folder = folder
        self._warn = warn
        self._tracker = InstanceTracker(config)

    def tracker(self, map_id: str) -> InstanceTracker:
        """That of this map; its ids begin anew, or go on if the map was seen before."""
        if map_id != self._tracker.map_id:
            self._tracker = self._load(map_id) or InstanceTracker(self._config, map_id)
        return self._tracker

    def save(self) -> None:
        """To be called after each map; of other maps the files that were used last are kept."""
        path = self._path(self._tracker.map_id)
        if path is None:
            return
        try:
            self._tracker.save(path)
        except InputError as error:
            self._warn("ids are not saved", str(error))
        with suppress(OSError):  # what cannot be removed takes some disk, no more
            files = path.parent.glob(f"*{ENDING}")
            for file in sorted(files, key=lambda file: file.stat().st_mtime)[:-MAX_FILES]:
                file.unlink()

    def _load(self, map_id: str) -> InstanceTracker | None:
        path = self._path(map_id)
        if path is None or not path.exists():
            return None
        try:
            saved = InstanceTracker.load(path, self._config)
            if saved.map_id != map_id:
                raise InputError(f"{path}: expected ids of this map, got those of another")
        except InputError as error:
            self._warn("the objects of this map get new ids", str(error))
            return None
        return saved

    def _path(self, map_id: str) -> Path | None:
        return inside(self._folder, map_id + ENDING) if self._folder and map_id else None
