"""What could be an object: sets of segments from merging and from cutting, judged and thinned out.

A good object is distinct (its border has more contrast than its inside) and full (it shows much
surface for its length; torn-off pieces of things are thin). The best partition of the merge tree
is what we believe in, everything else an alternative with a score below one half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse

from unscene_ros.contrast import Contrasts
from unscene_ros.merging import MergeTree
from unscene_ros.normalized_cut import NormalizedCutConfig, connected_parts, masked_cuts
from unscene_ros.scene import Instances, Mesh, Segments

_FALLOFF = 2.0  # how fast a node's distinctness falls with its distance from contrast 1
_FULL = 2.0  # a closed body: fuller than this is no better
_LOOSE = 2.4  # border with other things, in metres for each metre of size, that halves a score
_FIRM_CONTACT_M = 0.4  # shorter contacts bind less
_CUT_BELIEF = 0.5  # of a cut that costs nothing, beside a node's distinctness
_MOST_CANDIDATES = 2000  # compared pair by pair


@dataclass(frozen=True, slots=True, eq=False)
class Shapes:
    """Area (K,) square metres, length (K,) metres and fullness (K,) = area / length²."""

    areas: np.ndarray
    lengths: np.ndarray
    fullness: np.ndarray


def segment_moments(mesh: Mesh, segments: Segments, vertex_areas: np.ndarray) -> np.ndarray:
    """(S, 10) area and area-weighted first and second moments of position, which add up."""
    center = mesh.vertices.mean(axis=0) if len(mesh.vertices) else np.zeros(3)
    x, y, z = (mesh.vertices - center).T.astype(np.float64)
    terms = (np.ones(len(x)), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z)
    columns = [
        np.bincount(segments.of_vertex, vertex_areas * term, minlength=segments.count)
        for term in terms
    ]
    return np.stack(columns, axis=1)


def shapes_of(moments: np.ndarray) -> Shapes:
    """Shapes from summed moments (K, 10); a length is that of a rod of the same largest spread."""
    areas = np.maximum(moments[:, 0], 1e-9)
    means = moments[:, 1:4] / areas[:, None]
    second = moments[:, [4, 7, 8, 7, 5, 9, 8, 9, 6]].reshape(-1, 3, 3) / areas[:, None, None]
    spread = np.linalg.eigvalsh(second - means[:, :, None] * means[:, None, :])[:, 2]
    squared_lengths = 12 * np.maximum(spread, 1e-9)
    return Shapes(moments[:, 0], np.sqrt(squared_lengths), areas / squared_lengths)


@dataclass(frozen=True, slots=True, eq=False)
class Hypotheses:
    """masks (K, S) bool over segments; beliefs (K,) float64, above 1 in the partition."""

    masks: np.ndarray
    beliefs: np.ndarray

    def joined(self, other: Hypotheses) -> Hypotheses:
        """Both, these first."""
        return Hypotheses(
            np.concatenate([self.masks, other.masks]),
            np.concatenate([self.beliefs, other.beliefs]),
        )


def merge_hypotheses(
    tree: MergeTree,
    movable: np.ndarray,
    moments: np.ndarray,
    min_area_m2: float,
) -> Hypotheses:
    """The nodes of the merge tree that could be objects by their size, the best partition marked.

    movable (S,) bool; moments (S, 10) as from `segment_moments`.
    """
    count = len(movable)
    shapes = shapes_of(np.stack([tree.sums(column) for column in moments.T], axis=1))
    large = shapes.areas >= min_area_m2
    large[:count] &= movable
    distance = np.maximum(tree.born - 1, 1 - tree.swallowed)
    distinct = np.exp(-_FALLOFF * np.maximum(distance, 0))
    worth = distinct * np.minimum(shapes.fullness, _FULL) * shapes.areas**0.75
    beliefs = distinct + _best_partition(tree, np.where(large, worth, 0))
    nodes = np.flatnonzero(large)
    return Hypotheses(tree.masks(nodes, count), beliefs[nodes])


def _best_partition(tree: MergeTree, worth: np.ndarray) -> np.ndarray:
    """(T,) bool: the disjoint nodes of the largest summed worth (T,), none of them worthless."""
    best = worth.copy()
    for node, (first, second) in enumerate(tree.children):
        if first >= 0:
            best[node] = max(worth[node], best[first] + best[second])
    chosen = np.zeros(len(worth), bool)
    covered = np.zeros(len(worth), bool)
    for node in range(len(worth) - 1, -1, -1):  # parents come after their children
        if not covered[node] and worth[node] > 0 and worth[node] >= best[node]:
            chosen[node] = covered[node] = True
        first, second = tree.children[node]
        if first >= 0 and covered[node]:
            covered[first] = covered[second] = True
    return chosen


def cut_hypotheses(
    contrasts: Contrasts,
    movable: np.ndarray,
    areas: np.ndarray,
    sharpness: float,
    config: NormalizedCutConfig,
) -> Hypotheses:
    """Masked normalised cuts inside each connected part of the movable segments (S,) bool.

    areas (S,) square metres. The affinity of two touching segments is exp(-sharpness * contrast),
    less where they touch briefly; segments that do not touch have none.
    """
    count = len(movable)
    usable = movable[contrasts.pairs].all(axis=1)
    pairs = contrasts.pairs[usable]
    affinity = np.exp(-sharpness * np.maximum(contrasts.values[usable], 0))
    affinity *= np.minimum(contrasts.contacts[usable] / _FIRM_CONTACT_M, 1)
    graph = scipy.sparse.coo_array((affinity, pairs.T), shape=(count, count)).tocsr()
    graph = graph + graph.T + scipy.sparse.eye_array(count, format="csr")
    masks: list[np.ndarray] = [np.zeros((0, count), bool)]
    beliefs: list[np.ndarray] = [np.zeros(0)]
    for part in connected_parts(np.flatnonzero(movable), pairs, count):
        members = np.flatnonzero(part)
        if len(members) < 3:
            continue
        inside = part[pairs].all(axis=1)
        edges = graph[members][:, members].toarray().astype(np.float32)
        local_pairs = np.searchsorted(members, pairs[inside])
        local_masks, costs = masked_cuts(edges, local_pairs, areas[members], config)
        part_masks = np.zeros((len(local_masks), count), bool)
        part_masks[:, members] = local_masks
        masks.append(part_masks)
        beliefs.append(_CUT_BELIEF * (1 - np.clip(costs, 0, 1)))
    return Hypotheses(np.concatenate(masks), np.concatenate(beliefs))


def borders_with_others(masks: np.ndarray, contrasts: Contrasts, movable: np.ndarray) -> np.ndarray:
    """(K,) metres of border between each mask (K, S) and movable segments outside it."""
    usable = movable[contrasts.pairs].all(axis=1)
    shape = (len(movable), len(movable))
    pairs = contrasts.pairs[usable].T
    contact = scipy.sparse.coo_array((contrasts.contacts[usable], pairs), shape=shape).tocsr()
    contact = contact + contact.T
    members = masks.astype(np.float64)
    return members @ contact.sum(axis=0) - ((members @ contact) * members).sum(axis=1)


def best_instances(
    hypotheses: Hypotheses,
    moments: np.ndarray,
    borders_m: np.ndarray,
    min_area_m2: float,
    max_length_m: float,
    max_overlap: float,
    min_score: float,
    max_instances: int,
) -> Instances:
    """Scores hypotheses and keeps, best first, what is not kept already.

    A member of the partition scores 0.5 to 1, anything else less than 0.5; more the fuller and
    larger it is, less the more it is in touch with other things. moments (S, 10); borders_m (K,)
    as from `borders_with_others`; overlap is intersection over union by area.
    """
    shapes = shapes_of(hypotheses.masks @ moments)
    areas = np.maximum(shapes.areas, 1e-9)
    size = np.minimum(shapes.fullness, _FULL) * areas**0.6
    looseness = 1 / (1 + borders_m / np.sqrt(areas) / _LOOSE)
    quality = size / (size + 1) * np.where(hypotheses.beliefs > 1, looseness, 1)
    believed = hypotheses.beliefs > 1
    scores = 0.5 * (np.where(believed, 1, hypotheses.beliefs) * quality + believed)
    scores[(areas < min_area_m2) | (shapes.lengths > max_length_m)] = -1
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= min_score][:_MOST_CANDIDATES]
    masks, surface, scores = hypotheses.masks[order], shapes.areas[order], scores[order]
    common = (masks * moments[:, 0].astype(np.float32)) @ masks.T.astype(np.float32)
    overlap = common / np.maximum(surface[:, None] + surface - common, 1e-9)
    kept: list[int] = []
    for candidate in range(len(order)):
        if len(kept) < max_instances and not (overlap[candidate, kept] > max_overlap).any():
            kept.append(candidate)
    return Instances(masks[kept], scores[kept].astype(np.float32), np.full(len(kept), -1, np.int32))
