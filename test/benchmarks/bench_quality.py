"""Quality of instances on thirty held-out procedural rooms with sensor noise and on a small house.

Figures are those of the ScanNet benchmark, class-agnostic, 0..1, all rooms pooled. A place is fused
once for all methods. `training_free` are the instances that a robot is shown; `pseudo_masks` the
same segmenter's whole ranked list, alternatives included, which is what average precision is made
for; their peer is the best baseline. `default` and `default_masks` are the same two lists of the
default, the network in the package together with that segmenter, and `default_checkpoint` is the
whole list of the network alone; each has its counterpart of the two as its peer.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import LeftOut, row
from training.baselines.euclidean_clusters import euclidean_cluster_instances
from training.baselines.felzenszwalb import felzenszwalb_instances
from training.baselines.hdbscan import hdbscan_instances
from training.scans.rooms import HELD_OUT_SEEDS, RoomConfig, make_room
from training.scans.small_house import write_small_house
from unscene_ros.evaluation import GroundTruth, evaluate, read_ground_truth
from unscene_ros.fusion import TsdfVolume
from unscene_ros.inference import InferenceConfig
from unscene_ros.keyframes import Keyframes
from unscene_ros.pipeline import PipelineConfig, segment_mesh
from unscene_ros.quality_over_time import count_id_switches
from unscene_ros.recordings import open_recording
from unscene_ros.scene import Frame, Instances, Mesh, Segments
from unscene_ros.segmentation import (
    SHIPPED_CHECKPOINT,
    ConsensusSegmenter,
    NetworkSegmenter,
    SegmentationConfig,
    Segmenter,
)
from unscene_ros.storage import Prediction
from unscene_ros.tracking import InstanceTracker
from unscene_ros.training_free import TrainingFreeConfig, TrainingFreeSegmenter

SEEDS = HELD_OUT_SEEDS[:30]
DATA = Path(__file__).parents[3] / "shared" / "data"  # unless UNSCENE_DATA names another folder
UPDATE_EVERY_FRAMES = 10
CONFIG = PipelineConfig()
TRAINING_FREE = CONFIG.segmentation.training_free
EVERY_HYPOTHESIS = dataclasses.replace(TRAINING_FREE, min_score=0.0)
EVERY_MASK = dataclasses.replace(
    CONFIG.segmentation,
    consensus=dataclasses.replace(CONFIG.segmentation.consensus, min_score=0.0),
)


def training_free(
    mesh: Mesh, keyframes: Sequence[Frame], config: TrainingFreeConfig = TRAINING_FREE
) -> tuple[Segments, Instances]:
    return segment_mesh(mesh, TrainingFreeSegmenter(config), keyframes)


@cache
def network(checkpoint: Path) -> Segmenter:
    return NetworkSegmenter(checkpoint, InferenceConfig(min_score=0.0))


@cache
def consensus(checkpoint: Path, config: SegmentationConfig = CONFIG.segmentation) -> Segmenter:
    return ConsensusSegmenter(checkpoint, config)


Method = Callable[[Mesh, Sequence[Frame]], tuple[Segments, Instances]]
METHODS: dict[str, Method] = {
    "training_free": training_free,
    "pseudo_masks": lambda mesh, keyframes: training_free(mesh, keyframes, EVERY_HYPOTHESIS),
    "felzenszwalb": lambda mesh, _: felzenszwalb_instances(mesh),
    "hdbscan": lambda mesh, _: hdbscan_instances(mesh),
    "euclidean_clusters": lambda mesh, _: euclidean_cluster_instances(mesh),
}
# Of the network in the package, each with the list without training that it should beat.
TRAINED = {
    "default": "training_free",
    "default_masks": "pseudo_masks",
    "default_checkpoint": "pseudo_masks",
}
BASELINES = ("felzenszwalb", "hdbscan", "euclidean_clusters")


def methods() -> dict[str, Method]:
    """All that can be measured: the network when the package has one."""
    if not SHIPPED_CHECKPOINT.exists():
        return METHODS
    whole = consensus(SHIPPED_CHECKPOINT, EVERY_MASK)
    shown = consensus(SHIPPED_CHECKPOINT)
    return METHODS | {
        "default": lambda mesh, keyframes: segment_mesh(mesh, shown, keyframes),
        "default_masks": lambda mesh, keyframes: segment_mesh(mesh, whole, keyframes),
        "default_checkpoint": lambda mesh, _: segment_mesh(mesh, network(SHIPPED_CHECKPOINT)),
    }


class Results:
    """What every method finds in the places added so far."""

    def __init__(self) -> None:
        self.methods = methods()
        self.predictions: dict[str, list[Prediction]] = {method: [] for method in self.methods}
        self.seconds: dict[str, list[float]] = {method: [] for method in self.methods}
        self.truths: list[GroundTruth] = []

    def add(self, frames: Iterable[Frame], truth: GroundTruth) -> None:
        """Fuses a place's frames and segments its mesh by every method."""
        mesh, keyframes = fused(frames)
        for method, segment in self.methods.items():
            start = time.perf_counter()
            segments, instances = segment(mesh, keyframes)
            self.seconds[method].append(time.perf_counter() - start)
            ids = np.arange(len(instances.masks), dtype=np.int32)
            self.predictions[method].append(Prediction(mesh, segments, instances, ids))
        self.truths.append(truth)

    def rows(self, place: str) -> Iterator[dict]:
        """All figures; `place` ends their names."""
        figures = {
            method: evaluate(list(zip(predictions, self.truths, strict=True)))
            for method, predictions in self.predictions.items()
        }
        runs = len(self.truths)
        yield from compared(figures, place, runs)
        masks = figures["pseudo_masks"]
        yield row("quality", f"pseudo_masks_{place}", masks["predictions"], "masks", runs)
        yield row(
            "quality", f"pseudo_mask_precision_{place}", masks["mask_precision"], "0..1", runs
        )
        for method, seconds in self.seconds.items():
            yield row("quality", f"seconds_{method}_{place}", statistics.median(seconds), "s", runs)


