"""What training sees of a scene: changed in the ways that were asked for, and in no other."""

import dataclasses

import numpy as np
import pytest
from box_world import Box, surface_of

from training.unscene3d.augmentation import AugmentationConfig, augment, elastic_displacements
from unscene_ros.scene import Mesh

NOTHING = AugmentationConfig(
    mirror_probability=0,
    elastic_probability=0,
    scale_change=0,
    tilt_rad=0,
    turn_rad=0,
    color_probability=0,
)
SEEDS = range(20)


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    boxes = [
        Box((0, 0, 0), (2, 1, 0.2)),
        Box((0.4, 0.2, 0.2), (1.0, 0.6, 0.6), (200, 40, 40)),
        Box((0, 0, 0.6), (2, 1, 1.0), None),
    ]
    return surface_of(boxes)[0]


def changed(mesh: Mesh, seed: int, **settings) -> Mesh:
    config = dataclasses.replace(NOTHING, **settings)
    return augment(mesh, np.random.default_rng(seed), config)


def centered(mesh: Mesh) -> np.ndarray:
    return mesh.vertices - mesh.vertices.mean(axis=0)


def test_the_same_seed_gives_the_same_scene_and_another_seed_another(mesh):
    first, again, other = (
        augment(mesh, np.random.default_rng(seed), AugmentationConfig()) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.vertices, again.vertices)
    np.testing.assert_array_equal(first.colors, again.colors)
    assert not np.allclose(first.vertices, other.vertices)


def test_a_scene_is_shifted_by_up_to_half_its_extent(mesh):
    middles = np.array([changed(mesh, seed).vertices.mean(axis=0) for seed in SEEDS])
    reach = np.ptp(mesh.vertices, axis=0) / 2
    assert (np.abs(middles) <= reach + 1e-5).all()
    assert (np.ptp(middles, axis=0) > reach / 2).all()
    np.testing.assert_allclose(centered(changed(mesh, 0)), centered(mesh), atol=1e-5)


def test_turning_keeps_what_is_up_and_all_distances(mesh):
    for seed in SEEDS:
        turned = changed(mesh, seed, turn_rad=np.pi)
        np.testing.assert_allclose(centered(turned)[:, 2], centered(mesh)[:, 2], atol=1e-5)
        lengths = np.linalg.norm(centered(turned), axis=1)
        np.testing.assert_allclose(lengths, np.linalg.norm(centered(mesh), axis=1), atol=1e-5)
        np.testing.assert_allclose(turned.normals[:, 2], mesh.normals[:, 2], atol=1e-5)


def test_tilting_stays_within_its_bound(mesh):
    up = mesh.normals[:, 2] > 0.99
    leans = [changed(mesh, s, tilt_rad=np.pi / 24).normals[up, 2].min() for s in SEEDS]
    assert min(leans) >= np.cos(np.sqrt(2) * np.pi / 24) - 1e-5
    assert min(leans) < 0.9995


def test_mirroring_turns_faces_and_normals_with_the_surface(mesh):
    for seed in SEEDS:
        mirrored = changed(mesh, seed, mirror_probability=0.5, turn_rad=1.0, scale_change=0.1)
        a, b, c = (mirrored.vertices[mirrored.faces[:, corner]] for corner in range(3))
        of_faces = np.cross(b - a, c - a)
        of_vertices = mirrored.normals[mirrored.faces].sum(axis=1)
        assert (np.einsum("fi,fi->f", of_faces, of_vertices) > 0).mean() > 0.98


def test_scaling_stays_within_its_bound(mesh):
    size = np.ptp(mesh.vertices, axis=0)
    scales = np.array(
        [np.ptp(changed(mesh, s, scale_change=0.1).vertices, axis=0) / size for s in SEEDS]
    )
    np.testing.assert_allclose(scales, scales[:, :1].repeat(3, axis=1), rtol=1e-4)
    assert scales.min() >= 0.9 - 1e-4 and scales.max() <= 1.1 + 1e-4
    assert np.ptp(scales) > 0.1


def test_elastic_displacements_are_smooth_and_as_strong_as_asked_for():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 4, (3000, 3))
    near = points + np.array([0.02, 0, 0])
    both = elastic_displacements(np.concatenate([points, near]), 0.8, 1.6, rng)
    steps = np.linalg.norm(both[:3000] - both[3000:], axis=1)
    # Two means over 27 cells leave a few per cent of the noise's spread.
    assert 0.02 < both.std() / 1.6 < 0.2
    assert steps.max() < 0.2 * np.linalg.norm(both, axis=1).max()


def test_colors_change_as_a_whole_and_stay_colors(mesh):
    seen = [changed(mesh, seed, color_probability=0.5).colors for seed in SEEDS]
    different = [not np.array_equal(colors, mesh.colors) for colors in seen]
    assert 10 <= sum(different) < 20  # each of three changes is made half of the time
    for colors in seen:
        assert len(np.unique(colors, axis=0)) == len(np.unique(mesh.colors, axis=0))


def test_a_scene_without_colors_stays_without_and_colors_can_be_dropped(mesh):
    grey = Mesh(mesh.vertices, mesh.faces, np.full_like(mesh.colors, 90), mesh.normals)
    for seed in SEEDS:
        assert (changed(grey, seed, color_probability=1.0).colors == 90).all()
    dropped = changed(mesh, 0, color_drop_probability=1.0).colors
    assert (dropped == dropped[0]).all()


def test_switched_off_or_empty_it_changes_nothing(mesh):
    config = AugmentationConfig(enabled=False)
    assert augment(mesh, np.random.default_rng(0), config) is mesh
    empty = Mesh.empty()
    assert augment(empty, np.random.default_rng(0), AugmentationConfig()) is empty


def test_one_vertex_can_be_augmented():
    one = Mesh(
        np.ones((1, 3), np.float32),
        np.zeros((0, 3), np.int32),
        np.full((1, 3), 7, np.uint8),
        np.array([[0, 0, 1]], np.float32),
    )
    assert augment(one, np.random.default_rng(0), AugmentationConfig()).vertices.shape == (1, 3)
