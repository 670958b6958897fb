"""ARKitScenes as it is downloaded -> scans of a library: mesh or laser points, frames, splits.

A scene <id>/, or its <id>_frames/, holds lowres_depth/ and lowres_wide.traj, pictures in vga_wide/
or lowres_wide/, and their *_intrinsics/. Its surface is <id>_3dod_mesh.ply; else it is
reconstructed from the points in the scene's other .ply files.
Baruch et al., "ARKitScenes", NeurIPS Datasets and Benchmarks 2021.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from training.artifacts import Identity, file_hash
from training.fan_out import add_fan_out_options, failures_at_end, for_each
from training.scans.arkitscenes_frames import FrameFiles, missing_files, read_frames
from training.scans.frame_folder import remove_frames, write_frames
from training.scans.importing import ImportReport, hash_of_ends, hash_of_listing, report_at_end
from training.scans.library import SCANS, Library, Scan
from training.scans.poisson import PoissonConfig, reconstruct_surface
from unscene_ros.ply import read_ply
from unscene_ros.scene import InputError, Mesh
from unscene_ros.settings import from_assignments, from_dict, to_dict
from unscene_ros.storage import prepare_output_folder, read_mesh
from unscene_ros.synchronization import Drops

STEP = "arkitscenes"
SPLIT_OF_FOLDER = {"Training": "train", "Validation": "val"}


@dataclass(frozen=True, slots=True)
class ARKitScenesConfig:
    """What is taken of a scene."""

    frame_interval_s: float = 0.5  # kept frames are at least so far apart
    image_width: int = 640  # pixels; wider pictures are shrunk to it, 0 keeps them
    poisson: PoissonConfig = field(default_factory=PoissonConfig)  # of points without a mesh

    def __post_init__(self) -> None:
        if not self.frame_interval_s >= 0 or self.image_width < 0:
            raise InputError(
                f"arkitscenes: expected an interval and a width of 0 or more, got "
                f"{self.frame_interval_s} and {self.image_width}"
            )


def find_scenes(root: Path) -> list[Path]:
    """The folders of scenes in root, root/raw or root/3dod, also below Training and Validation.

    Raises InputError when there is none.
    """
    scenes: dict[str, Path] = {}
    for parent in (
        root / kind / part for kind in ("", "raw", "3dod") for part in ("", *SPLIT_OF_FOLDER)
    ):
        for folder in parent.iterdir() if parent.is_dir() else ():
            if folder.is_dir() and folder.name.isdecimal():
                scenes.setdefault(folder.name, folder)
    if not scenes:
        raise InputError(
            f"ARKitScenes {root}: expected folders such as raw/Training/40753679 in it, got none"
        )
    return [scenes[name] for name in sorted(scenes)]


def surface_files(scene: Path) -> list[Path]:
    """The scene's mesh, or else all of its point clouds."""
    mesh = scene / f"{scene.name}_3dod_mesh.ply"
    return [mesh] if mesh.exists() else sorted(scene.glob("*.ply"))


def read_surface(scene: Path, config: PoissonConfig) -> Mesh:
    """The scene's mesh, reconstructed where there are only points; raises InputError."""
    files = surface_files(scene)
    if not files:
        raise InputError(
            f"{scene}: expected {scene.name}_3dod_mesh.ply or laser points as .ply, got none: "
            f"download the asset 'mesh'"
        )
    parts = [read_ply(path) for path in files]
    if any(len(faces) for _, faces, _, _ in parts):
        return read_mesh(files[0])
    points, _, colors, normals = ([part[column] for part in parts] for column in range(4))
    count = sum(map(len, points))
    known = [sum(map(len, column)) == count for column in (colors, normals)]
    return reconstruct_surface(
        np.concatenate(points),
        np.concatenate(colors) if known[0] else np.zeros((0, 3)),
        np.concatenate(normals) if known[1] else np.zeros((0, 3)),
        config,
    )


def scene_identity(scene: Path, config: ARKitScenesConfig) -> Identity:
    """Of everything that is imported; surfaces are known by their ends, pictures by their sizes."""
    inputs = {path.name: hash_of_ends(path) for path in surface_files(scene)}
    files = FrameFiles.find(scene)
    if files:
        inputs[files.trajectory.name] = file_hash(files.trajectory)
        for folder in (files.depth, files.color, files.depth_intrinsics, files.color_intrinsics):
            inputs[folder.name] = hash_of_listing(folder)
    return Identity(STEP, to_dict(config), inputs)


def import_scene(scene: Path, library: Path, config: ARKitScenesConfig) -> None:
    """Writes one scan unless it is there; raises InputError when there can be none.

    Damaged frames are left out; the scan's import.json says so.
    """
    identity = scene_identity(scene, config)
    scan = Scan(library / SCANS / scene.name)
    if scan.is_from(identity):
        return
    mesh = read_surface(scene, config.poisson)
    report = ImportReport.begin(scan.folder, STEP, scene)
    remove_frames(scan.folder)
    files = FrameFiles.find(scene)
    if files:
        drops = Drops()
        try:
            cameras, frames = read_frames(files, drops, config.frame_interval_s)
        except InputError as error:
            report.problems.append(f"no frames: {error}")
        else:
            used = write_frames(scan.folder, frames, cameras, drops, config.image_width)
            report.count_frames(used, drops)
    elif lacking := missing_files(scene):
        report.problems.append(f"no frames: {' and '.join(lacking)} missing: download them too")
    report.save(scan.folder)
    scan.write_mesh(mesh, identity)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a scan is not whole, 2 for an argument."""
    parser = argparse.ArgumentParser(
        prog="python -m training.scans.arkitscenes",
        description="Import ARKitScenes into a library. A second run imports only what is missing "
        "or has changed.",
    )
    parser.add_argument("root", type=Path, metavar="ARKITSCENES_ROOT", help="with raw/ or 3dod/")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="LIBRARY")
    parser.add_argument("--split", choices=[*SPLIT_OF_FOLDER.values()], help="only these scenes")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="a setting, for example image_width=256 or poisson.cell_m=0.02",
    )  # fmt: skip
    add_fan_out_options(parser)
    options = parser.parse_args(arguments)
    try:
        config = from_dict(ARKitScenesConfig, from_assignments(options.set))
        scenes = _of_split(find_scenes(options.root), options.split)
        prepare_output_folder(options.output / SCANS)
        library = Library(options.output)
        work = partial(import_scene, library=library.root, config=config)
        items = [(scene.name, scene) for scene in scenes]
        failures = for_each(items, work, options.workers, options.ray, "importing ARKitScenes")
        for split in SPLIT_OF_FOLDER.values():
            there = [path.name for path in _of_split(scenes, split)]
            made = [name for name in there if library.scan(name).about()]
            if made:
                library.write_split(split, made)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    incomplete = report_at_end(library, [scene.name for scene in scenes])
    return max(incomplete, failures_at_end(failures))


def _of_split(scenes: list[Path], split: str | None) -> list[Path]:
    """The scenes below the folder of a split, or all of them."""
    return [s for s in scenes if not split or SPLIT_OF_FOLDER.get(s.parent.name) == split]


if __name__ == "__main__":
    sys.exit(main())
