"""Fusion against Open3D's own meshes, and what Open3D alone does not do."""

import dataclasses

import numpy as np
import open3d as o3d
import pytest
from rendered_room import CONFIG, ROOM_M, assert_same, fused, moved, room, walk, wall

from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.scene import Frame, InputError


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


def test_a_covered_lens_tells_nothing_of_what_is_near():
    near = wall(0.35)
    volume = fused([near] * 3)
    assert volume.integrate(wall(0.0)) is None
    assert volume.dropped == {"no depth in range": 1} and volume.frames == 3


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
    assert volume.lost_surface == ""


def test_blocks_beyond_the_radius_are_evicted_and_counted():
    config = dataclasses.replace(CONFIG, max_radius_m=6.0)
    volume = TsdfVolume(config)
    for x in range(0, 21, 2):
        for _ in range(3):
            volume.integrate(moved(wall(), x))
        volume.extract_mesh()
    vertices = volume.extract_mesh().vertices
    assert volume.evicted_blocks > 0
    assert volume.lost_surface.startswith(f"{volume.evicted_blocks} blocks of the surface were")
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


def test_what_is_near_a_point_can_be_cleared(volume):
    volume = fused([moved(wall(), x) for x in range(0, 9, 2)])
    before, blocks = volume.extract_mesh().vertices, volume.block_count
    near = np.array((4.0, 0.0, 2.0))
    assert volume.clear_around(near + 99, 1.5) == 0
    removed = volume.clear_around(near, 1.5)
    assert volume.block_count == blocks - removed < blocks
    left = volume.extract_mesh().vertices
    half_block = np.sqrt(3) * 4 * CONFIG.voxel_size_m
    assert np.linalg.norm(left - near, axis=1).min() > 1.5 - half_block - CONFIG.voxel_size_m
    far = np.linalg.norm(before - near, axis=1) > 1.5 + 3 * half_block
    assert 100 < far.sum() <= len(left) < len(before)
    for _ in range(2):
        volume.integrate(moved(wall(), 4))
    assert np.linalg.norm(volume.extract_mesh().vertices - near, axis=1).min() < 0.1


def test_place_that_was_evicted_is_mapped_anew():
    config = dataclasses.replace(CONFIG, max_radius_m=6.0)
    volume = fused([wall(2.0)] * 5 + [moved(wall(), 50)] * 2 + [wall(2.3)] * 2, config)
    assert_same(volume.extract_mesh(), fused([wall(2.3)] * 2).extract_mesh())


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
