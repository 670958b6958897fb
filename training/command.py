"""What the commands of training share: options, a step over all scans, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.fan_out import add_fan_out_options, failures_at_end, for_each
from training.scans.library import Library, Scan
from unscene_ros.scene import InputError

USER_MISTAKE, INTERRUPTED = 2, 130


def exit_code(command: Callable[[], int]) -> int:
    """What the command returns; 2 after a user's mistake and 130 after Ctrl-C, with a sentence."""
    try:
        return command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return INTERRUPTED


def step_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a step over the scans of a library: which ones, and where it runs."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("library", type=Path, metavar="LIBRARY")
    parser.add_argument("--split", default="", metavar="NAME", help="only these scans")
    add_fan_out_options(parser)
    return parser


def add_settings_option(parser: argparse.ArgumentParser, example: str) -> None:
    """Adds --set, for `from_assignments`."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help=f"a setting, for example {example}; may be repeated",
    )  # fmt: skip


def chosen_scans(options: argparse.Namespace) -> list[Scan]:
    """The scans that the options of `step_parser` name; raises InputError."""
    library = Library(options.library)
    return [library.scan(name) for name in library.names(options.split)]


def over_scans(
    options: argparse.Namespace,
    work: Callable[[Any], None],
    title: str,
    is_made: Callable[[Any], bool] | None = None,
) -> int:
    """Does the step for each scan, as the options of `step_parser` say; 1 when one failed."""
    items = [(scan.name, scan) for scan in chosen_scans(options)]
    return failures_at_end(for_each(items, work, options.workers, options.ray, title, is_made))
