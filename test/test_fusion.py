"""Fusion against Open3D's own meshes, and what Open3D alone does not do."""

import dataclasses

import numpy as np
import open3d as o3d
import pytest

from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.scene import Camera, Frame, InputError, Mesh

CAMERA = Camera(320, 240, np.array([[180.0, 0, 159.5], [0, 180, 119.5], [0, 0, 1]]))
CONFIG = FusionConfig(voxel_size_m=0.05, min_weight=2)
ROOM_M = np.array((4.1, 3.1, 2.7))


def looking(eye, target) -> np.ndarray:
    """World from camera (4, 4), the world's z up."""
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    up = (0, 0, 1) if abs(forward[2]) < 0.9 else (0, 1, 0)
    right = np.cross(forward, up) / np.linalg.norm(np.cross(forward, up))
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = eye
    return pose


def room(*boxes: tuple[tuple[float, ...], tuple[float, ...]]) -> o3d.t.geometry.RaycastingScene:
    """A closed room around the origin with boxes (corner, size) in it."""
    scene = o3d.t.geometry.RaycastingScene()
    for corner, size in ((-ROOM_M / 2, ROOM_M), *boxes):
        box = o3d.geometry.TriangleMesh.create_box(*size).translate(corner)
        scene.add_triangles(o3d.t.geometry.TriangleMesh.from_legacy(box))
    return scene


def seen(scene: o3d.t.geometry.RaycastingScene, pose: np.ndarray, noise_m: float = 0) -> Frame:
    """A frame of the scene; the colour tells the direction of the surface."""
    rays = scene.create_rays_pinhole(
        o3d.core.Tensor(CAMERA.intrinsics),
        o3d.core.Tensor(np.linalg.inv(pose)),
        CAMERA.width,
        CAMERA.height,
    )
    hits = scene.cast_rays(rays)
    depth = hits["t_hit"].numpy()
    random = np.random.default_rng(int(1e6 * abs(pose).sum()))
    depth = (depth + random.normal(0, noise_m, depth.shape)).astype(np.float32)
    color = (127 + 100 * np.abs(hits["primitive_normals"].numpy())).astype(np.uint8)
    return Frame(0, CAMERA, color, depth, pose)


def walk(scene: o3d.t.geometry.RaycastingScene, count: int, noise_m: float = 0) -> list[Frame]:
    """Frames from around the middle of the room in all directions, up and down too."""
    frames = []
    for angle in np.linspace(0, 2 * np.pi, count, endpoint=False):
        eye = 0.5 * np.array((np.cos(angle), np.sin(angle), 0))
        target = np.array((-np.cos(angle), -np.sin(angle), (-0.9, 0, 0.9)[len(frames) % 3]))
        frames.append(seen(scene, looking(eye, target), noise_m))
    for height in (-0.3, 0.3):
        frames += [seen(scene, looking((0.1, 0, -height), (0.1, 0.05, height)), noise_m)] * 4
    return frames


def wall(depth_m: float = 2.0, color=(90, 120, 150)) -> Frame:
    """A wall straight ahead."""
    size = (CAMERA.height, CAMERA.width)
    picture = np.broadcast_to(np.uint8(color), (*size, 3)).copy()
    return Frame(0, CAMERA, picture, np.full(size, depth_m, np.float32), np.eye(4))


def moved(frame: Frame, x: float) -> Frame:
    pose = frame.world_from_camera.copy()
    pose[0, 3] += x
    return dataclasses.replace(frame, world_from_camera=pose)


def fused(frames: list[Frame], config: FusionConfig = CONFIG) -> TsdfVolume:
    volume = TsdfVolume(config)
    for frame in frames:
        volume.integrate(frame)
    return volume


