"""Pseudo masks -> the network of the last round: train, let it add masks, train again.

One command for all rounds, which goes on wherever it was stopped. The result is the checkpoint of
the last round, never one chosen by truth, which is not looked at here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from training.artifacts import Identity, file_hash, load_artifact, unpack_masks
from training.command import chosen_scans, exit_code, step_parser
from training.distributed import is_first_process, wait_for_all
from training.fan_out import Failure, failures_at_end, for_each
from training.learner import deciding_settings
from training.run_folder import RUN_FILE, claim
from training.scans.library import Scan
from training.unscene3d.export import export, export_identity
from training.unscene3d.pseudo_masks import find_pseudo_masks
from training.unscene3d.recipe import UnScene3DConfig, add_recipe_options, chosen_recipe
from training.unscene3d.samples import TrainingScene
from training.unscene3d.targets import target_masks
from training.unscene3d.train import CHECKPOINT_FILE, train, training_identity
from unscene_ros.models.checkpoint import load_checkpoint, save_checkpoint
from unscene_ros.scene import InputError
from unscene_ros.settings import to_dict
from unscene_ros.storage import prepare_output_folder, whole_file

REPORT_FILE, SCANS_FILE = "rounds.json", "scans.txt"


def self_train(
    chosen: Sequence[Scan],
    config: UnScene3DConfig,
    folder: Path,
    initial: Path | None = None,
    workers: int = 1,
    ray: str | None = None,
) -> tuple[Path | None, list[Failure]]:
    """(the checkpoint of the last round, scans that failed or had to be left out).

    folder gets run.json (the settings), scans.txt (what is learned from), round_1, round_2, ...
    with their logs and checkpoints, rounds.json and the last checkpoint. initial: weights to start
    from. A run keeps to the scans that it began with. When one of them fails later, the run ends
    before the next round, without a checkpoint (None), so that nothing is learned from a part.
    Under torchrun the first process alone makes masks and writes.
    Raises InputError for a folder with other settings.
    """
    if config.rounds < 1:
        raise InputError(f"rounds: expected 1 or more, got {config.rounds}")
    if not chosen:
        raise InputError("rounds: expected scans to learn from, got none")
    claim(folder, _what_decides(config), write=is_first_process())
    scans = {scan.name: scan for scan in chosen}
    first, failures = _first_masks(scans, config, folder, workers, ray)
    masks, checkpoint, report = first, initial, []
    for number in range(1, config.rounds + 1):
        if number > 1 and checkpoint:
            masks, failed = _next_masks(scans, config, first, checkpoint, workers, ray)
            failures += failed
        if not masks:
            return None, failures
        checkpoint = train_round(number, scans, masks, config, folder, checkpoint)
        report.append(_summary(number, scans, masks, checkpoint))
        if is_first_process():
            with whole_file(folder / REPORT_FILE) as file:
                file.write(json.dumps(report, indent=2).encode())
    assert checkpoint is not None
    result = folder / CHECKPOINT_FILE
    if is_first_process():
        _write_for_robot(checkpoint, result, config.rounds)
    return result, failures


def _write_for_robot(checkpoint: Path, path: Path, rounds: int) -> None:
    """The last round's network, compact; written once, since its hash names results."""
    last = file_hash(checkpoint)
    with suppress(InputError):
        if load_checkpoint(path).provenance.get("last_round") == last:
            return
    trained = load_checkpoint(checkpoint)
    origin = trained.provenance | {"rounds": rounds, "last_round": last}
    save_checkpoint(path, trained.network, trained.settings, origin, compact=True)


def _what_decides(config: UnScene3DConfig) -> dict[str, Any]:
    """The settings that all rounds have in common, for run.json."""
    settings = deciding_settings(to_dict(config))
    del settings["rounds"]  # more of them can follow
    del settings["pretrain"]  # its result counts: with what it was made is in the masks' identity
    return settings


def _first_masks(
    scans: Mapping[str, Scan],
    config: UnScene3DConfig,
    folder: Path,
    workers: int,
    ray: str | None,
) -> tuple[dict[str, Identity], list[Failure]]:
    """(identity of the pseudo masks of each scan to learn from, what was left out).

    There is none when a scan that the run began with has failed.
    """
    failures: list[Failure] = []
    if is_first_process():
        work = partial(_prepare, config=config)
        failures = for_each([*scans.items()], work, workers, ray, "segments")
        failures += _keep_to_the_first_scans(scans, failures, folder / SCANS_FILE)
    wait_for_all()
    masks = {}
    for name in _read_names(folder / SCANS_FILE):
        try:
            masks[name] = find_pseudo_masks(scans[name], config)
        except (KeyError, InputError):
            return {}, failures  # which say why
    return masks, failures


def _prepare(scan: Scan, config: UnScene3DConfig) -> None:
    """Looks for the pseudo masks, and makes the segments so that training finds them."""
    find_pseudo_masks(scan, config)
    scan.segments(config.oversegmentation)


def _keep_to_the_first_scans(
    scans: Mapping[str, Scan], failures: list[Failure], path: Path
) -> list[Failure]:
    """Notes the scans that have not failed; once training has begun, compares them with the noted.

    Returns those that differ.
    """
    failed = {failure.name for failure in failures}
    usable = [name for name in scans if name not in failed]
    if not (_round_folder(path.parent, 1) / RUN_FILE).exists():
        with whole_file(path) as file:
            file.write("".join(f"{name}\n" for name in usable).encode())
    noted = _read_names(path)
    new = "came after the run had begun: it is not learned from; start another run with it"
    gone = "the run has learned from it, but it is no longer asked for; start another run without"
    return [Failure(name, new) for name in usable if name not in noted] + [
        Failure(name, gone) for name in noted if name not in scans
    ]


