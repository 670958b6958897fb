"""Features of pictures: known cameras and textures, naive twins, tiny transformers."""

import subprocess
import sys

import numpy as np
import pytest

from unscene_ros.image_features import (
    FilterFeatures,
    ImageFeaturesConfig,
    LiftedFeatures,
    _direction_cells,
    lift_maps,
    lift_to_mesh,
    load_image_features,
    segment_features,
)
from unscene_ros.scene import Camera, Frame, InputError, Mesh, Segments

WIDTH, HEIGHT = 80, 60
CAMERA = Camera(WIDTH, HEIGHT, np.array([[70.0, 0, 40], [0, 72, 30], [0, 0, 1]]))


def frame_at(depth, world_from_camera=None, color=None):
    """A frame with one depth everywhere, or with a depth image."""
    return Frame(
        0,
        CAMERA,
        np.zeros((HEIGHT, WIDTH, 3), np.uint8) if color is None else color,
        np.full((HEIGHT, WIDTH), depth, np.float32),
        np.eye(4) if world_from_camera is None else world_from_camera,
    )


def cloud(points):
    points = np.asarray(points, np.float32).reshape(-1, 3)
    normals = np.tile(np.float32((0, 0, -1)), (len(points), 1))
    return Mesh(points, np.zeros((0, 3), np.int32), np.zeros(points.shape, np.uint8), normals)


def point_at_pixel(u, v, z):
    """The world position that an unmoved camera sees at this pixel."""
    return np.linalg.inv(CAMERA.intrinsics) @ (u * z, v * z, z)


