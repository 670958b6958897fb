"""What the layer over Open3D's voxel grid promises beyond it."""

import numpy as np
import open3d as o3d
import pytest

from unscene_ros.scene import Camera, InputError
from unscene_ros.voxel_blocks import BLOCK, CHUNK, VoxelBlocks, block_ids, choose_device

CPU = o3d.core.Device("CPU:0")
CAMERA = Camera(64, 48, np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]]))


def line_of_keys(count: int) -> np.ndarray:
    return np.stack([np.arange(count), np.zeros(count), np.zeros(count)], axis=1).astype(np.int32)


def numbered(rows: np.ndarray) -> list[np.ndarray]:
    """Different values for each row."""
    shape = (len(rows), BLOCK, BLOCK, BLOCK)
    tsdf = np.broadcast_to(rows.reshape(-1, 1, 1, 1), shape).astype(np.float32)
    return [tsdf, tsdf + 1, np.stack([tsdf, tsdf + 2, tsdf + 3], axis=-1)]


def test_blocks_are_listed_in_the_order_of_their_ids():
    blocks = VoxelBlocks(0.1, 5000, CPU)
    keys = np.random.default_rng(0).permutation(line_of_keys(300) - 150)
    blocks.add(keys)
    rows, listed = blocks.active()
    assert (np.diff(block_ids(listed)) > 0).all()
    assert len(np.unique(rows)) == len(rows) == len(blocks) == 300


def test_adding_again_adds_nothing():
    blocks = VoxelBlocks(0.1, 5000, CPU)
    assert len(blocks.add(line_of_keys(3))) == 3
    assert len(blocks.add(line_of_keys(5))) == 2
    assert len(blocks.add(line_of_keys(0))) == 0


def test_growing_keeps_values_marks_and_the_planned_size():
    blocks = VoxelBlocks(0.1, 2000, CPU, capacity=CHUNK + 10)
    rows = blocks.add(line_of_keys(10))
    blocks.write(rows, *numbered(rows))
    blocks.last_seen[rows] = rows + 50
    blocks.changed[rows] = rows % 2 == 0
    blocks.add(line_of_keys(400))
    assert blocks.capacity == 2000
    new_rows, _ = blocks.active()
    (tsdf, weight, color), places = blocks.read(new_rows[:10])
    for value, expected in zip((tsdf, weight, color), numbered(rows), strict=True):
        assert np.array_equal(value[places], expected)
    assert np.array_equal(blocks.last_seen[new_rows[:10]], rows + 50)
    assert np.array_equal(blocks.changed[new_rows[:10]], rows % 2 == 0)
    assert not tsdf[new_rows[10:]].any()


def test_a_block_in_the_place_of_a_removed_one_is_empty():
    blocks = VoxelBlocks(0.1, 5000, CPU)
    rows = blocks.add(line_of_keys(20))
    blocks.write(rows, *numbered(rows + 1))
    blocks.last_seen[rows] = 9
    blocks.remove(line_of_keys(20))
    assert len(blocks) == 0
    rows = blocks.add(line_of_keys(20) + 1000)
    values, places = blocks.read(rows)
    assert not any(value[places].any() for value in values)
    assert not blocks.last_seen[rows].any()


def test_values_copied_from_a_device_are_those_of_shared_memory():
    blocks = VoxelBlocks(0.1, 5000, CPU)
    rows = blocks.add(line_of_keys(6))
    blocks.write(rows, *numbered(rows))
    wanted = np.array([[4, -1], [2, 4]])
    shared, shared_places = blocks.read(wanted)
    blocks._in_host_memory = False  # the path of GPU memory, which works on any tensor
    copied, copied_places = blocks.read(wanted)
    assert [len(value) for value in copied] == [2, 2, 2]
    assert np.array_equal(copied_places < 0, wanted < 0)
    for a, b in zip(shared, copied, strict=True):
        seen = wanted >= 0
        assert np.array_equal(a[shared_places[seen]], b[copied_places[seen]])
    blocks.write(rows[:2], *numbered(rows[:2] + 7))
    blocks._in_host_memory = True
    (tsdf, _, _), _ = blocks.read(rows)
    assert tsdf[rows, 0, 0, 0].tolist() == [*(rows[:2] + 7), *rows[2:]]


