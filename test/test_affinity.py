"""The affinity against a naive matrix of all pairs; modalities that are missing or tell nothing."""

import numpy as np
import pytest
from planted_segments import block_features, both, features_of

from training.unscene3d import affinity as affinity_module
from training.unscene3d.affinity import Affinity, AffinityConfig
from unscene_ros.scene import InputError


def random_features(seed=0, count=30):
    random = np.random.default_rng(seed)
    return {
        "2d": features_of(random.standard_normal((count, 16)) + 0.5),
        "3d": features_of(3 * random.standard_normal((count, 5)) + 1),
    }


def naive_similarity(values, metric):
    count = len(values)
    matrix = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            a, b = values[i].astype(np.float64), values[j].astype(np.float64)
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            matrix[i, j] = cosine if metric == "cosine" else -np.linalg.norm(a - b)
    return (matrix - matrix.min()) / (matrix.max() - matrix.min())


def whole(features, config):
    affinity = Affinity(features, config)
    return affinity.rows(np.arange(affinity.count))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("modality", ["2d", "3d", "both"])
def test_rows_and_pairs_are_those_of_the_naive_matrix(metric, modality, monkeypatch):
    monkeypatch.setattr(affinity_module, "_BLOCK", 7)  # several blocks, the last one smaller
    features, config = random_features(), AffinityConfig(modality, 0.3, metric)
    parts = {name: naive_similarity(features[name].values, metric) for name in features}
    expected = 0.3 * parts["2d"] + 0.7 * parts["3d"] if modality == "both" else parts[modality]
    found = Affinity(features, config)
    np.testing.assert_allclose(found.rows(np.arange(30)), expected, atol=2e-3)
    pairs = np.random.default_rng(1).integers(0, 30, (50, 2)).astype(np.int32)
    np.testing.assert_allclose(found.pairs(pairs), expected[tuple(pairs.T)], atol=2e-3)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_affinity_is_symmetric_and_fills_zero_to_one(metric):
    matrix = whole(random_features(), AffinityConfig("2d", metric=metric))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)
    assert matrix.min() == pytest.approx(0, abs=1e-3)
    assert matrix.max() == pytest.approx(1, abs=1e-5)


def test_where_one_modality_saw_nothing_the_other_decides():
    features = random_features()
    features["2d"].valid[4:6] = False
    mixed, geometry = whole(features, AffinityConfig()), whole(features, AffinityConfig("3d"))
    np.testing.assert_allclose(mixed[4:6], geometry[4:6], atol=5e-3)
    assert np.abs(mixed[:4, :4] - geometry[:4, :4]).max() > 0.1


def test_where_no_modality_saw_anything_the_filled_in_features_still_count():
    features = random_features()
    expected = whole(features, AffinityConfig())
    for modality in features.values():
        modality.valid[:] = False
    np.testing.assert_allclose(whole(features, AffinityConfig()), expected, atol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_modality_that_is_the_same_everywhere_does_not_count(metric):
    features = random_features() | {"2d": features_of(np.ones((30, 4)))}
    geometry = whole(features, AffinityConfig("3d", metric=metric))
    mixed = whole(features, AffinityConfig(metric=metric))
    np.testing.assert_allclose(mixed, geometry, atol=2e-3)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("values", [np.zeros((5, 3)), np.ones((5, 3)), np.ones((1, 3))])
def test_segments_that_nothing_tells_apart_are_alike(metric, values):
    matrix = whole(both(features_of(values)), AffinityConfig(metric=metric))
    np.testing.assert_allclose(matrix, 1, atol=1e-4)


def test_segments_without_features_are_unlike_those_with():
    values = block_features([0] * 5).values.copy()
    values[3] = 0
    matrix = whole(both(features_of(values)), AffinityConfig())
    assert np.isfinite(matrix).all()
    assert matrix[3, :3].max() < 0.1 < matrix[0, 1]


def test_no_segments_have_no_affinity():
    found = Affinity(both(features_of(np.zeros((0, 3)))), AffinityConfig())
    assert found.rows(np.zeros(0, np.int64)).shape == (0, 0)
    assert found.pairs(np.zeros((0, 2), np.int32)).shape == (0,)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"2d": features_of(np.ones((3, 2)))}, "expected 3d features"),
        (
            {"2d": features_of(np.ones((3, 2))), "3d": features_of(np.ones((4, 2)))},
            "of the same segments",
        ),
        (both(features_of([[np.nan, 1], [0, 1]])), "finite 2d features"),
        (both(features_of(np.ones((3, 2)), np.ones(2))), "got \\(3, 2\\) with \\(2,\\)"),
    ],
)
def test_features_that_do_not_fit_are_named(features, message):
    with pytest.raises(InputError, match=message):
        Affinity(features, AffinityConfig())


def test_a_modality_that_is_not_used_may_be_missing():
    features = {"2d": block_features([0, 0, 1])}
    assert whole(features, AffinityConfig("2d")).shape == (3, 3)


def test_a_share_beyond_one_is_refused():
    with pytest.raises(InputError, match="share_2d"):
        AffinityConfig(share_2d=1.5)
