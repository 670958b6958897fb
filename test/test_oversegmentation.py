"""Segments of surfaces: agreement with ScanNet's program, a naive twin, and hand-made surfaces."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from unscene_ros.oversegmentation import (
    OversegmentationConfig,
    _mean_face_normals,
    oversegment,
    pool_over_segments,
    segment_neighbors_within,
)
from unscene_ros.scene import InputError, Mesh, Segments

ORACLE = Path(__file__).parent / "data" / "segmentator_oracle.npz"


def grid_mesh(heights, spacing=0.04, colors=None, origin=(0.0, 0.0, 0.0)):
    """A surface z = heights[row, column] of two triangles a cell, seen from +z."""
    rows, columns = heights.shape
    y, x = np.mgrid[:rows, :columns] * spacing
    vertices = np.stack((x, y, heights), axis=-1).reshape(-1, 3) + origin
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    faces = np.stack((a, b, d, a, d, c), axis=-1).reshape(-1, 3)
    slope_y, slope_x = np.gradient(heights, spacing)
    normals = np.stack((-slope_x, -slope_y, np.ones_like(slope_x)), axis=-1).reshape(-1, 3)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    if colors is None:
        colors = np.full((rows * columns, 3), 128)
    return Mesh(
        vertices.astype(np.float32),
        faces.astype(np.int32),
        np.asarray(colors).reshape(-1, 3).astype(np.uint8),
        normals.astype(np.float32),
    )


def merged(*meshes):
    """The meshes side by side as one."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]).astype(np.int32),
        np.concatenate([mesh.colors for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
    )


def as_cloud(mesh):
    return Mesh(mesh.vertices, np.zeros((0, 3), np.int32), mesh.colors, mesh.normals)


def random_surface(seed, rows=14, columns=17):
    """A bumpy surface with patches of paint, its vertices in random order."""
    random = np.random.default_rng(seed)
    heights = random.normal(0, 0.02, (rows, columns)).cumsum(axis=1)
    colors = random.integers(0, 256, (4, 3))[random.integers(0, 4, (rows, columns))]
    mesh = grid_mesh(heights, colors=colors)
    place = random.permutation(len(mesh.vertices)).astype(np.int32)
    order = np.argsort(place)
    return Mesh(mesh.vertices[order], place[mesh.faces], mesh.colors[order], mesh.normals[order])


def adjusted_rand_index(first, second):
    """Agreement of two partitions, 1 when they are the same (Hubert and Arabie, 1985)."""

    def pairs(counts):
        return (counts * (counts - 1.0) / 2).sum()

    joint = np.unique(first.astype(np.int64) * (second.max() + 1) + second, return_counts=True)[1]
    in_first, in_second = pairs(np.bincount(first)), pairs(np.bincount(second))
    expected = in_first * in_second / pairs(np.array([len(first)]))
    return (pairs(joint) - expected) / ((in_first + in_second) / 2 - expected)


def naive_segments(mesh, normals, config):
    """Both passes over the edges of a mesh, with sets of vertices instead of trees."""
    weighted = []
    for i, j, k in mesh.faces:
        for a, b in ((i, j), (i, k), (k, j)):
            bend = max(1 - float(normals[a] @ normals[b]), 0)
            paint = np.abs(mesh.colors[a].astype(float) - mesh.colors[b]).sum() / 255
            convex = normals[b] @ (mesh.vertices[b] - mesh.vertices[a]) > 0
            if config.rule == "unscene3d":
                weight = bend * paint
                weight = weight**2 if convex and paint < 0.05 else weight
            else:
                weight = bend**2 if convex else bend
            if config.rule == "normal_color":
                weight += config.color_weight * paint
            weighted.append((weight, a, b))
    weighted.sort(key=lambda edge: edge[0])
    members = {v: {v} for v in range(len(mesh.vertices))}  # the same set object for a whole segment
    limit = {id(members[v]): config.k for v in members}
    for merging_small in (False, True):
        for weight, a, b in weighted:
            first, second = members[a], members[b]
            if merging_small:
                joins = min(len(first), len(second)) < config.min_vertices
            else:
                joins = weight <= min(limit[id(first)], limit[id(second)])
            if first is not second and joins:
                first |= second
                members.update(dict.fromkeys(second, first))
                limit[id(first)] = weight + config.k / len(first)
    smallest = np.array([min(members[v]) for v in range(len(mesh.vertices))])
    return np.unique(smallest, return_inverse=True)[1]


def naive_face_normals(mesh):
    total, count = np.zeros((len(mesh.vertices), 3)), np.zeros((len(mesh.vertices), 1))
    for face in mesh.faces:
        a, b, c = mesh.vertices[face].astype(float)
        normal = np.cross(b - a, c - a)
        total[face] += normal / np.linalg.norm(normal)
        count[face] += 1
    return total / count


@pytest.mark.parametrize(
    ("k", "min_vertices", "key"),
    [(0.01, 20, "segments_k0_01_min20"), (0.05, 50, "segments_k0_05_min50")],
)
def test_scannet_rule_agrees_with_the_official_program(k, min_vertices, key):
    with np.load(ORACLE) as oracle:
        vertices, colors = oracle["vertices"], oracle["colors"]
        mesh = Mesh(vertices, oracle["faces"], colors, np.zeros_like(vertices))
        expected = oracle[key]
    segments = oversegment(mesh, OversegmentationConfig("scannet", k, min_vertices))
    assert adjusted_rand_index(segments.of_vertex, expected) >= 0.99


@pytest.mark.parametrize("rule", ["normal_color", "scannet", "unscene3d"])
@pytest.mark.parametrize("seed", range(4))
def test_every_rule_equals_its_naive_twin(rule, seed):
    mesh = random_surface(seed)
    config = OversegmentationConfig(rule, k=0.3, min_vertices=4, color_weight=0.2)
    # The twin takes the compiled normals: a rounding difference could swap two equal edges.
    compiled = _mean_face_normals(mesh.vertices, mesh.faces)
    normals = mesh.normals if rule == "normal_color" else compiled
    segments = oversegment(mesh, config)
    assert 3 < segments.count < 80
    np.testing.assert_array_equal(segments.of_vertex, naive_segments(mesh, normals, config))


def test_mean_face_normals_equal_the_naive_twin():
    mesh = random_surface(0)
    compiled = _mean_face_normals(mesh.vertices, mesh.faces)
    np.testing.assert_allclose(compiled, naive_face_normals(mesh), atol=1e-5)


def test_a_flat_plane_is_one_segment_without_neighbors():
    segments = oversegment(grid_mesh(np.zeros((10, 10))))
    assert segments.count == 1
    assert segments.neighbors.shape == (0, 2)


def test_an_inner_corner_splits_and_the_same_outer_edge_does_not():
    # Two slopes of 45 degrees and 200 vertices each meet. Across the fold the normals differ by
    # about 53 degrees: bend 0.4, squared 0.16. A slope grows up to about k / 200 = 0.18.
    fold = 0.04 * np.abs(np.arange(20) - 9.5)
    valley, ridge = np.tile(fold, (20, 1)), np.tile(-fold, (20, 1))
    config = OversegmentationConfig(k=36.0, min_vertices=1)
    assert oversegment(grid_mesh(valley), config).count == 2
    assert oversegment(grid_mesh(ridge), config).count == 1


def test_a_painted_square_on_a_plane_is_its_own_segment():
    painted = np.zeros((20, 20), bool)
    painted[5:13, 6:15] = True
    colors = np.where(painted[..., None], (200, 30, 30), (40, 40, 220))
    mesh = grid_mesh(np.zeros((20, 20)), colors=colors)
    segments = oversegment(mesh)
    np.testing.assert_array_equal(segments.of_vertex, painted.ravel())
    np.testing.assert_array_equal(segments.neighbors, [[0, 1]])
    assert oversegment(mesh, OversegmentationConfig(color_weight=0.0)).count == 1


def test_one_colour_everywhere_leaves_the_normals_to_decide():
    mesh = random_surface(0)
    bare = Mesh(mesh.vertices, mesh.faces, np.full_like(mesh.colors, 90), mesh.normals)
    by_normals = oversegment(mesh, OversegmentationConfig(color_weight=0.0))
    assert by_normals.count > 1
    np.testing.assert_array_equal(oversegment(bare).of_vertex, by_normals.of_vertex)


def test_the_product_rule_never_splits_one_colour():
    mesh = grid_mesh(np.tile(0.04 * np.abs(np.arange(20) - 9.5), (20, 1)))
    assert oversegment(mesh, OversegmentationConfig("unscene3d", 0.005, 50)).count == 1


def test_ids_are_numbered_by_smallest_vertex_and_repeat_exactly():
    mesh = random_surface(5)
    segments = oversegment(mesh)
    ids, first = np.unique(segments.of_vertex, return_index=True)
    np.testing.assert_array_equal(ids, np.arange(segments.count))
    assert (np.diff(first) > 0).all()
    np.testing.assert_array_equal(oversegment(mesh).of_vertex, segments.of_vertex)


def test_neighbors_are_the_pairs_that_share_a_mesh_edge():
    mesh = random_surface(6)
    segments = oversegment(mesh, OversegmentationConfig(min_vertices=4))
    pairs = set()
    for i, j, k in segments.of_vertex[mesh.faces]:
        pairs |= {(min(a, b), max(a, b)) for a, b in ((i, j), (i, k), (j, k)) if a != b}
    assert len(pairs) > 5
    assert [tuple(pair) for pair in segments.neighbors.tolist()] == sorted(pairs)


def test_connected_surfaces_have_no_segment_below_the_minimum():
    segments = oversegment(random_surface(7), OversegmentationConfig(min_vertices=12))
    assert segments.count > 1
    assert np.bincount(segments.of_vertex).min() >= 12


def test_a_small_separate_piece_joins_the_nearest_segment_only_when_near():
    floor = grid_mesh(np.zeros((10, 10)))
    wall = grid_mesh(np.zeros((10, 10)), origin=(0.0, 0.0, 0.5))
    crumb = grid_mesh(np.zeros((2, 2)), origin=(0.1, 0.1, 0.44))
    far = grid_mesh(np.zeros((2, 2)), origin=(5.0, 0.0, 0.0))
    mesh = merged(floor, wall, crumb, far)
    assert oversegment(mesh).of_vertex[[0, 100, 200, 204]].tolist() == [0, 1, 1, 2]
    published = OversegmentationConfig("scannet", k=0.05)
    assert oversegment(mesh, published).of_vertex[[0, 100, 200, 204]].tolist() == [0, 1, 2, 3]


def test_vertices_without_faces_keep_a_segment_of_their_own():
    mesh = grid_mesh(np.zeros((10, 10)))
    alone = np.array([[3, 3, 3], [9, 9, 9]], np.float32)
    mesh = Mesh(
        np.concatenate((mesh.vertices, alone)),
        mesh.faces,
        np.concatenate((mesh.colors, mesh.colors[:2])),
        np.concatenate((mesh.normals, mesh.normals[:2])),
    )
    assert oversegment(mesh).of_vertex[-3:].tolist() == [0, 1, 2]


def test_a_point_cloud_is_cut_at_bends_and_at_gaps():
    floor = grid_mesh(np.zeros((12, 12)))
    # One wall stands on the floor's edge (turned by 90 degrees), one plate floats 0.4 m above.
    wall = Mesh(
        floor.vertices[:, [0, 2, 1]] + np.float32((0, 0.48, 0)),
        floor.faces,
        floor.colors,
        floor.normals[:, [0, 2, 1]] * np.float32(-1),
    )
    plate = grid_mesh(np.zeros((12, 12)), origin=(0.0, 0.0, 0.9))
    segments = oversegment(as_cloud(merged(floor, wall, plate)))
    np.testing.assert_array_equal(segments.of_vertex, np.repeat([0, 1, 2], 144))
    np.testing.assert_array_equal(segments.neighbors, [[0, 1]])


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_or_coincident_vertices_are_normal_input(count):
    places = np.zeros((count, 3), np.float32)
    up = np.tile(np.float32((0, 0, 1)), (count, 1))
    cloud = Mesh(places, np.zeros((0, 3), np.int32), np.zeros((count, 3), np.uint8), up)
    segments = oversegment(cloud)
    assert segments.count == min(count, 1)
    assert segment_neighbors_within(cloud, segments, 0.1).shape == (0, 2)


@pytest.mark.parametrize("rule", ["normal_color", "scannet", "unscene3d"])
def test_faces_without_area_are_normal_input(rule):
    mesh = grid_mesh(np.zeros((10, 10)))
    flat = np.array([[0, 0, 0], [3, 3, 4]], np.int32)
    mesh = Mesh(mesh.vertices, np.concatenate((mesh.faces, flat)), mesh.colors, mesh.normals)
    assert oversegment(mesh, OversegmentationConfig(rule)).count == 1


@pytest.mark.parametrize(
    "change",
    [{"k": 0.0}, {"min_vertices": 0}, {"color_weight": -1.0}, {"attach_within_m": float("nan")}],
)
def test_settings_without_meaning_name_the_setting(change):
    with pytest.raises(InputError, match=f"oversegmentation.{next(iter(change))}"):
        OversegmentationConfig(**change)


def segments_of(ids):
    ids = np.asarray(ids, np.int32)
    return Segments(ids, np.zeros((0, 2), np.int32), int(ids.max(initial=-1)) + 1)


def test_pooling_is_the_plain_mean_without_weights():
    values = np.array([[1.0, 10.0], [3.0, 20.0], [5.0, 60.0]], np.float32)
    pooled = pool_over_segments(values, segments_of([1, 0, 1]))
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled, [[3, 20], [3, 35]])


