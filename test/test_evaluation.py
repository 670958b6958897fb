"""Instance AP against hand-computed cases and a slow twin; semantic scores; the truth file."""

import itertools
import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from points_on_a_line import on_points, truth_of

from unscene_ros.evaluation import (
    GroundTruth,
    average_precision,
    carry_to_points,
    class_average_precision,
    evaluate,
    find_overlaps,
    mask_precision,
    match_clusters,
    read_ground_truth,
    recall,
    semantic_counts,
    semantic_scores,
)
from unscene_ros.scene import InputError, Instances, Mesh, Segments
from unscene_ros.storage import Prediction

VOID, STUFF = -1, -2


def overlaps_of(truth: GroundTruth, *masks, protocol="clean", class_ids=None):
    """Masks as (score, [(first point, end point), ...])."""
    instances = Instances(
        np.array([on_points(len(truth.points), spans) for _, spans in masks], bool).reshape(
            len(masks), len(truth.points)
        ),
        np.array([score for score, _ in masks], np.float32),
        np.array([-1] * len(masks) if class_ids is None else class_ids, np.int32),
    )
    each_its_own = np.arange(len(truth.points), dtype=np.int32)
    return find_overlaps(instances, each_its_own, truth, protocol)


def ap(truth, *masks, threshold=0.5, **options):
    return average_precision([overlaps_of(truth, *masks, **options)], threshold)


TWO_OBJECTS = truth_of((0, 200), (1, 200), (STUFF, 400))


def test_exact_masks_score_one():
    assert ap(TWO_OBJECTS, (0.9, [(0, 200)]), (0.8, [(200, 400)])) == 1


def test_one_found_object_of_two_scores_half():
    assert ap(TWO_OBJECTS, (0.9, [(0, 200)])) == 0.5


def test_no_predictions_score_zero_and_no_objects_score_nan():
    assert ap(TWO_OBJECTS) == 0
    assert math.isnan(ap(truth_of((STUFF, 300)), (0.9, [(0, 200)])))
    assert math.isnan(average_precision([], 0.5))


def test_an_overlap_exactly_at_the_threshold_is_no_match():
    truth = truth_of((0, 200), (STUFF, 400))
    assert ap(truth, (0.9, [(100, 200)])) == 0  # 100 of 200: IoU 0.5
    assert ap(truth, (0.9, [(99, 200)])) == 1


def test_void_points_of_a_prediction_count_in_its_union():
    truth = truth_of((0, 200), (VOID, 400))
    assert ap(truth, (0.9, [(0, 399)])) == 1  # IoU 200/399
    assert ap(truth, (0.9, [(0, 400)])) == 0  # IoU 1/2


def test_a_duplicate_is_a_false_positive_and_the_better_score_stands_for_the_object():
    object_and_wall = truth_of((0, 200), (STUFF, 200))
    whole, most = [(0, 200)], [(0, 150)]
    # The duplicate ranks behind the match, so precision is 1 up to full recall.
    # Curve (strict to lenient): recall 0, 1, 1 and precision 1, 1, 1/2.
    # Steps: (1-0)/2, (1-0)/2, (1-1)/2.
    assert ap(object_and_wall, (0.9, whole), (0.4, most)) == 1
    # In whatever order they come.
    assert ap(object_and_wall, (0.4, most), (0.9, whole)) == 1
    # With a second object found last: recall 0, 1/2, 1/2, 1; precision 1, 1, 1/2, 2/3;
    # steps 1/4, 1/4, 1/4, 1/4.
    found_last = ap(TWO_OBJECTS, (0.9, whole), (0.4, most), (0.1, [(200, 400)]))
    assert found_last == pytest.approx((1 + 1 + 1 / 2 + 2 / 3) / 4)


def test_equal_scores_are_one_point_of_the_curve():
    false_alarm = [(0, 60), (200, 260)]
    # One point: precision 1/2 at recall 1/2; steps 1/4, 1/4.
    tied = ap(TWO_OBJECTS, (0.5, [(0, 200)]), (0.5, false_alarm))
    assert tied == pytest.approx((1 + 1 / 2) / 4)
    assert tied == ap(TWO_OBJECTS, (0.5, false_alarm), (0.5, [(0, 200)]))
    # Apart, with the false alarm first: precision 1, 0, 1/2 at recall 0, 0, 1/2; steps 0, 1/4, 1/4.
    assert ap(TWO_OBJECTS, (0.9, false_alarm), (0.5, [(0, 200)])) == pytest.approx(1 / 8)


