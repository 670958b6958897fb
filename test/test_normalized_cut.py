"""The cut solver against scipy's dense generalised eigensolver; masked cuts of known blocks."""

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse

from unscene_ros.normalized_cut import (
    NormalizedCutConfig,
    connected_parts,
    cut_graph,
    masked_cuts,
)

CONFIG = NormalizedCutConfig()


def block_graph(sizes, inside=0.9, between=0.0, seed=0, dtype=np.float32):
    """Dense random blocks: edges drawn with probability `inside` and `between`, symmetric."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(sizes)), sizes)
    probability = np.where(label[:, None] == label, inside, between)
    upper = np.triu(rng.random(probability.shape) < probability, 1)
    return (upper | upper.T).astype(dtype), label


def chain(count):
    return np.stack([np.arange(count - 1), np.arange(1, count)], axis=1).astype(np.int32)


def naive_cut(edges, background):
    """Second smallest eigenpair of (D - W) x = cost D x, by the textbook."""
    weights = background + (1 - background) * edges.astype(np.float64)
    degrees = np.diag(weights.sum(axis=1))
    values, vectors = scipy.linalg.eigh(degrees - weights, degrees, subset_by_index=[1, 1])
    return values[0], vectors[:, 0]


@pytest.mark.parametrize("solver", ["lanczos", "dense"])
@pytest.mark.parametrize("sizes", [(80, 120), (150, 60, 90), (10, 15)])
@pytest.mark.parametrize("as_sparse", [False, True])
def test_agrees_with_the_dense_generalised_eigensolver(solver, sizes, as_sparse):
    edges, _ = block_graph(sizes, inside=0.6, between=0.03)
    cost, vector = naive_cut(edges, CONFIG.background)
    given = scipy.sparse.csr_array(edges) if as_sparse else edges
    cut = cut_graph(given, NormalizedCutConfig(solver=solver))
    alike = abs(cut.vector @ vector) / np.linalg.norm(cut.vector) / np.linalg.norm(vector)
    assert cut.cost == pytest.approx(cost, abs=1e-5)
    assert alike == pytest.approx(1, abs=1e-4)
    expected = vector > vector.mean()
    same = (cut.foreground == expected).all() or (cut.foreground == ~expected).all()
    assert same


def test_two_separate_blocks_are_cut_at_almost_no_cost():
    edges, label = block_graph((70, 130))
    cut = cut_graph(edges, CONFIG)
    assert cut.cost < 1e-3
    assert len(set(zip(label, cut.foreground, strict=True))) == 2


def test_the_same_graph_gives_the_same_cut_every_time():
    edges, _ = block_graph((100, 100), between=0.02)
    first, second = cut_graph(edges, CONFIG), cut_graph(edges, CONFIG)
    np.testing.assert_array_equal(first.vector, second.vector)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_graph_of_fewer_than_three_nodes_is_not_cut(count):
    assert cut_graph(np.zeros((count, count), np.float32), CONFIG) is None


@pytest.mark.parametrize("own_weight", [1, 0])
def test_a_complete_graph_is_not_cut(own_weight):
    edges = np.ones((200, 200), np.float32)
    np.fill_diagonal(edges, own_weight)
    assert cut_graph(edges, CONFIG) is None
    assert cut_graph(scipy.sparse.csr_array(edges), CONFIG) is None
    edges[3, 5] = edges[5, 3] = 0
    assert cut_graph(scipy.sparse.csr_array(edges), CONFIG) is not None


@pytest.mark.parametrize("count", [3, 19, 200])
def test_a_graph_without_edges_is_not_cut(count):
    assert cut_graph(np.eye(count, dtype=np.float32), CONFIG) is None
    assert cut_graph(scipy.sparse.eye_array(count, format="csr", dtype=np.float32), CONFIG) is None


@pytest.mark.parametrize("solver", ["lanczos", "dense"])
def test_many_blocks_that_are_alike_are_cut_at_no_cost(solver):
    # 19 equal eigenvalues; the two edges keep it from being a graph without edges.
    edges = np.eye(20, dtype=np.float32)
    edges[0, 1] = edges[1, 0] = 1
    cut = cut_graph(scipy.sparse.csr_array(edges), NormalizedCutConfig(solver=solver))
    assert cut.cost < 1e-3
    assert cut.foreground[0] == cut.foreground[1]


def test_masked_cuts_find_each_block_once_and_never_a_deleted_node_again():
    edges, label = block_graph((60, 80, 100, 40), between=0.002, seed=3)
    neighbors = chain(len(label))
    masks, costs = masked_cuts(edges, neighbors, np.ones(len(label)), CONFIG)
    assert masks.sum(axis=0).max() == 1
    assert (costs <= CONFIG.max_cost).all()
    found = [set(label[mask]) for mask in masks]
    assert all(len(blocks) == 1 for blocks in found)
    assert len(found) >= 3


def test_the_larger_side_is_taken_for_background():
    edges, label = block_graph((30, 270))
    masks, _ = masked_cuts(edges, chain(300), np.ones(300), CONFIG)
    assert (masks[0] == (label == 0)).all()


def test_sizes_decide_what_background_is_not_the_number_of_nodes():
    edges, label = block_graph((30, 270))
    sizes = np.where(label == 0, 1000, 1)
    masks, _ = masked_cuts(edges, chain(300), sizes, CONFIG)
    assert (masks[0] == (label == 1)).all()


def test_a_foreground_of_two_places_becomes_two_masks():
    edges, label = block_graph((40, 40, 160))
    edges[:40, 40:80] = edges[40:80, :40] = 1  # alike, but not touching
    touching = chain(240)
    touching = touching[(label[touching[:, 0]] == label[touching[:, 1]])]
    masks, _ = masked_cuts(edges, touching, np.ones(240), CONFIG)
    assert [set(label[mask]) for mask in masks[:2]] == [{0}, {1}]


def test_no_cut_dearer_than_the_bound_is_made():
    edges, _ = block_graph((100, 100), inside=0.5, between=0.45)
    masks, costs = masked_cuts(edges, chain(200), np.ones(200), NormalizedCutConfig(max_cost=0.1))
    assert masks.shape == (0, 200)
    assert costs.shape == (0,)


def test_connected_parts_of_a_broken_chain():
    parts = connected_parts(np.array([0, 1, 3, 4]), chain(6), 6)
    assert [list(np.flatnonzero(part)) for part in parts] == [[0, 1], [3, 4]]


def test_connected_parts_of_nothing():
    assert connected_parts(np.zeros(0, int), chain(3), 3) == []