def fused(frames: Iterable[Frame]) -> tuple[Mesh, list[Frame]]:
    """The mesh and the keyframes of one recording."""
    volume, keyframes = TsdfVolume(CONFIG.fusion), Keyframes(CONFIG.keyframes)
    for frame in frames:
        if volume.integrate(frame) is not None:
            keyframes.offer(frame)
    return volume.extract_mesh(), keyframes.frames


def maps_over_time(frames: Iterable[Frame]) -> Iterator[Prediction]:
    """What a live system publishes: the map so far with track ids, again and again."""
    volume, keyframes = TsdfVolume(CONFIG.fusion), Keyframes(CONFIG.keyframes)
    segmenter = TrainingFreeSegmenter(TRAINING_FREE)
    tracker = InstanceTracker(CONFIG.tracking)
    for number, frame in enumerate(frames, start=1):
        if volume.integrate(frame) is not None:
            keyframes.offer(frame)
        if number % UPDATE_EVERY_FRAMES == 0:
            mesh = volume.extract_mesh()
            segments, instances = segment_mesh(mesh, segmenter, keyframes.frames)
            track_ids = tracker.update(mesh, segments, instances)
            yield Prediction(mesh, segments, instances, track_ids)


def compared(figures: dict[str, dict[str, Any]], place: str, runs: int) -> Iterator[dict]:
    """AP, AP50 and AP25 of every method beside the best of those that it should beat."""
    for name in ("ap", "ap50", "ap25"):
        value = {method: figures[method][name] for method in figures}
        for method in figures:
            peer: tuple = ()
            if method not in BASELINES:
                best = TRAINED.get(method) or max(BASELINES, key=value.__getitem__)
                ratio = value[method] / value[best] if value[best] else None
                peer = best.replace("_", " "), value[best], ratio
            yield row("quality", f"{name}_{method}_{place}", value[method], "0..1", runs, *peer)


def shown(items: Iterable, name: str, total: int | None = None) -> Iterable:
    """The items, with a progress bar on a terminal."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(items, name, total, console=console, transient=True, disable=hidden)


def room_rows(seeds: Sequence[int], config: RoomConfig) -> Iterator[dict]:
    results = Results()
    for seed in shown(seeds, "rooms"):
        room = make_room(seed, config)
        results.add(room.frames(), room.ground_truth())
    return results.rows("rooms")


def house_rows() -> Iterator[dict]:
    """The rendered house, recorded as a bag; its depth has no noise."""
    scan = (Path(os.environ.get("UNSCENE_DATA", DATA)) / "small_house").resolve()
    if not scan.exists():
        raise LeftOut(f"*_small_house: {scan} is not there; UNSCENE_DATA names its parent folder")
    with tempfile.TemporaryDirectory() as folder:
        write_small_house(scan, Path(folder))
        recording = open_recording(Path(folder) / scan.name)
        truth = read_ground_truth(Path(folder) / "gt.npz")
        results = Results()
        results.add(shown(recording, "small_house"), truth)
        yield from results.rows("small_house")
        updates = len(recording) // UPDATE_EVERY_FRAMES
        maps = shown(maps_over_time(recording), "small_house over time", updates)
        switches = count_id_switches(maps, truth)
    mean = statistics.mean(switches.values())
    yield row("quality", "id_switches_small_house", mean, f"per object, {updates} updates", 1)
    yield row("quality", "tracked_objects_small_house", len(switches), "objects", 1)


def rows(seeds: Sequence[int] = SEEDS, config: RoomConfig | None = None) -> Iterator[dict]:
    """Rooms of other seeds can be asked for, to tune on; what is published is of SEEDS."""
    yield from room_rows(seeds, config or RoomConfig())
    missing = [] if SHIPPED_CHECKPOINT.exists() else [f"*_default_*: no {SHIPPED_CHECKPOINT}"]
    try:
        yield from house_rows()
    except LeftOut as reason:
        missing.append(str(reason))
    if missing:
        raise LeftOut("; ".join(missing))