def test_predictions_under_100_points_are_discarded():
    truth = truth_of((0, 120), (STUFF, 300))
    assert ap(truth, (0.9, [(0, 100)])) == 1
    assert ap(truth, (0.9, [(0, 99)])) == 0
    # A discarded false alarm does not hurt either.
    truth = truth_of((0, 200), (1, 200))
    assert ap(truth, (0.9, [(0, 99)]), (0.5, [(0, 200)]), (0.5, [(200, 400)])) == 1


def test_objects_under_100_points_are_neither_asked_nor_punished():
    truth = truth_of((0, 99), (1, 200), (STUFF, 300))
    found = (0.5, [(99, 299)])
    assert ap(truth, found) == 1
    # On the small object and stuff: IoU 99/120 with it, so no false alarm.
    assert ap(truth, (0.9, [(0, 99), (300, 321)]), found) == 1
    # IoU 40/199 with the small object: judged by what lies on small, stuff and void, here all.
    assert ap(truth, (0.9, [(0, 40), (300, 400)]), found) == 1


def test_a_prediction_mostly_on_ignored_points_is_dropped_and_one_below_counts_as_wrong():
    truth = truth_of((0, 200), (VOID, 200), (1, 400))
    found = (0.5, [(0, 200)])
    half_void = (0.9, [(300, 500)])  # 100 of 200 on void: at the threshold, so judged
    more_void = (0.9, [(299, 499)])
    assert ap(truth, half_void, found) == pytest.approx(1 / 8)
    assert ap(truth, more_void, found) == 0.5


def test_stuff_is_ignored_when_clean_and_one_object_more_when_compatible():
    truth = truth_of((0, 200), (STUFF, 300))
    found, wall = (0.9, [(0, 200)]), (0.8, [(200, 500)])
    assert ap(truth, found) == 1
    assert ap(truth, found, wall) == 1
    assert ap(truth, found, protocol="compat") == 0.5
    assert ap(truth, found, wall, protocol="compat") == 1


def test_with_classes_only_walls_are_the_object_more():
    truth = truth_of((0, 200), (STUFF, 500), semantic=[(5, 200), (1, 300), (2, 200)])
    found, wall, floor = (0.9, [(0, 200)]), (0.8, [(200, 500)]), (0.95, [(500, 700)])
    assert ap(truth, found, wall, floor, protocol="compat") == 1
    assert ap(truth, found, floor, protocol="compat") == 0.5
    no_walls = truth_of((0, 200), (STUFF, 500), semantic=[(5, 200), (2, 500)])
    assert ap(no_walls, found, protocol="compat") == 1


def test_points_without_a_segment_belong_to_the_object_alone():
    truth = truth_of((0, 200))
    segment_of_point = np.where(np.arange(200) < 150, 0, -1).astype(np.int32)
    one = Instances(np.ones((1, 1), bool), np.ones(1, np.float32), np.zeros(1, np.int32))
    overlaps = find_overlaps(one, segment_of_point, truth, "clean")
    assert overlaps.iou() == 0.75


def test_scenes_are_pooled_by_score_and_not_averaged():
    good = overlaps_of(truth_of((0, 200)), (0.5, [(0, 200)]))
    bad = overlaps_of(truth_of((0, 200), (1, 200)), (0.9, [(0, 100), (200, 300)]))
    # Precision 1, 0, 1/2 at recall 0, 0, 1/3 of the three objects; steps 0, 1/6, 1/6.
    assert average_precision([good, bad], 0.5) == pytest.approx(1 / 12)


def test_class_mean_leaves_out_classes_without_objects():
    truth = truth_of((0, 200), (1, 200), semantic=[(5, 200), (7, 200)])
    masks = (0.9, [(0, 200)]), (0.8, [(200, 400)]), (0.7, [(0, 200)])
    right = overlaps_of(truth, *masks[:2], class_ids=[5, 7])
    assert class_average_precision([right], 0.5) == 1
    wrong = overlaps_of(truth, *masks, class_ids=[5, 5, 9])
    # Class 5: matched at 0.9, one false alarm behind it: 1. Class 7: 0. Class 9 has no object.
    assert class_average_precision([wrong], 0.5) == 0.5
    assert math.isnan(class_average_precision([overlaps_of(truth_of((0, 200)), *masks[:1])], 0.5))


