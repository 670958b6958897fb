"""The library: a folder of scans from any source in one layout, and what was computed from them.

splits/<name>.txt     names of scans, one a line
scans/<name>/         one place
  mesh.ply            its surface; everything else is about these vertices
  scan.json           what made the mesh; there is none beside a mesh of your own
  color/ depth/ pose/ intrinsic.txt    its frames, as a scan folder; optional
  gt.npz              labels, for the probes alone; optional
  segments/ features/ masks/           results, with the hash of their identity in the name
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from training.artifacts import Identity, file_hash, is_made, load_artifact, save_artifact
from unscene_ros.keyframes import KeyframeConfig, Keyframes
from unscene_ros.oversegmentation import OversegmentationConfig, oversegment
from unscene_ros.recordings.scan_folder import ScanFolder, is_scan_folder
from unscene_ros.scene import Frame, InputError, Mesh, Segments
from unscene_ros.settings import to_dict
from unscene_ros.storage import MESH_FILE, read_mesh, whole_file, write_mesh
from unscene_ros.synchronization import Drops

log = logging.getLogger(__name__)

SCANS, SPLITS, ABOUT_FILE, LABELS_FILE = "scans", "splits", "scan.json", "gt.npz"


class Library:
    """The scans under one folder; raises InputError when there is no folder `scans` in it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not (self.root / SCANS).is_dir():
            raise InputError(
                f"library {root}: expected a folder '{SCANS}' in it; make one with "
                f"python -m training.scans.rooms, recorded, scannet or arkitscenes"
            )

    def names(self, split: str = "") -> list[str]:
        """The scans of a split, or all of them in the order of their names.

        Raises InputError for a split without a file or with names that are not there.
        """
        there = sorted(path.name for path in (self.root / SCANS).iterdir() if path.is_dir())
        if not split:
            return there
        names = self._listed(split)
        missing = sorted(set(names) - set(there))
        if missing:
            raise InputError(
                f"split {split}: {len(missing)} of its {len(names)} scans are not in "
                f"{self.root / SCANS}: {', '.join(missing[:5])}"
            )
        return names

    def scan(self, name: str) -> Scan:
        """One scan, whether or not it is complete."""
        return Scan(self.root / SCANS / name)

    def write_split(self, split: str, names: Iterable[str]) -> None:
        """Writes the names of a split, one a line."""
        (self.root / SPLITS).mkdir(exist_ok=True)
        with whole_file(self._split_path(split)) as file:
            file.write("".join(f"{name}\n" for name in names).encode())

    def extend_split(self, split: str, names: Iterable[str]) -> None:
        """Lists names after those that a split has; makes it unless there are no names at all."""
        there = self._listed(split) if self._split_path(split).exists() else []
        joined = list(dict.fromkeys([*there, *names]))
        if joined != there:
            self.write_split(split, joined)

    def _split_path(self, split: str) -> Path:
        return self.root / SPLITS / f"{split}.txt"

    def _listed(self, split: str) -> list[str]:
        """The names in the file of a split, whether or not they are there; raises InputError."""
        path = self._split_path(split)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            known = sorted(found.stem for found in (self.root / SPLITS).glob("*.txt"))
            raise InputError(
                f"split {split}: expected {path}, a file of names; there are {known or 'none'}"
            ) from error
        return [line.strip() for line in lines if line.strip()]


