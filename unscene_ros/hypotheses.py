"""What could be an object: sets of segments from merging and from cutting, scored and thinned out.

Merging is sure of its borders but greedy; cuts look at a whole part at once and find what merging
joined too early. The partition at contrast 1 is what we believe in, the rest are alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse

from unscene_ros.contrast import Contrasts
from unscene_ros.merging import MergeTree
from unscene_ros.normalized_cut import NormalizedCutConfig, connected_parts, masked_cuts
from unscene_ros.scene import Instances

_FALLOFF = 3.0  # how fast a node's belief falls with its distance from the partition
_CUT_BELIEF = 0.8  # of a cut that costs nothing
_SURE_AREA_M2 = 0.15  # the score's size term is a half at this area
_MOST_CANDIDATES = 2000  # compared pair by pair


@dataclass(frozen=True, slots=True, eq=False)
class Hypotheses:
    """masks (K, S) bool over segments; beliefs (K,) float64, 1 in the partition, else below 1."""

    masks: np.ndarray
    beliefs: np.ndarray

    def joined(self, other: Hypotheses) -> Hypotheses:
        """Both, these first."""
        return Hypotheses(
            np.concatenate([self.masks, other.masks]),
            np.concatenate([self.beliefs, other.beliefs]),
        )

    def chosen(self, which: np.ndarray) -> Hypotheses:
        """Those that `which` (K,) bool or indices names."""
        return Hypotheses(self.masks[which], self.beliefs[which])


def merge_hypotheses(
    tree: MergeTree, movable: np.ndarray, areas: np.ndarray, min_area_m2: float
) -> Hypotheses:
    """Every node of the tree with enough surface; movable (S,) bool, areas (S,) square metres."""
    segment_count = len(movable)
    node_areas = tree.sums(areas)
    large = node_areas >= min_area_m2
    large[:segment_count] &= movable
    nodes = np.flatnonzero(large)
    born, swallowed = tree.born[nodes], tree.swallowed[nodes]
    distance = np.maximum(born - 1, 1 - swallowed)
    beliefs = np.where((born <= 1) & (swallowed > 1), 1.0, 0.99 * np.exp(-_FALLOFF * distance))
    return Hypotheses(tree.masks(nodes, segment_count), np.minimum(beliefs, 1.0))


def cut_hypotheses(
    contrasts: Contrasts,
    movable: np.ndarray,
    areas: np.ndarray,
    sharpness: float,
    config: NormalizedCutConfig,
) -> Hypotheses:
    """Masked normalised cuts inside each connected part of the movable segments.

    The affinity of two touching segments is exp(-sharpness * contrast), less where they touch in
    fewer than ten mesh edges; segments that do not touch have none.
    """
    count = len(movable)
    usable = movable[contrasts.pairs].all(axis=1)
    pairs = contrasts.pairs[usable]
    affinity = np.exp(-sharpness * np.maximum(contrasts.values[usable], 0))
    affinity *= np.minimum(contrasts.contacts[usable] / 10, 1)
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


def best_instances(
    hypotheses: Hypotheses,
    areas: np.ndarray,
    max_overlap: float,
    min_score: float,
    max_instances: int,
) -> Instances:
    """Scores hypotheses by belief and surface and keeps, best first, what is not kept already.

    A member of the partition scores 0.5 to 1, any other less than 0.5. areas (S,) square metres
    weigh the overlap.
    """
    surface = hypotheses.masks @ areas
    size_term = surface / (surface + _SURE_AREA_M2)
    scores = 0.5 * (hypotheses.beliefs * size_term + (hypotheses.beliefs >= 1))
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= min_score][:_MOST_CANDIDATES]
    masks, surface, scores = hypotheses.masks[order], surface[order], scores[order]
    common = (masks * areas.astype(np.float32)) @ masks.T.astype(np.float32)
    overlap = common / np.maximum(surface[:, None] + surface - common, 1e-9)
    kept: list[int] = []
    for candidate in range(len(order)):
        if not (overlap[candidate, kept] > max_overlap).any():
            kept.append(candidate)
    kept = kept[:max_instances]
    return Instances(masks[kept], scores[kept].astype(np.float32), np.full(len(kept), -1, np.int32))
