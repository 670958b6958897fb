"""Contrasts of segments: creases, colours and directions made by hand, and a naive twin."""

import numpy as np
import pytest
from box_world import Box, as_cloud, surface_of

from unscene_ros.contrast import ContrastConfig, cielab, measure_contrasts, mesh_edges
from unscene_ros.contrast import smooth_curvature as curvature_of
from unscene_ros.normals import normals_from_faces
from unscene_ros.oversegmentation import OversegmentationConfig, oversegment
from unscene_ros.scene import Mesh, Segments

CONFIG = ContrastConfig()
NEVER = 1e12  # a difference that makes its cue silent


def only(**difference):
    """A config that listens to one cue."""
    silent = dict.fromkeys(ContrastConfig.__dataclass_fields__, NEVER)
    return ContrastConfig(**(silent | difference))


def plane(rows=8, columns=12, spacing=0.05):
    """A level mid-grey grid and the column of each vertex."""
    y, x = np.mgrid[:rows, :columns]
    vertices = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3) * spacing
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    faces = np.stack((a, b, d, a, d, c), axis=-1).reshape(-1, 3).astype(np.int32)
    normals = np.tile(np.array([0, 0, 1], np.float32), (len(vertices), 1))
    colors = np.full((len(vertices), 3), 128, np.uint8)
    return Mesh(vertices.astype(np.float32), faces, colors, normals), x.ravel()


def changed(mesh, **fields):
    kept = {name: getattr(mesh, name) for name in ("vertices", "faces", "colors", "normals")}
    return Mesh(**(kept | fields))


def segments_of(segment_of_vertex, neighbors=()):
    of_vertex = np.asarray(segment_of_vertex, np.int32)
    count = int(of_vertex.max(initial=-1)) + 1
    return Segments(of_vertex, np.array(neighbors, np.int32).reshape(-1, 2), count)


def value_between(contrasts, first, second):
    pair = np.flatnonzero((contrasts.pairs == sorted((first, second))).all(axis=1))
    return contrasts.values[pair].item()


def ball(radius, level=4):
    """A sphere of triangles around the origin: an octahedron divided again and again."""
    vertices = [tuple(v) for v in np.concatenate([np.eye(3), -np.eye(3)])]
    faces = [(0, 1, 2), (1, 3, 2), (3, 4, 2), (4, 0, 2), (1, 0, 5), (3, 1, 5), (4, 3, 5), (0, 4, 5)]
    for _ in range(level):
        index = {vertex: i for i, vertex in enumerate(vertices)}
        finer = []
        for face in faces:
            middles = []
            for a, b in zip(face, face[1:] + face[:1], strict=True):
                middle = np.add(vertices[a], vertices[b])
                middle = tuple(np.round(middle / np.linalg.norm(middle), 12))
                middles.append(index.setdefault(middle, len(index)))
            p, q, r = middles
            finer += [(face[0], p, r), (p, face[1], q), (r, q, face[2]), (p, q, r)]
        vertices, faces = list(index), finer
    points = (radius * np.array(vertices)).astype(np.float32)
    triangles = np.array(faces, np.int32)
    return Mesh(
        points,
        triangles,
        np.zeros(points.shape, np.uint8),
        normals_from_faces(points, triangles),
    )


@pytest.fixture(scope="module")
def two_boxes():
    """Two grey boxes on a floor; segments: the floor, then the sides and the top of each box."""
    boxes = [
        Box((-0.6, -0.6, -0.04), (0.6, 0.6, 0.0)),
        Box((-0.4, -0.2, 0.0), (0.0, 0.2, 0.4)),
        Box((0.2, -0.2, 0.0), (0.6, 0.2, 0.8)),
    ]
    mesh, box = surface_of(boxes)
    heights = np.array([0, 0.4, 0.8])[box]
    top = (box > 0) & (np.abs(mesh.vertices[:, 2] - heights) < 1e-3)
    neighbors = [(0, 1), (0, 3), (1, 2), (3, 4)]
    return mesh, segments_of(np.where(box > 0, 2 * box - 1 + top, 0), neighbors)


