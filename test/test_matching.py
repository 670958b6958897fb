"""Matching of queries with targets: costs against loops, pairs against all permutations."""

import math
from itertools import permutations

import pytest
import torch

from training.unscene3d.matching import match, matching_cost

WEIGHTS = dict(object_class=1, class_weight=2.0, bce_weight=5.0, dice_weight=2.0)


def random_scene(layers=2, queries=5, segments=7, targets=3, classes=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(layers, queries, classes + 1, generator=generator)
    mask_logits = 4 * torch.randn(layers, queries, segments, generator=generator)
    masks = (torch.rand(targets, segments, generator=generator) < 0.4).float()
    weights = torch.rand(segments, generator=generator)
    return class_logits, mask_logits, masks, weights / weights.mean()


def cost_of_one_pair(class_logits, mask_logits, target, weights) -> float:
    exponentials = [math.exp(logit) for logit in class_logits.tolist()]
    bce = common = sizes = 0.0
    for logit, wanted, weight in zip(mask_logits, target, weights, strict=True):
        probability = 1 / (1 + math.exp(-logit))
        bce -= weight * math.log(probability if wanted else 1 - probability)
        common += weight * probability * wanted
        sizes += weight * (probability + wanted)
    dice = 1 - (2 * common + 1) / (sizes + 1)
    return 5 * bce / len(target) + 2 * dice - 2 * exponentials[1] / sum(exponentials)


def test_costs_are_those_of_each_pair_alone():
    class_logits, mask_logits, targets, weights = random_scene()
    cost = matching_cost(class_logits, mask_logits, targets, weights, **WEIGHTS)
    assert cost.shape == (2, 5, 3)
    for layer in range(2):
        for query in range(5):
            for target in range(3):
                alone = cost_of_one_pair(
                    class_logits[layer, query],
                    mask_logits[layer, query].tolist(),
                    targets[target].tolist(),
                    weights.tolist(),
                )
                assert cost[layer, query, target].item() == pytest.approx(alone, rel=1e-5)


def test_the_cost_of_a_pair_computed_by_hand():
    class_logits = torch.tensor([[[0.0, math.log(3)]]])  # p(object) = 1/4
    mask_logits = torch.tensor([[[0.0, math.log(3)]]])  # 1/2 and 3/4
    cost = matching_cost(
        class_logits,
        mask_logits,
        torch.tensor([[0.0, 1.0]]),
        torch.ones(2),
        object_class=0,
        class_weight=1.0,
        bce_weight=10.0,
        dice_weight=100.0,
    )
    bce = (math.log(2) + math.log(4 / 3)) / 2
    dice = 1 - (2 * 0.75 + 1) / (1.25 + 1 + 1)
    assert cost.item() == pytest.approx(10 * bce + 100 * dice - 1 / 4, rel=1e-6)


def test_costs_of_large_logits_are_finite_and_right():
    mask_logits = torch.tensor([[[1e4, -1e4]]])
    masks = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    cost = matching_cost(torch.zeros(1, 1, 3), mask_logits, masks, torch.ones(2), **WEIGHTS)
    right, wrong = cost[0, 0].tolist()
    assert right == pytest.approx(-2 / 3, abs=1e-5)
    assert wrong == pytest.approx(5 * 1e4 + 2 * (1 - 1 / 3) - 2 / 3)


def test_a_query_with_the_targets_mask_and_class_costs_least():
    class_logits, mask_logits, targets, weights = random_scene(queries=6)
    mask_logits[:, 4] = 8 * targets[2] - 4
    class_logits[:, 4] = torch.tensor([0.0, 9.0, 0.0])
    cost = matching_cost(class_logits, mask_logits, targets, weights, **WEIGHTS)
    assert cost[:, :, 2].argmin(1).tolist() == [4, 4]


@pytest.mark.parametrize("shape", [(3, 5, 3), (2, 3, 5), (2, 4, 4), (1, 1, 1)])
def test_pairs_cost_least_among_all_pairings(shape):
    cost = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    layers, queries, targets = shape
    matches = match(cost)
    assert matches.queries.shape == matches.targets.shape == (layers, min(queries, targets))
    for layer in range(layers):
        own, wanted = matches.queries[layer], matches.targets[layer]
        assert len(set(own.tolist())) == len(set(wanted.tolist())) == min(queries, targets)
        table = cost[layer] if queries <= targets else cost[layer].T
        least = min(
            sum(table[row, column].item() for row, column in enumerate(order))
            for order in permutations(range(table.shape[1]), table.shape[0])
        )
        assert cost[layer, own, wanted].sum().item() == pytest.approx(least)


@pytest.mark.parametrize("queries, targets", [(4, 0), (0, 4), (0, 0)])
def test_scenes_without_queries_or_targets_have_no_pairs(queries, targets):
    scene = random_scene(queries=queries, targets=targets)
    matches = match(matching_cost(*scene, **WEIGHTS))
    assert matches.queries.shape == matches.targets.shape == (2, 0)
    assert matches.queries.dtype == matches.targets.dtype == torch.int64


def test_a_scene_without_segments_is_matched_by_class():
    class_logits, *others = random_scene(segments=0, targets=1)
    cost = matching_cost(class_logits, *others, **WEIGHTS)
    best = class_logits.softmax(-1)[..., 1].argmax(1, keepdim=True)
    assert torch.equal(match(cost).queries, best)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_queries_of_costs_that_are_not_finite_come_last(value):
    cost = torch.zeros(1, 4, 2)
    cost[0, :2] = value
    assert match(cost).queries.tolist() == [[2, 3]]


def test_matching_leaves_no_trace_for_gradients():
    class_logits, mask_logits, targets, weights = random_scene()
    cost = matching_cost(class_logits, mask_logits.requires_grad_(), targets, weights, **WEIGHTS)
    assert not cost.requires_grad