def place_map(cell_px):
    """(h, w, 2): every cell holds the pixel coordinates of its centre."""
    v, u = np.mgrid[: HEIGHT // cell_px, : WIDTH // cell_px] * float(cell_px) + (cell_px - 1) / 2
    return np.stack((u, v), axis=-1).astype(np.float32)


@pytest.mark.parametrize("cell_px", [1, 4])
def test_a_vertex_takes_the_feature_of_its_pixel_at_any_map_size(cell_px):
    pixels = np.array([[20.0, 15.0], [33.25, 41.5], [60.0, 44.75]])
    mesh = cloud([point_at_pixel(u, v, 2.0) for u, v in pixels])
    lifted = lift_maps(mesh, [frame_at(2.0)], [place_map(cell_px)])
    np.testing.assert_allclose(lifted.values, pixels, atol=1e-4)
    assert lifted.view_counts.tolist() == [1, 1, 1]


def test_the_colour_of_a_painted_wall_comes_back():
    color = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    color[:, :40], color[:, 40:] = (255, 0, 0), (0, 0, 255)
    mesh = cloud([point_at_pixel(25, 30, 3.0), point_at_pixel(55, 30, 3.0)])
    lifted = lift_to_mesh(mesh, [frame_at(3.0, color=color)], lambda c: c / np.float32(255))
    np.testing.assert_allclose(lifted.values, [[1, 0, 0], [0, 0, 1]], atol=1e-6)


def naive_lift(mesh, frames, maps, config):
    sums, counts = np.zeros((len(mesh.vertices), maps[0].shape[2])), np.zeros(len(mesh.vertices))
    for frame, features in zip(frames, maps, strict=True):
        for i, vertex in enumerate(mesh.vertices):
            x, y, z = (np.linalg.inv(frame.world_from_camera) @ (*vertex, 1))[:3]
            if z <= 0:
                continue
            u, v, _ = frame.camera.intrinsics @ (x / z, y / z, 1)
            b = config.border_px
            if not (b <= u <= WIDTH - 1 - b and b <= v <= HEIGHT - 1 - b):
                continue
            seen = frame.depth[int(np.floor(v + 0.5)), int(np.floor(u + 0.5))]
            limit = max(config.depth_tolerance_m, config.depth_tolerance_ratio * z)
            if seen == 0 or abs(seen - z) > limit:
                continue
            rows, columns = features.shape[:2]
            s = np.clip((u + 0.5) / WIDTH * columns - 0.5, 0, columns - 1)
            t = np.clip((v + 0.5) / HEIGHT * rows - 0.5, 0, rows - 1)
            for row in range(rows):
                for column in range(columns):
                    share = max(1 - abs(s - column), 0) * max(1 - abs(t - row), 0)
                    sums[i] += share * features[row, column]
            counts[i] += 1
    return sums / np.maximum(counts, 1)[:, None], counts


def test_lifting_equals_its_naive_twin_from_random_poses():
    random = np.random.default_rng(0)
    mesh = cloud(random.uniform(-2, 2, (300, 3)))
    frames, maps = [], []
    for _ in range(6):
        pose = np.eye(4)
        pose[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0]
        pose[:3, 0] *= np.linalg.det(pose[:3, :3])
        pose[:3, 3] = random.uniform(-0.5, 0.5, 3)
        depth = np.round(random.uniform(0, 4, (HEIGHT, WIDTH))) * random.uniform(0.5, 1)
        frames.append(frame_at(depth, pose))
        maps.append(random.normal(size=(7, 9, 3)).astype(np.float32))
    config = ImageFeaturesConfig(depth_tolerance_m=0.7, depth_tolerance_ratio=0.4, border_px=3)
    lifted = lift_maps(mesh, frames, maps, config)
    values, counts = naive_lift(mesh, frames, maps, config)
    assert counts.max() >= 2 and (counts == 0).sum() > 10
    np.testing.assert_array_equal(lifted.view_counts, counts)
    np.testing.assert_allclose(lifted.values, values, atol=1e-5)


def test_values_are_the_plain_mean_over_views():
    mesh = cloud([point_at_pixel(40, 30, 2.0)])
    maps = [np.full((6, 8, 1), value, np.float32) for value in (1.0, 4.0, 10.0)]
    lifted = lift_maps(mesh, [frame_at(2.0)] * 3, maps)
    assert lifted.values.tolist() == [[5.0]]
    assert lifted.view_counts.tolist() == [3]


@pytest.mark.parametrize(
    ("point", "depth", "seen"),
    [
        (point_at_pixel(40, 30, 2.0), 2.0, True),
        (point_at_pixel(40, 30, 2.0), 1.2, False),  # something stands in front of it
        (point_at_pixel(40, 30, 2.0), 2.8, False),  # the camera looks through where it was
        (point_at_pixel(40, 30, 2.0), 0.0, False),  # no depth reading
        (point_at_pixel(40, 30, 1.0), 1.039, True),  # 4 cm count near by
        (point_at_pixel(40, 30, 1.0), 1.041, False),
        (point_at_pixel(40, 30, 5.0), 5.09, True),  # and 2 % further away
        (point_at_pixel(40, 30, 5.0), 5.11, False),
        (point_at_pixel(10.1, 30, 2.0), 2.0, True),  # 10 pixels of margin
        (point_at_pixel(9.9, 30, 2.0), 2.0, False),
        (point_at_pixel(40, 49.1, 2.0), 2.0, False),
        (point_at_pixel(300, 30, 2.0), 2.0, False),  # outside the picture
        (-point_at_pixel(40, 30, 2.0), 2.0, False),  # behind the camera
        ((0.0, 0.0, 0.0), 2.0, False),  # at the camera
    ],
)
def test_a_vertex_is_seen_only_where_the_depth_agrees(point, depth, seen):
    lifted = lift_maps(cloud([point]), [frame_at(depth)], [np.ones((3, 4, 1), np.float32)])
    assert lifted.view_counts.tolist() == [int(seen)]
    assert lifted.values.tolist() == [[float(seen)]]


def test_an_empty_mesh_and_no_frames_are_normal_input():
    provider = load_image_features()
    lifted = lift_to_mesh(Mesh.empty(), [frame_at(1.0)], provider)
    assert lifted.values.shape == (0, 14)
    lifted = lift_to_mesh(cloud([(0, 0, 1)]), [], provider)
    assert lifted.values.shape == (1, 0)
    assert lifted.view_counts.tolist() == [0]
    values, valid = segment_features(lifted, segments_of([0]))
    assert values.shape == (1, 0)
    assert valid.tolist() == [False]
    nothing = LiftedFeatures(np.zeros((0, 5), np.float32), np.zeros(0, np.int32))
    assert segment_features(nothing, segments_of([]))[0].shape == (0, 5)


def segments_of(ids, neighbors=()):
    pairs = np.array(neighbors, np.int32).reshape(-1, 2)
    return Segments(np.array(ids, np.int32), pairs, max(ids, default=-1) + 1)


def test_segments_take_the_mean_over_all_views_of_their_vertices():
    lifted = LiftedFeatures(
        np.array([[1.0, 0], [5, 2], [0, 0], [8, 8]], np.float32), np.array([3, 1, 0, 2], np.int32)
    )
    values, valid = segment_features(lifted, segments_of([0, 0, 0, 1]))
    np.testing.assert_allclose(values, [[2, 0.5], [8, 8]])
    assert valid.all()


def test_unseen_segments_are_filled_from_their_neighbors_step_by_step():
    # 0 and 1 were seen; 2 touches both; 3 touches only 2; 4 touches nothing.
    lifted = LiftedFeatures(
        np.array([[2.0], [6.0], [0], [0], [0]], np.float32), np.array([1, 3, 0, 0, 0], np.int32)
    )
    segments = segments_of([0, 1, 2, 3, 4], [(0, 2), (1, 2), (2, 3)])
    values, valid = segment_features(lifted, segments)
    assert values.ravel().tolist() == [2, 6, 4, 4, 4]
    assert valid.tolist() == [True, True, False, False, False]


def test_without_any_view_all_segments_are_zero_and_not_valid():
    lifted = LiftedFeatures(np.zeros((3, 2), np.float32), np.zeros(3, np.int32))
    values, valid = segment_features(lifted, segments_of([0, 1, 1], [(0, 1)]))
    assert (values == 0).all() and not valid.any()


def stripes(axis, period=8):
    wave = 128 + 100 * np.sin(np.arange(256) * (2 * np.pi / period))
    image = np.broadcast_to(wave if axis == 1 else wave[:, None], (256, 256))[:192]
    return np.repeat(image[..., None], 3, axis=2).astype(np.uint8)


def middle(features):
    return features[features.shape[0] // 2, features.shape[1] // 2]


def paint(rgb):
    return np.full((240, 320, 3), rgb, np.uint8)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (480, 640), (360, 540), (320, 240)])
