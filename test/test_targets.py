"""Masks over vertices as targets over segments: majority, order, and what is left out."""

import dataclasses

import numpy as np
import pytest

from training.unscene3d.targets import TargetsConfig, masks_over_segments, target_masks
from unscene_ros.scene import Mesh, Segments

# Ten vertices along x, one metre apart; segments of 4, 3, 2 and 1 of them.
OF_VERTEX = np.repeat(np.arange(4), [4, 3, 2, 1]).astype(np.int32)
SEGMENTS = Segments(OF_VERTEX, np.zeros((0, 2), np.int32), 4)
VERTICES = np.zeros((10, 3), np.float32)
VERTICES[:, 0] = np.arange(10)
MESH = Mesh(
    VERTICES, np.zeros((0, 3), np.int32), np.zeros((10, 3), np.uint8), np.zeros_like(VERTICES)
)
CONFIG = TargetsConfig()


def mask(*vertices: int) -> np.ndarray:
    return np.isin(np.arange(10), vertices)


def targets(*masks, scores=None, **settings) -> np.ndarray:
    stacked = np.array(masks).reshape(-1, 10)
    scores = np.ones(len(masks)) if scores is None else np.array(scores)
    config = dataclasses.replace(CONFIG, **settings)
    return target_masks(stacked, scores, MESH, SEGMENTS, config)


def test_a_segment_belongs_to_the_mask_that_holds_most_of_it():
    masks = np.array([mask(0, 1, 2, 4), mask(0, 1, 7, 8), mask(9)])
    expected = [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]  # exactly half is not most
    np.testing.assert_array_equal(masks_over_segments(masks, SEGMENTS), np.array(expected, bool))
    assert masks_over_segments(masks[:0], SEGMENTS).shape == (0, 4)


def test_the_share_can_be_set():
    masks = np.array([mask(0, 1, 4)])
    assert masks_over_segments(masks, SEGMENTS, 0.3).tolist() == [[True, True, False, False]]


def test_targets_come_best_first_and_without_empty_ones():
    found = targets(mask(7, 8), mask(0), mask(4, 5), scores=[0.2, 0.9, 0.8])
    assert found.tolist() == [[False, True, False, False], [False, False, True, False]]


def test_only_masks_with_enough_score_count_and_only_so_many():
    masks = [mask(7, 8), mask(4, 5, 6), mask(9)]
    assert len(targets(*masks, scores=[0.2, 0.9, 0.5], min_score=0.5)) == 2
    best = targets(*masks, scores=[0.2, 0.9, 0.5], max_masks=1)
    assert best.tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("last, kept", [(7, True), (8, False)])
def test_masks_that_reach_over_most_of_the_scene_are_background(last, kept):
    reach = mask(0, 1, 2, 3, last)  # the scene is nine metres long
    assert len(targets(reach, max_extent=0.8)) == kept
    assert len(targets(reach, max_extent=1.0)) == 1


def test_a_scene_without_masks_has_no_targets():
    assert targets().shape == (0, 4)
    assert targets(mask()).shape == (0, 4)
