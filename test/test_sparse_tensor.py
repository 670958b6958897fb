"""Coordinates, keys and kernel maps."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_voxels import random_voxels

from unscene_ros.models.backends import choose_backend
from unscene_ros.models.sparse_tensor import batch_voxels, concatenate, sparse_tensor
from unscene_ros.scene import InputError, Voxels

CPU = torch.device("cpu")
some_voxels = st.lists(
    st.tuples(st.integers(0, 2), *[st.integers(-5, 5)] * 3), min_size=1, max_size=60
)


def tensor_of(coordinates, channels=2, **options):
    coordinates = torch.tensor(coordinates)
    features = torch.arange(len(coordinates) * channels).reshape(-1, channels).double()
    return sparse_tensor(coordinates, features, **options)


@given(some_voxels)
@settings(deadline=None, max_examples=40)
def test_rows_are_the_distinct_voxels_in_order(coordinates):
    tensor = tensor_of(coordinates)
    assert tensor.level.coordinates.tolist() == sorted({c: list(c) for c in coordinates}.values())
    assert (tensor.level.keys.diff() > 0).all()
    rows = tensor.level.row_of_point
    assert tensor.level.coordinates[rows].tolist() == [list(c) for c in coordinates]


@given(some_voxels)
@settings(deadline=None, max_examples=40)
def test_points_of_one_voxel_share_their_mean(coordinates):
    tensor = tensor_of(coordinates)
    points = torch.arange(len(coordinates) * 2).reshape(-1, 2).double()
    for row, cell in enumerate(tensor.level.coordinates.tolist()):
        inside = [point for point, c in zip(points, coordinates, strict=True) if list(c) == cell]
        torch.testing.assert_close(tensor.features[row], torch.stack(inside).mean(0))
    assert torch.equal(tensor.at_points(), tensor.features[tensor.level.row_of_point])


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@given(coordinates=some_voxels)
@settings(deadline=None, max_examples=15)
def test_neighbors_equal_a_search_of_every_cell(backend, kernel_size, coordinates):
    level = tensor_of(coordinates, backend=backend).level
    row_of = {tuple(c): row for row, c in enumerate(level.coordinates.tolist())}
    reach = range(-(kernel_size // 2), kernel_size // 2 + 1)
    offsets = [(x, y, z) for z, y, x in itertools.product(reach, repeat=3)]  # x fastest
    expected = [
        [row_of.get((b, x + dx, y + dy, z + dz), -1) for dx, dy, dz in offsets]
        for b, x, y, z in row_of
    ]
    assert level.neighbors(kernel_size).rows.tolist() == expected


@given(some_voxels)
@settings(deadline=None, max_examples=40)
def test_the_coarser_level_holds_the_parents(coordinates):
    level = tensor_of(coordinates).level
    for _ in range(3):
        coarser, kernel_map = level.coarser
        cells = level.coordinates.tolist()
        parents = [[b, *((v // coarser.stride) * coarser.stride for v in c)] for b, *c in cells]
        assert coarser.coordinates.tolist() == sorted({tuple(p): p for p in parents}.values())
        for row, (parent, (_, *cell)) in enumerate(zip(parents, cells, strict=True)):
            octant = [(v - p) // level.stride for v, p in zip(cell, parent[1:], strict=True)]
            k = octant[0] + 2 * octant[1] + 4 * octant[2]
            target = coarser.coordinates.tolist().index(parent)
            assert kernel_map.rows[target, k] == row
            assert kernel_map.opposite.rows[row].tolist() == [
                target if cell == k else -1 for cell in range(8)
            ]
        level = coarser


def test_maps_are_made_once():
    level = random_voxels().level
    assert level.neighbors(3) is level.neighbors(3)
    assert level.coarser[0] is level.coarser[0]


def test_both_directions_of_a_map_are_cut_into_blocks_once():
    _, down = random_voxels().level.coarser
    assert down.blocks is down.opposite.opposite.blocks
    assert down.opposite.blocks is down.opposite.blocks
    for kernel_map in (down, down.opposite):
        rows = torch.full_like(kernel_map.rows, -1)
        for block in kernel_map.blocks:
            for cell, (targets, sources) in enumerate(block.pairs):
                rows[block.targets][targets, cell] = sources
        assert torch.equal(rows, kernel_map.rows)


def test_points_of_a_coarser_level_are_those_of_the_root():
    tensor = random_voxels()
    coarser = tensor.level.coarser[0].coarser[0]
    rows = coarser.row_of_point
    assert len(rows) == len(tensor.level.row_of_point)
    points = tensor.level.coordinates[tensor.level.row_of_point]
    assert torch.equal(
        coarser.coordinates[rows][:, 1:], torch.div(points[:, 1:], 4, rounding_mode="floor") * 4
    )


def test_the_rows_of_a_scene_are_consecutive_and_scenes_may_be_empty():
    tensor = tensor_of([[2, 0, 0, 0], [0, 1, 1, 1], [2, 0, 0, 1]], scenes=4)
    assert tensor.level.scene_sizes == [1, 0, 2, 0]
    assert [f.tolist() for f in tensor.of_scenes()] == [[[2, 3]], [], [[0, 1], [4, 5]], []]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_coordinates_may_be_views_of_either_integer(dtype):
    tensor = random_voxels()
    wide = torch.zeros(len(tensor.level), 8, dtype=dtype)
    wide[:, ::2] = tensor.level.coordinates
    again = sparse_tensor(wide[:, ::2], tensor.features)
    assert torch.equal(again.level.coordinates, tensor.level.coordinates)
    assert torch.equal(again.features, tensor.features)


def test_a_batch_of_meshes_returns_its_points_in_their_order():
    random = np.random.default_rng(0)
    batch = [
        Voxels(
            random.integers(-9, 9, (count, 3), np.int32),
            random.random((count, 3), np.float32),
            np.zeros(0, np.int32),
        )
        for count in (5, 0, 3)
    ]
    tensor = batch_voxels(batch)
    assert tensor.level.scenes == 3
    assert tensor.level.scene_sizes == [5, 0, 3]
    np.testing.assert_array_equal(
        tensor.at_points(), np.concatenate([voxels.features for voxels in batch])
    )


def test_no_voxels_are_normal_and_no_scenes_an_error():
    with pytest.raises(InputError, match="expected at least one scene"):
        batch_voxels([])
    assert sparse_tensor(torch.zeros(0, 4).int(), torch.zeros(0, 3)).features.shape == (0, 3)


def test_far_voxels_fit_and_a_scene_too_large_says_so():
    far = [[0, -(10**6), 0, 0], [0, 10**6, 3, 3]]
    assert len(tensor_of(far).level.coarser[0]) == 2
    with pytest.raises(InputError, match=r"fewer than 2\^63 voxels.*remove far outliers"):
        tensor_of([[0, -(2**30), -(2**30), -(2**30)], [0, 2**30, 2**30, 2**30]])


@pytest.mark.parametrize(
    ("coordinates", "features", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(2, 3), "expected int32 or int64, got torch.float32"),
        (torch.zeros(2, 3).int(), torch.zeros(2, 3), r"expected \(points, 4\).*got \(2, 3\)"),
        (torch.zeros(2, 4).int(), torch.zeros(3, 3), r"expected \(2, channels\), got \(3, 3\)"),
        (torch.zeros(2, 4).int(), torch.zeros(2), r"expected \(2, channels\), got \(2,\)"),
        (torch.zeros(2, 4).int(), torch.zeros(2, 3).int(), "expected floating point"),
        (torch.zeros(1, 4).int(), torch.tensor([[0, torch.nan]]), "finite numbers.* in row 0"),
        (torch.zeros(1, 4).int(), torch.tensor([[torch.inf]]), "expected finite numbers"),
        (torch.tensor([[-1, 0, 0, 0]]), torch.zeros(1, 3), "batch numbers from 0.* got -1"),
        (torch.tensor([[2**32, 0, 0, 0]]), torch.zeros(1, 3), "numbers from 0 to 65535, got"),
        (torch.tensor([[0, 2**33, 0, 0]]), torch.zeros(1, 3), "move the origin"),
        (torch.tensor([[0, 2**62, 0, 0]]), torch.zeros(1, 3), "move the origin"),
    ],
)
def test_bad_input_says_what_was_expected(coordinates, features, message):
    with pytest.raises(InputError, match=message):
        sparse_tensor(coordinates, features)


def test_a_batch_number_beyond_the_scenes_is_an_error():
    with pytest.raises(InputError, match="from 0 to 1, got 0 to 2"):
        tensor_of([[0, 0, 0, 0], [2, 0, 0, 0]], scenes=2)


def test_features_that_do_not_fit_the_level_are_an_error():
    tensor = random_voxels()
    with pytest.raises(InputError, match=r"expected \(260, channels\).*got \(7, 5\)"):
        tensor.with_features(torch.zeros(7, 5))
    with pytest.raises(InputError, match="tensors of one level"):
        concatenate(tensor, random_voxels())


def test_an_even_or_huge_kernel_is_an_error():
    for size in (0, 2, 9):
        with pytest.raises(InputError, match=f"odd kernel size up to 7, got {size}"):
            random_voxels().level.neighbors(size)


def test_a_backend_can_be_forced_and_a_typo_says_what_exists(monkeypatch):
    monkeypatch.setenv("UNSCENE_SPARSE_BACKEND", "torch")
    assert choose_backend("auto", CPU).name == "torch"
    monkeypatch.setenv("UNSCENE_SPARSE_BACKEND", "tirton")
    with pytest.raises(InputError, match="auto, torch, native, triton, minkowski, got 'tirton'"):
        choose_backend("auto", CPU)
