import numpy as np
import pytest

from unscene_ros.boxes import upright_box


def corners_of_box(center, size, yaw_rad):
    signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return ((signs * size) @ turn.T + center).astype(np.float32)


@pytest.mark.parametrize("yaw_deg", [0, 20, 45, 90, 135, 179])
def test_corners_of_a_turned_box_give_that_box_back(yaw_deg):
    box = upright_box(corners_of_box((1, -2, 3), (2.0, 0.5, 1.0), np.deg2rad(yaw_deg)))
    np.testing.assert_allclose(box.center, (1, -2, 3), atol=1e-4)
    np.testing.assert_allclose(box.size, (2.0, 0.5, 1.0), atol=1e-4)
    # A box looks the same turned by half a circle.
    assert abs((np.rad2deg(box.yaw_rad) - yaw_deg + 90) % 180 - 90) < 0.1


def test_the_longer_side_comes_first():
    box = upright_box(corners_of_box((0, 0, 0), (0.5, 2.0, 1.0), 0.0))
    np.testing.assert_allclose(box.size, (2.0, 0.5, 1.0), atol=1e-5)
    assert np.rad2deg(box.yaw_rad) == pytest.approx(90)


def test_millimetres_survive_far_from_the_origin():
    box = upright_box(corners_of_box((4000, 8000, 0), (1.0, 0.25, 0.5), 0.0).astype(np.float64))
    np.testing.assert_allclose(box.size, (1.0, 0.25, 0.5), atol=1e-3)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_points_without_area_give_a_flat_box(count):
    points = np.array([[1, 1, 1], [1, 1, 3]], np.float32)[:count]
    box = upright_box(points)
    np.testing.assert_allclose(box.size, (0, 0, 2 if count == 2 else 0), atol=1e-6)