def test_weighted_pooling_equals_its_naive_twin_and_leaves_unseen_segments_zero():
    random = np.random.default_rng(0)
    segments = segments_of(np.concatenate((np.arange(9), random.integers(0, 9, 300))))
    values = random.normal(size=(309, 5)).astype(np.float32)
    weights = random.integers(0, 4, 309).astype(np.int32)
    weights[segments.of_vertex == 4] = 0
    values[weights == 0] = np.nan  # a value that was never seen must not leak in
    pooled = pool_over_segments(values, segments, weights)
    for segment in range(9):
        chosen = (segments.of_vertex == segment) & (weights > 0)
        mean = np.average(values[chosen], axis=0, weights=weights[chosen]) if chosen.any() else 0
        np.testing.assert_allclose(pooled[segment], mean, rtol=1e-5)
    assert (pooled[4] == 0).all()


def test_pooling_nothing_gives_nothing_and_wrong_lengths_are_refused():
    assert pool_over_segments(np.zeros((0, 3), np.float32), segments_of([])).shape == (0, 3)
    with pytest.raises(InputError, match="values for 2 vertices"):
        pool_over_segments(np.zeros((3, 1), np.float32), segments_of([0, 0]))
    with pytest.raises(InputError, match="weights for 2 vertices"):
        pool_over_segments(np.zeros((2, 1), np.float32), segments_of([0, 0]), np.ones(3))


