"""Time of one normalised cut, against the dense generalised eigensolver of scipy."""

from collections.abc import Iterator

import numpy as np
import scipy.linalg

from benchmarks import row, seconds
from unscene_ros.normalized_cut import NormalizedCutConfig, cut_graph

RUNS = 9


def clustered_graph(count: int, seed: int) -> np.ndarray:
    """Binarised cosine similarities of clustered 384-d features, as image features give them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, 384))
    features = centres[rng.integers(0, 6, count)] + 1.5 * rng.standard_normal((count, 384)) + 0.5
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return (features @ features.T > 0.15).astype(np.float32)


def dense_cut(edges: np.ndarray) -> None:
    weights = 1e-5 + (1 - 1e-5) * edges.astype(np.float64)
    degrees = np.diag(weights.sum(axis=1))
    scipy.linalg.eigh(degrees - weights, degrees, subset_by_index=[1, 1])


def rows() -> Iterator[dict]:
    for count in (1500, 3600):
        edges = clustered_graph(count, seed=count)
        ours = 1000 * seconds(lambda e=edges: cut_graph(e, NormalizedCutConfig()), RUNS)
        peer = None, None, None
        if count == 1500:  # at 3600 nodes the dense solver takes half a minute
            theirs = 1000 * seconds(lambda e=edges: dense_cut(e))
            peer = "scipy.linalg.eigh", theirs, theirs / ours
        yield row("cut", f"cut_{count}_ms", ours, "ms", RUNS, *peer)
