"""Compiled per-pixel work of rendering: rays, procedural solid textures, light.

A texture is a function of the position in its part's own frame, so it needs no unwrapping and
stays put on the object. Value noise after Perlin, "An Image Synthesizer" (SIGGRAPH 1985).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from training.scans.procedural.textures import PATTERNS

PLAIN, WOOD, CHECKS, STRIPES, MARBLE, TILES, BRICKS, PLANKS, PATCHES, FABRIC = range(len(PATTERNS))


@njit(cache=True)
def pixel_rays(width: int, height: int, intrinsics: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Rays (height * width, 6) float32, origin and direction in the world, row by row.

    Directions have z = 1 in the camera's frame, so that the distance along a ray is the depth.
    """
    rays = np.empty((height * width, 6), np.float32)
    for row in range(height):
        y = (row - intrinsics[1, 2]) / intrinsics[1, 1]
        for column in range(width):
            x = (column - intrinsics[0, 2]) / intrinsics[0, 0]
            ray = rays[row * width + column]
            for axis in range(3):
                ray[axis] = pose[axis, 3]
                ray[3 + axis] = pose[axis, 0] * x + pose[axis, 1] * y + pose[axis, 2]
    return rays


@njit(cache=True)
def rays_to(
    lamp: np.ndarray, rays: np.ndarray, distances: np.ndarray, normals: np.ndarray
) -> np.ndarray:
    """Rays (N, 6) float32 to the lamp (3,) from where rays (N, 6) hit at distances (N,).

    Left zero where nothing was hit or the seen side, by its normal (N, 3), faces away.
    """
    towards = np.zeros_like(rays)
    for ray in range(len(rays)):
        if not np.isfinite(distances[ray]):
            continue
        hit = rays[ray, :3] + distances[ray] * rays[ray, 3:]
        to_lamp, normal = lamp - hit, normals[ray]
        if np.sum(normal * to_lamp) * np.sum(normal * rays[ray, 3:]) < 0:
            towards[ray, :3], towards[ray, 3:] = hit, to_lamp
    return towards


@njit(cache=True, inline="always")
def _hash(i: int, j: int, k: int, seed: int) -> float:
    """A repeatable pseudo-random number in 0..1 for a lattice cell."""
    h = (i * 374761393 + j * 668265263 + k * 1274126177 + seed * 144665) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1103515245) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 668265263) & 0xFFFFFFFF
    return ((h ^ (h >> 15)) & 0xFFFFFF) / 16777216.0


@njit(cache=True)
def _noise(x: float, y: float, z: float, seed: int) -> float:
    """Smooth value noise in 0..1 with detail of size one."""
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    u, v, w = x - i, y - j, z - k
    u, v, w = u * u * (3 - 2 * u), v * v * (3 - 2 * v), w * w * (3 - 2 * w)
    value = 0.0
    for c in range(8):
        a, b, d = c & 1, (c >> 1) & 1, c >> 2
        weight = (u if a else 1 - u) * (v if b else 1 - v) * (w if d else 1 - w)
        value += weight * _hash(i + a, j + b, k + d, seed)
    return value


@njit(cache=True)
def _grain(along: float, across: float, depth: float, seed: int) -> float:
    """Streaks in 0..1 that run far along the first coordinate, in units of the streak width."""
    wobble = _noise(along * 0.08, across * 0.4, depth * 0.4, seed)
    fine = _noise(along * 0.12, across * 2.5, depth * 2.5, seed + 1)
    return 0.6 * (0.5 + 0.5 * np.sin(6.283 * (2.5 * wobble + 0.3 * across))) + 0.4 * fine


@njit(cache=True)
def _blend(
    pattern: int, u: float, v: float, depth: float, grain_is_u: bool, scale: float, seed: int
) -> tuple[float, float]:
    """Share of the second colour and brightness of a pattern at (u, v, depth), in metres."""
    u, v, depth = u / scale, v / scale, depth / scale
    along, across = (u, v) if grain_is_u else (v, u)
    if pattern == PLAIN:
        return 0.6 * _noise(u, v, depth, seed), 1.0
    if pattern == WOOD:
        return _grain(along, across, depth, seed), 1.0
    if pattern == CHECKS:
        return float((int(np.floor(u)) + int(np.floor(v))) & 1), 1.0
    if pattern == STRIPES:
        return float(int(np.floor(across)) & 1), 1.0
    if pattern == MARBLE:
        fine = _noise(3 * u, 3 * v, 3 * depth, seed + 1)
        rough = _noise(u, v, depth, seed)
        return min(max(2.2 * (0.65 * rough + 0.35 * fine) - 0.6, 0.0), 1.0), 1.0
    if pattern in (TILES, BRICKS):
        row = int(np.floor(v * 3)) if pattern == BRICKS else int(np.floor(v))
        shifted = u + 0.5 * (row & 1) if pattern == BRICKS else u
        column = int(np.floor(shifted))
        edge_v = v * 3 - row if pattern == BRICKS else v - row
        grout = min(shifted - column, edge_v / 3 if pattern == BRICKS else edge_v) < 0.03
        return 1.0 if grout else 0.0, 0.88 + 0.2 * _hash(row, column, 7, seed)
    if pattern == PLANKS:
        row = int(np.floor(across))
        column = int(np.floor(along / 9 + _hash(row, 3, 1, seed)))
        gap = across - row < 0.03
        board = 0.82 + 0.3 * _hash(row, column, 5, seed)
        return 0.5 * _grain(along * 3, across * 3, depth, seed + column), 0.6 if gap else board
    if pattern == PATCHES:
        i, j = int(np.floor(u)), int(np.floor(v * 0.7))
        return _hash(i, j, 0, seed), 0.7 + 0.5 * _hash(i, j, 1, seed)
    weave = _noise(u * 6, v * 6, depth * 6, seed)
    return 0.7 * weave + 0.3 * _noise(u, v, depth, seed), 1.0


