"""Where the parts of ScanNet's scenes are, as they are downloaded.

scans/<scene>/, scans_test/<scene>/     meshes, streams, annotations
scannet_frames_25k/<scene>/, scannet_frames_test/<scene>/     every 100th frame; optional
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unscene_ros.scene import InputError, check_pose

SCENE_NAME = re.compile(r"scene\d{4}_\d{2}")


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """Where the parts of one scene are, or would be."""

    folder: Path
    frames: Path

    @property
    def name(self) -> str:
        """Such as scene0000_00."""
        return self.folder.name

    def file(self, ending: str) -> Path:
        """One of its files."""
        return self.folder / f"{self.name}{ending}"

    @property
    def mesh(self) -> Path:
        """Its surface, the only part that is needed."""
        return self.file("_vh_clean_2.ply")

    @property
    def stream(self) -> Path:
        """All its frames."""
        return self.file(".sens")

    @property
    def about(self) -> Path:
        """How it was scanned; holds the axis alignment of scenes that have one."""
        return self.file(".txt")

    @property
    def segments(self) -> Path:
        """The published over-segmentation."""
        return self.file("_vh_clean_2.0.010000.segs.json")

    @property
    def objects(self) -> Path:
        """What was annotated: labels of sets of segments."""
        return self.file(".aggregation.json")

    @property
    def classes(self) -> Path:
        """The mesh with a class at each vertex."""
        return self.file("_vh_clean_2.labels.ply")


def find_scenes(root: Path, frames: Path | None = None) -> list[SceneFiles]:
    """The scenes in root, root/scans and root/scans_test; `frames` as scannet_frames_25k.

    Raises InputError when there is none.
    """
    parents = [root, root / "scans", root / "scans_test"]
    pictures = [frames] if frames else [root / "scannet_frames_25k", root / "scannet_frames_test"]
    folders = [
        path
        for parent in parents
        if parent.is_dir()
        for path in sorted(parent.iterdir())
        if SCENE_NAME.fullmatch(path.name) and path.is_dir()
    ]
    if not folders:
        raise InputError(
            f"ScanNet {root}: expected folders such as scans/scene0000_00 in it, got none"
        )
    scenes: dict[str, SceneFiles] = {}
    for folder in folders:
        beside = [parent / folder.name for parent in pictures]
        there = next((path for path in beside if path.is_dir()), beside[0])
        scenes.setdefault(folder.name, SceneFiles(folder, there))
    return sorted(scenes.values(), key=lambda scene: scene.name)


def read_axis_alignment(path: Path) -> np.ndarray:
    """(4, 4) aligned_from_scanned of a scene's .txt; identity where it says nothing.

    Raises InputError for something that is no rigid motion.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [line.partition("=")[2] for line in lines if line.startswith("axisAlignment")]
        if not found:
            return np.eye(4)
        matrix = np.array(found[0].split(), np.float64).reshape(4, 4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: axisAlignment: expected 16 numbers: {error}") from error
    check_pose(f"{path}: axisAlignment", matrix)
    return matrix