def assert_same(first: Mesh, second: Mesh) -> None:
    for name in ("vertices", "faces", "colors", "normals"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def distances(vertices: np.ndarray, mesh_vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        o3d.core.Tensor(mesh_vertices.astype(np.float32)),
        o3d.core.Tensor(faces.astype(np.uint32)),
    )
    return scene.compute_distance(o3d.core.Tensor(vertices.astype(np.float32))).numpy()


def area_m2(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = vertices[faces.T]
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def open3d_mesh(frames: list[Frame], config: FusionConfig) -> tuple[np.ndarray, np.ndarray]:
    """The naive twin: blocks of 8 as ours, but all Open3D, and the whole surface at once."""
    core, image = o3d.core, o3d.t.geometry.Image
    grid = o3d.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight"), (core.float32,) * 2, ((1), (1)), config.voxel_size_m, 8, 8000
    )
    for frame in frames:
        depth = image(core.Tensor(frame.depth))
        view = (
            core.Tensor(frame.camera.intrinsics),
            core.Tensor(np.linalg.inv(frame.world_from_camera)),
            1.0,
            config.depth_max_m,
            4.0,
        )
        grid.integrate(grid.compute_unique_block_coordinates(depth, *view), depth, *view)
    mesh = grid.extract_triangle_mesh(config.min_weight - 1, -1)  # more than this, not as many
    return mesh.vertex.positions.numpy(), mesh.triangle.indices.numpy()


@pytest.fixture(scope="module")
def furnished_walk() -> list[Frame]:
    return walk(
        room(((-1.5, -1.2, -1.35), (0.8, 0.9, 0.7)), ((0.9, 0.5, -0.4), (0.5, 0.4, 0.5))), 24
    )


@pytest.fixture(scope="module")
def volume(furnished_walk) -> TsdfVolume:
    return fused(furnished_walk)


def test_wall_is_found_where_it_is_and_faces_the_camera():
    mesh = fused([wall(2.02)] * 3).extract_mesh()
    assert len(mesh.vertices) > 2000
    assert np.abs(mesh.vertices[:, 2] - 2.02).max() < 1e-3
    assert np.abs(mesh.normals - (0, 0, -1)).max() < 1e-3
    a, b, c = mesh.vertices[mesh.faces.T]
    assert (np.cross(b - a, c - a)[:, 2] < 0).all()
    assert np.abs(mesh.colors.astype(int) - (90, 120, 150)).max() <= 1


def test_closed_room_gives_a_closed_mesh():
    mesh = fused(walk(room(), 24)).extract_mesh()
    edges = np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, 1:], mesh.faces[:, ::2]]))
    _, uses = np.unique(edges, axis=0, return_counts=True)
    assert (uses % 2 == 0).all()
    assert area_m2(mesh.vertices, mesh.faces) == pytest.approx(
        2 * (ROOM_M * np.roll(ROOM_M, 1)).sum(), rel=0.03
    )
    assert np.abs(np.abs(mesh.vertices) - ROOM_M / 2).min(axis=1).max() < CONFIG.voxel_size_m


def test_same_surface_as_open3d_extracts(furnished_walk, volume):
    mesh = volume.extract_mesh()
    vertices, faces = open3d_mesh(furnished_walk, CONFIG)
    from_ours = distances(mesh.vertices, vertices, faces) / CONFIG.voxel_size_m
    from_theirs = distances(vertices, mesh.vertices, mesh.faces) / CONFIG.voxel_size_m
    assert np.median(from_ours) < 0.05 and np.percentile(from_ours, 99) < 0.6
    assert np.median(from_theirs) < 0.05 and np.percentile(from_theirs, 98) < 1
    assert area_m2(mesh.vertices, mesh.faces) == pytest.approx(area_m2(vertices, faces), rel=0.05)


def test_mesh_after_each_frame_is_that_of_a_fresh_map(furnished_walk):
    growing = TsdfVolume(CONFIG)
    for index, frame in enumerate(furnished_walk[:9]):
        growing.integrate(frame)
        mesh = growing.extract_mesh()
        if index % 4 == 0:
            assert_same(mesh, fused(furnished_walk[: index + 1]).extract_mesh())


@pytest.mark.parametrize("times_seen", [10, 100])
def test_object_that_was_taken_away_disappears(times_seen):
    pose = looking((-1.5, 0, 0), (1, 0, -0.2))
    with_box = seen(room(((0.5, -0.25, -0.5), (0.5, 0.5, 0.5))), pose)
    without_box = seen(room(), pose)
    volume = fused([with_box] * times_seen)

    def points_on_box() -> int:
        vertices = volume.extract_mesh().vertices
        near = (vertices > (0.35, -0.4, -0.65)) & (vertices < (1.15, 0.4, 0.15))
        return int(near.all(axis=1).sum())

    assert points_on_box() > 100
    for _ in range(60):
        volume.integrate(without_box)
    assert points_on_box() == 0