@njit(cache=True)
def _albedo(
    x: float,
    y: float,
    z: float,
    nx: float,
    ny: float,
    nz: float,
    pattern: int,
    colors: np.ndarray,
    scale: float,
    long_axis: int,
    seed: int,
) -> tuple[float, float, float]:
    """Surface colour at a point of the part's frame, read on the plane its normal faces most."""
    ax, ay, az = abs(nx), abs(ny), abs(nz)
    if az >= ax and az >= ay:
        face, (w, g) = 0, _blend(pattern, x, y, z, long_axis == 0, scale, seed)
    elif ay >= ax:
        face, (w, g) = 1, _blend(pattern, x, z, y, long_axis == 0, scale, seed)
    else:
        face, (w, g) = 2, _blend(pattern, y, z, x, long_axis == 1, scale, seed)
    g *= 0.96 + 0.08 * _hash(face, 11, 13, seed)  # sides of a real object are never quite equal
    return (
        g * (colors[0, 0] + w * (colors[1, 0] - colors[0, 0])),
        g * (colors[0, 1] + w * (colors[1, 1] - colors[0, 1])),
        g * (colors[0, 2] + w * (colors[1, 2] - colors[0, 2])),
    )


@njit(cache=True)
def shade(
    rays: np.ndarray,
    distances: np.ndarray,
    normals: np.ndarray,
    part_of_ray: np.ndarray,
    lit: np.ndarray,
    lamp: np.ndarray,
    sky: np.ndarray,
    part_from_world: np.ndarray,
    patterns: np.ndarray,
    colors: np.ndarray,
    scales: np.ndarray,
    long_axes: np.ndarray,
    seeds: np.ndarray,
) -> np.ndarray:
    """Colours (N, 3) float32 in about 0..1 of what N rays hit.

    rays (N, 6), distances (N,) along them (inf = sky); normals (N, 3) of the hit triangles;
    part_of_ray (N,); lit (N,) whether the room's lamp at `lamp` (3,) reaches the
    hit. The other arrays describe the P parts: part_from_world (P, 3, 4), patterns (P,), colors
    (P, 2, 3), scales (P,) m, long_axes (P,), seeds (P,). Light is a ceiling lamp with falloff, a
    weak head light and a sky-like ambient term.
    """
    out = np.empty((len(distances), 3), np.float32)
    for ray in range(len(distances)):
        if not np.isfinite(distances[ray]):
            out[ray] = sky
            continue
        p, d, n = part_of_ray[ray], rays[ray, 3:], normals[ray]
        x = rays[ray, 0] + distances[ray] * d[0]
        y = rays[ray, 1] + distances[ray] * d[1]
        z = rays[ray, 2] + distances[ray] * d[2]
        facing = n[0] * d[0] + n[1] * d[1] + n[2] * d[2]
        sign = -1.0 if facing > 0 else 1.0
        m = part_from_world[p]
        red, green, blue = _albedo(
            m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3],
            m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3],
            m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3],
            m[0, 0] * n[0] + m[0, 1] * n[1] + m[0, 2] * n[2],
            m[1, 0] * n[0] + m[1, 1] * n[1] + m[1, 2] * n[2],
            m[2, 0] * n[0] + m[2, 1] * n[1] + m[2, 2] * n[2],
            patterns[p],
            colors[p],
            scales[p],
            long_axes[p],
            seeds[p],
        )
        lx, ly, lz = lamp[0] - x, lamp[1] - y, lamp[2] - z
        far2 = lx * lx + ly * ly + lz * lz
        towards = sign * (n[0] * lx + n[1] * ly + n[2] * lz) / np.sqrt(far2)
        length = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
        light = 0.42 + 0.10 * sign * n[2]
        if lit[ray] and towards > 0:
            light += 0.75 * towards / (1 + 0.06 * far2)
        light += 0.22 * abs(facing) / length / (1 + 0.1 * (distances[ray] * length) ** 2)
        out[ray, 0], out[ray, 1], out[ray, 2] = red * light, green * light, blue * light
    return out
