"""Normalised cuts of an affinity graph: the solver, and the masked cut that takes off objects.

Shared by the training-free segmenter and by the systems that learn from cuts. Sources: Shi and
Malik, PAMI 2000 (the relaxation); Wang et al., CVPR 2023 (masked, repeated cuts on features).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from unscene_ros.settings import check_ranges, within

Graph = Any  # (N, N) symmetric weights: a numpy array, or a scipy sparse array

# Below this many nodes the dense solver is the faster one (measured, two cores).
_DENSE_BELOW = 120


@dataclass(frozen=True, slots=True)
class NormalizedCutConfig:
    """When to cut and when to stop."""

    # Weight of every pair without an edge, keeps the graph connected.
    background: float = within(1e-5, 0, 1)
    # A foreground holding more of the total size than this is the background.
    flip_share: float = within(0.6, 0, 1)
    # Stop when the cut's eigenvalue exceeds it: nothing left that separates.
    max_cost: float = within(0.3, 0, 2)
    max_cuts: int = within(20, 0)
    solver: Literal["lanczos", "dense"] = "lanczos"

    def __post_init__(self) -> None:
        check_ranges(self, "cut")


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """One bipartition: vector (N,) float64, foreground (N,) bool, the eigenvalue as its cost."""

    vector: np.ndarray
    foreground: np.ndarray
    cost: float


def cut_graph(edges: Graph, config: NormalizedCutConfig) -> Cut | None:
    """The best normalised bipartition of a graph, or None where there is nothing to cut.

    edges (N, N): symmetric weights in 0..1, dense or sparse. The graph that is cut is
    W = background + (1 - background) * edges, so that pairs without an edge still repel weakly.
    Solves (D - W) x = cost * D x for the second smallest pair (Shi and Malik, eq. 6) and splits at
    the mean of x. None for fewer than three nodes and for a complete graph with equal weights.
    """
    if edges.shape[0] < 3 or _is_complete(edges):
        return None
    if config.solver == "dense" or edges.shape[0] < _DENSE_BELOW:
        cost, vector = _solve_dense(edges, config.background)
    else:
        cost, vector = _solve_lanczos(edges, config.background)
    foreground = vector > vector.mean()
    if foreground.all() or not foreground.any():
        return None
    return Cut(vector, foreground, cost)


def masked_cuts(
    edges: Graph,
    neighbors: np.ndarray,
    sizes: np.ndarray,
    config: NormalizedCutConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Takes objects off a graph one cut after the other.

    Each cut's foreground leaves the graph (its nodes are deleted, not zeroed: zeroed nodes add a
    spurious eigenvector and the next cut finds them again). A foreground that holds more than
    `flip_share` of the size is the background, and the other side is taken. Every connected part of
    the foreground is a mask of its own.

    edges (N, N) as in `cut_graph`; neighbors (E, 2) pairs of touching nodes; sizes (N,) such as
    vertex counts. Returns masks (K, N) bool and their costs (K,), in the order found.
    """
    remaining = np.arange(edges.shape[0])
    masks, costs = [], []
    for _ in range(config.max_cuts):
        cut = cut_graph(_subgraph(edges, remaining), config)
        if cut is None or cut.cost > config.max_cost:
            break
        foreground = cut.foreground
        if sizes[remaining][foreground].sum() > config.flip_share * sizes[remaining].sum():
            foreground = ~foreground
        for part in connected_parts(remaining[foreground], neighbors, edges.shape[0]):
            masks.append(part)
            costs.append(cut.cost)
        remaining = remaining[~foreground]
    if not masks:
        return np.zeros((0, edges.shape[0]), bool), np.zeros(0)
    return np.stack(masks), np.array(costs)


def connected_parts(nodes: np.ndarray, neighbors: np.ndarray, count: int) -> list[np.ndarray]:
    """The connected parts of some nodes as masks (count,) bool, the part of the lowest node first.

    nodes: indices; neighbors (E, 2): touching pairs of all `count` nodes.
    """
    inside = np.zeros(count, bool)
    inside[nodes] = True
    pairs = neighbors[inside[neighbors].all(axis=1)]
    graph = scipy.sparse.coo_matrix(
        (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count)
    )
    part_of_node = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    _, first = np.unique(part_of_node[inside], return_index=True)
    labels = part_of_node[inside][np.sort(first)]
    return [inside & (part_of_node == label) for label in labels]


def _subgraph(edges: Graph, nodes: np.ndarray):
    if len(nodes) == edges.shape[0]:
        return edges
    return edges[nodes][:, nodes] if scipy.sparse.issparse(edges) else edges[np.ix_(nodes, nodes)]


def _is_complete(edges: Graph) -> bool:
    """Whether every pair has the same weight: any bipartition is then as good as any other."""
    if scipy.sparse.issparse(edges):
        count, weights = edges.shape[0], edges.tocoo()
        between = weights.data[(weights.row != weights.col) & (weights.data != 0)]
        return not len(between) or (
            len(between) == count * (count - 1) and bool((between == between[0]).all())
        )
    off_diagonal = edges[0, 1]
    if edges[-1, 0] != off_diagonal:
        return False
    different = edges != off_diagonal
    np.fill_diagonal(different, False)
    return not different.any()


def _degrees(edges: Graph, background: float) -> np.ndarray:
    count = edges.shape[0]
    row_sums = np.asarray(edges.sum(axis=1, dtype=np.float64)).reshape(count)
    return (1 - background) * row_sums + background * count


def _solve_lanczos(edges: Graph, background: float):
    """(cost, vector) by Lanczos on D^-1/2 W D^-1/2 with its known first eigenvector removed."""
    count = edges.shape[0]
    degrees = _degrees(edges, background)
    scale = 1 / np.sqrt(degrees)
    first = np.sqrt(degrees / degrees.sum())

    def multiply(vector: np.ndarray) -> np.ndarray:
        vector = vector.reshape(count)
        scaled = vector * scale
        # The edges stay float32: this product is the whole cost, and memory bound.
        product = (1 - background) * (edges @ scaled.astype(edges.dtype))
        product = scale * (product + background * scaled.sum())
        return product - first * (first @ vector)

    operator = LinearOperator((count, count), matvec=multiply, dtype=np.float64)
    # A fixed start makes the result the same on every run, also in a degenerate eigenspace.
    start = np.random.default_rng(0).standard_normal(count)
    try:
        values, vectors = eigsh(
            operator, k=1, which="LA", ncv=min(20, count - 1), tol=1e-5, v0=start, maxiter=count
        )
    except ArpackError:  # no convergence, or a start vector that the graph maps to zero
        return _solve_dense(edges, background)
    return float(1 - values[0]), vectors[:, 0] * scale


def _solve_dense(edges: Graph, background: float):
    """(cost, vector) by a full symmetric solver: for small graphs, and where Lanczos gives up."""
    dense = edges.toarray() if scipy.sparse.issparse(edges) else edges
    weights = background + (1 - background) * dense.astype(np.float64)
    scale = 1 / np.sqrt(weights.sum(axis=1))
    normalized = scale[:, None] * weights * scale
    # All pairs, though one is wanted: asked for one of many equal values, LAPACK may return none.
    values, vectors = np.linalg.eigh(normalized)
    return float(1 - values[-2]), vectors[:, -2] * scale
