"""Methods and the scans of a split that have labels -> one table of average precision.

All rows are judged in one run, on the same scans; those of self-training runs say which round is
the result and, apart, which one the labels would have chosen.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import track
from rich.table import Table

from training.command import chosen_scans, exit_code
from training.fan_out import Failure
from training.probes.labels import labelled_hash, labelled_scans, read_labels
from training.probes.rows import METHODS, Row, parse_rows
from training.scans.library import Scan
from unscene_ros.evaluation import Grid, Protocol, evaluate
from unscene_ros.provenance import provenance
from unscene_ros.scene import InputError
from unscene_ros.storage import prepare_output_folder, whole_file

FIGURES = {"ap": "AP", "ap50": "AP50", "ap25": "AP25"}

log = logging.getLogger(__name__)


def measure(row: Row, scans: Sequence[Scan], protocol: Protocol, grid: Grid) -> dict[str, Any]:
    """A row's figures, as those of `evaluate`, on all scans together, and the median seconds.

    Raises InputError when the method cannot be loaded or, naming the scan, fails on one of them.
    """
    pairs, seconds, find = [], [], row.prepare()
    console = Console(stderr=True)
    for scan in track(scans, row.name, console=console, disable=not console.is_terminal):
        try:
            found = find(scan, scan.mesh())
            pairs.append((found.prediction, read_labels(scan)))
        except Exception as error:
            if not isinstance(error, InputError):
                log.exception("%s: scan %s", row.name, scan.name)
            reason = error if isinstance(error, InputError) else repr(error)
            raise InputError(f"on scan {scan.name}: {reason}") from error
        if found.seconds is not None:
            seconds.append(found.seconds)
    median = statistics.median(seconds) if seconds else None
    return evaluate(pairs, protocol, grid) | {"seconds_per_scan": median}


def measure_rows(
    rows: Sequence[Row],
    scans: Sequence[Scan],
    about: dict[str, Any],
    path: Path,
    protocol: Protocol = "clean",
    grid: Grid = "scannet",
) -> list[dict[str, Any]]:
    """The lines of all rows; a row that fails has "error" instead of figures.

    path: a JSON file of `about` and the lines, written anew after each row.
    """
    lines: list[dict[str, Any]] = []
    for row in rows:
        line: dict[str, Any] = {"name": row.name, "method": row.method, "origin": dict(row.origin)}
        try:
            line |= measure(row, scans, protocol, grid)
        except InputError as error:
            line["error"] = str(error)
            print(f"failed: {row.name}: {error}", file=sys.stderr)
        lines.append(line)
        _mark(rows, lines)
        with whole_file(path) as file:
            file.write(json.dumps(about | {"rows": lines}, indent=1).encode())
    return lines


def _mark(rows: Sequence[Row], lines: Sequence[dict[str, Any]]) -> None:
    """Says in "mark" which round is a run's result and, apart, which one the labels like best."""
    best: dict[str, int] = {}
    for index, (row, line) in enumerate(zip(rows, lines, strict=False)):  # not all are measured
        line["mark"] = "result" if row.its_result else ""
        if row.run and line.get("ap") is not None:
            known = best.setdefault(row.run, index)
            best[row.run] = index if line["ap"] >= lines[known]["ap"] else known
    for index in best.values():
        lines[index]["mark"] = lines[index]["mark"] or "oracle best, not chosen"


def table_of(lines: Sequence[dict[str, Any]], title: str) -> Table:
    """The lines to read: figures in percent."""
    headings = ("", *FIGURES.values(), "masks", "objects", "s a scan", "")
    table = Table(*headings, title=title)
    for line in lines:
        if "error" in line:
            table.add_row(line["name"], "failed")
            continue
        figures = (line[figure] for figure in FIGURES)
        percents = ("-" if value is None else f"{100 * value:.1f}" for value in figures)
        seconds = line["seconds_per_scan"]
        table.add_row(
            line["name"],
            *percents,
            str(line["predictions"]),
            str(line["objects"]),
            "-" if seconds is None else f"{seconds:.2f}",
            line["mark"],
        )
    return table


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when rows or scans failed, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m training.probes.average_precision",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure class-agnostic average precision of many methods on the labelled "
        "scans of a split.\nROW is NAME=METHOD, in quotes with settings: 'shown=training-free "
        f"min_score=0.5'. Methods:\n\n{METHODS}",
    )
    parser.add_argument("library", type=Path, metavar="LIBRARY")
    parser.add_argument("rows", nargs="+", metavar="ROW")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--split", default="", metavar="NAME", help="only these scans")
    parser.add_argument(
        "--protocol", choices=get_args(Protocol), default="clean",
        help="compat: with the walls as one more object, as the tables of UnScene3D",
    )  # fmt: skip
    parser.add_argument(
        "--grid", choices=get_args(Grid), default="scannet",
        help="overlaps that AP is the mean of: full goes up to 95 %%, scannet to 90 %%",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    return exit_code(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    rows = [row for text in options.rows for row in parse_rows(text)]
    _check_names(rows)
    known = chosen_scans(options)
    scans, unusable = labelled_scans(known)
    prepare_output_folder(options.output.parent)
    about = _about(options, scans, unusable)
    lines = measure_rows(rows, scans, about, options.output, options.protocol, options.grid)
    title = f"{len(scans)} of {len(known)} scans, %, {options.protocol}, {options.grid}"
    Console().print(table_of(lines, title))
    for failure in unusable:
        print(f"left out: {failure.name}: {failure.message}", file=sys.stderr)
    return 1 if unusable or any("error" in line for line in lines) else 0


def _about(
    options: argparse.Namespace, scans: Sequence[Scan], unusable: Sequence[Failure]
) -> dict[str, Any]:
    """What all rows have in common."""
    return {
        "library": str(options.library),
        "split": options.split,
        "scans": {scan.name: labelled_hash(scan) for scan in scans},
        "left_out": {failure.name: failure.message for failure in unusable},
        "provenance": provenance(),
    }


def _check_names(rows: Sequence[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        if not row.name or row.name in seen:
            raise InputError(f"rows: expected each with a name of its own, got '{row.name}'")
        seen.add(row.name)


if __name__ == "__main__":
    sys.exit(main())
