"""Hypotheses from small trees and graphs made by hand; naive twins of thinning and partition."""

from itertools import product

import numpy as np
import pytest
from box_world import Box, moved, surface_of

from unscene_ros.contrast import Contrasts
from unscene_ros.hypotheses import (
    Hypotheses,
    _best_partition,
    best_instances,
    borders_with_others,
    cut_hypotheses,
    merge_hypotheses,
    segment_moments,
    shapes_of,
)
from unscene_ros.merging import merge_segments
from unscene_ros.normalized_cut import NormalizedCutConfig
from unscene_ros.scene import Mesh, Segments
from unscene_ros.structure import vertex_areas

CUT = NormalizedCutConfig(max_cost=0.3)
SHARPNESS = 5.0
NO_LIMITS = {  # of best_instances
    "min_area_m2": 0.0,
    "max_length_m": 1e6,
    "max_overlap": 2.0,
    "min_score": 0.0,
    "max_instances": 1000,
}


def contrasts_of(edges, contact_m=0.5):
    """Contrasts from (first, second, value), all over the same length of contact."""
    pairs = np.array([edge[:2] for edge in edges], np.int32).reshape(-1, 2)
    values = np.array([edge[2] for edge in edges], np.float64)
    return Contrasts(pairs, values, np.full(len(pairs), contact_m))


def best(hypotheses, moments, borders_m=0.0, **limits):
    """The best instances within these limits alone; borders_m (K,) or one for all."""
    borders = np.zeros(len(hypotheses.masks)) + borders_m
    return best_instances(hypotheses, moments, borders, **(NO_LIMITS | limits))


def square_moments(areas, centers=None):
    """Moments (S, 10) of level squares with these areas (S,) around these places (S, 2)."""
    areas = np.asarray(areas, np.float64)
    x, y = np.zeros((2, len(areas))) if centers is None else np.transpose(centers)
    own, zero = areas / 12, np.zeros(len(areas))
    terms = (np.ones(len(areas)), x, y, zero, x * x + own, y * y + own, zero, x * y, zero, zero)
    return np.stack(terms, axis=1) * areas[:, None]


def random_tree(seed, count=40, edge_share=0.1):
    """The merge tree of a random graph and its movable segments."""
    random = np.random.default_rng(seed)
    pairs = [(a, b) for a in range(count) for b in range(a) if random.random() < edge_share]
    contrasts = contrasts_of([(b, a, random.normal(0.9, 0.5)) for a, b in pairs])
    movable = random.random(count) < 0.8
    return merge_segments(contrasts, movable), movable


def random_merges(seed):
    """Hypotheses of a random tree, its movable segments and their moments."""
    tree, movable = random_tree(seed)
    random = np.random.default_rng(seed)
    count = len(movable)
    moments = square_moments(random.uniform(0.01, 0.3, count), random.uniform(-2, 2, (count, 2)))
    return merge_hypotheses(tree, movable, moments, 0.0), movable, moments


def random_hypotheses(seed, count=60, segment_count=25):
    random = np.random.default_rng(seed)
    masks = random.random((count, segment_count)) < random.uniform(0.1, 0.6, (count, 1))
    masks[:, 0] |= ~masks.any(axis=1)
    masks = np.concatenate([masks, masks[:20]])  # repeated ones overlap fully
    beliefs = np.where(random.random(len(masks)) < 0.3, 1, 0) + random.random(len(masks))
    return Hypotheses(masks, beliefs), random.uniform(0.01, 0.5, segment_count)


def two_blocks(between, size=6):
    """Two cliques of segments without contrast, joined by one weak link."""
    edges = [
        (start + a, start + b, 0.0)
        for start in (0, size)
        for a in range(size)
        for b in range(a + 1, size)
    ]
    return contrasts_of([*edges, (size - 1, size, between)])


def overlap(first, second, areas):
    return areas[first & second].sum() / areas[first | second].sum()


