"""NAME=METHOD -> lines of a table: how each finds instances in a scan, and with what settings.

Every method's whole ranked list is judged, as average precision is made for, unless it is told to
leave something out (min_score).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.artifacts import file_hash, unpack_masks
from training.baselines.euclidean_clusters import (
    EuclideanClustersConfig,
    euclidean_cluster_instances,
)
from training.baselines.felzenszwalb import FelzenszwalbConfig, felzenszwalb_instances
from training.baselines.hdbscan import HdbscanConfig, hdbscan_instances
from training.baselines.nunes import NunesConfig, nunes_instances
from training.baselines.projected_masks import ProjectedMasksConfig, projected_mask_instances
from training.scans.library import Scan
from training.unscene3d.pseudo_masks import KIND, STEP, find_pseudo_masks
from training.unscene3d.recipe import recipe
from training.unscene3d.train import CHECKPOINT_FILE
from unscene_ros.consensus import ConsensusConfig
from unscene_ros.inference import InferenceConfig
from unscene_ros.models.checkpoint import load_checkpoint
from unscene_ros.pipeline import segment_mesh
from unscene_ros.scene import Frame, InputError, Instances, Mesh, Segments
from unscene_ros.segmentation import (
    SHIPPED,
    SHIPPED_CHECKPOINT,
    ConsensusSegmenter,
    NetworkSegmenter,
    SegmentationConfig,
    Segmenter,
)
from unscene_ros.settings import from_assignments, from_dict, to_dict
from unscene_ros.storage import Prediction
from unscene_ros.training_free import TrainingFreeConfig, TrainingFreeSegmenter

METHODS = """\
training-free                  the segmenter that needs no training
checkpoint:PATH                a trained network; checkpoint:default is that of the package
consensus:PATH                 a network and the training-free segmenter together, as on the robot
rounds:RUN                     the network of each round of a self-training run
pseudo_masks:RECIPE            masks that training.unscene3d.pseudo_masks has made by this recipe
euclidean_clusters, felzenszwalb, hdbscan    baselines on the mesh
nunes, projected_masks         baselines that look at the pictures
"""
BASELINES: dict[str, tuple[type, Callable[[Mesh, Any], tuple[Segments, Instances]]]] = {
    "euclidean_clusters": (EuclideanClustersConfig, euclidean_cluster_instances),
    "felzenszwalb": (FelzenszwalbConfig, felzenszwalb_instances),
    "hdbscan": (HdbscanConfig, hdbscan_instances),
}
PICTURE_BASELINES: dict[
    str, tuple[type, Callable[[Mesh, Sequence[Frame], Any], tuple[Segments, Instances]]]
] = {
    "nunes": (NunesConfig, nunes_instances),
    "projected_masks": (ProjectedMasksConfig, projected_mask_instances),
}


class Found(NamedTuple):
    """What a method found in a scan; seconds from the mesh to instances, None for older results."""

    prediction: Prediction
    seconds: float | None


Find = Callable[[Scan, Mesh], Found]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    prepare: loads what the method needs; asked for once, so that one network at a time is held.
    origin: plain values that decide what is found. run: the name of a self-training run that the
    row is of, or ""; its_result: whether the run ends with this row.
    """

    name: str
    method: str
    prepare: Callable[[], Find]
    origin: Mapping[str, Any]
    run: str = ""
    its_result: bool = False


def parse_rows(text: str) -> list[Row]:
    """The rows of 'NAME=METHOD KEY=VALUE ...', with settings that differ from the method's own.

    Raises InputError for what is not understood and for files that are not there.
    """
    name, _, method = text.partition("=")
    try:
        kind, *assignments = shlex.split(method)
    except ValueError as error:  # also for no word at all
        raise InputError(f"row '{text}': expected NAME=METHOD KEY=VALUE ... ({error})") from error
    kind, _, argument = kind.partition(":")
    if kind == "rounds":
        return _rounds(name, method, Path(argument), assignments)
    if kind in ("checkpoint", "consensus"):
        path = SHIPPED_CHECKPOINT if argument == SHIPPED else Path(argument)
        prepare, origin = (_network if kind == "checkpoint" else _consensus)(path, assignments)
    elif kind == "pseudo_masks":
        prepare, origin = _pseudo_masks(argument, assignments)
    elif kind == "training-free":
        prepare, origin = _training_free(assignments)
    elif kind in BASELINES:
        prepare, origin = _baseline(kind, assignments)
    elif kind in PICTURE_BASELINES:
        prepare, origin = _picture_baseline(kind, assignments)
    else:
        raise InputError(f"row '{text}': expected NAME=METHOD, a method being one of\n{METHODS}")
    return [Row(name, method, prepare, origin)]


