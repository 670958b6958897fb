"""A recording, or a mesh file -> mesh.ply, instances.npz, metrics.json and report.html.

The same result every time: every frame is fused, none is skipped because the machine is slow.
What was computed is kept when the recording breaks off or the run is interrupted.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open3d as o3d
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unscene_ros import DEFAULT_SEGMENTER
from unscene_ros.evaluation import GroundTruth, evaluate, read_ground_truth
from unscene_ros.fusion import TsdfVolume
from unscene_ros.keyframes import Keyframes
from unscene_ros.latency import Latency
from unscene_ros.pipeline import PipelineConfig, segment_mesh, track_instances
from unscene_ros.provenance import peak_memory_mb, provenance
from unscene_ros.quality_over_time import QualityOverTime
from unscene_ros.recordings import Recording, RecordingTopics, open_recording
from unscene_ros.report import write_report
from unscene_ros.scene import Frame, InputError
from unscene_ros.segmentation import Segmenter, load_segmenter
from unscene_ros.settings import settings_hash, to_dict
from unscene_ros.storage import (
    MESH_FILE,
    Prediction,
    prepare_output_folder,
    read_mesh,
    save_prediction,
    whole_file,
    write_mesh,
)
from unscene_ros.synchronization import SynchronizationConfig
from unscene_ros.tracking import InstanceTracker

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """How a recording is read and how often its map is segmented."""

    segment_every_frames: int = 25  # the map so far is segmented this often; 0: only at the end
    topics: RecordingTopics = field(default_factory=RecordingTopics)
    synchronization: SynchronizationConfig = field(default_factory=SynchronizationConfig)

    def __post_init__(self) -> None:
        if self.segment_every_frames < 0:
            raise InputError(
                "replay.segment_every_frames: expected 0 (only at the end) or more, "
                f"got {self.segment_every_frames}"
            )


class _Run:
    """The stages with their state, as a live system has them."""

    def __init__(
        self, config: PipelineConfig, segmenter: Segmenter, truth: GroundTruth | None
    ) -> None:
        self.volume = TsdfVolume(config.fusion)
        self.keyframes = Keyframes(config.keyframes)
        self.tracker = InstanceTracker(config.tracking)
        self.segmenter = segmenter
        self.latency = Latency()
        self.track_ids: set[int] = set()
        self.quality = QualityOverTime(truth) if truth else None
        self._first_stamp_ns: int | None = None
        self._recorded_s = 0.0  # from the first frame to the newest
        self._newest: Prediction | None = None  # of the map as it is

    def add(self, frame: Frame) -> None:
        """Fuses one frame."""
        self._newest = None
        if self._first_stamp_ns is None:
            self._first_stamp_ns = frame.stamp_ns
        self._recorded_s = (frame.stamp_ns - self._first_stamp_ns) / 1e9
        with self.latency.measure("fusion"):
            used = self.volume.integrate(frame) is not None
        if used:
            with self.latency.measure("keyframes"):
                self.keyframes.offer(frame)

    def update(self, output: Path) -> Prediction:
        """Segments the map so far, once; if that fails, its mesh at least is kept in `output`."""
        if self._newest:
            return self._newest
        with self.latency.measure("meshing"):
            mesh = self.volume.extract_mesh()
        try:
            segments, instances = segment_mesh(
                mesh, self.segmenter, self.keyframes.frames, self.latency
            )
            instances, track_ids = track_instances(
                mesh, segments, instances, self.tracker, self.latency
            )
        except BaseException:
            write_mesh(output / MESH_FILE, mesh)
            raise
        self.track_ids.update(track_ids.tolist())
        self._newest = Prediction(mesh, segments, instances, track_ids)
        if self.quality:
            # As on a machine that takes no time.
            self.quality.add(self._newest, self._recorded_s, self._recorded_s)
        return self._newest


def replay(
    recording_path: Path,
    output: Path,
    config: PipelineConfig | None = None,
    segmenter_name: str = DEFAULT_SEGMENTER,
    ground_truth: Path | None = None,
    options: ReplayConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs the pipeline over a recording, writes the four files into `output`, returns the metrics.

    ground_truth: labelled points (.npz) in the recording's world, for the figures in the metrics.
    Raises InputError before any work for what can be known by then. When the recording breaks off,
    the evaluation fails or the user stops the run, everything computed so far is written, `error`
    in metrics.json says what happened, and only then that is raised.
    """
    started = time.monotonic()
    _seed_libraries(seed)
    config, options, output = config or PipelineConfig(), options or ReplayConfig(), Path(output)
    prepare_output_folder(output)
    truth = read_ground_truth(ground_truth) if ground_truth else None
    recording = open_recording(recording_path, options.topics, options.synchronization)
    run = _Run(config, load_segmenter(segmenter_name, config.segmentation), truth)
    failure = _feed(run, recording, options, output)
    dropped = dict(Counter(recording.dropped) + run.volume.dropped)
    if not run.volume.frames:
        raise failure or _no_frames(recording, dropped)
    if run.volume.lost_surface:
        log.warning("%s", run.volume.lost_surface)
    prediction = run.update(output)
    save_prediction(output, prediction)
    evaluation, evaluation_failure = _evaluated(prediction, truth)
    failure = failure or evaluation_failure
    metrics = {
        "recording": recording.name,
        "segmenter": segmenter_name,
        "frames": {"read": recording.read, "used": run.volume.frames, "dropped": dropped},
        **_map_metrics(prediction, run.latency),
        "evicted_blocks": run.volume.evicted_blocks,
        "tracks": len(run.track_ids),
        "evaluation": evaluation,
        "quality_over_time": run.quality.figures() if run.quality else None,
        "replay": to_dict(options),
        **_run_metrics(config, seed, started),
        "error": _sentence(failure),
    }
    _write_figures(output, metrics, prediction, run.keyframes.frames)
    if failure:
        raise failure
    return metrics


