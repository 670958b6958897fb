"""Posed RGB-D frames -> boxes in the world around what stood out in several of the pictures.

Masks of single pictures are linked over time where their features match, lifted by depth and pose,
and joined where they share places: the box prior of Part2Object (ECCV 2024).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import DBSCAN

from training.unscene3d.frame_masks import FrameMasksConfig, frame_masks
from unscene_ros.image_features import FeatureProvider
from unscene_ros.scene import Frame, InputError


@dataclass(frozen=True, slots=True)
class VideoBoxesConfig:
    """Which masks are the same thing, and which points and things count."""

    frame_masks: FrameMasksConfig = field(default_factory=FrameMasksConfig)
    window_frames: int = 3  # masks are linked within so many consecutive frames
    min_link: float = 0.3  # share of the smaller mask's cells with a mutual best match in the other
    max_depth_m: float = 4.0  # readings farther away are too coarse
    spacing_m: float = 0.03  # points are thinned to one in each cube of this size
    cluster_reach_m: float = 0.1  # DBSCAN: radius
    cluster_min_points: int = 6  # DBSCAN: points within it that make a dense one
    max_parts: int = 4  # a mask of more parts is no thing; of fewer the largest is it
    place_m: float = 0.05  # masks share a place when both have points in a cube of this size
    min_shared: float = 0.5  # of the smaller one's places make two masks one thing
    min_frames: int = 2  # a thing is seen in at least so many frames
    trim: float = 0.03  # share of the points that may lie outside each side of a box

    def __post_init__(self) -> None:
        for name in ("window_frames", "spacing_m", "cluster_reach_m", "place_m", "min_shared"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"video_boxes.{name}: expected more than 0, got {getattr(self, name)}"
                )


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """A mask in one frame: features (n, C) float32 of its cells, unit length; points (P, 3) m."""

    frame: int
    features: np.ndarray
    points: np.ndarray


def video_boxes(
    frames: Iterable[Frame], provider: FeatureProvider, config: VideoBoxesConfig | None = None
) -> np.ndarray:
    """(M, 6) float64 boxes, low then high corner, metres in the world, in order of first sight.

    frames: in order of time, read once; a frame without depth or without a mask adds nothing.
    """
    config = config or VideoBoxesConfig()
    sightings: list[Sighting] = []
    links: list[tuple[int, int]] = []
    window: deque[list[int]] = deque(maxlen=config.window_frames - 1)
    for number, frame in enumerate(frames):
        start = len(sightings)
        sightings += find_sightings(number, frame, provider(frame.color), config)
        new = list(range(start, len(sightings)))
        for earlier in window:
            links += _linked(sightings, earlier, new, config.min_link)
        window.append(new)
    places = [place_keys(sighting.points, config.place_m) for sighting in sightings]
    frame_of_sighting = np.array([sighting.frame for sighting in sightings], np.int64)
    thing_of_sighting = merge_over_frames(
        places, frame_of_sighting, joined_labels(len(sightings), links), config.min_shared
    )
    boxes = []
    for thing in dict.fromkeys(thing_of_sighting.tolist()):
        members = np.flatnonzero(thing_of_sighting == thing)
        if len(np.unique(frame_of_sighting[members])) >= config.min_frames:
            points = np.concatenate([sightings[member].points for member in members])
            # Readings at the edge of a thing may lie anywhere between it and what is behind.
            boxes.append(np.quantile(points, (config.trim, 1 - config.trim), axis=0).ravel())
    return np.array(boxes, np.float64).reshape(-1, 6)


def find_sightings(
    number: int, frame: Frame, features: np.ndarray, config: VideoBoxesConfig
) -> list[Sighting]:
    """The masks of a frame that depth shows to be one thing; features (h, w, C) of its picture."""
    sightings = []
    for mask in frame_masks(features, config.frame_masks).masks:
        points = thinned(points_in(frame, mask, config.max_depth_m), config.spacing_m)
        points = largest_part(points, config)
        if len(points):
            cells = features[mask].astype(np.float32)
            cells /= np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-9)
            sightings.append(Sighting(number, cells, points))
    return sightings


def points_in(frame: Frame, mask: np.ndarray, max_depth_m: float) -> np.ndarray:
    """(P, 3) float64 world positions of the depth readings under a mask (h, w) of the picture."""
    size = (frame.camera.width, frame.camera.height)
    inside = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    rows, columns = np.nonzero(inside & (frame.depth > 0) & (frame.depth <= max_depth_m))
    pixels = np.stack([columns, rows, np.ones(len(rows))], axis=1)
    rays = pixels @ np.linalg.inv(frame.camera.intrinsics).T
    in_camera = rays * frame.depth[rows, columns, None]
    return in_camera @ frame.world_from_camera[:3, :3].T + frame.world_from_camera[:3, 3]


def thinned(points: np.ndarray, spacing_m: float) -> np.ndarray:
    """One of the points (P, 3) in each cube, the first."""
    return points[np.sort(np.unique(_cube_keys(points, spacing_m), return_index=True)[1])]


def largest_part(points: np.ndarray, config: VideoBoxesConfig) -> np.ndarray:
    """The largest density cluster of points (P, 3); nothing if there are none or too many."""
    if not len(points):
        return points
    reach, least = config.cluster_reach_m, config.cluster_min_points
    part_of_point = DBSCAN(eps=reach, min_samples=least).fit(points).labels_
    sizes = np.bincount(part_of_point[part_of_point >= 0])
    if not 1 <= len(sizes) <= config.max_parts:
        return points[:0]
    return points[part_of_point == np.argmax(sizes)]


def place_keys(points: np.ndarray, place_m: float) -> np.ndarray:
    """(n,) int64, ascending: the cubes of the world that hold some of the points (P, 3)."""
    return np.unique(_cube_keys(points, place_m))


def _cube_keys(points: np.ndarray, cube_m: float) -> np.ndarray:
    """(P,) int64 one number for each cube: x, y, z with 21 bits each, around the origin."""
    x, y, z = (np.floor(points / cube_m).astype(np.int64) & (2**21 - 1)).T
    return x << 42 | y << 21 | z


def mutual_matches(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, 2) rows of two sets of unit features (A, C), (B, C) that are each other's nearest."""
    if not len(first) or not len(second):
        return np.zeros((0, 2), np.int64)
    similarity = first @ second.T
    best_of_first, best_of_second = similarity.argmax(axis=1), similarity.argmax(axis=0)
    rows = np.flatnonzero(best_of_second[best_of_first] == np.arange(len(first)))
    return np.stack([rows, best_of_first[rows]], axis=1)


