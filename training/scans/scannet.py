"""ScanNet as it is downloaded -> scans of a library: mesh, frames, labels, splits.

Everything is turned by the scene's axis alignment. Frames come from the .sens stream, or from
scannet_frames_25k where there is none. Nothing is labelled where files are missing, as in the test
scenes. Dai et al., "ScanNet: Richly-annotated 3D reconstructions of indoor scenes", CVPR 2017.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from training.artifacts import Identity, file_hash, save_artifact
from training.fan_out import add_fan_out_options, failures_at_end, for_each
from training.scans import scannet_frames, scannet_labels
from training.scans.frame_folder import remove_frames, write_frames
from training.scans.importing import ImportReport, hash_of_ends, hash_of_listing, report_at_end
from training.scans.library import LABELS_FILE, SCANS, Library, Scan
from training.scans.scannet_files import SceneFiles, find_scenes, read_axis_alignment
from training.scans.scannet_splits import UNSCENE3D_LEAVES_OUT, read_lists, write_splits
from training.scans.sens import SensStream
from unscene_ros.scene import InputError, Mesh
from unscene_ros.settings import to_dict
from unscene_ros.storage import prepare_output_folder, read_mesh, whole_file, write_mesh
from unscene_ros.synchronization import Drops

STEP = "scannet"
LABEL_MAP = "scannetv2-labels.combined.tsv"


@dataclass(frozen=True, slots=True)
class ScanNetConfig:
    """What is taken of the frames."""

    frame_step: int = 20  # frames whose number in the stream is a multiple of it
    image_width: int = 640  # pixels; wider pictures are shrunk to it, 0 keeps them

    def __post_init__(self) -> None:
        if self.frame_step < 1 or self.image_width < 0:
            raise InputError(
                f"scannet: expected a frame step of 1 or more and a width of 0 or more, "
                f"got {self.frame_step} and {self.image_width}"
            )


def scene_identity(scene: SceneFiles, config: ScanNetConfig, label_map: Path | None) -> Identity:
    """Of everything that is imported; streams are known by their ends, pictures by their sizes."""
    files = [scene.mesh, scene.about, scene.segments, scene.objects, scene.classes, label_map]
    inputs = {path.name: file_hash(path) for path in files if path and path.exists()}
    if scene.stream.exists():
        inputs[scene.stream.name] = hash_of_ends(scene.stream)
    elif scene.frames.is_dir():
        inputs["frames"] = hash_of_listing(scene.frames)
    return Identity(STEP, to_dict(config), inputs)


def import_scene(
    scene: SceneFiles, library: Path, config: ScanNetConfig, label_map: Path | None
) -> None:
    """Writes one scan unless it is there; raises InputError when there can be none.

    Damaged frames or labels are left out; the scan's import.json says so.
    """
    identity = scene_identity(scene, config, label_map)
    scan = Scan(library / SCANS / scene.name)
    if scan.is_from(identity):
        return
    world_from_scanned = read_axis_alignment(scene.about)
    mesh = _turned(read_mesh(scene.mesh), world_from_scanned)
    report = ImportReport.begin(scan.folder, STEP, scene.folder)
    write_mesh(scan.mesh_path, mesh)  # first, since the segments' names carry its hash
    _import_frames(scene, scan, config, world_from_scanned, report)
    _import_segments(scene, scan, mesh, report)
    _import_labels(scene, scan, mesh, label_map, report)
    report.save(scan.folder)
    scan.write_mesh(mesh, identity)


def _turned(mesh: Mesh, b_from_a: np.ndarray) -> Mesh:
    rotation, shift = b_from_a[:3, :3], b_from_a[:3, 3]
    vertices = (mesh.vertices @ rotation.T + shift).astype(np.float32)
    normals = (mesh.normals @ rotation.T).astype(np.float32)
    return Mesh(vertices, mesh.faces, mesh.colors, normals)


def _import_frames(
    scene: SceneFiles, scan: Scan, config: ScanNetConfig, pose: np.ndarray, report: ImportReport
) -> None:
    remove_frames(scan.folder)
    drops, every = Drops(), config.frame_step
    try:
        if scene.stream.exists():
            stream = SensStream(scene.stream)
            header = stream.header
            cameras = header.color_camera, header.depth_camera
            frames = stream.frames(drops, every)
            if not np.allclose(header.color_extrinsics, header.depth_extrinsics, atol=1e-3):
                report.problems.append("colour is not registered to depth, but taken as it is")
        elif scene.frames.is_dir():
            cameras = scannet_frames.read_cameras(scene.frames)
            frames = scannet_frames.read_frames(scene.frames, drops, every)
        else:
            return
    except InputError as error:
        report.problems.append(f"no frames: {error}")
        return
    used = write_frames(scan.folder, frames, cameras, drops, config.image_width, pose)
    report.count_frames(used, drops)


def published_segments_identity(scan: Scan) -> Identity:
    """Of the segments that came with the scan; `scan.result("segments", .., STEP)` has them."""
    return Identity("scannet segments", {"k": 0.01, "min_vertices": 20}, {"mesh": scan.mesh_hash})


def _import_segments(scene: SceneFiles, scan: Scan, mesh: Mesh, report: ImportReport) -> None:
    if not scene.segments.exists():
        return
    try:
        ids = scannet_labels.read_segment_ids(scene.segments, len(mesh.vertices))
    except InputError as error:
        report.problems.append(f"no published segments: {error}")
        return
    segments = scannet_labels.segments_from_ids(ids, mesh.faces)
    identity = published_segments_identity(scan)
    path = scan.result_path("segments", identity, STEP)
    save_artifact(path, identity, of_vertex=segments.of_vertex, neighbors=segments.neighbors)


def _import_labels(
    scene: SceneFiles, scan: Scan, mesh: Mesh, label_map: Path | None, report: ImportReport
) -> None:
    """Writes gt.npz where the scene is annotated and the labels can be translated."""
    target = scan.folder / LABELS_FILE
    target.unlink(missing_ok=True)
    if not label_map or not scene.objects.exists():
        return
    try:
        instance, semantic = scannet_labels.label_vertices(
            scannet_labels.read_segment_ids(scene.segments, len(mesh.vertices)),
            scannet_labels.read_objects(scene.objects),
            scannet_labels.read_label_map(label_map),
        )
        if scene.classes.exists():
            semantic = scannet_labels.read_vertex_classes(
                scene.classes, scene.name, len(mesh.vertices)
            )
    except InputError as error:
        report.problems.append(f"no labels: {error}")
        return
    is_stuff = (instance < 0) & np.isin(semantic, scannet_labels.STUFF_CLASSES)
    instance[is_stuff] = scannet_labels.STUFF
    with whole_file(target) as file:
        np.savez_compressed(file, points=mesh.vertices, instance=instance, semantic=semantic)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a scan is not whole, 2 for an argument."""
    options = _parser().parse_args(arguments)
    try:
        config = ScanNetConfig(options.frame_step, options.image_width)
        scenes = find_scenes(options.root, options.frames)
        lists = read_lists(options.lists or options.root)
        if options.unscene3d:
            scenes = [scene for scene in scenes if scene.name not in UNSCENE3D_LEAVES_OUT]
        if options.split:
            scenes = _of_split(scenes, options.split, lists, options.lists or options.root)
        label_map = _find_label_map(options)
        prepare_output_folder(options.output / SCANS)
        library = Library(options.output)
        work = partial(import_scene, library=library.root, config=config, label_map=label_map)
        items = [(scene.name, scene) for scene in scenes]
        failures = for_each(items, work, options.workers, options.ray, "importing ScanNet")
        made = {name for name in library.names() if library.scan(name).about()}
        if options.unscene3d:
            made -= UNSCENE3D_LEAVES_OUT
        for split, count in write_splits(library, lists, made, options.seed).items():
            print(f"split {split}: {count} scans")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    incomplete = report_at_end(library, [scene.name for scene in scenes])
    return max(incomplete, failures_at_end(failures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.scans.scannet",
        description="Import ScanNet into a library. A second run imports only what is missing or "
        "has changed.",
    )
    parser.add_argument("root", type=Path, metavar="SCANNET_ROOT", help="with scans/ in it")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="LIBRARY")
    parser.add_argument(
        "--split", metavar="NAME", help="only the scenes of scannetv2_NAME.txt, such as train"
    )
    parser.add_argument(
        "--lists", type=Path, metavar="DIR",
        help="folder of the official scannetv2_*.txt; SCANNET_ROOT by default",
    )  # fmt: skip
    parser.add_argument(
        "--frames", type=Path, metavar="DIR",
        help="frames of scenes without .sens; scannet_frames_25k in SCANNET_ROOT by default",
    )  # fmt: skip
    parser.add_argument(
        "--label-map", type=Path, metavar="TSV", help=f"{LABEL_MAP} in SCANNET_ROOT by default"
    )
    defaults = ScanNetConfig()
    parser.add_argument(
        "--frame-step", type=int, default=defaults.frame_step, metavar="N",
        help="take frames whose number is a multiple of N (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--image-width", type=int, default=defaults.image_width, metavar="PIXELS",
        help="shrink wider pictures to it; 0 keeps them (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--unscene3d", action="store_true",
        help=f"leave out {' and '.join(sorted(UNSCENE3D_LEAVES_OUT))}, as UnScene3D does",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0,
        help="of the parts of the training scenes that are drawn (default: %(default)s)",
    )  # fmt: skip
    add_fan_out_options(parser)
    return parser


def _of_split(
    scenes: list[SceneFiles], split: str, lists: dict[str, list[str]], folder: Path
) -> list[SceneFiles]:
    if split not in lists:
        raise InputError(
            f"--split {split}: expected {folder / f'scannetv2_{split}.txt'}, an official list "
            f"(ScanNet/Tasks/Benchmark); there are {sorted(lists) or 'none'}"
        )
    wanted = set(lists[split])
    chosen = [scene for scene in scenes if scene.name in wanted]
    if not chosen:
        raise InputError(f"--split {split}: none of its {len(wanted)} scenes is downloaded")
    if len(chosen) < len(wanted):
        print(f"split {split}: {len(chosen)} of {len(wanted)} scenes are downloaded")
    return chosen


def _find_label_map(options: argparse.Namespace) -> Path | None:
    path = options.label_map or options.root / LABEL_MAP
    if path.exists():
        scannet_labels.read_label_map(path)  # a wrong file is told now, and once
        return path
    if options.label_map:
        raise InputError(f"--label-map {path}: no such file")
    print(f"no labels will be written: there is no {path}", file=sys.stderr)
    return None


if __name__ == "__main__":
    sys.exit(main())