def test_filter_cells_tile_the_picture_and_have_unit_length(height, width):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    features = load_image_features()(image)
    assert features.shape == (round(64 * height / width), 64, 14)
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, atol=1e-5)


def test_filters_tell_colours_and_textures_apart_by_the_cosine():
    filters = FilterFeatures(256)
    paints = (200, 30, 30), (150, 25, 25), (30, 160, 60)
    red, dark_red, green = (middle(filters(paint(rgb))) for rgb in paints)
    assert red @ dark_red > 0.8
    assert red @ green < -0.5
    across, shifted, down = (
        filters(image).mean(axis=(0, 1))
        for image in (stripes(1), np.roll(stripes(1), 3, axis=1), stripes(0))
    )
    assert across @ down < across @ shifted - 0.1
    np.testing.assert_allclose(across[3:11].sum(), 0, atol=1e-5)
    assert across[3:11].argmax() == 0  # the gradient of upright stripes points sideways
    assert down[3:11].argmax() == 4


def test_direction_cells_equal_their_naive_twin():
    random = np.random.default_rng(0)
    strength = random.uniform(0, 1, (8, 12)).astype(np.float32)
    angle = random.uniform(0, 2 * np.pi, (8, 12)).astype(np.float32)
    expected = np.zeros((2, 3, 6))
    for y, x in np.ndindex(8, 12):
        for direction in range(6):
            turn = abs(angle[y, x] - direction * np.pi / 6) % np.pi
            nearness = max(1 - min(turn, np.pi - turn) / (np.pi / 6), 0)
            expected[y // 4, x // 4, direction] += strength[y, x] * nearness / 16
    np.testing.assert_allclose(_direction_cells(strength, angle, 4, 6), expected, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"image_width": 0}, {"overlap": 0}, {"depth_tolerance_m": -1.0}, {"border_px": -1}],
)
def test_settings_without_meaning_name_the_setting(change):
    with pytest.raises(InputError, match=f"image_features.{next(iter(change))}"):
        ImageFeaturesConfig(**change)


def test_the_default_provider_does_not_import_torch():
    code = (
        "import sys; from unscene_ros.image_features import load_image_features; "
        "load_image_features(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
