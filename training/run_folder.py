"""The folder of a run: run.json says which run it is, state.pt how far it has come; its result."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unscene_ros.models.checkpoint import load_checkpoint, save_checkpoint
from unscene_ros.scene import InputError
from unscene_ros.storage import prepare_output_folder, whole_file

RUN_FILE, STATE_FILE = "run.json", "state.pt"


def claim(folder: Path, run: Mapping[str, Any], write: bool) -> None:
    """Ties the folder to the run that these plain values describe.

    write: False for all processes but the first. Raises InputError for a folder of another run,
    naming what differs, and for one that cannot be written.
    """
    path = folder / RUN_FILE
    run = json.loads(json.dumps(run))
    if path.exists():
        differences = list(_differences(_read_run(path), run))
        if differences:
            raise InputError(
                f"{folder}: holds another run: {'; '.join(differences)}: "
                "choose another folder, or delete this one"
            )
    elif (folder / STATE_FILE).exists():
        raise InputError(
            f"{folder}: holds a run that has lost its {RUN_FILE}: choose another folder, or delete "
            "this one"
        )
    elif write:
        prepare_output_folder(folder)
        with whole_file(path) as file:
            file.write(json.dumps(run, indent=2).encode())


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_bytes())
        return dict(run)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: expected the settings of a run ({error}): choose another folder"
        ) from error


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = dict(_flat(there)), dict(_flat(now))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{key} is {old.get(key)!r} there, {new.get(key)!r} now"


def _flat(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{section}{key}.")
        else:
            yield f"{section}{key}", value


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes tensors and plain values whole or not at all; raises InputError if it cannot."""
    content = io.BytesIO()  # since torch.save into a file does not say what failed
    torch.save(state, content)
    with whole_file(folder / STATE_FILE) as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote, on the CPU; empty when it did not; runs no code of the file.

    Raises InputError for a damaged file.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return {}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state)
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, pickle.PickleError) as error:
        raise InputError(
            f"{path}: expected the state of a run, got a damaged file ({str(error)[:200]}): "
            "delete the folder to start anew"
        ) from error


def save_result(
    path: Path, network: nn.Module, settings: Mapping[str, Any], origin: Mapping[str, Any]
) -> None:
    """As `save_checkpoint`, unless the file holds these very weights.

    What was made from it goes by its hash, which the provenance of another day would change.
    """
    try:
        there = load_checkpoint(path, type(network))
    except InputError:  # there is none, or it is damaged, or another's
        return save_checkpoint(path, network, settings, origin)
    old, new = there.network.state_dict(), network.state_dict()
    if old.keys() != new.keys() or not all(old[name].equal(new[name].cpu()) for name in new):
        save_checkpoint(path, network, settings, origin)
