"""Features of segments -> how alike any two segments are, 0..1, from images, shape or both.

Each modality has its own similarity, scaled over all pairs of the scene; the affinity is their
weighted mean, which is more robust than joined features of different statistics. Source:
UnScene3D (CVPR 2024), section 4.2. Its code also rescales single rows, which makes the affinity
asymmetric; here it is symmetric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.unscene3d.features import SegmentFeatures
from unscene_ros.scene import InputError

_BLOCK = 1024  # rows of the matrix of all pairs that are held at a time
_TINY = 1e-5  # keeps a modality that tells nothing apart from a division by zero
_UNTRUSTED = 1e-3  # a filled in feature counts only where nothing else is known


@dataclass(frozen=True, slots=True)
class AffinityConfig:
    """Which features are compared, and how."""

    modality: Literal["both", "2d", "3d"] = "both"
    share_2d: float = 0.5  # both: of the 2D affinity in the mean
    metric: Literal["cosine", "l2"] = "cosine"

    def __post_init__(self) -> None:
        if not 0 <= self.share_2d <= 1:
            raise InputError(f"affinity.share_2d: expected 0..1, got {self.share_2d}")

    def weights(self) -> dict[str, float]:
        """The weight of each modality that is used."""
        weights = {"2d": self.share_2d, "3d": 1 - self.share_2d}
        return weights if self.modality == "both" else {self.modality: 1.0}


class Affinity:
    """The affinity of any two of a scene's segments, found when asked for."""

    def __init__(self, features: Mapping[str, SegmentFeatures], config: AffinityConfig) -> None:
        """features: by modality, "2d" and "3d", of those that are used.

        Raises InputError when one is missing, has NaN, or another number of segments.
        """
        weights = config.weights()
        _check(features, weights)
        self.count = len(features[next(iter(weights))].valid)
        self._modalities = [
            _Modality(features[name], weight, config.metric) for name, weight in weights.items()
        ]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """(n, S) float32 affinity of some segments (n,) with all."""
        return _mean([modality.rows(indices) for modality in self._modalities])

    def pairs(self, pairs: np.ndarray) -> np.ndarray:
        """(E,) float32 affinity of each of the pairs (E, 2)."""
        return _mean([modality.pairs(pairs) for modality in self._modalities])


class _Modality:
    """One modality's similarity, scaled so that the least alike pair has 0 and the most alike 1."""

    def __init__(self, features: SegmentFeatures, weight: float, metric: str) -> None:
        vectors = features.values.astype(np.float32)
        present = (vectors != 0).any(axis=1)
        if metric == "cosine":
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        elif len(vectors):
            vectors = vectors - vectors.mean(axis=0)  # distances from products then keep digits
        self._vectors = vectors
        self._squares = (vectors**2).sum(axis=1)
        self._metric = metric
        self._weight = np.float32(weight)
        self._lowest, self._highest = self._range(np.flatnonzero(present))
        tells = features.valid & present & (self._highest - self._lowest > _TINY)
        self._trust = np.where(tells, 1, _UNTRUSTED).astype(np.float32)

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Affinity and weight (n, S) of some segments with all."""
        products = self._vectors[indices] @ self._vectors.T
        return self._scaled(products, indices[:, None], np.arange(len(self._vectors)))

    def pairs(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Affinity and weight (E,) of pairs."""
        first, second = pairs.T
        products = np.einsum("ec,ec->e", self._vectors[first], self._vectors[second])
        return self._scaled(products, first, second)

    def _scaled(self, products, first, second) -> tuple[np.ndarray, np.ndarray]:
        shifted = np.maximum(self._similarity(products, first, second) - self._lowest, 0)
        affinity = (shifted + _TINY) / (self._highest - self._lowest + _TINY)
        return affinity, self._weight * self._trust[first] * self._trust[second]

    def _similarity(self, products, first, second) -> np.ndarray:
        """Cosine, or the negative distance, of segments with these scalar products."""
        if self._metric == "cosine":
            return products
        squares = self._squares[first] + self._squares[second] - 2 * products
        return -np.sqrt(np.maximum(squares, 0))

    def _range(self, present: np.ndarray) -> tuple[float, float]:
        """The least and the largest similarity of the segments that have a feature at all."""
        lowest, highest = np.inf, -np.inf
        for start in range(0, len(present), _BLOCK):
            first, second = present[start : start + _BLOCK], present[start:]
            products = self._vectors[first] @ self._vectors[second].T
            block = self._similarity(products, first[:, None], second)
            lowest, highest = min(lowest, float(block.min())), max(highest, float(block.max()))
        return (lowest, highest) if len(present) else (0.0, 0.0)


def _mean(affinities_and_weights: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    affinities, weights = zip(*affinities_and_weights, strict=True)
    total = sum(a * w for a, w in zip(affinities, weights, strict=True))
    return total / sum(weights)


def _check(features: Mapping[str, SegmentFeatures], weights: Mapping[str, float]) -> None:
    counts = set()
    for name in weights:
        if name not in features:
            raise InputError(
                f"affinity: expected {name} features, got {sorted(features)}: make them, or "
                f"choose another modality"
            )
        values, valid = features[name].values, features[name].valid
        if values.ndim != 2 or valid.shape != values.shape[:1]:
            raise InputError(
                f"affinity: expected {name} features (S, C) with valid (S,), "
                f"got {values.shape} with {valid.shape}"
            )
        if not np.isfinite(values).all():
            raise InputError(f"affinity: expected finite {name} features, got NaN or infinity")
        counts.add(len(values))
    if len(counts) > 1:
        raise InputError(f"affinity: expected features of the same segments, got {sorted(counts)}")
