"""Procedural rooms: solids, placement, camera path, depth sensor, truth, scan folders."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from training.scans import rooms
from training.scans.library import Library
from training.scans.procedural import furniture, seating, shapes, small_things
from training.scans.procedural.architecture import build_shell
from training.scans.procedural.depth_sensor import (
    DepthSensorConfig,
    _incidence_angle,
    add_depth_noise,
)
from training.scans.procedural.furnishing import furnish
from training.scans.procedural.layout import Placed, boxes_overlap, upright_box
from training.scans.procedural.shading import shade
from training.scans.procedural.textures import PATTERNS, Texture
from training.scans.procedural.trajectory import plan_trajectory
from training.scans.rooms import RoomConfig, make_room
from unscene_ros.recordings import open_recording
from unscene_ros.scene import Camera, check_pose

SMALL = RoomConfig(image_width=80, image_height=60, frame_count=12)
GREY = Texture("plain", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.1, 0)


def volume(part: shapes.Part) -> float:
    """Enclosed volume by the divergence theorem; positive when the faces look outwards."""
    corners = part.vertices[part.faces]
    return float(np.linalg.det(corners).sum() / 6)


def open_edges(part: shapes.Part) -> int:
    """Directed edges without a partner in the other direction, equal positions joined."""
    names = {}
    ids = [names.setdefault(tuple(np.round(v, 9)), len(names)) for v in part.vertices]
    edges = [(ids[f[i]], ids[f[(i + 1) % 3]]) for f in part.faces for i in range(3)]
    kept = [(a, b) for a, b in edges if a != b]
    return sum((b, a) not in set(kept) for a, b in kept)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (shapes.box((1, 2, 3), GREY), 6.0),
        (shapes.cylinder(0.5, 2, GREY), np.pi * 0.25 * 2),
        (shapes.lathe([(0.0, 0), (1.0, 1.0), (0.0, 2.0)], GREY, sides=64), 2 * np.pi / 3),
        (shapes.rounded_box((2, 2, 2), 1.0, GREY), 4 * np.pi / 3),
        (shapes.rounded_box((1, 2, 3), 0.01, GREY), 6.0),
        (shapes.vessel([(0.0, 0), (0.5, 0), (0.5, 1)], 0.1, GREY), np.pi * (0.25 - 0.16 * 0.9)),
    ],
)
def test_solids_are_closed_and_have_their_volume(part, expected):
    assert open_edges(part) == 0
    assert volume(part) == pytest.approx(expected, rel=0.07)


def test_a_part_stands_where_it_was_put():
    part = shapes.box((2, 1, 3), GREY, at=(5, 6, 7), turn=(0, 0, np.pi / 2))
    np.testing.assert_allclose(part.bounds(), [(4.5, 5, 7), (5.5, 7, 10)], atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_every_model_stands_on_its_origin_with_tops_inside_its_bounds(seed):
    makers = [
        maker
        for module in (furniture, seating, small_things)
        for name, maker in vars(module).items()
        if name.startswith("make_") and name not in ("make_texture", "make_curtain")
    ]
    assert len(makers) > 25
    for make in makers:
        model = make(np.random.default_rng(seed))
        low, high = model.bounds()
        assert low[2] == pytest.approx(0.0, abs=0.13), make  # a radiator hangs
        assert model.kind in rooms.OBJECT_CLASSES
        for top in model.tops:
            reach = np.array(top.size) / 2
            assert (np.array(top.center) + reach <= high[:2] + 0.02).all(), make
            assert (np.array(top.center) - reach >= low[:2] - 0.02).all(), make
            assert top.z <= high[2] + 1e-9


def contains(box: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points (n, 3) lie inside a turned upright box (8,)."""
    x, y, cos, sin, half_x, half_y, bottom, top = box
    offset = points[:, :2] - (x, y)
    along, across = offset @ (cos, sin), offset @ (-sin, cos)
    level = (points[:, 2] > bottom) & (points[:, 2] < top)
    return (np.abs(along) < half_x) & (np.abs(across) < half_y) & level


