"""What is done to the map on request: emptied, saved, loaded; saved and resumed by itself, too."""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

from unscene_ros.latency import Latency
from unscene_ros.nodes.background_services import BackgroundServices
from unscene_ros.nodes.live_map import LiveMap
from unscene_ros.nodes.managed import ManagedNode
from unscene_ros.scene import InputError

AUTOSAVE_NAME = "autosave.npz"


class MapServices:
    """~/reset, ~/save_map, ~/load_map and ~/save_timings; `background` does their work."""

    def __init__(
        self,
        node: ManagedNode,
        undo: ExitStack,
        live_map: LiveMap,
        latency: Latency,
        folder: str,
        autosave_s: float,
        resume: bool,
    ) -> None:
        """With `resume` the map is at once the one that was saved by itself, if there is one.

        Raises InputError for a folder that cannot be written, and when none is given but needed.
        """
        self.background = BackgroundServices(node, undo, folder)
        self._node = node
        self._map = live_map
        self.background.offer("reset", self._reset)
        self.background.offer_file("save_map", (".npz",), self._save)
        self.background.offer_file("load_map", (".npz",), self._load)
        self.background.offer_file("save_timings", (".json",), latency.save)
        if not (resume or autosave_s):
            return
        if not self.background.folder:
            raise InputError("map_folder: expected a folder for autosave_s and resume, got none")
        self._autosave_path = self.background.folder / AUTOSAVE_NAME
        if resume and self._autosave_path.exists():
            self._resume(self._autosave_path)
        if autosave_s:
            self._saved_change = live_map.change
            self._autosaved: Future[str] | None = None
            node.repeat(undo, autosave_s, self._autosave)
            undo.callback(self._save_changes)

    def _reset(self) -> str:
        self._map.reset()
        return "the map is empty"

    def _save(self, path: Path) -> str:
        blocks = self._map.save(path)
        return f"{blocks} blocks in {path}"

    def _load(self, path: Path) -> str:
        frames = self._map.load(path)
        return f"a map of {frames} frames from {path}"

    def _resume(self, path: Path) -> None:
        """Goes on with the saved map; one that cannot be read is kept under another name."""
        log = self._node.get_logger()
        try:
            log.info(f"resumes with {self._load(path)}")
        except InputError as error:
            kept = path.with_name(f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}")
            path.rename(kept)
            log.error(f"begins with an empty map; the saved one is {kept}: {error}")

    def _autosave(self) -> None:
        if self._autosaved is None or self._autosaved.done():  # not while the disk is behind
            self._save_changes()

    def _save_changes(self) -> None:
        if self._map.change > self._saved_change:
            self._autosaved = self.background.start("autosave", self._save_unasked)

    def _save_unasked(self) -> str:
        change = self._map.change
        told = self._save(self._autosave_path)
        self._saved_change = change  # only now: what fails is tried again
        return told
