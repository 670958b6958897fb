"""Runs every `bench_*.py` beside this file: one table, and all rows in output/bench.json.

A bench file has `rows()`, which returns or yields dictionaries with the keys of ROW, and more where
words belong to the figure; the commit is added. One that fails does not stop the others, but the
exit code is then 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import ROW, LeftOut
from unscene_ros.provenance import git_commit, machine

HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "output" / "bench.json"


@dataclass
class Results:
    """What the bench files gave: rows, and one sentence for each that is missing."""

    commit: str | None = None
    rows: list[dict] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def run(self, name: str) -> None:
        """Adds the rows of module `benchmarks.bench_<name>`."""
        try:
            for row in importlib.import_module(f"benchmarks.bench_{name}").rows():
                if not set(ROW) <= set(row):
                    raise ValueError(f"expected a row with {', '.join(ROW)}, got {row}")
                plain = json.loads(json.dumps(row, default=float))  # no numpy numbers
                self.rows.append(plain | {"commit": self.commit})
        except LeftOut as reason:
            self.left_out.append(f"{name}: {reason}")
        except Exception as error:  # whatever a stage may raise; the other stages still count
            Console(stderr=True).print_exception()
            self.failed.append(f"{name}: {type(error).__name__}: {error}")


def available() -> list[str]:
    """The stages that have a bench file."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def table(rows: list[dict], title: str) -> Table:
    """The rows for people: four digits, and nothing where there is no peer."""
    result = Table(title=title, title_justify="left")
    for key in ROW:
        wide = key in ("unit", "peer")
        result.add_column(key.replace("_", " "), overflow="fold", no_wrap=not wide)
    for row in rows:
        cells = [row[key] for key in ROW]
        result.add_row(
            *("" if c is None else f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells)
        )
    return result


def measure(names: list[str], output: Path, console: Console) -> Results:
    """Runs the bench files one by one; the rows so far are always in `output`."""
    results = Results(git_commit())
    output.parent.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names, 1):
        start = time.perf_counter()
        with console.status(f"{name} ({index} of {len(names)})"):
            results.run(name)
        console.print(f"{name}: {time.perf_counter() - start:.0f} s ({index} of {len(names)})")
        output.write_text(json.dumps(results.rows, indent=1) + "\n")
    return results


def chosen(words: str) -> list[str]:
    """The stages whose names contain one of the comma-separated words."""
    names = available()
    for word in words.split(","):
        if not any(word in name for name in names):
            raise argparse.ArgumentTypeError(f"nothing is named {word}: {', '.join(names)}")
    return [name for name in names if any(word in name for word in words.split(","))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", type=chosen, metavar="WORD,...", help="only stages named so")
    names = parser.parse_args().only or available()

    console = Console(width=max(120, Console().width))  # the table needs it, also in a log
    title = f"{machine()}, load {os.getloadavg()[0]:.1f}"
    results = measure(names, OUTPUT, console)
    console.print(table(results.rows, title))
    for line in results.left_out:
        console.print(f"left out: {line}", style="yellow", markup=False)
    for line in results.failed:
        console.print(f"failed: {line}", style="red", markup=False)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