def naive_partitions(tree, node):
    """All ways to choose disjoint nodes at and below a node, as sets."""
    if tree.children[node][0] < 0:
        return [set(), {node}]
    below = [naive_partitions(tree, child) for child in tree.children[node]]
    return [{node}] + [first | second for first, second in product(*below)]


@pytest.mark.parametrize("seed", range(6))
def test_the_partition_is_the_worthiest_of_all_choices_of_disjoint_nodes(seed):
    tree, _ = random_tree(seed, count=9, edge_share=0.4)
    worth = np.random.default_rng(seed).uniform(0, 1, len(tree.born))
    worth[worth < 0.2] = 0
    worth[9:] *= 2
    chosen = set(np.flatnonzero(_best_partition(tree, worth)).tolist())
    roots = np.flatnonzero(np.isinf(tree.swallowed))
    choices = [set().union(*sets) for sets in product(*(naive_partitions(tree, r) for r in roots))]
    assert any(chosen == choice for choice in choices)
    most = max(worth[list(choice)].sum() for choice in choices)
    assert worth[list(chosen)].sum() == pytest.approx(most)
    assert (worth[list(chosen)] > 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_believed_hypotheses_are_a_partition_of_the_movable_segments(seed):
    hypotheses, movable, _ = random_merges(seed)
    partition = hypotheses.masks[hypotheses.beliefs > 1]
    assert len(partition) > 1
    np.testing.assert_array_equal(partition.sum(axis=0), movable)
    others = hypotheses.beliefs[hypotheses.beliefs <= 1]
    assert len(others) > 10 and (others >= 0).all()


def test_things_part_where_the_contrast_is_high_and_hold_where_it_is_low():
    chain = contrasts_of([(0, 1, 0.2), (1, 2, 2.5), (2, 3, 0.1)])
    tree, every = merge_segments(chain, np.ones(4, bool)), np.ones(4, bool)
    moments = square_moments([0.25] * 4, [(0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5)])
    hypotheses = merge_hypotheses(tree, every, moments, 0.0)
    partition = hypotheses.masks[hypotheses.beliefs > 1]
    assert sorted(partition.tolist()) == sorted([[1, 1, 0, 0], [0, 0, 1, 1]])


def test_belief_falls_with_the_distance_from_a_contrast_of_one():
    chain = contrasts_of([(0, 1, 0.1), (1, 2, 1.6), (2, 3, 2.8)])
    tree, every = merge_segments(chain, np.ones(4, bool)), np.ones(4, bool)
    hypotheses = merge_hypotheses(tree, every, square_moments([0.25] * 4), 0.0)
    distinct = {  # without what the partition adds
        tuple(np.flatnonzero(mask)): value - (value > 1)
        for mask, value in zip(hypotheses.masks, hypotheses.beliefs, strict=True)
    }
    # 0 and 1 join before and part after 1; all others join or part on the wrong side of it.
    assert distinct[0, 1] == distinct[2,] == distinct[3,] == 1
    assert 1 > distinct[0, 1, 2] > distinct[0, 1, 2, 3] > 0
    assert 1 > distinct[0, 1, 2] > distinct[0,] == distinct[1,] > 0


def test_only_movable_segments_with_enough_surface_are_hypotheses():
    chain = contrasts_of([(0, 1, 0.2), (1, 2, 0.2)])
    movable = np.array([True, True, False, True])
    moments = square_moments([0.03, 0.03, 9.0, 0.01])
    tree = merge_segments(chain, movable)
    hypotheses = merge_hypotheses(tree, movable, moments, 0.05)
    assert hypotheses.masks.tolist() == [[True, True, False, False]]


def test_what_is_too_long_is_left_out_and_its_pieces_do_not_take_its_place():
    # Four squares of 1 m in a row that hang together well.
    row = contrasts_of([(0, 1, 0.0), (1, 2, 0.0), (2, 3, 0.0)])
    tree, every = merge_segments(row, np.ones(4, bool)), np.ones(4, bool)
    moments = square_moments(np.ones(4), [(i, 0) for i in range(4)])
    hypotheses = merge_hypotheses(tree, every, moments, 0.0)
    assert best(hypotheses, moments, max_length_m=4.1, min_score=0.5).masks.tolist() == [[True] * 4]
    assert not len(best(hypotheses, moments, max_length_m=3.9, min_score=0.5).masks)


@pytest.mark.parametrize("seed", range(3))
def test_borders_are_those_of_a_loop_over_the_contacts(seed):
    random = np.random.default_rng(seed)
    pairs = np.array([(a, b) for b in range(12) for a in range(b) if random.random() < 0.4])
    contacts = random.uniform(0.1, 2, len(pairs))
    contrasts = Contrasts(pairs.astype(np.int32), np.zeros(len(pairs)), contacts)
    masks, movable = random.random((9, 12)) < 0.4, random.random(12) < 0.8
    masks &= movable
    expected = [
        sum(
            contact
            for (a, b), contact in zip(pairs, contacts, strict=True)
            if movable[a] and movable[b] and mask[a] != mask[b]
        )
        for mask in masks
    ]
    np.testing.assert_allclose(borders_with_others(masks, contrasts, movable), expected, atol=1e-9)
    none = borders_with_others(np.zeros((0, 12), bool), contrasts, movable)
    assert none.shape == (0,)


def test_of_two_alike_the_one_with_less_border_to_other_things_scores_higher():
    masks = np.array([[True, False], [False, True]])
    hypotheses = Hypotheses(masks, np.full(2, 2.0))
    instances = best(hypotheses, square_moments([0.5, 0.5]), np.array([1.5, 0.2]))
    assert instances.masks.tolist() == masks[::-1].tolist()


def test_a_level_square_is_as_long_as_its_side_and_has_its_area_for_a_square():
    shapes = shapes_of(square_moments([0.25, 4.0], [(3, 1), (-7, 2)]))
    np.testing.assert_allclose(shapes.areas, [0.25, 4])
    np.testing.assert_allclose(shapes.lengths, [0.5, 2], rtol=1e-6)
    np.testing.assert_allclose(shapes.fullness, [1, 1], rtol=1e-6)


def test_moments_of_segments_add_up_to_those_of_the_whole():
    # A strip of 2.4 x 0.4 m in three pieces: as long, as large and as thin as when it is one.
    strip, _ = surface_of(
        [Box((0, 0, 0), (2.4, 0.4, 0.04)), Box((0, 0, 0.04), (2.4, 0.4, 0.08), None)]
    )
    areas = vertex_areas(strip)
    piece = np.minimum(strip.vertices[:, 0] // 0.8, 2).astype(np.int32)
    none = np.zeros((0, 2), np.int32)
    pieces = segment_moments(strip, Segments(piece, none, 3), areas)
    whole = segment_moments(strip, Segments(0 * piece, none, 1), areas)
    np.testing.assert_allclose(pieces.sum(axis=0), whole[0], atol=1e-9)
    shapes = shapes_of(whole)
    assert shapes.areas == pytest.approx([2.4 * 0.4], rel=1e-4)
    assert shapes.lengths == pytest.approx([2.4], rel=0.01)
    assert shapes.fullness == pytest.approx([0.4 / 2.4], rel=0.02)


def test_shapes_do_not_depend_on_where_the_map_begins_or_how_it_is_turned():
    mesh, box_of_vertex = surface_of(
        [Box((-1, -1, -0.04), (1, 1, 0)), Box((-0.4, 0, 0), (0.4, 0.4, 1.0))]
    )
    angle = 0.7
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    segments = Segments(box_of_vertex, np.array([[0, 1]], np.int32), 2)
    here, there = (
        shapes_of(segment_moments(m, segments, vertex_areas(m)))
        for m in (mesh, moved(mesh, rotation, (80, -300, 20)))
    )
    for name in ("areas", "lengths", "fullness"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=1e-3)


def test_no_segments_have_no_shapes():
    nothing = Segments(np.zeros(0, np.int32), np.zeros((0, 2), np.int32), 0)
    moments = segment_moments(Mesh.empty(), nothing, np.zeros(0))
    assert moments.shape == (0, 10)
    assert shapes_of(moments).lengths.shape == (0,)


def test_a_cut_takes_apart_two_blocks_that_hardly_hang_together():
    hypotheses = cut_hypotheses(two_blocks(0.9), np.ones(12, bool), np.ones(12), SHARPNESS, CUT)
    blocks = np.repeat([[True, False], [False, True]], 6, axis=1).tolist()
    assert hypotheses.masks[0].tolist() in blocks
    assert 0 < hypotheses.beliefs[0] < 1


def test_the_looser_the_link_the_more_a_cut_is_believed():
    loose, tight = (
        cut_hypotheses(two_blocks(value), np.ones(12, bool), np.ones(12), SHARPNESS, CUT)
        for value in (1.5, 0.4)
    )
    assert loose.beliefs[0] > tight.beliefs[0]


def test_a_short_contact_holds_less_than_a_long_one():
    edges = two_blocks(0.3)
    beliefs = []
    for contact_m in (0.02, 0.2):
        contacts = np.where(edges.values > 0, contact_m, 2.0)
        contrasts = Contrasts(edges.pairs, edges.values, contacts)
        cuts = cut_hypotheses(contrasts, np.ones(12, bool), np.ones(12), SHARPNESS, CUT)
        beliefs.append(cuts.beliefs[0])
    assert beliefs[0] > beliefs[1]


def test_cuts_hold_no_fixed_segments_and_never_join_separate_parts():
    first, second = two_blocks(0.9), two_blocks(0.9)
    both = Contrasts(
        np.concatenate([first.pairs, second.pairs + 12]),
        np.tile(first.values, 2),
        np.tile(first.contacts, 2),
    )
    movable = np.ones(24, bool)
    movable[[2, 20]] = False
    hypotheses = cut_hypotheses(both, movable, np.ones(24), SHARPNESS, CUT)
    assert len(hypotheses.masks) >= 2
    assert not hypotheses.masks[:, ~movable].any()
    in_first = hypotheses.masks[:, :12].any(axis=1)
    assert (in_first != hypotheses.masks[:, 12:].any(axis=1)).all()
    assert in_first.any() and not in_first.all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_segments_are_not_cut(count):
    hypotheses = cut_hypotheses(
        contrasts_of([]), np.ones(count, bool), np.ones(count), SHARPNESS, CUT
    )
    assert hypotheses.masks.shape == (0, count)
    assert hypotheses.beliefs.shape == (0,)


def test_blocks_with_nothing_between_them_are_left_to_merging():
    assert not len(
        cut_hypotheses(contrasts_of([]), np.ones(9, bool), np.ones(9), SHARPNESS, CUT).masks
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_overlap", [0.0, 0.3, 0.7])
def test_thinning_keeps_what_a_greedy_loop_keeps(seed, max_overlap):
    hypotheses, areas = random_hypotheses(seed)
    moments = square_moments(areas)
    instances = best(hypotheses, moments, max_overlap=max_overlap)
    every = best(hypotheses, moments)
    assert len(every.masks) == len(hypotheses.masks)
    kept = []
    for mask, score in zip(every.masks, every.scores, strict=True):  # by falling score
        if all(overlap(mask, other, areas) <= max_overlap + 1e-5 for other, _ in kept):
            kept.append((mask, score))
    np.testing.assert_array_equal(instances.masks, [mask for mask, _ in kept])
    np.testing.assert_array_equal(instances.scores, [score for _, score in kept])
    assert len(instances.masks) < len(hypotheses.masks)


def test_overlap_is_of_surface_not_of_numbers_of_segments():
    # They share one segment of three, which has nearly all of the surface, or hardly any.
    masks = np.array([[True, True, False], [False, True, True]])
    hypotheses = Hypotheses(masks, np.array([2.0, 0.9]))
    counts = [
        len(best(hypotheses, square_moments(areas), max_overlap=0.5).masks)
        for areas in ([0.1, 8.0, 0.1], [1.0, 0.1, 1.0])
    ]
    assert counts == [1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_scores_fall_and_part_the_partition_from_its_alternatives(seed):
    hypotheses, areas = random_hypotheses(seed)
    instances = best(hypotheses, square_moments(areas))
    assert (np.diff(instances.scores) <= 0).all()
    assert (instances.scores >= 0).all() and (instances.scores <= 1).all()
    believed = {mask.tobytes() for mask in hypotheses.masks[hypotheses.beliefs > 1]}
    sure = {mask.tobytes() for mask in instances.masks[instances.scores >= 0.5]}
    assert sure == believed
    assert (instances.class_ids == -1).all()


@pytest.mark.parametrize("seed", range(3))
def test_sure_instances_of_merging_do_not_overlap(seed):
    hypotheses, movable, moments = random_merges(seed)
    instances = best(hypotheses, moments, max_overlap=0.5, min_score=0.5)
    np.testing.assert_array_equal(instances.masks.sum(axis=0), movable)


def test_of_two_equally_believed_the_larger_scores_higher():
    masks = np.array([[True, False], [False, True]])
    hypotheses = Hypotheses(masks, np.full(2, 2.0))
    instances = best(hypotheses, square_moments([0.1, 2.0]))
    assert instances.masks.tolist() == masks[::-1].tolist()


def test_of_two_equally_large_the_compact_one_scores_higher():
    # Two squares of 1 m next to each other, or the same two 5 m apart.
    moments = square_moments([1.0] * 4, [(0, 0), (5, 0), (0, 0), (1, 0)])
    masks = np.array([[True, True, False, False], [False, False, True, True]])
    instances = best(Hypotheses(masks, np.full(2, 2.0)), moments)
    assert instances.masks.tolist() == masks[::-1].tolist()


def test_little_surface_low_scores_and_all_beyond_the_number_wanted_are_left_out():
    hypotheses, areas = random_hypotheses(0)
    moments = square_moments(areas)
    every = best(hypotheses, moments)
    few = best(hypotheses, moments, max_instances=5)
    np.testing.assert_array_equal(few.masks, every.masks[:5])
    good = best(hypotheses, moments, min_score=0.4)
    np.testing.assert_array_equal(good.scores, every.scores[every.scores >= 0.4])
    large = best(hypotheses, moments, min_area_m2=2.0)
    np.testing.assert_array_equal(large.masks, every.masks[every.masks @ areas >= 2.0])
    assert 0 < len(good.masks) < len(every.masks) and 0 < len(large.masks) < len(every.masks)


@pytest.mark.parametrize("segment_count", [0, 4])
def test_no_hypotheses_give_no_instances(segment_count):
    nothing = Hypotheses(np.zeros((0, segment_count), bool), np.zeros(0))
    instances = best(nothing, square_moments(np.ones(segment_count)))
    assert instances.masks.shape == (0, segment_count)
    assert instances.scores.shape == instances.class_ids.shape == (0,)


def test_no_segments_give_no_hypotheses():
    nothing = np.zeros(0, bool)
    tree = merge_segments(contrasts_of([]), nothing)
    assert merge_hypotheses(tree, nothing, square_moments([]), 0.1).masks.shape == (0, 0)


def test_joining_keeps_masks_with_their_beliefs():
    first = Hypotheses(np.array([[True, False]]), np.array([0.1]))
    second = Hypotheses(np.array([[False, True], [True, True]]), np.array([0.2, 0.3]))
    both = first.joined(second)
    assert both.masks.tolist() == [[True, False], [False, True], [True, True]]
    assert both.beliefs.tolist() == [0.1, 0.2, 0.3]
