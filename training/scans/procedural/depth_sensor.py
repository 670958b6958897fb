"""What a structured-light depth camera makes of perfect depth: noise, steps, holes, lost edges.

Axial and lateral noise after Nguyen, Izadi and Lovell, "Modeling Kinect Sensor Noise for Improved
3D Reconstruction and Tracking" (3DIMPVT 2012); depth steps after Khoshelham and Oude Elberink,
"Accuracy and Resolution of Kinect Depth Data" (Sensors 2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from unscene_ros.scene import Camera


@dataclass(frozen=True, slots=True)
class DepthSensorConfig:
    """How a depth camera errs; the defaults are a Kinect-like sensor."""

    min_range_m: float = 0.4  # nearer readings are lost
    max_range_m: float = 4.5  # farther readings are lost
    axial_floor_m: float = 0.0012  # standard deviation along the ray at 0.4 m ...
    axial_growth_per_m: float = 0.0019  # ... plus this times (z - 0.4)²
    noise_correlation_px: float = 1.0  # neighbouring pixels share a matching window
    lateral_sigma_px: float = 0.8  # sideways jitter, visible at edges
    inverse_depth_step: float = 0.00285  # 1/m; one disparity step: depth steps grow with z²
    edge_dropout: float = 0.6  # chance that a pixel at a depth edge is lost
    grazing_start_deg: float = 70.0  # from here to 90° between ray and normal readings fade out
    hole_share: float = 0.004  # share of the picture lost in random blobs


def add_depth_noise(
    depth: np.ndarray,
    rng: np.random.Generator,
    camera: Camera,
    config: DepthSensorConfig | None = None,
) -> np.ndarray:
    """Depth (H, W) float32 metres, 0 = none, as the sensor would report perfect `depth`.

    The same generator state gives the same result. `depth` is left as it is.
    """
    config = config or DepthSensorConfig()
    angle = _incidence_angle(depth, camera)
    lost = (depth < config.min_range_m) | (depth > config.max_range_m)
    lost |= _edges(depth) & (rng.random(depth.shape, np.float32) < config.edge_dropout)
    grazing = np.deg2rad(config.grazing_start_deg)
    fading = (angle - grazing) / (np.pi / 2 - grazing)
    lost |= rng.random(depth.shape, np.float32) < fading
    lost |= _blobs(rng, depth.shape, config.hole_share)

    moved = _jittered(rng, depth, config.lateral_sigma_px)
    lost |= moved <= 0
    near = np.maximum(moved, config.min_range_m)
    sigma = config.axial_floor_m + config.axial_growth_per_m * (near - 0.4) ** 2
    # Nguyen et al., Eq. 4: the error explodes at steep views; the divisor is kept off zero.
    steep = np.minimum(angle, np.deg2rad(80))
    sigma += np.where(
        angle > np.pi / 3, 1e-4 / np.sqrt(near) * (steep / (np.pi / 2 - steep)) ** 2, 0
    )
    noisy = near + sigma * _correlated_noise(rng, depth.shape, config.noise_correlation_px)
    step = np.float32(config.inverse_depth_step)
    stepped = 1 / (np.maximum(np.rint(1 / np.maximum(noisy, 0.1) / step), 1) * step)
    return np.where(lost, 0, stepped).astype(np.float32)


def _incidence_angle(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """(H, W) radians between the viewing ray and the surface normal, from depth differences.

    The inverse depth w = 1/z of a plane is linear in the pixel (u, v), and its normal is, up to
    length, n = (f_x w_u, f_y w_v, w - (u - c_x) w_u - (v - c_y) w_v) with n · ray = w.
    """
    fx, fy = camera.intrinsics[[0, 1], [0, 1]]
    u = (np.arange(camera.width, dtype=np.float32) - np.float32(camera.intrinsics[0, 2]))[None]
    v = (np.arange(camera.height, dtype=np.float32) - np.float32(camera.intrinsics[1, 2]))[:, None]
    inverse = np.where(depth > 0, 1 / np.maximum(depth, 0.1), 0).astype(np.float32)
    w_u, w_v = (cv2.Sobel(inverse, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    x, y, z = np.float32(fx) * w_u, np.float32(fy) * w_v, inverse - u * w_u - v * w_v
    ray_length = np.sqrt((u / np.float32(fx)) ** 2 + (v / np.float32(fy)) ** 2 + 1)
    cosine = inverse / (np.sqrt(x * x + y * y + z * z + np.float32(1e-12)) * ray_length)
    return np.arccos(np.clip(cosine, 0, 1))


def _edges(depth: np.ndarray) -> np.ndarray:
    """(H, W) bool pixels beside a depth jump or a hole."""
    far = np.where(depth > 0, depth, np.float32(100))
    kernel = np.ones((3, 3), np.uint8)
    return cv2.dilate(far, kernel) - cv2.erode(far, kernel) > 0.04 + 0.05 * depth


def _blobs(rng: np.random.Generator, shape: tuple[int, int], share: float) -> np.ndarray:
    """(H, W) bool random smooth patches that cover about this share of the picture."""
    coarse = rng.standard_normal((shape[0] // 8 + 1, shape[1] // 8 + 1), np.float32)
    smooth = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    if share <= 0:
        return np.zeros(shape, bool)
    return smooth > np.quantile(smooth, 1 - share)


def _jittered(rng: np.random.Generator, depth: np.ndarray, sigma_px: float) -> np.ndarray:
    """Depth read at pixel positions that are off by a random fraction of a pixel or more."""
    height, width = depth.shape
    noise = rng.standard_normal((2, height, width), np.float32) * np.float32(sigma_px)
    u = np.arange(width, dtype=np.float32) + noise[0]
    v = np.arange(height, dtype=np.float32)[:, None] + noise[1]
    return cv2.remap(depth, u, v, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)


def _correlated_noise(
    rng: np.random.Generator, shape: tuple[int, int], sigma_px: float
) -> np.ndarray:
    """(H, W) normal noise of unit variance whose neighbours are alike over `sigma_px`."""
    noise = rng.standard_normal(shape, np.float32)
    if sigma_px <= 0:
        return noise
    kernel = cv2.getGaussianKernel(2 * int(np.ceil(3 * sigma_px)) + 1, sigma_px, cv2.CV_32F)
    gain = np.sum(kernel**2)  # the filter leaves sqrt(sum k²) of the noise in each direction
    return cv2.sepFilter2D(noise, -1, kernel, kernel) / gain
