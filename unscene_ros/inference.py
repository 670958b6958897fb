"""A mesh, its segments and a trained instance network -> instances.

The robot, replays and self-training all find instances here. Large scenes are looked at in
overlapping crops, whose masks are stitched on the segments that two crops see. Masks are then split
into connected parts, and what is small, doubtful or found twice is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.sparse.csgraph

from unscene_ros.oversegmentation import segment_neighbors_within
from unscene_ros.scene import InputError, Instances, Mesh, Segments, Voxels
from unscene_ros.settings import check_ranges, within
from unscene_ros.structure import vertex_areas
from unscene_ros.voxels import VoxelsConfig, make_voxels, part_of_voxels, segment_of_voxel

if TYPE_CHECKING:
    from unscene_ros.models.instance_network import InstanceNetwork

_MOST_CANDIDATES = 2000  # compared pair by pair


@dataclass(frozen=True, slots=True)
class InferenceConfig:
    """Where a network runs, and what becomes of its masks.

    Device and threads are for whoever loads the network; `infer` takes it where it is.
    """

    device: Literal["auto", "cuda", "cpu"] = "auto"  # auto: a GPU where there is one
    threads: int = within(0, 0)  # of the processor; 0: all cores
    crop_m: float = within(12.0, 0.1)  # scenes longer than this are looked at in cubes of this edge
    crop_overlap_m: float = within(3.0, 0)  # of neighbouring cubes, at least
    # Masks of two crops overlap by more than this in one object.
    min_agreement: float = within(0.5, 0, 1)
    # Parts of a mask farther apart than this are objects of their own.
    part_gap_m: float = within(0.05, 0)
    min_area_m2: float = within(0.03, 0)  # an object shows at least this much surface
    max_overlap: float = within(0.6, 0, 1)  # intersection over union of two instances, at most
    min_score: float = within(0.5, 0, 1)  # lower ones are left out
    max_instances: int = within(200, 0)

    def __post_init__(self) -> None:
        check_ranges(self, "segmentation.network")
        if self.crop_overlap_m > self.crop_m / 2:
            raise InputError(
                "segmentation.network.crop_overlap_m: expected at most half of crop_m, "
                f"got {self.crop_overlap_m} of {self.crop_m}"
            )


def infer(
    network: InstanceNetwork,
    voxels_config: VoxelsConfig,
    mesh: Mesh,
    segments: Segments,
    config: InferenceConfig | None = None,
) -> Instances:
    """Instances by falling score, on the device that the network is on.

    network: in evaluation mode. voxels_config, segments: made as in its training. The score is the
    probability of the class times the mean probability of the mask; where a mask falls into parts
    the largest one keeps it, the others get it by their size beside that one. Class ids are those
    of the network, -1 where it knows one class only.
    """
    config = config or InferenceConfig()
    if network.training:
        raise ValueError("infer: expected a network in evaluation mode: call network.eval()")
    voxels = make_voxels(mesh, voxels_config)
    segment_ids = segment_of_voxel(voxels, segments)
    voxels_of_segment = np.bincount(segment_ids, minlength=segments.count)
    found = _Found.nothing(segments.count)
    for rows in _crops(voxels.coordinates, voxels_config.voxel_size_m, config):
        instances = _look(network, part_of_voxels(voxels, rows, voxels_config), segment_ids[rows])
        # A crop cannot tell what a segment belongs to of which it sees less than half. One of which
        # every crop sees less is larger than any object.
        seen = np.bincount(segment_ids[rows], minlength=segments.count)
        known = (seen > 0) & (seen >= voxels_of_segment / 2)
        fresh = _Found.in_crop(instances, np.unique(segment_ids[rows]), known, config.min_score)
        found = _stitched(found, fresh, voxels_of_segment, config.min_agreement)
    return _cleaned(found, mesh, segments, config)


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Instances over the segments of the whole scene, from some of its crops.

    masks (N, S) bool; known (N, S) bool, segments that the instance was looked for on; scores (N,)
    float32; class_ids (N,) int32.
    """

    masks: np.ndarray
    known: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray

    @staticmethod
    def nothing(segment_count: int) -> _Found:
        masks = np.zeros((0, segment_count), bool)
        return _Found(masks, masks, np.zeros(0, np.float32), np.zeros(0, np.int32))

    @staticmethod
    def in_crop(
        instances: Instances, segment_ids: np.ndarray, known: np.ndarray, min_score: float
    ) -> _Found:
        """segment_ids: of the columns of the masks. known (S,) bool: what the crop can tell."""
        masks = np.zeros((len(instances.masks), len(known)), bool)
        masks[:, segment_ids] = instances.masks & known[segment_ids]
        kept = masks.any(axis=1) & (instances.scores >= min_score)
        return _Found(
            masks[kept],
            np.tile(known, (np.count_nonzero(kept), 1)),
            instances.scores[kept],
            instances.class_ids[kept],
        )

    def __getitem__(self, rows: np.ndarray) -> _Found:
        return _Found(self.masks[rows], self.known[rows], self.scores[rows], self.class_ids[rows])

    def joined(self, other: _Found) -> _Found:
        """Both, these first."""
        pairs = (
            (self.masks, other.masks),
            (self.known, other.known),
            (self.scores, other.scores),
            (self.class_ids, other.class_ids),
        )
        return _Found(*(np.concatenate(pair) for pair in pairs))


