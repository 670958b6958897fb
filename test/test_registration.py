"""What CameraInfo says, lenses, and colour brought into the depth camera's view."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from unscene_ros.registration import Calibration, Registration
from unscene_ros.scene import Camera, InputError
from unscene_ros.transforms import matrix_from_pose

K = np.array([[100.0, 0, 31.5], [0, 100.0, 23.5], [0, 0, 1]])
LENSES = {
    "plumb_bob": np.array([-0.2, 0.05, 0.001, -0.002, 0.01]),
    "rational_polynomial": np.array([-0.2, 0.05, 0.001, -0.002, 0.01, 0.02, 0.01, 0.003]),
    "equidistant": np.array([0.05, -0.01, 0.002, 0.0005]),
}


def camera_info(**changes):
    fields = dict(
        width=64, height=48, k=K.ravel(), d=np.zeros(5), p=np.zeros(12), binning_x=0, binning_y=0,
        roi=region(), distortion_model="plumb_bob",
    )  # fmt: skip
    return SimpleNamespace(**{**fields, **changes})


def region(x_offset=0, y_offset=0, width=0, height=0):
    return SimpleNamespace(x_offset=x_offset, y_offset=y_offset, width=width, height=height)


def pinhole(width=64, height=48, k=K):
    return Calibration.pinhole(Camera(width, height, k))


def sideways(metres):
    return matrix_from_pose((metres, 0, 0), (0, 0, 0, 1))


def test_full_picture_keeps_the_calibration():
    calibration = Calibration.from_camera_info(camera_info())
    assert calibration.size == (64, 48)
    np.testing.assert_array_equal(calibration.intrinsics, K)
    assert not calibration.is_distorted


def test_region_of_interest_moves_the_principal_point_and_binning_divides():
    info = camera_info(roi=region(8, 4, 32, 24), binning_x=2, binning_y=4)
    calibration = Calibration.from_camera_info(info)
    assert calibration.size == (16, 6)
    expected = [[50, 0, (31.5 - 8) / 2], [0, 25, (23.5 - 4) / 4], [0, 0, 1]]
    np.testing.assert_allclose(calibration.intrinsics, expected)


def test_rectified_pictures_use_the_projection_and_no_lens():
    p = np.array([[90.0, 0, 30, -5], [0, 90, 20, 0], [0, 0, 1, 0]])
    info = camera_info(p=p.ravel(), d=LENSES["plumb_bob"])
    calibration = Calibration.from_camera_info(info, rectified=True)
    np.testing.assert_array_equal(calibration.intrinsics, p[:, :3])
    assert not calibration.is_distorted
    unset = Calibration.from_camera_info(camera_info(), rectified=True)
    np.testing.assert_array_equal(unset.intrinsics, K)


def test_reading_a_message_leaves_it_alone():
    info = camera_info(roi=region(8, 4, 32, 24), k=K.ravel().copy())
    Calibration.from_camera_info(info)
    np.testing.assert_array_equal(info.k, K.ravel())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": np.zeros(9)}, "positive focal lengths"),
        ({"d": np.ones(5), "distortion_model": "fancy"}, "'fancy' with 5 parameters"),
        ({"d": np.ones(3)}, "'plumb_bob' with 3 parameters"),
        ({"d": np.full(5, np.nan)}, "parameters of a lens, got .*nan"),
        ({"d": np.full(5, 1e30)}, "parameters of a lens, got .*1e\\+30"),
        ({"d": np.full(5, -np.inf)}, "parameters of a lens, got .*-inf"),
        ({"width": 0}, "positive size"),
    ],
)
def test_refuses_an_unusable_calibration(changes, words):
    with pytest.raises(InputError, match=words):
        Calibration.from_camera_info(camera_info(**changes))


@pytest.mark.parametrize("lens", LENSES)
def test_projection_follows_the_lens_as_opencv_does(lens):
    calibration = Calibration(64, 48, K, LENSES[lens], lens)
    points = np.array([[0.1, -0.05, 1.0], [-0.2, 0.1, 2.0], [0.0, 0.0, 3.0]])
    zero = np.zeros(3)
    project = cv2.fisheye.projectPoints if lens == "equidistant" else cv2.projectPoints
    twin = project(points[:, None], zero, zero, K, LENSES[lens])[0].reshape(-1, 2)
    np.testing.assert_allclose(calibration.project(points), twin, atol=1e-4)


def test_projection_by_hand():
    pixels = pinhole().project(np.array([[0.1, -0.2, 1.0], [0.2, -0.4, 2.0]]))
    np.testing.assert_allclose(pixels, [[41.5, 3.5], [41.5, 3.5]], atol=1e-5)


def test_points_behind_or_beside_the_camera_are_unseen():
    points = np.array([[0, 0, -1.0], [0, 0, 0], [1.0, 0, 1.0], [0, 5.0, 1.0]])
    np.testing.assert_array_equal(pinhole().project(points), np.full((4, 2), -1))


def test_a_lens_does_not_fold_far_rays_back_into_the_picture():
    strong = Calibration(64, 48, K, np.array([-0.9, 0, 0, 0, 0.0]))
    # This polynomial maps x/z = 0.95 to 0.18, in the middle of the picture.
    far = np.array([[0.95, 0.0, 1.0]])
    np.testing.assert_array_equal(strong.project(far), [[-1, -1]])


@pytest.mark.parametrize("lens", LENSES)
def test_straight_edges_are_straight_after_undistortion(lens):
    """A vertical boundary in space, pictured through the lens, comes out as one column."""
    lens_camera = Calibration(64, 48, K, LENSES[lens], lens)
    # For each pixel of the raw picture, the ray it shows: colour and depth tell the side it is on.
    v, u = np.mgrid[:48, :64].astype(np.float64)
    pixels = np.stack([u, v], axis=-1).reshape(-1, 1, 2)
    undistort = cv2.fisheye.undistortPoints if lens == "equidistant" else cv2.undistortPoints
    side = (undistort(pixels, K, LENSES[lens])[:, 0, 0] > 0.1).reshape(48, 64)
    color = np.where(side[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)
    depth = np.where(side, np.float32(2), np.float32(1))
    registration = Registration(lens_camera, lens_camera)
    color, depth = registration.register(color, depth)
    expected = np.arange(64) > 100 * 0.1 + 31.5
    far_from_edge = np.abs(np.arange(64) - 41.5) > 1.5
    inside = depth > 0
    assert inside.mean() > 0.8
    for row in range(48):
        sure = far_from_edge & inside[row]
        np.testing.assert_array_equal(depth[row, sure] == 2, expected[sure])
        np.testing.assert_array_equal(color[row, sure, 0] > 127, expected[sure])


def test_one_undistorted_camera_gives_the_pictures_as_they_are():
    color = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    depth = np.full((48, 64), 1.5, np.float32)
    same_color, same_depth = Registration(pinhole(), pinhole()).register(color, depth)
    assert same_color is color
    assert same_depth is depth


def test_larger_color_of_the_same_view_is_resampled_to_the_depth_camera():
    k2 = np.diag([2.0, 2.0, 1.0]) @ K  # twice the resolution
    ramp = np.arange(128, dtype=np.uint8)[None, :, None].repeat(96, 0).repeat(3, 2)
    depth = np.ones((48, 64), np.float32)
    color, registered = Registration(pinhole(), pinhole(128, 96, k2)).register(ramp, depth)
    np.testing.assert_array_equal(color[10, :, 0], np.arange(64) * 2)
    np.testing.assert_array_equal(registered, depth)


def test_depth_outside_the_color_picture_is_left_out():
    zoomed = np.array([[200.0, 0, 31.5], [0, 200, 23.5], [0, 0, 1]])
    depth = np.ones((48, 64), np.float32)
    color, registered = Registration(pinhole(), pinhole(k=zoomed)).register(
        np.full((48, 64, 3), 200, np.uint8), depth
    )
    # The colour camera sees from 31.5 - 16 to 31.5 + 16 in the depth picture.
    np.testing.assert_array_equal(np.flatnonzero(registered[24]), np.arange(16, 48))
    np.testing.assert_array_equal(color[24, :, 0] > 0, registered[24] > 0)


def test_color_camera_beside_the_depth_camera_is_reprojected_with_depth():
    """A wall at 2 m, 0.1 m between the cameras, 100 px focal length: the shift is 5 px."""
    ramp = (np.arange(64, dtype=np.uint8) * 3)[None, :, None].repeat(48, 0).repeat(3, 2)
    depth = np.full((48, 64), 2.0, np.float32)
    depth[:, 10:20] = 0
    registration = Registration(pinhole(), pinhole(), color_from_depth=sideways(0.1))
    color, registered = registration.register(ramp, depth)
    np.testing.assert_array_equal(color[7, :59, 0], (np.arange(59) + 5) * 3)
    assert (registered[:, 59:] == 0).all()
    np.testing.assert_array_equal(registered[:, :59], depth[:, :59])


def test_pictures_without_any_depth_are_registered_too():
    registration = Registration(pinhole(), pinhole(), color_from_depth=sideways(0.1))
    color, depth = registration.register(
        np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64), np.float32)
    )
    assert color.shape == (48, 64, 3)
    assert not depth.any()


def test_refuses_pictures_of_another_size_than_calibrated():
    registration = Registration(pinhole(), pinhole())
    color, depth = np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64), np.float32)
    with pytest.raises(InputError, match="depth picture: its CameraInfo says 64x48, got 63x48"):
        registration.register(color, depth[:, 1:])
    with pytest.raises(InputError, match="colour picture: its CameraInfo says 64x48, got 64x47"):
        registration.register(color[1:], depth)


def test_equal_calibrations_are_told_from_changed_ones():
    assert pinhole().equals(pinhole())
    assert not pinhole().equals(pinhole(width=63))
    assert not pinhole().equals(Calibration(64, 48, K, LENSES["plumb_bob"]))
    bent = Calibration(64, 48, K, LENSES["plumb_bob"])
    assert bent.equals(Calibration(64, 48, K, LENSES["plumb_bob"]))
