"""One round of training: it learns, goes on where it ended, starts from weights, fits the robot."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from boxes_library import TINY, boxes_mesh, narrow_networks, with_steps

from training.learner import LearnerConfig
from training.unscene3d import train as train_module
from training.unscene3d.augmentation import AugmentationConfig
from training.unscene3d.recipe import recipe_hash
from training.unscene3d.samples import SamplesConfig, TrainingScene, join_samples, make_sample
from training.unscene3d.targets import masks_over_segments
from training.unscene3d.train import batch_loss, start_from, train, training_identity
from unscene_ros.inference import InferenceConfig, infer
from unscene_ros.models.checkpoint import load_checkpoint, save_checkpoint
from unscene_ros.models.dgcnn import Dgcnn, DgcnnConfig
from unscene_ros.models.instance_network import InstanceNetwork
from unscene_ros.models.sparse_unet import SparseUNet, SparseUNetConfig
from unscene_ros.oversegmentation import oversegment
from unscene_ros.scene import InputError
from unscene_ros.segmentation import NetworkSegmenter

CALM = replace(TINY, samples=SamplesConfig(augmentation=AugmentationConfig(enabled=False)))


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    narrow_networks(monkeypatch)


def boxes(name="boxes") -> TrainingScene:
    """Targets are the red and the blue box."""
    mesh, box_of_vertex = boxes_mesh()
    segments = oversegment(mesh, TINY.oversegmentation)
    masks = box_of_vertex == np.array([[1], [2]])
    return TrainingScene(name, mesh, segments, masks_over_segments(masks, segments))


def run(config, folder: Path, load=boxes, names=("a", "b"), initial=None) -> Path:
    identity = training_identity(config, config.first_round, dict.fromkeys(names, "0"), initial)
    return train(names, load, config, config.first_round, folder, identity, initial)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).network.state_dict()


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def network(config=TINY) -> InstanceNetwork:
    torch.manual_seed(5)
    return InstanceNetwork(config.network)


# --- learning ---


def test_a_tiny_network_learns_a_tiny_scene_by_heart_and_finds_its_objects(tmp_path):
    path = run(with_steps(60, CALM, batch_size=1, learning_rate=6e-3), tmp_path)
    totals = np.genfromtxt(tmp_path / "log.csv", delimiter=",", names=True)["total"]
    assert totals[-10:].mean() < totals[:3].mean() / 5
    mesh, box_of_vertex = boxes_mesh()
    segmenter = NetworkSegmenter(path)
    segments = oversegment(mesh, segmenter.oversegmentation)
    config = InferenceConfig(device="cpu", min_score=0.2)
    found = infer(load_checkpoint(path).network, segmenter.voxels, mesh, segments, config)
    for number in (1, 2):
        box = box_of_vertex == number
        masks = found.masks[:, segments.of_vertex]
        overlap = (masks & box).sum(axis=1) / (masks | box).sum(axis=1)
        assert overlap.max() > 0.75


@pytest.mark.parametrize("kind", ["baseline", "drop", "projection"])
def test_every_loss_reaches_all_weights(kind):
    config = replace(TINY, loss=replace(TINY.loss, kind=kind, start_weight=1.0, quality_weight=1.0))
    made = [make_sample(boxes(), config.voxels, config.samples, (0, i)) for i in range(2)]
    model = network().train()
    losses = batch_loss(model, join_samples(made, torch.device("cpu")), config.loss)
    losses["total"].backward()
    parts = sum(value for name, value in losses.items() if name != "total")
    assert losses["total"].item() == pytest.approx(parts.item(), rel=1e-5)
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == []


def test_a_sample_without_targets_is_replaced_by_that_of_another_scan():
    empty = replace(boxes(), targets=np.zeros((0, boxes().segments.count), bool))
    scenes = {"empty": empty, "full": boxes()}
    sample = train_module._sampler(["empty", "full"], scenes.__getitem__, TINY)
    made = [sample(0, visit) for visit in range(5)]
    assert all(len(one.targets) for one in made)
    assert len({one.voxels.coordinates.tobytes() for one in made}) == 5  # not five times the same
    again = sample(0, 3)
    np.testing.assert_array_equal(again.voxels.coordinates, made[3].voxels.coordinates)
    nothing = train_module._sampler(["empty"], scenes.__getitem__, TINY)
    assert len(nothing(0, 0).targets) == 0


def test_no_scan_is_read_by_two_threads_at_once_or_twice():
    reading, count = threading.Lock(), []

    def load(name):
        assert reading.acquire(blocking=False)
        threading.Event().wait(0.05)
        count.append(name)
        reading.release()
        return boxes()

    sample = train_module._sampler(["a"], load, TINY)
    threads = [threading.Thread(target=sample, args=(0, visit)) for visit in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == ["a"]


# --- going on ---


def test_a_training_that_was_interrupted_ends_with_the_same_checkpoint(tmp_path, monkeypatch):
    config = with_steps(5, checkpoint_every=2)
    uninterrupted = weights(run(config, tmp_path / "whole"))
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return batch_loss(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_module, "batch_loss", interrupted)
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert same(weights(run(config, tmp_path / "run")), uninterrupted)


def test_a_finished_training_returns_its_checkpoint_untouched(tmp_path, monkeypatch):
    path = run(TINY, tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr("unscene_ros.models.checkpoint.provenance", lambda: {"git": "another"})
    monkeypatch.setattr(train_module, "batch_loss", None)
    assert run(TINY, tmp_path).read_bytes() == before
    path.write_bytes(before[:1000])  # damaged, it is made from the state again
    assert same(weights(run(TINY, tmp_path)), weights(path))


def test_the_folder_of_another_training_is_refused_naming_what_differs(tmp_path):
    run(TINY, tmp_path)
    changes = {
        r"learner\.learning_rate is 0\.003 there, 0\.1 now": with_steps(2, learning_rate=0.1),
        r"settings\.loss\.kind is 'drop' there, 'baseline' now": replace(
            TINY, loss=replace(TINY.loss, kind="baseline")
        ),
        r"seed is 0 there, 1 now": replace(TINY, seed=1),
    }
    for words, config in changes.items():
        with pytest.raises(InputError, match=f"holds another run: .*{words}"):
            run(config, tmp_path)
    with pytest.raises(InputError, match=r"inputs\.targets is .*sample_count is 2 there, 1 now"):
        run(TINY, tmp_path, names=("a",))
    run(with_steps(2, workers=2, checkpoint_every=1), tmp_path)  # where it runs decides nothing


def test_the_seed_of_the_recipe_changes_weights_from_the_first_step_on(tmp_path):
    runs = [run(replace(TINY, seed=seed), tmp_path / str(seed)) for seed in (0, 1)]
    still = with_steps(1, learning_rate=0.0)
    assert not same(*(weights(path) for path in runs))
    starts = [
        weights(run(replace(still, seed=seed), tmp_path / f"still_{seed}")) for seed in (0, 1)
    ]
    name = "decoder.class_embed_head.weight"
    assert not starts[0][name].equal(starts[1][name])


def test_nothing_to_learn_from_is_an_error(tmp_path):
    with pytest.raises(InputError, match="expected scans with masks to learn from, got none"):
        run(TINY, tmp_path, names=())


def test_a_scan_that_cannot_be_read_is_named(tmp_path):
    def load(name):
        raise InputError(f"scan {name}: no mesh.ply")

    with pytest.raises(InputError, match=r"sample \d .*scan [ab]: no mesh\.ply"):
        run(TINY, tmp_path, load=load)


# --- starting from weights ---


def test_a_whole_network_is_taken_over(tmp_path):
    teacher = network()
    save_checkpoint(tmp_path / "teacher.safetensors", teacher)
    student = InstanceNetwork(TINY.network)
    start_from(tmp_path / "teacher.safetensors", student)
    assert same(student.state_dict(), teacher.state_dict())


def test_a_pretrained_backbone_is_taken_over_without_its_last_layer(tmp_path):
    config = replace(TINY.network.backbone, output_channels=7)
    torch.manual_seed(6)
    pretrained = SparseUNet(config)
    save_checkpoint(tmp_path / "pretrained.safetensors", pretrained)
    student = network()
    decoder = {k: v.clone() for k, v in student.decoder.state_dict().items()}
    start_from(tmp_path / "pretrained.safetensors", student)
    expected = {k: v for k, v in pretrained.state_dict().items() if not k.startswith("final.")}
    assert same(student.backbone.state_dict(), expected)
    assert same(student.decoder.state_dict(), decoder)


@pytest.mark.parametrize(
    "other",
    [
        lambda: InstanceNetwork(
            replace(TINY.network, decoder=replace(TINY.network.decoder, width=32))
        ),
        lambda: SparseUNet(replace(TINY.network.backbone, input_channels=3)),
        lambda: SparseUNet(SparseUNetConfig("MinkUNet18C", input_channels=6)),
        lambda: Dgcnn(DgcnnConfig()),
    ],
)
def test_weights_of_another_architecture_are_refused(other, tmp_path):
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, other())
    with pytest.raises(InputError, match=r"other\.safetensors: expected weights for .*got those"):
        start_from(path, network())


def test_a_training_starts_from_weights_and_is_another_one_than_without(tmp_path):
    initial = tmp_path / "initial.safetensors"
    save_checkpoint(initial, network())
    still = with_steps(1, learning_rate=0.0)
    started = weights(run(still, tmp_path / "run", initial=initial))
    expected = network().state_dict()
    assert all(started[name].equal(expected[name]) for name in started if name.endswith("weight"))
    with pytest.raises(InputError, match=r"holds another run: .*inputs\.initial"):
        run(still, tmp_path / "run")


# --- the checkpoint ---


def test_what_training_and_the_robot_share_is_what_the_segmenter_reads(tmp_path):
    config = replace(TINY, oversegmentation=replace(TINY.oversegmentation, k=0.05))
    path = run(config, tmp_path)
    segmenter = NetworkSegmenter(path)
    assert segmenter.voxels == config.voxels
    assert segmenter.oversegmentation == config.oversegmentation
    mesh, _ = boxes_mesh()
    segments = oversegment(mesh, segmenter.oversegmentation)
    assert segmenter.segment(mesh, segments).masks.shape[1] == segments.count


def test_the_checkpoint_says_what_made_it(tmp_path):
    checkpoint = load_checkpoint(run(TINY, tmp_path))
    run_settings = json.loads((tmp_path / "run.json").read_text())
    origin = checkpoint.provenance
    assert origin["training"] == run_settings["identity"]
    assert (origin["scans"], origin["steps"]) == (2, 2)
    assert LearnerConfig(**run_settings["learner"]).steps == 2
    assert checkpoint.settings["recipe_hash"] == recipe_hash(TINY)
