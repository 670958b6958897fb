"""Layered merging of segments whose objects are known, and plain twins of its parts."""

from dataclasses import replace

import numpy as np
import pytest
from box_world import Box, surface_of
from planted_segments import (
    as_sets,
    block_features,
    blocks_of,
    both,
    chain,
    features_of,
    huddled,
    permuted,
    tiled_graph,
)

from training.unscene3d.affinity import AffinityConfig
from training.unscene3d.layers import (
    LayersConfig,
    Looks,
    box_overlaps,
    boxes_of_segments,
    joined_regions,
    layer_masks,
    neighboring_regions,
)
from training.unscene3d.segment_graph import MaskLimits
from unscene_ros.oversegmentation import oversegment
from unscene_ros.scene import InputError, Mesh

NO_LIMITS = MaskLimits(min_area_m2=0.0, max_length_m=1000.0, max_scene_share=1000.0)
NO_BOXES = np.zeros((0, 6))
# No limits, no balance, no crumbs: what is joined is told by the shares alone.
CONFIG = LayersConfig(
    limits=NO_LIMITS, crumb_area_m2=0.0, large_crumb_area_m2=0.0, balance=1e9, half_area_m2=0.0
)


def boxes_in_a_row(count):
    """(S, 6) unit cubes side by side along x."""
    low = np.stack([np.arange(count), np.zeros(count), np.zeros(count)], axis=1)
    return np.concatenate([low, low + 1], axis=1)


def layers_of(features, graph, prior=NO_BOXES, config=CONFIG):
    return layer_masks(both(features), graph, boxes_in_a_row(len(graph.movable)), prior, config)


def test_blocks_of_alike_neighbours_are_masks_and_rank_first():
    sizes = (9, 9, 9)
    label = np.repeat(np.arange(3), sizes)
    graph = tiled_graph(len(label), neighbors=huddled(sizes), columns=3)
    config = replace(CONFIG, shares=(0.99, 1.0))  # 108 of the 110 pairs are inside a block
    masks, scores = layers_of(block_features(label), graph, config=config)
    assert as_sets(masks[:3]) == blocks_of(label)
    assert (np.diff(scores) <= 0).all()
    assert scores.min() >= 0 and scores.max() <= 1
    assert masks.dtype == bool and scores.dtype == np.float32


def test_parts_are_masks_beside_the_whole():
    # Two halves of one thing are alike, their segments more so; the other thing is of another look.
    values = np.repeat([[1.0, 0.3, 0], [1.0, -0.3, 0], [0, 0, 1.0]], 6, axis=0)
    values += 0.001 * np.random.default_rng(0).standard_normal(values.shape)
    config = replace(CONFIG, shares=(0.9, 0.5), max_overlap=0.9)  # 15 of 17 pairs, then 1 of 2
    masks, _ = layers_of(features_of(values), tiled_graph(18), config=config)
    halves = {frozenset(range(6)), frozenset(range(6, 12))}
    assert halves | {frozenset(range(12))} <= as_sets(masks)


