"""Quality over time against hand-computed runs and a slow twin; ids; long runs stay small."""

import json

import numpy as np
import pytest
from points_on_a_line import on_points, truth_of

from unscene_ros import quality_over_time
from unscene_ros.evaluation import (
    GroundTruth,
    average_precision,
    carry_to_points,
    find_overlaps,
    recall,
)
from unscene_ros.quality_over_time import QualityOverTime, _Curve, count_id_switches
from unscene_ros.scene import Instances, Mesh, Segments
from unscene_ros.storage import Prediction

VOID, STUFF = -1, -2
TWO_OBJECTS = truth_of((0, 200), (1, 200), (STUFF, 400))


def map_so_far(reached, tracks, start=0):
    """`reached` points on the line from `start` as a mesh; tracks of (id, first, end) of these."""
    mesh = Mesh(
        np.column_stack([start + np.arange(reached), np.zeros((reached, 2))]).astype(np.float32),
        np.zeros((0, 3), np.int32),
        np.zeros((reached, 3), np.uint8),
        np.zeros((reached, 3), np.float32),
    )
    each_its_own = Segments(np.arange(reached, dtype=np.int32), np.zeros((0, 2), np.int32), reached)
    masks = [on_points(reached, [(first, end)]) for _, first, end in tracks]
    instances = Instances(
        np.array(masks, bool).reshape(len(tracks), reached),
        np.ones(len(tracks), np.float32),
        np.full(len(tracks), -1, np.int32),
    )
    return Prediction(mesh, each_its_own, instances, np.array([t[0] for t in tracks], np.int32))


def judged(*maps, truth=TWO_OBJECTS):
    """Maps of (points reached, tracks), one a second; each result comes half a second late."""
    quality = QualityOverTime(truth)
    for second, each in enumerate(maps):
        quality.add(map_so_far(*each), second, second + 0.5)
    return quality.figures()


def switches(*maps, truth=TWO_OBJECTS):
    return count_id_switches((map_so_far(*each) for each in maps), truth)


def test_a_map_is_asked_only_for_what_has_been_seen():
    # Half of object 0; all of it, and all of object 1, which nothing covers.
    figures = judged((120, [(1, 0, 120)]), (400, [(1, 0, 200)]))
    assert figures["curve"] == {
        "time_s": [0.5, 1.5],
        "ap50": [1, 0.5],
        "recall": [1, 0.5],
        "objects": [1, 2],
    }
    assert figures["summary"]["mean_ap50"] == figures["summary"]["mean_recall"] == 0.75


def test_what_a_map_has_lost_again_is_still_asked_for():
    lost = judged((400, [(1, 0, 200), (2, 200, 400)]), (200, [(1, 0, 200)]))
    assert lost["curve"]["recall"] == [1, 0.5]
    # Its id is judged by the maps that hold it.
    assert [seen["share_under_one_id"] for seen in lost["objects"]] == [1, 1]


def test_an_object_is_found_when_half_of_what_was_seen_of_it_is_covered():
    figures = judged((200, []), (200, [(1, 0, 100)]), (200, [(1, 0, 101)]), (400, []))
    assert figures["objects"][0]["found_after_s"] == 2.5  # seen in the picture of second 0
    assert figures["objects"][1] == {
        "object": 1,
        "first_seen_s": 3,
        "found_after_s": None,
        "id_switches": None,
        "share_under_one_id": 0,
    }
    summary = figures["summary"]
    assert (summary["maps"], summary["objects"], summary["found"]) == (4, 2, 1)
    assert summary["median_found_after_s"] == 2.5


def test_the_share_under_one_id_is_of_all_maps_that_hold_the_object():
    maps = [(200, [(track, 0, 200)] if track else []) for track in (1, 0, 2, 2, 1, 2)]
    figures = judged(*maps)
    assert figures["objects"][0]["share_under_one_id"] == 3 / 6
    assert figures["objects"][0]["id_switches"] == 3
    assert figures["summary"]["id_switches_per_object"] == 3