def _crops(
    coordinates: np.ndarray, voxel_size_m: float, config: InferenceConfig
) -> Iterator[np.ndarray]:
    """The rows of the voxels (M, 3) in each crop; every voxel is well inside one of them at least.

    Cubes are spread evenly from end to end of the scene, those without voxels left out.
    """
    if not len(coordinates):
        return
    places = coordinates - coordinates.min(axis=0) + 0.5
    extent = places.max(axis=0) + 0.5
    edge, overlap = config.crop_m / voxel_size_m, config.crop_overlap_m / voxel_size_m
    counts = np.maximum(np.ceil((extent - overlap) / (edge - overlap)), 1).astype(np.int64)
    if (counts == 1).all():
        yield np.arange(len(coordinates))
        return
    steps = np.where(counts > 1, (extent - edge) / np.maximum(counts - 1, 1), 1)
    first_center = np.where(counts > 1, edge, extent) / 2
    nearest = np.clip(np.rint((places - first_center) / steps), 0, counts - 1).astype(np.int64)
    cubes = np.unique(np.ravel_multi_index(tuple(nearest.T), tuple(counts)))
    for cube in np.column_stack(np.unravel_index(cubes, tuple(counts))):
        distances = np.abs(places - (first_center + cube * steps))
        yield np.flatnonzero((distances <= edge / 2 + 1e-6).all(axis=1))


def _look(network: InstanceNetwork, voxels: Voxels, segment_ids: np.ndarray) -> Instances:
    """What the network sees at once, over the segments that the voxels have, by ascending id."""
    import torch

    from unscene_ros.models.mask_transformer import to_instances
    from unscene_ros.models.segment_pooling import in_row_order
    from unscene_ros.models.sparse_tensor import batch_voxels

    device = next(network.parameters()).device
    present, of_voxel = np.unique(segment_ids, return_inverse=True)
    with torch.inference_mode():
        tensor = batch_voxels([voxels], device)
        of_row = in_row_order(torch.from_numpy(of_voxel).to(device), tensor.level)
        prediction = network(tensor, of_row, [len(present)])[-1]
        sizes = torch.bincount(of_row, minlength=len(present))
        class_logits, mask_logits = prediction.class_logits[0], prediction.mask_logits[0]
        qualities = prediction.quality_logits[0] if prediction.quality_logits else None
        instances = to_instances(class_logits, mask_logits, sizes, _MOST_CANDIDATES, qualities)
    if network.config.decoder.classes == 1:
        return replace(instances, class_ids=np.full_like(instances.class_ids, -1))
    return instances


