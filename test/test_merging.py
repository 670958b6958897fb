"""Merge trees: chains made by hand, and a naive twin that compares all pairs at every step."""

import numpy as np
import pytest

from unscene_ros.contrast import Contrasts
from unscene_ros.merging import merge_segments


def contrasts_of(edges):
    """Contrasts from (first, second, value) or (first, second, value, contacts)."""
    rows = [(*edge, 1)[:4] for edge in edges]
    pairs = np.array([row[:2] for row in rows], np.int32).reshape(-1, 2)
    return Contrasts(
        pairs,
        np.array([row[2] for row in rows], np.float64),
        np.array([row[3] for row in rows], np.int64),
    )


def random_graph(seed, count=30, edge_share=0.15):
    """Random contrasts, some negative, with random numbers of contacts, and what is movable."""
    random = np.random.default_rng(seed)
    edges = [
        (a, b, random.normal(0.7, 0.5), random.integers(1, 40))
        for a in range(count)
        for b in range(a + 1, count)
        if random.random() < edge_share
    ]
    return contrasts_of(edges), random.random(count) < 0.85


def naive_nodes(contrasts, movable):
    """{members: (born, swallowed)} of all clusters, always joining the least average contrast."""
    edges = list(zip(contrasts.pairs.tolist(), contrasts.values, contrasts.contacts, strict=True))
    alive = {frozenset([s]): 0.0 for s in range(len(movable))}
    nodes = {cluster: [0.0, np.inf] for cluster in alive}
    while True:
        best = None
        for first in alive:
            for second in alive:
                between = [
                    (value, contact)
                    for (a, b), value, contact in edges
                    if movable[a] and movable[b]
                    if (a in first and b in second) or (b in first and a in second)
                ]
                if first != second and between:
                    value = sum(v * c for v, c in between) / sum(c for _, c in between)
                    if best is None or value < best[0]:
                        best = (value, first, second)
        if best is None:
            return {cluster: tuple(levels) for cluster, levels in nodes.items()}
        value, first, second = best
        level = max(value, alive.pop(first), alive.pop(second))
        nodes[first][1] = nodes[second][1] = alive[first | second] = level
        nodes[first | second] = [level, np.inf]


def members_of(tree, segment_count):
    """The segments of every node as frozensets."""
    masks = tree.masks(np.arange(len(tree.born)), segment_count)
    return [frozenset(np.flatnonzero(mask).tolist()) for mask in masks]


def partition_at(tree, level, segment_count):
    """(K, S) masks of the nodes that are there at a contrast."""
    nodes = np.flatnonzero((tree.born <= level) & (level < tree.swallowed))
    return tree.masks(nodes, segment_count)


@pytest.mark.parametrize("seed", range(6))
def test_every_node_is_that_of_the_naive_twin(seed):
    contrasts, movable = random_graph(seed, count=14, edge_share=0.3)
    tree = merge_segments(contrasts, movable)
    expected = naive_nodes(contrasts, movable)
    found = members_of(tree, len(movable))
    assert len(found) == len(set(found)) == len(expected)
    for members, born, swallowed in zip(found, tree.born, tree.swallowed, strict=True):
        assert (born, swallowed) == pytest.approx(expected[members], abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_nodes_at_every_level_are_a_partition_that_grows_coarser(seed):
    contrasts, movable = random_graph(seed)
    tree = merge_segments(contrasts, movable)
    finer = np.inf
    for level in np.linspace(0, 2, 9):
        masks = partition_at(tree, level, len(movable))
        assert (masks.sum(axis=0) == 1).all()
        assert len(masks) <= finer
        finer = len(masks)
    assert len(masks) < len(movable) / 2


def test_a_chain_merges_its_weakest_link_first():
    tree = merge_segments(contrasts_of([(0, 1, 0.4), (1, 2, 0.1), (2, 3, 0.9)]), np.ones(4, bool))
    assert members_of(tree, 4)[4:] == [{1, 2}, {0, 1, 2}, {0, 1, 2, 3}]
    assert tree.born.tolist() == [0, 0, 0, 0, 0.1, 0.4, 0.9]
    assert tree.swallowed.tolist() == [0.4, 0.1, 0.1, 0.9, 0.4, 0.9, np.inf]


def test_contrasts_are_averaged_over_the_contact():
    # 0 and 1 merge; towards 2 they have 0.2 over 30 edges and 1.0 over 10: (6 + 10) / 40.
    edges = [(0, 1, 0.1, 5), (0, 2, 0.2, 30), (1, 2, 1.0, 10)]
    tree = merge_segments(contrasts_of(edges), np.ones(3, bool))
    assert tree.born[3:] == pytest.approx([0.1, 0.4])


@pytest.mark.parametrize("seed", range(3))
def test_a_node_appears_when_its_children_are_swallowed_and_never_before_them(seed):
    contrasts, movable = random_graph(seed)
    tree = merge_segments(contrasts, movable)
    joined = np.arange(len(movable), len(tree.born))
    children = tree.children[joined]
    assert len(joined) > 10
    assert (tree.swallowed[children] == tree.born[joined, None]).all()
    assert (tree.born[children] <= tree.born[joined, None]).all()


def test_convex_creases_merge_at_level_zero_in_order():
    tree = merge_segments(contrasts_of([(0, 1, -0.2), (1, 2, -0.7)]), np.ones(3, bool))
    assert members_of(tree, 3)[3:] == [{1, 2}, {0, 1, 2}]
    assert tree.born.tolist() == [0] * 5


@pytest.mark.parametrize("seed", range(3))
def test_what_cannot_move_is_never_merged(seed):
    contrasts, movable = random_graph(seed)
    assert not movable.all()
    tree = merge_segments(contrasts, movable)
    fixed = set(np.flatnonzero(~movable).tolist())
    assert all(not members & fixed for members in members_of(tree, len(movable))[len(movable) :])
    assert np.isinf(tree.swallowed[: len(movable)][~movable]).all()


def test_a_fixed_segment_is_no_bridge():
    tree = merge_segments(contrasts_of([(0, 1, 0.1), (1, 2, 0.1)]), np.array([True, False, True]))
    assert len(tree.born) == 3


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_those_of_the_masks(seed):
    contrasts, movable = random_graph(seed)
    tree = merge_segments(contrasts, movable)
    values = np.random.default_rng(seed).random(len(movable))
    masks = tree.masks(np.arange(len(tree.born)), len(movable))
    np.testing.assert_allclose(tree.sums(values), masks @ values)


def test_children_come_before_their_parents_and_segments_have_none():
    contrasts, movable = random_graph(1)
    tree = merge_segments(contrasts, movable)
    count = len(movable)
    assert (tree.children[:count] == -1).all()
    parents = np.arange(count, len(tree.born))
    assert (tree.children[count:] < parents[:, None]).all() and (tree.children[count:] >= 0).all()


def test_the_same_graph_gives_the_same_tree_also_with_ties():
    edges = [(a, a + 1, 0.5) for a in range(9)]
    first, second = (merge_segments(contrasts_of(edges), np.ones(10, bool)) for _ in range(2))
    np.testing.assert_array_equal(first.children, second.children)
    assert members_of(first, 10)[-1] == set(range(10))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_segments_without_contacts_stay_alone(count):
    tree = merge_segments(contrasts_of([]), np.ones(count, bool))
    assert tree.children.shape == (count, 2)
    assert tree.sums(np.ones(count)).tolist() == [1.0] * count
    assert tree.masks(np.arange(count), count).tolist() == np.eye(count, dtype=bool).tolist()
    assert tree.masks(np.zeros(0, int), count).shape == (0, count)
