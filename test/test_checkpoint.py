"""Checkpoints: everything comes back, and what does not fit is told by name."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from unscene_ros.models.checkpoint import (
    METADATA_KEY,
    NETWORKS,
    load_checkpoint,
    save_checkpoint,
)
from unscene_ros.models.dgcnn import DgcnnConfig
from unscene_ros.models.instance_network import InstanceNetworkConfig
from unscene_ros.models.mask_transformer import MaskTransformerConfig
from unscene_ros.models.semantic_networks import ClassAndOffsetConfig, DistilledConfig
from unscene_ros.models.sparse_fpn import SparseFPN, SparseFPNConfig
from unscene_ros.models.sparse_tensor import sparse_tensor
from unscene_ros.models.sparse_unet import SparseUNet, SparseUNetConfig
from unscene_ros.scene import InputError

SMALL = SparseUNetConfig("Res16UNet14A", input_channels=3, output_channels=4, stem_kernel_size=3)
BACKBONE = SparseUNetConfig("Res16UNet14A", input_channels=5)
SETTINGS = {"voxel_size_m": 0.02, "class_names": ["chair", "table"], "colors": {"mean": [0.5]}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[SparseUNet, Path]:
    network = SparseUNet(SMALL)
    path = tmp_path_factory.mktemp("checkpoint") / "chairs.safetensors"
    save_checkpoint(path, network, SETTINGS, origin={"round": 3})
    return network, path


def rewritten(path: Path, target: Path, change_tensors=None, change_header=None) -> Path:
    """A copy of a checkpoint after the changes."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if change_tensors:
        change_tensors(tensors)
    if change_header:
        change_header(header)
    safetensors.torch.save_file(tensors, target, {METADATA_KEY: json.dumps(header)})
    return target


def test_weights_and_settings_come_back(saved):
    network, path = saved
    loaded = load_checkpoint(path, SparseUNet)
    assert loaded.network.config == SMALL
    assert not loaded.network.training
    assert loaded.settings == SETTINGS
    assert loaded.provenance["round"] == 3
    assert "torch" in loaded.provenance["versions"]
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor), name


def test_a_loaded_network_computes_what_the_saved_one_did(saved):
    network, path = saved
    coordinates = torch.randint(-9, 9, (200, 4)).abs_().clamp_(max=8)
    coordinates[:, 0] = 0
    tensor = sparse_tensor(coordinates, torch.randn(200, 3), backend="torch")
    with torch.no_grad():
        expected = network.eval()(tensor).features
        assert torch.equal(load_checkpoint(path).network(tensor).features, expected)


CONFIGS = {
    "ClassAndOffsetNetwork": ClassAndOffsetConfig(BACKBONE, classes=7),
    "Dgcnn": DgcnnConfig(input_channels=5),
    "DistilledNetwork": DistilledConfig(SparseFPNConfig(input_channels=5), teacher_channels=7),
    "InstanceNetwork": InstanceNetworkConfig(
        BACKBONE, MaskTransformerConfig(classes=7, sampled_voxels=(1, 2, 3, 4))
    ),
    "SparseFPN": SparseFPNConfig(input_channels=5),
    "SparseUNet": BACKBONE,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_comes_back(tmp_path, name):
    network_class, _ = NETWORKS[name]
    network = network_class(CONFIGS[name])
    save_checkpoint(tmp_path / "saved", network)
    loaded = load_checkpoint(tmp_path / "saved", network_class)
    assert loaded.network.config == CONFIGS[name]
    assert loaded.settings == {}
    for key, tensor in network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[key], tensor), key


def test_the_file_opens_without_running_code_and_says_what_it_is(saved):
    with safe_open(saved[1], "np") as file:
        header = json.loads(file.metadata()[METADATA_KEY])
    assert header["network"] == "SparseUNet"
    assert header["network_settings"]["architecture"] == "Res16UNet14A"


def test_another_network_than_expected_is_refused(saved):
    with pytest.raises(InputError, match="expected a network SparseFPN, got SparseUNet"):
        load_checkpoint(saved[1], SparseFPN)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("final.bias"), "missing: final.bias"),
        (lambda tensors: tensors.update(head=torch.ones(1)), "unknown: head"),
        (
            lambda tensors: tensors.update({"final.bias": torch.ones(1, 9)}),
            "of another shape: final.bias has (1, 9) instead of (1, 4)",
        ),
        (lambda tensors: [tensors.pop(name) for name in list(tensors)[:8]], "and 2 more"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, tmp_path, change, told):
    path = rewritten(saved[1], tmp_path / "changed", change_tensors=change)
    with pytest.raises(InputError) as refusal:
        load_checkpoint(path)
    assert told in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "expected a checkpoint of format 1, got 2"),
        (
            {"network": "Oracle"},
            "SparseUNet, got Oracle",
        ),
        ({"network_settings": {"planes": 3}}, "unknown setting 'planes'"),
        ({"network_settings": {"architecture": "VGG"}}, "expected one of Res16UNet14A"),
    ],
)
def test_settings_of_another_program_are_refused(saved, tmp_path, change, told):
    path = rewritten(
        saved[1], tmp_path / "changed", change_header=lambda header: header.update(change)
    )
    with pytest.raises(InputError) as refusal:
        load_checkpoint(path)
    assert told in str(refusal.value) and str(path) in str(refusal.value)


def test_damaged_settings_are_refused(saved, tmp_path):
    path = rewritten(
        saved[1], tmp_path / "changed", change_header=lambda header: header.pop("settings")
    )
    with pytest.raises(InputError, match="the settings inside are damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("length", [0, 5, 3000, -1])
def test_a_file_that_is_cut_off_is_refused(saved, tmp_path, length):
    path = tmp_path / "cut"
    path.write_bytes(saved[1].read_bytes()[:length])
    with pytest.raises(InputError, match="cut off or of another kind"):
        load_checkpoint(path)


def test_files_of_other_kinds_are_refused(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="of another kind"):
        load_checkpoint(tmp_path / "weights.pth")
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="tensors without its settings"):
        load_checkpoint(tmp_path / "bare.safetensors")
    for missing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            load_checkpoint(missing)


def test_a_failed_write_leaves_the_former_checkpoint(saved, tmp_path, monkeypatch):
    path = tmp_path / "kept"
    path.write_bytes(saved[1].read_bytes())

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", disk_full)
    with pytest.raises(InputError, match="No space left on device"):
        save_checkpoint(path, saved[0])
    assert load_checkpoint(path).settings == SETTINGS
    assert list(tmp_path.iterdir()) == [path]


def test_networks_without_a_name_and_settings_beyond_json_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Linear is not one of"):
        save_checkpoint(tmp_path / "x", torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path / "x", SparseUNet(SMALL), {"voxel_size_m": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_a_training_that_diverged_is_refused(tmp_path):
    network = SparseUNet(SparseUNetConfig("Res16UNet14A"))
    network.bn0.bn.bias.data[3] = torch.inf
    save_checkpoint(tmp_path / "a", network)
    with pytest.raises(InputError, match=r"bn0\.bn\.bias: its training diverged"):
        load_checkpoint(tmp_path / "a")


def test_a_compact_checkpoint_is_half_the_size_and_nearly_the_same(saved, tmp_path):
    network, path = saved
    small = tmp_path / "small.safetensors"
    save_checkpoint(small, network, SETTINGS, compact=True)
    assert small.stat().st_size < 0.52 * path.stat().st_size
    loaded = load_checkpoint(small, SparseUNet).network.state_dict()
    for name, tensor in network.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        if tensor.ndim > 1:
            torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-6)
        else:
            assert torch.equal(loaded[name], tensor)
