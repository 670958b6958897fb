"""From a mesh to instances by a network: known masks in, known instances out; real networks too."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse
import torch
from box_world import Box, moved, surface_of, walled_room
from torch import nn

from unscene_ros import inference
from unscene_ros.inference import InferenceConfig, infer, overlaps
from unscene_ros.models.instance_network import InstanceNetwork, InstanceNetworkConfig
from unscene_ros.models.mask_transformer import MaskPrediction, MaskTransformerConfig
from unscene_ros.models.sparse_unet import SparseUNetConfig
from unscene_ros.oversegmentation import oversegment
from unscene_ros.scene import InputError, Mesh, Segments
from unscene_ros.voxels import VoxelsConfig

VOXELS = VoxelsConfig(0.05)
EVERYTHING = InferenceConfig(min_score=0, min_area_m2=0)
QUERIES = 8


@pytest.fixture(scope="module")
def tiny() -> InstanceNetwork:
    """A real network whose weights nobody has trained."""
    torch.manual_seed(0)
    decoder = MaskTransformerConfig(
        classes=1, queries=QUERIES, width=16, heads=2, feedforward_width=20, rounds=1
    )
    return InstanceNetwork(InstanceNetworkConfig(SparseUNetConfig("Res16UNet14A"), decoder)).eval()


class Knowing(nn.Module):
    """A network that knows the places of things: one query for each box, in metres.

    It says what it is told to of the class (logits), and sees a segment in a box when most voxels
    of it that it is shown are inside. Remembers how many voxels it was shown.
    """

    def __init__(self, boxes, class_logits=None, mask_logit=4.0, classes=1):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        decoder = MaskTransformerConfig(classes=classes)
        self.config = InstanceNetworkConfig(decoder=decoder)
        self.boxes = torch.tensor([(box.low, box.high) for box in boxes]).reshape(-1, 2, 3)
        logits = [[3.0] * classes + [0.0]] * len(boxes) if class_logits is None else class_logits
        self.class_logits = torch.tensor(logits).reshape(len(boxes), classes + 1)
        self.mask_logit = mask_logit
        self.shown = []
        self.eval()

    def forward(self, tensor, segment_of_voxel, segment_counts):
        assert torch.is_inference_mode_enabled()
        self.shown.append(len(tensor.level))
        centers = (tensor.level.coordinates[:, 1:] + 0.5) * VOXELS.voxel_size_m
        reach = VOXELS.voxel_size_m / 2  # a surface on the box is in it
        inside = (centers[:, None] >= self.boxes[:, 0] - reach).all(-1)
        inside &= (centers[:, None] <= self.boxes[:, 1] + reach).all(-1)
        of_segment = nn.functional.one_hot(segment_of_voxel, segment_counts[0]).float()
        share = inside.T.float() @ of_segment / of_segment.sum(0)
        logits = torch.where(share > 0.5, self.mask_logit, -self.mask_logit)
        return [MaskPrediction((self.class_logits,), (logits,))]


LEFT = Box((0.4, 0.4, 0.0), (0.8, 0.8, 0.4), (200, 40, 40))
RIGHT = Box((1.6, 1.2, 0.0), (2.4, 2.0, 0.8), (40, 60, 200))


def room_of(*furniture, size=(3.2, 2.8, 2.4)) -> tuple[Mesh, Segments, np.ndarray]:
    """Mesh, segments of which none is in two boxes, and the box of each vertex."""
    mesh, box_of_vertex = surface_of(walled_room(*furniture, size=size))
    return mesh, *segments_within(mesh, box_of_vertex)


def segments_within(mesh, box_of_vertex) -> tuple[Segments, np.ndarray]:
    """Small patches of a grid of 0.4 m, each of one box."""
    cells = np.floor(mesh.vertices / 0.4 + 1e-4).astype(np.int64) + 1000
    keys = ((cells[:, 0] * 4000 + cells[:, 1]) * 4000 + cells[:, 2]) * 100 + box_of_vertex
    _, of_vertex = np.unique(keys, return_inverse=True)
    edges = of_vertex[mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)]
    pairs = np.unique(np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1), axis=0)
    count = int(of_vertex.max()) + 1
    return Segments(of_vertex.astype(np.int32), pairs.astype(np.int32), count), box_of_vertex


def vertex_masks(instances, segments) -> np.ndarray:
    return instances.masks[:, segments.of_vertex]


def iou(first, second) -> float:
    return (first & second).sum() / (first | second).sum()


# --- one look at a small place ---


def test_what_the_network_sees_are_the_instances_best_first():
    mesh, segments, box = room_of(LEFT, RIGHT)
    network = Knowing([LEFT, RIGHT], [[1.0, 0.0], [2.0, 0.0]])
    instances = infer(network, VOXELS, mesh, segments)
    of_class, of_mask = torch.tensor([2.0, 1.0]).sigmoid(), torch.tensor(4.0).sigmoid()
    assert instances.scores.tolist() == pytest.approx((of_class * of_mask).tolist())
    for mask, number in zip(vertex_masks(instances, segments), (3, 2), strict=True):
        assert iou(mask, box == number) > 0.8
    assert instances.class_ids.tolist() == [-1, -1]  # it knows one class only
    assert len(network.shown) == 1


def test_class_ids_are_those_of_a_network_with_classes():
    mesh, segments, _ = room_of(LEFT, RIGHT)
    network = Knowing([LEFT, RIGHT], [[0.0, 4.0, 0.0], [5.0, 0.0, 0.0]], classes=2)
    instances = infer(network, VOXELS, mesh, segments)
    assert instances.class_ids.tolist() == [0, 1]


def test_doubtful_instances_are_left_out():
    mesh, segments, _ = room_of(LEFT, RIGHT)
    network = Knowing([LEFT, RIGHT], [[-1.0, 0.0], [1.0, 0.0]])
    assert len(infer(network, VOXELS, mesh, segments).masks) == 1
    config = InferenceConfig(min_score=0.2)
    assert len(infer(network, VOXELS, mesh, segments, config).masks) == 2


def test_small_instances_are_left_out():
    mesh, segments, box = room_of(LEFT, RIGHT)
    network = Knowing([LEFT, RIGHT])
    # Five sides of 0.4 m and of 0.8 m.
    config = InferenceConfig(min_area_m2=1.5)
    [mask] = vertex_masks(infer(network, VOXELS, mesh, segments, config), segments)
    assert iou(mask, box == 3) > 0.8


def test_the_same_thing_found_twice_is_one_instance():
    mesh, segments, _ = room_of(LEFT, RIGHT)
    network = Knowing([LEFT, RIGHT, LEFT], [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    instances = infer(network, VOXELS, mesh, segments)
    assert len(instances.masks) == 2
    assert instances.scores[0] == pytest.approx(torch.tensor([3.0, 4.0]).sigmoid().prod().item())
    both = infer(network, VOXELS, mesh, segments, InferenceConfig(max_overlap=1))
    assert len(both.masks) == 3
    most = infer(network, VOXELS, mesh, segments, InferenceConfig(max_overlap=1, max_instances=2))
    np.testing.assert_array_equal(most.scores, both.scores[:2])


def test_a_mask_of_two_things_falls_into_its_parts():
    near = Box((0.92, 0.4, 0.0), (1.72, 1.2, 0.8), (40, 60, 200))
    mesh, segments, box = room_of(LEFT, near)
    network = Knowing([Box((0.2, 0.2, 0.1), (3.0, 2.6, 1.0))])  # all that stands on the floor
    instances = infer(network, VOXELS, mesh, segments, InferenceConfig(min_score=0.01))
    large, small = vertex_masks(instances, segments)
    assert iou(large, box == 3) > 0.8 and iou(small, box == 2) > 0.8
    whole = float(torch.tensor([3.0, 4.0]).sigmoid().prod())
    assert instances.scores[0] == pytest.approx(whole)
    assert instances.scores[1] == pytest.approx(whole * (0.4 / 0.8) ** 2, rel=0.2)
    assert len(infer(network, VOXELS, mesh, segments).masks) == 1  # the small one is doubtful
    joined = infer(network, VOXELS, mesh, segments, InferenceConfig(part_gap_m=0.15))
    assert iou(vertex_masks(joined, segments)[0], box >= 2) > 0.8


# --- real networks and odd input ---


def test_a_real_network_finds_the_same_whatever_the_order_of_the_vertices(tiny):
    mesh, segments, _ = room_of(LEFT, size=(1.2, 1.2, 0.8))
    order = np.random.default_rng(0).permutation(len(mesh.vertices))
    shuffled = Mesh(
        mesh.vertices[order],
        np.argsort(order).astype(np.int32)[mesh.faces],
        mesh.colors[order],
        mesh.normals[order],
    )
    same_segments = dataclasses.replace(segments, of_vertex=segments.of_vertex[order])
    one = infer(tiny, VOXELS, mesh, segments, EVERYTHING)
    other = infer(tiny, VOXELS, shuffled, same_segments, EVERYTHING)
    again = infer(tiny, VOXELS, mesh, segments, EVERYTHING)
    assert len(one.masks) and (np.diff(one.scores) <= 0).all()
    np.testing.assert_array_equal(again.masks, one.masks)
    np.testing.assert_array_equal(again.scores, one.scores)
    np.testing.assert_array_equal(other.masks, one.masks)
    np.testing.assert_allclose(other.scores, one.scores, rtol=1e-4)


def points(positions, color=(10, 20, 30)) -> Mesh:
    vertices = np.array(positions, np.float32).reshape(-1, 3)
    colors = np.tile(np.array(color, np.uint8), (len(vertices), 1))
    normals = np.tile(np.float32([0, 0, 1]), (len(vertices), 1))
    return Mesh(vertices, np.zeros((0, 3), np.int32), colors, normals)


@pytest.mark.parametrize(
    "mesh",
    [
        Mesh.empty(),
        points([(1, 2, 3)]),
        points(np.random.default_rng(0).uniform(0.11, 0.14, (30, 3))),
        points([(0, 0, 0), (0, 0, 1), (0, 1, 0)]),
        points([(0, 0, 0), (1e6, 0, 0), (-1e6, 5, 2)]),
    ],
    ids=["empty", "vertex", "below a voxel", "three voxels", "far apart"],
)
@pytest.mark.parametrize("config", [EVERYTHING, InferenceConfig()], ids=["all", "usual"])
def test_odd_meshes_have_few_instances_or_none(tiny, mesh, config):
    segments = oversegment(mesh)
    instances = infer(tiny, VOXELS, mesh, segments, config)
    assert instances.masks.shape[1] == segments.count
    assert len(instances.masks) <= QUERIES * max(len(mesh.vertices), 1)
    assert instances.masks.any(axis=1).all()


def test_a_mesh_without_colours_has_instances_too(tiny):
    mesh, segments, _ = room_of(LEFT, size=(1.2, 1.2, 0.8))
    grey = dataclasses.replace(mesh, colors=np.full_like(mesh.colors, 128))
    assert infer(tiny, VOXELS, grey, segments, EVERYTHING).masks.shape[1] == segments.count
    by_shape = VoxelsConfig(0.05, ("normal",))
    assert len(infer(tiny, by_shape, grey, segments, EVERYTHING).masks)


def test_a_network_of_other_channels_is_refused(tiny):
    mesh, segments, _ = room_of(LEFT, size=(1.2, 1.2, 0.8))
    with pytest.raises(InputError, match="expected 3 channels per voxel, got 6"):
        infer(tiny, VoxelsConfig(0.05, ("color", "normal")), mesh, segments)


def test_a_network_in_training_is_refused():
    network = Knowing([]).train()
    with pytest.raises(ValueError, match="evaluation mode"):
        infer(network, VOXELS, Mesh.empty(), oversegment(Mesh.empty()))


def test_nothing_seen_is_no_instance():
    mesh, segments, _ = room_of(LEFT)
    assert infer(Knowing([]), VOXELS, mesh, segments).masks.shape == (0, segments.count)
    away = Box((9, 9, 9), (10, 10, 10))
    assert not len(infer(Knowing([away]), VOXELS, mesh, segments).masks)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"min_score": 1.1}, "min_score"),
        ({"max_overlap": float("nan")}, "max_overlap"),
        ({"min_agreement": -1}, "min_agreement"),
        ({"min_area_m2": -0.1}, "min_area_m2"),
        ({"threads": -1}, "threads"),
        ({"crop_m": 0.0, "crop_overlap_m": 0.0}, "crop_m"),
        ({"crop_m": 4.0, "crop_overlap_m": 2.1}, "crop_overlap_m"),
    ],
)
def test_settings_without_meaning_are_refused_by_name(settings, name):
    with pytest.raises(InputError, match=rf"segmentation\.network\.{name}: expected"):
        InferenceConfig(**settings)


# --- crops ---

HALL = (10.0, 2.0, 2.0)
CROPPED = InferenceConfig(crop_m=4.0, crop_overlap_m=1.6)
# Near the ends, inside overlaps, across the borders of crops.
TABLES = tuple(Box((x, 0.4, 0.0), (x + 0.8, 1.2, 0.8), (90, 200, 60)) for x in (0.4, 3.2, 5.6, 8.8))
BENCH = Box((0.8, 1.6, 0.0), (9.2, 2.0, 0.4), (60, 90, 200))  # longer than two crops


@pytest.fixture(scope="module")
def hall():
    return room_of(*TABLES, BENCH, size=HALL)


def test_a_place_in_crops_has_the_instances_of_the_whole(hall):
    mesh, segments, box = hall
    network = Knowing([*TABLES, BENCH])
    whole = infer(network, VOXELS, mesh, segments, InferenceConfig(crop_m=np.inf))
    assert len(network.shown) == 1
    pieces = infer(network, VOXELS, mesh, segments, CROPPED)
    assert len(network.shown) > 4
    assert len(whole.masks) == len(pieces.masks) == 5
    np.testing.assert_allclose(pieces.scores, whole.scores, rtol=1e-5)
    wholes, parts = (vertex_masks(found, segments) for found in (whole, pieces))
    for number in range(2, 7):
        found = max(iou(mask, box == number) for mask in wholes)
        assert found > 0.8
        assert max(iou(mask, box == number) for mask in parts) == pytest.approx(found, abs=0.05)


def test_a_place_far_from_the_origin_is_no_other(hall):
    mesh, segments, _ = hall
    offset = np.array([400.0, -300.0, 20.0])  # whole voxels
    boxes = [Box(tuple(b.low + offset), tuple(b.high + offset)) for b in (*TABLES, BENCH)]
    instances = infer(Knowing(boxes), VOXELS, moved(mesh, offset=offset), segments, CROPPED)
    assert len(instances.masks) == 5


def test_things_side_by_side_stay_two_across_crops():
    pair = [
        Box((3.2, 0.4, 0.0), (4.8, 0.8, 0.8), (200, 40, 40)),
        Box((3.2, 0.8, 0.0), (4.8, 1.2, 0.8), (40, 40, 200)),
    ]
    mesh, segments, box = room_of(*pair, size=HALL)
    masks = vertex_masks(infer(Knowing(pair), VOXELS, mesh, segments, CROPPED), segments)
    assert len(masks) == 2
    assert min(max(iou(mask, box == number) for mask in masks) for number in (2, 3)) > 0.7


def test_what_a_crop_sees_too_little_of_is_not_its_to_tell():
    # One segment is the whole floor; the network calls all that it sees of each crop an object.
    mesh, segments, _ = room_of(size=HALL)
    floor = mesh.vertices[:, 2] < 0.01
    of_vertex = np.where(floor, 0, segments.of_vertex + 1)
    _, of_vertex = np.unique(of_vertex, return_inverse=True)
    count = int(of_vertex.max()) + 1
    floor_segment = of_vertex[floor][0]
    one_floor = Segments(of_vertex.astype(np.int32), np.zeros((0, 2), np.int32), count)
    network = Knowing([Box((-1, -1, -1), (20, 20, 20))])
    instances = infer(network, VOXELS, mesh, one_floor, CROPPED)
    assert len(instances.masks) and not instances.masks[:, floor_segment].any()
    whole = infer(network, VOXELS, mesh, one_floor, InferenceConfig(part_gap_m=0.2))
    assert whole.masks[:, floor_segment].any()


@pytest.mark.parametrize("seed", range(4))
def test_crops_hold_every_voxel_and_none_is_larger_than_asked(seed):
    rng = np.random.default_rng(seed)
    extent = rng.integers(1, 400, 3)
    coordinates = (rng.uniform(size=(3000, 3)) * extent).astype(np.int32) - 150
    config = InferenceConfig(crop_m=5.0, crop_overlap_m=2.0)
    crops = list(inference._crops(coordinates, 0.05, config))  # 100 voxels and 40
    covered = np.zeros(len(coordinates), bool)
    for rows in crops:
        low, high = coordinates[rows].min(axis=0), coordinates[rows].max(axis=0)
        assert (high - low < 100 + 1e-6).all()
        # Everything between its corners belongs to the crop.
        between = ((coordinates >= low) & (coordinates <= high)).all(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(between), rows)
        covered[rows] = True
    assert covered.all()


@pytest.mark.parametrize("length", [100, 101, 160, 161, 333])
def test_every_voxel_is_well_inside_some_crop(length):
    coordinates = np.zeros((length, 3), np.int32)
    coordinates[:, 1] = np.arange(length)
    crops = list(inference._crops(coordinates, 0.05, InferenceConfig(crop_m=5, crop_overlap_m=2)))
    assert (len(crops) == 1) == (length <= 100)
    margins = np.zeros(length)
    for rows in crops:
        from_low = rows - rows[0] if rows[0] else np.full(len(rows), length)
        from_high = rows[-1] - rows if rows[-1] < length - 1 else np.full(len(rows), length)
        margins[rows] = np.maximum(margins[rows], np.minimum(from_low, from_high))
    assert margins.min() >= 40 // 2 - 1


def test_far_outliers_cost_one_crop_each():
    coordinates = np.array([[0, 0, 0], [1, 0, 0], [10**9, 0, 0], [0, -(10**9), 7]], np.int32)
    crops = [rows.tolist() for rows in inference._crops(coordinates, 0.05, InferenceConfig())]
    assert sorted(crops) == [[0, 1], [2], [3]]


# --- naive twins ---


def random_masks(seed, rows=40, segments=60):
    rng = np.random.default_rng(seed)
    masks = rng.uniform(size=(rows, segments)) < rng.uniform(0.02, 0.6, (rows, 1))
    return masks, rng.integers(1, 50, segments)


@pytest.mark.parametrize("seed", range(3))
def test_parts_are_those_of_each_mask_alone(seed):
    masks, _ = random_masks(seed)
    rng = np.random.default_rng(seed)
    neighbors = np.sort(rng.integers(0, 60, (80, 2)), axis=1).astype(np.int32)
    parts, mask_of_part = inference._connected_parts(masks, neighbors)
    got = {
        (int(row), tuple(np.flatnonzero(part)))
        for row, part in zip(mask_of_part, parts, strict=True)
    }
    expected = set()
    for row, mask in enumerate(masks):
        inside = neighbors[mask[neighbors].all(axis=1)]
        graph = scipy.sparse.coo_array((np.ones(len(inside)), inside.T), shape=(60, 60))
        labels = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
        for label in set(labels[mask]):
            expected.add((row, tuple(np.flatnonzero(mask & (labels == label)))))
    assert got == expected
    assert len(parts) == len(expected)


@pytest.mark.parametrize("seed", range(3))
def test_repeats_are_left_out_one_by_one(seed):
    masks, sizes = random_masks(seed)
    masks = masks[masks.any(axis=1)]
    expected: list[int] = []
    for row, mask in enumerate(masks):
        shares = [sizes[mask & masks[k]].sum() / sizes[mask | masks[k]].sum() for k in expected]
        if max(shares, default=0) <= 0.25:
            expected.append(row)
    assert inference.first_of_equals(masks, sizes, 0.25) == expected
    assert 1 < len(expected) < len(masks)


def test_overlaps_are_shares_of_the_union():
    first = np.array([[True, True, False], [False, False, False]])
    second = np.array([[False, True, True], [True, True, False]])
    sizes = np.array([1, 2, 5])
    np.testing.assert_allclose(overlaps(first, second, sizes), [[2 / 8, 1], [0, 0]])
    assert overlaps(first[:0], second, sizes).shape == (0, 2)
