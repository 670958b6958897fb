"""Feature maps of a sparse U-Net and segments -> instance masks over the segments, one per query.

The decoder of Mask3D (Schult et al., ICRA 2023) as UnScene3D (Rozenberszki et al., CVPR 2024)
configures it: queries start at points spread over the scene and attend, level by level from coarse
to fine, to the voxels of the mask that they predicted before. Parameters carry the names of the
published weights (see minkowski.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from unscene_ros.models.query_layers import (
    CrossAttention,
    FeedForward,
    FourierEncoding,
    RegionHead,
    SelfAttention,
    farthest_points,
)
from unscene_ros.models.segment_pooling import SegmentShares, number_across_scenes, segment_means
from unscene_ros.models.sparse_convolution import pool_down
from unscene_ros.models.sparse_layers import Convolution
from unscene_ros.models.sparse_tensor import Level, SparseTensor
from unscene_ros.scene import InputError, Instances


@dataclass(frozen=True, slots=True)
class MaskTransformerConfig:
    """The shape of the decoder."""

    classes: int = 2  # of objects, without "no object", as in UnScene3D's weights
    queries: int = 100  # masks that a scene can have; one with fewer voxels has as many as voxels
    queries_at_inference: int = 0  # more find more of the small things; 0: as many as in training
    width: int = 128  # of queries and mask features
    heads: int = 8
    feedforward_width: int = 1024
    rounds: int = 3  # over all levels, with the same weights
    # points: queries start empty, at voxels far from each other, as in the published weights.
    # segments: at segments that are far from each other or look different. They hold the mask
    # features of theirs, and a mask is the fainter the farther from a centre, first that of the
    # segment; so the first masks are what looks like this segment and is near it.
    start: Literal["points", "segments"] = "points"
    region_voxels: float = 12.0  # start at segments: radius of a mask before anything is learned
    # Voxels of each level that queries may see in training, drawn anew for each layer. The finest
    # map is not among them: it makes the masks.
    sampled_voxels: tuple[int, ...] = (200, 800, 3200, 12800)
    frequency_spread: float = 1.0  # standard deviation of the encoding's frequencies


class MaskPrediction(NamedTuple):
    """What one layer says of each scene of the batch, with Q queries and S segments.

    class_logits (Q, classes + 1), the last one is "no object"; mask_logits (Q, S), above 0 where a
    segment belongs to the mask; starts (Q,), the segment in which each query starts. Of queries
    that start at segments also quality_logits (Q,): the overlap of mask and object.
    """

    class_logits: tuple[Tensor, ...]
    mask_logits: tuple[Tensor, ...]
    starts: tuple[Tensor, ...] = ()
    quality_logits: tuple[Tensor, ...] = ()


class _Segments(NamedTuple):
    """For each scene: mask features (S, C) and centres (S, 3) of the segments, the latter in units
    of `region_voxels`, and in which one each query starts (Q,).
    """

    features: tuple[Tensor, ...]
    centers: tuple[Tensor, ...]
    starts: tuple[Tensor, ...]


class _Candidates(NamedTuple):
    """Where the queries of a scene could start: segments (P,), places (P, 3) in the scene's box,
    and numbers (P, D) that are to differ as much as possible between those that are taken.
    """

    segments: Tensor
    places: Tensor
    spread: Tensor


class _View(NamedTuple):
    """A level as queries see it: features and encoded positions (N, C) of each scene."""

    features: tuple[Tensor, ...]
    positions: tuple[Tensor, ...]
    shares: SegmentShares

    def hidden(self, mask_logits: Sequence[Tensor]) -> list[Tensor]:
        """(N, Q) for each scene: the voxels that the masks (Q, S) leave out."""
        most = max(len(logits) for logits in mask_logits)
        padded = [pad(logits.T, (0, most - len(logits))) for logits in mask_logits]
        hidden = self.shares.mix(torch.cat(padded)) < 0  # where the sigmoid is below one half
        scenes = hidden.split(self.shares.level.scene_sizes)
        return [rows[:, : len(logits)] for rows, logits in zip(scenes, mask_logits, strict=True)]


class MaskTransformer(nn.Module):
    """The decoder of feature maps with these `channels`, coarse to fine.

    Raises InputError for settings that do not fit together.
    """

    def __init__(self, channels: Sequence[int], config: MaskTransformerConfig) -> None:
        super().__init__()
        _check_settings(channels, config)
        self.channels = tuple(channels)
        self.config = config
        width, heads = config.width, config.heads
        *seen, finest = channels
        self.mask_features_head = Convolution(finest, width, 1, bias=True)
        self.pos_enc = FourierEncoding(width, config.frequency_spread)
        projection = (nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU())
        self.query_projection = nn.Sequential(OrderedDict(layers=nn.Sequential(*projection)))
        self.lin_squeeze = _one_round(nn.Linear(inputs, width) for inputs in seen)
        self.cross_attention = _one_round(CrossAttention(width, heads) for _ in seen)
        self.self_attention = _one_round(SelfAttention(width, heads) for _ in seen)
        self.ffn_attention = _one_round(FeedForward(width, config.feedforward_width) for _ in seen)
        self.decoder_norm = nn.LayerNorm(width)
        self.mask_embed_head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.class_embed_head = nn.Linear(width, config.classes + 1)
        starts_at_segments = config.start == "segments"
        self.region_head = RegionHead(width) if starts_at_segments else None
        self.quality_head = nn.Linear(width, 1) if starts_at_segments else None

    def forward(
        self,
        maps: Sequence[SparseTensor],
        segment_of_voxel: Tensor,
        segment_counts: Sequence[int],
        generator: torch.Generator | None = None,
    ) -> list[MaskPrediction]:
        """The predictions before the first layer and after each one; the last is the result.

        maps: coarse to fine, each on the level that `coarser` of the next one's level made.
        segment_of_voxel (N,) in the order of the finest rows (see `in_row_order`), counted from 0
        in each scene. segment_counts: S_b of each scene. generator: of the random choices in
        training, on the device of the maps. A segment without voxels has mask logits 0: it is in no
        mask. A scene without voxels has no queries. Raises InputError for maps and segments that do
        not fit.
        """
        root = _check_maps(maps, self.channels)
        total = sum(segment_counts)
        segments = number_across_scenes(root, segment_of_voxel, segment_counts)
        features = segment_means(self.mask_features_head(maps[-1]).features, segments, total)
        cells = _cells(root, self.pos_enc.gauss_B.dtype)
        centers = segment_means(_from_corner(cells), segments, total) / self.config.region_voxels
        views = self._views(maps, cells, SegmentShares.of_root(root, segments, total))
        if self.config.start == "segments":
            candidates = _segment_candidates(cells, segments, features, centers, segment_counts)
        else:
            candidates = _voxel_candidates(cells, segment_of_voxel.long())
        starts = [self._choose(of_scene, generator) for of_scene in candidates]
        atoms = _Segments(
            features.split(list(segment_counts)),
            centers.split(list(segment_counts)),
            tuple(scene.segments[rows] for scene, rows in zip(candidates, starts, strict=True)),
        )
        encoded = [
            self.pos_enc(scene.places[rows]) for scene, rows in zip(candidates, starts, strict=True)
        ]
        positions = [self.query_projection(places[:, :, None])[:, :, 0] for places in encoded]
        queries = [torch.zeros_like(of_scene) for of_scene in positions]
        if self.config.start == "segments":
            queries = [f[start] for f, start in zip(atoms.features, atoms.starts, strict=True)]
        predictions = [self._predict(queries, atoms)]
        for _ in range(self.config.rounds):
            for layer, view in enumerate(views):
                hidden = view.hidden(predictions[-1].mask_logits)
                queries = self._attend(layer, queries, positions, view, hidden, generator)
                predictions.append(self._predict(queries, atoms))
        return predictions

    def _views(
        self, maps: Sequence[SparseTensor], cells: SparseTensor, shares: SegmentShares
    ) -> list[_View]:
        """All maps but the finest; cells and shares are those of the root level."""
        views = []
        for tensor in reversed(maps[:-1]):
            cells, shares = pool_down(cells, "mean"), shares.coarser()
            positions = tensor.with_features(self.pos_enc(_in_box(cells)))
            views.append(_View(tensor.of_scenes(), positions.of_scenes(), shares))
        return views[::-1]

    def _choose(self, candidates: _Candidates, generator: torch.Generator | None) -> Tensor:
        """(Q,) the rows of those where queries start."""
        count, first = self.config.queries, 0
        if not self.training:
            count = self.config.queries_at_inference or count
        elif len(candidates.spread):
            device = candidates.spread.device
            first = int(
                torch.randint(len(candidates.spread), (), generator=generator, device=device)
            )
        return farthest_points(candidates.spread, count, first)

    def _attend(
        self,
        layer: int,
        queries: Sequence[Tensor],
        query_positions: Sequence[Tensor],
        view: _View,
        hidden: Sequence[Tensor],
        generator: torch.Generator | None,
    ) -> list[Tensor]:
        """The queries after they saw the voxels that are not hidden from them, and each other."""
        attended = []
        limit = self.config.sampled_voxels[layer]
        scenes = (queries, query_positions, view.features, view.positions, hidden)
        for query, place, voxels, voxel_places, unseen in zip(*scenes, strict=True):
            if len(query):
                if self.training and len(voxels) > limit:
                    rows = torch.randperm(len(voxels), generator=generator, device=voxels.device)
                    rows = rows[:limit]
                    voxels, voxel_places, unseen = voxels[rows], voxel_places[rows], unseen[rows]
                memory = self.lin_squeeze[0][layer](voxels)
                query = self.cross_attention[0][layer](query, place, memory, voxel_places, unseen.T)
                query = self.self_attention[0][layer](query, place)
                query = self.ffn_attention[0][layer](query)
            attended.append(query)
        return attended

    def _predict(self, queries: Sequence[Tensor], segments: _Segments) -> MaskPrediction:
        normalized = [self.decoder_norm(of_scene) for of_scene in queries]
        class_logits = tuple(self.class_embed_head(of_scene) for of_scene in normalized)
        mask_logits = []
        for query, features, centers, starts in zip(normalized, *segments, strict=True):
            logits = self.mask_embed_head(query) @ features.T
            if self.region_head is not None:
                logits = logits + self.region_head(query, centers, starts)
            mask_logits.append(logits)
        qualities: tuple[Tensor, ...] = ()
        if self.quality_head is not None:
            qualities = tuple(self.quality_head(of_scene)[:, 0] for of_scene in normalized)
        return MaskPrediction(class_logits, tuple(mask_logits), segments.starts, qualities)


def to_instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    voxels_of_segment: Tensor,
    most: int = 100,
    quality_logits: Tensor | None = None,
) -> Instances:
    """The best `most` pairs of query and class of one scene, best first, without empty masks.

    class_logits (Q, classes + 1), mask_logits (Q, S), voxels_of_segment (S,) their numbers. The
    score is the probability of the class times the mean probability of the mask inside it. Where
    there are quality_logits (Q,) the expected overlap takes the place of the probability that it is
    an object of any class: it ranks masks better.
    """
    masks = mask_logits > 0
    voxels = masks * voxels_of_segment
    confidence = (mask_logits.float().sigmoid() * voxels).sum(1) / voxels.sum(1).clamp(min=1)
    probabilities = class_logits.float().softmax(1)[:, :-1]
    if quality_logits is not None:
        of_class = class_logits[:, :-1].float().softmax(1)
        probabilities = of_class * quality_logits.float().sigmoid()[:, None]
    scores = (probabilities * confidence[:, None]).flatten()
    scores, order = scores.sort(descending=True, stable=True)
    kept = order[:most][scores[:most] > 0]
    queries, class_ids = kept // probabilities.shape[1], kept % probabilities.shape[1]
    return Instances(
        masks[queries].cpu().numpy(),
        scores[: len(kept)].detach().cpu().numpy(),
        class_ids.cpu().numpy().astype(np.int32),
    )


def _cells(root: Level, dtype: torch.dtype) -> SparseTensor:
    """The coordinates of the voxels as features, counted from the batch's smallest ones."""
    xyz = root.coordinates[:, 1:].long()
    return SparseTensor((xyz - xyz.new_tensor(root.layout.minimum)).to(dtype), root)


