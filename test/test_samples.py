"""A scan as a sample: the same for the same seed; voxels, segments and targets stay together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from boxes_library import TINY, boxes_mesh

from training.unscene3d.augmentation import AugmentationConfig
from training.unscene3d.samples import (
    Sample,
    SamplesConfig,
    TrainingScene,
    join_samples,
    make_sample,
)
from training.unscene3d.targets import masks_over_segments
from unscene_ros.oversegmentation import oversegment
from unscene_ros.scene import InputError, Segments
from unscene_ros.voxels import VoxelsConfig, make_voxels, segment_of_voxel

PLAIN = SamplesConfig(augmentation=AugmentationConfig(enabled=False))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scene() -> TrainingScene:
    """Targets are the red and the blue box."""
    mesh, box_of_vertex = boxes_mesh()
    segments = oversegment(mesh, TINY.oversegmentation)
    masks = box_of_vertex == np.array([[1], [2]])
    return TrainingScene("boxes", mesh, segments, masks_over_segments(masks, segments))


def sample(scene, config=PLAIN, seed=0, voxels=TINY.voxels) -> Sample:
    return make_sample(scene, voxels, config, (seed, 0, 0))


def equal(first: Sample, second: Sample) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in (
            (first.voxels.coordinates, second.voxels.coordinates),
            (first.voxels.features, second.voxels.features),
            (first.segment_of_voxel, second.segment_of_voxel),
            (first.targets, second.targets),
        )
    )


def target_of_voxel(made: Sample) -> np.ndarray:
    """(M,) the target that each voxel belongs to, -1 for none."""
    of_segment = np.where(made.targets.any(axis=0), made.targets.argmax(axis=0), -1)
    return of_segment[made.segment_of_voxel]


def test_the_same_seed_makes_the_same_sample_and_another_one_another(scene):
    config = SamplesConfig(max_voxels=300)
    assert equal(sample(scene, config, seed=1), sample(scene, config, seed=1))
    assert not equal(sample(scene, config, seed=1), sample(scene, config, seed=2))


def test_without_augmentation_it_is_the_scene_as_the_robot_sees_it(scene):
    made, voxels = sample(scene), make_voxels(scene.mesh, TINY.voxels)
    np.testing.assert_array_equal(made.voxels.coordinates, voxels.coordinates)
    np.testing.assert_array_equal(made.voxels.features, voxels.features)
    there, ids = np.unique(segment_of_voxel(voxels, scene.segments), return_inverse=True)
    np.testing.assert_array_equal(made.segment_of_voxel, ids)
    np.testing.assert_array_equal(made.targets, scene.targets[:, there])


def test_however_it_is_augmented_the_red_voxels_are_the_red_target(scene):
    augmentation = AugmentationConfig(color_probability=0, elastic_probability=1)
    for seed in range(4):
        made = sample(scene, SamplesConfig(augmentation=augmentation), seed)
        red = made.voxels.features[:, 0] > 0.2
        # Voxels that two boxes share have colours between theirs.
        assert (red == (target_of_voxel(made) == 0)).mean() > 0.97


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_keeps_what_is_nearest_and_all_of_it_consistent(scene, seed):
    whole, part = sample(scene), sample(scene, replace(PLAIN, max_voxels=150), seed)
    assert len(part.voxels.coordinates) == len(part.segment_of_voxel) == 150
    row_of_cell = {tuple(cell): row for row, cell in enumerate(whole.voxels.coordinates)}
    rows = [row_of_cell[tuple(cell)] for cell in part.voxels.coordinates]
    np.testing.assert_array_equal(part.voxels.features, whole.voxels.features[rows])
    # The ids are new ones, of the same partition, without gaps.
    pairs = {
        (int(a), int(b))
        for a, b in zip(whole.segment_of_voxel[rows], part.segment_of_voxel, strict=True)
    }
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert {b for _, b in pairs} == set(range(part.targets.shape[1]))
    # Each voxel still belongs to what it did; targets without a voxel are gone.
    kept = [t for t in range(2) if (target_of_voxel(whole)[rows] == t).any()]
    assert len(part.targets) == len(kept) and part.targets.any(axis=1).all()
    renumbered = np.array([kept.index(t) if t in kept else -1 for t in (0, 1)] + [-1])
    np.testing.assert_array_equal(target_of_voxel(part), renumbered[target_of_voxel(whole)[rows]])
    # It is a square seen from above: nothing that was left out is nearer than what was kept.
    places = whole.voxels.coordinates[:, :2]
    left = np.setdiff1d(np.arange(len(places)), rows)
    reaches = [
        (np.abs(places[rows] - middle).max(), np.abs(places[left] - middle).max(axis=1).min())
        for middle in np.unique(places[rows], axis=0)
    ]
    assert any(reach <= nearest for reach, nearest in reaches)


def test_positions_of_a_crop_are_counted_from_its_own_middle(scene):
    voxels = VoxelsConfig(0.08, channels=("position", "color"))
    made = sample(scene, replace(PLAIN, max_voxels=100), seed=3, voxels=voxels)
    np.testing.assert_allclose(made.voxels.features[:, :3].mean(axis=0), 0, atol=1e-4)


def test_segments_without_a_voxel_vanish_from_the_targets(scene):
    of_vertex = scene.segments.of_vertex.copy()
    of_vertex[0] = scene.segments.count  # a segment of one vertex, which its voxel votes down
    segments = Segments(of_vertex, scene.segments.neighbors, scene.segments.count + 1)
    targets = np.zeros((2, segments.count), bool)
    targets[0, 0], targets[1, -1] = True, True
    made = sample(replace(scene, segments=segments, targets=targets))
    assert made.targets.shape == (1, sample(scene).targets.shape[1])
    assert made.targets.sum() == 1


def test_a_scene_without_targets_is_a_sample_too(scene):
    made = sample(replace(scene, targets=scene.targets[:0]))
    assert made.targets.shape == (0, made.segment_of_voxel.max() + 1)


def test_samples_are_joined_in_the_order_of_the_rows_of_their_tensor(scene):
    made = [sample(scene), sample(scene, replace(PLAIN, max_voxels=120), seed=1)]
    batch = join_samples(made, CPU)
    assert batch.tensor.level.scene_sizes == [len(one.segment_of_voxel) for one in made]
    cells, ids = batch.tensor.level.coordinates.numpy(), batch.segment_of_voxel.numpy()
    for number, one in enumerate(made):
        rows = cells[:, 0] == number
        found = {
            tuple(cell): i for cell, i in zip(cells[rows, 1:].tolist(), ids[rows], strict=True)
        }
        expected = zip(one.voxels.coordinates.tolist(), one.segment_of_voxel, strict=True)
        assert found == {tuple(cell): i for cell, i in expected}
        sizes = np.bincount(one.segment_of_voxel)
        assert batch.segment_sizes[number].tolist() == sizes.tolist()
        np.testing.assert_array_equal(batch.targets[number].numpy(), one.targets)


def test_a_crop_of_nothing_is_refused():
    with pytest.raises(InputError, match="max_voxels: expected 1 or more"):
        SamplesConfig(max_voxels=0)
