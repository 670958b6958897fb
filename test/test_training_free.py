"""Training-free instances in rooms of boxes, whose every vertex is known, and in odd input."""

import numpy as np
import open3d as o3d
import pytest
from box_world import Box, as_cloud, moved, surface_of, walled_room
from small_scan import small_frames

from unscene_ros import training_free
from unscene_ros.contrast import ContrastConfig
from unscene_ros.image_features import load_image_features
from unscene_ros.pipeline import build_mesh, segment_mesh
from unscene_ros.scene import Camera, Frame, InputError, Mesh, Segments
from unscene_ros.training_free import TrainingFreeConfig, TrainingFreeSegmenter

FURNITURE = (
    Box((0.8, 0.8, 0.0), (1.6, 1.6, 0.72), (120, 80, 40)),
    Box((2.4, 0.4, 0.0), (2.8, 0.8, 0.4), (200, 40, 40)),
    Box((0.4, 2.0, 0.0), (0.8, 2.4, 0.6), (40, 60, 200)),
)
FIRST = 2  # of the furniture: the shell of a room and the air in it come before
RED_AND_BLUE = (  # side by side without a gap, of one height
    Box((1.2, 1.2, 0.0), (1.6, 1.6, 0.4), (190, 40, 40)),
    Box((1.6, 1.2, 0.0), (2.0, 1.6, 0.4), (40, 60, 190)),
)


@pytest.fixture(scope="module")
def room():
    return surface_of(walled_room(*FURNITURE))


@pytest.fixture(scope="module")
def scan():
    """A small fused map and the frames it was made of."""
    frames = small_frames()
    return build_mesh(frames), frames


