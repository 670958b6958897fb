"""Surface nets against a naive twin on a dictionary of voxels, and on shapes known exactly."""

from itertools import product

import numpy as np
import pytest

from unscene_ros.meshing import SurfaceVertices, join, surface_vertices
from unscene_ros.voxel_blocks import (
    BLOCK,
    CORNER_ID_STEPS,
    CORNER_STEPS,
    block_ids,
    block_keys,
    places_in_sorted,
)

VOXEL_M = 0.1


class Voxels:
    """All voxels of the blocks from `low` to before `high`, filled by functions of position."""

    def __init__(self, distance, low=(-2, -2, -2), high=(2, 2, 2)):
        keys = np.array(list(product(*map(range, low, high))), np.int32)
        self.ids = np.sort(block_ids(keys))
        self.keys = block_keys(self.ids)
        inner = np.stack(np.meshgrid(*[np.arange(BLOCK)] * 3, indexing="ij"), axis=-1)[..., ::-1]
        self.indices = self.keys[:, None, None, None] * BLOCK + inner
        self.positions = self.indices * VOXEL_M
        self.tsdf = distance(self.positions).astype(np.float32)
        self.weight = np.ones_like(self.tsdf)
        self.color = np.full((*self.tsdf.shape, 3), 100, np.float32)

    def rows(self, ids):
        return places_in_sorted(ids[:, None] + CORNER_ID_STEPS, self.ids)

    def surface(self, ids=None) -> SurfaceVertices:
        ids = self.ids if ids is None else ids
        return surface_vertices(self.tsdf, self.weight, self.color, ids, self.rows(ids), VOXEL_M, 1)


def sphere(radius_m, center=(0.013, -0.02, 0.031)):
    return lambda p: np.clip((np.linalg.norm(p - center, axis=-1) - radius_m) / 0.4, -1, 1)


def noise(seed):
    return lambda p: np.random.default_rng(seed).uniform(-1, 1, p.shape[:-1])


def naive_surface_nets(voxels: Voxels) -> tuple[dict, set]:
    """Position of each cell's vertex, and the four cells of each quad."""
    values = {}
    observed = voxels.weight >= 1
    for index, value in zip(voxels.indices[observed], voxels.tsdf[observed], strict=True):
        values[tuple(index)] = value
    corners = [np.array(corner) for corner in product((0, 1), repeat=3)]
    vertices = {}
    for cell in values:
        at = {tuple(c): values.get(tuple(cell + c)) for c in corners}
        if None in at.values():
            continue
        crossings = []
        for low, high in product(corners, corners):
            a, b = at[tuple(low)], at[tuple(high)]
            if (high - low).min() == 0 and (high - low).sum() == 1 and (a < 0) != (b < 0):
                crossings.append(cell + low + (high - low) * a / (a - b))
        if crossings:
            vertices[cell] = np.mean(crossings, axis=0) * VOXEL_M
    quads = set()
    for voxel, axis in product(values, range(3)):
        step = np.eye(3, dtype=int)
        other = values.get(tuple(voxel + step[axis]))
        if other is None or (values[voxel] < 0) == (other < 0):
            continue
        u, v = step[(axis + 1) % 3], step[(axis + 2) % 3]
        around = [tuple(voxel - i * u - j * v) for i, j in product((0, 1), repeat=2)]
        if all(cell in vertices for cell in around):
            quads.add(frozenset(around))
    return vertices, quads


