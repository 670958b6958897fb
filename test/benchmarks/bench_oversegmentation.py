"""Time of over-segmentation: a real scan by ScanNet's rule, growth from 50k to 1M vertices."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import row, seconds
from unscene_ros.normals import normals_from_faces
from unscene_ros.oversegmentation import (
    OversegmentationConfig,
    oversegment,
    segment_neighbors_within,
)
from unscene_ros.scene import Mesh

SCAN = Path(__file__).parents[1] / "data" / "segmentator_oracle.npz"
AREA = "oversegmentation"
RUNS = 5
GROWTH = (50_000, 100_000, 250_000, 500_000, 1_000_000)


def real_scan() -> Mesh:
    """An office of 85k vertices, fused at 3 cm."""
    with np.load(SCAN) as scan:
        vertices, faces, colors = scan["vertices"], scan["faces"], scan["colors"]
    return Mesh(vertices, faces, colors, normals_from_faces(vertices, faces))


def noisy_terrain(count: int) -> Mesh:
    """About `count` vertices at 4 cm: terraces with sensor noise and mottled patches of paint."""
    side = round(count**0.5)
    random = np.random.default_rng(count)
    y, x = np.mgrid[:side, :side] * np.float32(0.04)
    heights = 0.3 * np.round(np.sin(2 * x) + np.cos(3 * y)) + random.normal(0, 0.004, x.shape)
    vertices = np.stack((x, y, heights), axis=-1).reshape(-1, 3).astype(np.float32)
    index = np.arange(side * side).reshape(side, side)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    faces = np.stack((a, b, d, a, d, c), axis=-1).reshape(-1, 3).astype(np.int32)
    paint = 100 + 60 * np.sign(np.sin(5 * x) * np.cos(4 * y)) + random.normal(0, 8, x.shape)
    colors = np.repeat(paint.reshape(-1, 1), 3, axis=1).astype(np.uint8)
    return Mesh(vertices, faces, colors, normals_from_faces(vertices, faces))


def rows() -> Iterator[dict]:
    scan = real_scan()
    scannet = OversegmentationConfig("scannet", k=0.01, min_vertices=20)
    segments = oversegment(scan, OversegmentationConfig())  # both calls compile
    segment_neighbors_within(scan, segments, 0.06)
    scan_s = seconds(lambda: oversegment(scan, scannet), RUNS)
    near_s = seconds(lambda: segment_neighbors_within(scan, segments, 0.06), RUNS)
    yield row(AREA, "oversegmentation_scannet_rule_85k_s", scan_s, "s", RUNS)
    yield row(AREA, "near_segments_85k_ms", 1000 * near_s, "ms", RUNS)
    taken = {}
    for count in GROWTH:
        mesh = noisy_terrain(count)
        taken[count] = seconds(lambda mesh=mesh: oversegment(mesh, OversegmentationConfig()), RUNS)
        yield row(AREA, f"oversegmentation_{count // 1000}k_s", taken[count], "s", RUNS)
    per_vertex = (taken[GROWTH[-1]] / GROWTH[-1]) / (taken[GROWTH[0]] / GROWTH[0])
    name = "oversegmentation_time_per_vertex_1000k_over_50k"
    yield row(AREA, name, per_vertex, "times", RUNS)