@dataclass(frozen=True)
class Scan:
    """One place on disk; nothing is read before it is asked for."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def library(self) -> Path:
        """The root of the library that it is in."""
        return self.folder.parent.parent

    @property
    def mesh_path(self) -> Path:
        """Where its surface is, or would be."""
        return self.folder / MESH_FILE

    def mesh(self) -> Mesh:
        """Its surface; raises InputError when there is none yet."""
        self._check_mesh()
        return read_mesh(self.mesh_path)

    @cached_property
    def mesh_hash(self) -> str:
        """Of the mesh's file: results from another mesh have other names."""
        self._check_mesh()
        return file_hash(self.mesh_path)

    def _check_mesh(self) -> None:
        if not self.mesh_path.exists():
            raise InputError(
                f"scan {self.name}: no {MESH_FILE}: fuse its frames with python -m "
                f"training.scans.fuse {self.library}"
            )

    def write_mesh(self, mesh: Mesh, identity: Identity) -> None:
        """Writes the surface, then what made it, which marks completion."""
        (self.folder / ABOUT_FILE).unlink(missing_ok=True)
        self.mesh_path.unlink(missing_ok=True)  # alone it would pass for one of the user's own
        self.__dict__.pop("mesh_hash", None)  # of the surface before
        write_mesh(self.mesh_path, mesh)
        with whole_file(self.folder / ABOUT_FILE) as file:
            file.write((identity.to_json() + "\n").encode())

    def about(self) -> dict[str, Any]:
        """The identity of the surface as plain values; empty when there is no whole one."""
        try:
            about = json.loads((self.folder / ABOUT_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return about if self.mesh_path.exists() and isinstance(about, dict) else {}

    def is_from(self, identity: Identity) -> bool:
        """Whether the surface is there, made in this very way."""
        return self.about() == json.loads(identity.to_json())

    @cached_property
    def frames_hash(self) -> str:
        """Of what poses and intrinsics say, and of the pictures' names and sizes."""
        texts = [*self.folder.glob("*.txt"), *(self.folder / "pose").glob("*.txt")]
        pictures = [*(self.folder / "color").glob("*"), *(self.folder / "depth").glob("*")]
        files = {str(path.relative_to(self.folder)): file_hash(path) for path in texts}
        for path in pictures:
            files[str(path.relative_to(self.folder))] = str(path.stat().st_size)
        return Identity("frames", {}, files).hash

    def has_frames(self) -> bool:
        """Whether there are pictures at all."""
        return is_scan_folder(self.folder)

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Each `every`-th frame, read when asked for; those that cannot be used are left out.

        How many those are is logged at the end. Raises InputError when there are no pictures, or
        none that can be used.
        """
        if not self.has_frames():
            raise InputError(f"scan {self.name}: expected pictures in color/ and depth/, got none")
        drops, used = Drops(), 0
        for frame in ScanFolder(self.folder).frames(drops, every):
            used += 1
            yield frame
        if not used:
            raise InputError(
                f"scan {self.name}: no frame can be used: {', '.join(drops.explanations.values())}"
            )
        log_left_out(self.name, used, drops)

    def keyframes(self, every: int = 1) -> list[Frame]:
        """What a robot would have kept of each `every`-th frame; none where there are none."""
        keyframes = Keyframes(KeyframeConfig())
        if self.has_frames():
            for frame in self.frames(every):
                keyframes.offer(frame)
        return keyframes.frames

    def segments_identity(self, config: OversegmentationConfig) -> Identity:
        """Of the segments that `segments` makes."""
        return Identity("segments", to_dict(config), {"mesh": self.mesh_hash})

    def segments(self, config: OversegmentationConfig, mesh: Mesh | None = None) -> Segments:
        """Its segments, computed once; `mesh` saves reading it again."""
        identity = self.segments_identity(config)
        path = self.result_path("segments", identity)
        if is_made(path, identity):
            arrays = load_artifact(path)
            count = int(arrays["of_vertex"].max(initial=-1)) + 1
            return Segments(arrays["of_vertex"], arrays["neighbors"], count)
        segments = oversegment(mesh or self.mesh(), config)
        save_artifact(path, identity, of_vertex=segments.of_vertex, neighbors=segments.neighbors)
        return segments

    def result_path(self, kind: str, identity: Identity, name: str = "") -> Path:
        """Where a result of this kind (segments, features, masks) is, or would be."""
        stem = f"{name}-{identity.hash}" if name else identity.hash
        return self.folder / kind / f"{stem}.npz"

    def result(self, kind: str, identity: Identity, name: str = "") -> dict[str, np.ndarray]:
        """The arrays of a result; raises InputError naming the step that makes it."""
        path = self.result_path(kind, identity, name)
        if not is_made(path, identity):
            raise InputError(
                f"scan {self.name}: no {path.relative_to(self.folder)}, which is "
                f"made by the step {identity.step}"
            )
        return load_artifact(path)


def log_left_out(scan: str, used: int, drops: Drops) -> None:
    """Warns of frames that could not be used, with the first of each kind."""
    if drops.counts:
        count, reasons = sum(drops.counts.values()), "; ".join(drops.explanations.values())
        log.warning(
            "scan %s: %d of %d frames are left out %s: %s",
            scan, count, used + count, drops.counts, reasons,
        )  # fmt: skip
