"""Minimum cuts against all cuts of small graphs, tried one by one."""

from itertools import product

import numpy as np
import pytest

from training.graph_cut import min_cut


def cost(on_source_side, to_source, to_sink, pairs, weights):
    side = np.array(on_source_side, bool)
    parted = side[pairs[:, 0]] != side[pairs[:, 1]]
    return to_source[~side].sum() + to_sink[side].sum() + weights[parted].sum()


@pytest.mark.parametrize("seed", range(12))
def test_no_other_cut_is_cheaper(seed):
    random = np.random.default_rng(seed)
    count = 7
    to_source, to_sink = random.exponential(size=(2, count))
    pairs = np.argwhere(np.triu(random.random((count, count)) < 0.5, 1))
    weights = random.exponential(0.5, len(pairs))
    graph = to_source, to_sink, pairs, weights
    least = min(cost(side, *graph) for side in product([0, 1], repeat=count))
    assert cost(min_cut(*graph), *graph) == pytest.approx(least)


def test_a_strong_tie_overrules_a_weak_preference():
    to_source, to_sink = np.array([5.0, 0.0]), np.array([0.0, 1.0])
    pairs = np.array([[0, 1]])
    np.testing.assert_array_equal(min_cut(to_source, to_sink, pairs, np.array([2.0])), [1, 1])
    np.testing.assert_array_equal(min_cut(to_source, to_sink, pairs, np.array([0.5])), [1, 0])


def test_of_equal_cuts_the_smallest_side_of_the_source_is_taken():
    # A chain whose links cost the same: it can be cut anywhere.
    to_source, to_sink = np.array([9.0, 0, 0, 0]), np.array([0.0, 0, 0, 9])
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    np.testing.assert_array_equal(min_cut(to_source, to_sink, pairs, np.ones(3)), [1, 0, 0, 0])


def test_repeated_pairs_add_up():
    to_source, to_sink = np.array([5.0, 0.0]), np.array([0.0, 1.0])
    pairs = np.array([[0, 1], [1, 0]])
    np.testing.assert_array_equal(min_cut(to_source, to_sink, pairs, np.full(2, 0.6)), [1, 1])


def test_scale_does_not_matter_and_large_graphs_do_not_overflow():
    random = np.random.default_rng(0)
    count = 3000
    pairs = np.stack([np.arange(count - 1), np.arange(1, count)], axis=1)
    to_source, to_sink = random.random((2, count))
    weights = random.random(count - 1)
    small = min_cut(to_source, to_sink, pairs, weights)
    np.testing.assert_array_equal(
        small, min_cut(1e9 * to_source, 1e9 * to_sink, pairs, 1e9 * weights)
    )
    assert 0 < small.sum() < count


def test_no_nodes_no_pairs_and_no_costs():
    nothing = np.zeros((0, 2), int), np.zeros(0)
    assert min_cut(np.zeros(0), np.zeros(0), *nothing).shape == (0,)
    np.testing.assert_array_equal(min_cut(np.array([1.0, 0]), np.array([0, 1.0]), *nothing), [1, 0])
    np.testing.assert_array_equal(min_cut(np.zeros(2), np.zeros(2), *nothing), [0, 0])
