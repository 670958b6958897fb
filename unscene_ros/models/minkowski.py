"""Weights written with MinkowskiEngine: read safely, matched by name, loaded whole or refused.

Contrastive Scene Contexts, PointContrast, Mask3D, UnScene3D, GrowSP and PointDC name the tensors of
their backbones alike, and so do we. They differ in what lies around them, `state_dict`, `module.`,
`model.backbone.` and so on, which is found by itself, and in axes of length one, which older
versions of MinkowskiEngine kept in 1³ kernels and left out of biases. `PUBLISHED_NAMES` has the
parts that we name otherwise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from unscene_ros.models.heads import ProjectionHead
from unscene_ros.models.instance_network import InstanceNetwork
from unscene_ros.models.semantic_networks import ClassAndOffsetNetwork
from unscene_ros.scene import InputError

NAMES_SHOWN = 8

# How names of ours begin, and how published ones begin instead. A `kernel` that fills a `weight` is
# transposed.
PUBLISHED_NAMES: dict[type[nn.Module], dict[str, str]] = {
    InstanceNetwork: {"decoder.": ""},  # Mask3D, UnScene3D
    ClassAndOffsetNetwork: {"backbone.": "", "heads.": ""},  # Contrastive Scene Contexts
    ProjectionHead: {"layers.0.weight": "distill_layer.conv_align.kernel"},  # PointDC
}
# What the files hold although their own projects do not use it.
USED_BY_NOBODY: dict[type[nn.Module], tuple[str, ...]] = {InstanceNetwork: ("backbone.final",)}


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of the tensors, by their published names.

    prefix: what stands before these names in the file. matched: the tensors that were loaded.
    not_filled, not_used: those that only the network has and only the file, with the reason; the
    caller allowed them. elsewhere: how many tensors of the file do not stand under the prefix.
    """

    path: Path
    prefix: str
    matched: tuple[str, ...]
    not_filled: dict[str, str]
    not_used: dict[str, str]
    elsewhere: int

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self.matched)} tensors loaded from '{self.prefix}*'"]
        lines += _told("kept as they were", self.not_filled)
        lines += _told("in the file but not used", self.not_used)
        if self.elsewhere:
            lines.append(f"  {self.elsewhere} tensors of other parts of the file")
        return "\n".join(lines)


def import_weights(
    path: Path,
    network: nn.Module,
    allowed_rest: Sequence[str] = (),
    prefix: str | None = None,
) -> ImportReport:
    """Fills a network from a .pth, .pt, .ckpt or .safetensors file of another project.

    allowed_rest: parts, by their published names, that may stay as they are or unused, as "final"
    for a last layer with other classes. prefix: where the network is in the file, for files that
    hold several. Raises InputError when the file cannot be read safely, when the network is not in
    it, and when anything beyond the allowed rest would be left over; the network is unchanged then.
    """
    path = Path(path)
    tensors = read_tensors(path)
    state = network.state_dict()
    wanted = {_published_name(network, ours): ours for ours in state}
    if prefix is None:
        prefix = _find_prefix(path, tensors, wanted)
    found = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}

    filling, not_filled = _fitting(found, wanted, state)
    matched = tuple(name for name, ours in wanted.items() if ours in filling)
    not_used = {prefix + name: "not in the network" for name in found if name not in wanted}

    allowed = (*allowed_rest, *USED_BY_NOBODY.get(type(network), ()))
    refused = {
        name: reason
        for name, reason in (not_filled | not_used).items()
        if not _belongs(name.removeprefix(prefix), allowed)
    }
    if refused:
        raise InputError(
            f"{path}: does not fit the network ({len(matched)} of {len(wanted)} tensors do); give "
            "the network the settings it was trained with, or allow the rest by name:\n"
            + "\n".join(_told("left over", refused))
        )
    network.load_state_dict(filling, strict=False)
    elsewhere = len(tensors) - len(found)
    return ImportReport(path, prefix, matched, not_filled, not_used, elsewhere)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file on the CPU; names of nested dictionaries are joined by dots.

    Runs no code of the file: raises InputError for one that asks for it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return dict(_flattened(torch.load(path, map_location="cpu", weights_only=True)))
    except Exception as error:  # torch and pickle raise whatever the bytes lead them to
        asked_for = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked_for:
            raise InputError(_how_to_convert(path, asked_for[1])) from error
        raise InputError(
            f"{path}: expected a PyTorch file of tensors, got one that is damaged or of another "
            f"kind ({error if isinstance(error, OSError) else type(error).__name__})"
        ) from error


def _how_to_convert(path: Path, asked_for: str) -> str:
    tensors = f"{path.stem}_tensors.pth"
    return (
        f"{path}: holds more than tensors ({asked_for}), and to read that is to run code of the "
        "file. If you trust it, take the tensors out where nothing can be harmed, in a container "
        'with the project that wrote it: python -c "import torch; file = torch.load('
        f"'{path.name}', map_location='cpu', weights_only=False); "
        f"torch.save(file['state_dict'], '{tensors}')\", and import {tensors}"
    )


def _flattened(value: Any, name: str = "") -> Iterable[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flattened(inner, f"{name}.{key}" if name else str(key))


def _find_prefix(path: Path, tensors: Iterable[str], wanted: Iterable[str]) -> str:
    """The beginning under which most names of the network are found."""
    wanted, counts = set(wanted), Counter[str]()
    for name in tensors:
        parts = name.split(".")
        tails = (".".join(parts[start:]) for start in range(len(parts)))
        counts.update(name.removesuffix(tail) for tail in tails if tail in wanted)
    if not counts:
        shown = ", ".join(list(tensors)[:NAMES_SHOWN])
        raise InputError(
            f"{path}: no tensor of the network is in the file; it has {shown or 'none'}"
        )
    most = max(counts.values())
    best = [prefix for prefix, count in counts.items() if count == most]
    if len(best) > 1:
        raise InputError(
            f"{path}: expected the network once, found it under {', '.join(map(repr, best))}: say "
            "which one by `prefix`"
        )
    return best[0]


def _fitting(
    found: Mapping[str, Tensor], wanted: Mapping[str, str], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors for our names, why there is none for a published name).

    found: by published names. wanted: our name for each published one. state: by our names.
    """
    filling, not_filled = {}, {}
    for name, ours in wanted.items():
        transposed = name.endswith("kernel") and ours.endswith("weight")
        source, target = found.get(name), state[ours].mT if transposed else state[ours]
        if source is None:
            not_filled[name] = "not in the file"
        elif _sides(source) != _sides(target):
            not_filled[name] = f"{tuple(source.shape)} in the file, {tuple(target.shape)} wanted"
        elif not source.isfinite().all():
            not_filled[name] = "not all finite numbers"
        else:
            source = source.reshape(target.shape)
            filling[ours] = source.mT if transposed else source
    return filling, not_filled


def _published_name(network: nn.Module, name: str) -> str:
    for ours, theirs in PUBLISHED_NAMES.get(type(network), {}).items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _sides(tensor: Tensor) -> list[int]:
    """The shape without axes of length one."""
    return [side for side in tensor.shape if side != 1]


def _belongs(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _told(title: str, reasons: Mapping[str, str]) -> list[str]:
    lines = [f"    {name}: {reason}" for name, reason in list(reasons.items())[:NAMES_SHOWN]]
    if len(reasons) > NAMES_SHOWN:
        lines.append(f"    and {len(reasons) - NAMES_SHOWN} more")
    return [f"  {title}:", *lines] if reasons else []
