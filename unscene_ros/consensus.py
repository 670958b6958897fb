"""Two lists of instances over the same segments -> one, in which a mask counts what both say of it.

A network knows objects like those it has learned from, the training-free segmenter the borders of
this very scene. Where both see the same mask it is nearly always an object, and a mask that one of
them alone sees is not lost. Boxes of several detectors are combined in the same spirit (Solovyev et
al., "Weighted boxes fusion", Image and Vision Computing 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unscene_ros.inference import first_of_equals, overlaps
from unscene_ros.scene import Instances
from unscene_ros.settings import check_ranges, within


@dataclass(frozen=True, slots=True)
class ConsensusConfig:
    """How a network and the training-free segmenter find instances together."""

    # Of a score, the rest is the network's.
    training_free_share: float = within(0.6, 0, 1)
    max_overlap: float = within(0.6, 0, 1)  # intersection over union of two instances, at most
    min_score: float = within(0.4, 0, 1)  # lower ones are left out
    max_instances: int = within(200, 0)

    def __post_init__(self) -> None:
        check_ranges(self, "segmentation.consensus")


def agree(
    network: Instances, training_free: Instances, sizes: np.ndarray, config: ConsensusConfig
) -> Instances:
    """The masks of both by falling score, each with what both lists say of it.

    sizes (S,): vertices of the segments. A list supports a mask by the score of the mask in it that
    is most like it, times the square of their intersection over union. The class is that of the
    network's most similar mask.
    """
    masks = np.concatenate([network.masks, training_free.masks])
    by_network, supporter = _support(masks, network, sizes)
    by_training_free, _ = _support(masks, training_free, sizes)
    share = config.training_free_share
    scores = ((1 - share) * by_network + share * by_training_free).astype(np.float32)
    class_ids = np.append(network.class_ids, np.int32(-1))[supporter]
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= config.min_score]
    kept = order[first_of_equals(masks[order], sizes, config.max_overlap)][: config.max_instances]
    return Instances(masks[kept], scores[kept], class_ids[kept])


def _support(
    masks: np.ndarray, instances: Instances, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """((M,) how much the instances speak for each mask, (M,) which of them does, -1 for none)."""
    if not len(instances.masks):
        return np.zeros(len(masks)), np.full(len(masks), -1)
    support = overlaps(masks, instances.masks, sizes) ** 2 * instances.scores
    return support.max(axis=1), np.where(support.any(axis=1), support.argmax(axis=1), -1)
