"""Masked cuts of scenes whose objects are known: blocks of alike segments, in both variants."""

from dataclasses import replace

import numpy as np
import pytest
from planted_segments import (
    as_sets,
    block_features,
    blocks_of,
    both,
    chain,
    features_of,
    huddled,
    permuted,
    tiled_graph,
)

from training.unscene3d import masked_cuts as masked_cuts_module
from training.unscene3d.affinity import AffinityConfig
from training.unscene3d.masked_cuts import (
    PAPER_CUTS,
    PAPER_CUTS_3D,
    MaskedCutsConfig,
    _foreground,
    _separated,
    masked_cut_masks,
)
from training.unscene3d.segment_graph import MaskLimits
from unscene_ros.normalized_cut import Cut, NormalizedCutConfig
from unscene_ros.scene import InputError

NO_LIMITS = MaskLimits(min_area_m2=0.0, max_length_m=1000.0, max_scene_share=1000.0)
SIZES = (9, 20, 11, 16, 30)
DEFAULT = MaskedCutsConfig(limits=NO_LIMITS)
PAPER = replace(PAPER_CUTS, limits=replace(NO_LIMITS, min_segments=8))
VARIANTS = pytest.mark.parametrize("config", [DEFAULT, PAPER], ids=["default", "paper"])


def labels_of(sizes):
    return np.repeat(np.arange(len(sizes)), sizes)


def cut(sizes, config, looks=None, **graph):
    """Masks and scores of things of these numbers of segments in a row, each of its own looks."""
    labels = labels_of(sizes) if looks is None else np.repeat(looks, sizes)
    scene = tiled_graph(len(labels), **({"neighbors": huddled(sizes)} | graph))
    return masked_cut_masks(both(block_features(labels)), scene, config)


@pytest.mark.parametrize("sizes", [(10, 14), (9, 20, 11, 16), (8,) * 9])
def test_each_block_of_alike_neighbours_is_a_mask(sizes):
    masks, _ = cut(sizes, DEFAULT)
    assert len(masks) == len(sizes)
    assert as_sets(masks) == blocks_of(labels_of(sizes))


def test_the_paper_cuts_off_block_after_block_until_hardly_anything_is_left():
    masks, _ = cut(SIZES, PAPER)
    # One block is the background of all cuts: a complete graph has no cut.
    assert as_sets(masks) < blocks_of(labels_of(SIZES))
    assert len(masks) == len(SIZES) - 1


@VARIANTS
@pytest.mark.parametrize("seed", range(4))
def test_what_was_painted_never_comes_again(config, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, 80)
    features = both(block_features(labels, noise=0.8, seed=seed))
    pairs = np.argwhere(np.triu(random.random((80, 80)) < 0.1, 1))
    soft = replace(config, edges="soft", min_affinity=0.3, cut=NormalizedCutConfig(max_cost=1.0))
    limits = replace(soft.limits, min_segments=1)
    masks, _ = masked_cut_masks(features, tiled_graph(80, pairs), replace(soft, limits=limits))
    assert len(masks) > 3
    assert masks.sum(axis=0).max() == 1
    assert masks.any(axis=1).all()


def test_masks_that_are_too_small_are_painted_as_well():
    every = replace(PAPER, limits=replace(PAPER.limits, min_segments=1))
    large = replace(PAPER, limits=replace(PAPER.limits, min_segments=15))
    found = as_sets(cut(SIZES, every)[0])
    assert as_sets(cut(SIZES, large)[0]) == {mask for mask in found if len(mask) >= 15}


@pytest.mark.parametrize("max_cuts", [1, 2, 3])
def test_there_are_no_more_cuts_than_asked_for(max_cuts):
    config = replace(PAPER, cut=replace(PAPER.cut, max_cuts=max_cuts))
    assert len(cut(SIZES, config)[0]) == max_cuts


def test_blocks_that_look_alike_but_do_not_touch_are_two_masks():
    masks, _ = cut((10,) * 4, DEFAULT, looks=[0, 1, 0, 2])
    assert as_sets(masks) == blocks_of(labels_of((10,) * 4))


def test_the_paper_takes_one_of_alike_things_that_do_not_touch_at_a_time():
    sizes = (10, 30, 12, 40)
    masks, _ = cut(sizes, PAPER, looks=[0, 1, 0, 2])
    assert as_sets(masks) < blocks_of(labels_of(sizes))
    assert {len(mask) for mask in as_sets(masks)} >= {10, 12}


