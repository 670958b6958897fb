"""What a trained network adds to the pseudo masks of a scan: confident, stable and new ones.

UnScene3D's densification between two rounds (paper, section 4.3): the best predictions whose
surface the initial masks do not cover yet are taught in the next round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from training.artifacts import (
    Identity,
    file_hash,
    is_made,
    pack_masks,
    save_artifact,
    unpack_masks,
)
from training.learner import deciding_settings
from training.scans.library import Scan
from training.unscene3d.augmentation import AugmentationConfig, augment
from training.unscene3d.targets import masks_over_segments
from unscene_ros.inference import InferenceConfig, infer, overlaps
from unscene_ros.models.checkpoint import load_checkpoint
from unscene_ros.models.device import choose_torch_device
from unscene_ros.models.instance_network import InstanceNetwork
from unscene_ros.scene import InputError, Instances, Mesh, Segments
from unscene_ros.settings import to_dict
from unscene_ros.voxels import VoxelsConfig

if TYPE_CHECKING:
    from training.unscene3d.recipe import UnScene3DConfig

STEP = "export"


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """Which predictions become pseudo masks; shares and overlaps are of vertices."""

    inference: InferenceConfig = field(
        default_factory=lambda: InferenceConfig(min_score=0.1, max_overlap=0.66)
    )
    max_new: int = 5  # masks added to a scan
    min_uncovered: float = 0.5  # of a mask, by the masks there are and those added before it
    # Augmented passes in which a prediction must come out again, and with what overlap (IoU).
    passes: int = 2
    min_stability: float = 0.5
    # An initial mask stays when some prediction overlaps it by this IoU; 0 keeps all, as the paper.
    min_confirmation: float = 0.0
    augmentation: AugmentationConfig = field(
        default_factory=lambda: AugmentationConfig(elastic_probability=0.0)
    )

    def __post_init__(self) -> None:
        for name in ("max_new", "passes"):
            if getattr(self, name) < 0:
                raise InputError(f"export.{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("min_uncovered", "min_stability", "min_confirmation"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"export.{name}: expected 0..1, got {getattr(self, name)}")


def export_identity(
    scan: Scan, config: UnScene3DConfig, initial: Identity, checkpoint: Path
) -> Identity:
    """Of the masks that `export` makes of the initial ones and the checkpoint."""
    settings = {"export": to_dict(config.export), "voxels": to_dict(config.voxels)}
    inputs = {
        "masks": initial.hash,
        "segments": scan.segments_identity(config.oversegmentation).hash,
        "checkpoint": _hash_of(checkpoint, _changed_ns(checkpoint)),
    }
    return Identity(STEP, deciding_settings(settings), inputs, config.seed)


def export(scan: Scan, config: UnScene3DConfig, initial: Identity, checkpoint: Path) -> Path:
    """Writes the masks of the next round unless they are there; returns their file.

    initial: of the pseudo masks before any training. Those that stay come first, unchanged.
    """
    identity = export_identity(scan, config, initial, checkpoint)
    path = scan.result_path("masks", identity, identity.step)
    if is_made(path, identity):
        return path
    mesh = scan.mesh()
    segments = scan.segments(config.oversegmentation, mesh)
    first = scan.result("masks", initial, initial.step)
    first_masks = masks_over_segments(unpack_masks(first["masks"], len(mesh.vertices)), segments)
    network = _network(checkpoint, _changed_ns(checkpoint), config.export.inference.device)
    seed = (config.seed, int(scan.mesh_hash, 16))
    kept, added, scores = densified(
        network, config.voxels, mesh, segments, first_masks, config.export, seed
    )
    save_artifact(
        path,
        identity,
        masks=np.concatenate([first["masks"][kept], pack_masks(added[:, segments.of_vertex])]),
        scores=np.concatenate([first["scores"][kept], scores]),
        sources=np.concatenate([first["sources"][kept], np.full(len(added), STEP)]),
    )
    return path


def _changed_ns(checkpoint: Path) -> int:
    """When it was written: what is remembered of a file is asked for by this too."""
    try:
        return checkpoint.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{checkpoint}: cannot be read ({error.strerror})") from error


@lru_cache(1)
def _hash_of(checkpoint: Path, _: int) -> str:
    """Computed once for all scans."""
    return file_hash(checkpoint)


@lru_cache(1)
def _network(checkpoint: Path, _: int, device: Literal["auto", "cuda", "cpu"]) -> InstanceNetwork:
    """Loaded once in each process."""
    network = load_checkpoint(checkpoint, InstanceNetwork).network
    assert isinstance(network, InstanceNetwork)
    return network.to(choose_torch_device(device))


def densified(
    network: InstanceNetwork,
    voxels: VoxelsConfig,
    mesh: Mesh,
    segments: Segments,
    initial: np.ndarray,
    config: ExportConfig,
    seed: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(which initial masks stay (M,) bool, masks to add (K, S) bool, their scores (K,)).

    initial (M, S) bool: the pseudo masks before any training.
    """
    rng = np.random.default_rng(seed)
    predicted = infer(network, voxels, mesh, segments, config.inference)
    again = [
        infer(network, voxels, augment(mesh, rng, config.augmentation), segments, config.inference)
        for _ in range(config.passes)
    ]
    sizes = np.bincount(segments.of_vertex, minlength=segments.count)
    kept = confirmed(initial, predicted, sizes, config.min_confirmation)
    return kept, *new_masks(predicted, again, initial[kept], sizes, config)


def confirmed(
    initial: np.ndarray, predicted: Instances, sizes: np.ndarray, min_confirmation: float
) -> np.ndarray:
    """(M,) bool: the initial masks (M, S) that a prediction overlaps enough.

    sizes (S,) of the segments.
    """
    best = overlaps(initial, predicted.masks, sizes).max(axis=1, initial=0)
    return best >= min_confirmation


def new_masks(
    predicted: Instances,
    again: Sequence[Instances],
    known: np.ndarray,
    sizes: np.ndarray,
    config: ExportConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """(masks (K, S) bool, scores (K,)): the uncovered parts of what is confident and stable.

    again: what augmented passes predicted; known (M, S) bool: masks there are.
    """
    stable = np.ones(len(predicted.masks), bool)
    for other in again:
        best = overlaps(predicted.masks, other.masks, sizes).max(axis=1, initial=0)
        stable &= best >= config.min_stability
    covered = known.any(axis=0)
    masks, scores = [], []
    for index in np.argsort(-predicted.scores, kind="stable"):
        if len(masks) == config.max_new:
            break
        mask = predicted.masks[index]
        uncovered = mask & ~covered
        if stable[index] and sizes[uncovered].sum() > config.min_uncovered * sizes[mask].sum():
            masks.append(uncovered)
            scores.append(predicted.scores[index])
            covered = covered | mask
    if not masks:
        return np.zeros((0, len(sizes)), bool), np.zeros(0, np.float32)
    return np.stack(masks), np.array(scores, np.float32)
