"""Time of one normalised cut, against the dense generalised eigensolver of scipy."""

import statistics
import time

import numpy as np
import scipy.linalg

from unscene_ros.normalized_cut import NormalizedCutConfig, cut_graph


def clustered_graph(count: int, seed: int) -> np.ndarray:
    """Binarised cosine similarities of clustered 384-d features, as image features give them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, 384))
    features = centres[rng.integers(0, 6, count)] + 1.5 * rng.standard_normal((count, 384)) + 0.5
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return (features @ features.T > 0.15).astype(np.float32)


def seconds(function, runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def dense_cut(edges: np.ndarray) -> None:
    weights = 1e-5 + (1 - 1e-5) * edges.astype(np.float64)
    degrees = np.diag(weights.sum(axis=1))
    scipy.linalg.eigh(degrees - weights, degrees, subset_by_index=[1, 1])


def rows() -> list[dict]:
    result = []
    for count in (1500, 3600):
        edges = clustered_graph(count, seed=count)
        ours = 1000 * seconds(lambda e=edges: cut_graph(e, NormalizedCutConfig()), 9)
        # The dense solver takes half a minute at 3600 nodes: it is measured at 1500 only.
        peer = 1000 * seconds(lambda e=edges: dense_cut(e), 1) if count == 1500 else None
        result.append(
            {
                "area": "cut",
                "name": f"cut_{count}_ms",
                "value": ours,
                "unit": "ms",
                "peer": "scipy.linalg.eigh" if peer else None,
                "peer_value": peer,
                "ratio": peer / ours if peer else None,
                "runs": 9,
            }
        )
    return result