def edge_counts(faces: np.ndarray) -> dict[tuple[int, int], int]:
    """How many faces use each directed edge."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    pairs, counts = np.unique(edges, axis=0, return_counts=True)
    return {tuple(pair): count for pair, count in zip(pairs.tolist(), counts, strict=True)}


def test_block_ids_keep_the_coordinates_and_sort_by_z_then_y_then_x():
    keys = np.array([(5, -3, 1), (-70000, 0, 1), (0, 0, -1), (1, 0, 1)], np.int32)
    ids = block_ids(keys)
    assert (block_keys(ids) == keys).all()
    assert np.argsort(ids).tolist() == [2, 0, 1, 3]
    steps = block_ids(keys + CORNER_STEPS[5].astype(np.int32)) - ids
    assert (steps == CORNER_ID_STEPS[5]).all()


def test_places_in_sorted_are_minus_one_for_what_is_not_there():
    assert places_in_sorted(np.array([3, 4, 9, 0]), np.array([0, 3, 7])).tolist() == [1, -1, -1, 0]
    assert places_in_sorted(np.array([[3]]), np.array([], int)).tolist() == [[-1]]


@pytest.mark.parametrize("seed", range(3))
def test_same_vertices_and_quads_as_the_naive_twin(seed):
    voxels = Voxels(noise(seed), (-1, -1, -1), (1, 1, 1))
    voxels.weight[np.random.default_rng(seed).random(voxels.weight.shape) < 0.02] = 0
    surface = voxels.surface()
    vertices, quads = naive_surface_nets(voxels)

    cells = np.stack([surface.cells >> 3 * axis & 7 for axis in range(3)], axis=1)
    cells = block_keys(surface.cells >> 9) * BLOCK + cells
    assert sorted(map(tuple, cells.tolist())) == sorted(tuple(map(int, c)) for c in vertices)
    expected = np.array([vertices[tuple(cell)] for cell in cells])
    assert np.abs(surface.positions - expected).max() < 1e-5

    mesh = join(surface)
    joined = {tuple(p): tuple(c) for p, c in zip(surface.positions, cells.tolist(), strict=True)}
    corners = [[joined[tuple(mesh.vertices[i])] for i in face] for face in mesh.faces]
    assert len(corners) == 2 * len(quads) > 1000
    for first, second in zip(corners[::2], corners[1::2], strict=True):
        assert frozenset(first + second) in quads


def test_sphere_is_closed_and_round_and_looks_outwards():
    radius_m, center = 0.9, np.array((0.013, -0.02, 0.031))
    mesh = join(Voxels(sphere(radius_m, center)).surface())
    counts = edge_counts(mesh.faces)
    assert set(counts.values()) == {1}  # each edge once in each direction: closed, one side out
    assert all((b, a) in counts for a, b in counts)
    assert len(mesh.vertices) - len(counts) // 2 + len(mesh.faces) == 2
    from_center = mesh.vertices - center
    assert np.abs(np.linalg.norm(from_center, axis=1) - radius_m).max() < 0.2 * VOXEL_M
    directions = from_center / np.linalg.norm(from_center, axis=1, keepdims=True)
    assert np.einsum("vc,vc->v", mesh.normals, directions).min() > np.cos(np.radians(15))
    assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)


def test_plane_lies_where_the_distance_is_zero_and_mixes_the_colors_there():
    voxels = Voxels(lambda p: 0.23 - p[..., 2])  # free space below z = 0.23, a quarter is at 0.225
    voxels.color[voxels.positions[..., 2] > 0.25] = 200
    mesh = join(voxels.surface())
    assert np.allclose(mesh.vertices[:, 2], 0.23, atol=1e-5)
    assert (mesh.colors == 130).all()  # 0.3 of the way from the voxel at 0.2 to the one at 0.3
    assert np.allclose(mesh.normals, (0, 0, -1), atol=1e-5)
    assert len(mesh.vertices) == 31**2  # 32 voxels, 31 cells between them
    assert len(mesh.faces) == 2 * 30**2


def test_cells_with_an_unobserved_corner_have_no_surface():
    voxels = Voxels(lambda p: 0.23 - p[..., 2])
    voxels.weight[voxels.positions[..., 0] < 0] = 0
    mesh = join(voxels.surface())
    assert 0 <= mesh.vertices[:, 0].min() < VOXEL_M
    voxels.weight[:] = 0
    assert not len(join(voxels.surface()).vertices)


@pytest.mark.parametrize("seed", range(5))
def test_replacing_changed_blocks_gives_what_meshing_all_of_them_gives(seed):
    random = np.random.default_rng(seed)
    voxels = Voxels(sphere(0.9))
    before = voxels.surface()
    changed = random.choice(len(voxels.ids), 5, replace=False)
    voxels.tsdf[changed] = noise(seed)(voxels.positions[changed])
    stale = np.unique(voxels.ids[changed][:, None] - CORNER_ID_STEPS)
    present = stale[np.isin(stale, voxels.ids)]
    after = before.replaced(stale, voxels.surface(present))
    expected = voxels.surface()
    for name in ("cells", "positions", "colors", "crossings"):
        assert np.array_equal(getattr(after, name), getattr(expected, name))


def test_small_loose_pieces_are_left_out():
    big, small = sphere(0.5, (0.8, 0.8, 0.8)), sphere(0.12, (-0.8, -0.8, -0.8))
    surface = Voxels(lambda p: np.minimum(big(p), small(p))).surface()
    everything, large = join(surface, 1), join(surface, 100)
    assert everything.vertices.min() < -0.5 < 0 < large.vertices.min()
    assert np.array_equal(large.vertices, join(Voxels(big).surface()).vertices)


def test_no_blocks_give_an_empty_mesh():
    voxels = Voxels(sphere(0.5))
    assert not len(join(voxels.surface(np.zeros(0, np.int64))).vertices)
    assert not len(join(SurfaceVertices.empty()).faces)