def test_without_separation_alike_things_are_one_mask():
    masks, _ = cut((10, 40, 12), replace(PAPER, separation="none"), looks=[0, 1, 0])
    assert as_sets(masks) == {frozenset([*range(10), *range(50, 62)])}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("all", [{0, 1}, {3, 4, 5}, {7}]),
        ("max", [{0, 1}]),
        ("avg", [{7}]),
        ("largest", [{3, 4, 5}]),
        ("none", [{0, 1, 3, 4, 5, 7}]),
    ],
)
def test_separation_modes_on_a_foreground_of_three_parts(mode, expected):
    strength = np.array([0.9, 0.1, -1, 0.3, 0.3, 0.3, -1, 0.8])
    areas = np.array([1, 1, 9, 2, 2, 2, 9, 3.0])
    nodes = np.array([0, 1, 3, 4, 5, 7])
    masks = _separated(nodes, strength, chain(8), areas, mode)
    assert [set(np.flatnonzero(mask).tolist()) for mask in masks] == expected


@pytest.mark.parametrize(
    ("flip_by", "flip_share", "flips"),
    [("segments", 0.5, True), ("segments", 0.8, False), ("area", 0.5, False), ("area", 0.05, True)],
)
def test_a_foreground_above_its_share_is_the_background(flip_by, flip_share, flips):
    foreground = np.array([True, True, True, False])
    vector = np.array([0.3, 0.2, 0.1, -0.5])
    areas = np.array([1, 1, 1, 9.0])
    config = replace(DEFAULT, flip_by=flip_by, cut=NormalizedCutConfig(flip_share=flip_share))
    side, strength = _foreground(Cut(vector, foreground, 0.1), areas, config)
    np.testing.assert_array_equal(side, ~foreground if flips else foreground)
    assert side[np.argmax(strength)]


def test_what_flips_decides_which_side_the_paper_takes():
    areas_m2 = np.repeat([1.0, 0.1], [10, 30])  # few large segments against many small ones
    by_count, _ = cut((10, 30), PAPER, areas_m2=areas_m2)
    by_area, _ = cut((10, 30), replace(PAPER, flip_by="area"), areas_m2=areas_m2)
    assert as_sets(by_count) == {frozenset(range(10))}
    assert as_sets(by_area) == {frozenset(range(10, 40))}


def touching_blocks():
    """Two groups of ten with one link between them, and a third of other features."""
    features = both(features_of(np.repeat([[1, 0], [-1, 0]], [20, 10], axis=0)))
    return features, tiled_graph(30, huddled((10, 10, 10)))


def test_cuts_end_where_they_become_dear():
    features, graph = touching_blocks()
    cheap = replace(DEFAULT, cut=NormalizedCutConfig(max_cost=0.1))
    dear = replace(DEFAULT, cut=NormalizedCutConfig(max_cost=1e-3))
    apart, together = (masked_cut_masks(features, graph, c)[0] for c in (cheap, dear))
    assert as_sets(apart) == blocks_of(labels_of((10, 10, 10)))
    assert as_sets(together) == blocks_of(labels_of((20, 10)))


def test_the_rest_of_the_cuts_is_a_mask_only_when_asked_for():
    features, graph = touching_blocks()
    config = replace(DEFAULT, keep_rest=False, cut=NormalizedCutConfig(max_cost=0.1))
    masks, _ = masked_cut_masks(features, graph, config)
    assert len(masks) == 1
    assert as_sets(masks) < blocks_of(labels_of((10, 10)))


def test_soft_edges_are_cut_where_they_are_weak():
    # All are tied to all, across less: binary edges are a complete graph, which has no cut.
    values = np.repeat([[1, 0], [0.6, 0.8]], 10, axis=0)
    values = np.concatenate([values, [[-1, 0]]])
    pairs = np.argwhere(np.triu(np.ones((20, 20), bool), 1))
    graph, features = tiled_graph(21, pairs), both(features_of(values))
    config = replace(DEFAULT, min_affinity=0.3, cut=NormalizedCutConfig(max_cost=0.95))
    binary, _ = masked_cut_masks(features, graph, config)
    soft, _ = masked_cut_masks(features, graph, replace(config, edges="soft"))
    assert frozenset(range(20)) in as_sets(binary)
    assert {frozenset(range(10)), frozenset(range(10, 20))} <= as_sets(soft)


@VARIANTS
def test_each_modality_parts_what_the_other_does_not(config):
    looks, forms = labels_of((12, 48)), labels_of((32, 28))
    features = {"2d": block_features(looks), "3d": block_features(forms)}
    graph = tiled_graph(60, huddled((60,)))
    thirds = blocks_of(labels_of((12, 20, 28)))
    masks, _ = masked_cut_masks(features, graph, config)
    assert as_sets(masks) <= thirds
    assert len(masks) >= 2
    for modality, labels in (("2d", looks), ("3d", forms)):
        alone = replace(config, affinity=AffinityConfig(modality))
        masks, _ = masked_cut_masks(features, graph, alone)
        assert as_sets(masks) <= blocks_of(labels)
        assert len(masks) >= 1


