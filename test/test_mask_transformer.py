"""The mask decoder: its parts by hand, the whole against a plain twin, and scenes of odd sizes."""

import dataclasses
import math

import pytest
import torch
from published_weights import decoder_shapes
from sparse_voxels import random_voxels

from unscene_ros.models import mask_transformer
from unscene_ros.models.mask_transformer import (
    MaskTransformer,
    MaskTransformerConfig,
    _in_box,
    to_instances,
)
from unscene_ros.models.query_layers import (
    CrossAttention,
    FourierEncoding,
    RegionHead,
    farthest_points,
)
from unscene_ros.models.segment_pooling import SegmentShares, in_row_order, segment_means
from unscene_ros.models.sparse_convolution import pool_down
from unscene_ros.models.sparse_tensor import SparseTensor, sparse_tensor
from unscene_ros.scene import InputError

CHANNELS = (7, 6, 5)
CONFIG = MaskTransformerConfig(
    classes=2,
    queries=6,
    width=16,
    heads=2,
    feedforward_width=20,
    rounds=2,
    sampled_voxels=(10, 30),
)


def decoder(training=False, **changes) -> MaskTransformer:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, **changes)
    return MaskTransformer(CHANNELS, config).double().train(training)


def feature_maps(voxels: SparseTensor, channels=CHANNELS) -> list[SparseTensor]:
    """Stands in for a U-Net: at each stride numbers that depend on the voxels below."""
    generator = torch.Generator().manual_seed(1)
    maps, pooled = [], voxels
    for width in reversed(channels):
        weight = torch.randn(voxels.features.shape[1], width, generator=generator).double()
        maps.append(pooled.with_features((pooled.features @ weight).sin()))
        pooled = pool_down(pooled, "mean")
    return maps[::-1]


def blocks(voxels: SparseTensor) -> tuple[torch.Tensor, list[int]]:
    """(segment of each voxel, segments of each scene): eight cubes around the origin."""
    x, y, z = (voxels.level.coordinates[:, 1:] >= 0).long().T
    return x + 2 * y + 4 * z, [8] * voxels.level.scenes


def scene(count: int, seed=0) -> SparseTensor:
    return random_voxels(4, count, scenes=1, seed=seed)


def batch(*scenes: SparseTensor) -> SparseTensor:
    coordinates = [tensor.level.coordinates.clone() for tensor in scenes]
    for number, rows in enumerate(coordinates):
        rows[:, 0] = number
    features = torch.cat([tensor.features for tensor in scenes])
    return sparse_tensor(torch.cat(coordinates), features, scenes=len(scenes), backend="torch")


def test_parameters_have_the_published_names_and_shapes():
    channels = (256, 256, 128, 96, 96)
    network = MaskTransformer(channels, MaskTransformerConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == decoder_shapes(channels, 128, 1024, 2)


def test_farthest_points_equal_those_of_a_loop():
    points = torch.randint(-20, 20, (60, 3), generator=torch.Generator().manual_seed(0)).double()
    chosen = [7]
    for _ in range(14):
        gaps = [min(math.dist(point, points[row]) for row in chosen) for point in points]
        chosen.append(gaps.index(max(gaps)))
    assert farthest_points(points, 15, start=7).tolist() == chosen


def test_farthest_points_of_a_line_and_of_fewer_points_than_asked_for():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [10, 0, 0], [6, 0, 0]])
    assert farthest_points(points, 4).tolist() == [0, 2, 3, 1]
    assert farthest_points(points[:2], 5).tolist() == [0, 1]
    assert farthest_points(points[:0], 5).tolist() == []


def test_positions_are_encoded_as_sines_and_cosines():
    encoding = FourierEncoding(4, spread=1.0)
    encoding.gauss_B = torch.tensor([[1.0, 0.5], [0.0, 2.0], [0.25, 0.0]])
    angles = torch.tensor([2 * math.pi * (0.5 + 0.25), 2 * math.pi * (0.25 + 0.25)])
    encoded = encoding(torch.tensor([[0.5, 0.125, 1.0]]))
    torch.testing.assert_close(encoded, torch.cat([angles.sin(), angles.cos()])[None])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoding(torch.tensor([[0.5, 0.125, 1.0]])), encoded)