def naive_contrasts(mesh, segments, config, features):
    """{(first, second): (value, contacts)} with loops over the edges of the mesh."""
    edges = {tuple(sorted((int(f[i - 1]), int(f[i])))) for f in mesh.faces for i in range(3)}
    ring = {v: [v] for v in range(len(mesh.vertices))}
    for a, b in edges:
        ring[a].append(b)
        ring[b].append(a)

    def smoothed(values):
        return np.array([np.mean([values[w] for w in ring[v]], axis=0) for v in ring])

    normals = smoothed(smoothed(mesh.normals.astype(float)))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    curvature = np.zeros(len(ring))
    for v in ring:
        bends = []
        for w in set(ring[v]) - {v}:
            step = mesh.vertices[w].astype(float) - mesh.vertices[v]
            bends.append((normals[w] - normals[v]) @ step / (step @ step))
        curvature[v] = np.mean(bends)
    curvature = smoothed(smoothed(curvature))

    def angle(vectors, first, second):
        a, b = vectors[first].astype(float), vectors[second].astype(float)
        return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    lab = cielab(mesh.colors)
    members = [segments.of_vertex == s for s in range(segments.count)]
    colors = np.array([lab[m].mean(axis=0) for m in members])
    facing = np.array([mesh.normals[m].mean(axis=0) for m in members])
    crossing = {}
    for a, b in edges:
        pair = tuple(sorted((int(segments.of_vertex[a]), int(segments.of_vertex[b]))))
        if pair[0] != pair[1]:
            crossing.setdefault(pair, []).append((curvature[a] + curvature[b]) / 2)
    return {
        (first, second): (
            -np.mean(bends) / config.concavity_per_m
            + np.linalg.norm(colors[first] - colors[second]) / config.color_difference
            + angle(facing, first, second) / config.normal_difference
            + angle(features, first, second) / config.image_difference,
            len(bends),
        )
        for (first, second), bends in crossing.items()
    }


def test_values_and_contacts_agree_with_loops_over_the_edges():
    random = np.random.default_rng(4)
    mesh, columns = plane(9, 11)
    heights = random.normal(0, 0.02, len(columns))
    vertices = (mesh.vertices + heights[:, None] * [0, 0, 1]).astype(np.float32)
    normals = normals_from_faces(vertices, mesh.faces)
    colors = random.integers(0, 256, (len(vertices), 3)).astype(np.uint8)
    mesh = Mesh(vertices, mesh.faces, colors, normals)
    segments = segments_of(random.permutation(np.arange(len(vertices)) % 9))
    features = random.normal(size=(9, 5)).astype(np.float32)
    contrasts = measure_contrasts(mesh, segments, CONFIG, features)
    expected = naive_contrasts(mesh, segments, CONFIG, features)
    assert [tuple(pair) for pair in contrasts.pairs.tolist()] == sorted(expected)
    values, contacts = np.array([expected[pair] for pair in sorted(expected)]).T
    np.testing.assert_allclose(contrasts.values, values, atol=1e-4)
    metres_per_edge = contrasts.contacts / contacts
    np.testing.assert_allclose(metres_per_edge, metres_per_edge[0])


def test_a_box_parts_from_the_floor_but_its_own_edges_hold_together(two_boxes):
    mesh, segments = two_boxes
    crease = measure_contrasts(mesh, segments, only(concavity_per_m=1.0))
    whole = measure_contrasts(mesh, segments, CONFIG)
    for sides, top in ((1, 2), (3, 4)):
        assert value_between(crease, 0, sides) > 0.5
        assert value_between(crease, sides, top) < -0.5
        assert value_between(whole, 0, sides) > value_between(whole, sides, top)


def test_curvature_of_a_ball_is_one_over_its_radius_and_negative_from_inside():
    for radius in (0.5, 2.0):
        mesh = ball(radius)
        inside = changed(mesh, normals=-mesh.normals)
        edges = mesh_edges(mesh, segments_of(np.zeros(len(mesh.vertices))))
        outside = curvature_of(mesh, edges)
        # The divided triangles are not all alike, so single vertices are a little off.
        assert np.median(outside) == pytest.approx(1 / radius, rel=0.03)
        np.testing.assert_allclose(outside, 1 / radius, rtol=0.3)
        np.testing.assert_allclose(curvature_of(inside, edges), -outside)


