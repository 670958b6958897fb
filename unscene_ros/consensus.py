"""Several lists of instances over the same segments -> one, in which all have a say on each mask.

A network knows objects like those it has learned from, the training-free segmenter the borders of
this very scene. What both see comes first, and what one of them alone sees is not lost. Boxes of
several detectors are combined in the same spirit (Solovyev et al., "Weighted boxes fusion", Image
and Vision Computing 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unscene_ros.inference import first_of_equals, overlaps
from unscene_ros.scene import InputError, Instances
from unscene_ros.settings import check_ranges, within


@dataclass(frozen=True, slots=True)
class ConsensusConfig:
    """How a network and the training-free segmenter find instances together."""

    training_free_share: float = within(0.8, 0, 1)  # of a score, the rest is the network's
    # The network looks at the scene in these sizes: it sees large things better in a smaller one.
    network_scales: tuple[float, ...] = (1.0, 0.7)
    max_overlap: float = within(0.6, 0, 1)  # intersection over union of two instances, at most
    min_score: float = within(0.25, 0, 1)  # lower ones are left out
    max_instances: int = within(200, 0)

    def __post_init__(self) -> None:
        check_ranges(self, "segmentation.consensus")
        if not self.network_scales or not all(0.1 <= scale <= 10 for scale in self.network_scales):
            raise InputError(
                "segmentation.consensus.network_scales: expected one or more of 0.1..10, got "
                f"{self.network_scales}"
            )


def agree(
    lists: Sequence[Instances],
    shares: Sequence[float],
    sizes: np.ndarray,
    max_overlap: float,
    min_score: float = 0.0,
    max_instances: int | None = None,
) -> Instances:
    """The masks of all lists by falling score, each with what the lists say of it.

    shares: of the lists in a score. sizes (S,): vertices of the segments. A list supports a mask by
    the score of the mask in it that is most like it, times the square of their intersection over
    union. The class is that of the mask with a class that supports it most, -1 without any.
    """
    masks = np.concatenate([instances.masks for instances in lists])
    scores = np.zeros(len(masks), np.float32)
    class_ids, certainty = np.full(len(masks), -1, np.int32), np.zeros(len(masks))
    for instances, share in zip(lists, shares, strict=True):
        if not len(instances.masks):
            continue
        support = overlaps(masks, instances.masks, sizes) ** 2 * instances.scores
        scores += np.float32(share) * support.max(axis=1)
        of_class = np.where(instances.class_ids >= 0, support, 0)
        surer = of_class.max(axis=1) > certainty
        class_ids[surer] = instances.class_ids[of_class[surer].argmax(axis=1)]
        certainty = np.maximum(certainty, of_class.max(axis=1))
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= min_score]
    kept = order[first_of_equals(masks[order], sizes, max_overlap)][:max_instances]
    return Instances(masks[kept], scores[kept], class_ids[kept])
