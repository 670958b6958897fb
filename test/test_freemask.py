"""FreeMask on blocks of alike segments; naive twins of anchor sampling and of matrix NMS."""

from dataclasses import replace

import numpy as np
import pytest
from planted_segments import (
    as_sets,
    block_features,
    blocks_of,
    both,
    features_of,
    huddled,
    permuted,
    tiled_graph,
)

from training.unscene3d.affinity import Affinity, AffinityConfig
from training.unscene3d.freemask import (
    PAPER_FREEMASK,
    FreeMaskConfig,
    farthest_segments,
    freemask_masks,
    matrix_nms,
)
from training.unscene3d.segment_graph import MaskLimits
from unscene_ros.scene import InputError

NO_LIMITS = MaskLimits(min_area_m2=0.0, max_length_m=1000.0, max_scene_share=1000.0)
CONFIG = FreeMaskConfig(limits=NO_LIMITS)
SIZES = (9, 20, 11, 16)


def labels_of(sizes, looks=None):
    return np.repeat(np.arange(len(sizes)) if looks is None else looks, sizes)


def found(sizes, config, looks=None, **graph):
    features = both(block_features(labels_of(sizes, looks)))
    scene = tiled_graph(sum(sizes), **({"neighbors": huddled(sizes)} | graph))
    return freemask_masks(features, scene, config)


@pytest.mark.parametrize("seed", range(3))
def test_each_block_of_alike_segments_is_found_once(seed):
    masks, scores = found(SIZES, replace(CONFIG, seed=seed))
    assert len(masks) == len(SIZES)
    assert as_sets(masks) == blocks_of(labels_of(SIZES))
    assert (np.diff(scores) <= 0).all() and (scores > 0).all() and (scores <= 1).all()


@pytest.mark.parametrize("connected", [True, False])
def test_alike_things_that_do_not_touch_are_parted_only_when_asked_for(connected):
    masks, _ = found((10, 20, 12), replace(CONFIG, connected=connected), looks=[0, 1, 0])
    together = frozenset([*range(10), *range(30, 42)])
    assert (together in as_sets(masks)) != connected
    assert (frozenset(range(10)) in as_sets(masks)) == connected


def test_fixed_segments_are_in_no_mask():
    movable = labels_of(SIZES) != 1
    masks, _ = found(SIZES, CONFIG, movable=movable)
    assert as_sets(masks) == blocks_of(labels_of(SIZES)) - {frozenset(range(9, 29))}


def test_more_surface_has_more_maskness():
    masks, scores = found((6, 30), CONFIG)
    assert [int(mask.sum()) for mask in masks] == [30, 6]
    areas_m2 = np.array([30, 6]) * 0.04
    np.testing.assert_allclose(scores, areas_m2 / (areas_m2 + CONFIG.half_area_m2), atol=0.02)


def test_what_is_too_small_or_scores_too_low_is_left_out():
    large = replace(CONFIG, limits=replace(NO_LIMITS, min_segments=10))
    assert as_sets(found(SIZES, large)[0]) == blocks_of(labels_of(SIZES)) - {frozenset(range(9))}
    sure = replace(CONFIG, min_score=0.72)
    masks, scores = found(SIZES, sure)
    assert 0 < len(masks) < len(SIZES)
    assert (scores >= 0.72).all()


def test_the_order_of_the_segments_does_not_matter_when_all_are_anchors():
    features = both(block_features(labels_of(SIZES), noise=0.3))
    graph = tiled_graph(sum(SIZES), huddled(SIZES))
    order = np.random.default_rng(1).permutation(sum(SIZES))
    masks, _ = freemask_masks(features, graph, CONFIG)
    shuffled, _ = freemask_masks(*permuted(features, graph, order), CONFIG)
    back = np.zeros_like(shuffled)
    back[:, order] = shuffled
    assert as_sets(back) == as_sets(masks)