def _voxel_candidates(cells: SparseTensor, segment_of_voxel: Tensor) -> list[_Candidates]:
    """All voxels; segment_of_voxel (N,) from 0 in each scene."""
    sizes = cells.level.scene_sizes
    in_box = cells.with_features(_in_box(cells)).of_scenes()
    scenes = zip(segment_of_voxel.split(sizes), in_box, cells.of_scenes(), strict=True)
    return [_Candidates(*scene) for scene in scenes]


def _segment_candidates(
    cells: SparseTensor,
    segments: Tensor,
    features: Tensor,
    centers: Tensor,
    segment_counts: Sequence[int],
) -> list[_Candidates]:
    """All segments that have voxels; segments (N,) numbered through the batch, others (S, ...)."""
    total = sum(segment_counts)
    places = segment_means(_in_box(cells), segments, total)
    # Looking quite different is worth a distance of about a region.
    looks = normalize(features.detach(), dim=1).to(centers.dtype)
    spread = torch.cat([centers, looks], 1)
    there = torch.bincount(segments, minlength=total) > 0
    chosen, start = [], 0
    for count in segment_counts:
        ids = there[start : start + count].nonzero()[:, 0]
        chosen.append(_Candidates(ids, places[start + ids], spread[start + ids]))
        start += count
    return chosen