def test_positions_lie_in_the_box_of_their_own_scene():
    coordinates = torch.tensor([[0, 4, 0, 7], [0, 6, 0, 8], [0, 8, 0, 7], [2, 1, 1, 1]])
    tensor = sparse_tensor(coordinates, coordinates[:, 1:].double(), scenes=3, backend="torch")
    expected = [[0, 0, 0], [0.5, 0, 1], [1, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(_in_box(tensor), torch.tensor(expected).double())


def test_segment_means_count_voxels_and_are_zero_without_any():
    features = torch.tensor([[1.0, 2], [3, 4], [8, 0], [5, 6]], dtype=torch.float64)
    ids = torch.tensor([2, 0, 0, 2])
    expected = torch.tensor([[5.5, 2], [0, 0], [3, 4], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(segment_means(features, ids, 4), expected)
    assert torch.autograd.gradcheck(
        lambda f: segment_means(f, ids, 4), features.clone().requires_grad_()
    )
    assert segment_means(features.to(torch.bfloat16), ids, 4).dtype == torch.float32


def test_shares_of_segments_equal_pooling_the_values_of_voxels():
    voxels = random_voxels(4)
    segments = torch.randint(0, 5, (len(voxels.level),), generator=torch.Generator().manual_seed(0))
    values = torch.randn(5, 3)
    shares = SegmentShares.of_root(voxels.level, segments, 5)
    pooled = SparseTensor(values[segments], voxels.level)
    for _ in range(4):
        torch.testing.assert_close(shares.mix(values), pooled.features)
        shares, pooled = shares.coarser(), pool_down(pooled, "mean")


def test_values_of_points_come_into_the_order_of_rows():
    coordinates = torch.tensor([[0, 3, 0, 0], [0, -1, 0, 0], [0, 3, 0, 0], [0, 1, 0, 0]])
    level = sparse_tensor(coordinates, torch.zeros(4, 1), backend="torch").level
    assert in_row_order(torch.tensor([30, 10, 31, 20]), level).tolist() == [10, 20, 30]
    with pytest.raises(InputError, match="values of 4 points, got 5"):
        in_row_order(torch.zeros(5), level)


def test_a_query_takes_nothing_from_hidden_voxels():
    attention = CrossAttention(8, 2)
    queries, places = torch.randn(3, 8), torch.randn(3, 8)
    voxels, positions = torch.randn(5, 8), torch.randn(5, 8)
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    hidden[:, 3:] = True
    torch.testing.assert_close(
        attention(queries, places, voxels, positions, hidden),
        attention(queries, places, voxels[:3], positions[:3], hidden[:, :3]),
    )


def test_a_query_from_which_all_is_hidden_sees_all():
    attention = CrossAttention(8, 2)
    arguments = [torch.randn(3, 8), torch.randn(3, 8), torch.randn(5, 8), torch.randn(5, 8)]
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    hidden[0, 2] = hidden[1] = True
    opened = hidden.clone()
    opened[1] = False
    assert torch.equal(attention(*arguments, hidden), attention(*arguments, opened))


def attend(layer, queries, keys, values, hidden=None):
    """Attention of several heads (Vaswani et al., 2017), written out."""
    weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    q, k, v = (
        (x @ w.T + b).unflatten(1, (layer.num_heads, -1)).transpose(0, 1)
        for x, w, b in zip((queries, keys, values), weights, biases, strict=True)
    )
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return layer.out_proj((scores.softmax(2) @ v).transpose(0, 1).flatten(1))


def plain_decoder(network, maps, segments, count):
    """One scene in evaluation mode with the mask of each voxel pooled step by step."""
    *seen, finest = maps
    cells = [finest.with_features(finest.level.coordinates[:, 1:].double())]
    for _ in seen:
        cells.append(pool_down(cells[-1], "mean"))

    def encode(xyz, box):
        scaled = (xyz - box.amin(0)) / (box.amax(0) - box.amin(0))
        angles = 2 * math.pi * scaled @ network.pos_enc.gauss_B
        return torch.cat([angles.sin(), angles.cos()], 1)

    root = cells[0].features
    places = encode(root[farthest_points(root, CONFIG.queries)], root)
    places = network.query_projection(places.T).T
    mask_features = network.mask_features_head(finest).features
    means = torch.stack([mask_features[segments == s].mean(0) for s in range(count)])
    queries, results = torch.zeros_like(places), []

    def predict():
        normed = network.decoder_norm(queries)
        masks = network.mask_embed_head(normed) @ means.T
        results.append((network.class_embed_head(normed), masks))
        return masks

    masks = predict()
    for _ in range(CONFIG.rounds):
        for layer, tensor in enumerate(seen):
            pooled = finest.with_features(masks.T[segments])
            for _ in range(len(seen) - layer):
                pooled = pool_down(pooled, "mean")
            hidden = pooled.features.T.sigmoid() < 0.5
            hidden[hidden.all(1)] = False
            voxels = network.lin_squeeze[0][layer](tensor.features)
            positions = encode(*[cells[len(seen) - layer].features] * 2)
            cross, own = network.cross_attention[0][layer], network.self_attention[0][layer]
            feedforward = network.ffn_attention[0][layer]
            taken = attend(
                cross.multihead_attn, queries + places, voxels + positions, voxels, hidden
            )
            queries = cross.norm(queries + taken)
            taken = attend(own.self_attn, queries + places, queries + places, queries)
            queries = own.norm(queries + taken)
            queries = feedforward.norm(
                queries + feedforward.linear2(feedforward.linear1(queries).relu())
            )
            masks = predict()
    return results


def test_every_layer_equals_a_plain_decoder():
    voxels, network = scene(200), decoder()
    segments, counts = blocks(voxels)
    maps = feature_maps(voxels)
    predictions = network(maps, segments, counts)
    expected = plain_decoder(network, maps, segments, 8)
    assert len(predictions) == len(expected) == 1 + CONFIG.rounds * 2
    for prediction, (class_logits, mask_logits) in zip(predictions, expected, strict=True):
        torch.testing.assert_close(prediction.class_logits[0], class_logits)
        torch.testing.assert_close(prediction.mask_logits[0], mask_logits)


def test_the_order_of_the_points_does_not_matter():
    voxels, network = scene(150), decoder()
    order = torch.randperm(150, generator=torch.Generator().manual_seed(2))
    level = voxels.level
    shuffled = sparse_tensor(level.coordinates[order], voxels.features[order], backend="torch")
    segments, counts = blocks(voxels)
    rows = in_row_order(segments[order], shuffled.level)
    one = network(feature_maps(voxels), segments, counts)[-1]
    other = network(feature_maps(shuffled), rows, counts)[-1]
    torch.testing.assert_close(other.class_logits, one.class_logits)
    torch.testing.assert_close(other.mask_logits, one.mask_logits)


@pytest.mark.parametrize("start", ["points", "segments"])
def test_a_batch_gives_what_each_scene_gives_alone(start):
    scenes, network = (
        [scene(150), scene(40, seed=1), scene(1, seed=2), scene(0)],
        decoder(start=start),
    )
    together = batch(*scenes)
    result = network(feature_maps(together), *blocks(together))[-1]
    for number, voxels in enumerate(scenes):
        alone = network(feature_maps(voxels), *blocks(voxels))[-1]
        torch.testing.assert_close(result.class_logits[number], alone.class_logits[0])
        torch.testing.assert_close(result.mask_logits[number], alone.mask_logits[0])
    assert [len(logits) for logits in result.class_logits] == [6, 6, 1, 0]


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_parameter_and_every_map(training):
    voxels, network = batch(scene(150), scene(60, seed=1)), decoder(training)
    maps = feature_maps(voxels)
    for tensor in maps:
        tensor.features.requires_grad_()
    predictions = network(maps, *blocks(voxels))
    loss = sum(logits.sin().sum() for p in predictions for logits in p.class_logits + p.mask_logits)
    loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    gradients |= {f"map {tensor.level.stride}": tensor.features.grad for tensor in maps}
    untouched = [name for name, g in gradients.items() if g is None or not g.any()]
    assert not untouched
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_scenes_of_hardly_any_voxels_have_a_query_for_each(training, count):
    voxels, network = scene(count), decoder(training)
    segments = torch.arange(count)
    for prediction in network(feature_maps(voxels), segments, [count]):
        (class_logits,), (mask_logits,) = prediction[:2]
        assert class_logits.shape == (count, 3)
        assert mask_logits.shape == (count, count)
        assert class_logits.isfinite().all() and mask_logits.isfinite().all()
    class_logits.sum().backward()


# Queries that start at segments


def test_queries_start_at_segments_with_their_features():
    voxels, network = scene(60), decoder(start="segments", region_voxels=7.0)
    maps = feature_maps(voxels)
    segments, counts = blocks(voxels)
    (prediction, *_) = network(maps, segments, counts)
    (starts,) = prediction.starts
    cells = voxels.level.coordinates[:, 1:].double()
    centers = segment_means(cells - cells.amin(0), segments, 8) / 7.0
    features = segment_means(network.mask_features_head(maps[-1]).features, segments, 8)
    looks = features / features.norm(dim=1, keepdim=True)
    assert torch.equal(starts, farthest_points(torch.cat([centers, looks], 1), CONFIG.queries))
    queries = network.decoder_norm(features[starts])
    expected = network.mask_embed_head(queries) @ features.T
    expected = expected + network.region_head(queries, centers, starts)
    torch.testing.assert_close(prediction.mask_logits[0], expected)


def test_a_region_is_high_at_its_centre_and_zero_at_its_radius():
    head = RegionHead(4).double()
    centers = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 3, 0], [0, 0, 0]]).double()
    query = torch.zeros(1, 4).double()
    logits = head(query, centers, torch.tensor([0]))[0]
    torch.testing.assert_close(logits, torch.tensor([3.0, 0, -6, 3]).double())
    with torch.no_grad():  # moved by one along x, twice as large, one half higher
        head.linear.bias.copy_(torch.tensor([1, 0, 0, math.log(2), 0.5]))
    logits = head(query, centers, torch.tensor([0]))[0]
    torch.testing.assert_close(logits[:2], torch.tensor([3.0, 4.5]).double())
    logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_segments_without_voxels_are_no_start():
    voxels, network = scene(60), decoder(start="segments", queries=12)
    segments, _ = blocks(voxels)
    (prediction, *_) = network(feature_maps(voxels), 2 * segments, [17])
    assert sorted(prediction.starts[0].tolist()) == [2 * segment for segment in range(8)]


@pytest.mark.parametrize("start", ["points", "segments"])
def test_inference_can_have_more_queries_than_training(start):
    voxels = scene(60)
    arguments = feature_maps(voxels), *blocks(voxels)
    for training, expected in ((True, 4), (False, 7)):
        network = decoder(training, start=start, queries=4, queries_at_inference=7)
        assert len(network(*arguments)[-1].class_logits[0]) == expected


@pytest.mark.parametrize("start", ["points", "segments"])
def test_every_layer_tells_where_queries_start(start):
    voxels, network = scene(60), decoder(start=start)
    segments, counts = blocks(voxels)
    predictions = network(feature_maps(voxels), segments, counts)
    assert all(torch.equal(p.starts[0], predictions[0].starts[0]) for p in predictions)


def test_no_two_queries_of_a_small_scene_are_the_same():
    voxels, network = scene(3), decoder()
    for prediction in network(feature_maps(voxels), torch.arange(3), [3])[1:]:
        assert len(prediction.class_logits[0].unique(dim=0)) == 3
        assert len(prediction.mask_logits[0].unique(dim=0)) == 3


def test_one_segment_and_segments_without_voxels():
    voxels, network = scene(50), decoder()
    ids = torch.ones(50, dtype=torch.int64)
    (masks,) = network(feature_maps(voxels), ids, [4])[-1].mask_logits
    assert not masks[:, [0, 2, 3]].any()
    (alone,) = network(feature_maps(voxels), ids * 0, [1])[-1].mask_logits
    torch.testing.assert_close(masks[:, 1:2], alone)


def test_evaluation_is_deterministic_and_training_follows_its_generator():
    voxels, network = scene(200), decoder()
    arguments = (feature_maps(voxels), *blocks(voxels))
    one, same = (network(*arguments)[-1].class_logits[0] for _ in range(2))
    assert torch.equal(one, same)
    network.train()
    seeds = (0, 0, 1)
    one, same, other = (
        network(*arguments, torch.Generator().manual_seed(seed))[-1].class_logits[0]
        for seed in seeds
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("training", [True, False])
def test_training_looks_at_a_sample_of_the_voxels(training):
    voxels, network = scene(200), decoder(training)
    maps, looked_at = feature_maps(voxels), {}
    for layer in (0, 1):
        network.lin_squeeze[0][layer].register_forward_pre_hook(
            lambda _, arguments, layer=layer: looked_at.update({layer: len(arguments[0])})
        )
    network(maps, *blocks(voxels))
    sizes = [len(tensor.level) for tensor in maps[:2]]
    assert all(a > b for a, b in zip(sizes, CONFIG.sampled_voxels, strict=True))
    assert looked_at == dict(enumerate(CONFIG.sampled_voxels if training else sizes))


def test_half_precision_stays_finite_and_near():
    torch.manual_seed(0)
    network, voxels = MaskTransformer(CHANNELS, CONFIG).eval(), scene(100)
    maps = [m.with_features(m.features.float()) for m in feature_maps(voxels)]
    exact = network(maps, *blocks(voxels))[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = network(maps, *blocks(voxels))
    torch.testing.assert_close(
        half[0].mask_logits[0].float(), exact.mask_logits[0], atol=0.05, rtol=0.05
    )
    assert half[-1].class_logits[0].isfinite().all()


def test_instances_are_scored_by_class_and_mask():
    # Softmax of log weights: query 0 is class 0 by 0.75, query 1 class 1 by 0.5, query 2 nothing.
    class_logits = torch.tensor([[6.0, 1, 1], [1, 4, 3], [1, 1, 2]]).log()
    probability = torch.tensor([[0.9, 0.6, 0.2], [0.1, 0.8, 0.3], [0.4, 0.3, 0.2]])
    voxels = torch.tensor([1, 3, 4])
    instances = to_instances(class_logits, probability.logit(), voxels, most=3)
    inside = (0.9 * 1 + 0.6 * 3) / 4
    assert instances.scores.tolist() == pytest.approx([0.75 * inside, 0.5 * 0.8, 0.125 * 0.8])
    assert instances.class_ids.tolist() == [0, 1, 0]
    assert instances.masks.tolist() == [
        [True, True, False],
        [False, True, False],
        [False, True, False],
    ]


def test_instances_are_scored_by_their_expected_quality_where_there_is_one():
    mask_logits = torch.tensor([[4.0, -4.0], [0.1, -4.0], [-1.0, -1.0]])
    class_logits = torch.tensor([[0.0, math.log(3), 9.0]] * 3)  # two classes, and no object
    quality = torch.tensor([-1.0, 2.0, 5.0])
    instances = to_instances(class_logits, mask_logits, torch.tensor([3, 5]), 10, quality)
    overlap, inside = quality[:2].sigmoid(), mask_logits[:2, 0].sigmoid()
    expected = torch.cat([overlap * inside * share for share in (0.75, 0.25)])  # the third is empty
    expected = expected.sort(descending=True).values
    torch.testing.assert_close(torch.from_numpy(instances.scores), expected)
    assert instances.class_ids[0] == 1


def test_instances_of_a_scene_without_voxels():
    voxels, network = scene(0), decoder()
    prediction = network(feature_maps(voxels), *blocks(voxels))[-1]
    instances = to_instances(
        prediction.class_logits[0], prediction.mask_logits[0], torch.zeros(8, dtype=torch.int64)
    )
    assert instances.masks.shape == (0, 8)


def test_maps_and_segments_that_do_not_fit_are_refused():
    voxels, network = scene(50), decoder()
    segments, counts = blocks(voxels)
    maps = feature_maps(voxels)
    with pytest.raises(InputError, match=r"maps of \(7, 6, 5\) channels, got \(6, 5\)"):
        network(maps[1:], segments, counts)
    foreign = feature_maps(scene(50))
    with pytest.raises(InputError, match="one chain of levels, got stride 2 before 1"):
        network([*foreign[:2], maps[2]], segments, counts)
    with pytest.raises(InputError, match="50 ids and segment counts for 1 scenes, got"):
        network(maps, segments[1:], counts)
    with pytest.raises(InputError, match="50 ids and segment counts for 1 scenes, got"):
        network(maps, segments, [4, 4])
    with pytest.raises(InputError, match=r"ids 0\.\.5 in scene 0, got [67]"):
        network(maps, segments, [6])
    with pytest.raises(InputError, match=r"ids 0\.\.7 in scene 0, got -1"):
        network(maps, segments - 1, counts)
    with pytest.raises(InputError, match=r"int32 or int64 ids, got torch.float64"):
        network(maps, segments.double(), counts)
    with pytest.raises(InputError, match=r"segment_counts: expected 0 or more, got \[-1\]"):
        network(maps, segments, [-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampled_voxels": (10,)}, "sampled_voxels for the 2 maps"),
        ({"queries": 0}, "at least one class, query, head"),
        ({"heads": 0}, "at least one class, query, head"),
        ({"heads": 3}, "even width that 3 heads can share, got 16"),
        ({"width": 15, "heads": 3}, "even width that 3 heads can share, got 15"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        decoder(**changes)


def test_positions_in_the_box_are_right_for_voxels_billions_apart():
    coordinates = torch.tensor([[0, -2 * 10**9, 0, 0], [0, 0, 0, 0], [0, 2 * 10**9, 0, 0]])
    root = sparse_tensor(coordinates, torch.zeros(3, 1)).level
    in_box = mask_transformer._in_box(mask_transformer._cells(root, torch.float32))
    torch.testing.assert_close(in_box[:, 0], torch.tensor([0, 0.5, 1]))
