"""Predictions against labelled points -> AP, recall, semantic IoU; truth files are read here.

Instance AP follows the rules of the ScanNet benchmark, class-agnostic unless told otherwise, and is
counted on the labelled points, so it does not depend on the mesh that was predicted on.
Dai et al., "ScanNet", CVPR 2017; unsupervised matching: Kuhn, "The Hungarian method", 1955.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from unscene_ros.scene import InputError, Instances, check_array
from unscene_ros.storage import Prediction, read_arrays

log = logging.getLogger(__name__)

Protocol = Literal["clean", "compat"]
Grid = Literal["scannet", "full"]

OVERLAPS: dict[str, tuple[float, ...]] = {
    "scannet": tuple(np.arange(50, 95, 5) / 100),  # what the benchmark's program computes
    "full": tuple(np.arange(50, 100, 5) / 100),  # what papers write: 50 to 95 %
}
MIN_POINTS = 100  # smaller predictions are discarded, smaller objects neither asked nor punished
REACH_M = 0.05  # a point belongs to the nearest predicted vertex within this distance
STUFF = -2  # of GroundTruth.instance
WALL_CLASS = 1  # NYU id; ScanNet's and small data sets that follow it


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """Labelled points: points (P, 3) float32 m; instance (P,) int32, -1 void, -2 stuff.

    semantic (P,) int32 class of each point, or None.
    """

    points: np.ndarray
    instance: np.ndarray
    semantic: np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """One scene's N predictions against its G objects, all sizes in labelled points.

    scores, class_ids, sizes, ignored (points on void and stuff) of predictions (N,);
    object_class_ids (-1 unknown), object_sizes (G,); intersections (N, G).
    """

    scores: np.ndarray
    class_ids: np.ndarray
    sizes: np.ndarray
    ignored: np.ndarray
    object_class_ids: np.ndarray
    object_sizes: np.ndarray
    intersections: np.ndarray

    def iou(self) -> np.ndarray:
        """(N, G) intersection over union; points of a prediction on void count in the union."""
        union = self.sizes[:, None] + self.object_sizes - self.intersections
        return self.intersections / np.maximum(union, 1)

    def of_class(self, class_id: int) -> Overlaps:
        """The predictions and objects of one class."""
        rows, columns = self.class_ids == class_id, self.object_class_ids == class_id
        return self.selected(rows, columns)

    def selected(self, rows: np.ndarray, columns: np.ndarray) -> Overlaps:
        """The predictions `rows` (N,) bool against the objects `columns` (G,) bool."""
        return Overlaps(
            self.scores[rows],
            self.class_ids[rows],
            self.sizes[rows],
            self.ignored[rows],
            self.object_class_ids[columns],
            self.object_sizes[columns],
            self.intersections[rows][:, columns],
        )


def read_ground_truth(path: Path) -> GroundTruth:
    """Reads `points`, `instance` and, if there, `semantic` from an npz file; raises InputError."""
    arrays = read_arrays(path)
    for name in ("points", "instance"):
        if name not in arrays:
            raise InputError(f"ground truth {path}: expected an array '{name}', got {[*arrays]}")
    count = len(arrays["points"]) if arrays["points"].ndim else 0
    check_array(f"ground truth {path}: points", arrays["points"], (None, 3), np.float32)
    check_array(f"ground truth {path}: instance", arrays["instance"], (count,), np.int32)
    if "semantic" in arrays:
        check_array(f"ground truth {path}: semantic", arrays["semantic"], (count,), np.int32)
    if not count or not np.isfinite(arrays["points"]).all():
        raise InputError(f"ground truth {path}: expected finite points, got none or NaN")
    if arrays["instance"].min() < STUFF:
        raise InputError(
            f"ground truth {path}: instance: expected 0 or more, -1 for void or -2 for stuff, "
            f"got {arrays['instance'].min()}"
        )
    return GroundTruth(arrays["points"], arrays["instance"], arrays.get("semantic"))


def carry_to_points(prediction: Prediction, points: np.ndarray) -> np.ndarray:
    """(P,) int32 segment at each point (P, 3): that of the nearest vertex within 5 cm, else -1."""
    vertices = prediction.mesh.vertices
    if not len(vertices):
        return np.full(len(points), -1, np.int32)
    nearest = cKDTree(vertices).query(points, distance_upper_bound=REACH_M, workers=-1)[1]
    segment_of_vertex = np.append(prediction.segments.of_vertex, np.int32(-1))
    return segment_of_vertex[nearest]  # a point out of reach gets the index after the last vertex


def find_overlaps(
    instances: Instances, segment_of_point: np.ndarray, truth: GroundTruth, protocol: Protocol
) -> Overlaps:
    """Counts the points that predictions and objects share.

    segment_of_point (P,) int32 as from carry_to_points.
    protocol: `clean` ignores stuff and void. `compat` asks for one object more: all walls of the
    scene together, or all stuff where the truth has no classes. The evaluation published with
    UnScene3D does so, since its class-agnostic truth gives every object the label 1, which is the
    walls' own label too; numbers in its tables compare with this protocol only.
    """
    object_of_point, object_class_ids = _objects(truth, protocol)
    object_count, segment_count = len(object_class_ids), instances.masks.shape[1]
    # Row -1 and column -1 of the table collect the points without segment and without object.
    cells = (segment_of_point % (segment_count + 1)).astype(np.int64) * (object_count + 1)
    cells += object_of_point % (object_count + 1)
    shape = (segment_count + 1, object_count + 1)
    table = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    shared = instances.masks.astype(np.float64) @ table[:-1]  # exact, and faster than integers
    return Overlaps(
        scores=instances.scores,
        class_ids=instances.class_ids,
        sizes=shared.sum(axis=1),
        ignored=shared[:, -1],
        object_class_ids=object_class_ids,
        object_sizes=table[:, :-1].sum(axis=0),
        intersections=shared[:, :-1],
    )


def _objects(truth: GroundTruth, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """(object of each point, -1 none; class of each object, the commonest of its points)."""
    instance = truth.instance
    if protocol == "compat":
        walls = instance == STUFF
        if truth.semantic is not None:
            walls &= truth.semantic == WALL_CLASS
        instance = np.where(walls, instance.max() + 1, instance)
    ids, object_of_point = np.unique(instance, return_inverse=True)
    stuff_count = int((ids < 0).sum())
    object_of_point = np.maximum(object_of_point - stuff_count, -1)
    object_class_ids = np.full(len(ids) - stuff_count, -1, np.int32)
    if truth.semantic is not None:
        for index in range(len(object_class_ids)):
            classes = truth.semantic[object_of_point == index]
            values, counts = np.unique(classes, return_counts=True)
            object_class_ids[index] = values[counts.argmax()]
    return object_of_point, object_class_ids


def average_precision(
    scenes: Sequence[Overlaps], threshold: float, min_points: int = MIN_POINTS
) -> float:
    """Area under the precision-recall curve of all scenes together at one IoU threshold.

    NaN when no scene has an object of `min_points` points, 0 when there are only objects.
    """
    counts = [_matches(scene, threshold, min_points) for scene in scenes]
    if not sum(object_count for _, _, object_count in counts):
        return float("nan")
    scores = np.concatenate([scores for scores, _, _ in counts])
    correct = np.concatenate([correct for _, correct, _ in counts])
    return _area(scores, correct, sum(object_count for _, _, object_count in counts))


def _matches(
    scene: Overlaps, threshold: float, min_points: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """(scores of the judged predictions, whether each is correct, number of objects asked for)."""
    scene = scene.selected(scene.sizes >= min_points, np.ones(len(scene.object_sizes), bool))
    asked = scene.object_sizes >= min_points
    above = scene.iou() > threshold
    scores: list[float] = []
    correct: list[bool] = []
    taken = np.zeros(len(scene.scores), bool)
    for index in np.flatnonzero(asked):
        claims = np.flatnonzero(above[:, index] & ~taken)
        if not len(claims):
            continue
        # The first claim takes the object; the best score stands for it, the others are wrong.
        taken[claims[0]] = True
        claim_scores = np.sort(scene.scores[claims])[::-1]
        scores.extend(claim_scores)
        correct.extend([True] + [False] * (len(claims) - 1))
    ignored = scene.ignored + scene.intersections[:, ~asked].sum(axis=1)
    wrong = ~above.any(axis=1) & (ignored / np.maximum(scene.sizes, 1) <= threshold)
    scores.extend(scene.scores[wrong])
    correct.extend([False] * int(wrong.sum()))
    return np.array(scores), np.array(correct, bool), int(asked.sum())


def _area(scores: np.ndarray, correct: np.ndarray, object_count: int) -> float:
    """Sum of precision times the central difference of recall, over every distinct score."""
    if not len(scores):
        return 0.0
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(correct[order])
    # A point of the curve at the last prediction of each distinct score, from strict to lenient.
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    precision = np.concatenate(([1.0], hits[last] / (last + 1)))
    recall = np.concatenate(([0.0], hits[last] / object_count))
    padded = np.concatenate(([0.0], recall, recall[-1:]))
    return float(precision @ ((padded[2:] - padded[:-2]) / 2))


def class_average_precision(
    scenes: Sequence[Overlaps], threshold: float, min_points: int = MIN_POINTS
) -> float:
    """Mean of average_precision over the classes that have objects; NaN without such a class."""
    class_ids = np.unique(np.concatenate([[-1], *(scene.object_class_ids for scene in scenes)]))
    by_class = [
        average_precision([scene.of_class(c) for scene in scenes], threshold, min_points)
        for c in class_ids[class_ids >= 0]
    ]
    known = [value for value in by_class if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def recall(scene: Overlaps, threshold: float = 0.5, min_points: int = MIN_POINTS) -> float:
    """Share of the objects asked for that are found; NaN when there is none."""
    asked = scene.object_sizes >= min_points
    found = found_objects(scene, threshold, min_points)
    return float(found[asked].mean()) if asked.any() else float("nan")


def found_objects(
    scene: Overlaps, threshold: float = 0.5, min_points: int = MIN_POINTS
) -> np.ndarray:
    """(G,) bool: objects whose IoU with some prediction of `min_points` points is above."""
    above = scene.iou()[scene.sizes >= min_points] > threshold
    return np.any(above, axis=0)


def mask_precision(scenes: Sequence[Overlaps], threshold: float = 0.5) -> tuple[float, int]:
    """(share of all predictions whose IoU with some object is above the threshold, their number).

    The share, NaN without predictions, is the usual figure for the quality of pseudo masks.
    """
    good = [np.zeros(0, bool), *((scene.iou() > threshold).any(axis=1) for scene in scenes)]
    hits = np.concatenate(good)
    return (float(hits.mean()) if len(hits) else float("nan")), len(hits)


def evaluate(
    pairs: Sequence[tuple[Prediction, GroundTruth]],
    protocol: Protocol = "clean",
    grid: Grid = "scannet",
) -> dict[str, Any]:
    """All figures of one or more scenes pooled, ready for JSON; null where one is undefined.

    Keys: protocol, grid, ap, ap50, ap25, objects (asked for), predictions and mask_precision (as
    mask_precision); classes is null, or ap, ap50, ap25 as means over classes where every truth has
    classes and some prediction names one.
    """
    scenes = []
    for prediction, truth in pairs:
        segment_of_point = carry_to_points(prediction, truth.points)
        if not (segment_of_point >= 0).any():
            log.warning("no labelled point is within 5 cm of the mesh: are both of one world?")
        scenes.append(find_overlaps(prediction.instances, segment_of_point, truth, protocol))
    precision, prediction_count = mask_precision(scenes)
    named = any((scene.class_ids >= 0).any() for scene in scenes)
    has_classes = named and all(truth.semantic is not None for _, truth in pairs)
    return {
        "protocol": protocol,
        "grid": grid,
        **_three_figures(average_precision, scenes, grid),
        "objects": sum(int((scene.object_sizes >= MIN_POINTS).sum()) for scene in scenes),
        "predictions": prediction_count,
        "mask_precision": or_none(precision),
        "classes": _three_figures(class_average_precision, scenes, grid) if has_classes else None,
    }


def _three_figures(
    measure: Callable[[Sequence[Overlaps], float], float], scenes: Sequence[Overlaps], grid: Grid
) -> dict[str, float | None]:
    return {
        "ap": or_none(float(np.mean([measure(scenes, overlap) for overlap in OVERLAPS[grid]]))),
        "ap50": or_none(measure(scenes, 0.5)),
        "ap25": or_none(measure(scenes, 0.25)),
    }


def or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else value


@dataclass(frozen=True, slots=True)
class SemanticScores:
    """Shares 0..1, NaN without labelled points."""

    overall_accuracy: float
    mean_accuracy: float  # over the classes that occur
    mean_iou: float  # over the classes that occur or are predicted


def semantic_counts(
    predicted: np.ndarray, true: np.ndarray, predicted_count: int, class_count: int
) -> np.ndarray:
    """(predicted_count + 1, class_count) int64: points of each predicted id and true class.

    predicted, true (P,) integers. The last row has the points with a predicted id outside
    0..predicted_count-1; points with a true class outside 0..class_count-1 are not counted.
    Scenes are pooled by adding their counts.
    """
    labelled = (true >= 0) & (true < class_count)
    named = (predicted >= 0) & (predicted < predicted_count)
    rows = np.where(named, predicted, predicted_count)[labelled].astype(np.int64)
    cells = np.bincount(
        rows * class_count + true[labelled], minlength=(predicted_count + 1) * class_count
    )
    return cells.reshape(predicted_count + 1, class_count)


def semantic_scores(counts: np.ndarray) -> SemanticScores:
    """Scores of predictions that use the true classes' ids; counts (classes + 1, classes)."""
    hits = np.diag(counts).astype(np.float64)
    true_sizes, predicted_sizes = counts.sum(axis=0), counts[:-1].sum(axis=1)
    union = true_sizes + predicted_sizes - hits
    return SemanticScores(
        overall_accuracy=_mean_ratio(hits.sum(keepdims=True), counts.sum(keepdims=True).ravel()),
        mean_accuracy=_mean_ratio(hits, true_sizes),
        mean_iou=_mean_ratio(hits, union),
    )


def match_clusters(counts: np.ndarray) -> np.ndarray:
    """Renames clusters to the classes they share most points with, one to one, by Kuhn's method.

    counts (clusters + 1, classes) as from semantic_counts; returns (classes + 1, classes), where
    clusters that are left over are counted as points without a prediction.
    """
    clusters, classes = linear_sum_assignment(counts[:-1], maximize=True)
    matched = np.zeros((counts.shape[1] + 1, counts.shape[1]), np.int64)
    matched[classes] = counts[clusters]
    matched[-1] = counts.sum(axis=0) - matched[:-1].sum(axis=0)
    return matched


def _mean_ratio(parts: np.ndarray, wholes: np.ndarray) -> float:
    """Mean of parts / wholes where there is a whole, NaN where there is none."""
    present = wholes > 0
    return float(np.mean(parts[present] / wholes[present])) if present.any() else float("nan")
