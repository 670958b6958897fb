"""The minimum cut between two terminals: which side each node of a weighted graph falls on.

Energies of the form of Boykov and Jolly, "Interactive Graph Cuts" (ICCV 2001), by SciPy's maximum
flow (Dinic).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

_MOST_FLOW = 2**29  # SciPy's capacities are int32, and a residual is up to twice as large


def min_cut(
    to_source: np.ndarray, to_sink: np.ndarray, pairs: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(N,) bool, which nodes are on the side of the source after the cheapest cut.

    to_source, to_sink (N,): what it costs to part a node from either terminal; pairs (E, 2) and
    weights (E,): what it costs to part two nodes. All at least 0 and finite; costs are rounded to
    about 1e-9 of their sum. Of several cuts of the same cost the one with the fewest nodes on the
    side of the source is taken.
    """
    count = len(to_source)
    source, sink = count, count + 1
    nodes = np.arange(count)
    first, second = pairs.T
    tails = np.concatenate([np.full(count, source), nodes, first, second])
    heads = np.concatenate([nodes, np.full(count, sink), second, first])
    costs = np.concatenate([to_source, to_sink, weights, weights]).astype(np.float64)
    largest = max(to_source.sum(), to_sink.sum(), 2 * weights.sum()) or 1.0
    capacities = np.rint(costs * (_MOST_FLOW / largest)).astype(np.int32)
    shape = (count + 2, count + 2)
    graph = scipy.sparse.coo_array((capacities, (tails, heads)), shape=shape).tocsr()
    residual = scipy.sparse.csr_array(graph - maximum_flow(graph, source, sink).flow)
    residual.data = np.maximum(residual.data, 0)
    residual.eliminate_zeros()
    reached = breadth_first_order(residual, source, return_predecessors=False)
    on_source_side = np.zeros(count + 2, bool)
    on_source_side[reached] = True
    return on_source_side[:count]
