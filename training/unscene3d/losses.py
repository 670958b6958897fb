"""Predictions of the mask transformer and masks to learn from, noisy and incomplete -> the loss.

baseline: of Mask3D (Schult et al., ICRA 2023). drop: objects that the targets miss cost nothing
(DropLoss of Wang et al., "CutLER", CVPR 2023, for masks that are matched). projection: masks need
only agree in their projections (Wang et al., "FreeSOLO", CVPR 2022), here on the axes x, y, z.
UnScene3D (Rozenberszki et al., CVPR 2024, Table 3) compares the three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, pad

from training.unscene3d.matching import Matches, match, matching_cost
from unscene_ros.models.mask_transformer import MaskPrediction
from unscene_ros.scene import InputError


@dataclass(frozen=True, slots=True)
class LossConfig:
    """What a prediction is punished for, and what not."""

    kind: Literal["baseline", "drop", "projection"] = "drop"
    class_weight: float = 2.0  # of cross-entropy, and of the probability in matching
    bce_weight: float = 5.0  # of the masks' binary cross-entropy, and in matching
    dice_weight: float = 2.0  # of the masks' Dice loss, and in matching
    projection_weight: float = 2.0  # of the Dice losses on three axes instead of the two above
    no_object_weight: float = 0.1  # of queries without a target, against those with one
    object_class: int = 0  # class id of every target
    segment_weights: Literal["equal", "size"] = "equal"  # in BCE and Dice; the paper's is "equal"
    # drop: a pair with a smaller IoU has no mask loss, and a query whose IoU with all targets is
    # smaller may have found what they miss.
    drop_overlap: float = 0.1
    # drop: such a query need not say "no object". False is the paper's recipe.
    drop_no_object: bool = True
    # An empty mask, a speck and half of the room are no finds: they do say "no object".
    find_min_voxels: int = 100  # 0.04 m² of surface with voxels of 2 cm
    find_max_share: float = 0.3  # of the scene's voxels
    projection_bin_voxels: int = 2  # width of the bins on each axis
    # For networks whose queries start at segments: of the mask losses of the first prediction of
    # each query against the target that it starts in. Many queries share a target here, so that
    # features learn from all of them; 0: without, as in the paper.
    start_weight: float = 0.0
    # The same networks: what it costs in matching that a query starts outside of a target. So that
    # a query is asked for the same target in every layer; 0: without, as in the paper.
    start_cost: float = 0.0
    # The same networks: of the cross-entropy between the overlap that a mask is expected to have
    # and that which it has, of all queries but those that need not say "no object".
    quality_weight: float = 0.0


class _Scene(NamedTuple):
    """One scene of the batch, its L layers stacked; all but `occupied` in one floating type."""

    class_logits: Tensor  # (L, Q, classes + 1)
    mask_logits: Tensor  # (L, Q, S)
    targets: Tensor  # (K, S) of 0 and 1
    sizes: Tensor  # (S,)
    occupied: Tensor | None  # (3, S, bins) bool
    starts: Tensor | None  # (Q,) segments
    quality_logits: Tensor | None  # (L, Q)


def instance_loss(
    predictions: Sequence[MaskPrediction],
    targets: Sequence[Tensor],
    segment_sizes: Sequence[Tensor],
    config: LossConfig,
    projections: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """The "total" and the weighted parts that it is the sum of: "class", "bce" and "dice", or
    "class" and "projection"; and "start" and "quality", if they have a weight.

    Sums over the layers' predictions; each is an average over the pairs (class: the weighted
    queries) of the whole batch, dropped ones too, so that what is left does not weigh more. Of all
    processes when torch.distributed runs, which then must all call this: the gradients averaged
    over the processes are those of one process with the joined batch. Computed in float32 at least.
    For each scene: targets (K, S) bool, segment_sizes (S,) in voxels; for the kind "projection"
    projections (3, S, bins), see `segment_projections`. Raises InputError for what does not fit
    together.
    """
    _check(predictions, targets, segment_sizes, config, projections)
    with torch.autocast(predictions[0].class_logits[0].device.type, enabled=False):
        scenes = []
        for b, (masks, sizes) in enumerate(zip(targets, segment_sizes, strict=True)):
            class_logits = _stack([layer.class_logits[b] for layer in predictions])
            mask_logits = _stack([layer.mask_logits[b] for layer in predictions])
            masks, sizes = masks.to(mask_logits), sizes.to(mask_logits)
            occupied = projections[b].to(masks.device) if projections is not None else None
            starts = predictions[0].starts[b] if predictions[0].starts else None
            qualities = None
            if config.quality_weight:
                qualities = _stack([layer.quality_logits[b] for layer in predictions])
            scenes.append(
                _Scene(class_logits, mask_logits, masks, sizes, occupied, starts, qualities)
            )
        totals = _totals(scenes, config)
        losses = [_scene_losses(scene, config) for scene in scenes]
        parts = {}
        for name in losses[0]:
            loss = torch.stack([of_scene[name] for of_scene in losses]).sum()
            parts[name] = loss / totals.get(name, totals["pairs"])
        return {"total": torch.stack([*parts.values()]).sum(), **parts}


def segment_projections(
    coordinates: Tensor, segment_of_voxel: Tensor, segment_count: int, bin_voxels: int
) -> Tensor:
    """(3, S, bins) bool: in which bins of x, y and z each segment of one scene has voxels.

    coordinates (N, 3) int in voxels, segment_of_voxel (N,) from 0. The shorter axes end with bins
    that nothing is in.
    """
    if not len(coordinates):
        return torch.zeros(3, segment_count, 0, dtype=torch.bool, device=coordinates.device)
    bins = torch.div(coordinates - coordinates.amin(0), bin_voxels, rounding_mode="floor").long()
    shape = (3, segment_count, int(bins.max()) + 1)
    occupied = torch.zeros(shape, dtype=torch.bool, device=coordinates.device)
    axes = torch.arange(3, device=coordinates.device)
    occupied[axes, segment_of_voxel.long()[:, None], bins] = True
    return occupied


def _stack(layers: list[Tensor]) -> Tensor:
    stacked = torch.stack(layers)
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32))


def _totals(scenes: Sequence[_Scene], config: LossConfig) -> dict[str, Tensor]:
    """What parts are divided by, of one layer of the whole batch, per process on average.

    pairs; class: queries, weighted; start, quality: queries. They do not depend on the layer: a
    query weighs 1 in a pair and `no_object_weight` outside.
    """
    queries = [scene.mask_logits.shape[1] for scene in scenes]
    pairs = [min(len(scene.targets), own) for scene, own in zip(scenes, queries, strict=True)]
    totals = scenes[0].class_logits.new_tensor([sum(pairs), sum(queries)])
    processes = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(totals)
        processes = torch.distributed.get_world_size()
    paired, asked = totals
    weighted = paired + config.no_object_weight * (asked - paired)
    return {
        "pairs": paired.clamp(min=1) / processes,
        "class": torch.where(weighted > 0, weighted, 1) / processes,
        "start": asked.clamp(min=1) / processes,
        "quality": asked.clamp(min=1) / processes,
    }


def _scene_losses(scene: _Scene, config: LossConfig) -> dict[str, Tensor]:
    """The weighted parts, summed over layers and pairs, the class part over layers and queries."""
    weights = torch.ones_like(scene.sizes)
    if config.segment_weights == "size":
        weights = scene.sizes * (len(scene.sizes) / scene.sizes.sum().clamp(min=1))
    matches = _matches(scene, weights, config)
    layers = torch.arange(len(matches.queries), device=weights.device)[:, None]
    logits = scene.mask_logits[layers, matches.queries]
    masks = scene.targets[matches.targets]
    finds = torch.zeros_like(scene.class_logits[..., 0], dtype=torch.bool)
    if config.kind == "drop":
        overlaps = _overlaps(scene)
        counted = overlaps[layers, matches.queries, matches.targets] >= config.drop_overlap
        logits, masks = logits[counted], masks[counted]
        if config.drop_no_object:
            finds = _finds(scene, overlaps, config)

    logits, masks = logits.flatten(0, -2), masks.flatten(0, -2)
    parts = {"class": config.class_weight * _class_loss(scene, matches, finds, config)}
    if config.kind == "projection":
        assert scene.occupied is not None
        loss = _projection_loss(logits, masks, scene.occupied)
        parts["projection"] = config.projection_weight * loss.sum()
    else:
        bce = binary_cross_entropy_with_logits(logits, masks, weights, reduction="sum")
        parts["bce"] = config.bce_weight * bce / max(len(weights), 1)
        parts["dice"] = config.dice_weight * _dice(logits.sigmoid(), masks, weights).sum()
    if config.quality_weight:
        parts["quality"] = config.quality_weight * _quality_loss(scene, finds)
    if config.start_weight:
        parts["start"] = config.start_weight * _start_loss(scene, weights, config)
    return parts


def _quality_loss(scene: _Scene, finds: Tensor) -> Tensor:
    """Cross-entropy of expected and actual overlaps of all masks but the finds (L, Q), summed."""
    assert scene.quality_logits is not None
    best = pad(_overlaps(scene), (0, 1)).amax(-1).detach()  # 0 where a scene has no targets
    losses = binary_cross_entropy_with_logits(scene.quality_logits, best, reduction="none")
    return (losses * ~finds).sum()


def _start_loss(scene: _Scene, weights: Tensor, config: LossConfig) -> Tensor:
    """Mask losses of first predictions against the targets that their queries start in, summed."""
    assert scene.starts is not None
    holding = scene.targets[:, scene.starts]
    inside = holding.any(0).nonzero()[:, 0]
    if not len(inside):
        return scene.mask_logits.sum() * 0
    # Targets come best first; of those that overlap the first one counts.
    masks = scene.targets[holding[:, inside].argmax(0)]
    logits = scene.mask_logits[0, inside]
    bce = binary_cross_entropy_with_logits(logits, masks, weights, reduction="sum")
    dice = _dice(logits.sigmoid(), masks, weights).sum()
    return config.bce_weight * bce / max(len(weights), 1) + config.dice_weight * dice


def _matches(scene: _Scene, segment_weights: Tensor, config: LossConfig) -> Matches:
    cost = matching_cost(
        scene.class_logits,
        scene.mask_logits,
        scene.targets,
        segment_weights,
        object_class=config.object_class,
        class_weight=config.class_weight,
        bce_weight=config.bce_weight,
        dice_weight=config.dice_weight,
    )
    if config.start_cost:
        assert scene.starts is not None
        cost += config.start_cost * (1 - scene.targets[:, scene.starts].T)
    return match(cost)


def _overlaps(scene: _Scene) -> Tensor:
    """(L, Q, K) IoU of predicted masks with targets, in voxels; 0 where both are empty."""
    masks = (scene.mask_logits > 0) * scene.sizes
    common = masks @ scene.targets.T
    union = masks.sum(-1, keepdim=True) + scene.targets @ scene.sizes - common
    return common / torch.where(union > 0, union, 1)


def _finds(scene: _Scene, overlaps: Tensor, config: LossConfig) -> Tensor:
    """(L, Q) bool: masks that may be objects which the targets miss."""
    voxels = (scene.mask_logits > 0).to(scene.sizes) @ scene.sizes
    best = pad(overlaps, (0, 1)).amax(-1)  # 0 where a scene has no targets
    sensible = (voxels > 0) & (voxels >= config.find_min_voxels)
    sensible &= voxels <= config.find_max_share * scene.sizes.sum()
    return sensible & (best < config.drop_overlap)


def _class_loss(scene: _Scene, matches: Matches, finds: Tensor, config: LossConfig) -> Tensor:
    """Cross-entropy: "object" for queries in pairs, "no object" for the others but the finds."""
    no_object = scene.class_logits.shape[-1] - 1
    labels = torch.full_like(finds, no_object, dtype=torch.long)
    labels.scatter_(1, matches.queries, config.object_class)
    weights = config.no_object_weight * (~finds).to(scene.class_logits)
    weights.scatter_(1, matches.queries, 1.0)
    loss = cross_entropy(scene.class_logits.flatten(0, 1), labels.flatten(), reduction="none")
    return loss @ weights.flatten()


def _dice(masks: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """(P,) Dice losses of pairs of masks (P, S) from 0 to 1, smoothed by one segment."""
    common = (masks * targets) @ weights
    return 1 - (2 * common + 1) / ((masks + targets) @ weights + 1)


def _projection_loss(logits: Tensor, targets: Tensor, occupied: Tensor) -> Tensor:
    """(P,) sums over the axes of the Dice losses of projected masks (P, S).

    FreeSOLO's pairwise term, by which neighbours of the same colour shall agree, has no place here:
    segments are such neighbours already and have one logit.
    """
    losses = logits.new_zeros(len(logits))
    for axis in occupied:
        projected = _project(logits, axis).sigmoid()
        weights = projected.new_ones(projected.shape[1])
        losses = losses + _dice(projected, _project(targets, axis), weights)
    return losses


def _project(values: Tensor, occupied: Tensor) -> Tensor:
    """(P, bins): the largest of the values (P, S) in each bin that is not empty."""
    bins, segments = occupied.T.nonzero(as_tuple=True)
    lengths = bins.unique_consecutive(return_counts=True)[1]
    # unsafe: the lengths need no check, and the check knows no scene without bins
    return torch.segment_reduce(values.T[segments], "max", lengths=lengths, unsafe=True).T


def _check(
    predictions: Sequence[MaskPrediction],
    targets: Sequence[Tensor],
    segment_sizes: Sequence[Tensor],
    config: LossConfig,
    projections: Sequence[Tensor] | None,
) -> None:
    scenes = len(predictions[-1].class_logits) if predictions else 0
    counts = [len(targets), len(segment_sizes)]
    if projections is not None:
        counts.append(len(projections))
    if not scenes or set(counts) != {scenes}:
        raise InputError(
            f"instance_loss: expected targets, sizes (and projections) for each of the "
            f"{scenes} predicted scenes, at least one, got {counts}"
        )
    classes = predictions[-1].class_logits[0].shape[1] - 1
    if not 0 <= config.object_class < classes:
        raise InputError(
            f"object_class: expected one of the network's {classes} classes, counted from 0, "
            f"got {config.object_class}"
        )
    if (config.start_weight or config.start_cost) and not predictions[0].starts:
        raise InputError(
            "start_weight, start_cost: expected predictions that tell where queries start"
        )
    if config.quality_weight and not predictions[0].quality_logits:
        raise InputError("quality_weight: expected predictions that tell the quality of masks")
    if config.kind == "projection" and projections is None:
        raise InputError("instance_loss: the kind 'projection' needs projections of all scenes")
    for b, (masks, sizes) in enumerate(zip(targets, segment_sizes, strict=True)):
        segments = predictions[-1].mask_logits[b].shape[1]
        fits = masks.dtype == torch.bool and masks.shape[1:] == sizes.shape == (segments,)
        if projections is not None:
            fits &= projections[b].dtype == torch.bool and len(projections[b]) == 3
            fits &= projections[b].shape[1] == segments
        if not fits:
            raise InputError(
                f"instance_loss, scene {b}: expected bool targets (any, {segments}), sizes "
                f"({segments},) and bool projections (3, {segments}, any), got targets "
                f"{tuple(masks.shape)} {masks.dtype} and sizes {tuple(sizes.shape)}"
            )