def test_mask_precision_is_the_share_of_masks_on_an_object():
    overlaps = overlaps_of(TWO_OBJECTS, (0.1, [(0, 200)]), (0.2, [(0, 180)]), (0.3, [(400, 800)]))
    assert mask_precision([overlaps, overlaps]) == (pytest.approx(2 / 3), 6)
    share, count = mask_precision([overlaps_of(TWO_OBJECTS)])
    assert math.isnan(share) and count == 0


def test_recall_is_the_share_of_the_objects_asked_for_that_are_found():
    truth = truth_of((0, 200), (1, 200), (2, 99), (STUFF, 400))
    masks = (0.9, [(0, 101)]), (0.8, [(200, 300)]), (0.7, [(400, 499)])
    assert recall(overlaps_of(truth, *masks)) == 1 / 2  # object 1 by half only, object 2 too small
    assert recall(overlaps_of(truth, *masks), threshold=0.4) == 1
    assert recall(overlaps_of(truth)) == 0
    assert math.isnan(recall(overlaps_of(truth_of((0, 99)), (0.9, [(0, 99)]))))
    # A prediction that is too small to be judged finds nothing.
    assert recall(overlaps_of(truth_of((0, 120)), (0.9, [(0, 99)]))) == 0


def naive_average_precision(scenes, threshold, min_points):
    """The benchmark's rules one point at a time; scenes of (masks, scores, instance labels)."""
    judged, object_count = [], 0
    for masks, scores, labels in scenes:
        masks = [set(np.flatnonzero(mask)) for mask in masks]
        big = [index for index, mask in enumerate(masks) if len(mask) >= min_points]
        objects = {label: set(np.flatnonzero(labels == label)) for label in set(labels) - {-1, -2}}
        asked = {label for label, points in objects.items() if len(points) >= min_points}
        object_count += len(asked)

        def overlap(index, label, masks=masks, objects=objects):
            return len(masks[index] & objects[label]) / len(masks[index] | objects[label])

        used = set()
        for label in sorted(asked):
            best = None
            for index in big:
                if index in used or not overlap(index, label) > threshold:
                    continue
                if best is None:
                    best = scores[index]
                    used.add(index)
                else:
                    judged.append((min(best, scores[index]), False))
                    best = max(best, scores[index])
            if best is not None:
                judged.append((best, True))
        for index in big:
            if any(overlap(index, label) > threshold for label in objects):
                continue
            unasked = [p for p in masks[index] if labels[p] < 0 or labels[p] not in asked]
            if len(unasked) / len(masks[index]) <= threshold:
                judged.append((scores[index], False))
    if object_count == 0:
        return float("nan")
    curve = [(0.0, 1.0)]
    for lowest in sorted({score for score, _ in judged}, reverse=True):
        kept = [correct for score, correct in judged if score >= lowest]
        curve.append((sum(kept) / object_count, sum(kept) / len(kept)))
    area = 0.0
    for i, (found, precision) in enumerate(curve):
        before = curve[i - 1][0] if i else found
        after = curve[i + 1][0] if i + 1 < len(curve) else found
        area += precision * (after - before) / 2
    return area if judged else 0.0


@st.composite
def random_scene(draw):
    """Few points and few scores, so that ties, duplicates and small objects are common."""
    count = draw(st.integers(1, 12))
    labels = np.array(draw(st.lists(st.integers(-2, 3), min_size=count, max_size=count)), np.int32)
    row = st.lists(st.booleans(), min_size=count, max_size=count).filter(any)
    masks = draw(st.lists(row, max_size=6))
    score = st.sampled_from([0.1, 0.25, 0.5, 0.75])
    scores = draw(st.lists(score, min_size=len(masks), max_size=len(masks)))
    return np.array(masks, bool).reshape(len(masks), count), np.float32(scores), labels


