"""Results of the steps on disk: files that say from what, and how, they were made.

An identity names a step, its version, settings and seed, and the hashes of all that went in; its
own hash is part of the file's name. So other settings make other files: nothing old is taken for
new, and nothing is lost by trying something else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unscene_ros.provenance import provenance
from unscene_ros.scene import InputError
from unscene_ros.storage import read_arrays, whole_file

HASH_DIGITS = 12
_IDENTITY, _PROVENANCE = "identity", "provenance"  # arrays of JSON in every file


@dataclass(frozen=True)
class Identity:
    """What decides a result: the step, its settings as plain values, the hashes of its inputs.

    version: of the step's code; raise it when the same settings and inputs come to give another
    result.
    """

    step: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    version: int = 1

    @cached_property
    def hash(self) -> str:
        """Twelve hex digits over all of it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:HASH_DIGITS]

    def to_json(self) -> str:
        """The same text for the same identity, whatever the order of the keys.

        Raises InputError for settings that are not finite.
        """
        parts = {
            "step": self.step,
            "settings": self.settings,
            "inputs": self.inputs,
            "seed": self.seed,
        }
        if self.version > 1:  # the first one is not written, as before there were versions
            parts["version"] = self.version
        try:
            return json.dumps(parts, sort_keys=True, allow_nan=False)
        except ValueError as error:
            raise InputError(
                f"settings of {self.step}: expected finite numbers, got {dict(self.settings)}"
            ) from error


def file_hash(path: Path) -> str:
    """Twelve hex digits over a file's content; raises InputError when it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:HASH_DIGITS]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def save_artifact(path: Path, identity: Identity, **arrays: np.ndarray) -> None:
    """Writes arrays with their identity, whole or not at all; makes the folder.

    Raises InputError when it cannot be written, on a full disk for instance.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made ({error.strerror})") from error
    about = {
        _IDENTITY: np.array(identity.to_json()),
        _PROVENANCE: np.array(_provenance()),
    }
    with whole_file(path) as file:
        np.savez_compressed(file, **about, **arrays)


@cache
def _provenance() -> str:
    """The same for all that a process writes; asking git for each file would cost more than it."""
    return json.dumps(provenance(), sort_keys=True)


def load_artifact(path: Path) -> dict[str, np.ndarray]:
    """The arrays of `save_artifact`; raises InputError when the file is missing or damaged."""
    arrays = read_arrays(path)
    if _IDENTITY not in arrays:
        raise InputError(f"{path}: expected a result with its identity, got {', '.join(arrays)}")
    return {name: array for name, array in arrays.items() if name not in (_IDENTITY, _PROVENANCE)}


def is_made(path: Path, identity: Identity) -> bool:
    """Whether this very result is there, whole; a damaged file or another's is not."""
    if not path.exists():
        return False
    try:
        return str(read_arrays(path)[_IDENTITY]) == identity.to_json()
    except (InputError, KeyError):
        return False


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """(K, V) bool as (K, ceil(V/8)) uint8, the first vertex in the lowest bit."""
    return np.packbits(masks, axis=1, bitorder="little")


def unpack_masks(packed: np.ndarray, count: int) -> np.ndarray:
    """(K, count) bool from `pack_masks`."""
    return np.unpackbits(packed, axis=1, count=count, bitorder="little").astype(bool)