def _linked(
    sightings: list[Sighting], earlier: list[int], later: list[int], min_link: float
) -> list[tuple[int, int]]:
    """Pairs of sightings of two frames between which enough cells match."""
    if not earlier or not later:
        return []
    sides = [[sightings[number].features for number in side] for side in (earlier, later)]
    sizes = [np.array([len(features) for features in side]) for side in sides]
    masks = [np.repeat(np.arange(len(size)), size) for size in sizes]
    matches = mutual_matches(*(np.concatenate(side) for side in sides))
    counts = np.zeros((len(earlier), len(later)))
    np.add.at(counts, (masks[0][matches[:, 0]], masks[1][matches[:, 1]]), 1)
    overlap = counts / np.minimum(sizes[0][:, None], sizes[1])
    return [(earlier[a], later[b]) for a, b in np.argwhere(overlap > min_link)]


def joined_labels(count: int, links: list[tuple[int, int]]) -> np.ndarray:
    """(count,) label of each of some things, the same where links lead from one to the other."""
    ends = np.array(links, np.int64).reshape(-1, 2).T
    graph = scipy.sparse.coo_array((np.ones(ends.shape[1], bool), ends), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def merge_over_frames(
    sets: list[np.ndarray], frame_of_set: np.ndarray, label_of_set: np.ndarray, min_shared: float
) -> np.ndarray:
    """(N,) labels of N sets of places after frames were merged in pairs, then pairs of pairs, ...

    sets: the places of each, as distinct integers; frame_of_set (N,); label_of_set (N,): what is
    known to be one thing. In a merge two things become one when they share at least this part of
    the places that the smaller one has on its side.
    """
    labels = label_of_set.copy()
    sizes = [len(places) for places in sets]
    if not sum(sizes):
        return labels
    columns = np.unique(np.concatenate(sets), return_inverse=True)[1]
    rows = np.repeat(np.arange(len(sets)), sizes)
    shape = (len(sets), int(columns.max()) + 1)
    in_set = scipy.sparse.csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape)
    block = frame_of_set.copy()
    while block.max() > 0:
        pairs = np.stack([block, labels], axis=1)
        things, thing_of_set = np.unique(pairs, axis=0, return_inverse=True)
        shape = (len(things), len(sets))
        ends = (thing_of_set.ravel(), np.arange(len(sets)))
        holds = scipy.sparse.csr_array((np.ones(len(sets), np.int32), ends), shape) @ in_set
        holds.data[:] = 1
        shared = (holds @ holds.T).tocoo()
        first, second = shared.coords
        smaller = np.minimum(holds.sum(axis=1)[first], holds.sum(axis=1)[second])
        beside = things[first, 0] ^ 1 == things[second, 0]
        same = beside & (shared.data >= min_shared * smaller)
        ends = (things[first[same], 1], things[second[same], 1])
        count = len(sets)
        graph = scipy.sparse.coo_array((np.ones(same.sum(), bool), ends), (count, count))
        labels = connected_components(graph, directed=False)[1][labels]
        block //= 2
    return labels
