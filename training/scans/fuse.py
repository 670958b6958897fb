"""Frames of the scans in a library -> their meshes, fused with the robot's own stage."""

from __future__ import annotations

import sys
from functools import partial

from training.artifacts import Identity
from training.command import add_settings_option, exit_code, over_scans, step_parser
from training.scans.library import Scan
from unscene_ros.fusion import FusionConfig
from unscene_ros.pipeline import build_mesh
from unscene_ros.scene import InputError
from unscene_ros.settings import from_assignments, from_dict, to_dict

STEP = "fuse"


def fused_identity(scan: Scan, config: FusionConfig) -> Identity:
    """Of the mesh."""
    return Identity(STEP, to_dict(config), {"frames": scan.frames_hash})


def fuse_scan(scan: Scan, config: FusionConfig) -> None:
    """Writes the scan's mesh unless it is there; raises InputError when there is no surface.

    A mesh that came with the scan, as ScanNet's do, stays.
    """
    if scan.mesh_path.exists() and not scan.has_frames():
        return
    identity = fused_identity(scan, config)
    if scan.is_from(identity) or scan.about().get("step", STEP) != STEP:
        return
    mesh = build_mesh(scan.frames(), config)
    if not len(mesh.vertices):
        raise InputError(f"scan {scan.name}: its frames show no surface within range")
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
