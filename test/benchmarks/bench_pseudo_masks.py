"""Time of the pseudo masks of one scene of real size from features of both modalities."""

from collections.abc import Iterator

import numpy as np

from benchmarks import row, seconds
from training.unscene3d.features import SegmentFeatures
from training.unscene3d.freemask import FreeMaskConfig, freemask_masks
from training.unscene3d.masked_cuts import PAPER_CUTS, MaskedCutsConfig, masked_cut_masks
from training.unscene3d.segment_graph import segment_graph
from unscene_ros.scene import Mesh, Segments

RUNS = 5
SPACING_M = 0.02
TILES, VERTICES_A_TILE = (50, 30), 10  # 1500 segments of 100 vertices: 10 x 6 m, 150 000 vertices
OBJECT_TILES = 5  # an object covers this many tiles each way
MIN_AFFINITY = 0.45  # parts the made-up objects, as the default parts real ones
CHANNELS = {"2d": 384, "3d": 96}  # as DINO ViT-S and Res16UNet34C give them


def tiled_scene() -> tuple[Mesh, Segments, np.ndarray]:
    """(mesh, segments, object of each segment): a floor with boxes, a tile is a segment."""
    columns, rows = (count * VERTICES_A_TILE for count in TILES)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(columns), np.arange(rows)))
    tile_x, tile_y = x // VERTICES_A_TILE, y // VERTICES_A_TILE
    object_x, object_y = tile_x // OBJECT_TILES, tile_y // OBJECT_TILES
    is_box = (object_x + object_y) % 2 == 1
    z = np.where(is_box, 10 + 3 * object_x, 0)
    vertices = (SPACING_M * np.stack([x, y, z], axis=1)).astype(np.float32)
    corner = (np.arange(columns - 1) + columns * np.arange(rows - 1)[:, None]).ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + columns], axis=1),
            np.stack([corner + 1, corner + columns + 1, corner + columns], axis=1),
        ]
    )
    normals = np.tile(np.array([0, 0, 1], np.float32), (len(vertices), 1))
    mesh = Mesh(vertices, faces.astype(np.int32), np.zeros((len(vertices), 3), np.uint8), normals)
    tile = np.arange(TILES[0] * TILES[1]).reshape(TILES[1], TILES[0])
    pairs = [(tile[:, :-1], tile[:, 1:]), (tile[:-1], tile[1:])]
    neighbors = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in pairs])
    segments = Segments(
        (tile_y * TILES[0] + tile_x).astype(np.int32), neighbors.astype(np.int32), tile.size
    )
    object_of_tile = (tile // TILES[0] // OBJECT_TILES) * TILES[0] + tile % TILES[0] // OBJECT_TILES
    return mesh, segments, object_of_tile.ravel()


def clustered_features(object_of_segment: np.ndarray) -> dict[str, SegmentFeatures]:
    """Features of both modalities: those of the object and as much noise."""
    random = np.random.default_rng(0)
    valid = np.ones(len(object_of_segment), bool)
    features = {}
    for name, channels in CHANNELS.items():
        centers = random.standard_normal((object_of_segment.max() + 1, channels))
        noise = random.standard_normal((len(object_of_segment), channels))
        values = (centers[object_of_segment] + noise).astype(np.float16)
        features[name] = SegmentFeatures(values, valid, valid.astype(np.int32))
    return features


def rows() -> Iterator[dict]:
    mesh, segments, object_of_segment = tiled_scene()
    features = clustered_features(object_of_segment)
    for name, find, config in (
        ("pseudo_masks_1500_s", masked_cut_masks, MaskedCutsConfig(min_affinity=MIN_AFFINITY)),
        ("pseudo_masks_paper_1500_s", masked_cut_masks, PAPER_CUTS),
        ("freemask_1500_s", freemask_masks, FreeMaskConfig(min_affinity=MIN_AFFINITY)),
    ):

        def all_of_it(find=find, config=config):
            find(features, segment_graph(mesh, segments, config.graph), config)

        yield row("pseudo_masks", name, seconds(all_of_it, RUNS), "s", RUNS)
