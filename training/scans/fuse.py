"""Frames of the scans in a library -> their meshes, fused with the robot's own stage."""

from __future__ import annotations

import logging
import sys
from functools import partial

from training.artifacts import Identity
from training.command import add_settings_option, exit_code, over_scans, step_parser
from training.scans.importing import INTERRUPTED, ImportReport
from training.scans.library import ABOUT_FILE, Scan
from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.scene import InputError
from unscene_ros.settings import from_assignments, from_dict, to_dict
from unscene_ros.storage import MESH_FILE

log = logging.getLogger(__name__)

STEP = "fuse"
VERSION = 2  # of what `TsdfVolume` makes of frames: it forgets sooner what is seen to be free


def fused_identity(scan: Scan, config: FusionConfig) -> Identity:
    """Of the mesh."""
    return Identity(STEP, to_dict(config), {"frames": scan.frames_hash}, version=VERSION)


def fuse_scan(scan: Scan, config: FusionConfig) -> None:
    """Writes the scan's mesh unless it is there.

    A mesh that came with the scan, as ScanNet's do, stays. Raises InputError when there is no
    surface, for a mesh that no step made, and for a part of the frames.
    """
    if scan.mesh_path.exists() and not scan.has_frames():
        return
    identity = fused_identity(scan, config)
    if scan.is_from(identity) or scan.about().get("step", STEP) != STEP:
        return
    if not (scan.folder / ABOUT_FILE).exists():
        if INTERRUPTED in ImportReport.load(scan.folder).problems:
            raise InputError(f"scan {scan.name}: {INTERRUPTED}")
        if scan.mesh_path.exists():
            raise InputError(
                f"scan {scan.name}: its {MESH_FILE} was not made here: delete it to fuse the frames"
            )
    volume = TsdfVolume(config)
    for frame in scan.frames():
        volume.integrate(frame)
    mesh = volume.extract_mesh()
    if not len(mesh.vertices):
        raise InputError(f"scan {scan.name}: its frames show no surface within range")
    if volume.lost_surface:
        log.warning("scan %s: %s", scan.name, volume.lost_surface)
    scan.write_mesh(mesh, identity)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a scan failed, 2 for a wrong argument."""
    parser = step_parser("training.scans.fuse", __doc__)
    add_settings_option(parser, "voxel_size_m=0.02")
    options = parser.parse_args(arguments)

    def run() -> int:
        config = from_dict(FusionConfig, from_assignments(options.set))
        return over_scans(options, partial(fuse_scan, config=config), "fusing")

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