@settings(deadline=None, max_examples=400)
@given(
    st.lists(random_scene(), min_size=1, max_size=3),
    st.sampled_from([0.2, 0.25, 0.5, 0.6]),
    st.integers(1, 3),
)
def test_average_precision_equals_its_naive_twin(scenes, threshold, min_points):
    overlaps = []
    for masks, scores, labels in scenes:
        truth = GroundTruth(np.zeros((len(labels), 3), np.float32), labels)
        instances = Instances(masks, scores, np.full(len(masks), -1, np.int32))
        each_its_own = np.arange(len(labels), dtype=np.int32)
        overlaps.append(find_overlaps(instances, each_its_own, truth, "clean"))
    expected = naive_average_precision(scenes, threshold, min_points)
    got = average_precision(overlaps, threshold, min_points)
    assert got == pytest.approx(expected, nan_ok=True)


def line_prediction(masks, scores, class_ids=None) -> Prediction:
    """A mesh of 400 vertices 1 m apart, in segments of 100, moved by 3 cm against the truth."""
    vertices = np.zeros((400, 3), np.float32)
    vertices[:, 0], vertices[:, 1] = np.arange(400), 0.03
    mesh = Mesh(vertices, np.zeros((0, 3), np.int32), np.zeros((400, 3), np.uint8), vertices * 0)
    segments = Segments(np.repeat(np.arange(4, dtype=np.int32), 100), np.zeros((0, 2), np.int32), 4)
    count = len(masks)
    instances = Instances(
        np.array(masks, bool).reshape(count, 4),
        np.array(scores, np.float32),
        np.array([-1] * count if class_ids is None else class_ids, np.int32),
    )
    return Prediction(mesh, segments, instances, np.zeros(count, np.int32))


def test_points_take_the_nearest_segment_within_five_centimetres():
    points = np.array([[0, 0, 0], [150, 0.03, 0.04], [399, 0.03, 0.06], [50, 1, 0]], np.float32)
    assert carry_to_points(line_prediction([], []), points).tolist() == [0, 1, -1, -1]
    empty = Prediction(
        Mesh.empty(),
        Segments(np.zeros(0, np.int32), np.zeros((0, 2), np.int32), 0),
        Instances.empty(0),
        np.zeros(0, np.int32),
    )
    assert carry_to_points(empty, points).tolist() == [-1] * 4


def test_evaluate_reports_every_figure_of_a_scene():
    truth = truth_of((0, 200), (1, 100), (STUFF, 100))
    # IoU 1/2 with object 0: found at 0.25 only. IoU 1 with object 1.
    figures = evaluate([(line_prediction([[1, 0, 0, 0], [0, 0, 1, 0]], [0.9, 0.8]), truth)])
    assert figures == {
        "protocol": "clean",
        "grid": "scannet",
        "ap": pytest.approx(1 / 8),
        "ap50": pytest.approx(1 / 8),
        "ap25": 1,
        "objects": 2,
        "predictions": 2,
        "mask_precision": 0.5,
        "classes": None,
    }


def test_the_scannet_grid_ends_at_ninety_percent_and_the_full_one_at_ninety_five():
    truth = truth_of((0, 108))  # 100 of 108 found: 0.926
    prediction = line_prediction([[1, 0, 0, 0]], [0.9])
    assert evaluate([(prediction, truth)])["ap"] == 1
    assert evaluate([(prediction, truth)], grid="full")["ap"] == pytest.approx(9 / 10)


def test_class_figures_appear_when_truth_and_prediction_name_classes():
    truth = truth_of((0, 100), (1, 100), semantic=[(5, 100), (7, 100)])
    masks = [[1, 0, 0, 0], [0, 1, 0, 0]]
    figures = evaluate([(line_prediction(masks, [0.9, 0.8], [5, 5]), truth)])
    assert figures["classes"] == {"ap": 0.5, "ap50": 0.5, "ap25": 0.5}
    assert evaluate([(line_prediction(masks, [0.9, 0.8]), truth)])["classes"] is None


def test_without_objects_the_figures_are_null():
    figures = evaluate([(line_prediction([], []), truth_of((STUFF, 10)))])
    assert figures["ap"] is figures["ap50"] is figures["mask_precision"] is None
    assert figures["objects"] == 0