def prediction_of_masks(mesh: Mesh, masks: np.ndarray, scores: np.ndarray) -> Prediction:
    """Masks (K, V) bool over vertices with scores (K,) as a prediction.

    Its segments are the vertices that the same masks hold; they have no neighbours.
    """
    members = np.packbits(masks, axis=0).T
    if not len(masks):
        members = np.zeros((len(mesh.vertices), 1), np.uint8)
    _, first, of_vertex = np.unique(members, axis=0, return_index=True, return_inverse=True)
    segments = Segments(of_vertex.astype(np.int32), np.zeros((0, 2), np.int32), len(first))
    classes = np.full(len(masks), -1, np.int32)
    return _prediction(mesh, segments, Instances(masks[:, first], scores, classes))


def _rounds(name: str, method: str, run: Path, assignments: list[str]) -> list[Row]:
    """A row for each round; the run itself says which one is its result, no truth has chosen it."""
    if not (run / CHECKPOINT_FILE).exists():
        raise InputError(
            f"row {name}: expected {run / CHECKPOINT_FILE}, which training.unscene3d.rounds "
            "writes when the last round has ended"
        )
    last = load_checkpoint(run / CHECKPOINT_FILE).provenance.get("last_round")
    rows: list[Row] = []
    while (path := run / f"round_{len(rows) + 1}" / CHECKPOINT_FILE).exists():
        prepare, origin = _network(path, assignments)
        title, is_last = f"{name}, round {len(rows) + 1}", origin["checkpoint"] == last
        rows.append(Row(title, method, prepare, origin, name, is_last))
    return rows


def _network(path: Path, assignments: list[str]) -> tuple[Callable[[], Find], dict[str, Any]]:
    config = from_dict(
        InferenceConfig, from_assignments(assignments), base=InferenceConfig(min_score=0)
    )

    def prepare() -> Find:
        segmenter = NetworkSegmenter(path, config)
        return lambda _, mesh: _timed(mesh, lambda: segment_mesh(mesh, segmenter))

    return prepare, {"settings": to_dict(config), "checkpoint": file_hash(path)}


def _training_free(assignments: list[str]) -> tuple[Callable[[], Find], dict[str, Any]]:
    config = from_dict(
        TrainingFreeConfig, from_assignments(assignments), base=TrainingFreeConfig(min_score=0)
    )

    return lambda: _with_pictures(TrainingFreeSegmenter(config)), {"settings": to_dict(config)}


def _consensus(path: Path, assignments: list[str]) -> tuple[Callable[[], Find], dict[str, Any]]:
    everything = SegmentationConfig(consensus=ConsensusConfig(min_score=0))
    config = from_dict(SegmentationConfig, from_assignments(assignments), base=everything)
    origin = {"settings": to_dict(config), "checkpoint": file_hash(path)}
    return lambda: _with_pictures(ConsensusSegmenter(path, config)), origin


def _with_pictures(segmenter: Segmenter) -> Find:
    def find(scan: Scan, mesh: Mesh) -> Found:
        keyframes = scan.keyframes()
        return _timed(mesh, lambda: segment_mesh(mesh, segmenter, keyframes))

    return find


def _baseline(kind: str, assignments: list[str]) -> tuple[Callable[[], Find], dict[str, Any]]:
    config_class, find_instances = BASELINES[kind]
    config: Any = from_dict(config_class, from_assignments(assignments))

    def find(_: Scan, mesh: Mesh) -> Found:
        return _timed(mesh, lambda: find_instances(mesh, config))

    return lambda: find, {"settings": to_dict(config)}


def _picture_baseline(
    kind: str, assignments: list[str]
) -> tuple[Callable[[], Find], dict[str, Any]]:
    config_class, find_instances = PICTURE_BASELINES[kind]
    config: Any = from_dict(config_class, from_assignments(assignments))

    def find(scan: Scan, mesh: Mesh) -> Found:
        keyframes = scan.keyframes()
        return _timed(mesh, lambda: find_instances(mesh, keyframes, config))

    return lambda: find, {"settings": to_dict(config)}


def _pseudo_masks(name: str, assignments: list[str]) -> tuple[Callable[[], Find], dict[str, Any]]:
    config = recipe(name, from_assignments(assignments))

    def find(scan: Scan, mesh: Mesh) -> Found:
        result = scan.result(KIND, find_pseudo_masks(scan, config), STEP)
        masks = unpack_masks(result["masks"], len(mesh.vertices))
        return Found(prediction_of_masks(mesh, masks, result["scores"]), None)

    return lambda: find, {"settings": to_dict(config)}


def _timed(mesh: Mesh, work: Callable[[], tuple[Segments, Instances]]) -> Found:
    start = time.perf_counter()
    segments, instances = work()
    seconds = time.perf_counter() - start
    return Found(_prediction(mesh, segments, instances), seconds)


def _prediction(mesh: Mesh, segments: Segments, instances: Instances) -> Prediction:
    return Prediction(mesh, segments, instances, np.arange(len(instances.masks), dtype=np.int32))
