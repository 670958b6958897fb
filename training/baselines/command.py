"""The command line that every baseline shares: a recording or a mesh in, a prediction out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from unscene_ros.fusion import FusionConfig
from unscene_ros.pipeline import build_mesh
from unscene_ros.recordings import open_recording
from unscene_ros.scene import InputError, Instances, Mesh, Segments
from unscene_ros.settings import from_assignments, from_dict
from unscene_ros.storage import (
    MESH_FORMATS,
    Prediction,
    prepare_output_folder,
    read_mesh,
    save_prediction,
)

FindInstances = Callable[[Mesh, Any], tuple[Segments, Instances]]


def run(
    name: str,
    description: str | None,
    config_class: type,
    find_instances: FindInstances,
    arguments: list[str] | None = None,
) -> int:
    """Reads the input, finds instances, saves the prediction; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m training.baselines.{name}", description=description
    )
    parser.add_argument("input", type=Path, metavar="RECORDING_OR_MESH")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the method, or of the fusion, as in fusion.voxel_size_m=0.02",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        settings = from_assignments(options.set)
        fusion = from_dict(FusionConfig, settings.pop("fusion", {}), "fusion")
        config: Any = from_dict(config_class, settings)
        prepare_output_folder(options.output)
        mesh = _mesh(options.input, fusion)
        segments, instances = find_instances(mesh, config)
        numbers = np.arange(len(instances.masks), dtype=np.int32)
        save_prediction(options.output, Prediction(mesh, segments, instances, numbers))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(instances.masks)} instances: unscene evaluate {options.output} GT.npz")
    return 0


def _mesh(path: Path, fusion: FusionConfig) -> Mesh:
    """The mesh in a file, or the one that the recording's frames are fused to."""
    if path.suffix.lower() in MESH_FORMATS:
        return read_mesh(path)
    recording = open_recording(path)
    frames = track(recording, "fusing", console=Console(stderr=True))
    return build_mesh(frames, fusion)
