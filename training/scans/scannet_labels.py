"""ScanNet's annotations and published segments -> labels and segments of the mesh's vertices.

Classes are NYU40 ids. Dai et al., "ScanNet: Richly-annotated 3D reconstructions of indoor scenes",
CVPR 2017; the ids that the benchmark evaluates are those of its programs.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from unscene_ros.ply import read_vertex_property
from unscene_ros.scene import InputError, Segments

VOID, STUFF = -1, -2  # of vertices that belong to no object
STUFF_CLASSES = (1, 2)  # wall, floor
OBJECT_CLASSES = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)
LAST_CLASS = 40
# Ids in the published files that are no class: these vertices are unlabelled.
KNOWN_DEFECTS = {"scene0270_00": 50, "scene0270_02": 50, "scene0384_00": 149}


def read_label_map(path: Path) -> dict[str, int]:
    """NYU40 id of each raw label, from scannetv2-labels.combined.tsv; raises InputError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        return {row["raw_category"]: int(row["nyu40id"] or 0) for row in rows}
    except OSError as error:
        raise InputError(f"label map {path}: cannot be read ({error.strerror})") from error
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"label map {path}: expected columns raw_category and nyu40id, as in "
            f"scannetv2-labels.combined.tsv"
        ) from error


def read_segment_ids(path: Path, vertex_count: int) -> np.ndarray:
    """(V,) int64 ids, with gaps, from a .segs.json; raises InputError."""
    try:
        ids = np.array(_read_json(path)["segIndices"], np.int64)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: expected a list of numbers 'segIndices'") from error
    if ids.shape != (vertex_count,):
        raise InputError(f"{path}: expected {vertex_count} vertices as in the mesh, got {len(ids)}")
    return ids


def read_objects(path: Path) -> list[tuple[str, list[int]]]:
    """(raw label, segment ids) of each annotated thing, from .aggregation.json."""
    try:
        groups = _read_json(path)["segGroups"]
        return [(str(group["label"]), [int(s) for s in group["segments"]]) for group in groups]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: expected 'segGroups' with label and segments") from error


def read_vertex_classes(path: Path, scene: str, vertex_count: int) -> np.ndarray:
    """(V,) int32 NYU40 ids from a .labels.ply, known defects repaired; raises InputError."""
    try:
        classes = read_vertex_property(path, "label")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if classes.shape != (vertex_count,):
        raise InputError(
            f"{path}: expected {vertex_count} vertices with a 'label', got {len(classes)}"
        )
    if scene in KNOWN_DEFECTS:
        classes = np.where(classes == KNOWN_DEFECTS[scene], 0, classes)
    if classes.size and not (classes.min() >= 0 and classes.max() <= LAST_CLASS):
        raise InputError(
            f"{path}: expected classes 0..{LAST_CLASS}, got {classes.min()}..{classes.max()}"
        )
    return classes.astype(np.int32)


def label_vertices(
    segment_ids: np.ndarray, objects: list[tuple[str, list[int]]], label_map: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(instance, NYU40 class) of each vertex, both (V,) int32, from annotated segments (V,).

    Things of the 18 evaluated classes are numbered without gaps; wall and floor are -2, everything
    else -1. Of two annotations of one segment the later counts; an unknown label is class 0.
    """
    ids, segment_of_vertex = np.unique(segment_ids, return_inverse=True)
    class_of_segment = np.zeros(len(ids), np.int32)
    object_of_segment = np.full(len(ids), VOID, np.int32)
    for number, (label, segments) in enumerate(objects):
        class_id = label_map.get(label, 0)
        annotated = np.isin(ids, segments)
        class_of_segment[annotated] = class_id
        object_of_segment[annotated] = number if class_id in OBJECT_CLASSES else VOID
    is_stuff = np.isin(class_of_segment, STUFF_CLASSES)
    object_of_segment[is_stuff] = STUFF
    is_object = object_of_segment >= 0
    object_of_segment[is_object] = np.unique(object_of_segment[is_object], return_inverse=True)[1]
    return object_of_segment[segment_of_vertex], class_of_segment[segment_of_vertex]


def segments_from_ids(segment_ids: np.ndarray, faces: np.ndarray) -> Segments:
    """Segments of a mesh from any ids (V,); they are neighbours where an edge joins them."""
    ids, of_vertex = np.unique(segment_ids, return_inverse=True)
    pairs = of_vertex[faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)].reshape(-1, 2)
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    # One number for each pair sorts many times faster than rows.
    keys = np.unique((low * len(ids) + high)[low != high])
    neighbors = np.stack(np.divmod(keys, max(len(ids), 1)), axis=1)
    return Segments(of_vertex.astype(np.int32), neighbors.astype(np.int32), len(ids))


def _read_json(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: expected JSON: {error}") from error