def _from_corner(cells: SparseTensor) -> Tensor:
    """(N, 3): coordinates counted from the lowest corner of the box around the scene."""
    lengths = torch.tensor(cells.level.scene_sizes, device=cells.features.device)
    low = torch.segment_reduce(cells.features, "min", lengths=lengths, axis=0)
    return cells.features - low[cells.level.coordinates[:, 0].long()]


def _in_box(cells: SparseTensor) -> Tensor:
    """(N, 3): coordinates from 0 to 1 in the box around the scene; 0 along axes without extent."""
    places = _from_corner(cells)
    lengths = torch.tensor(cells.level.scene_sizes, device=places.device)
    extent = torch.segment_reduce(places, "max", lengths=lengths, axis=0)
    return places / torch.where(extent > 0, extent, 1)[cells.level.coordinates[:, 0].long()]


def _one_round(layers: Iterable[nn.Module]) -> Any:
    """Layers under the names of the published weights, which count rounds with own weights too."""
    return nn.ModuleList([nn.ModuleList(layers)])


def _check_settings(channels: Sequence[int], config: MaskTransformerConfig) -> None:
    if len(config.sampled_voxels) != len(channels) - 1:
        raise InputError(
            f"mask transformer: expected sampled_voxels for the {len(channels) - 1} maps "
            f"before the finest, got {config.sampled_voxels}"
        )
    counts = (config.classes, config.queries, config.width, config.heads, config.feedforward_width)
    if min(*counts, *config.sampled_voxels) < 1 or config.queries_at_inference < 0:
        raise InputError(
            f"mask transformer: expected at least one class, query, head, channel and sampled "
            f"voxel, got {config}"
        )
    if not config.region_voxels > 0:
        raise InputError(
            f"mask transformer: expected positive region_voxels, got {config.region_voxels}"
        )
    if config.width % config.heads or config.width % 2:
        raise InputError(
            f"mask transformer: expected an even width that {config.heads} heads can share, "
            f"got {config.width}"
        )


def _check_maps(maps: Sequence[SparseTensor], channels: tuple[int, ...]) -> Level:
    """The root level."""
    got = tuple(tensor.features.shape[1] for tensor in maps)
    if got != channels:
        raise InputError(f"mask transformer: expected maps of {channels} channels, got {got}")
    for coarse, fine in pairwise(maps):
        if fine.level.coarser[0] is not coarse.level:
            raise InputError(
                f"mask transformer: expected maps coarse to fine on one chain of levels, got "
                f"stride {coarse.level.stride} before {fine.level.stride}"
            )
    return maps[-1].level
