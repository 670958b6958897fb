"""Segmenters by name: the training-free one, the one in the package, and networks from files."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from box_world import Box, surface_of, walled_room
from small_scan import small_frames

from unscene_ros import DEFAULT_SEGMENTER, segmentation
from unscene_ros.consensus import ConsensusConfig, agree
from unscene_ros.inference import InferenceConfig, infer
from unscene_ros.models.checkpoint import save_checkpoint
from unscene_ros.models.instance_network import InstanceNetwork, InstanceNetworkConfig
from unscene_ros.models.mask_transformer import MaskTransformerConfig
from unscene_ros.models.sparse_unet import SparseUNet, SparseUNetConfig
from unscene_ros.oversegmentation import OversegmentationConfig, oversegment
from unscene_ros.pipeline import PipelineConfig, segment_mesh
from unscene_ros.replay import segment_file
from unscene_ros.scene import InputError, Mesh
from unscene_ros.segmentation import (
    ConsensusSegmenter,
    NetworkSegmenter,
    SegmentationConfig,
    SharedConfig,
    load_segmenter,
)
from unscene_ros.settings import from_dict, to_dict
from unscene_ros.storage import load_prediction, write_mesh
from unscene_ros.training_free import TrainingFreeConfig, TrainingFreeSegmenter
from unscene_ros.voxels import VoxelsConfig

SHARED = SharedConfig(VoxelsConfig(0.08), OversegmentationConfig(k=0.02, min_vertices=7))
EVERYTHING = InferenceConfig(min_score=0, min_area_m2=0, device="cpu")
ALL = SegmentationConfig(network=EVERYTHING, consensus=ConsensusConfig(min_score=0))


@pytest.fixture(scope="module")
def network() -> InstanceNetwork:
    """Nobody has trained it."""
    torch.manual_seed(0)
    decoder = MaskTransformerConfig(
        classes=1, queries=6, width=16, heads=2, feedforward_width=20, rounds=1
    )
    return InstanceNetwork(InstanceNetworkConfig(SparseUNetConfig("Res16UNet14A"), decoder))


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "tiny.safetensors"
    save_checkpoint(path, network, to_dict(SHARED) | {"recipe": "tiny"})
    return path


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    box = Box((0.4, 0.4, 0.0), (0.8, 0.8, 0.4), (200, 40, 40))
    return surface_of(walled_room(box, size=(1.2, 1.2, 0.8)))[0]


def test_the_segmenter_that_needs_no_training_has_its_name():
    config = SegmentationConfig(TrainingFreeConfig(min_area_m2=0.1))
    segmenter = load_segmenter("training-free", config)
    assert isinstance(segmenter, TrainingFreeSegmenter)
    assert segmenter.config is config.training_free
    assert str(segmenter) == "training-free"


def test_a_checkpoint_brings_the_settings_of_its_training(checkpoint):
    segmenter = load_segmenter(str(checkpoint), ALL)
    assert isinstance(segmenter, NetworkSegmenter)
    assert segmenter.oversegmentation == SHARED.oversegmentation
    assert segmenter.voxels == SHARED.voxels
    assert segmenter.config is EVERYTHING


def test_the_network_of_a_checkpoint_finds_what_the_saved_one_finds(checkpoint, network, mesh):
    segmenter = load_segmenter(checkpoint, ALL)
    segments, instances = segment_mesh(mesh, segmenter)
    direct = infer(network.eval(), SHARED.voxels, mesh, segments, EVERYTHING)
    assert len(instances.masks)
    np.testing.assert_array_equal(instances.masks, direct.masks)
    np.testing.assert_allclose(instances.scores, direct.scores, rtol=1e-5)


def test_pictures_change_nothing_for_a_network(checkpoint, mesh):
    segmenter = load_segmenter(checkpoint, ALL)
    _, without = segment_mesh(mesh, segmenter)
    _, beside = segment_mesh(mesh, segmenter, small_frames(2))
    np.testing.assert_array_equal(beside.masks, without.masks)
    np.testing.assert_array_equal(beside.scores, without.scores)


def test_a_network_in_several_scales_and_the_training_free_segmenter_agree(checkpoint, mesh):
    segmenter = load_segmenter(f"consensus:{checkpoint}", ALL)
    assert isinstance(segmenter, ConsensusSegmenter)
    segments, instances = segment_mesh(mesh, segmenter, small_frames(2))
    network = NetworkSegmenter(checkpoint, EVERYTHING)
    training_free = TrainingFreeSegmenter(TrainingFreeConfig(min_score=0))
    lists = [
        network.segment(mesh, segments),
        network.segment_scaled(mesh, segments, 0.7),
        training_free.segment(mesh, segments, small_frames(2)),
    ]
    sizes = np.bincount(segments.of_vertex, minlength=segments.count)
    network_share = (1 - ALL.consensus.training_free_share) / 2
    shares = network_share, network_share, ALL.consensus.training_free_share
    expected = agree(lists, shares, sizes, ALL.consensus.max_overlap)
    assert len(expected.masks) and all(len(found.masks) for found in lists)
    np.testing.assert_array_equal(instances.masks, expected.masks)
    np.testing.assert_allclose(instances.scores, expected.scores, rtol=1e-5)
    assert str(segmenter).endswith(", with the training-free segmenter")


def test_a_scaled_scene_is_looked_at_as_if_it_were_so_large(checkpoint, network, mesh):
    segmenter = NetworkSegmenter(checkpoint, dataclasses.replace(EVERYTHING, min_area_m2=0.02))
    segments = oversegment(mesh, SHARED.oversegmentation)
    smaller = dataclasses.replace(mesh, vertices=mesh.vertices * np.float32(0.5))
    config = dataclasses.replace(EVERYTHING, min_area_m2=0.02 / 4, part_gap_m=0.05 / 2)
    direct = infer(network.eval(), SHARED.voxels, smaller, segments, config)
    found = segmenter.segment_scaled(mesh, segments, 0.5)
    np.testing.assert_array_equal(found.masks, direct.masks)


def test_its_text_names_file_device_and_backend(checkpoint):
    text = str(NetworkSegmenter(checkpoint, EVERYTHING))
    assert str(checkpoint) in text and "cpu" in text
    assert any(backend in text for backend in ("native", "torch"))


def test_threads_are_those_of_the_settings_where_they_say(checkpoint):
    before = torch.get_num_threads()
    try:
        NetworkSegmenter(checkpoint, dataclasses.replace(EVERYTHING, threads=3))
        assert torch.get_num_threads() == 3
        NetworkSegmenter(checkpoint, EVERYTHING)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_refused(checkpoint):
    with pytest.raises(InputError, match="device: expected a GPU for 'cuda'"):
        NetworkSegmenter(checkpoint, InferenceConfig(device="cuda"))


def test_the_network_in_the_package_is_called_default(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(segmentation, "SHIPPED_CHECKPOINT", checkpoint)
    segmenter = load_segmenter("default", ALL)
    assert isinstance(segmenter, ConsensusSegmenter) and str(checkpoint) in str(segmenter)
    monkeypatch.setattr(segmentation, "SHIPPED_CHECKPOINT", tmp_path / "gone.safetensors")
    with pytest.raises(InputError, match=r"gone\.safetensors is not there: train .* or use"):
        load_segmenter("default")


def test_an_unknown_name_lists_those_that_are_known():
    for name in ("mask3d", "consensus:mask3d"):
        with pytest.raises(InputError, match=rf"training-free, default, .*FILE, got '{name}'"):
            load_segmenter(name)


def test_a_checkpoint_without_the_settings_of_its_training_is_refused(network, tmp_path):
    path = tmp_path / "bare.safetensors"
    save_checkpoint(path, network)
    with pytest.raises(InputError, match=r"voxels and oversegmentation .* got none: .*--share"):
        load_segmenter(path)
    save_checkpoint(path, network, {"voxels": to_dict(VoxelsConfig())})
    with pytest.raises(InputError, match=r"got voxels: "):
        load_segmenter(path)


def test_settings_of_another_version_are_refused_with_the_file(network, tmp_path):
    path = tmp_path / "old.safetensors"
    settings = to_dict(SHARED)
    settings["voxels"]["size"] = 0.02
    save_checkpoint(path, network, settings)
    with pytest.raises(InputError, match=r"old\.safetensors: unknown setting 'voxels\.size'"):
        load_segmenter(path)


def test_a_network_for_something_else_is_refused(tmp_path):
    path = tmp_path / "unet.safetensors"
    save_checkpoint(path, SparseUNet(SparseUNetConfig("Res16UNet14A")), to_dict(SHARED))
    with pytest.raises(InputError, match=r"unet\.safetensors: expected .* InstanceNetwork, got"):
        load_segmenter(path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no network")
    with pytest.raises(InputError, match=r"notes\.txt: expected a checkpoint"):
        load_segmenter(path)
    with pytest.raises(InputError):
        load_segmenter(tmp_path)  # a folder


def test_one_setting_of_a_segmenter_leaves_all_others():
    values = {"training_free": {"oversegmentation": {"k": 0.05}}, "network": {"device": "cpu"}}
    config = from_dict(SegmentationConfig, values)
    usual = TrainingFreeConfig().oversegmentation
    assert config.training_free.oversegmentation == dataclasses.replace(usual, k=0.05)
    assert config.network == InferenceConfig(device="cpu")


def test_a_mesh_file_is_segmented_by_a_network(checkpoint, mesh, tmp_path):
    write_mesh(tmp_path / "room.ply", mesh)
    config = PipelineConfig(segmentation=ALL)
    metrics = segment_file(tmp_path / "room.ply", tmp_path / "out", config, str(checkpoint))
    prediction = load_prediction(tmp_path / "out")
    assert metrics["instances"] == len(prediction.instances.masks) > 0
    assert metrics["segmenter"] == str(checkpoint)
    assert set(metrics["latency_ms"]) == {"reading", "oversegmentation", "segmentation"}


def test_the_default_is_one_that_can_be_loaded():
    load_segmenter(DEFAULT_SEGMENTER)


def test_without_a_network_pytorch_is_not_needed():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from unscene_ros.segmentation import load_segmenter\n"
        "load_segmenter('training-free')\n"
        "from unscene_ros.scene import InputError\n"
        "try:\n    load_segmenter(sys.argv[1])\n"
        "except InputError as error:\n    sys.exit('pip install torch' not in str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, __file__], timeout=100)
    assert done.returncode == 0