def test_what_fills_a_box_of_the_prior_grows_no_further():
    # Six segments in a row, each pair more alike than the next: they would all become one.
    angles = np.cumsum([0.0, 0.01, 0.02, 0.3, 0.04, 0.05])
    features = features_of(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    config = replace(CONFIG, shares=(0.8, 1.0), max_overlap=1.0)
    low, high = boxes_in_a_row(6)[0, :3], boxes_in_a_row(6)[2, 3:]
    prior = np.concatenate([low, high])[None]
    grown = as_sets(layers_of(features, tiled_graph(6), config=config)[0])
    kept = as_sets(layers_of(features, tiled_graph(6), prior, config)[0])
    halves = {frozenset({0, 1, 2}), frozenset({3, 4, 5})}
    assert grown == halves | {frozenset(range(6))}
    assert kept == halves
    elsewhere = prior + 100
    assert as_sets(layers_of(features, tiled_graph(6), elsewhere, config)[0]) == grown


def test_structure_is_in_no_mask_and_parts_what_it_lies_between():
    movable = np.arange(12) != 5
    graph = tiled_graph(12, movable=movable)
    config = replace(CONFIG, shares=(1.0,))
    masks, _ = layers_of(block_features(np.zeros(12, int)), graph, config=config)
    assert not masks[:, 5].any()
    assert not (masks[:, :5].any(axis=1) & masks[:, 6:].any(axis=1)).any()
    assert {frozenset(range(5)), frozenset(range(6, 12))} <= as_sets(masks)


def test_crumbs_join_their_neighbour_in_the_end():
    label = np.repeat([0, 1, 2], (6, 1, 6))
    graph = tiled_graph(13)
    config = replace(CONFIG, shares=(0.84,), max_overlap=1.0)  # 10 of the 12 pairs
    without = as_sets(layers_of(block_features(label), graph, config=config)[0])
    config = replace(config, crumb_area_m2=0.1)
    merged = as_sets(layers_of(block_features(label), graph, config=config)[0])
    assert without == blocks_of(label)
    assert len(merged - without) == 1
    assert {6} < set(next(iter(merged - without)))


def test_large_crumbs_join_only_what_is_huge():
    label = np.repeat([0, 1], (10, 2))
    features, graph = block_features(label), tiled_graph(12)  # 0.4 m² and 0.08 m²
    config = replace(CONFIG, shares=(0.95,), max_overlap=1.0, large_crumb_area_m2=0.1)
    apart = layers_of(features, graph, config=replace(config, huge_area_m2=0.5))[0]
    joined = layers_of(features, graph, config=replace(config, huge_area_m2=0.3))[0]
    assert frozenset(range(12)) not in as_sets(apart)
    assert frozenset(range(12)) in as_sets(joined)


def plain_join(region, pairs, areas, balance):
    """Joining regions as sets of segments."""
    groups = {r: {s for s in range(len(region)) if region[s] == r} for r in set(region) - {-1}}
    group_of = {r: r for r in groups}
    taken = dict.fromkeys(groups, 0.0)
    for a, b in pairs:
        a, b = group_of[a], group_of[b]
        if a == b:
            continue
        if sum(areas[s] for s in groups[a]) < sum(areas[s] for s in groups[b]):
            a, b = b, a
        size = sum(areas[s] for s in groups[b])
        if taken[a] > 0 and size >= balance * taken[a]:
            continue
        taken[a] += size
        groups[a] |= groups.pop(b)
        group_of = {r: a if g == b else g for r, g in group_of.items()}
    return {frozenset(group) for group in groups.values()}


@pytest.mark.parametrize("seed", range(8))
def test_joining_agrees_with_the_plain_twin(seed):
    random = np.random.default_rng(seed)
    count = 40
    region = np.where(random.random(count) < 0.1, -1, np.arange(count))
    pairs = random.choice(region[region >= 0], (25, 2))
    areas = random.integers(1, 9, count).astype(float)
    got = joined_regions(region, pairs, areas, 3.0)
    sets = {frozenset(np.flatnonzero(got == r).tolist()) for r in set(got.tolist()) - {-1}}
    assert sets == plain_join(region.tolist(), pairs.tolist(), areas, 3.0)
    np.testing.assert_array_equal(got == -1, region == -1)
    again = joined_regions(got, np.zeros((0, 2), int), areas, 3.0)
    np.testing.assert_array_equal(again, got)


def test_a_region_that_took_something_small_takes_nothing_much_larger():
    areas = np.array([10.0, 1, 4])
    region = np.arange(3)
    pairs = np.array([[0, 1], [0, 2]])
    np.testing.assert_array_equal(joined_regions(region, pairs, areas, 3.0), [0, 0, 2])
    np.testing.assert_array_equal(joined_regions(region, pairs, areas, 5.0), [0, 0, 0])
    np.testing.assert_array_equal(joined_regions(region, pairs[::-1], areas, 3.0), [0, 0, 0])


def test_neighboring_regions_are_those_of_linked_segments():
    region = np.array([0, 0, 2, 3, 3])
    links = np.array([[0, 1], [1, 2], [0, 2], [4, 2]])
    np.testing.assert_array_equal(neighboring_regions(region, links), [[0, 2], [2, 3]])
    assert neighboring_regions(region, links[:0]).shape == (0, 2)


def test_what_bled_over_counts_less_in_the_feature_of_a_region():
    values = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    graph = tiled_graph(4)
    looks = Looks.of({"2d": features_of(values)}, graph, AffinityConfig(modality="2d"))
    mean = looks.mean(np.zeros(4, int))[0]
    plain = np.array([3, 1]) / np.sqrt(10)
    likeness = values @ plain
    weighted = (values * likeness[:, None]).sum(axis=0)
    np.testing.assert_allclose(mean, weighted / np.linalg.norm(weighted), atol=1e-4)
    assert mean[1] < plain[1]


def test_features_without_a_view_hardly_count():
    values = np.array([[1.0, 0], [1, 1]])
    features = {"2d": features_of(values, valid=[True, False])}
    looks = Looks.of(features, tiled_graph(2), AffinityConfig(modality="2d"))
    np.testing.assert_allclose(looks.mean(np.zeros(2, int))[0], [1, 0], atol=2e-3)


def test_the_cosine_of_two_modalities_is_their_weighted_mean():
    random = np.random.default_rng(0)
    first, second = (features_of(random.standard_normal((2, 5))) for _ in range(2))
    config = AffinityConfig(modality="both", share_2d=0.3)
    vectors = Looks.of({"2d": first, "3d": second}, tiled_graph(2), config).vectors

    def cosine(features):
        a, b = features.values.astype(float)
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    expected = 0.3 * cosine(first) + 0.7 * cosine(second)
    assert vectors[0] @ vectors[1] == pytest.approx(expected, abs=1e-5)


def test_boxes_overlap_as_counted_cell_by_cell():
    random = np.random.default_rng(0)
    low = random.integers(0, 5, (12, 3))
    boxes = np.concatenate([low, low + random.integers(1, 5, (12, 3))], axis=1)
    cells = np.stack(np.meshgrid(*[np.arange(10)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = ((cells >= boxes[:, None, :3]) & (cells < boxes[:, None, 3:])).all(axis=2)
    common = (inside[:, None] & inside).sum(axis=2)
    union = (inside[:, None] | inside).sum(axis=2)
    np.testing.assert_allclose(box_overlaps(boxes, boxes), common / union)
    flat = np.array([[0.0, 0, 0, 1, 1, 0]])
    assert box_overlaps(flat, flat)[0, 0] == 0
    assert box_overlaps(boxes, NO_BOXES).shape == (12, 0)


def test_boxes_of_segments_hold_their_vertices():
    mesh, _ = surface_of([Box((0, 0, 0), (0.4, 0.4, 0.4)), Box((0.4, 0, 0), (0.8, 0.4, 0.2))])
    segments = oversegment(mesh)
    boxes = boxes_of_segments(mesh, segments)
    for segment in range(segments.count):
        points = mesh.vertices[segments.of_vertex == segment]
        expected = np.concatenate([points.min(axis=0), points.max(axis=0)])
        np.testing.assert_allclose(boxes[segment], expected)
    nothing = Mesh.empty()
    assert boxes_of_segments(nothing, oversegment(nothing)).shape == (0, 6)


def test_the_numbering_of_the_segments_does_not_matter():
    random = np.random.default_rng(3)
    graph = tiled_graph(30)
    features = both(features_of(random.standard_normal((30, 4))))
    order = random.permutation(30)
    config = replace(CONFIG, max_overlap=1.0)
    boxes = boxes_in_a_row(30)
    masks, _ = layer_masks(features, graph, boxes, NO_BOXES, config)
    shuffled, other_graph = permuted(features, graph, order)
    others, _ = layer_masks(shuffled, other_graph, boxes[order], NO_BOXES, config)
    back = np.zeros_like(others)
    back[:, order] = others
    assert as_sets(back) == as_sets(masks)


def test_kept_masks_overlap_no_more_than_allowed_and_are_no_more_than_asked():
    random = np.random.default_rng(5)
    features, graph = features_of(random.standard_normal((40, 3))), tiled_graph(40)
    masks, _ = layers_of(features, graph, config=replace(CONFIG, max_overlap=0.3))
    common = masks.astype(int) @ masks.T.astype(int)
    sizes = masks.sum(axis=1)
    overlap = common / (sizes[:, None] + sizes - common)
    np.fill_diagonal(overlap, 0)
    assert len(masks) > 5 and overlap.max() <= 0.3
    few, few_scores = layers_of(features, graph, config=replace(CONFIG, max_masks=2))
    assert len(few) == len(few_scores) == 2


def test_nothing_in_nothing_out():
    empty = tiled_graph(0)
    masks, scores = layers_of(features_of(np.zeros((0, 4))), empty)
    assert masks.shape == (0, 0) and scores.shape == (0,)
    fixed = tiled_graph(3, movable=np.zeros(3, bool))
    assert layers_of(block_features([0, 0, 1]), fixed)[0].shape == (0, 3)


def test_single_segments_and_segments_without_neighbours_are_masks():
    masks, _ = layers_of(block_features([0]), tiled_graph(1))
    np.testing.assert_array_equal(masks, [[True]])
    alone = tiled_graph(3, neighbors=np.zeros((0, 2)))
    assert as_sets(layers_of(block_features([0, 0, 0]), alone)[0]) == blocks_of([0, 1, 2])


def test_features_of_one_value_and_of_no_view_are_no_error():
    same = features_of(np.zeros((6, 4)), valid=np.zeros(6, bool))
    masks, scores = layers_of(same, tiled_graph(6))
    assert len(masks) and np.isfinite(scores).all()


def test_features_that_do_not_fit_are_refused():
    graph = tiled_graph(4)
    features = {"3d": block_features([0, 0, 1, 1])}
    with pytest.raises(InputError, match="2d features of 4 segments"):
        layer_masks(features, graph, boxes_in_a_row(4), NO_BOXES)
    with pytest.raises(InputError, match="2d features of 4 segments"):
        layer_masks({"2d": block_features([0])}, graph, boxes_in_a_row(4), NO_BOXES)


def test_settings_without_meaning_are_refused():
    with pytest.raises(InputError, match="metric"):
        LayersConfig(affinity=AffinityConfig(metric="l2"))
    with pytest.raises(InputError, match="shares"):
        LayersConfig(shares=(0.5, 1.5))


def test_a_chain_is_joined_layer_by_layer():
    angles = np.linspace(0, 1, 16)
    features = features_of(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    config = replace(CONFIG, shares=(0.5, 0.5, 0.5, 1.0), max_overlap=1.0)
    masks, _ = layers_of(features, tiled_graph(16, neighbors=chain(16)), config=config)
    assert masks.all(axis=1).any()
    assert len({int(size) for size in masks.sum(axis=1)}) >= 4