def test_colors_are_means_and_do_not_darken():
    random = np.random.default_rng(0)
    frames = []
    for _ in range(60):
        frame = wall()
        noisy = np.clip(random.normal(120, 10, frame.color.shape), 0, 255).astype(np.uint8)
        frames.append(dataclasses.replace(frame, color=noisy))
    colors = fused(frames).extract_mesh().colors
    assert abs(colors.mean() - 119.5) < 0.5


@pytest.mark.parametrize("depth_m", [0, 0.1, 9.0, np.nan, np.inf, -1.0])
def test_frame_without_depth_in_range_is_counted_and_changes_nothing(depth_m):
    volume = TsdfVolume(CONFIG)
    assert volume.integrate(wall(depth_m)) is None
    assert volume.dropped == {"no depth in range": 1}
    assert volume.frames == volume.block_count == 0
    assert not len(volume.extract_mesh().vertices)


def test_readings_that_are_not_finite_or_out_of_range_count_as_none():
    clean, dirty = wall(), wall()
    clean.depth[:, 160:] = 0
    dirty.depth[:80, 160:], dirty.depth[80:160, 160:], dirty.depth[160:, 160:] = np.nan, 0.1, 9
    assert_same(fused([clean] * 3).extract_mesh(), fused([dirty] * 3).extract_mesh())


def test_camera_beyond_the_reach_of_the_map_is_counted():
    volume = TsdfVolume(CONFIG)
    assert volume.integrate(moved(wall(), 1e9)) is None
    assert volume.dropped == {"camera too far from the origin": 1}


def test_frames_tell_what_they_did():
    volume = TsdfVolume(CONFIG)
    first, second = volume.integrate(wall()), volume.integrate(wall())
    assert first.added == first.updated == volume.block_count > 0
    assert (second.added, second.updated, second.evicted) == (0, first.updated, 0)


def test_blocks_beyond_the_radius_are_evicted_and_counted():
    config = dataclasses.replace(CONFIG, max_radius_m=6.0)
    volume = TsdfVolume(config)
    for x in range(0, 21, 2):
        for _ in range(3):
            volume.integrate(moved(wall(), x))
        volume.extract_mesh()
    vertices = volume.extract_mesh().vertices
    assert volume.evicted_blocks > 0
    assert np.linalg.norm(vertices - (20, 0, 0), axis=1).max() < 6 + 8 * CONFIG.voxel_size_m
    assert vertices[:, 0].max() > 21
    near = fused([moved(wall(), x) for x in range(16, 21, 2) for _ in range(3)]).extract_mesh()
    kept = near.vertices[near.vertices[:, 0] > 19]
    assert np.array_equal(kept, vertices[vertices[:, 0] > 19])


def test_mesh_after_evictions_is_that_of_all_that_is_left(tmp_path):
    config = dataclasses.replace(CONFIG, max_radius_m=6.0)
    volume = TsdfVolume(config)
    for x in range(0, 21, 2):  # towards -x: what is left has cells with corners in what went
        for _ in range(3):
            volume.integrate(moved(wall(), -x))
        mesh = volume.extract_mesh()
    assert volume.evicted_blocks > 0
    volume.save(tmp_path / "map.npz")
    assert_same(mesh, TsdfVolume.load(tmp_path / "map.npz", config).extract_mesh())


def test_memory_stays_below_the_limit_and_the_oldest_blocks_go_first():
    config = FusionConfig(voxel_size_m=0.02, min_weight=1, max_megabytes=64, max_radius_m=1000)
    volume = TsdfVolume(config)
    for x in range(0, 60, 3):
        volume.integrate(moved(wall(), x))
        assert volume.memory_megabytes <= 64
    assert volume.evicted_blocks > 1000
    left = volume.extract_mesh().vertices[:, 0]
    assert left.max() > 58
    assert left.min() > 30
    assert np.diff(np.unique(left)).max() < 3  # what is left is the newest part, without gaps


def test_place_that_was_evicted_is_mapped_anew():
    config = dataclasses.replace(CONFIG, max_radius_m=6.0)
    volume = fused([wall(2.0)] * 5 + [moved(wall(), 50)] * 2 + [wall(2.3)] * 2, config)
    assert_same(volume.extract_mesh(), fused([wall(2.3)] * 2).extract_mesh())


