import cv2
import numpy as np
import pytest

from unscene_ros.instance_mesh import UNLABELLED_BRIGHTNESS
from unscene_ros.palette import COLOR_COUNT, LEAST_CHROMA, LIGHTNESS, class_colors, instance_colors


def cielab(colors):
    return cv2.cvtColor(colors[None] / np.float32(255), cv2.COLOR_RGB2Lab)[0]


def distances(colors):
    """(N, N) in CIELAB, where 2 can just be told apart side by side."""
    lab = cielab(colors)
    return np.linalg.norm(lab[:, None] - lab, axis=-1)


@pytest.mark.parametrize("colors", [instance_colors, class_colors])
def test_an_id_keeps_its_color_whatever_is_asked_beside_it(colors):
    alone = colors(np.array([7]))
    among = colors(np.arange(20))
    np.testing.assert_array_equal(alone[0], among[7])


def test_the_first_twenty_objects_of_a_map_are_easily_told_apart():
    between = distances(instance_colors(np.arange(1, 21)))
    assert between[~np.eye(20, dtype=bool)].min() > 25


def test_no_two_of_the_colors_are_alike():
    between = distances(instance_colors(np.arange(COLOR_COUNT)))
    assert between[~np.eye(COLOR_COUNT, dtype=bool)].min() > 5


def test_every_color_is_lively_and_neither_dark_nor_white():
    lightness, *red_and_yellow = cielab(instance_colors(np.arange(COLOR_COUNT))).T
    assert LIGHTNESS[0] <= lightness.min() and lightness.max() <= LIGHTNESS[1]
    assert np.hypot(*red_and_yellow).min() >= LEAST_CHROMA


def test_no_color_is_mistaken_for_the_darkened_map():
    level = np.arange(0, 256, 51, dtype=np.float32)
    map_colors = np.stack(np.meshgrid(level, level, level), axis=-1).reshape(-1, 3)
    darkened = cielab((map_colors * UNLABELLED_BRIGHTNESS).astype(np.uint8))
    objects = cielab(instance_colors(np.arange(COLOR_COUNT)))
    assert np.linalg.norm(objects[:, None] - darkened, axis=-1).min() > 15


def test_ids_beyond_the_last_color_begin_again():
    large = np.array([3, 3 + COLOR_COUNT, 2**31 - 1])
    colors = instance_colors(large)
    np.testing.assert_array_equal(colors[0], colors[1])
    assert colors.dtype == np.uint8


def test_an_unknown_class_is_white():
    colors = class_colors(np.array([-1, 4]))
    assert colors[0].tolist() == [255, 255, 255] and colors.dtype == np.uint8
    np.testing.assert_array_equal(colors[1], instance_colors(np.array([4]))[0])


@pytest.mark.parametrize("colors", [instance_colors, class_colors])
def test_no_ids_no_colors(colors):
    assert colors(np.zeros(0, np.int32)).shape == (0, 3)
