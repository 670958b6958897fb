"""Layered merging: segments grow into parts and objects, least contrast first; every layer is kept.

The idea of Part2Object (ECCV 2024), which merges in five layers of fixed size. Here each single
merge is a layer, so that the contrast at which something appears and is swallowed tells how
distinct it is, whatever else is in view.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from unscene_ros.contrast import Contrasts


@dataclass(frozen=True, slots=True, eq=False)
class MergeTree:
    """Nodes 0..S-1 are the segments, each later one joins two earlier nodes.

    children (T, 2) int32, -1 for segments; born, swallowed (T,) float64: the largest contrast
    inside a node, and the contrast at which it was merged away (infinity: never).
    """

    children: np.ndarray
    born: np.ndarray
    swallowed: np.ndarray

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(T,) sum over each node's segments of values (S,)."""
        sums = np.concatenate([values, np.zeros(len(self.born) - len(values))])
        for node in range(len(values), len(sums)):
            sums[node] = sums[self.children[node]].sum()
        return sums

    def masks(self, nodes: np.ndarray, segment_count: int) -> np.ndarray:
        """(len(nodes), S) bool members of some nodes."""
        masks = np.zeros((len(nodes), segment_count), bool)
        for mask, node in zip(masks, nodes, strict=True):
            stack = [int(node)]
            while stack:
                top = stack.pop()
                if top < segment_count:
                    mask[top] = True
                else:
                    stack.extend(self.children[top])
        return masks


def merge_segments(contrasts: Contrasts, movable: np.ndarray) -> MergeTree:
    """Merges touching movable segments (S,) bool by least contrast, averaged over the contact."""
    count = len(movable)
    contact_of: list[dict[int, tuple[float, float]]] = [{} for _ in range(count)]
    heap = []
    usable = movable[contrasts.pairs].all(axis=1)
    pairs = contrasts.pairs[usable].tolist()
    values, contacts = contrasts.values[usable].tolist(), contrasts.contacts[usable].tolist()
    for (first, second), value, contact in zip(pairs, values, contacts, strict=True):
        contact_of[first][second] = contact_of[second][first] = (value * contact, contact)
        heap.append((value, first, second))
    heapq.heapify(heap)
    children = [(-1, -1)] * count
    born, swallowed = [0.0] * count, [np.inf] * count
    while heap:
        value, first, second = heapq.heappop(heap)
        # Both must still be there: every merge makes a new node, so an old entry cannot come back.
        if swallowed[first] < np.inf or swallowed[second] < np.inf:
            continue
        node, level = len(children), max(value, born[first], born[second])
        swallowed[first] = swallowed[second] = level
        children.append((first, second))
        born.append(level)
        swallowed.append(np.inf)
        contact_of.append(_joined_contacts(contact_of, first, second))
        for other, (total, contact) in contact_of[node].items():
            contact_of[other].pop(first, None)
            contact_of[other].pop(second, None)
            contact_of[other][node] = (total, contact)
            heapq.heappush(heap, (total / contact, other, node))
    shape = np.array(children, np.int32).reshape(-1, 2)
    return MergeTree(shape, np.array(born), np.array(swallowed))


def _joined_contacts(contact_of, first: int, second: int) -> dict[int, tuple[float, float]]:
    joined = {other: sums for other, sums in contact_of[first].items() if other != second}
    for other, (total, contact) in contact_of[second].items():
        if other != first:
            old_total, old_contact = joined.get(other, (0.0, 0.0))
            joined[other] = (old_total + total, old_contact + contact)
    return joined
