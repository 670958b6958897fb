"""Masks of constructed pictures whose things are known, against a plain twin."""

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage

from training.unscene3d.frame_masks import (
    FrameMasksConfig,
    find_foreground,
    frame_masks,
    grid_neighbors,
    similarity_graph,
)
from unscene_ros.scene import InputError


def picture(*things, shape=(12, 16), noise=0.0, seed=0):
    """((h, w, 8) features of things (rows, columns) on a background, (h, w) thing of each cell)."""
    label = np.zeros(shape, int)
    for number, (rows, columns) in enumerate(things, start=1):
        label[slice(*rows), slice(*columns)] = number
    random = np.random.default_rng(seed)
    return np.eye(8)[label] + noise * random.standard_normal((*shape, 8)), label


def sets_of(masks):
    return {frozenset(np.flatnonzero(mask).tolist()) for mask in masks}


def plain_masks(features, config):
    """MaskCut written down without a care for time: dense matrices, scipy's labels."""
    shape = features.shape[:2]
    flat = features.reshape(-1, features.shape[2])
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    taken = np.zeros(shape, bool)
    masks = []
    for _ in range(config.max_cuts):
        left = np.flatnonzero(~taken)
        weights = np.where(flat[left] @ flat[left].T > config.min_similarity, 1, 1e-5)
        if len(left) < max(3, config.min_rest * taken.size) or (weights == weights[0, 0]).all():
            break
        degrees = np.diag(weights.sum(axis=1))
        costs, vectors = scipy.linalg.eigh(degrees - weights, degrees)
        vector = np.full(taken.size, np.nan)
        vector[left] = vectors[:, 1]
        side = np.nan_to_num(vector, nan=-np.inf) > np.nanmean(vector)
        if not side[np.nanargmax(np.abs(vector))]:
            vector, side = -vector, ~side & ~taken.ravel()
        corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
        there = [corner for corner in corners if not taken[corner]]
        if there and np.mean([side.reshape(shape)[corner] for corner in there]) >= 0.75:
            vector, side = -vector, ~side & ~taken.ravel()
        if costs[1] >= config.max_cost:
            break
        seed = np.argmax(np.where(side, vector, -np.inf))
        parts = scipy.ndimage.label(side.reshape(shape))[0]
        part = parts == parts.ravel()[seed]
        if part.sum() >= config.min_share * taken.size:
            masks.append(part)
        taken |= part
    return masks


def test_things_on_a_background_are_the_masks():
    features, label = picture(((2, 6), (2, 7)), ((7, 11), (9, 14)))
    found = frame_masks(features)
    assert sets_of(found.masks) == sets_of([label == 1, label == 2])
    assert found.masks.dtype == bool and found.costs.shape == (2,)


def test_the_side_with_the_corners_is_the_background_even_if_it_is_small():
    label = np.ones((12, 16), int)
    label[[0, -1]] = label[:, [0, -1]] = 0
    masks = frame_masks(np.eye(2)[label]).masks
    assert sets_of(masks) == sets_of([label == 1])


def test_a_thing_in_a_corner_is_found():
    features, label = picture(((0, 5), (0, 6)))
    assert sets_of(frame_masks(features).masks) == sets_of([label == 1])


def test_parts_of_one_look_that_do_not_touch_are_masks_of_their_own():
    features, label = picture(((1, 5), (1, 5)), ((7, 11), (9, 15)))
    features[label == 2] = features[label == 1][0]
    assert sets_of(frame_masks(features).masks) == sets_of([label == 1, label == 2])


def test_there_are_no_more_masks_than_cuts_and_none_overlap():
    things = [((1, 4), (1, 4)), ((1, 4), (6, 9)), ((7, 11), (1, 5)), ((7, 11), (8, 14))]
    features, _ = picture(*things)
    for cuts in range(6):
        masks = frame_masks(features, FrameMasksConfig(max_cuts=cuts)).masks
        assert len(masks) == min(cuts, 4)
        assert masks.sum(axis=0).max(initial=0) <= 1


def test_a_speck_gives_no_mask_and_is_not_found_again():
    features, label = picture(((1, 2), (1, 2)), ((6, 10), (6, 12)))
    masks = frame_masks(features, FrameMasksConfig(max_cuts=4)).masks
    assert sets_of(masks) == sets_of([label == 2])


def test_nothing_stands_out_of_a_picture_of_one_look():
    assert frame_masks(np.ones((12, 16, 3))).masks.shape == (0, 12, 16)
    assert frame_masks(np.zeros((12, 16, 3))).masks.shape == (0, 12, 16)


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 4, 3), (1, 1, 3), (1, 2, 3), (3, 3, 0)])
def test_maps_of_hardly_any_cells_give_no_masks(shape):
    found = frame_masks(np.zeros(shape, np.float32))
    assert found.masks.shape == (0, *shape[:2])
    assert found.costs.shape == (0,)


def test_costs_are_small_for_things_that_stand_out_and_cutting_ends_at_the_largest():
    clear, _ = picture(((3, 8), (4, 10)))
    blurred = scipy.ndimage.gaussian_filter(clear, (2, 2, 0))
    config = FrameMasksConfig(max_cuts=1, min_similarity=0.8)
    assert frame_masks(clear, config).costs[0] < 0.01 < frame_masks(blurred, config).costs[0]
    strict = FrameMasksConfig(max_cuts=1, min_similarity=0.8, max_cost=0.01)
    assert len(frame_masks(clear, strict).masks) == 1
    assert len(frame_masks(blurred, strict).masks) == 0


@pytest.mark.parametrize("seed", range(8))
def test_masks_are_those_of_the_plain_twin(seed):
    random = np.random.default_rng(seed)
    features = scipy.ndimage.gaussian_filter(random.standard_normal((12, 16, 6)), (2, 2, 0))
    config = FrameMasksConfig(max_cuts=5, min_similarity=0.3)
    found, expected = frame_masks(features, config).masks, plain_masks(features, config)
    assert len(found) == len(expected) > 0
    np.testing.assert_array_equal(found, expected)


def test_similarity_is_that_of_directions():
    features = np.array([[[1.0, 0], [5, 0], [1, 1], [0, 0]]])
    np.testing.assert_array_equal(
        similarity_graph(features, 0.5), [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    )


def test_neighbors_share_a_side():
    pairs = {tuple(pair) for pair in grid_neighbors((2, 3)).tolist()}
    assert pairs == {(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)}
    assert len(grid_neighbors((1, 1))) == 0


def test_a_foreground_is_of_the_cells_that_remain_and_its_seed_the_surest():
    features, label = picture(((2, 6), (2, 7)), ((7, 11), (9, 14)))
    edges = similarity_graph(features, 0.5)
    remaining = np.flatnonzero(label != 1)
    foreground = find_foreground(edges, remaining, label.shape)
    np.testing.assert_array_equal(foreground.cells, np.flatnonzero(label == 2))
    assert foreground.seed in foreground.cells
    assert foreground.values.max() == foreground.values[foreground.cells == foreground.seed]
    assert find_foreground(edges, np.flatnonzero(label == 0), label.shape) is None


def test_settings_without_meaning_are_refused():
    with pytest.raises(InputError, match="max_cuts"):
        FrameMasksConfig(max_cuts=-1)
    with pytest.raises(InputError, match="min_similarity"):
        FrameMasksConfig(min_similarity=2.0)
