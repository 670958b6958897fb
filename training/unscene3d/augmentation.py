"""A scene as it could have stood, stretched and been lit otherwise: what training sees each time.

The transformations of UnScene3D's and Mask3D's training: shift, mirror, elastic distortion, scale,
turn, and changes of colour. What is up stays nearly up.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import map_coordinates, uniform_filter
from scipy.spatial.transform import Rotation

from unscene_ros.scene import Mesh


@dataclass(frozen=True, slots=True)
class AugmentationConfig:
    """How far a scene is changed; angles, shifts and factors are drawn evenly."""

    enabled: bool = True
    mirror_probability: float = 0.5  # of x, and of y
    elastic_probability: float = 0.95
    elastic_steps_m: tuple[float, ...] = (0.2, 0.8)  # how far apart independent displacements are
    elastic_sizes_m: tuple[float, ...] = (0.4, 1.6)  # their spread before smoothing
    scale_change: float = 0.1
    tilt_rad: float = float(np.pi / 24)  # about x and about y
    turn_rad: float = float(np.pi)  # about z, up
    color_probability: float = 0.5  # of each change of colour
    brightness_change: float = 0.2
    contrast_change: float = 0.2
    color_shift: float = 20.0  # of each channel, of 255
    color_drop_probability: float = 0.0  # the whole scene without colour


def augment(mesh: Mesh, rng: np.random.Generator, config: AugmentationConfig) -> Mesh:
    """The same vertices and faces at other places and in other colours; z is up.

    The scene is moved to the origin and from there by up to half its extent, so that the grid of
    voxels falls differently each time. Normals are turned with the scene; the elastic distortion is
    taken for small.
    """
    if not config.enabled or not len(mesh.vertices):
        return mesh
    vertices = mesh.vertices - mesh.vertices.mean(axis=0)
    vertices = vertices + rng.uniform(-0.5, 0.5, 3) * np.ptp(vertices, axis=0)
    if rng.random() < config.elastic_probability:
        steps = zip(config.elastic_steps_m, config.elastic_sizes_m, strict=True)
        for step_m, size_m in steps:
            vertices = vertices + elastic_displacements(vertices, step_m, size_m, rng)
    mirrored = rng.random(2) < config.mirror_probability
    mirror = np.where([*mirrored, False], -1.0, 1.0)
    turns = rng.uniform(-1, 1, 3) * (config.tilt_rad, config.tilt_rad, config.turn_rad)
    turn = Rotation.from_euler("xyz", turns).as_matrix()
    scale = 1 + rng.uniform(-config.scale_change, config.scale_change)
    return Mesh(
        ((vertices * (mirror * scale)) @ turn.T).astype(np.float32),
        mesh.faces[:, ::-1].copy() if mirrored.sum() == 1 else mesh.faces,
        _recolored(mesh.colors, rng, config),
        ((mesh.normals * mirror) @ turn.T).astype(np.float32),
    )


def elastic_displacements(
    points: np.ndarray, step_m: float, size_m: float, rng: np.random.Generator
) -> np.ndarray:
    """(N, 3) metres for points (N, 3): smoothed noise on a grid of this step (Simard et al., 2003).

    size_m is the standard deviation of the noise before it is smoothed over three cells, twice.
    """
    low = points.min(axis=0)
    # Two cells beyond the points, so that smoothing does not see the border of the noise.
    shape = (np.ptp(points, axis=0) // step_m).astype(int) + 6
    places = ((points - low) / step_m + 2).T
    displacements = []
    for _ in range(3):
        noise = uniform_filter(uniform_filter(rng.standard_normal(shape), 3), 3) * size_m
        displacements.append(map_coordinates(noise, places, order=1, mode="nearest"))
    return np.stack(displacements, axis=1)


def _recolored(
    colors: np.ndarray, rng: np.random.Generator, config: AugmentationConfig
) -> np.ndarray:
    """Colours after a change of brightness, of contrast and of each channel; grey stays unknown."""
    if rng.random() < config.color_drop_probability:
        return np.full_like(colors, 128)
    if not (colors != colors[:1]).any():
        return colors
    changed = colors.astype(np.float32)
    if rng.random() < config.color_probability:
        brightness = 255 * rng.uniform(-config.brightness_change, config.brightness_change)
        changed += np.float32(brightness)
    if rng.random() < config.color_probability:
        contrast = 1 + rng.uniform(-config.contrast_change, config.contrast_change)
        changed = (changed - 127.5) * np.float32(contrast) + 127.5
    if rng.random() < config.color_probability:
        changed += rng.uniform(-config.color_shift, config.color_shift, 3).astype(np.float32)
    return cv2.convertScaleAbs(np.maximum(changed, 0))