def _read_names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected the names of scans ({error})") from error


def _round_folder(run: Path, number: int) -> Path:
    return run / f"round_{number}"


def _next_masks(
    scans: Mapping[str, Scan],
    config: UnScene3DConfig,
    first: Mapping[str, Identity],
    checkpoint: Path,
    workers: int,
    ray: str | None,
) -> tuple[dict[str, Identity], list[Failure]]:
    """(identity of each scan's masks with what the network of the last round adds, failures).

    There is none when one has failed; that of the others is kept.
    """
    failures: list[Failure] = []
    if is_first_process():
        work = partial(_export, config=config, checkpoint=checkpoint)
        items = [(name, (scans[name], identity)) for name, identity in first.items()]
        failures = for_each(items, work, workers, ray, "adding masks")
    if wait_for_all(len(failures)):
        return {}, failures
    masks = {
        name: export_identity(scans[name], config, identity, checkpoint)
        for name, identity in first.items()
    }
    return masks, failures


def _export(item: tuple[Scan, Identity], config: UnScene3DConfig, checkpoint: Path) -> None:
    scan, initial = item
    export(scan, config, initial, checkpoint)


def train_round(
    number: int,
    scans: Mapping[str, Scan],
    masks: Mapping[str, Identity],
    config: UnScene3DConfig,
    folder: Path,
    initial: Path | None,
) -> Path:
    """The checkpoint of one round, trained on masks of these identities."""
    target_hashes = {
        name: Identity("scene", {}, {
            "mesh": scans[name].mesh_hash, "masks": identity.hash
        }).hash
        for name, identity in masks.items()
    }  # fmt: skip
    # Without a mask there is nothing to learn from a scan: what it misses is not punished.
    names = [name for name in masks if len(_read_masks(scans[name], masks[name])["scores"])]

    def load(name: str) -> TrainingScene:
        return labelled_scene(scans[name], masks[name], config)

    learner = config.first_round if number == 1 else config.later_rounds
    identity = training_identity(config, learner, target_hashes, initial)
    return train(names, load, config, learner, _round_folder(folder, number), identity, initial)


def labelled_scene(scan: Scan, masks: Identity, config: UnScene3DConfig) -> TrainingScene:
    """A scan with the masks of this identity as targets over the network's segments."""
    mesh = scan.mesh()
    segments = scan.segments(config.oversegmentation, mesh)
    arrays = _read_masks(scan, masks)
    of_vertices = unpack_masks(arrays["masks"], len(mesh.vertices))
    targets = target_masks(of_vertices, arrays["scores"], mesh, segments, config.targets)
    return TrainingScene(scan.name, mesh, segments, targets)


def _read_masks(scan: Scan, identity: Identity) -> dict[str, np.ndarray]:
    return load_artifact(scan.result_path("masks", identity, identity.step))


def _summary(
    number: int, scans: Mapping[str, Scan], masks: Mapping[str, Identity], checkpoint: Path
) -> dict[str, Any]:
    """What a round learned from: how many masks, from where, how much they cover, their scores."""
    sources: dict[str, int] = {}
    covered, scores = [], []
    for name, identity in masks.items():
        arrays = _read_masks(scans[name], identity)
        for source, count in zip(*np.unique(arrays["sources"], return_counts=True), strict=True):
            sources[str(source)] = sources.get(str(source), 0) + int(count)
        bits = np.bitwise_or.reduce(arrays["masks"], axis=0) if len(arrays["masks"]) else []
        covered.append(np.unpackbits(np.asarray(bits, np.uint8)).sum() / max(8 * len(bits), 1))
        scores.append(arrays["scores"])
    histogram, _ = np.histogram(np.concatenate(scores or [[]]), bins=10, range=(0, 1))
    return {
        "round": number,
        "scans": len(masks),
        "masks": sources,
        "covered_share": round(float(np.mean(covered or [0])), 4),
        "scores_by_tenths": histogram.tolist(),
        "checkpoint": file_hash(checkpoint),
    }


def _show(report: list[dict[str, Any]]) -> None:
    table = Table("round", "scans", "masks", "covered", title="what each round learned from")
    for line in report:
        masks = ", ".join(f"{count} {source}" for source, count in line["masks"].items())
        share = f"{100 * line['covered_share']:.0f} %"
        table.add_row(str(line["round"]), str(line["scans"]), masks, share)
    Console().print(table)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when scans failed, 2 for a wrong argument."""
    parser = step_parser(
        "training.unscene3d.rounds",
        "Train on pseudo masks and let the network add masks, round after round. A second call "
        "goes on where the first was stopped.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN")
    parser.add_argument(
        "--initial", type=Path, metavar="CHECKPOINT", help="weights to start from, or a backbone's"
    )
    add_recipe_options(parser)
    options = parser.parse_args(arguments)

    def run() -> int:
        config, scans = chosen_recipe(options), chosen_scans(options)
        prepare_output_folder(options.output)
        checkpoint, failures = self_train(
            scans, config, options.output, options.initial, options.workers, options.ray
        )
        if checkpoint and is_first_process():
            _show(json.loads((options.output / REPORT_FILE).read_text()))
            print(f"checkpoint: {checkpoint}")
        return failures_at_end(failures)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