@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("distance_m", [0.05, 0.2])
def test_near_segments_equal_the_naive_twin(offset, distance_m):
    random = np.random.default_rng(1)
    points = random.uniform(0, 1, (2000, 3)).astype(np.float32)
    points[0] += np.float32(offset)  # one stray vertex far away makes the grid of cells huge
    cells = np.floor(points * 4).astype(int) % 4
    ids = np.unique(cells[:, 0] * 16 + cells[:, 1] * 4 + cells[:, 2], return_inverse=True)[1]
    segments = segments_of(ids)
    near = cdist(points.astype(np.float64), points.astype(np.float64)) <= distance_m
    a, b = ids[np.argwhere(near)].T
    expected = sorted({(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True) if x < y})
    pairs = segment_neighbors_within(
        Mesh(points, np.zeros((0, 3), np.int32), np.zeros((2000, 3), np.uint8), points),
        segments,
        distance_m,
    )
    assert len(expected) > 20
    assert [tuple(pair) for pair in pairs.tolist()] == expected


def test_touching_segments_count_as_near_however_long_their_edges_are():
    mesh = grid_mesh(np.zeros((3, 3)), spacing=1.0)
    touching = Segments(np.array([0] * 3 + [1] * 6, np.int32), np.array([[0, 1]], np.int32), 2)
    for distance_m in (0.05, 0.0):
        assert segment_neighbors_within(mesh, touching, distance_m).tolist() == [[0, 1]]
