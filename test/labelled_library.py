"""The small scan of two boxes with its labels, as a library, and settings that learn it briefly."""

from dataclasses import replace
from pathlib import Path

from small_library import write_small_library
from small_scan import small_truth

from training.learner import LearnerConfig
from training.scans.library import Library
from training.unscene3d.recipe import UnScene3DConfig
from unscene_ros.models.instance_network import InstanceNetworkConfig
from unscene_ros.models.sparse_unet import SparseUNetConfig
from unscene_ros.voxels import VoxelsConfig

_DEFAULT = UnScene3DConfig()
TINY = replace(
    _DEFAULT,
    voxels=VoxelsConfig(0.1),
    network=InstanceNetworkConfig(
        SparseUNetConfig("Res16UNet14S"),
        replace(
            _DEFAULT.network.decoder, queries=8, width=16, heads=2, feedforward_width=20, rounds=1
        ),
    ),
    first_round=LearnerConfig(steps=2, batch_size=2, device="cpu", threads=1, workers=1),
)


def write_labelled_library(root: Path, *names: str) -> Library:
    """The same scan under each name."""
    library = write_small_library(root, *names, frame_count=2)
    for name in names:
        small_truth(library.scan(name).folder)
    return library
