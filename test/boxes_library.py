"""A library of tiny places, boxes on a plate, with masks of some of them, to learn from briefly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from box_world import Box, surface_of

from training.artifacts import Identity, pack_masks, save_artifact
from training.learner import LearnerConfig
from training.scans.library import Library, Scan
from training.unscene3d.augmentation import AugmentationConfig
from training.unscene3d.export import ExportConfig
from training.unscene3d.losses import LossConfig
from training.unscene3d.pseudo_masks import KIND, STEP, PseudoMasksConfig, pseudo_masks_identity
from training.unscene3d.recipe import UnScene3DConfig
from training.unscene3d.samples import SamplesConfig
from unscene_ros.inference import InferenceConfig
from unscene_ros.models import sparse_unet
from unscene_ros.models.instance_network import InstanceNetworkConfig
from unscene_ros.models.mask_transformer import MaskTransformerConfig
from unscene_ros.models.sparse_unet import SparseUNetConfig
from unscene_ros.oversegmentation import OversegmentationConfig
from unscene_ros.scene import Mesh
from unscene_ros.voxels import VoxelsConfig

PLATE = Box((0, 0, 0), (1.6, 1.2, 0.08), (120, 110, 100))
RED, BLUE = (200, 40, 40), (40, 60, 200)
_LEARNER = LearnerConfig(
    steps=2, batch_size=2, learning_rate=3e-3, device="cpu", threads=1, workers=1, ahead=1
)
TINY = UnScene3DConfig(
    pseudo_masks=PseudoMasksConfig(method="training_free"),
    oversegmentation=OversegmentationConfig(k=0.03, min_vertices=10),
    voxels=VoxelsConfig(0.08, channels=("color", "normal")),
    network=InstanceNetworkConfig(
        SparseUNetConfig("Res16UNet14S", input_channels=6),
        MaskTransformerConfig(
            classes=1, queries=6, width=16, heads=2, feedforward_width=16, rounds=1,
            start="segments",
        ),
    ),
    samples=SamplesConfig(augmentation=AugmentationConfig(elastic_probability=0.0)),
    loss=LossConfig(find_min_voxels=5),
    rounds=2,
    first_round=_LEARNER,
    later_rounds=_LEARNER,
    export=ExportConfig(
        inference=InferenceConfig(device="cpu", min_score=0, min_area_m2=0), min_stability=0
    ),
)  # fmt: skip


def narrow_networks(patch: pytest.MonkeyPatch) -> None:
    """Makes the U-Net of `TINY` a few channels wide, and threads not worth it."""
    channels = (16,) * 8
    patch.setattr(sparse_unet, "ENCODER_CHANNELS", channels[:4])
    stages = sparse_unet.Stages(channels, (1,) * 8)
    patch.setitem(sparse_unet.ARCHITECTURES, TINY.network.backbone.architecture, stages)
    torch.set_num_threads(1)


def boxes_mesh(shift: float = 0.0) -> tuple[Mesh, np.ndarray]:
    """(the plate with a red and a blue box, (V,) which of the three each vertex is of)."""
    red = Box((0.16 + shift, 0.24, 0.08), (0.56 + shift, 0.64, 0.4), RED)
    blue = Box((1.0, 0.4 + shift, 0.08), (1.4, 0.8 + shift, 0.32), BLUE)
    return surface_of([PLATE, red, blue])


def write_boxes_library(root: Path, *names: str, config: UnScene3DConfig = TINY) -> Library:
    """Scans without frames; their pseudo masks know the red box and miss the blue one."""
    for number, name in enumerate(names):
        scan = Scan(root / "scans" / name)
        scan.folder.mkdir(parents=True)
        mesh, box_of_vertex = boxes_mesh(0.04 * number)
        scan.write_mesh(mesh, Identity("by hand", {}))
        write_pseudo_masks(scan, (box_of_vertex == 1)[None], config=config)
    return Library(root)


def write_pseudo_masks(
    scan: Scan, masks: np.ndarray, scores: np.ndarray | None = None, config: UnScene3DConfig = TINY
) -> Path:
    """Masks (K, V) as the step before training would write them."""
    identity = pseudo_masks_identity(scan, config)
    path = scan.result_path(KIND, identity, STEP)
    save_artifact(
        path,
        identity,
        masks=pack_masks(masks),
        scores=np.ones(len(masks), np.float32) if scores is None else scores,
        sources=np.full(len(masks), "by hand"),
    )
    return path


def with_steps(steps: int, config: UnScene3DConfig = TINY, **settings: object) -> UnScene3DConfig:
    """With other settings of the first round."""
    return replace(config, first_round=replace(config.first_round, steps=steps, **settings))