def test_the_same_seed_gives_the_same_masks_and_another_one_other_anchors():
    random = np.random.default_rng(0)
    features = both(features_of(random.standard_normal((50, 4))))
    few = replace(CONFIG, anchors=5, min_score=0.0)
    first, again, other = (
        freemask_masks(features, tiled_graph(50), replace(few, seed=seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert as_sets(other) != as_sets(first)


@pytest.mark.parametrize("config", [CONFIG, PAPER_FREEMASK], ids=["default", "paper"])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_features_that_are_all_zero_are_no_error(config, count):
    graph = tiled_graph(count, huddled((count,)))
    masks, scores = freemask_masks(both(features_of(np.zeros((count, 4)))), graph, config)
    assert masks.shape == (len(scores), count)
    assert np.isfinite(scores).all()
    assert len(masks) <= 1


def test_nothing_movable_gives_no_masks():
    masks, scores = found((3, 4), CONFIG, movable=np.zeros(7, bool))
    assert masks.shape == (0, 7)
    assert scores.shape == (0,)


def test_anchors_are_those_of_a_naive_farthest_point_sampling():
    random = np.random.default_rng(3)
    affinity = Affinity(both(features_of(random.standard_normal((40, 6)))), AffinityConfig())
    matrix = affinity.rows(np.arange(40))
    candidates = np.arange(0, 40, 2)
    anchors, likeness = farthest_segments(affinity, candidates, 8, seed=5)
    expected = [anchors[0]]
    for _ in range(7):
        nearest = [
            max(matrix[chosen, candidate] for chosen in expected) for candidate in candidates
        ]
        expected.append(candidates[int(np.argmin(nearest))])
    assert anchors.tolist() == expected
    assert len(set(expected)) == 8 and set(expected) <= set(candidates)
    np.testing.assert_allclose(likeness, matrix[anchors], atol=1e-5)


def test_anchors_end_when_all_are_alike_to_one():
    affinity = Affinity(both(block_features([0] * 5 + [1] * 5, noise=0.0)), AffinityConfig())
    anchors, _ = farthest_segments(affinity, np.arange(10), 8, seed=0)
    assert sorted(anchors // 5) == [0, 1]


def naive_matrix_nms(masks, scores, areas):
    order = sorted(range(len(scores)), key=lambda k: -scores[k])

    def iou(a, b):
        return areas[masks[a] & masks[b]].sum() / areas[masks[a] | masks[b]].sum()

    decayed = np.zeros(len(scores))
    for place, j in enumerate(order):
        decay = 1.0
        for above, i in enumerate(order[:place]):
            covered = max([iou(i, k) for k in order[:above]], default=0.0)
            if covered < 1:
                decay = min(decay, (1 - iou(i, j)) / (1 - covered))
        decayed[j] = scores[j] * decay
    return decayed


@pytest.mark.parametrize("seed", range(4))
def test_matrix_nms_is_that_of_a_naive_loop(seed):
    random = np.random.default_rng(seed)
    masks = random.random((25, 12)) < 0.5
    masks[:, 0] = True
    masks = np.concatenate([masks, masks[:5]])  # repeated ones overlap fully
    scores, areas = random.random(30), random.uniform(0.1, 2, 12)
    expected = naive_matrix_nms(masks, scores, areas)
    np.testing.assert_allclose(matrix_nms(masks, scores, areas), expected, atol=1e-9)


def test_matrix_nms_leaves_separate_masks_and_empties_repeated_ones():
    masks = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]], bool)
    scores = matrix_nms(masks, np.array([0.9, 0.5, 0.9, 0.3]), np.ones(4))
    np.testing.assert_allclose(scores, [0.9, 0.5, 0, 0], atol=1e-9)


def test_matrix_nms_of_no_masks():
    assert matrix_nms(np.zeros((0, 4), bool), np.zeros(0), np.ones(4)).shape == (0,)


def test_features_of_other_segments_are_refused():
    with pytest.raises(InputError, match="expected features of 5 segments, got 4"):
        freemask_masks(both(block_features([0, 0, 1, 1])), tiled_graph(5), CONFIG)


@pytest.mark.parametrize("field", ["anchors", "half_area_m2"])
def test_settings_without_meaning_are_refused(field):
    with pytest.raises(InputError, match=field):
        FreeMaskConfig(**{field: -1})