def test_a_plane_of_one_colour_has_no_contrast():
    mesh, column = plane()
    contrasts = measure_contrasts(mesh, segments_of(column // 3), CONFIG)
    assert contrasts.pairs.tolist() == [[0, 1], [1, 2], [2, 3]]
    np.testing.assert_allclose(contrasts.values, 0, atol=1e-6)


def test_contacts_are_lengths_whatever_the_size_of_the_triangles():
    coarse, coarse_column = plane(9, 9, spacing=0.04)
    fine, fine_column = plane(33, 33, spacing=0.01)
    lengths = [
        measure_contrasts(mesh, segments_of(half), CONFIG).contacts.item()
        for mesh, half in ((coarse, coarse_column // 5), (fine, fine_column // 17))
    ]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)


def test_black_beside_white_is_a_hundred_apart_in_lightness():
    mesh, column = plane()
    colors = np.where(column < 6, 0, 255).astype(np.uint8)[:, None].repeat(3, axis=1)
    contrasts = measure_contrasts(
        changed(mesh, colors=colors), segments_of(column // 6), only(color_difference=40.0)
    )
    assert contrasts.values == pytest.approx([100 / 40], rel=1e-3)


def test_the_more_colours_differ_the_stronger_the_contrast():
    mesh, column = plane()
    shades = np.array([[120, 120, 120], [130, 130, 130], [160, 120, 110], [20, 180, 60]], np.uint8)
    values = [
        measure_contrasts(
            changed(mesh, colors=shades[np.where(column < 6, 0, shade)]),
            segments_of(column // 6),
            CONFIG,
        ).values.item()
        for shade in range(4)
    ]
    assert values == sorted(values) and values[0] < values[1] < values[3]


@pytest.mark.parametrize(("degrees", "difference"), [(0, 0.0), (60, 0.5), (90, 1.0), (180, 2.0)])
def test_segments_that_face_apart_differ_by_one_less_the_cosine(degrees, difference):
    mesh, column = plane()
    angle = np.radians(np.where(column < 6, 0, degrees))
    normals = np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], axis=1)
    contrasts = measure_contrasts(
        changed(mesh, normals=normals.astype(np.float32)),
        segments_of(column // 6),
        only(normal_difference=0.8),
    )
    assert contrasts.values == pytest.approx([difference / 0.8], abs=1e-5)


def test_image_features_add_their_angle_whatever_their_length():
    mesh, column = plane()
    segments = segments_of(column // 4)
    features = np.array([[2, 0], [7, 0], [0, 0.1]], np.float32)
    contrasts = measure_contrasts(mesh, segments, only(image_difference=0.5), features)
    assert contrasts.values == pytest.approx([0, 2], abs=1e-5)


@pytest.mark.parametrize("features", [None, np.zeros((3, 0), np.float32)])
def test_without_image_features_the_other_cues_decide(features):
    mesh, column = plane()
    colors = (column * 20).astype(np.uint8)[:, None].repeat(3, axis=1)
    mesh, segments = changed(mesh, colors=colors), segments_of(column // 4)
    plain = measure_contrasts(mesh, segments, CONFIG)
    contrasts = measure_contrasts(mesh, segments, CONFIG, features)
    np.testing.assert_array_equal(contrasts.values, plain.values)
    assert (plain.values > 0).all()


def test_pairs_are_the_neighbours_of_the_segmentation_sorted_and_once(two_boxes):
    mesh, _ = two_boxes
    segments = oversegment(mesh, OversegmentationConfig(k=0.01, min_vertices=8))
    contrasts = measure_contrasts(mesh, segments, CONFIG)
    assert len(contrasts.pairs) > 10 and contrasts.pairs.dtype == np.int32
    np.testing.assert_array_equal(contrasts.pairs, segments.neighbors)
    assert (contrasts.contacts > 0).all()
    assert contrasts.values.shape == contrasts.contacts.shape == (len(contrasts.pairs),)


def test_a_cloud_has_the_pairs_and_the_colour_contrasts_of_its_surface():
    mesh, column = plane()
    colors = np.array([[200, 30, 30], [30, 30, 200], [30, 200, 30]], np.uint8)[column // 4]
    mesh = changed(mesh, colors=colors)
    segments = segments_of(column // 4, [(0, 1), (1, 2)])
    of_mesh = measure_contrasts(mesh, segments, CONFIG)
    of_cloud = measure_contrasts(as_cloud(mesh), segments, CONFIG)
    np.testing.assert_array_equal(of_cloud.pairs, of_mesh.pairs)
    np.testing.assert_allclose(of_cloud.values, of_mesh.values, rtol=1e-5)


def test_a_cloud_parts_boxes_from_the_floor_as_a_mesh_does(two_boxes):
    mesh, segments = two_boxes
    contrasts = measure_contrasts(as_cloud(mesh), segments, CONFIG)
    for sides, top in ((1, 2), (3, 4)):
        assert value_between(contrasts, 0, sides) > value_between(contrasts, sides, top)


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_vertex_have_no_pairs(count):
    mesh = as_cloud(plane()[0])
    mesh = Mesh(mesh.vertices[:count], mesh.faces, mesh.colors[:count], mesh.normals[:count])
    contrasts = measure_contrasts(mesh, segments_of(np.zeros(count)), CONFIG)
    assert contrasts.pairs.shape == (0, 2)
    assert contrasts.values.shape == contrasts.contacts.shape == (0,)


def test_one_segment_has_no_pairs():
    mesh, column = plane()
    assert not len(measure_contrasts(mesh, segments_of(0 * column), CONFIG).pairs)


def test_cielab_of_known_colours():
    # The corners of the sRGB cube, from the definition of CIELAB under D65.
    colors = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]], np.uint8)
    known = [[0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(cielab(colors), known, atol=0.3)
    assert cielab(np.zeros((0, 3), np.uint8)).shape == (0, 3)
