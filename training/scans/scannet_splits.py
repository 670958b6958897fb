"""ScanNet's official lists of scenes, and small parts of its training scenes -> splits."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import numpy as np

from training.scans.library import Library
from unscene_ros.scene import InputError

PREFIX = "scannetv2_"  # scannetv2_train.txt, _val, _test; scannetv2_train_5.txt for 5 percent
PERCENTS = (1, 5, 10, 20, 50)  # of training scenes that keep their labels
# Left out of the data that UnScene3D was trained and judged on.
UNSCENE3D_LEAVES_OUT = frozenset({"scene0154_00", "scene0636_00"})


def read_lists(folder: Path) -> dict[str, list[str]]:
    """The names in each scannetv2_<split>.txt of a folder, by split; raises InputError."""
    lists = {}
    for path in sorted(folder.glob(f"{PREFIX}*.txt")):
        try:
            lists[path.stem.removeprefix(PREFIX)] = path.read_text(encoding="utf-8").split()
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected a text file of scene names: {error}") from error
    return lists


def draw_parts(train: list[str], seed: int) -> dict[str, list[str]]:
    """1, 5, 10, 20 and 50 percent of the scenes, each part within the next; named as drawn.

    Of the 1201 official ones these are 12, 60, 120, 240 and 600, as many as in the lists of the
    data-efficient benchmark, but not the same scenes. Raises InputError for a negative seed.
    """
    if seed < 0:
        raise InputError(f"--seed: expected 0 or more, got {seed}")
    order = np.random.default_rng(seed).permutation(sorted(train))
    counts = {percent: max(len(train) * percent // 100, 1) for percent in PERCENTS}
    return {
        f"train_{percent}_drawn_seed{seed}": sorted(order[:count].tolist())
        for percent, count in counts.items()
    }


def write_splits(
    library: Library, lists: dict[str, list[str]], made: Set[str], seed: int
) -> dict[str, int]:
    """Writes each list's scenes that are in the library; returns their numbers by split.

    Parts of the training scenes are drawn where no list says which they are.
    """
    drawn = {}
    for name, part in draw_parts(lists["train"], seed).items() if lists.get("train") else ():
        if name.partition("_drawn")[0] not in lists:
            drawn[name] = part
    counts = {}
    for split, names in (lists | drawn).items():
        kept = [name for name in names if name in made]
        if kept:
            library.write_split(split, kept)
            counts[split] = len(kept)
    return counts
