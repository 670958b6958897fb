"""Frames of the scans in a library -> their meshes, fused with the robot's own stage."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from training.artifacts import Identity
from training.fan_out import add_fan_out_options, failures_at_end, for_each
from training.scans.library import Library, Scan
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
    parser = argparse.ArgumentParser(prog="python -m training.scans.fuse", description=__doc__)
    parser.add_argument("library", type=Path, metavar="LIBRARY")
    parser.add_argument("--split", default="", metavar="NAME", help="only these scans")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the fusion, for example voxel_size_m=0.02",
    )  # fmt: skip
    add_fan_out_options(parser)
    options = parser.parse_args(arguments)
    try:
        config = from_dict(FusionConfig, from_assignments(options.set))
        library = Library(options.library)
        items = [(name, library.scan(name)) for name in library.names(options.split)]
        work = partial(fuse_scan, config=config)
        failures = for_each(items, work, options.workers, options.ray, "fusing")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return failures_at_end(failures)


if __name__ == "__main__":
    sys.exit(main())
