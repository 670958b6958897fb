"""MinkowskiEngine's weights and results: real outputs and gradients, names, layouts, refusals."""

import argparse
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from published_weights import (
    UNET14A,
    UNET34C,
    class_and_offset_shapes,
    decoder_shapes,
    filled,
    fpn_shapes,
    unet_shapes,
)

from unscene_ros.models.heads import ProjectionHead
from unscene_ros.models.instance_network import InstanceNetwork, InstanceNetworkConfig
from unscene_ros.models.mask_transformer import MaskTransformerConfig
from unscene_ros.models.minkowski import import_weights, read_tensors
from unscene_ros.models.semantic_networks import ClassAndOffsetConfig, ClassAndOffsetNetwork
from unscene_ros.models.sparse_fpn import SparseFPN, SparseFPNConfig
from unscene_ros.models.sparse_unet import ARCHITECTURES, SparseUNet, SparseUNetConfig
from unscene_ros.scene import InputError


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def unet14a(outputs=20) -> SparseUNet:
    return SparseUNet(SparseUNetConfig("Res16UNet14A", 3, outputs, stem_kernel_size=5))


def saved(tmp_path, content) -> Path:
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def as_before_0_5(tensors):
    """1³ kernels with a leading axis, biases without one."""
    return {
        name: t[None]
        if name.endswith("kernel") and t.ndim == 2
        else t.reshape(-1)
        if name == "final.bias"
        else t
        for name, t in tensors.items()
    }


def contrastive_scene_contexts(tensors):
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    return {"curr_iter": 9, "state_dict": tensors, "optimizer": optimizer, "scheduler": {}}


def point_contrast(tensors):
    return {"state_dict": prefixed("module.", as_before_0_5(tensors)), "arch": "Res16UNet34C"}


def mask3d(tensors):
    around = {
        "criterion.empty_weight": torch.ones(3),
        "model.mask_features_head.kernel": torch.ones(96, 128),
        "model.mask_features_head.bias": torch.ones(1, 128),
    }
    return {"epoch": 5, "state_dict": around | prefixed("model.backbone.", tensors)}


def unscene3d(tensors):
    around = {"class_embed_head.weight": torch.ones(3, 128)}
    return {"state_dict": around | prefixed("backbone.", tensors)}


UNET_FILES = [contrastive_scene_contexts, point_contrast, mask3d, unscene3d]


@pytest.mark.parametrize("layout", UNET_FILES)
def test_weights_of_published_u_nets_load_whole(tmp_path, layout):
    theirs = filled(unet_shapes(*UNET14A))
    network = unet14a()
    report = import_weights(saved(tmp_path, layout(theirs)), network)
    assert set(report.matched) == set(theirs)
    assert not report.not_filled and not report.not_used
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_weights_of_the_feature_pyramid_load_whole(tmp_path):
    theirs = filled(fpn_shapes())
    network = SparseFPN(SparseFPNConfig())
    report = import_weights(saved(tmp_path, theirs), network)
    assert set(report.matched) == set(theirs)
    assert (report.prefix, report.elsewhere) == ("", 0)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


PUBLISHED = [name for name in ARCHITECTURES if name != "Res16UNet14S"]  # which is ours


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_all_published_architectures_have_the_published_names_and_shapes(architecture):
    with torch.device("meta"):
        network = SparseUNet(SparseUNetConfig(architecture, 6, 13, stem_kernel_size=3))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    stages = {
        "Res16UNet14A": UNET14A,
        "Res16UNet18A": (UNET14A[0], (2,) * 8),
        "Res16UNet34C": UNET34C,
        "MinkUNet18C": ((32, 64, 128, 256, 192, 192, 128, 128), (2,) * 8),
    }
    assert shapes == unet_shapes(*stages[architecture], inputs=6, outputs=13, stem=3)


def instance_network() -> InstanceNetwork:
    decoder = MaskTransformerConfig(classes=2, width=16, heads=2, feedforward_width=20)
    return InstanceNetwork(InstanceNetworkConfig(SparseUNetConfig("Res16UNet14A"), decoder))


def whole_mask_transformer():
    decoder = filled(decoder_shapes((256, 128, 128, 96, 96), 16, 20, classes=2))
    return decoder | prefixed("backbone.", filled(unet_shapes(*UNET14A, stem=3)))


def lightning(tensors):
    return {"state_dict": {"criterion.empty_weight": torch.ones(3)} | prefixed("model.", tensors)}