def _stitched(
    found: _Found, fresh: _Found, voxels_of_segment: np.ndarray, min_agreement: float
) -> _Found:
    """What was found so far, with the instances of one more crop.

    Two masks that agree on the segments that both were looked for on, by intersection over union
    of voxels, are one object, whose mask is the union and whose score is the mean by size.
    """
    if not len(found.masks) or not len(fresh.masks):
        return found if len(found.masks) else fresh
    sizes = voxels_of_segment.astype(np.float32)
    known = fresh.known[0]  # that of their crop
    common = (found.masks * sizes) @ fresh.masks.T.astype(np.float32)
    union = (found.masks @ (sizes * known))[:, None] - common
    union += (found.known * sizes) @ fresh.masks.T.astype(np.float32)
    agreement = common / np.maximum(union, 1)
    agreement[agreement <= min_agreement] = 0
    old, new = scipy.optimize.linear_sum_assignment(agreement, maximize=True)
    same = agreement[old, new] > 0
    old, new = old[same], new[same]

    voxels, more_voxels = found.masks[old] @ sizes, fresh.masks[new] @ sizes
    masks, known_segments = found.masks.copy(), found.known.copy()
    scores, class_ids = found.scores.copy(), found.class_ids.copy()
    masks[old] |= fresh.masks[new]
    known_segments[old] |= known
    class_ids[old] = np.where(more_voxels > voxels, fresh.class_ids[new], class_ids[old])
    scores[old] = (scores[old] * voxels + fresh.scores[new] * more_voxels) / (voxels + more_voxels)
    others = np.ones(len(fresh.masks), bool)
    others[new] = False
    return _Found(masks, known_segments, scores, class_ids).joined(fresh[others])


def _cleaned(found: _Found, mesh: Mesh, segments: Segments, config: InferenceConfig) -> Instances:
    """The connected parts of the masks by falling score, without the small and the repeated."""
    if not len(found.masks):
        return Instances.empty(segments.count)
    areas = np.bincount(segments.of_vertex, vertex_areas(mesh), segments.count)
    neighbors = segment_neighbors_within(mesh, segments, config.part_gap_m)
    masks, mask_of_part = _connected_parts(found.masks, neighbors)
    part_areas = masks @ areas
    largest = np.zeros(len(found.masks))
    np.maximum.at(largest, mask_of_part, part_areas)
    scores = found.scores[mask_of_part] * part_areas / np.maximum(largest[mask_of_part], 1e-9)

    order = np.argsort(-scores, kind="stable")
    order = order[(scores[order] >= config.min_score) & (part_areas[order] >= config.min_area_m2)]
    order = order[:_MOST_CANDIDATES]
    sizes = np.bincount(segments.of_vertex, minlength=segments.count)
    kept = order[first_of_equals(masks[order], sizes, config.max_overlap)][: config.max_instances]
    return Instances(
        masks[kept], scores[kept].astype(np.float32), found.class_ids[mask_of_part[kept]]
    )


def _connected_parts(masks: np.ndarray, neighbors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((P, S) bool the connected parts of all masks (N, S), (P,) the mask that each is part of).

    neighbors (E, 2): segments that touch.
    """
    mask_of_node, segment_of_node = np.nonzero(masks)
    node = np.zeros(masks.shape, np.int32)
    node[mask_of_node, segment_of_node] = np.arange(len(mask_of_node))
    first, second = neighbors.T
    mask, pair = np.nonzero(masks[:, first] & masks[:, second])
    ends = node[mask, first[pair]], node[mask, second[pair]]
    shape = (len(mask_of_node), len(mask_of_node))
    graph = scipy.sparse.coo_array((np.ones(len(mask), bool), ends), shape=shape)
    count, part_of_node = scipy.sparse.csgraph.connected_components(graph, directed=False)
    parts = np.zeros((count, masks.shape[1]), bool)
    parts[part_of_node, segment_of_node] = True
    mask_of_part = np.zeros(count, np.int64)
    mask_of_part[part_of_node] = mask_of_node
    return parts, mask_of_part


def first_of_equals(masks: np.ndarray, sizes: np.ndarray, max_overlap: float) -> list[int]:
    """Rows of the masks (N, S), best first, without those that overlap an earlier one by more."""
    overlap = overlaps(masks, masks, sizes)
    kept: list[int] = []
    for candidate in range(len(masks)):
        if not (overlap[candidate, kept] > max_overlap).any():
            kept.append(candidate)
    return kept


def overlaps(first: np.ndarray, second: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(K, L) float32 intersection over union of masks (K, S) and (L, S); sizes (S,)."""
    sizes = sizes.astype(np.float32)
    common = (first * sizes) @ second.T.astype(np.float32)
    union = (first @ sizes)[:, None] + second @ sizes - common
    return common / np.maximum(union, 1e-9)