def test_saved_map_gives_the_same_mesh_and_goes_on_the_same(tmp_path, furnished_walk):
    volume = fused(furnished_walk[:6])
    volume.save(tmp_path / "map.npz")
    loaded = TsdfVolume.load(tmp_path / "map.npz", CONFIG)
    assert (loaded.frames, loaded.block_count) == (volume.frames, volume.block_count)
    assert_same(loaded.extract_mesh(), volume.extract_mesh())
    for frame in furnished_walk[6:10]:
        assert loaded.integrate(frame) == volume.integrate(frame)
    assert_same(loaded.extract_mesh(), volume.extract_mesh())
    assert [path.name for path in tmp_path.iterdir()] == ["map.npz"]


def test_empty_map_can_be_saved_and_loaded(tmp_path):
    TsdfVolume(CONFIG).save(tmp_path / "map.npz")
    loaded = TsdfVolume.load(tmp_path / "map.npz", CONFIG)
    assert not len(loaded.extract_mesh().vertices)
    assert loaded.integrate(wall())


def test_map_of_another_voxel_size_is_refused(tmp_path):
    fused([wall()]).save(tmp_path / "map.npz")
    with pytest.raises(InputError, match=r"expected voxels of 0\.04 m, got 0\.05 m"):
        TsdfVolume.load(tmp_path / "map.npz", FusionConfig(voxel_size_m=0.04))


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_map_file_that_is_cut_off_is_refused(tmp_path, share):
    path = tmp_path / "map.npz"
    fused([wall()]).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"map\.npz"):
        TsdfVolume.load(path, CONFIG)


def test_map_file_with_a_flipped_byte_is_refused(tmp_path):
    path = tmp_path / "map.npz"
    fused([wall()]).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        TsdfVolume.load(path, CONFIG)


@pytest.mark.parametrize(
    "change",
    [
        {"keys": np.zeros((2, 3), np.int32)},
        {"tsdf": np.full((1, 8, 8, 8), np.nan, np.float32)},
        {"weight": np.zeros((1, 8, 8), np.float32)},
        {"header": np.array("{}")},
        {"header": np.array("[")},
        {"header": np.array('{"format": 99}')},
    ],
    ids=str,
)
def test_map_file_with_senseless_content_is_refused(tmp_path, change):
    path = tmp_path / "map.npz"
    arrays = {
        "header": np.array('{"format": 1, "voxel_size_m": 0.05, "frames": 1}'),
        "keys": np.zeros((1, 3), np.int32),
        "last_seen": np.zeros(1, np.int64),
        "tsdf": np.zeros((1, 8, 8, 8), np.float32),
        "weight": np.zeros((1, 8, 8, 8), np.float32),
        "color": np.zeros((1, 8, 8, 8, 3), np.float32),
    }
    np.savez(path, **arrays)
    assert TsdfVolume.load(path, CONFIG).block_count == 1
    np.savez(path, **arrays | change)
    with pytest.raises(InputError, match="damaged or other file"):
        TsdfVolume.load(path, CONFIG)


def test_files_that_are_no_maps_are_refused_by_name(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("missing.npz", "text.npz", "array.npy", "."):
        with pytest.raises(InputError, match="map file"):
            TsdfVolume.load(tmp_path / name, CONFIG)


def test_folder_that_does_not_exist_is_named_when_saving(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        TsdfVolume(CONFIG).save(tmp_path / "nowhere" / "map.npz")


@pytest.mark.parametrize(
    "settings",
    [
        {"voxel_size_m": 0.0},
        {"depth_min_m": 6.0},
        {"min_weight": 0},
        {"max_radius_m": 1.0},
        {"max_megabytes": float("nan")},
    ],
    ids=str,
)
def test_senseless_settings_are_refused(settings):
    with pytest.raises(InputError, match="fusion"):
        FusionConfig(**settings)


@pytest.mark.gpu
@pytest.mark.skipif(not o3d.core.cuda.is_available(), reason="no GPU that Open3D can use")
def test_gpu_gives_the_mesh_of_the_cpu(furnished_walk):
    meshes = [
        fused(furnished_walk, dataclasses.replace(CONFIG, device=device)).extract_mesh()
        for device in ("cpu", "cuda")
    ]
    assert np.allclose(meshes[0].vertices, meshes[1].vertices, atol=1e-4)
    assert np.array_equal(meshes[0].faces, meshes[1].faces)
