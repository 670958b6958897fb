"""Parts of the labelled scans -> networks, from scratch or from a trained one.

Shows what learning without labels is worth as pre-training (Rozenberszki et al., "UnScene3D", CVPR
2024, data-efficient segmentation). All labels from scratch are the ceiling without pre-training.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.command import exit_code
from training.distributed import is_first_process
from training.fan_out import Failure, failures_at_end
from training.probes.labels import labelled_hash, labelled_scans, true_scene
from training.scans.library import Library, Scan
from training.unscene3d.recipe import UnScene3DConfig, add_recipe_options, chosen_recipe
from training.unscene3d.samples import TrainingScene
from training.unscene3d.train import train, training_identity
from unscene_ros.scene import InputError
from unscene_ros.storage import prepare_output_folder, whole_file

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
SCANS_FILE = "scans.txt"


def draw(names: Sequence[str], share: float, seed: int) -> list[str]:
    """A share of the names, rounded down, but one at least; it holds every smaller share."""
    if not 0 < share <= 1:
        raise InputError(f"--shares: expected more than 0, up to 1, got {share}")
    order = np.random.default_rng(seed).permutation(sorted(names))
    count = math.floor(share * len(names) + 1e-6)  # 0.29 * 100 is 28.999...
    return sorted(order[: max(count, 1)].tolist())


def train_on_labels(
    scans: Sequence[Scan], config: UnScene3DConfig, folder: Path, initial: Path | None = None
) -> Path:
    """The checkpoint of a network trained on the labels of these scans; goes on where it ended.

    folder: of the run, gets the names of the scans too. initial: weights to start from. It learns
    as in the first round of self-training, but what the labels do not name is no object.
    Raises InputError for the folder of another training.
    """
    of_name = {scan.name: scan for scan in scans}
    _claim_scans(folder, list(of_name))
    config = replace(config, loss=replace(config.loss, kind="baseline"))
    targets = {name: labelled_hash(scan) for name, scan in of_name.items()}
    identity = training_identity(config, config.first_round, targets, initial)

    def load(name: str) -> TrainingScene:
        return true_scene(of_name[name], config)

    return train(list(of_name), load, config, config.first_round, folder, identity, initial)


def _claim_scans(folder: Path, names: list[str]) -> None:
    """Writes the names to the folder; raises InputError when there are others already."""
    path = folder / SCANS_FILE
    if path.exists():
        others = path.read_text(encoding="utf-8").split()
        if others != names:
            raise InputError(
                f"{folder}: holds a training on {len(others)} other scans, now there are "
                f"{len(names)}: choose another folder, or delete this one"
            )
    elif is_first_process():
        prepare_output_folder(folder)
        with whole_file(path) as file:
            file.write("".join(f"{name}\n" for name in names).encode())


def choose_parts(
    library: Library, split: str, shares: Sequence[float], lists: Sequence[str], seed: int
) -> tuple[dict[str, list[Scan]], list[Failure]]:
    """(the labelled scans of each part, scans that cannot be used).

    Parts are shares of a split, drawn by the seed, and whole splits of the library (lists).
    """
    drawn_from = library.names(split) if shares else []
    listed = {part: library.names(part) for part in lists}
    wanted = sorted({*drawn_from, *(name for names in listed.values() for name in names)})
    usable, failures = labelled_scans([library.scan(name) for name in wanted])
    of_name = {scan.name: scan for scan in usable}
    labelled = [name for name in drawn_from if name in of_name]
    parts = {str(share): draw(labelled, share, seed) for share in shares} | listed
    return {
        part: [of_name[name] for name in names if name in of_name] for part, names in parts.items()
    }, failures


def train_on_parts(
    parts: Mapping[str, Sequence[Scan]],
    config: UnScene3DConfig,
    folder: Path,
    initial: Path | None = None,
) -> tuple[list[Path], list[Failure]]:
    """(checkpoints, parts that failed) of one training for each part, in folders of their names."""
    start = "finetuned" if initial else "scratch"
    checkpoints, failures = [], []
    for part, scans in parts.items():
        name = f"{start}_{part}"
        print(f"{name}: {len(scans)} labelled scans", file=sys.stderr)
        try:
            checkpoints.append(train_on_labels(scans, config, folder / name, initial))
        except InputError as error:
            failures.append(Failure(name, str(error)))
    return checkpoints, failures


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a part failed, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m training.probes.few_labels",
        description="Train on parts of the labelled scans, from scratch or from a checkpoint, each "
        "into RUN/scratch_PART or RUN/finetuned_PART with the names of its scans. A second call "
        "goes on where the first was stopped. Compare the checkpoints with python -m "
        "training.probes.average_precision.",
    )
    parser.add_argument("library", type=Path, metavar="LIBRARY")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN")
    parser.add_argument("--split", default="", metavar="NAME", help="draw from these scans")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[], metavar="SHARE",
        help="of the labelled scans, drawn by the recipe's seed, each within the next; "
        f"default: {' '.join(map(str, SHARES))}, or none with --lists",
    )  # fmt: skip
    parser.add_argument(
        "--lists", nargs="+", default=[], metavar="SPLIT",
        help="splits to learn from whole, for example ScanNet's lists train_1 train_5",
    )  # fmt: skip
    parser.add_argument(
        "--initial", type=Path, metavar="CHECKPOINT",
        help="weights to start from, or a backbone's; default: from scratch",
    )  # fmt: skip
    add_recipe_options(parser)
    options = parser.parse_args(arguments)
    return exit_code(lambda: _train(options))


def _train(options: argparse.Namespace) -> int:
    config = chosen_recipe(options)
    shares = options.shares or (() if options.lists else SHARES)
    library = Library(options.library)
    parts, unusable = choose_parts(library, options.split, shares, options.lists, config.seed)
    prepare_output_folder(options.output)
    checkpoints, failures = train_on_parts(parts, config, options.output, options.initial)
    for checkpoint in checkpoints:
        print(f"checkpoint: {checkpoint}")
    return failures_at_end([*unusable, *failures])


if __name__ == "__main__":
    sys.exit(main())