def test_without_maps_or_objects_the_figures_are_null():
    for figures in (judged(), judged((0, [])), judged((9, []), truth=truth_of((STUFF, 9)))):
        assert figures["summary"]["objects"] == 0
        assert figures["summary"]["mean_ap50"] is figures["summary"]["mean_recall"] is None
        assert figures["summary"]["share_under_one_id"] is None
        assert figures["objects"] == []
        json.dumps(figures, allow_nan=False)


def test_an_object_seen_in_pieces_that_no_map_holds_together_has_no_id():
    pieces = QualityOverTime(truth_of((0, 120)))
    for second, first in enumerate((0, 60)):
        pieces.add(map_so_far(60, [], first), second, second)
    assert pieces.figures()["objects"][0]["share_under_one_id"] == 0
    assert pieces.figures()["curve"]["objects"] == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_the_truth_cut_to_what_was_seen(seed):
    """The slow way: a new truth of the seen points for every map."""
    random = np.random.default_rng(seed)
    truth = truth_of((3, 150), (STUFF, 60), (8, 120), (VOID, 30), (11, 240))
    quality = QualityOverTime(truth)
    seen = np.zeros(len(truth.points), bool)
    ap50, recalls = [], []
    for second in range(8):
        first = int(random.integers(0, 300))
        reached = int(random.integers(60, 300))
        spans = np.sort(random.integers(0, reached + 1, (4, 2)), axis=1)
        made = map_so_far(reached, [(i + 1, *span) for i, span in enumerate(spans)], first)
        quality.add(made, second, second)
        seen[first : first + reached] = True
        cut = GroundTruth(truth.points[seen], truth.instance[seen])
        overlaps = find_overlaps(made.instances, carry_to_points(made, cut.points), cut, "clean")
        ap50.append(average_precision([overlaps], 0.5))
        recalls.append(recall(overlaps))
    curve = quality.figures()["curve"]
    assert np.allclose(np.array(curve["ap50"], float), ap50, equal_nan=True)
    assert np.allclose(np.array(curve["recall"], float), recalls, equal_nan=True)
    assert np.nanmax(recalls) > 0


@pytest.mark.parametrize("maps", [1, 10, 11, 12, 25, 1000])
def test_a_long_run_keeps_a_thinned_curve_and_exact_means(monkeypatch, maps):
    monkeypatch.setattr(quality_over_time, "MAX_CURVE_POINTS", 10)
    curve = _Curve()
    for second in range(maps):
        curve.add({"time_s": second, "ap50": second, "recall": None, "objects": 1})
    times = curve.columns()["time_s"]
    assert len(times) <= 11 and times[0] == 0 and times[-1] == maps - 1
    assert len(set(np.diff(times)[:-1])) <= 1
    assert curve.mean("ap50") == (maps - 1) / 2 and curve.mean("recall") is None


def test_every_change_of_the_id_on_an_object_counts():
    first, second = (0, 200), (200, 400)
    maps = [(400, [(a, *first), (b, *second)]) for a, b in ((1, 2), (1, 3), (4, 2), (4, 2))]
    assert switches(*maps) == {0: 1, 1: 2}


def test_an_id_that_comes_back_after_a_gap_is_no_switch():
    seen, missed = (400, [(1, 0, 200)]), (400, [])
    assert switches(seen, missed, seen) == {0: 0}
    assert switches(seen, missed, (400, [(2, 0, 200)])) == {0: 1}


def test_the_id_on_an_object_is_that_of_the_best_instance_above_a_quarter():
    both = (400, [(5, 0, 60), (6, 60, 200)])  # IoU 0.3 and 0.7
    assert switches((400, [(6, 0, 200)]), both) == {0: 0}
    assert switches((400, [(7, 0, 200)]), (400, [(8, 0, 50)])) == {0: 0}  # a quarter is not enough


def test_only_points_that_the_map_has_reached_speak():
    # 120 of the object's 200 points are there: all of them found, and none of object 1 yet.
    assert switches((120, [(1, 0, 120)]), (400, [(2, 0, 200)])) == {0: 1}
    # 99 points are no object yet.
    assert switches((99, [(1, 0, 99)]), (400, [(2, 0, 200)])) == {0: 0}


def test_without_maps_instances_or_objects_nothing_switches():
    assert switches() == switches((0, []), (400, [])) == {}
    assert switches((400, [(1, 0, 200)]), truth=truth_of((STUFF, 400))) == {}
