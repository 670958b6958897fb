"""Successive maps of one place against labelled points -> how good each was, and each object.

A map is asked only for what it or an earlier one has seen: a point of the truth is seen once it is
within reach of a map, and an object once so many of its points are that AP would ask for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from unscene_ros.evaluation import (
    MIN_POINTS,
    GroundTruth,
    Overlaps,
    average_precision,
    carry_to_points,
    find_overlaps,
    found_objects,
    or_none,
    recall,
)
from unscene_ros.storage import Prediction

FOUND_OVERLAP = 0.5  # an object is found by an instance with an IoU above this, as for AP50
ID_OVERLAP = 0.25  # an object bears the id of the best instance above this, found or not
CURVE = ("time_s", "ap50", "recall", "objects")
MAX_CURVE_POINTS = 400  # beyond, every second one is left out, so that a long run stays small


class QualityOverTime:
    """Takes the maps of one place as they come, and keeps none of them.

    Memory grows with the truth and with the ids that its objects bore, not with the maps. Times are
    seconds since the run's first picture.
    """

    def __init__(self, truth: GroundTruth) -> None:
        self._truth = replace(truth, semantic=None)  # classes would cost time and are not asked for
        labels, label_of_point = np.unique(truth.instance, return_inverse=True)
        self._objects = labels[labels >= 0]  # in the order of the columns of Overlaps
        # Below 0: a point of no object.
        self._object_of_point = label_of_point - (len(labels) - len(self._objects))
        self._seen = np.zeros(len(truth.points), bool)
        self._histories: dict[int, _ObjectHistory] = {}
        self._curve = _Curve()

    def add(self, prediction: Prediction, picture_s: float, result_s: float) -> None:
        """Judges the next map.

        picture_s: when its newest picture was taken; result_s: when its instances were there.
        """
        segment_of_point = carry_to_points(prediction, self._truth.points)
        reached = segment_of_point >= 0
        self._seen |= reached
        overlaps = find_overlaps(prediction.instances, segment_of_point, self._truth, "clean")
        # Points out of reach are in no instance, so only the sizes of the objects count them.
        so_far = replace(overlaps, object_sizes=self._object_sizes(self._seen))
        in_map = replace(overlaps, object_sizes=self._object_sizes(reached))
        self._follow_objects(so_far, in_map, prediction.track_ids, picture_s, result_s)
        self._curve.add(
            {
                "time_s": result_s,
                "ap50": or_none(average_precision([so_far], FOUND_OVERLAP)),
                "recall": or_none(recall(so_far, FOUND_OVERLAP)),
                "objects": len(self._histories),
            }
        )

    def id_switches(self) -> dict[int, int]:
        """{object: how often its id changed}, of the objects that ever had an id.

        An object without an id keeps the last one. Bernardin and Stiefelhagen, "CLEAR MOT", 2008.
        """
        histories = self._histories.items()
        return {label: seen.id_switches for label, seen in histories if seen.maps_by_id}

    def figures(self) -> dict[str, Any]:
        """All figures, ready for JSON; null where one is undefined.

        summary: maps; objects seen and how many of them were found; means of AP50 and recall over
        the maps; median time from the first picture of an object to its first detection; switches
        per object that had an id; mean share of an object's maps under its commonest id.
        curve: one list a figure, over at most MAX_CURVE_POINTS maps, with the objects seen by then.
        objects: the same by object, named by its label in the truth.
        """
        histories = self._histories.values()
        delays = [seen.found_after_s for seen in histories if seen.found_after_s is not None]
        return {
            "summary": {
                "maps": self._curve.maps,
                "objects": len(histories),
                "found": len(delays),
                "mean_ap50": self._curve.mean("ap50"),
                "mean_recall": self._curve.mean("recall"),
                "median_found_after_s": float(np.median(delays)) if delays else None,
                "id_switches_per_object": _mean(self.id_switches().values()),
                "share_under_one_id": _mean(seen.share_under_one_id for seen in histories),
            },
            "curve": self._curve.columns(),
            "objects": [
                {"object": label, **seen.figures()} for label, seen in self._histories.items()
            ],
        }

    def _object_sizes(self, among: np.ndarray) -> np.ndarray:
        """(G,) points of each object among those marked in (P,) bool."""
        labelled = self._object_of_point[among & (self._object_of_point >= 0)]
        return np.bincount(labelled, minlength=len(self._objects))

    def _follow_objects(
        self,
        so_far: Overlaps,
        in_map: Overlaps,
        track_ids: np.ndarray,
        picture_s: float,
        result_s: float,
    ) -> None:
        found = found_objects(so_far, FOUND_OVERLAP)
        iou = in_map.iou()
        for column in np.flatnonzero(so_far.object_sizes >= MIN_POINTS):
            history = self._histories.setdefault(
                int(self._objects[column]), _ObjectHistory(picture_s)
            )
            if found[column] and history.first_found_s is None:
                history.first_found_s = result_s
            if in_map.object_sizes[column] >= MIN_POINTS:
                best = iou[:, column].argmax() if len(iou) else None
                bears = best is not None and iou[best, column] > ID_OVERLAP
                history.add_map(int(track_ids[best]) if bears else None)


def count_id_switches(maps: Iterable[Prediction], truth: GroundTruth) -> dict[int, int]:
    """{object: how often its id changed} over successive maps of one place; see `id_switches`."""
    quality = QualityOverTime(truth)
    for number, prediction in enumerate(maps):
        quality.add(prediction, number, number)
    return quality.id_switches()


@dataclass(slots=True)
class _ObjectHistory:
    """What became of one object since it was first seen."""

    first_seen_s: float
    first_found_s: float | None = None
    maps: int = 0  # that held it
    maps_by_id: Counter[int] = field(default_factory=Counter)
    id_switches: int = 0
    _last_id: int | None = None

    def add_map(self, track_id: int | None) -> None:
        """One more map holds the object, under this id or under none."""
        self.maps += 1
        if track_id is None:
            return
        self.id_switches += self._last_id not in (None, track_id)
        self.maps_by_id[track_id] += 1
        self._last_id = track_id

    @property
    def found_after_s(self) -> float | None:
        return None if self.first_found_s is None else self.first_found_s - self.first_seen_s

    @property
    def share_under_one_id(self) -> float:
        # It may have been seen in parts only, never enough of it in one map.
        return max(self.maps_by_id.values(), default=0) / max(self.maps, 1)

    def figures(self) -> dict[str, Any]:
        return {
            "first_seen_s": self.first_seen_s,
            "found_after_s": self.found_after_s,
            "id_switches": self.id_switches if self.maps_by_id else None,
            "share_under_one_id": self.share_under_one_id,
        }


class _Curve:
    """Figures by map, evenly thinned out; their means are over all maps."""

    def __init__(self) -> None:
        self.maps = 0
        self._kept: list[dict[str, Any]] = []
        self._newest: list[dict[str, Any]] = []
        self._step = 1
        self._sums: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def add(self, row: dict[str, Any]) -> None:
        if self.maps % self._step == 0:
            self._kept.append(row)
            self._newest = []
        else:
            self._newest = [row]
        if len(self._kept) > MAX_CURVE_POINTS:
            self._kept, self._step = self._kept[::2], 2 * self._step
        self.maps += 1
        for name, value in row.items():
            if value is not None:
                self._sums[name] += value
                self._counts[name] += 1

    def mean(self, name: str) -> float | None:
        return self._sums[name] / self._counts[name] if self._counts[name] else None

    def columns(self) -> dict[str, list[Any]]:
        """{figure: its values}, the newest map's always among them."""
        rows = self._kept + self._newest
        return {name: [row[name] for row in rows] for name in CURVE}


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return float(np.mean(listed)) if listed else None