def test_a_mask_transformer_loads_whole_with_its_backbone(tmp_path):
    theirs, network = whole_mask_transformer(), instance_network()
    report = import_weights(saved(tmp_path, lightning(theirs)), network)
    unused = {"backbone.final.kernel", "backbone.final.bias"}
    assert set(report.matched) == set(theirs) - unused
    assert set(report.not_used) == {f"state_dict.model.{name}" for name in unused}
    assert not report.not_filled
    assert (report.prefix, report.elsewhere) == ("state_dict.model.", 1)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, theirs[name.removeprefix("decoder.")]), name


@pytest.mark.parametrize(
    "missing", ["pos_enc.gauss_B", "mask_embed_head.2.bias", "backbone.bn3.bn.running_mean"]
)
def test_a_mask_transformer_with_a_missing_tensor_is_refused(tmp_path, missing):
    theirs, network = whole_mask_transformer(), instance_network()
    del theirs[missing]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError, match=f"    {missing}: not in the file$"):
        import_weights(saved(tmp_path, lightning(theirs)), network)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_default_instance_network_has_the_names_and_shapes_of_unscene3d():
    with torch.device("meta"):
        network = InstanceNetwork()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    backbone = unet_shapes(*UNET34C, stem=3)
    del backbone["final.kernel"], backbone["final.bias"]
    decoder = decoder_shapes((256, 256, 128, 96, 96), 128, 1024, classes=2)
    assert shapes == prefixed("backbone.", backbone) | prefixed("decoder.", decoder)


def test_classes_and_offsets_load_with_their_backbone(tmp_path):
    theirs = filled(unet_shapes(*UNET14A, stem=3) | class_and_offset_shapes(96, classes=20))
    path = saved(tmp_path, contrastive_scene_contexts(theirs))
    backbone = SparseUNetConfig("Res16UNet14A")
    network = ClassAndOffsetNetwork(ClassAndOffsetConfig(backbone, classes=20))
    report = import_weights(path, network)
    assert set(report.matched) == set(theirs)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, theirs[name.partition(".")[2]]), name

    for_others = ClassAndOffsetNetwork(ClassAndOffsetConfig(backbone, classes=18))
    with pytest.raises(
        InputError, match=r"final.kernel: \(96, 20\) in the file, \(96, 18\) wanted"
    ):
        import_weights(path, for_others)
    report = import_weights(path, for_others, allowed_rest=["final"])
    assert set(report.not_filled) == {"final.kernel", "final.bias"}
    assert torch.equal(for_others.heads.offsets.kernel, theirs["offsets.kernel"])


@pytest.mark.parametrize("shape", [(128, 70), (1, 128, 70), (64, 64)])
def test_the_projection_of_pointdc_loads_transposed(tmp_path, shape):
    kernel = torch.randn(shape)
    head = ProjectionHead(*shape[-2:])
    report = import_weights(saved(tmp_path, {"distill_layer.conv_align.kernel": kernel}), head)
    assert report.matched == ("distill_layer.conv_align.kernel",)
    assert torch.equal(head.layers[0].weight, kernel.reshape(shape[-2:]).T)


def test_the_projection_to_another_teacher_is_refused(tmp_path):
    kernel = torch.randn(128, 70)
    path = saved(tmp_path, {"distill_layer.conv_align.kernel": kernel})
    with pytest.raises(InputError, match=r"\(128, 70\) in the file, \(128, 384\) wanted"):
        import_weights(path, ProjectionHead(128, 384))
    with pytest.raises(InputError, match=r"layers.2.weight: not in the file"):
        import_weights(path, ProjectionHead(128, 70, hidden_channels=70))


def test_the_report_tells_what_was_loaded_and_what_was_not(tmp_path):
    network = unet14a(outputs=13)
    untouched = network.final.kernel.detach().clone()
    path = saved(tmp_path, mask3d(filled(unet_shapes(*UNET14A, outputs=20))))
    report = import_weights(path, network, allowed_rest=["final"])
    assert torch.equal(network.final.kernel, untouched)
    assert set(report.not_filled) == {"final.kernel", "final.bias"}
    text = str(report)
    assert f"{len(report.matched)} tensors loaded from 'state_dict.model.backbone.*'" in text
    assert "final.kernel: (96, 20) in the file, (96, 13) wanted" in text
    assert "3 tensors of other parts of the file" in text


