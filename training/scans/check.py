"""What the scans of a library have, what they lack, and the command that makes it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from training.scans.importing import ImportReport
from training.scans.library import LABELS_FILE, Library, Scan
from training.unscene3d.pseudo_masks import find_pseudo_masks, geometry_checkpoint
from training.unscene3d.recipe import UnScene3DConfig, add_recipe_options, chosen_recipe
from unscene_ros.scene import InputError

# The step that a surface came from -> the command that brings the scan's other parts too.
IMPORTERS = {
    "scannet": "python -m training.scans.scannet SCANNET_ROOT -o {library}",
    "arkitscenes": "python -m training.scans.arkitscenes ARKITSCENES_ROOT -o {library}",
    "recorded": "python -m training.scans.recorded RECORDING... -o {library}",
}
OWN_FRAMES = "# put color/, depth/, pose/ and intrinsic.txt into {library}/scans/NAME"
FROM_ANYWHERE = "python -m training.scans.rooms 0-99 -o {library}/scans"
SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a scan should have."""

    what: str
    is_made: Callable[[Scan], bool]
    command: Callable[[Scan], str]  # makes it for this scan, and for all others that lack it
    is_optional: bool = False


def steps(library: Library, config: UnScene3DConfig, options: str) -> list[Step]:
    """Everything that is looked for, in the order in which it is made.

    options: those of the command line that chose the recipe. What a new step makes for each scan is
    one more line here.
    """
    root = shlex.quote(str(library.root))

    def import_again(scan: Scan) -> str:
        is_empty = not any(scan.folder.iterdir())
        command = IMPORTERS.get(_importer(scan), FROM_ANYWHERE if is_empty else OWN_FRAMES)
        return command.format(library=root)

    def make_surface(scan: Scan) -> str:
        if scan.has_frames() and not _importer(scan):  # which may have been stopped half way
            return f"python -m training.scans.fuse {root}"
        return import_again(scan)

    network = Step(
        "network for 3D features",
        lambda scan: bool(geometry_checkpoint(scan, config)),
        lambda scan: f"python -m training.unscene3d.pretrain {root}{options}",
    )
    return [
        Step("frames", Scan.has_frames, import_again),
        Step("surface", _has_surface, make_surface),
        Step("labels", lambda scan: (scan.folder / LABELS_FILE).exists(), import_again, True),
        *([network] if _reads_geometry(config) else []),
        Step(
            "pseudo masks",
            lambda scan: bool(find_pseudo_masks(scan, config)),
            lambda scan: f"python -m training.unscene3d.pseudo_masks {root}{options}",
        ),
    ]


def _importer(scan: Scan) -> str:
    """The step that brought the scan, or was about to; "" for frames or a mesh of the user's."""
    return scan.about().get("step") or ImportReport.load(scan.folder).step


def _has_surface(scan: Scan) -> bool:
    return bool(scan.about()) or (scan.mesh_path.exists() and not _importer(scan))


def _reads_geometry(config: UnScene3DConfig) -> bool:
    """Whether the pseudo masks need a network for 3D features."""
    method = config.pseudo_masks.method
    if method == "training_free":
        return False
    return "3d" in getattr(config.pseudo_masks, method).affinity.weights()


@dataclass(frozen=True, slots=True)
class Finding:
    """Which scans lack what a step makes, and the commands for it."""

    step: Step
    missing: list[str]
    commands: list[str]


def find_missing(scans: Sequence[Scan], looked_for: Sequence[Step]) -> list[Finding]:
    """One finding for each step; what cannot be read counts as missing."""
    findings = []
    for step in looked_for:
        missing = [scan for scan in scans if not _is_made(step, scan)]
        commands = list(dict.fromkeys(step.command(scan) for scan in missing))
        findings.append(Finding(step, [scan.name for scan in missing], commands))
    return findings


def _is_made(step: Step, scan: Scan) -> bool:
    try:
        return step.is_made(scan)
    except (InputError, OSError):
        return False


def show(findings: Sequence[Finding], scan_count: int, console: Console) -> None:
    """Prints a table, then what to run."""
    table = Table("", "there", "missing")
    for finding in findings:
        names = ", ".join(finding.missing[:SHOWN_NAMES])
        names += ", ..." if len(finding.missing) > SHOWN_NAMES else ""
        what = finding.step.what + (" (optional)" if finding.step.is_optional else "")
        table.add_row(what, f"{scan_count - len(finding.missing)} of {scan_count}", names)
    console.print(table)
    for finding in findings:
        if finding.missing and not finding.step.is_optional:
            console.print(f"{finding.step.what} of {len(finding.missing)} scans:")
            for command in finding.commands:  # never wrapped, so that it can be copied
                console.print(f"  {command}", soft_wrap=True, highlight=False, markup=False)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a part is missing, 2 for an argument."""
    parser = argparse.ArgumentParser(prog="python -m training.scans.check", description=__doc__)
    parser.add_argument("library", type=Path, metavar="LIBRARY")
    parser.add_argument("--split", default="", metavar="NAME", help="only these scans")
    add_recipe_options(parser)
    options = parser.parse_args(arguments)
    try:
        config = chosen_recipe(options)
        library = Library(options.library)
        scans = [library.scan(name) for name in library.names(options.split)]
        if not scans:
            raise InputError(f"library {library.root}: expected scans in it, got none")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    findings = find_missing(scans, steps(library, config, _recipe_options(options)))
    show(findings, len(scans), Console())
    for scan in scans:
        for problem in ImportReport.load(scan.folder).problems:
            print(f"incomplete: {scan.name}: {problem}", file=sys.stderr)
    return 1 if any(found.missing and not found.step.is_optional for found in findings) else 0


def _recipe_options(options: argparse.Namespace) -> str:
    """The options that chose the recipe, as they are typed, with a space before each."""
    words = [] if options.recipe == "default" else ["--recipe", options.recipe]
    words += ["--config", str(options.config)] if options.config else []
    for assignment in options.assignments:
        words += ["--set", assignment]
    return "".join(f" {shlex.quote(word)}" for word in words)


if __name__ == "__main__":
    sys.exit(main())
