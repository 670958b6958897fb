"""Losses of instance masks: hand-computed, against loops, and what must (not) have gradients."""

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, softplus

from training.unscene3d.losses import LossConfig, _project, instance_loss, segment_projections
from training.unscene3d.matching import match, matching_cost
from unscene_ros.models.mask_transformer import MaskPrediction
from unscene_ros.scene import InputError

SIZES = (40, 60, 10, 30, 20, 25, 15)
SMALL = LossConfig(find_min_voxels=10, find_max_share=0.4)


def random_batch(
    scenes=2, layers=2, queries=5, targets=(3, 2), classes=1, seed=0, dtype=torch.float32
):
    """(predictions, targets, sizes) of scenes with 7 segments each."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    predictions = [
        MaskPrediction(
            tuple(random(queries, classes + 1) for _ in range(scenes)),
            tuple(3 * random(queries, len(SIZES)) for _ in range(scenes)),
        )
        for _ in range(layers)
    ]
    masks = [torch.rand(count, len(SIZES), generator=generator) < 0.4 for count in targets]
    return predictions, masks, [torch.tensor(SIZES)] * scenes


def random_projections(scenes=2, bins=6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, len(SIZES), bins, generator=generator) < 0.3 for _ in range(scenes)]


def require_gradients(predictions) -> list[MaskPrediction]:
    return [
        MaskPrediction(*(tuple(x.clone().requires_grad_() for x in part) for part in layer[:2]))
        for layer in predictions
    ]


def one_layer(class_logits, mask_logits) -> list[MaskPrediction]:
    return [
        MaskPrediction(
            (torch.tensor(class_logits).requires_grad_(),),
            (torch.tensor(mask_logits).requires_grad_(),),
        )
    ]


def overlap(logits, target, sizes) -> float:
    mask = logits > 0
    union = sizes[mask | target].sum().item()
    return sizes[mask & target].sum().item() / union if union else 0.0


def dice_by_loops(masks, target, weights) -> torch.Tensor:
    common = sum(w * a * b for a, b, w in zip(masks, target, weights, strict=True))
    both = sum(w * (a + b) for a, b, w in zip(masks, target, weights, strict=True))
    return 1 - (2 * common + 1) / (both + 1)


def loss_by_loops(predictions, targets, sizes, config, projections=None) -> dict:
    """Scene by scene, query by query, from the definitions."""
    parts = {"class": 0.0, "bce": 0.0, "dice": 0.0, "projection": 0.0}
    for layer in predictions:
        sums = dict.fromkeys(parts, 0.0)
        pairs = queries = 0.0
        for b, (class_logits, mask_logits) in enumerate(zip(*layer[:2], strict=True)):
            weights = torch.ones(len(sizes[b]))
            if config.segment_weights == "size":
                weights = sizes[b] / sizes[b].float().mean()
            cost = matching_cost(
                class_logits[None].detach(),
                mask_logits[None].detach(),
                targets[b].float(),
                weights,
                object_class=config.object_class,
                class_weight=config.class_weight,
                bce_weight=config.bce_weight,
                dice_weight=config.dice_weight,
            )
            matches = match(cost)
            target_of_query = dict(
                zip(matches.queries[0].tolist(), matches.targets[0].tolist(), strict=True)
            )
            for query, logits in enumerate(mask_logits):
                log_probabilities = class_logits[query].log_softmax(0)
                overlaps = [overlap(logits, target, sizes[b]) for target in targets[b]]
                if query not in target_of_query:
                    queries += config.no_object_weight
                    voxels = sizes[b][logits > 0].sum().item()
                    find = voxels >= config.find_min_voxels and max(overlaps, default=0) < 0.1
                    find &= voxels <= config.find_max_share * sizes[b].sum().item()
                    if not (config.kind == "drop" and config.drop_no_object and find):
                        sums["class"] -= config.no_object_weight * log_probabilities[-1]
                    continue
                queries += 1
                pairs += 1
                sums["class"] -= log_probabilities[config.object_class]
                target = targets[b][target_of_query[query]]
                if config.kind == "drop" and overlaps[target_of_query[query]] < 0.1:
                    continue
                if config.kind == "projection":
                    for axis in projections[b]:
                        filled = [column for column in axis.T if column.any()]
                        masks = [logits[column].max().sigmoid() for column in filled]
                        wanted = [target[column].any().float() for column in filled]
                        sums["projection"] += dice_by_loops(masks, wanted, [1.0] * len(filled))
                    continue
                losses = [softplus(-x if t else x) for x, t in zip(logits, target, strict=True)]
                sums["bce"] += sum(w * x for x, w in zip(losses, weights, strict=True)) / len(SIZES)
                sums["dice"] += dice_by_loops(logits.sigmoid(), target.float(), weights)
        parts["class"] += config.class_weight * sums["class"] / queries
        parts["bce"] += config.bce_weight * sums["bce"] / pairs
        parts["dice"] += config.dice_weight * sums["dice"] / pairs
        parts["projection"] += config.projection_weight * sums["projection"] / pairs
    return {"total": sum(parts.values()), **parts}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weights", ["equal", "size"])
@pytest.mark.parametrize("kind", ["baseline", "drop", "projection"])
def test_losses_and_gradients_are_those_of_loops(kind, weights, seed):
    config = dataclasses.replace(SMALL, kind=kind, segment_weights=weights, no_object_weight=0.3)
    predictions, targets, sizes = random_batch(seed=seed)
    projections = random_projections() if kind == "projection" else None
    fast, slow = require_gradients(predictions), require_gradients(predictions)
    losses = instance_loss(fast, targets, sizes, config, projections)
    expected = loss_by_loops(slow, targets, sizes, config, projections)
    names = {"total", "class"} | ({"projection"} if kind == "projection" else {"bce", "dice"})
    assert set(losses) == names
    for name in names:
        assert losses[name].item() == pytest.approx(expected[name].item(), rel=1e-5), name
    losses["total"].backward()
    expected["total"].backward()
    for one, other in zip(fast, slow, strict=True):
        for mine, naive in zip(sum(one, ()), sum(other, ()), strict=True):
            wanted = torch.zeros_like(mine) if naive.grad is None else naive.grad
            torch.testing.assert_close(mine.grad, wanted, rtol=1e-4, atol=1e-6)


def test_drop_leaves_something_out_of_those_batches():
    predictions, targets, sizes = random_batch(layers=6)
    kinds = [SMALL, dataclasses.replace(SMALL, drop_no_object=False)]
    kinds.append(dataclasses.replace(SMALL, kind="baseline"))
    drop, paper, baseline = (instance_loss(predictions, targets, sizes, kind) for kind in kinds)
    assert drop["class"] < paper["class"] == baseline["class"]
    assert drop["bce"] == paper["bce"] < baseline["bce"]
    assert drop["dice"] == paper["dice"] < baseline["dice"]


def test_a_loss_computed_by_hand():
    predictions = one_layer([[0.0, math.log(3)], [0.0, 0.0]], [[math.log(3), 0.0], [-9.0, -9.0]])
    targets = [torch.tensor([[True, False]])]
    config = LossConfig(kind="baseline", no_object_weight=0.5)
    losses = instance_loss(predictions, targets, [torch.tensor([5, 5])], config)
    log2 = math.log(2)
    assert losses["class"].item() == pytest.approx(2 * (math.log(4) + 0.5 * log2) / 1.5)
    assert losses["bce"].item() == pytest.approx(5 * (math.log(4 / 3) + log2) / 2)
    assert losses["dice"].item() == pytest.approx(2 * (1 - 2.5 / 3.25))
    assert losses["total"].item() == pytest.approx(
        sum(losses[part].item() for part in ("class", "bce", "dice"))
    )


def test_a_projection_loss_computed_by_hand():
    coordinates = torch.tensor([[0, 0, 0], [3, 0, 0], [0, 4, 0]])
    projections = [segment_projections(coordinates, torch.tensor([0, 1, 2]), 3, 2)]
    predictions = one_layer([[0.0, 0.0]], [[0.0, math.log(3), -math.log(3)]])
    targets = [torch.tensor([[True, False, False]])]
    config = LossConfig(kind="projection")
    losses = instance_loss(predictions, targets, [torch.ones(3)], config, projections)
    x = 1 - (2 * 0.5 + 1) / (0.5 + 0.75 + 1 + 1)  # bins hold segments 0 and 2, and 1
    y = 1 - (2 * 0.75 + 1) / (0.75 + 0.25 + 1 + 1)  # 0 and 1, none, 2
    z = 1 - (2 * 0.75 + 1) / (0.75 + 1 + 1)  # all three in one
    assert losses["projection"].item() == pytest.approx(2 * (x + y + z))


# One target (segment 0); query 0 has its mask, query 1 a compact mask elsewhere (segment 2).
NOVEL_MASKS = [[4.0, -4.0, -4.0, -4.0], [-4.0, -4.0, 4.0, -4.0]]
NOVEL_TARGETS = [torch.tensor([[True, False, False, False]])]
NOVEL_SIZES = [torch.tensor([200, 300, 150, 400])]


def gradients_of_query(
    query, masks=NOVEL_MASKS, sizes=NOVEL_SIZES, targets=NOVEL_TARGETS, **fields
):
    """(of its class, of its mask): sums of absolute gradients."""
    predictions = one_layer([[1.0, 0.0], [0.5, 0.0]], masks)
    instance_loss(predictions, targets, sizes, LossConfig(**fields))["total"].backward()
    (class_logits,), (mask_logits,) = predictions[0][:2]
    return class_logits.grad[query].abs().sum().item(), mask_logits.grad[query].abs().sum().item()


def test_a_novel_objects_query_has_no_gradient_under_drop():
    assert gradients_of_query(1) == (0, 0)
    assert gradients_of_query(1, targets=[torch.zeros(0, 4, dtype=torch.bool)]) == (0, 0)
    assert min(gradients_of_query(0)) > 0


@pytest.mark.parametrize("fields", [{"kind": "baseline"}, {"drop_no_object": False}])
def test_a_novel_objects_query_must_say_no_object_in_the_baseline_and_the_paper(fields):
    of_class, of_mask = gradients_of_query(1, **fields)
    assert of_class > 0 and of_mask == 0


@pytest.mark.parametrize(
    "mask, why",
    [
        ([-4.0, -4.0, -4.0, -4.0], "empty"),
        ([-4.0, -4.0, 4.0, 4.0], "more than 0.3 of the scene"),
        ([1.0, -4.0, 4.0, -4.0], "overlaps a target"),
    ],
)
def test_other_masks_must_say_no_object_under_drop(mask, why):
    assert gradients_of_query(1, masks=[NOVEL_MASKS[0], mask])[0] > 0, why


def test_finds_are_measured_in_voxels():
    assert gradients_of_query(1, find_min_voxels=150)[0] == 0
    assert gradients_of_query(1, find_min_voxels=151)[0] > 0
    assert gradients_of_query(1, find_max_share=150 / 1050 + 1e-6)[0] == 0
    assert gradients_of_query(1, find_max_share=150 / 1050 - 1e-6)[0] > 0
    empty = [NOVEL_MASKS[0], [-4.0] * 4]
    assert gradients_of_query(1, masks=empty, find_min_voxels=0)[0] > 0


def test_a_pair_that_hardly_overlaps_has_no_mask_gradient_under_drop():
    apart = [[-4.0, 4.0, -4.0, -4.0], [-4.0, -4.0, -4.0, 4.0]]
    assert gradients_of_query(0, masks=apart)[1] == 0
    assert gradients_of_query(0, masks=apart, kind="baseline")[1] > 0
    assert gradients_of_query(0, masks=apart)[0] > 0  # it is still told that it is an object


@pytest.mark.parametrize("size, dropped", [(1801, True), (1800, False)])
def test_overlap_is_measured_in_voxels_and_the_threshold_itself_is_kept(size, dropped):
    masks = [[4.0, 4.0, -4.0, -4.0], [-4.0] * 4]  # IoU 200 / (200 + size) with the target
    sizes = [torch.tensor([200, size, 5000, 5000])]
    assert (gradients_of_query(0, masks=masks, sizes=sizes)[1] == 0) == dropped


def test_what_drop_leaves_out_does_not_make_the_rest_heavier():
    kept = gradients_of_query(0)
    assert kept == pytest.approx(gradients_of_query(0, kind="baseline"), rel=1e-6)


def test_several_layers_are_the_sum_of_each():
    predictions, targets, sizes = random_batch(layers=3)
    together = instance_loss(predictions, targets, sizes, SMALL)["total"].item()
    alone = [instance_loss([layer], targets, sizes, SMALL)["total"].item() for layer in predictions]
    assert together == pytest.approx(sum(alone), rel=1e-6)


def test_the_target_class_of_networks_with_two_classes():
    predictions, targets, sizes = random_batch(classes=2)
    swapped = [
        MaskPrediction(tuple(logits[:, [1, 0, 2]] for logits in layer[0]), layer[1])
        for layer in predictions
    ]
    config = dataclasses.replace(SMALL, object_class=1)
    one = instance_loss(predictions, targets, sizes, SMALL)["total"].item()
    assert instance_loss(swapped, targets, sizes, config)["total"].item() == pytest.approx(one)
    assert instance_loss(predictions, targets, sizes, config)["total"].item() != pytest.approx(one)
    config = dataclasses.replace(SMALL, object_class=2)
    with pytest.raises(InputError, match="object_class: expected one of the network's 2 classes"):
        instance_loss(predictions, targets, sizes, config)


def test_size_weights_make_a_split_segment_count_once():
    """BCE of a segment cut in two is that of the whole, if segments count by size."""
    whole = one_layer([[0.3, 0.0]], [[1.0, -2.0]])
    split = one_layer([[0.3, 0.0]], [[1.0, 1.0, -2.0]])
    config = LossConfig(kind="baseline", segment_weights="size")
    one = instance_loss(whole, [torch.tensor([[True, False]])], [torch.tensor([60, 40])], config)
    other = instance_loss(
        split, [torch.tensor([[True, True, False]])], [torch.tensor([20, 40, 40])], config
    )
    assert one["bce"].item() == pytest.approx(other["bce"].item(), rel=1e-6)


EMPTY = {
    "no targets": (5, 0, 7),
    "no queries": (0, 3, 7),
    "no queries and no targets": (0, 0, 7),
    "fewer queries than targets": (2, 5, 7),
    "no segments": (3, 2, 0),
    "nothing": (0, 0, 0),
}


@pytest.mark.parametrize("kind", ["baseline", "drop", "projection"])
@pytest.mark.parametrize("weights", ["equal", "size"])
@pytest.mark.parametrize("case", EMPTY)
def test_empty_scenes_have_a_finite_loss_alone_and_in_a_batch(case, weights, kind):
    queries, count, segments = EMPTY[case]
    empty = MaskPrediction((torch.randn(queries, 2),), (torch.randn(queries, segments),))
    (full,), targets, sizes = random_batch(scenes=1, layers=1, targets=(3,))
    batch = MaskPrediction(*(one + other for one, other in zip(empty[:2], full[:2], strict=True)))
    masks = [torch.zeros(count, segments, dtype=torch.bool), *targets]
    sizes = [torch.zeros(segments, dtype=torch.int64), *sizes]
    occupied = random_projections(1)[0]
    projections = [occupied if segments else torch.zeros(3, 0, 0, dtype=torch.bool), occupied]
    config = LossConfig(kind=kind, segment_weights=weights)
    for layer, scenes in ((empty, 1), (batch, 2)):
        predictions = require_gradients([layer, layer])
        losses = instance_loss(
            predictions, masks[:scenes], sizes[:scenes], config, projections[:scenes]
        )
        losses["total"].backward()
        assert all(math.isfinite(loss.item()) for loss in losses.values())
        for logits in sum((sum(one, ()) for one in predictions), ()):
            assert logits.grad is None or logits.grad.isfinite().all()


def test_without_targets_all_queries_say_no_object():
    predictions, _, sizes = random_batch(scenes=1, layers=1, targets=(0,))
    masks = [torch.zeros(0, len(SIZES), dtype=torch.bool)]
    losses = instance_loss(predictions, masks, sizes, LossConfig(kind="baseline"))
    (logits,) = predictions[0].class_logits
    expected = 2 * cross_entropy(logits, torch.ones(len(logits), dtype=torch.long))
    assert losses["class"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses["bce"].item() == losses["dice"].item() == 0


def test_a_no_object_weight_of_zero_leaves_scenes_without_targets_alone():
    predictions, _, sizes = random_batch(scenes=1, targets=(0,))
    masks = [torch.zeros(0, len(SIZES), dtype=torch.bool)]
    config = LossConfig(kind="baseline", no_object_weight=0.0)
    assert instance_loss(predictions, masks, sizes, config)["total"].item() == 0


@pytest.mark.parametrize("kind", ["baseline", "drop", "projection"])
def test_gradients_are_those_of_finite_differences(kind):
    predictions, targets, sizes = random_batch(scenes=1, layers=1, targets=(3,), dtype=torch.double)
    (logits,) = predictions[0].mask_logits
    (classes,) = predictions[0].class_logits
    config = dataclasses.replace(SMALL, kind=kind)
    projections = random_projections(1)

    def total(class_logits, mask_logits):
        layer = MaskPrediction((class_logits,), (mask_logits,))
        return instance_loss([layer], targets, sizes, config, projections)["total"]

    inputs = (classes.requires_grad_(), logits.requires_grad_())
    assert torch.autograd.gradcheck(total, inputs, eps=1e-6)


def test_half_precision_and_autocast_compute_in_single():
    predictions, targets, sizes = random_batch()
    half = [
        MaskPrediction(*(tuple(x.bfloat16() for x in part) for part in layer[:2]))
        for layer in predictions
    ]
    rounded = [
        MaskPrediction(*(tuple(x.float() for x in part) for part in layer[:2])) for layer in half
    ]
    expected = instance_loss(rounded, targets, sizes, SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = instance_loss(half, targets, sizes, SMALL)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected[name])


def test_large_logits_have_finite_losses_and_gradients():
    predictions = one_layer([[500.0, -500.0], [-500.0, 500.0]], [[1e4, -1e4], [-1e4, 1e4]])
    targets = [torch.tensor([[True, True]])]
    sizes = [torch.tensor([50, 50])]
    losses = instance_loss(predictions, targets, sizes, LossConfig(kind="baseline"))
    losses["total"].backward()
    assert losses["bce"].item() == pytest.approx(5 * 1e4 / 2)
    assert predictions[0].mask_logits[0].grad.isfinite().all()


def test_projections_are_the_bins_of_each_segments_voxels():
    generator = torch.Generator().manual_seed(0)
    coordinates = torch.randint(-20, 30, (60, 3), generator=generator)
    segment_of_voxel = torch.randint(0, 4, (60,), generator=generator)
    occupied = segment_projections(coordinates, segment_of_voxel, 5, 3)
    low = coordinates.amin(0)
    expected = torch.zeros_like(occupied)
    for place, segment in zip(coordinates, segment_of_voxel, strict=True):
        for axis in range(3):
            expected[axis, segment, (place[axis] - low[axis]) // 3] = True
    assert torch.equal(occupied, expected)
    assert not occupied[:, 4].any() and occupied.shape[2] <= 17


def test_projections_of_a_scene_without_voxels_have_no_bins():
    none = torch.zeros(0, 3, dtype=torch.int32)
    assert segment_projections(none, torch.zeros(0, dtype=torch.int32), 3, 2).shape == (3, 3, 0)


def test_projected_values_are_the_largest_of_each_bin_with_segments():
    values = torch.tensor([[1.0, 5.0, -2.0], [4.0, 0.0, 3.0]])
    occupied = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    assert _project(values, occupied).tolist() == [[1, 5, -2], [4, 4, 3]]


def test_input_that_does_not_fit_is_refused():
    predictions, targets, sizes = random_batch()
    config = LossConfig(kind="projection")
    with pytest.raises(InputError, match=r"2 predicted scenes.*got \[1, 2\]"):
        instance_loss(predictions, targets[:1], sizes, SMALL)
    with pytest.raises(InputError, match="0 predicted scenes"):
        instance_loss([], [], [], SMALL)
    with pytest.raises(InputError, match="needs projections"):
        instance_loss(predictions, targets, sizes, config)
    with pytest.raises(InputError, match="scene 1: expected bool targets"):
        instance_loss(predictions, [targets[0], targets[1].float()], sizes, SMALL)
    with pytest.raises(InputError, match="scene 0: expected bool targets"):
        instance_loss(predictions, targets, [sizes[0][:3], sizes[1]], SMALL)
    with pytest.raises(InputError, match=r"scene 1: .*projections"):
        projections = random_projections()
        instance_loss(predictions, targets, sizes, config, [projections[0], projections[1][:2]])


def test_predictions_that_are_not_finite_have_a_loss_that_is_not_either():
    predictions, targets, sizes = random_batch(queries=2)
    predictions[1].mask_logits[0][:, 3] = math.nan
    assert not instance_loss(predictions, targets, sizes, SMALL)["total"].isfinite()


# Two processes: the first has two scenes with targets, the second one has a scene without.
SHARES = ((0, 2), (2, 3))


def distributed_batch():
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.randn(5, 8, generator=generator) for _ in range(3)]
    _, targets, sizes = random_batch(scenes=3, targets=(4, 1, 0), seed=5)
    return inputs, targets, sizes


def head() -> torch.nn.Linear:
    """From the features of a query to its class logits and its mask logits."""
    torch.manual_seed(2)
    return torch.nn.Linear(8, 2 + len(SIZES))


def loss_of_scenes(network, first, last, kind) -> torch.Tensor:
    inputs, targets, sizes = (part[first:last] for part in distributed_batch())
    lengths = [len(queries) for queries in inputs]
    outputs = network(torch.cat(inputs)).split(lengths)
    layer = MaskPrediction(tuple(x[:, :2] for x in outputs), tuple(4 * x[:, 2:] for x in outputs))
    config = dataclasses.replace(SMALL, kind=kind, no_object_weight=0.3)
    projections = random_projections(3)[first:last]
    return instance_loss([layer, layer], targets, sizes, config, projections)["total"]


def train_a_share(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(SHARES)
    )
    gradients = {}
    for kind in ("baseline", "drop", "projection"):
        network = head()
        loss_of_scenes(network, *SHARES[rank], kind).backward()
        gradients[kind] = [parameter.grad for parameter in network.parameters()]
        for gradient in gradients[kind]:  # averaged, as DistributedDataParallel does
            torch.distributed.all_reduce(gradient)
            gradient /= len(SHARES)
    torch.save(gradients, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_learns_from_the_joined_batch(tmp_path):
    torch.multiprocessing.spawn(train_a_share, (str(tmp_path),), nprocs=len(SHARES))
    for kind in ("baseline", "drop", "projection"):
        network = head()
        loss_of_scenes(network, 0, 3, kind).backward()
        for rank in range(len(SHARES)):
            shared = torch.load(tmp_path / f"{rank}.pt")[kind]
            for parameter, gradient in zip(network.parameters(), shared, strict=True):
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-7)


# Queries that start at segments


def started(predictions, starts) -> list[MaskPrediction]:
    return [layer._replace(starts=tuple(map(torch.tensor, starts))) for layer in predictions]


@pytest.mark.parametrize("weights", ["equal", "size"])
def test_first_masks_learn_the_target_that_their_query_starts_in(weights):
    predictions, targets, sizes = random_batch()
    starts = ((0, 1, 2, 3, 3), (6, 5, 4, 3, 2))
    config = dataclasses.replace(SMALL, segment_weights=weights, start_weight=3.0)
    expected = 0.0
    for b, segments in enumerate(starts):
        weight = sizes[b] / sizes[b].float().mean() if weights == "size" else torch.ones(len(SIZES))
        for query, segment in enumerate(segments):
            holding = [target.float() for target in targets[b] if target[segment]]
            if holding:
                logits, first = predictions[0].mask_logits[b][query], holding[0]
                bce = (weight * (softplus(logits) - logits * first)).sum() / len(SIZES)
                dice = dice_by_loops(logits.sigmoid(), first, weight)
                expected += config.bce_weight * bce + config.dice_weight * dice
    losses = instance_loss(started(predictions, starts), targets, sizes, config)
    torch.testing.assert_close(losses["start"], 3.0 * expected / 10)
    without = dataclasses.replace(config, start_weight=0.0)
    others = instance_loss(predictions, targets, sizes, without)
    torch.testing.assert_close(losses["total"], others["total"] + losses["start"])


def test_queries_that_start_outside_of_all_targets_learn_nothing_from_it():
    predictions, _, sizes = random_batch()
    predictions = require_gradients(predictions)
    nothing = [torch.zeros(count, len(SIZES), dtype=torch.bool) for count in (2, 0)]
    config = dataclasses.replace(SMALL, start_weight=1.0, kind="baseline")
    starts = ((0, 1, 2, 3, 3), (6, 5, 4, 3, 2))
    start = instance_loss(started(predictions, starts), nothing, sizes, config)["start"]
    start.backward()
    assert start == 0
    assert not any(logits.grad.any() for logits in predictions[0].mask_logits)


def test_without_starts_there_is_no_loss_of_starts():
    predictions, targets, sizes = random_batch()
    with pytest.raises(InputError, match="where queries start"):
        instance_loss(predictions, targets, sizes, dataclasses.replace(SMALL, start_weight=1.0))


def test_a_query_that_starts_in_a_target_is_preferred_for_it():
    target = torch.tensor([[True, True, False, False, False, False, False]])
    logits = [[5.0, 5, -5, -5, -5, -5, -5], [1.0, 1, -5, -5, -5, -5, -5]]
    predictions = started(one_layer([[0.0, 0.0], [0.0, 0.0]], logits), [(3, 0)])
    sizes = [torch.tensor(SIZES)]
    for cost, asked in ((0.0, 0), (5.0, 1)):
        config = LossConfig(kind="baseline", start_cost=cost)
        loss = instance_loss(predictions, [target], sizes, config)["dice"]
        (gradient,) = torch.autograd.grad(loss, predictions[0].mask_logits)
        assert gradient.abs().sum(1).argmax() == asked
        assert gradient[1 - asked].abs().sum() == 0


@pytest.mark.parametrize("finds_count", [True, False])
def test_quality_is_the_overlap_with_the_best_target(finds_count):
    predictions, targets, sizes = random_batch()
    qualities = tuple(torch.linspace(-2, 2, 5).requires_grad_() for _ in range(2))
    predictions = [layer._replace(quality_logits=qualities) for layer in predictions]
    config = dataclasses.replace(SMALL, quality_weight=2.0, drop_no_object=not finds_count)
    expected = 0.0
    for layer in predictions:
        for b, quality in enumerate(qualities):
            total = sizes[b].sum().item()
            for query, logits in enumerate(layer.mask_logits[b]):
                best = max(overlap(logits, target, sizes[b]) for target in targets[b])
                voxels = sizes[b][logits > 0].sum().item()
                is_find = best < config.drop_overlap and 10 <= voxels <= 0.4 * total
                if finds_count or not is_find:
                    expected += softplus(quality[query]) - quality[query] * best
    losses = instance_loss(predictions, targets, sizes, config)
    torch.testing.assert_close(losses["quality"], 2.0 * expected / 10)
    with pytest.raises(InputError, match="quality"):
        instance_loss(random_batch()[0], targets, sizes, config)
