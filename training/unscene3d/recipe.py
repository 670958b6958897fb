"""Every setting of the system in one place, and the recipes: named sets of them.

paper     what the paper and its released code do; their slips are not repeated
default   the same system with what is known to be better, for a GPU and scans at 2 cm
small     for two processor cores and rooms fused at 4 cm; it made the shipped checkpoint
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from training.artifacts import Identity
from training.learner import LearnerConfig, deciding_settings
from training.unscene3d.augmentation import AugmentationConfig
from training.unscene3d.export import ExportConfig
from training.unscene3d.features import (
    FeaturesConfig,
    GeometryFeaturesConfig,
    SceneImageFeaturesConfig,
)
from training.unscene3d.freemask import PAPER_FREEMASK
from training.unscene3d.losses import LossConfig
from training.unscene3d.masked_cuts import PAPER_CUTS
from training.unscene3d.pretrain import PretrainConfig
from training.unscene3d.pseudo_masks import PseudoMasksConfig
from training.unscene3d.samples import SamplesConfig
from training.unscene3d.targets import TargetsConfig
from unscene_ros.image_features import ImageFeaturesConfig
from unscene_ros.inference import InferenceConfig
from unscene_ros.models.instance_network import InstanceNetworkConfig
from unscene_ros.models.mask_transformer import MaskTransformerConfig
from unscene_ros.models.sparse_unet import SparseUNetConfig
from unscene_ros.oversegmentation import OversegmentationConfig
from unscene_ros.scene import InputError
from unscene_ros.settings import from_assignments, from_dict, merged, read_yaml, to_dict
from unscene_ros.training_free import TrainingFreeConfig
from unscene_ros.voxels import VoxelsConfig


@dataclass(frozen=True, slots=True)
class UnScene3DConfig:
    """One section a step, in the order of the steps; the defaults are the recipe `default`."""

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    # The network of the 3D features; a path in the library unless it is absolute.
    geometry_checkpoint: str = "pretrained.safetensors"
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    pseudo_masks: PseudoMasksConfig = field(default_factory=PseudoMasksConfig)
    # Of the network, in training and on the robot; those of the features may be others.
    oversegmentation: OversegmentationConfig = field(
        default_factory=lambda: OversegmentationConfig("scannet", k=0.01)
    )
    voxels: VoxelsConfig = field(default_factory=VoxelsConfig)
    network: InstanceNetworkConfig = field(
        default_factory=lambda: InstanceNetworkConfig(
            decoder=MaskTransformerConfig(classes=1, start="segments")
        )
    )
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    loss: LossConfig = field(
        default_factory=lambda: LossConfig(start_weight=4.0, start_cost=2.0, quality_weight=2.0)
    )
    rounds: int = 4
    # 600 epochs of ScanNet's 1201 scans for the first round, 50 for each of the others.
    first_round: LearnerConfig = field(default_factory=lambda: LearnerConfig(steps=90_000))
    later_rounds: LearnerConfig = field(
        default_factory=lambda: LearnerConfig(steps=7_500, learning_rate=5e-5)
    )
    export: ExportConfig = field(default_factory=ExportConfig)
    seed: int = 0


# Section numbers are the paper's; what it leaves open is taken from the released code.
PAPER = UnScene3DConfig(
    features=FeaturesConfig(
        oversegmentation=OversegmentationConfig("unscene3d", k=0.005, min_vertices=50),  # 8.2
        images=SceneImageFeaturesConfig(
            frame_step=20,
            features=ImageFeaturesConfig(
                provider="dino", model="facebook/dino-vits8", layer=-2, normalization="half"
            ),
        ),
    ),
    pseudo_masks=PseudoMasksConfig(method="cuts", cuts=PAPER_CUTS, freemask=PAPER_FREEMASK),
    network=InstanceNetworkConfig(),
    loss=LossConfig(kind="drop", drop_no_object=False, object_class=1),
    export=ExportConfig(
        inference=InferenceConfig(min_score=0.1, max_overlap=0.66, min_area_m2=0.0),
        passes=0,
        min_stability=0.0,
    ),
)

_SEGMENTS_AT_4CM = OversegmentationConfig(k=0.03, min_vertices=10)
_VOXELS = VoxelsConfig(0.06, channels=("color", "normal"))

SMALL = UnScene3DConfig(
    pretrain=PretrainConfig(
        voxels=_VOXELS,
        network=SparseUNetConfig("Res16UNet14S", input_channels=6),
        learner=LearnerConfig(steps=600, batch_size=4, learning_rate=2e-3),
    ),
    features=FeaturesConfig(
        oversegmentation=_SEGMENTS_AT_4CM,
        images=SceneImageFeaturesConfig(frame_step=5),
        geometry=GeometryFeaturesConfig(voxels=_VOXELS),
    ),
    pseudo_masks=PseudoMasksConfig(
        method="training_free",
        training_free=TrainingFreeConfig(oversegmentation=_SEGMENTS_AT_4CM),
    ),
    oversegmentation=_SEGMENTS_AT_4CM,
    voxels=_VOXELS,
    network=InstanceNetworkConfig(
        SparseUNetConfig("Res16UNet14S", input_channels=6),
        MaskTransformerConfig(
            classes=1,
            queries=150,
            queries_at_inference=400,
            rounds=1,
            start="segments",
            sampled_voxels=(200, 800, 3200, 6400),
        ),
    ),
    # Furniture along a wall may be as long as a small room.
    targets=TargetsConfig(max_extent=1.0),
    samples=SamplesConfig(augmentation=AugmentationConfig(elastic_probability=0.3)),
    # The first masks are dense: what they miss costs less than not learning what is no object.
    loss=LossConfig(
        segment_weights="size",
        drop_no_object=False,
        start_weight=4.0,
        start_cost=2.0,
        quality_weight=2.0,
    ),
    first_round=LearnerConfig(
        steps=5000, batch_size=1, learning_rate=1e-3, max_gradient_norm=1.0, checkpoint_every=100
    ),
    later_rounds=LearnerConfig(
        steps=400, batch_size=1, learning_rate=1e-4, max_gradient_norm=1.0, checkpoint_every=100
    ),
    export=ExportConfig(
        inference=InferenceConfig(min_score=0.1, max_overlap=0.4), min_confirmation=0.3
    ),
)

RECIPES = {"paper": PAPER, "default": UnScene3DConfig(), "small": SMALL}


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Adds --recipe, --config and --set, for `chosen_recipe`."""
    parser.add_argument(
        "--recipe", default="default", metavar="NAME", help=f"one of {', '.join(RECIPES)}"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE.yaml", help="differences to the recipe"
    )
    parser.add_argument(
        "--set", dest="assignments", action="append", default=[], metavar="SECTION.KEY=VALUE",
        help="change one setting of the recipe, as first_round.steps=500; may be repeated",
    )  # fmt: skip


def chosen_recipe(options: argparse.Namespace) -> UnScene3DConfig:
    """The recipe with the differences of file and command line; raises InputError."""
    values = read_yaml(options.config) if options.config else {}
    return recipe(options.recipe, merged(values, from_assignments(options.assignments)))


def recipe(name: str, differences: dict | None = None) -> UnScene3DConfig:
    """A recipe of this name, changed; raises InputError for a name or setting that is not known."""
    if name not in RECIPES:
        raise InputError(f"recipe: expected one of {', '.join(RECIPES)}, got '{name}'")
    return from_dict(UnScene3DConfig, differences or {}, base=RECIPES[name])


def recipe_hash(config: UnScene3DConfig) -> str:
    """Twelve hex digits that change with every setting but those of where a training runs."""
    return Identity("recipe", deciding_settings(to_dict(config))).hash