class Counting:
    """A provider that counts the pictures it is asked about."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, color: np.ndarray) -> np.ndarray:
        self.calls += 1
        return color[::8, ::8].astype(np.float32)


@pytest.fixture
def provider(monkeypatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr(training_free, "load_image_features", lambda _: counting)
    return counting


def masks_of(mesh, config=None, keyframes=()):
    """(N, V) bool instances over the vertices, after what holds for all instances was checked."""
    segments, instances = segment_mesh(mesh, TrainingFreeSegmenter(config), keyframes)
    assert instances.masks.shape[1] == segments.count
    assert (np.diff(instances.scores) <= 0).all()
    assert (instances.masks.sum(axis=0) <= 1).all()
    return instances.masks[:, segments.of_vertex]


def best_overlaps(masks, box_of_vertex):
    """Of each piece of furniture: the best intersection over union with an instance."""
    truths = [box_of_vertex == number for number in range(FIRST, box_of_vertex.max() + 1)]
    return [max(((t & m).sum() / (t | m).sum() for m in masks), default=0) for t in truths]


def one_colour(mesh):
    grey = np.full_like(mesh.colors, 128)
    return Mesh(mesh.vertices, mesh.faces, grey, mesh.normals)


def turned_and_shifted(mesh):
    cosine, sine = np.cos(0.6), np.sin(0.6)
    heading = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    return moved(mesh, heading, (13, -24, 5))


@pytest.mark.parametrize(
    "seen_as",
    [lambda mesh: mesh, one_colour, as_cloud, turned_and_shifted],
    ids=lambda f: f.__name__,
)
def test_three_boxes_in_a_room_are_three_instances(room, seen_as):
    mesh, box_of_vertex = room
    masks = masks_of(seen_as(mesh))
    assert len(masks) == 3
    assert min(best_overlaps(masks, box_of_vertex)) > 0.8


@pytest.mark.parametrize("seen_as", [lambda mesh: mesh, as_cloud], ids=["mesh", "cloud"])
def test_touching_boxes_of_different_colour_are_told_apart(seen_as):
    mesh, box_of_vertex = surface_of(walled_room(*RED_AND_BLUE))
    masks = masks_of(seen_as(mesh))
    assert min(best_overlaps(masks, box_of_vertex)) > 0.8


def test_a_box_on_a_box_of_another_colour_is_told_apart():
    below = Box((1.2, 1.2, 0.0), (2.0, 2.0, 0.48), (120, 80, 40))
    above = Box((1.4, 1.4, 0.48), (1.8, 1.8, 0.8), (60, 200, 90))
    mesh, box_of_vertex = surface_of(walled_room(below, above))
    assert min(best_overlaps(masks_of(mesh), box_of_vertex)) > 0.8


def test_pictures_tell_apart_what_the_mesh_cannot():
    # No two of their sides lie in one plane, which would be one segment.
    low, high = RED_AND_BLUE[0], Box((1.6, 1.08, 0.0), (2.0, 1.72, 0.6))
    mesh, box_of_vertex = surface_of(walled_room(low, high))
    never = 1e12  # geometry and the colours of the mesh have no say
    contrast = ContrastConfig(never, never, never, image_difference=0.2)
    config = TrainingFreeConfig(contrast=contrast)
    assert len(masks_of(one_colour(mesh), config)) == 1
    corners = [(x, y, 1.6) for x in (0.2, 3.0) for y in (0.2, 2.6)]
    pictures = [picture_of(mesh, corner, stamp) for stamp, corner in enumerate(corners)]
    masks = masks_of(one_colour(mesh), config, pictures)
    assert min(best_overlaps(masks, box_of_vertex)) > 0.8


def picture_of(mesh, eye, stamp_ns):
    """The mesh in its colours as seen from this place, looking at the middle of the room."""
    forward = np.array([1.6, 1.4, 0.2]) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.column_stack((right, np.cross(forward, right), forward, eye))
    camera = Camera(160, 120, np.array([[120.0, 0, 79.5], [0, 120, 59.5], [0, 0, 1]]))
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(mesh.vertices, mesh.faces.astype(np.uint32))
    rays = scene.create_rays_pinhole(camera.intrinsics, np.linalg.inv(pose), 160, 120)
    hits = scene.cast_rays(rays)  # every ray hits: the room is closed
    color = mesh.colors[mesh.faces[hits["primitive_ids"].numpy(), 0]]
    return Frame(stamp_ns, camera, color, hits["t_hit"].numpy(), pose)


def test_the_floor_and_the_walls_are_no_instances(room):
    mesh, box_of_vertex = room
    shell = box_of_vertex < FIRST
    assert all(shell[mask].mean() < 0.1 for mask in masks_of(mesh))
    empty_room, _ = surface_of(walled_room())
    assert not len(masks_of(empty_room))


def test_two_runs_give_the_same_instances(room):
    mesh, _ = room
    segmenter = TrainingFreeSegmenter()
    runs = [segment_mesh(mesh, segmenter) for _ in range(2)]
    runs.append(segment_mesh(mesh, TrainingFreeSegmenter()))
    for segments, instances in runs[1:]:
        np.testing.assert_array_equal(segments.of_vertex, runs[0][0].of_vertex)
        np.testing.assert_array_equal(instances.masks, runs[0][1].masks)
        np.testing.assert_array_equal(instances.scores, runs[0][1].scores)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"min_area_m2": 1.0}, 2),  # surfaces: 2.9, 0.8 and 1.1 m2
        ({"max_length_m": 0.85}, 2),  # lengths: 1, 0.6 and 0.7 m
        ({"max_instances": 1}, 1),
    ],
)
def test_limits_leave_instances_out(room, settings, count):
    mesh, _ = room
    assert len(masks_of(mesh, TrainingFreeConfig(**settings))) == count


def test_lower_scores_add_alternatives_behind_the_same_best(room):
    mesh, _ = room
    config = TrainingFreeConfig(min_score=0.0, max_overlap=0.9)
    segments, instances = segment_mesh(mesh, TrainingFreeSegmenter(config))
    masks = instances.masks[:, segments.of_vertex]
    best = masks_of(mesh)
    assert len(masks) > len(best)
    np.testing.assert_array_equal(masks[: len(best)], best)
    assert (instances.scores[len(best) :] < 0.5).all()


def test_an_empty_mesh_has_no_instances():
    segments, instances = segment_mesh(Mesh.empty(), TrainingFreeSegmenter())
    assert segments.count == 0
    assert instances.masks.shape == (0, 0)


@pytest.mark.parametrize("normal", [(0, 0, 1), (1, 0, 0), (0, 0, 0)])
def test_one_vertex_has_no_instances(normal):
    point, normals = np.ones((1, 3), np.float32), np.array([normal], np.float32)
    mesh = Mesh(point, np.zeros((0, 3), np.int32), np.zeros((1, 3), np.uint8), normals)
    segments, instances = segment_mesh(mesh, TrainingFreeSegmenter())
    assert segments.count == 1
    assert instances.masks.shape == (0, 1)


def test_one_segment_around_a_lone_box_is_one_instance():
    mesh, box_of_vertex = surface_of(walled_room(FURNITURE[0]))
    segments = Segments((box_of_vertex == FIRST).astype(np.int32), np.array([[0, 1]], np.int32), 2)
    instances = TrainingFreeSegmenter().segment(mesh, segments)
    assert instances.masks.tolist() == [[False, True]]


def test_pictures_of_known_keyframes_are_not_looked_at_again(scan, provider):
    mesh, frames = scan
    segmenter = TrainingFreeSegmenter()
    calls = []
    for keyframes in (frames[:4], frames[:4], frames[1:6], frames[4:6]):
        segment_mesh(mesh, segmenter, keyframes)
        calls.append(provider.calls)
    assert calls == [4, 4, 6, 6]


def test_maps_of_keyframes_that_left_are_not_kept(scan, provider):
    mesh, frames = scan
    segmenter = TrainingFreeSegmenter()
    for keyframes in (frames[:2], frames[2:4], frames[:2]):
        segment_mesh(mesh, segmenter, keyframes)
    assert provider.calls == 6


def test_pictures_of_another_place_at_the_same_time_are_not_mixed_up(scan, provider):
    mesh, frames = scan
    segmenter = TrainingFreeSegmenter()
    segment_mesh(mesh, segmenter, frames[:3])
    segment_mesh(mesh, segmenter, small_frames()[:3])  # equal stamps, other frames
    assert provider.calls == 6


def test_reused_maps_give_what_new_ones_give(scan):
    mesh, frames = scan
    segmenter = TrainingFreeSegmenter()
    segment_mesh(mesh, segmenter, frames[:3])
    _, reused = segment_mesh(mesh, segmenter, frames[:6])
    _, new = segment_mesh(mesh, TrainingFreeSegmenter(), frames[:6])
    np.testing.assert_array_equal(reused.masks, new.masks)
    np.testing.assert_array_equal(reused.scores, new.scores)


def test_keyframes_that_see_nothing_of_the_mesh_change_nothing(room, scan):
    mesh, _ = room
    away = moved(mesh, offset=(50, 0, 0))
    segmenter = TrainingFreeSegmenter(TrainingFreeConfig(min_score=0.0))  # alternatives as well
    _, without = segment_mesh(away, segmenter)
    _, blind = segment_mesh(away, segmenter, scan[1][:2])
    np.testing.assert_array_equal(blind.masks, without.masks)
    np.testing.assert_array_equal(blind.scores, without.scores)


def test_the_provider_is_the_one_of_the_settings():
    config = TrainingFreeConfig()
    segmenter = TrainingFreeSegmenter(config)
    assert segmenter.config is config
    assert segmenter.oversegmentation is config.oversegmentation
    assert type(segmenter._features) is type(load_image_features(config.image_features))


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_outside_its_range_is_refused_by_name(score):
    with pytest.raises(InputError, match=r"training_free\.min_score"):
        TrainingFreeConfig(min_score=score)
