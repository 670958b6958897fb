import numpy as np

from unscene_ros.palette import instance_colors


def test_an_id_keeps_its_color_whatever_is_asked_beside_it():
    alone = instance_colors(np.array([7]))
    among = instance_colors(np.arange(20))
    np.testing.assert_array_equal(alone[0], among[7])


def test_neighbouring_ids_look_different_and_none_is_dark():
    colors = instance_colors(np.arange(1, 60)).astype(int)
    assert colors.shape == (59, 3)
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 100
    assert colors.max(axis=1).min() >= 180


def test_no_ids_no_colors():
    assert instance_colors(np.zeros(0, np.int32)).shape == (0, 3)