def capped(blocks: VoxelBlocks, rows: np.ndarray, before, observed, counts) -> np.ndarray:
    """Weights of voxels that had the mean `before` and then, as the last of `counts`, `observed`.

    All three broadcast to (B, 8, 8, 8).
    """
    shape = (len(rows), BLOCK, BLOCK, BLOCK)
    before, observed, counts = (
        np.broadcast_to(np.float32(each), shape) for each in (before, observed, counts)
    )
    blocks.write(rows, before, np.float32(0), np.float32(0))
    distances_before = blocks.distances(rows)
    after = before + (observed - before) / np.maximum(counts, 1)
    blocks.write(rows, after, counts, np.float32(0))
    blocks.cap_weights(rows, distances_before, 32, 6)
    values, places = blocks.read(rows)
    return values[1][places]


@pytest.mark.parametrize("in_host_memory", [True, False])
@pytest.mark.parametrize(
    ("before", "observed", "count", "expected"),
    [
        (-0.1, -0.1, 20, 20),
        (-0.1, -0.1, 33, 32),
        (-0.1, 0.6, 33, 32),  # not far enough behind the surface that was there
        (-0.1, 0.7, 33, 6),
        (-0.5, 0.3, 33, 6),
        (0.5, 0.7, 33, 32),  # not far enough behind the voxel
        (0.5, 0.8, 33, 6),
        (1.0, 1.0, 33, 6),
        (1.0, -1.0, 33, 32),
        (-1.0, 1.0, 4, 4),
        (0.0, 0.0, 0, 0),
    ],
)
def test_a_voxel_that_is_seen_free_counts_less(in_host_memory, before, observed, count, expected):
    blocks = VoxelBlocks(0.1, 5000, CPU)
    rows = blocks.add(line_of_keys(3))
    blocks._in_host_memory = in_host_memory
    assert (capped(blocks, rows, before, observed, count) == expected).all()


def test_weights_in_both_kinds_of_memory_are_capped_alike_and_those_of_other_rows_stay():
    random = np.random.default_rng(0)
    shape = (4, BLOCK, BLOCK, BLOCK)
    before, observed = random.uniform(-1, 1, (2, *shape))
    counts = random.integers(1, 40, shape)
    weights = []
    for in_host_memory in (True, False):
        blocks = VoxelBlocks(0.1, 5000, CPU)
        rows = blocks.add(line_of_keys(6))
        blocks.write(rows, np.float32(0), np.float32(50), np.float32(0))
        blocks._in_host_memory = in_host_memory
        weights.append(capped(blocks, rows[1:5], before, observed, counts))
        values, places = blocks.read(rows[[0, 5]])
        assert (values[1][places] == 50).all()
    assert np.array_equal(*weights)
    assert len(np.unique(weights[0])) > 20


@pytest.mark.parametrize("pixel", [(0, 0), (1, 2), (47, 63)])
def test_a_picture_with_a_single_reading_is_no_error(pixel):
    depth = np.zeros((48, 64), np.float32)
    depth[pixel] = 1
    keys = VoxelBlocks(0.05, 5000, CPU).touched_by(depth, CAMERA, np.eye(4))
    assert bool(len(keys)) == (pixel == (0, 0))  # Open3D looks at every fourth pixel


def test_a_picture_may_be_larger_than_the_ones_before_it():
    used = VoxelBlocks(0.05, 5000, CPU)
    used.touched_by(np.full((48, 64), 3, np.float32), CAMERA, np.eye(4))
    large = CAMERA.resized(640, 480), np.full((480, 640), 3, np.float32)
    keys = used.touched_by(large[1], large[0], np.eye(4))
    expected = VoxelBlocks(0.05, 5000, CPU).touched_by(large[1], large[0], np.eye(4))
    assert np.array_equal(np.sort(block_ids(keys)), np.sort(block_ids(expected)))


def test_more_blocks_than_a_chunk_are_all_integrated():
    camera = CAMERA.resized(640, 480)
    blocks = VoxelBlocks(0.003, 10_000, CPU)
    depth = np.full((480, 640), 0.8, np.float32)
    keys = blocks.touched_by(depth, camera, np.eye(4))
    assert len(keys) > CHUNK
    rows = blocks.add(keys)
    color = np.full((480, 640, 3), 80, np.uint8)
    blocks.integrate(keys, depth, color, camera, np.eye(4))
    (_, weight, seen), _ = blocks.read(rows)
    assert (weight[rows].max(axis=(1, 2, 3)) == 1).mean() > 0.9
    assert np.allclose(seen[weight == 1], 80)


def test_cuda_is_refused_where_there_is_none():
    if o3d.core.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert choose_device("auto") == CPU
    with pytest.raises(InputError, match="cuda"):
        choose_device("cuda")
