"""Own recordings (ROS 2 bags or scan folders) -> scans of a library. There are no labels.

A recording is read once, as a stream: every frame is fused into the mesh with the robot's own
stage, and each n-th one is kept as a picture for image features and pre-training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from training.artifacts import Identity
from training.command import add_settings_option, exit_code
from training.fan_out import add_fan_out_options, failures_at_end, for_each
from training.scans.frame_folder import JPEG_QUALITY, StoredFrame, remove_frames, write_frames
from training.scans.fuse import VERSION
from training.scans.importing import (
    REPORT_FILE,
    ImportReport,
    hash_of_ends,
    hash_of_listing,
    report_at_end,
)
from training.scans.library import SCANS, Library, Scan
from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.image_codecs import encode_jpeg
from unscene_ros.recordings import Recording, RecordingTopics, open_recording
from unscene_ros.scene import Camera, Frame, InputError
from unscene_ros.settings import from_assignments, from_dict, to_dict
from unscene_ros.storage import prepare_output_folder
from unscene_ros.synchronization import Drops

STEP = "recorded"


@dataclass(frozen=True, slots=True)
class RecordedConfig:
    """How a recording becomes a scan."""

    frame_step: int = 5  # each that many-th frame is kept as a picture; all are fused
    fusion: FusionConfig = field(default_factory=FusionConfig)
    topics: RecordingTopics = field(default_factory=RecordingTopics)

    def __post_init__(self) -> None:
        if self.frame_step < 1:
            raise InputError(f"frame_step: expected 1 or more, got {self.frame_step}")


def recording_identity(path: Path, config: RecordedConfig) -> Identity:
    """Of the scan; the recording is known by its files' names and sizes."""
    content = hash_of_listing(path) if path.is_dir() else hash_of_ends(path)
    return Identity(STEP, to_dict(config), {"recording": content}, version=VERSION)


def import_recording(path: Path, library: Path, config: RecordedConfig) -> None:
    """Writes the scan unless it is there.

    Raises InputError when nothing can be made of it, and for a scan of this name that came from
    elsewhere.
    """
    recording = open_recording(path, config.topics)
    scan = Scan(library / SCANS / recording.name)
    identity = recording_identity(path, config)
    if scan.is_from(identity):
        return
    _check_not_anothers(scan, path, identity)
    report, drops = ImportReport.begin(scan.folder, STEP, path), Drops()
    volume = TsdfVolume(config.fusion)
    fused = _fused(recording, volume)
    first = next(fused, None)
    if first is not None:
        kept = _kept(first, fused, config.frame_step, drops)
        used = write_frames(scan.folder, kept, (first.camera, first.camera), drops)
        report.count_frames(used, drops)
    mesh = volume.extract_mesh()
    if not len(mesh.vertices):
        _remove(scan)
        raise InputError(
            f"recording {path}: none of its {recording.read} frames shows a surface within range: "
            f"{'; '.join(recording.warnings) or 'is depth in metres or millimetres?'}"
        )
    report.dropped |= recording.dropped | volume.dropped
    if volume.lost_surface:
        report.problems.append(volume.lost_surface)
    report.save(scan.folder)
    scan.write_mesh(mesh, identity)


def _check_not_anothers(scan: Scan, path: Path, identity: Identity) -> None:
    """Raises InputError when the scan's folder holds anything that is not of this recording.

    A recording that was repaired or made anew in its place, or moved as it is, is the same one.
    """
    if not scan.folder.exists() or not any(scan.folder.iterdir()):
        return
    about, source = scan.about(), ImportReport.load(scan.folder).source
    step = about.get("step", STEP)
    is_same = source == str(path.resolve()) or about.get("inputs") == identity.inputs
    if step == STEP and is_same:
        return
    holds = f"the step {step} made it" if step != STEP else f"it is of {source or 'something else'}"
    raise InputError(
        f"scan {scan.name} is there already, and {holds}: give the recording {path} another name, "
        f"or delete {scan.folder}"
    )


def _fused(recording: Recording, volume: TsdfVolume) -> Iterator[Frame]:
    """The frames that went into the map."""
    for frame in recording:
        if volume.integrate(frame) is not None:
            yield frame


def _kept(first: Frame, others: Iterator[Frame], step: int, drops: Drops) -> Iterator[StoredFrame]:
    """Each `step`-th frame from the first on; the others are only taken from the stream."""
    yield _stored(0, first)
    for number, frame in enumerate(others, start=1):
        if number % step:
            continue
        if _differs(frame.camera, first.camera):
            drops.add("other camera", f"frame {number}: not the camera of the first frame")
            continue
        yield _stored(number, frame)


def _stored(number: int, frame: Frame) -> StoredFrame:
    color = encode_jpeg(frame.color, JPEG_QUALITY)
    depth_mm = np.clip(np.rint(frame.depth * 1000), 0, 65534).astype(np.uint16)
    return StoredFrame(number, frame.stamp_ns, color, depth_mm, frame.world_from_camera)


def _remove(scan: Scan) -> None:
    """Leaves nothing of an import that failed, but for files of others in its folder."""
    remove_frames(scan.folder)
    for path in (scan.mesh_path, scan.folder / REPORT_FILE):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # it is not empty
        scan.folder.rmdir()


def _differs(camera: Camera, other: Camera) -> bool:
    same_size = (camera.width, camera.height) == (other.width, other.height)
    return not same_size or not np.allclose(camera.intrinsics, other.intrinsics)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a scan failed, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m training.scans.recorded",
        description="Make scans of a library from ROS 2 bags or scan folders. A second call makes "
        "only what is missing.",
    )
    parser.add_argument("recordings", nargs="+", type=Path, metavar="RECORDING")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="LIBRARY")
    parser.add_argument("--split", default="", metavar="NAME", help="also add them to this split")
    add_settings_option(parser, "frame_step=10 or fusion.voxel_size_m=0.02")
    add_fan_out_options(parser)
    options = parser.parse_args(arguments)

    def run() -> int:
        config = from_dict(RecordedConfig, from_assignments(options.set))
        prepare_output_folder(options.output / SCANS)
        library = Library(options.output)
        work = partial(import_recording, library=library.root, config=config)
        items = [(_name(path), path) for path in options.recordings]
        failures = for_each(items, work, options.workers, options.ray, "recordings")
        failed = {failure.name for failure in failures}
        names = [name for name, _ in items if name not in failed]
        if options.split:
            library.extend_split(options.split, names)
        return max(report_at_end(library, names), failures_at_end(failures))

    return exit_code(run)


def _name(path: Path) -> str:
    """As `open_recording` names it."""
    return path.resolve().name if path.is_dir() else path.stem


if __name__ == "__main__":
    sys.exit(main())
