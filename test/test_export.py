"""What a network adds to pseudo masks: confident, uncovered, stable parts; the rest stays."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from boxes_library import TINY, boxes_mesh, narrow_networks, write_boxes_library, write_pseudo_masks

from training.artifacts import is_made, load_artifact, unpack_masks
from training.unscene3d import export as export_module
from training.unscene3d.export import (
    ExportConfig,
    confirmed,
    densified,
    export,
    export_identity,
    new_masks,
)
from training.unscene3d.pseudo_masks import find_pseudo_masks
from unscene_ros.models.checkpoint import save_checkpoint
from unscene_ros.models.instance_network import InstanceNetwork
from unscene_ros.scene import InputError, Instances

SIZES = np.array([40, 10, 20, 30, 25, 15])
CONFIG = ExportConfig(passes=0, min_stability=0)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    narrow_networks(monkeypatch)


def mask(*segments: int) -> np.ndarray:
    return np.isin(np.arange(len(SIZES)), segments)


def masks(*rows: np.ndarray) -> np.ndarray:
    return np.array(rows, bool).reshape(-1, len(SIZES))


def instances(*rows: np.ndarray, scores=None) -> Instances:
    scores = np.linspace(0.9, 0.5, len(rows)) if scores is None else np.array(scores)
    return Instances(masks(*rows), scores.astype(np.float32), np.full(len(rows), -1, np.int32))


def added(predicted, known=(), again=(), **settings):
    return new_masks(predicted, again, masks(*known), SIZES, replace(CONFIG, **settings))


# --- which ---


def test_the_uncovered_part_of_a_prediction_is_added():
    found, scores = added(instances(mask(0, 1, 2), scores=[0.8]), known=[mask(1)])
    np.testing.assert_array_equal(found, masks(mask(0, 2)))
    assert scores.dtype == np.float32 and scores.tolist() == pytest.approx([0.8])


def test_what_is_mostly_covered_is_not_new():
    covered = instances(mask(0, 3))  # 30 of its 70 vertices are new
    assert len(added(covered, known=[mask(0)])[0]) == 0
    assert len(added(covered, known=[mask(0)], min_uncovered=0.4)[0]) == 1
    exactly_half = instances(mask(1, 2, 3, 5))  # 75 vertices, 30 and 37.5 are known
    assert len(added(exactly_half, known=[mask(3)])[0]) == 1
    assert len(added(instances(mask(2, 0, 5)), known=[mask(0)])[0]) == 0


def test_the_best_comes_first_and_covers_what_follows():
    predicted = instances(mask(0, 1), mask(0, 1, 4), mask(4), scores=[0.6, 0.9, 0.7])
    found, scores = added(predicted)
    np.testing.assert_array_equal(found, masks(mask(0, 1, 4)))
    assert scores.tolist() == pytest.approx([0.9])


def test_no_more_are_added_than_wanted():
    predicted = instances(*(mask(segment) for segment in range(6)))
    assert len(added(predicted)[0]) == 5
    found, _ = added(predicted, max_new=2)
    np.testing.assert_array_equal(found, masks(mask(0), mask(1)))
    found, scores = added(predicted, max_new=0)
    assert found.shape == (0, 6) and scores.shape == (0,)


def test_what_does_not_come_out_again_in_every_pass_is_not_added():
    predicted = instances(mask(0), mask(2, 3), mask(4))
    first = instances(mask(0, 1), mask(2, 3), mask(4))  # the first with an overlap of 40 / 50
    second = instances(mask(0), mask(2))  # the second with 20 / 50
    found, _ = added(predicted, again=[first, second], min_stability=0.5)
    np.testing.assert_array_equal(found, masks(mask(0)))
    found, _ = added(predicted, again=[first, second], min_stability=0.4)
    np.testing.assert_array_equal(found, masks(mask(0), mask(2, 3)))
    assert len(added(predicted, again=[instances()], min_stability=0.1)[0]) == 0


def test_an_initial_mask_that_no_prediction_confirms_goes_if_that_is_wanted():
    initial, predicted = masks(mask(0, 1), mask(2), mask(5)), instances(mask(0), mask(2, 3))
    assert confirmed(initial, predicted, SIZES, 0).tolist() == [True, True, True]
    assert confirmed(initial, predicted, SIZES, 0.5).tolist() == [True, False, False]
    assert confirmed(initial, predicted, SIZES, 0.4).tolist() == [True, True, False]
    assert confirmed(initial, instances(), SIZES, 0.1).tolist() == [False] * 3
    assert confirmed(masks(), predicted, SIZES, 0.5).shape == (0,)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new": -1},
        {"passes": -1},
        {"min_uncovered": 1.1},
        {"min_stability": -0.1},
        {"min_confirmation": float("nan")},
    ],
)
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(InputError, match=rf"export\.{next(iter(settings))}: expected"):
        ExportConfig(**settings)


# --- with a network ---


class Predictions:
    """Takes the place of inference: what is predicted, then again in each augmented pass."""

    def __init__(self, *passes: Instances):
        self.passes = list(passes)
        self.meshes = []

    def __call__(self, network, voxels, mesh, segments, config):
        self.meshes.append(mesh)
        assert segments.count == len(SIZES)
        return self.passes[len(self.meshes) - 1]


def test_each_pass_sees_the_scene_in_another_way(monkeypatch):
    mesh, box_of_vertex = boxes_mesh()
    segments = type("Six", (), {"of_vertex": box_of_vertex % 6, "count": 6})()
    predicted = instances(mask(0), mask(2))
    predictions = Predictions(predicted, predicted, instances(mask(2)))
    monkeypatch.setattr(export_module, "infer", predictions)
    config = replace(CONFIG, passes=2, min_stability=0.9)
    kept, found, _ = densified(None, TINY.voxels, mesh, segments, masks(mask(1)), config, (0, 1))
    assert kept.tolist() == [True]
    np.testing.assert_array_equal(found, masks(mask(2)))
    plain, first, second = (seen.vertices for seen in predictions.meshes)
    np.testing.assert_array_equal(plain, mesh.vertices)
    assert not np.allclose(first, plain) and not np.allclose(first, second)


@pytest.fixture
def library(tmp_path):
    return write_boxes_library(tmp_path, "boxes")


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "network.safetensors"
    save_checkpoint(path, InstanceNetwork(TINY.network))
    return path


def exported(library, checkpoint, config=TINY):
    """The masks (K, V), scores and sources of the next round."""
    scan = library.scan("boxes")
    path = export(scan, config, find_pseudo_masks(scan, config), checkpoint)
    arrays = load_artifact(path)
    count = len(scan.mesh().vertices)
    return unpack_masks(arrays["masks"], count), arrays["scores"], arrays["sources"].tolist()


def test_initial_masks_stay_first_and_unchanged_down_to_the_vertex(library, checkpoint):
    rng = np.random.default_rng(0)
    # Masks that no union of segments is, with scores that say more than 1 for all.
    initial = rng.random((2, len(library.scan("boxes").mesh().vertices))) < 0.3
    scores = np.array([0.2, 0.7], np.float32)
    write_pseudo_masks(library.scan("boxes"), initial, scores)
    found, found_scores, sources = exported(library, checkpoint)
    np.testing.assert_array_equal(found[:2], initial)
    assert found_scores[:2].tolist() == scores.tolist()
    assert sources[:2] == ["by hand"] * 2 and set(sources[2:]) == {"export"}
    assert (found[2:].sum(axis=1) > 0).all()


def test_what_is_added_starts_from_the_initial_masks_and_not_from_earlier_additions(
    library, checkpoint, monkeypatch
):
    scan = library.scan("boxes")
    segments = scan.segments(TINY.oversegmentation)
    first, second = np.eye(segments.count, dtype=bool)[[0, segments.count - 1]]
    one = np.ones(1, np.float32), np.full(1, -1, np.int32)

    def predict(found):
        monkeypatch.setattr(export_module, "infer", lambda *_: Instances(found[None], *one))

    predict(first)
    found, _, sources = exported(library, checkpoint)
    assert sources == ["by hand", "export"]
    np.testing.assert_array_equal(found[1], first[segments.of_vertex])
    predict(second)
    save_checkpoint(checkpoint, InstanceNetwork(TINY.network))  # of the next round
    found, _, sources = exported(library, checkpoint)
    assert sources == ["by hand", "export"]
    uncovered = second[segments.of_vertex] & ~found[0]
    np.testing.assert_array_equal(found[1], uncovered)


def test_low_scores_are_not_confident(library, checkpoint):
    everything = exported(library, checkpoint)
    inference = replace(TINY.export.inference, min_score=0.99)
    config = replace(TINY, export=replace(TINY.export, inference=inference))
    assert len(everything[0]) > 1
    assert exported(library, checkpoint, config)[2] == ["by hand"]


def test_the_same_export_is_made_once_and_another_beside_it(library, checkpoint, monkeypatch):
    scan = library.scan("boxes")
    initial = find_pseudo_masks(scan, TINY)
    path = export(scan, TINY, initial, checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "densified", None)
        assert export(scan, TINY, initial, checkpoint) == path
        inference = replace(TINY.export.inference, threads=2)  # where it runs decides nothing
        elsewhere = replace(TINY, export=replace(TINY.export, inference=inference))
        assert export(scan, elsewhere, initial, checkpoint) == path
    before = path.read_bytes()
    others = [replace(TINY, export=replace(TINY.export, max_new=1)), replace(TINY, seed=1)]
    assert len({path, *(export(scan, other, initial, checkpoint) for other in others)}) == 3
    assert path.read_bytes() == before


def test_a_damaged_export_is_made_again(library, checkpoint):
    scan = library.scan("boxes")
    initial = find_pseudo_masks(scan, TINY)
    path = export(scan, TINY, initial, checkpoint)
    content = load_artifact(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert not is_made(path, export_identity(scan, TINY, initial, checkpoint))
    again = load_artifact(export(scan, TINY, initial, checkpoint))
    assert all(np.array_equal(content[name], again[name]) for name in content)


def test_a_checkpoint_that_is_not_there_is_told(library, tmp_path):
    scan = library.scan("boxes")
    with pytest.raises(InputError, match=r"nothing\.safetensors: cannot be read"):
        export(scan, TINY, find_pseudo_masks(scan, TINY), tmp_path / "nothing.safetensors")
