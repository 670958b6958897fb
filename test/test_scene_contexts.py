"""The contrastive loss: groups around a point by hand, and the sum over groups in plain loops."""

import math

import pytest
import torch

from training.unscene3d.scene_contexts import (
    SceneContextsConfig,
    scene_contexts,
    scene_contexts_loss,
)
from unscene_ros.scene import InputError

CONFIG = SceneContextsConfig(inner_radius_m=0.1, shell_radius_m=1.0)
NONE = CONFIG.count


def random_views(count=30, channels=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, channels, generator=generator, dtype=torch.float64)
    second = torch.randn(count, channels, generator=generator, dtype=torch.float64)
    return first, second, 2 * torch.rand(count, 3, generator=generator)


def naive_loss(first, second, positions, config):
    """Cross-entropy within each group, one point and one group at a time."""
    groups = scene_contexts(positions, config)
    total = 0.0
    for i in range(len(first)):
        like = [float(torch.cosine_similarity(first[i], other, dim=0)) for other in second]
        for group in range(config.count):
            rivals = [j for j in range(len(first)) if groups[i, j] == group]
            sums = sum(math.exp(like[j] / config.temperature) for j in [i, *rivals])
            total -= like[i] / config.temperature - math.log(sums)
    return total / (len(first) * config.count)


def test_shells_and_sectors_part_the_space_around_a_point():
    offsets = [
        (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.5, 0.5, -0.5), (0.5, -0.5, -0.5),
        (5, 5, 5), (5, -5, 5), (5, 5, -5), (5, -5, -5),
    ]  # fmt: skip
    groups = scene_contexts(torch.tensor([(0, 0, 0), *offsets]), CONFIG)[0, 1:].tolist()
    assert sorted(groups) == list(range(8))
    assert {group // 4 for group in groups[:4]} == {0}  # the near shell comes first
    assert {group // 4 for group in groups[4:]} == {1}


def test_what_is_nearer_than_the_inner_radius_is_in_no_group():
    positions = torch.tensor([(0.0, 0, 0), (0.05, 0, 0), (0.11, 0, 0)])
    groups = scene_contexts(positions, CONFIG)
    assert groups[0].tolist()[:2] == [NONE, NONE]
    assert groups[0, 2] < NONE
    assert groups.diagonal().tolist() == [NONE] * 3


def test_groups_turn_with_more_sectors():
    config = SceneContextsConfig(
        inner_radius_m=0, shell_radius_m=10, azimuth_sectors=4, elevation_sectors=1
    )
    angles = torch.tensor([-3.0, -1.0, 1.0, 3.0])
    around = torch.stack((angles.cos(), angles.sin(), torch.zeros(4)), 1)
    positions = torch.cat((torch.zeros(1, 3), around))
    assert scene_contexts(positions, config)[0, 1:].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("temperature", [0.07, 0.4])
def test_the_loss_is_the_cross_entropy_within_each_group(temperature):
    config = SceneContextsConfig(temperature, 0.1, 1.0, azimuth_sectors=3)
    views = random_views()
    expected = naive_loss(*views, config)
    assert scene_contexts_loss(*views, config).item() == pytest.approx(expected, rel=1e-4)


def test_the_length_of_features_does_not_count():
    first, second, positions = random_views()
    longer = scene_contexts_loss(3 * first, 0.5 * second, positions, CONFIG)
    assert longer.item() == pytest.approx(
        scene_contexts_loss(first, second, positions, CONFIG).item(), rel=1e-6
    )


def test_descending_makes_points_find_themselves():
    _, second, positions = random_views(channels=16)
    first = torch.nn.Parameter(random_views(channels=16, seed=1)[0])
    optimizer = torch.optim.Adam([first], 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        scene_contexts_loss(first, second, positions, CONFIG).backward()
        optimizer.step()
    alike = torch.nn.functional.normalize(first, dim=1) @ second.T
    assert (alike.argmax(0) == torch.arange(len(first))).all()


@pytest.mark.parametrize("count", [0, 1])
def test_no_points_and_one_point_cost_nothing_and_have_gradients(count):
    features = torch.ones(count, 4, requires_grad=True)
    loss = scene_contexts_loss(features, features, torch.zeros(count, 3), CONFIG)
    loss.backward()
    assert loss.item() == 0
    assert features.grad.isfinite().all()


def test_half_precision_is_compared_in_single():
    first, second, positions = random_views()
    loss = scene_contexts_loss(first.half(), second.half(), positions, CONFIG)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_loss(first, second, positions, CONFIG), rel=1e-2)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"azimuth_sectors": 0}, "azimuth_sectors"),
        ({"temperature": 0.0}, "temperature"),
        ({"inner_radius_m": 2.0}, "shell_radius_m"),
        ({"shell_radius_m": float("nan")}, "shell_radius_m"),
    ],
)
def test_settings_without_meaning_are_refused(wrong, name):
    with pytest.raises(InputError, match=name):
        SceneContextsConfig(**wrong)
