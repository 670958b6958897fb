"""Checkpoints: a network's weights, settings and origin in one safetensors file.

What training and the robot must share, the voxel size and the class names for instance, travels in
the file too. It holds numbers and JSON alone: reading it runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unscene_ros.models.dgcnn import Dgcnn, DgcnnConfig
from unscene_ros.models.instance_network import InstanceNetwork, InstanceNetworkConfig
from unscene_ros.models.semantic_networks import (
    ClassAndOffsetConfig,
    ClassAndOffsetNetwork,
    DistilledConfig,
    DistilledNetwork,
)
from unscene_ros.models.sparse_fpn import SparseFPN, SparseFPNConfig
from unscene_ros.models.sparse_unet import SparseUNet, SparseUNetConfig
from unscene_ros.provenance import provenance
from unscene_ros.scene import InputError
from unscene_ros.settings import from_dict, to_dict
from unscene_ros.storage import whole_file

FORMAT = 1
METADATA_KEY = "unscene_ros"
NAMES_SHOWN = 6

# What a checkpoint can hold: the class of the network, made from its `config`.
NETWORKS: dict[str, tuple[type[nn.Module], type]] = {
    "ClassAndOffsetNetwork": (ClassAndOffsetNetwork, ClassAndOffsetConfig),
    "Dgcnn": (Dgcnn, DgcnnConfig),
    "DistilledNetwork": (DistilledNetwork, DistilledConfig),
    "InstanceNetwork": (InstanceNetwork, InstanceNetworkConfig),
    "SparseFPN": (SparseFPN, SparseFPNConfig),
    "SparseUNet": (SparseUNet, SparseUNetConfig),
}


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What a file holds.

    network: on the CPU, in evaluation mode. settings: what training and the robot share.
    provenance: the code, packages and machine that wrote it, and what the writer added.
    """

    network: nn.Module
    settings: dict[str, Any]
    provenance: dict[str, Any]


def make_network(name: str, settings: dict[str, Any]) -> nn.Module:
    """A network of `NETWORKS` with random weights; settings differ from the defaults of its config.

    Raises InputError for a name or setting that does not exist.
    """
    if name not in NETWORKS:
        raise InputError(f"network: expected one of {', '.join(NETWORKS)}, got {name}")
    network_class, config_class = NETWORKS[name]
    return network_class(from_dict(config_class, settings))


def save_checkpoint(
    path: Path,
    network: nn.Module,
    settings: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    compact: bool = False,
) -> None:
    """Writes a network of `NETWORKS` whole or not at all; raises InputError if it cannot.

    settings: plain values that whoever runs the network must know. origin: plain values about how
    it was made, added to its provenance. compact: weights in half precision, for a robot; vectors,
    such as the statistics of normalisations, keep theirs.
    """
    name = type(network).__name__
    if name not in NETWORKS:
        raise ValueError(f"save_checkpoint: {name} is not one of {', '.join(NETWORKS)}")
    header = {
        "format": FORMAT,
        "network": name,
        "network_settings": to_dict(network.config),
        "settings": dict(settings or {}),
        "provenance": provenance() | dict(origin or {}),
    }
    tensors = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    if compact:
        tensors = {name: _compact(value) for name, value in tensors.items()}
    metadata = {METADATA_KEY: json.dumps(header, allow_nan=False)}
    with whole_file(path) as file:
        file.write(safetensors.torch.save(tensors, metadata))


def load_checkpoint(path: Path, expected: type[nn.Module] | None = None) -> Checkpoint:
    """Reads what `save_checkpoint` wrote.

    expected: the network that the caller can work with. Raises InputError for another network, for
    a file that is cut off or not a checkpoint, and for tensors that do not fit the settings.
    """
    header, tensors = _read(Path(path))
    name = header["network"]
    if expected is not None and name != expected.__name__:
        raise InputError(f"{path}: expected a network {expected.__name__}, got {name}")
    try:
        network = make_network(name, header["network_settings"])
    except InputError as error:
        raise InputError(f"{path}: {error}; was it written by another version?") from error
    differences = _differences(network.state_dict(), tensors)
    if differences:
        raise InputError(f"{path}: the tensors are not those of its {name}: {differences}")
    diverged = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if diverged:
        raise InputError(
            f"{path}: expected finite numbers, got others in {_listed(diverged)}: its training "
            "diverged, take an earlier checkpoint"
        )
    network.load_state_dict(tensors)
    return Checkpoint(network.eval(), header["settings"], header["provenance"])


def _compact(tensor: Tensor) -> Tensor:
    is_weight = tensor.is_floating_point() and tensor.ndim > 1
    return tensor.half() if is_weight else tensor


def _differences(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    """In words how two state dicts differ in names and shapes; empty when they do not."""
    other_shapes = (
        f"{name} has {tuple(got[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in got and got[name].shape != tensor.shape
    )
    parts = {
        "missing": _listed(name for name in expected if name not in got),
        "unknown": _listed(name for name in got if name not in expected),
        "of another shape": _listed(other_shapes),
    }
    return "; ".join(f"{what}: {names}" for what, names in parts.items() if names)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except SafetensorError as error:
        raise InputError(
            f"{path}: expected a checkpoint, got a file cut off or of another kind ({error})"
        ) from error
    if METADATA_KEY not in metadata:
        raise InputError(
            f"{path}: expected a checkpoint of unscene_ros, got tensors without its settings"
        )
    header = _header(path, metadata[METADATA_KEY])
    return header, tensors


def _header(path: Path, text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
        version = header["format"]
        if version != FORMAT:
            raise InputError(
                f"{path}: expected a checkpoint of format {FORMAT}, got {version}: use the version "
                "of unscene_ros that wrote it, or a newer one"
            )
        for key in ("network", "network_settings", "settings", "provenance"):
            header[key]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: the settings inside are damaged ({error!r})") from error
    return header
