"""One picture's feature map -> masks of up to a few things that stand out, by repeated cuts.

MaskCut: cells of alike features are joined to a graph, its best normalised cut parts one thing from
the rest, the thing is taken out, and so on (Wang et al., "Cut and Learn", CVPR 2023; a single cut:
TokenCut, CVPR 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unscene_ros.normalized_cut import NormalizedCutConfig, connected_parts, cut_graph
from unscene_ros.scene import InputError

_CUT = NormalizedCutConfig()
_BACKGROUND_CORNERS = 0.75  # what holds this share of the picture's corners lies behind


@dataclass(frozen=True, slots=True)
class FrameMasksConfig:
    """When two cells of a picture are alike, and when to stop cutting."""

    max_cuts: int = 3  # each takes one thing off the picture
    min_similarity: float = 0.15  # cosine from which on two cells are alike
    min_share: float = 0.01  # of the picture; smaller things are taken off, but give no mask
    min_rest: float = 0.02  # of the picture; less is not cut any more
    max_cost: float = 0.98  # eigenvalue from which on nothing stands out

    def __post_init__(self) -> None:
        if self.max_cuts < 0:
            raise InputError(f"frame_masks.max_cuts: expected 0 or more, got {self.max_cuts}")
        if not -1 <= self.min_similarity <= 1:
            raise InputError(
                f"frame_masks.min_similarity: expected -1..1, got {self.min_similarity}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class FrameMasks:
    """masks (K, h, w) bool, without overlap, in the order found; costs (K,) of their cuts."""

    masks: np.ndarray
    costs: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Foreground:
    """The side of a cut that is a thing.

    cells (n,) int of the flattened map, ascending; values (n,) float64, larger the surer a cell is
    of the thing; cost, the eigenvalue.
    """

    cells: np.ndarray
    values: np.ndarray
    cost: float

    @property
    def seed(self) -> int:
        """The surest cell."""
        return int(self.cells[np.argmax(self.values)])


def frame_masks(features: np.ndarray, config: FrameMasksConfig | None = None) -> FrameMasks:
    """Masks over the cells of a feature map (h, w, C), such as a picture's DINO keys."""
    config = config or FrameMasksConfig()
    shape = features.shape[:2]
    count = shape[0] * shape[1]
    edges = similarity_graph(features, config.min_similarity)
    neighbors = grid_neighbors(shape)
    remaining = np.arange(count)
    masks: list[np.ndarray] = []
    costs: list[float] = []
    for _ in range(config.max_cuts):
        if len(remaining) < config.min_rest * count:
            break
        foreground = find_foreground(edges, remaining, shape)
        if foreground is None or foreground.cost >= config.max_cost:
            break
        parts = connected_parts(foreground.cells, neighbors, count)
        thing = next(part for part in parts if part[foreground.seed])
        if thing.sum() >= config.min_share * count:
            masks.append(thing.reshape(shape))
            costs.append(foreground.cost)
        # Cells are deleted: with features of zero they would form a group of their own.
        remaining = remaining[~thing[remaining]]
    found = np.array(masks, bool).reshape(len(masks), *shape)
    return FrameMasks(found, np.array(costs, np.float64))


def similarity_graph(features: np.ndarray, min_similarity: float) -> np.ndarray:
    """(n, n) float32, 1 between cells of a map (h, w, C) whose cosine is above the threshold."""
    count = features.shape[0] * features.shape[1]
    flat = features.reshape(count, features.shape[2]).astype(np.float32)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
    edges = (flat @ flat.T > min_similarity).astype(np.float32)
    np.fill_diagonal(edges, 1)
    return edges


def grid_neighbors(shape: tuple[int, int]) -> np.ndarray:
    """(E, 2) pairs of cells of an h x w map that share a side."""
    cells = np.arange(shape[0] * shape[1]).reshape(shape)
    across = np.stack([cells[:, :-1].ravel(), cells[:, 1:].ravel()], axis=1)
    down = np.stack([cells[:-1].ravel(), cells[1:].ravel()], axis=1)
    return np.concatenate([across, down])


def find_foreground(
    edges: np.ndarray, remaining: np.ndarray, shape: tuple[int, int]
) -> Foreground | None:
    """The side of the best cut that is a thing rather than what lies behind; None without a cut.

    edges (n, n) as from `similarity_graph`; remaining: cells to cut, ascending. The side with the
    largest entry of the eigenvector is the thing, unless it holds most of the corners that remain.
    """
    whole = len(remaining) == len(edges)
    cut = cut_graph(edges if whole else edges[np.ix_(remaining, remaining)], _CUT)
    if cut is None:
        return None
    # The sign of an eigenvector is arbitrary: first the side of its largest entry counts.
    side, values = cut.foreground, cut.vector
    if not side[np.argmax(np.abs(values))]:
        side, values = ~side, -values
    rows, columns = np.divmod(remaining, shape[1])
    corners = np.isin(rows, (0, shape[0] - 1)) & np.isin(columns, (0, shape[1] - 1))
    if corners.any() and side[corners].mean() >= _BACKGROUND_CORNERS:
        side, values = ~side, -values
    return Foreground(remaining[side], values[side], cut.cost)
