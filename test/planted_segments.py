"""Made-up segments whose objects are known: features in blocks, squares of surface, neighbours."""

import numpy as np

from training.unscene3d.features import SegmentFeatures
from training.unscene3d.segment_graph import SegmentGraph


def block_features(label_of_segment, channels=32, noise=0.05, seed=0):
    """Features (S, C) that are alike in a block (cosine near 1) and at right angles between."""
    random = np.random.default_rng(seed)
    label = np.asarray(label_of_segment)
    values = np.eye(max(channels, label.max(initial=0) + 1))[label]
    return features_of(values + noise * random.standard_normal(values.shape) / channels**0.5)


def features_of(values, valid=None):
    """Features with these values (S, C), all their own unless told otherwise."""
    values = np.asarray(values, np.float16)
    valid = np.ones(len(values), bool) if valid is None else np.asarray(valid, bool)
    return SegmentFeatures(values, valid, valid.astype(np.int32))


def both(features):
    """The same features in both modalities."""
    return {"2d": features, "3d": features}


def chain(count, start=0):
    """(E, 2) pairs of segments in a row."""
    numbers = np.arange(start, start + count)
    return np.stack([numbers[:-1], numbers[1:]], axis=1).astype(np.int32)


def huddled(sizes):
    """(E, 2) pairs: groups of these sizes in a row, each wholly in touch with itself."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    inside = np.argwhere(np.triu(group[:, None] == group, 1))
    last = np.cumsum(sizes)[:-1] - 1
    return np.concatenate([inside, np.stack([last, last + 1], axis=1)]).astype(np.int32)


def tiled_graph(count, neighbors=None, areas_m2=0.04, movable=None, columns=6):
    """Square segments laid out row by row in a level plane; neighbours in a chain unless given."""
    areas = np.broadcast_to(np.asarray(areas_m2, np.float64), count)
    y, x = 0.2 * np.stack(np.divmod(np.arange(count), columns)).astype(np.float64)
    own, zero = areas / 12, np.zeros(count)
    terms = (np.ones(count), x, y, zero, x * x + own, y * y + own, zero, x * y, zero, zero)
    neighbors = chain(count) if neighbors is None else np.asarray(neighbors, np.int32)
    movable = np.ones(count, bool) if movable is None else movable
    return SegmentGraph(np.stack(terms, axis=1) * areas[:, None], neighbors.reshape(-1, 2), movable)


def permuted(features, graph, order):
    """The same scene with its segments renumbered: new segment i is old segment order[i]."""
    new_of_old = np.argsort(order)
    shuffled = {
        name: SegmentFeatures(f.values[order], f.valid[order], f.view_counts[order])
        for name, f in features.items()
    }
    neighbors = np.sort(new_of_old[graph.neighbors], axis=1).astype(np.int32)
    return shuffled, SegmentGraph(graph.moments[order], neighbors, graph.movable[order])


def as_sets(masks):
    """Masks (K, S) as a set of sets of segments."""
    return {frozenset(np.flatnonzero(mask).tolist()) for mask in masks}


def blocks_of(label_of_segment):
    """The blocks as a set of sets of segments."""
    label = np.asarray(label_of_segment)
    return as_sets([label == value for value in np.unique(label)])
