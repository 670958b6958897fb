"""The labels of scans: which scans have usable ones, and true objects as masks to train on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from training.artifacts import Identity, file_hash
from training.fan_out import Failure
from training.scans.library import LABELS_FILE, Scan
from training.unscene3d.recipe import UnScene3DConfig
from training.unscene3d.samples import TrainingScene
from training.unscene3d.targets import masks_over_segments
from unscene_ros.evaluation import REACH_M, GroundTruth, read_ground_truth
from unscene_ros.scene import InputError, Mesh


def read_labels(scan: Scan) -> GroundTruth:
    """The labelled points of a scan; raises InputError when it has none or they are damaged."""
    return read_ground_truth(scan.folder / LABELS_FILE)


def labelled_scans(scans: Sequence[Scan]) -> tuple[list[Scan], list[Failure]]:
    """(those with labels, in their order; those whose labels or mesh cannot be used, and why).

    Raises InputError when there is not one with labels that can be used.
    """
    usable, failures = [], []
    for scan in scans:
        if not (scan.folder / LABELS_FILE).exists():
            continue
        try:
            scan.mesh()
            read_labels(scan)
        except InputError as error:
            failures.append(Failure(scan.name, str(error)))
        else:
            usable.append(scan)
    if not usable:
        reasons = "".join(f"; {failure.message}" for failure in failures)
        raise InputError(
            f"labels: expected scans with {LABELS_FILE}, got none among {len(scans)}: rooms have "
            f"it, and ScanNet's scans when imported with their labels{reasons}"
        )
    return usable, failures


def labelled_hash(scan: Scan) -> str:
    """Of a scan's surface and labels."""
    inputs = {"mesh": scan.mesh_hash, "labels": file_hash(scan.folder / LABELS_FILE)}
    return Identity("labelled", {}, inputs).hash


def object_masks(mesh: Mesh, truth: GroundTruth) -> np.ndarray:
    """(K, V) bool, one mask for each true object that the mesh shows; no stuff, nothing void.

    A vertex is labelled by the nearest point within 5 cm, as the evaluation labels points.
    """
    nearest = cKDTree(truth.points).query(mesh.vertices, distance_upper_bound=REACH_M)[1]
    # A vertex out of reach gets the index after the last point.
    object_of_vertex = np.append(truth.instance, -1)[nearest]
    objects = np.unique(object_of_vertex[object_of_vertex >= 0])
    return object_of_vertex == objects[:, None]


def true_scene(scan: Scan, config: UnScene3DConfig) -> TrainingScene:
    """A scan with its true objects as targets over the network's segments.

    None is left out for its extent, as pseudo masks are: labels are right about large objects.
    """
    mesh = scan.mesh()
    segments = scan.segments(config.oversegmentation, mesh)
    masks = object_masks(mesh, read_labels(scan))
    targets = masks_over_segments(masks, segments, config.targets.min_share)
    return TrainingScene(scan.name, mesh, segments, targets[targets.any(axis=1)])
