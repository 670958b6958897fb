"""Predicted masks of one scene and masks to learn from -> which query learns from which target.

Each layer of the decoder is matched for itself, so that all pairs together cost least (Carion et
al., "DETR", ECCV 2020), with the costs of Mask3D (Schult et al., ICRA 2023) over all segments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import softplus

_HIGHEST = 1e6  # of a cost


class Matches(NamedTuple):
    """Pair i of layer l is query queries[l, i] with target targets[l, i].

    Both (L, M) int64, M the smaller number of queries and targets: each is in one pair at most.
    """

    queries: Tensor
    targets: Tensor


@torch.no_grad()
def matching_cost(
    class_logits: Tensor,
    mask_logits: Tensor,
    targets: Tensor,
    segment_weights: Tensor,
    *,
    object_class: int,
    class_weight: float,
    bce_weight: float,
    dice_weight: float,
) -> Tensor:
    """(L, Q, K): what it would cost each query to learn from each target.

    The probability of "object" lowers it, binary cross-entropy and Dice of the masks raise it.
    class_logits (L, Q, classes + 1), mask_logits (L, Q, S), targets (K, S) of 0 and 1 in the same
    floating type, segment_weights (S,) with mean 1.
    """
    by_target = (targets * segment_weights).T
    bce = (softplus(mask_logits) @ segment_weights)[..., None] - mask_logits @ by_target
    masks = mask_logits.sigmoid()
    sizes = (masks @ segment_weights)[..., None] + by_target.sum(0)
    dice = 1 - (2 * (masks @ by_target) + 1) / (sizes + 1)
    probability = class_logits.softmax(-1)[..., object_class, None]
    segments = max(len(segment_weights), 1)
    return bce_weight * bce / segments + dice_weight * dice - class_weight * probability


def match(cost: Tensor) -> Matches:
    """The pairs of each layer with the least sum of costs (L, Q, K), ordered by query.

    A cost that is not finite counts as the highest: the loss of such predictions is not finite
    either, and it is for the training loop to skip the step.
    """
    costs = np.nan_to_num(cost.cpu().numpy(), nan=_HIGHEST, posinf=_HIGHEST, neginf=_HIGHEST)
    pairs = np.array([linear_sum_assignment(of_layer) for of_layer in costs])
    queries, targets = torch.from_numpy(pairs).to(cost.device).unbind(1)
    return Matches(queries, targets)