@VARIANTS
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_segments_does_not_matter(config, seed):
    features = both(block_features(labels_of(SIZES), noise=0.2))
    graph = tiled_graph(sum(SIZES), huddled(SIZES))
    order = np.random.default_rng(seed).permutation(sum(SIZES))
    masks, scores = masked_cut_masks(features, graph, config)
    shuffled, shuffled_scores = masked_cut_masks(*permuted(features, graph, order), config)
    back = np.zeros_like(shuffled)
    back[:, order] = shuffled
    assert as_sets(back) == as_sets(masks)
    np.testing.assert_allclose(shuffled_scores, scores, atol=1e-4)


@VARIANTS
def test_fixed_segments_are_in_no_mask(config):
    movable = labels_of((12, 20, 30)) != 1
    masks, _ = cut((12, 20, 30), config, movable=movable)
    assert len(masks) >= 1
    assert not masks[:, ~movable].any()


@VARIANTS
@pytest.mark.parametrize("count", [0, 1, 2, 3, 40])
def test_features_that_are_all_zero_are_no_error(config, count):
    graph = tiled_graph(count, huddled((count,)))
    masks, scores = masked_cut_masks(both(features_of(np.zeros((count, 4)))), graph, config)
    assert masks.shape == (len(scores), count)
    assert np.isfinite(scores).all()
    # Nothing is known to differ: what hangs together is one thing, and a complete graph has no cut.
    assert len(masks) == (config is DEFAULT and count > 0)


@VARIANTS
def test_some_features_that_are_zero_are_no_error(config):
    values = block_features(labels_of((20, 20, 20))).values.copy()
    values[[3, 25, 59]] = 0
    graph = tiled_graph(60, huddled((20, 20, 20)))
    masks, scores = masked_cut_masks(both(features_of(values)), graph, config)
    assert len(masks) >= 2
    assert np.isfinite(scores).all()


def test_scores_fall_and_stay_within_zero_and_one():
    random = np.random.default_rng(0)
    features = both(features_of(random.standard_normal((90, 6))))
    pairs = np.argwhere(np.triu(random.random((90, 90)) < 0.15, 1))
    config = replace(DEFAULT, min_affinity=0.5, edges="soft", cut=NormalizedCutConfig(max_cost=0.6))
    masks, scores = masked_cut_masks(features, tiled_graph(90, pairs), config)
    assert len(masks) >= 5
    assert (np.diff(scores) <= 0).all()
    assert (scores >= 0).all() and (scores <= 1).all()
    assert scores.dtype == np.float32


def test_of_two_masks_the_strip_scores_less_than_the_square():
    masks, scores = cut((36, 6), DEFAULT)  # six rows of six, and a seventh on its own
    assert masks[0].sum() == 36
    assert scores[1] < 0.5 * scores[0]


def test_masks_below_the_least_area_are_left_out():
    config = replace(DEFAULT, limits=replace(NO_LIMITS, min_area_m2=0.3))
    masks, _ = cut((3, 12, 12), config)
    assert as_sets(masks) == blocks_of(labels_of((3, 12, 12))) - {frozenset(range(3))}


def test_the_paper_settings_are_those_of_the_paper():
    assert (PAPER_CUTS.min_affinity, PAPER_CUTS_3D.min_affinity) == (0.65, 0.55)
    assert PAPER_CUTS_3D.affinity.modality == "3d"
    assert (PAPER_CUTS.limits.min_segments, PAPER_CUTS.cut.max_cuts) == (8, 20)
    assert (PAPER_CUTS.separation, PAPER_CUTS.cut.background) == ("max", 1e-5)


def test_features_of_other_segments_are_refused():
    with pytest.raises(InputError, match="expected features of 5 segments, got 4"):
        masked_cut_masks(both(block_features([0, 0, 1, 1])), tiled_graph(5), DEFAULT)


def test_too_many_segments_for_all_pairs_are_refused_before_memory_runs_out(monkeypatch):
    monkeypatch.setattr(masked_cuts_module, "_MOST_SEGMENTS", 10)
    with pytest.raises(InputError, match="at most 10 segments, got 11"):
        cut((5, 6), PAPER)
    assert len(cut((5, 6), DEFAULT)[0]) == 2


def test_an_affinity_beyond_one_is_refused():
    with pytest.raises(InputError, match="min_affinity"):
        MaskedCutsConfig(min_affinity=1.2)
