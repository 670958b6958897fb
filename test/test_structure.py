"""Floor, ceiling and walls of rooms of boxes, whose every vertex is known."""

import numpy as np
import pytest
from box_world import Box, as_cloud, moved, surface_of, walled_room

from unscene_ros.scene import InputError, Mesh
from unscene_ros.structure import StructureConfig, find_structure, vertex_areas

CONFIG = StructureConfig()
TABLE_TOP = Box((0.8, 1.6, 0.68), (2.0, 2.4, 0.72))
CABINET = Box((2.8, 0.8, 0.0), (3.2, 2.0, 1.6))  # against the wall x = 3.2
BOX = Box((0.8, 0.4, 0.0), (1.2, 0.8, 0.4))
ROOM = walled_room(TABLE_TOP, CABINET, BOX)
SHELL = 0  # of ROOM


@pytest.fixture(scope="module")
def room():
    return surface_of(ROOM)


def turned(axis, degrees):
    """Rotation (3, 3) around a coordinate axis."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    angle, rotation = np.radians(degrees), np.eye(3)
    rotation[[first, first, second, second], [first, second, first, second]] = (
        np.cos(angle),
        -np.sin(angle),
        np.sin(angle),
        np.cos(angle),
    )
    return rotation


def rectangle(width, height, at=0.0, cell=0.05):
    """An upright rectangle from the ground, seen from +y, at this y; no other surface."""
    columns, rows = round(width / cell) + 1, round(height / cell) + 1
    z, x = np.mgrid[:rows, :columns] * cell
    vertices = np.stack([x, np.full_like(x, at), z], axis=-1).reshape(-1, 3).astype(np.float32)
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    faces = np.stack((a, d, b, a, c, d), axis=-1).reshape(-1, 3).astype(np.int32)
    normals = np.tile(np.array([0, 1, 0], np.float32), (len(vertices), 1))
    return Mesh(vertices, faces, np.zeros((len(vertices), 3), np.uint8), normals)


def together(*meshes):
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]).astype(np.int32),
        np.concatenate([mesh.colors for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
    )


def test_floor_walls_and_ceiling_are_structure_and_furniture_is_not(room):
    mesh, box_of_vertex = room
    structure = find_structure(mesh, CONFIG)
    assert structure.shape == (len(mesh.vertices),) and structure.dtype == bool
    shell = box_of_vertex == SHELL
    for axis in range(3):
        for side in (mesh.vertices[shell, axis].min(), mesh.vertices[shell, axis].max()):
            assert structure[shell & (mesh.vertices[:, axis] == side)].mean() > 0.95, (axis, side)
    for number in range(2, len(ROOM)):
        assert structure[box_of_vertex == number].mean() < 0.15, ROOM[number]


def test_a_table_top_and_a_cabinet_front_are_not_structure(room):
    mesh, box_of_vertex = room
    structure = find_structure(mesh, CONFIG)
    x, _, z = mesh.vertices.T
    table_top = (box_of_vertex == 2) & (mesh.normals[:, 2] > 0.9)
    # Without its lowest centimetres, which belong to the crease with the floor.
    cabinet_front = (box_of_vertex == 3) & (x < 2.81) & (z > 0.12)
    assert table_top.sum() > 400 and cabinet_front.sum() > 1000
    assert not structure[table_top | cabinet_front].any()


def test_what_hangs_under_the_ceiling_leaves_the_ceiling_above_it_structure():
    lamp = Box((1.2, 1.2, 1.8), (2.0, 1.6, 2.0))
    mesh, box_of_vertex = surface_of(walled_room(lamp))
    structure = find_structure(mesh, CONFIG)
    assert structure[mesh.vertices[:, 2] > 2.38].all()
    assert not structure[box_of_vertex == 2].any()


def test_the_underside_of_a_block_on_a_leg_is_no_ceiling_where_the_ceiling_was_not_seen():
    top = Box((0.8, 0.8, 0.68), (2.0, 2.0, 0.88))
    leg = Box((1.36, 1.36, 0.0), (1.44, 1.44, 0.68))
    mesh, box_of_vertex = surface_of([*walled_room(), leg, top])
    seen = mesh.vertices[:, 2] < 2.2
    faces = mesh.faces[seen[mesh.faces].all(axis=1)]
    number = (np.cumsum(seen) - 1).astype(np.int32)
    mesh = Mesh(mesh.vertices[seen], number[faces], mesh.colors[seen], mesh.normals[seen])
    underside = (box_of_vertex[seen] == 3) & (mesh.normals[:, 2] < -0.9)
    assert underside.sum() > 500
    assert not find_structure(mesh, CONFIG)[underside].any()


@pytest.mark.parametrize("rotation", [turned(0, 25), turned(1, -40) @ turned(0, 160)])
def test_a_tilted_map_with_its_own_up_has_the_same_structure(room, rotation):
    mesh, _ = room
    tilted = moved(mesh, rotation)
    config = StructureConfig(up=tuple((3 * rotation[:, 2]).tolist()))  # of any length
    same = find_structure(tilted, config) == find_structure(mesh, CONFIG)
    assert same.mean() > 0.99


@pytest.mark.parametrize(
    ("heading", "offset"),
    [(33, (0, 0, 0)), (0, (-37.3, 81.4, -12.6)), (211, (5000, -9000, 0))],
)
def test_where_the_map_begins_and_how_it_is_turned_does_not_matter(room, heading, offset):
    mesh, _ = room
    same = find_structure(moved(mesh, turned(2, heading), offset), CONFIG) == find_structure(
        mesh, CONFIG
    )
    assert same.mean() > 0.99


def test_a_cloud_of_the_same_points_has_the_same_structure(room):
    mesh, _ = room
    same = find_structure(as_cloud(mesh), CONFIG) == find_structure(mesh, CONFIG)
    assert same.mean() > 0.99


@pytest.mark.parametrize(
    ("width", "height", "is_wall"),
    [(2.0, 2.0, True), (3.0, 1.0, False), (0.5, 1.7, False), (0.7, 1.7, True)],
)
def test_a_wall_has_a_least_area_and_a_least_height(width, height, is_wall):
    config = StructureConfig(min_wall_area_m2=1.0, min_wall_height_m=1.2)
    structure = find_structure(rectangle(width, height), config)
    assert structure.all() if is_wall else not structure.any()


@pytest.mark.parametrize(("gap", "front_is_wall"), [(0.4, False), (2.0, True)])
def test_a_wall_has_no_surface_closely_behind_it(gap, front_is_wall):
    front, back = rectangle(2, 2, at=gap), rectangle(2, 2, at=0.0)
    structure = find_structure(together(front, back), CONFIG)
    assert structure[len(front.vertices) :].all()  # nothing behind the one at the back
    assert structure[: len(front.vertices)].all() == front_is_wall


def test_nothing_has_no_structure():
    assert find_structure(Mesh.empty(), CONFIG).shape == (0,)


def test_one_vertex_is_no_wall():
    point = np.zeros((1, 3), np.float32)
    normal = np.array([[1, 0, 0]], np.float32)
    mesh = Mesh(point, np.zeros((0, 3), np.int32), np.zeros((1, 3), np.uint8), normal)
    assert not find_structure(mesh, CONFIG).any()


@pytest.mark.parametrize(
    "up", [(0.0, 0.0, 0.0), (0.0, 1.0), (0.0, 0.0, float("nan")), (float("inf"), 0.0, 0.0)]
)
def test_an_up_without_direction_is_refused_by_name(up):
    with pytest.raises(InputError, match=r"structure\.up"):
        StructureConfig(up=up)


def test_walls_without_any_area_are_refused_by_name():
    with pytest.raises(InputError, match=r"structure\.min_wall_area_m2"):
        StructureConfig(min_wall_area_m2=0.0)


def test_each_vertex_has_a_third_of_each_triangle_around_it():
    # A unit square of two triangles: two corners belong to one of them, two to both.
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [5, 5, 5]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    mesh = Mesh(vertices, faces, np.zeros((5, 3), np.uint8), np.zeros((5, 3), np.float32))
    np.testing.assert_allclose(vertex_areas(mesh), np.array([2, 1, 2, 1, 0]) / 6)


def test_areas_of_a_mesh_sum_to_its_surface():
    # The sides of a cube of 40 cm, without the one it stands on, and the floor around it.
    mesh, _ = surface_of([Box((-1, -1, -0.04), (1, 1, 0)), Box((0, 0, 0), (0.4, 0.4, 1))])
    assert vertex_areas(mesh).sum() == pytest.approx(4 - 0.16 + 4 * 0.4 * 1, rel=1e-4)


def test_points_of_a_cloud_share_the_surface_equally():
    x, y = np.meshgrid(np.arange(50) * 0.02, np.arange(50) * 0.02)
    points = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3).astype(np.float32)
    faces, normals = np.zeros((0, 3), np.int32), np.zeros_like(points)
    areas = vertex_areas(Mesh(points, faces, np.zeros(points.shape, np.uint8), normals))
    assert len(set(areas)) == 1
    assert areas.sum() == pytest.approx(1.0, rel=0.3)
    assert vertex_areas(Mesh.empty()).shape == (0,)