def filled(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Many random points inside a turned upright box (8,)."""
    x, y, cos, sin, half_x, half_y, bottom, top = box
    along, across = rng.uniform(-half_x, half_x, 4000), rng.uniform(-half_y, half_y, 4000)
    z = rng.uniform(bottom, top, 4000)
    return np.stack([x + cos * along - sin * across, y + sin * along + cos * across, z], axis=-1)


def test_box_overlap_agrees_with_counting_points_inside_both():
    rng = np.random.default_rng(0)
    yaw = rng.uniform(0, 2 * np.pi, 150)
    boxes = np.column_stack(
        (
            rng.uniform(0, 1.5, (150, 2)),
            np.stack([np.cos(yaw), np.sin(yaw)], axis=-1),
            rng.uniform(0.1, 0.6, (150, 2)),
            np.zeros(150),
            rng.uniform(0.5, 1, 150),
        )
    )
    answers = []
    for one, other in zip(boxes[::2], boxes[1::2], strict=True):
        answers.append(boxes_overlap(one[None], other[None]))
        shared = contains(other, filled(one, rng)).sum()
        if shared:
            assert answers[-1]
        # A corner may be shared that the random points miss, but nothing larger.
        if answers[-1] and not shared:
            shrunk = one * (1, 1, 1, 1, 0.9, 0.9, 1, 1)
            assert not boxes_overlap(shrunk[None], other[None])
    assert 10 < sum(answers) < 70


def test_boxes_may_touch_but_not_cut():
    box = upright_box((0, 0, 0), (1, 1, 1))
    assert not boxes_overlap(box, upright_box((1, 0, 0), (2, 1, 1)))
    assert not boxes_overlap(box, upright_box((0, 0, 1), (1, 1, 2)))
    assert boxes_overlap(box, upright_box((0.9, 0.9, 0.9), (2, 2, 2)))
    assert not boxes_overlap(box, np.zeros((0, 8)))


@pytest.fixture(scope="module", params=[0, 5, 12])
def furnished(request):
    shell, layout = build_shell(np.random.default_rng(request.param))
    furnish(layout)
    return shell, layout


def test_no_object_passes_through_another(furnished):
    _, layout = furnished
    rng = np.random.default_rng(0)
    assert len(layout.placed) >= 8
    all_boxes = [placed.boxes() for placed in layout.placed]
    for number, boxes in enumerate(all_boxes):
        others = np.concatenate(all_boxes[:number] + all_boxes[number + 1 :])
        points = np.concatenate([filled(box, rng)[::40] for box in boxes])
        inside = np.zeros(len(points), bool)
        for other in others:
            shrunk = other - (0, 0, 0, 0, 0.004, 0.004, -0.004, 0.004)
            inside |= contains(shrunk, points)
        assert inside.mean() < 0.002


def test_objects_stand_on_the_floor_or_on_a_top_inside_the_walls(furnished):
    shell, layout = furnished
    corners = np.array([wall.start for wall in shell.walls])
    heights = [0.0] + [placed.z + top.z for placed in layout.placed for top in placed.model.tops]
    for placed in layout.placed:
        if placed.model.kind not in ("curtain", "radiator"):
            assert np.abs(np.array(heights) - placed.z).min() < 1e-9
        boxes = placed.boxes()
        assert (boxes[:, :2] > corners.min(axis=0) - 0.01).all()
        assert (boxes[:, :2] < corners.max(axis=0) + 0.01).all()


def test_furniture_meets_as_in_reality():
    """In some rooms chairs reach under tables and cabinets touch a wall."""
    under, at_wall = 0, 0
    for seed in range(12):
        _, layout = build_shell(np.random.default_rng(seed))
        furnish(layout)
        tables = [p for p in layout.placed if p.model.kind in ("table", "desk")]
        for chair in (p for p in layout.placed if p.model.kind == "chair"):
            spot = np.concatenate([chair.point(0, chair.model.bounds()[1, 1]), [0.3]])
            for table in tables:
                low, high = table.model.bounds()
                hull = Placed(furniture.Model("", (shapes.box(high - low, GREY),)), *_place(table))
                under += contains(hull.boxes()[0], spot[None])[0]
        for cabinet in (p for p in layout.placed if p.model.kind == "cabinet"):
            back = cabinet.point(0, cabinet.model.bounds()[0, 1])
            distance = [abs((back - wall.start) @ wall.inward) for wall in layout.walls]
            at_wall += min(distance) < 0.015
    assert under >= 5
    assert at_wall >= 5


def _place(placed: Placed) -> tuple[float, float, float, float]:
    return placed.x, placed.y, placed.z, placed.yaw


def test_the_camera_keeps_off_obstacles_and_goes_to_both_ends_of_a_room():
    corners = np.array([(0, 0), (6, 0), (6, 3), (0, 3)], float)
    blocked = np.concatenate(
        [
            upright_box((-1, -1, 0), (0, 4, 3)),
            upright_box((6, -1, 0), (7, 4, 3)),
            upright_box((-1, -1, 0), (7, 0, 3)),
            upright_box((-1, 3, 0), (7, 4, 3)),
            upright_box((2.5, 0, 0), (3.5, 1.8, 1)),
        ]
    )
    poses = plan_trajectory(np.random.default_rng(0), blocked, corners, 70)
    assert poses.shape == (70, 4, 4)
    for pose in poses:
        check_pose("pose", pose)
        assert pose[2, 1] < -0.7  # the picture's down is the world's down
    spots = poses[:, :3, 3]
    assert not any(contains(box, spots * (1, 1, 0) + (0, 0, 0.5)).any() for box in blocked)
    assert spots[:, 0].min() < 1.5
    assert spots[:, 0].max() > 4.5
    assert (spots[:, 2] > 0.7).all()
    assert (spots[:, 2] < 1.9).all()
    headings = np.arctan2(poses[:, 1, 2], poses[:, 0, 2])
    assert (np.histogram(headings, 8, (-np.pi, np.pi))[0] > 0).all()


def test_a_room_without_free_floor_still_gets_a_camera():
    corners = np.array([(0, 0), (3, 0), (3, 3), (0, 3)], float)
    poses = plan_trajectory(np.random.default_rng(0), upright_box((0, 0, 0), (3, 3, 1)), corners, 5)
    assert poses.shape == (5, 4, 4)
    assert np.isfinite(poses).all()


FLAT_CAMERA = Camera(160, 120, np.array([[140.0, 0, 79.5], [0, 140, 59.5], [0, 0, 1]]))
ONLY_AXIAL = DepthSensorConfig(
    inverse_depth_step=1e-6, edge_dropout=0, hole_share=0, lateral_sigma_px=0
)


@pytest.mark.parametrize("z", [0.8, 1.6, 3.0])
def test_axial_noise_has_the_published_size(z):
    depth = np.full((120, 160), z, np.float32)
    noisy = add_depth_noise(depth, np.random.default_rng(0), FLAT_CAMERA, ONLY_AXIAL)
    assert (noisy > 0).all()
    expected = 0.0012 + 0.0019 * (z - 0.4) ** 2
    assert np.std(noisy - z) == pytest.approx(expected, rel=0.1)
    assert np.mean(noisy - z) == pytest.approx(0, abs=expected / 10)


def test_depth_comes_in_steps_that_grow_with_the_square_of_the_distance():
    config = DepthSensorConfig(
        axial_floor_m=0, axial_growth_per_m=0, edge_dropout=0, hole_share=0, lateral_sigma_px=0,
        grazing_start_deg=89.9,
    )  # fmt: skip
    for z in (1.0, 2.0, 4.0):
        ramp = np.tile(np.linspace(z, z * 1.04, 160, dtype=np.float32), (120, 1))
        stepped = add_depth_noise(ramp, np.random.default_rng(0), FLAT_CAMERA, config)
        steps = np.diff(np.unique(stepped))
        assert steps.mean() == pytest.approx(0.00285 * (1.02 * z) ** 2, rel=0.05)
        assert np.abs(stepped - ramp).max() < 0.00285 * (1.05 * z) ** 2 * 0.51


def test_readings_out_of_range_and_holes_are_zero():
    depth = np.full((120, 160), 2.0, np.float32)
    depth[:, :40], depth[:, 40:80], depth[:, 80:100] = 0.2, 0.0, 6.0
    before = depth.copy()
    config = DepthSensorConfig(hole_share=0)
    noisy = add_depth_noise(depth, np.random.default_rng(0), FLAT_CAMERA, config)
    assert not noisy[:, :95].any()
    assert (noisy[:, 110:] > 1.9).all()
    assert noisy.dtype == np.float32
    np.testing.assert_array_equal(depth, before)
    holes = add_depth_noise(
        np.full((120, 160), 2.0, np.float32), np.random.default_rng(0), FLAT_CAMERA,
        DepthSensorConfig(hole_share=0.1),
    )  # fmt: skip
    assert 0.05 < (holes == 0).mean() < 0.15


def test_readings_are_lost_at_depth_edges_more_than_on_flat_parts():
    depth = np.full((120, 160), 1.0, np.float32)
    depth[:, 80:] = 3.0
    config = DepthSensorConfig(hole_share=0)
    lost = add_depth_noise(depth, np.random.default_rng(0), FLAT_CAMERA, config) == 0
    assert lost[:, 79:81].mean() > 0.4
    assert lost[:, :70].mean() == 0
    assert lost[:, 90:].mean() == 0


def test_a_depth_picture_without_any_reading_stays_empty():
    nothing = np.zeros((120, 160), np.float32)
    assert not add_depth_noise(nothing, np.random.default_rng(0), FLAT_CAMERA).any()


@pytest.mark.parametrize("tilt_deg", [0, 30, 60, 75])
def test_incidence_angle_of_a_tilted_plane(tilt_deg):
    """The plane x sin(t) + z cos(t) = 2 cos(t) is seen at angle t in the picture's centre."""
    tilt = np.deg2rad(tilt_deg)
    x = (np.arange(160) - 79.5) / 140
    depth = np.tile((2 * np.cos(tilt) / (x * np.sin(tilt) + np.cos(tilt))), (120, 1))
    angle = _incidence_angle(depth.astype(np.float32), FLAT_CAMERA)
    assert np.rad2deg(angle[60, 80]) == pytest.approx(tilt_deg, abs=0.6)
    normal, ray = np.array((np.sin(tilt), 0, np.cos(tilt))), np.array((x[110], 0.5 / 140, 1))
    expected = np.arccos(abs(normal @ ray) / np.linalg.norm(ray))
    assert np.rad2deg(angle[60, 110]) == pytest.approx(np.rad2deg(expected), abs=0.6)


@pytest.mark.parametrize("pattern", range(len(PATTERNS)))
def test_textures_stay_between_their_colours_and_on_their_object(pattern):
    rng = np.random.default_rng(pattern)
    count = 500
    rays = np.zeros((count, 6), np.float32)  # straight down from one metre
    rays[:, :2], rays[:, 2], rays[:, 5] = rng.uniform(-1, 1, (count, 2)), 1, -1
    normals = np.tile(np.array((0, 0, 1), np.float32), (count, 1))

    def colors_at(shift: float) -> np.ndarray:
        moved, moved_rays = np.eye(4)[:3], rays.copy()
        moved[0, 3] = -shift
        moved_rays[:, 0] += shift
        return shade(
            moved_rays, np.ones(count, np.float32),
            normals, np.zeros(count, np.int32), np.zeros(count, bool), np.zeros(3, np.float32),
            np.zeros(3, np.float32), moved[None].astype(np.float32), np.array([pattern]),
            np.array([[(0.2, 0.5, 0.5), (0.8, 0.5, 0.5)]], np.float32),
            np.array([0.1], np.float32), np.array([0]), np.array([3]),
        )  # fmt: skip

    colors = colors_at(0.0)
    assert colors.shape == (count, 3)
    light = colors[:, 1] / 0.5
    assert 0.3 < light.min() <= light.max() < 1.3
    share = (colors[:, 0] / light - 0.2) / 0.6
    assert -1e-4 < share.min() <= share.max() < 1 + 1e-4
    assert np.ptp(share) > 0.2
    # Moved with its object the texture is the same, up to points on a pattern's very edge.
    same = np.isclose(colors_at(0.7), colors, atol=0.02).all(axis=1)
    assert same.mean() > 0.97


@pytest.fixture(scope="module")
def room():
    return make_room(3, SMALL)


def test_the_same_seed_gives_the_same_arrays_and_another_seed_another_room(room):
    again, other = make_room(3, SMALL), make_room(4, SMALL)
    for index in (0, 7):
        one, two = room.frames()[index], again.frames()[index]
        np.testing.assert_array_equal(one.color, two.color)
        np.testing.assert_array_equal(one.depth, two.depth)
        np.testing.assert_array_equal(one.world_from_camera, two.world_from_camera)
    one, two = room.ground_truth(), again.ground_truth()
    np.testing.assert_array_equal(one.points, two.points)
    np.testing.assert_array_equal(one.instance, two.instance)
    np.testing.assert_array_equal(one.semantic, two.semantic)
    assert not np.array_equal(room.frames()[0].color, other.frames()[0].color)


def test_frames_are_a_sequence_at_five_hertz(room):
    frames = room.frames()
    assert len(frames) == 12
    stamps = [frame.stamp_ns for frame in frames]
    np.testing.assert_array_equal(np.diff(stamps), 200_000_000)
    np.testing.assert_array_equal(frames[-1].depth, frames[11].depth)
    with pytest.raises(IndexError):
        frames[12]
    assert len(room.frames(room.trajectory[:0])) == 0
    assert len(list(room.frames(room.trajectory[2:5]))) == 3
    every_fifth = frames[1::5]
    assert [frame.stamp_ns for frame in every_fifth] == stamps[1::5]
    np.testing.assert_array_equal(every_fifth[1].depth, frames[6].depth)


def test_noise_changes_the_frames_but_not_the_room(room):
    clean = make_room(3, RoomConfig(**{**_fields(SMALL), "sensor_noise": False}))
    noisy_frame, clean_frame = room.frames()[2], clean.frames()[2]
    both = (noisy_frame.depth > 0) & (clean_frame.depth > 0)
    error = np.abs(noisy_frame.depth - clean_frame.depth)[both]
    assert 0 < np.median(error) < 0.03
    difference = noisy_frame.color.astype(float) - clean_frame.color
    assert 1 < np.abs(difference).mean() < 40
    np.testing.assert_array_equal(room.ground_truth().points, clean.ground_truth().points)


def _fields(config: RoomConfig) -> dict:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_truth_lies_on_the_surfaces_that_the_camera_saw():
    clean = make_room(3, RoomConfig(**{**_fields(SMALL), "sensor_noise": False}))
    truth = clean.ground_truth()
    cells = {tuple(cell) for cell in np.floor(truth.points / 0.02).astype(int)}
    assert len(cells) > 1000
    seen = []
    for frame in clean.frames():
        rows, columns = np.nonzero(frame.depth)
        z = frame.depth[rows, columns]
        pixels = np.stack([columns, rows, np.ones_like(rows)]) * z
        points = np.linalg.inv(frame.camera.intrinsics) @ pixels
        pose = frame.world_from_camera
        seen.append((pose[:3, :3] @ points).T + pose[:3, 3])
    points = np.concatenate(seen)
    assert cKDTree(truth.points).query(points)[0].max() < 0.02 * np.sqrt(3) + 1e-3
    assert cKDTree(points).query(truth.points)[0].max() < 1e-3


def test_truth_numbers_objects_without_gaps_and_gives_each_one_class(room):
    truth = room.ground_truth()
    names = np.array(rooms.SEMANTIC_CLASSES)[truth.semantic]
    objects = np.unique(truth.instance[truth.instance >= 0])
    np.testing.assert_array_equal(objects, np.arange(len(objects)))
    assert len(objects) >= 5
    for instance in objects:
        assert len(np.unique(names[truth.instance == instance])) == 1
    assert set(names[truth.instance == -2]) <= set(rooms.STUFF_CLASSES)
    assert set(names[truth.instance == -1]) <= set(rooms.VOID_CLASSES)
    assert set(names[truth.instance >= 0]) <= set(rooms.OBJECT_CLASSES)
    assert {"floor", "wall"} <= set(names)
    assert truth.points.dtype == np.float32
    assert truth.instance.dtype == truth.semantic.dtype == np.int32


def test_size_and_colour_do_not_tell_objects_from_walls():
    """Over some rooms the most frequent colours and the heights of stuff and objects overlap."""
    object_values, stuff_values = [], []
    for seed in range(10):
        shell, layout = build_shell(np.random.default_rng(seed))
        furnish(layout)
        stuff_values += [max(part.texture.color) for _, part in shell.surfaces]
        object_values += [
            max(part.texture.color) for placed in layout.placed for part in placed.model.parts
        ]
    low, high = np.percentile(stuff_values, (10, 90))
    inside = np.mean((np.array(object_values) > low) & (np.array(object_values) < high))
    assert inside > 0.5


def test_held_out_seeds_are_never_training_seeds():
    assert not set(rooms.HELD_OUT_SEEDS) & set(rooms.TRAINING_SEEDS)
    assert len(rooms.HELD_OUT_SEEDS) >= 30


def run(folder, *arguments: str) -> int:
    sizes = [f"--set={size}" for size in ("image_width=80", "image_height=60", "frame_count=4")]
    return rooms.main(["-o", str(folder), *sizes, *arguments])


def test_the_command_writes_scan_folders_that_read_back_as_frames(tmp_path):
    assert run(tmp_path, "3", "7-8") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["room_00003", "room_00007", "room_00008"]
    room = make_room(3, RoomConfig(image_width=80, image_height=60, frame_count=4))
    read = list(open_recording(tmp_path / "room_00003"))
    assert len(read) == 4
    for want, got in zip(room.frames(), read, strict=True):
        assert got.stamp_ns == want.stamp_ns
        np.testing.assert_allclose(got.depth, want.depth, atol=0.00051)
        np.testing.assert_allclose(got.world_from_camera, want.world_from_camera, atol=1e-6)
        np.testing.assert_allclose(got.camera.intrinsics, want.camera.intrinsics)
        assert np.abs(got.color.astype(int) - want.color).mean() < 6
    with np.load(tmp_path / "room_00003" / "gt.npz") as saved:
        np.testing.assert_array_equal(saved["points"], room.ground_truth().points)
        np.testing.assert_array_equal(saved["instance"], room.ground_truth().instance)
        assert saved["semantic"].dtype == np.int32


def test_a_second_run_writes_only_what_is_missing_or_changed(tmp_path):
    folder = tmp_path / "room_00003"
    assert run(tmp_path, "3") == 0
    first = (folder / "color" / "000000.jpg").stat().st_mtime_ns
    assert run(tmp_path, "3") == 0
    assert (folder / "color" / "000000.jpg").stat().st_mtime_ns == first
    (folder / "gt.npz").unlink()  # as if it had been interrupted
    assert run(tmp_path, "3") == 0
    second = (folder / "color" / "000000.jpg").stat().st_mtime_ns
    assert second > first
    assert run(tmp_path, "3", "--set=frame_count=2") == 0
    assert (folder / "color" / "000000.jpg").stat().st_mtime_ns > second
    assert len(list(open_recording(folder))) == 2


def test_wrong_arguments_end_with_a_sentence_and_code_two(tmp_path, capsys):
    assert run(tmp_path, "three") == 2
    assert "SEED" in capsys.readouterr().err
    assert run(tmp_path, "3", "--set=image_widht=80") == 2
    assert "image_width" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_reported_and_the_others_are_written(tmp_path, capsys):
    (tmp_path / "room_00003").write_text("a file is in the way")
    assert run(tmp_path, "3", "4") == 1
    assert "room_00003" in capsys.readouterr().err
    assert (tmp_path / "room_00004" / "gt.npz").exists()


def test_rooms_become_a_split_of_a_library(tmp_path):
    assert run(tmp_path, "3-4", "--split", "train") == 0
    library = Library(tmp_path)
    assert library.names("train") == ["room_00003", "room_00004"]
    assert len(list(library.scan("room_00003").frames())) == 4
    assert run(tmp_path, "4", "--split", "held_out") == 0
    assert library.names("held_out") == ["room_00004"]


def test_a_second_call_adds_to_a_split_and_a_failed_one_takes_nothing_away(tmp_path):
    library_of = tmp_path / "scans"
    library_of.mkdir()
    (library_of / "room_00005").write_text("a file is in the way")
    assert run(tmp_path, "5", "--split", "train") == 1
    assert not (tmp_path / "splits").exists()
    assert run(tmp_path, "4", "--split", "train") == 0
    assert run(tmp_path, "3-4", "--split", "train") == 0
    assert run(tmp_path, "5", "--split", "train") == 1
    assert Library(tmp_path).names("train") == ["room_00004", "room_00003"]
