"""The command line that every baseline shares: a recording or a mesh in, a prediction out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.keyframes import KeyframeConfig, Keyframes
from unscene_ros.recordings import open_recording
from unscene_ros.scene import Frame, InputError, Instances, Mesh, Segments
from unscene_ros.settings import from_assignments, from_dict
from unscene_ros.storage import (
    MESH_FORMATS,
    Prediction,
    prepare_output_folder,
    read_mesh,
    save_prediction,
)

Found = tuple[Segments, Instances]


def run(
    name: str,
    description: str | None,
    config_class: type,
    find_instances: Callable[[Mesh, Any], Found],
    arguments: list[str] | None = None,
) -> int:
    """Reads a recording or a mesh, finds instances, saves them; returns the exit code."""
    return _run(
        name,
        description,
        "RECORDING_OR_MESH",
        config_class,
        lambda mesh, _, config: find_instances(mesh, config),
        arguments,
    )


def run_on_frames(
    name: str,
    description: str | None,
    config_class: type,
    find_instances: Callable[[Mesh, Sequence[Frame], Any], Found],
    arguments: list[str] | None = None,
) -> int:
    """As `run`, for a method that looks at the keyframes of a recording."""

    def find_in_frames(mesh: Mesh, frames: Sequence[Frame] | None, config: Any) -> Found:
        if frames is None:
            raise InputError(f"{name}: expected a recording, got a mesh: it looks at pictures")
        return find_instances(mesh, frames, config)

    return _run(name, description, "RECORDING", config_class, find_in_frames, arguments)


def _run(
    name: str,
    description: str | None,
    kind: str,
    config_class: type,
    find_instances: Callable[[Mesh, Sequence[Frame] | None, Any], Found],
    arguments: list[str] | None,
) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m training.baselines.{name}", description=description
    )
    parser.add_argument("input", type=Path, metavar=kind)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the method, of the fusion, as in fusion.voxel_size_m=0.02, or of the "
        "keyframes",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        settings = from_assignments(options.set)
        fusion = from_dict(FusionConfig, settings.pop("fusion", {}), "fusion")
        keyframes = from_dict(KeyframeConfig, settings.pop("keyframes", {}), "keyframes")
        config: Any = from_dict(config_class, settings)
        prepare_output_folder(options.output)
        mesh, frames = _read(options.input, fusion, keyframes)
        segments, instances = find_instances(mesh, frames, config)
        numbers = np.arange(len(instances.masks), dtype=np.int32)
        save_prediction(options.output, Prediction(mesh, segments, instances, numbers))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(instances.masks)} instances: unscene evaluate {options.output} GT.npz")
    return 0


def _read(
    path: Path, fusion: FusionConfig, keyframes_config: KeyframeConfig
) -> tuple[Mesh, list[Frame] | None]:
    """The mesh in a file, or the one fused from a recording's frames, with its keyframes."""
    if path.suffix.lower() in MESH_FORMATS:
        return read_mesh(path), None
    volume, keyframes = TsdfVolume(fusion), Keyframes(keyframes_config)
    for frame in track(open_recording(path), "fusing", console=Console(stderr=True)):
        if volume.integrate(frame) is not None:
            keyframes.offer(frame)
    return volume.extract_mesh(), keyframes.frames