def segment_file(
    mesh_path: Path,
    output: Path,
    config: PipelineConfig | None = None,
    segmenter_name: str = DEFAULT_SEGMENTER,
    seed: int = 0,
) -> dict[str, Any]:
    """Finds the instances in a mesh or point cloud file; writes and returns as `replay` does."""
    started = time.monotonic()
    _seed_libraries(seed)
    config, output, latency = config or PipelineConfig(), Path(output), Latency()
    prepare_output_folder(output)
    with latency.measure("reading"):
        mesh = read_mesh(mesh_path)
    segmenter = load_segmenter(segmenter_name, config.segmentation)
    segments, instances = segment_mesh(mesh, segmenter, latency=latency)
    track_ids = np.arange(1, len(instances.masks) + 1, dtype=np.int32)
    prediction = Prediction(mesh, segments, instances, track_ids)
    save_prediction(output, prediction)
    metrics = {
        "recording": Path(mesh_path).name,
        "segmenter": segmenter_name,
        **_map_metrics(prediction, latency),
        "evaluation": None,
        **_run_metrics(config, seed, started),
    }
    _write_figures(output, metrics, prediction, [])
    return metrics


def _seed_libraries(seed: int) -> None:
    """The stages draw nothing at random; a library that does gives the same result again."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    o3d.utility.random.seed(seed)


def _map_metrics(prediction: Prediction, latency: Latency) -> dict[str, Any]:
    return {
        "map": {"vertices": len(prediction.mesh.vertices), "segments": prediction.segments.count},
        "instances": len(prediction.instances.masks),
        "latency_ms": latency.summary(),
        "memory_mb": {"peak": peak_memory_mb()},
    }


def _run_metrics(config: PipelineConfig, seed: int, started: float) -> dict[str, Any]:
    return {
        "duration_s": time.monotonic() - started,
        "settings": to_dict(config),
        "settings_hash": settings_hash(config),
        "seed": seed,
        **provenance(),
    }


def _write_figures(
    output: Path, metrics: dict[str, Any], prediction: Prediction, keyframes: list[Frame]
) -> None:
    with whole_file(output / "metrics.json") as file:
        file.write(json.dumps(metrics, indent=2).encode())
    write_report(output / "report.html", metrics, prediction, keyframes)


def _feed(
    run: _Run, recording: Recording, options: ReplayConfig, output: Path
) -> BaseException | None:
    """Gives all frames to the run; returns what stopped it early, None at the end."""
    try:
        with _progress() as progress:
            task = progress.add_task(recording.name, total=len(recording))
            for number, frame in enumerate(_timed(recording, run.latency), start=1):
                run.add(frame)
                if options.segment_every_frames and number % options.segment_every_frames == 0:
                    run.update(output)
                progress.update(task, completed=recording.read)
    # Whatever it is, it is raised again once the results so far are written.
    except (Exception, KeyboardInterrupt) as error:
        return error
    finally:
        for warning in recording.warnings:
            log.warning("%s", warning)
    return None


def _timed(recording: Recording, latency: Latency) -> Iterator[Frame]:
    """The recording's frames, with the time it takes to get each."""
    frames = iter(recording)
    while True:
        with latency.measure("reading"):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _progress() -> Progress:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )


def _no_frames(recording: Recording, dropped: dict[str, int]) -> InputError:
    reasons = "; ".join(f"{count} × {reason}" for reason, count in dropped.items())
    return InputError(
        f"recording {recording.name}: expected frames, got none that can be used "
        f"({reasons or 'it is empty'})"
    )


def _evaluated(
    prediction: Prediction, truth: GroundTruth | None
) -> tuple[dict[str, Any] | None, Exception | None]:
    """(figures or None, why there are none although there is truth)."""
    if truth is None:
        return None, None
    try:
        return evaluate([(prediction, truth)]), None
    except Exception as error:  # raised again once everything else is written
        return None, error


def _sentence(error: BaseException | None) -> str | None:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by the user"
    return str(error) or type(error).__name__ if error else None