def test_a_truth_that_is_elsewhere_is_told(caplog):
    truth = truth_of((0, 200))
    elsewhere = GroundTruth(truth.points + 1000, truth.instance)
    with caplog.at_level(logging.WARNING):
        assert evaluate([(line_prediction([[1, 1, 0, 0]], [0.9]), truth)])["ap"] == 1
        assert caplog.text == ""
        assert evaluate([(line_prediction([[1, 1, 0, 0]], [0.9]), elsewhere)])["ap"] == 0
    assert "no labelled point is within 5 cm" in caplog.text


def test_semantic_scores_of_a_hand_made_case():
    true = np.array([0, 0, 0, 1, 1, 2, -1, 5])
    predicted = np.array([0, 0, 1, 1, -1, 0, 1, 1])
    scores = semantic_scores(semantic_counts(predicted, true, 4, 4))
    assert scores.overall_accuracy == pytest.approx(3 / 6)
    assert scores.mean_accuracy == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scores.mean_iou == pytest.approx((2 / 4 + 1 / 3 + 0 / 1) / 3)  # class 3 never occurs
    assert math.isnan(semantic_scores(np.zeros((3, 2), int)).mean_iou)


def test_renamed_clusters_match_perfectly():
    random = np.random.default_rng(0)
    true = random.integers(0, 5, 1000)
    counts = semantic_counts(np.array([3, 0, 4, 1, 2])[true], true, 5, 5)
    assert semantic_scores(counts).mean_iou < 0.3
    assert semantic_scores(match_clusters(counts)).mean_iou == 1


@pytest.mark.parametrize("cluster_count", [2, 4, 6])
def test_clusters_are_matched_as_well_as_by_trying_every_way(cluster_count):
    random = np.random.default_rng(cluster_count)
    true, predicted = random.integers(0, 4, 200), random.integers(-1, cluster_count, 200)
    matched = match_clusters(semantic_counts(predicted, true, cluster_count, 4))
    best = max(
        sum(int(((predicted == c) & (true == order[c])).sum()) for c in range(cluster_count))
        for order in itertools.permutations(range(max(cluster_count, 4)))
    )
    assert np.trace(matched) == best
    assert np.array_equal(matched.sum(axis=0), np.bincount(true, minlength=4))


def test_a_truth_file_is_read(tmp_path):
    truth = truth_of((0, 3), (STUFF, 2), semantic=[(4, 3), (1, 2)])
    np.savez(tmp_path / "gt.npz", points=truth.points, instance=truth.instance)
    assert read_ground_truth(tmp_path / "gt.npz").semantic is None
    np.savez(
        tmp_path / "gt.npz",
        points=truth.points,
        instance=truth.instance,
        semantic=truth.semantic,
    )
    back = read_ground_truth(tmp_path / "gt.npz")
    assert np.array_equal(back.points, truth.points)
    assert back.instance.tolist() == [0, 0, 0, -2, -2] and back.semantic.tolist() == [4, 4, 4, 1, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"points": np.zeros((5, 2), np.float32)},
        {"points": np.zeros((5, 3))},
        {"points": np.float32(1)},
        {"points": np.full((5, 3), np.nan, np.float32)},
        {"points": np.zeros((0, 3), np.float32), "instance": np.zeros(0, np.int32)},
        {"instance": np.zeros(4, np.int32)},
        {"instance": np.zeros(5)},
        {"instance": np.full(5, -3, np.int32)},
        {"semantic": np.zeros((5, 1), np.int32)},
    ],
)
def test_a_truth_of_a_wrong_shape_is_an_input_error(tmp_path, wrong):
    good = {"points": np.zeros((5, 3), np.float32), "instance": np.zeros(5, np.int32)}
    np.savez(tmp_path / "gt.npz", **(good | wrong))
    with pytest.raises(InputError, match=r"gt\.npz"):
        read_ground_truth(tmp_path / "gt.npz")


def test_a_missing_or_damaged_truth_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_ground_truth(tmp_path / "gt.npz")
    (tmp_path / "gt.npz").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"gt\.npz"):
        read_ground_truth(tmp_path / "gt.npz")
    np.savez(tmp_path / "gt.npz", points=np.zeros((5, 3), np.float32))
    with pytest.raises(InputError, match="instance"):
        read_ground_truth(tmp_path / "gt.npz")