def test_a_head_that_the_network_does_not_have_must_be_allowed(tmp_path):
    tensors = filled(unet_shapes(*UNET14A)) | {"offsets.kernel": torch.ones(96, 3)}
    path = saved(tmp_path, contrastive_scene_contexts(tensors))
    with pytest.raises(InputError, match=r"state_dict.offsets.kernel: not in the network"):
        import_weights(path, unet14a())
    report = import_weights(path, unet14a(), allowed_rest=["offsets"])
    assert list(report.not_used) == ["state_dict.offsets.kernel"]


@pytest.mark.parametrize("layout", [*UNET_FILES, dict])
def test_a_missing_tensor_is_refused_and_the_network_left_alone(tmp_path, layout):
    theirs = filled(unet_shapes(*UNET14A))
    del theirs["block3.0.norm2.bn.running_var"]
    network = unet14a()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError, match=r"block3.0.norm2.bn.running_var: not in the file"):
        import_weights(saved(tmp_path, layout(theirs)), network)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_allowing_final_does_not_allow_names_that_begin_alike(tmp_path):
    tensors = filled(unet_shapes(*UNET14A)) | {"final_offsets.kernel": torch.ones(96, 3)}
    with pytest.raises(InputError, match="final_offsets"):
        import_weights(saved(tmp_path, tensors), unet14a(), allowed_rest=["final"])


def test_a_network_of_another_depth_is_refused(tmp_path):
    path = saved(tmp_path, filled(unet_shapes(UNET14A[0], (2,) * 8)))
    with pytest.raises(InputError, match=r"block1.1.conv1.kernel: not in the network"):
        import_weights(path, unet14a())


def test_a_file_with_two_networks_asks_which_one(tmp_path):
    student, teacher = (filled(unet_shapes(*UNET14A)) for _ in range(2))
    teacher["bn0.bn.weight"] = torch.full((32,), 5.0)
    path = saved(tmp_path, {"student": student, "teacher": teacher})
    with pytest.raises(InputError, match=r"found it under 'student.', 'teacher.'"):
        import_weights(path, unet14a())
    network = unet14a()
    import_weights(path, network, prefix="teacher.")
    assert (network.bn0.bn.weight == 5).all()


def test_a_file_without_the_network_is_refused_and_told_apart(tmp_path):
    with pytest.raises(InputError, match=r"no tensor of the network .* it has fc.weight"):
        import_weights(saved(tmp_path, {"fc.weight": torch.ones(2)}), unet14a())
    with pytest.raises(InputError, match="it has none"):
        import_weights(saved(tmp_path, {"epoch": 3}), unet14a())


def test_safetensors_are_read_too(tmp_path):
    theirs = filled(unet_shapes(*UNET14A))
    contiguous = {name: tensor.contiguous() for name, tensor in theirs.items()}
    safetensors.torch.save_file(contiguous, tmp_path / "weights.safetensors")
    assert len(import_weights(tmp_path / "weights.safetensors", unet14a()).matched) == len(theirs)


def test_a_file_that_needs_code_is_refused_with_a_way_to_convert_it(tmp_path):
    path = saved(tmp_path, {"state_dict": {}, "config": argparse.Namespace(lr=0.1)})
    with pytest.raises(InputError) as refusal:
        read_tensors(path)
    assert "argparse.Namespace" in str(refusal.value)
    assert "weights_only=False" in str(refusal.value)


class Mischief:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_file_that_brings_code_is_not_run(tmp_path):
    path = saved(tmp_path, {"state_dict": Mischief(str(tmp_path / "made"))})
    with pytest.raises(InputError, match="holds more than tensors"):
        read_tensors(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"solid ball\n" * 40, b"PK\x03\x04" + b"0" * 99]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_other_kinds_are_refused(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected a PyTorch file of tensors"):
        read_tensors(path)


def test_a_file_that_is_cut_off_or_missing_is_refused(tmp_path):
    path = saved(tmp_path, {"a": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        read_tensors(path)
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "nowhere.pth")


def test_weights_of_a_training_that_diverged_are_refused(tmp_path):
    network = unet14a()
    state = network.state_dict()
    state["bn0.bn.weight"] = torch.full((32,), torch.nan)
    with pytest.raises(InputError, match=r"bn0\.bn\.weight: not all finite numbers"):
        import_weights(saved(tmp_path, state), network)
