"""The same step over many scans: here, on all cores of this machine, or on many machines by Ray.

What fails is noted and the others go on. A worker that dies, killed when memory runs out for
instance, costs only what it was at: that is tried once more when all others are done.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.crews import (
    LOCAL,
    Crew,
    Item,
    Processes,
    RayCluster,
    ThisProcess,
    Trouble,
    Work,
    core_count,
)
from unscene_ros.scene import InputError

log = logging.getLogger(__name__)

_LINE_EVERY_S = 30  # of progress, where there is no terminal


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be done, and why in one sentence."""

    name: str
    message: str


def for_each(
    items: Sequence[Item],
    work: Work,
    workers: int = 1,
    ray: str | None = None,
    title: str = "scans",
    is_made: Callable[[Any], bool] | None = None,
) -> list[Failure]:
    """Calls `work(argument)` for each (name, argument); returns the failures, in the items' order.

    work: a picklable function that writes its result, whole or not at all. is_made(argument) says
    whether that is there already; such items are left out. workers: 1 works in this process, more
    in processes of their own that share the cores, 0 in one for each core. ray: the address of a
    cluster, all of whose CPUs are used instead; see `add_fan_out_options`.
    Raises InputError for names that are not unique, a wrong number of workers and a cluster that
    cannot be reached. KeyboardInterrupt stops the workers at once and is raised on.
    """
    _check_names(items, title)
    missing = [item for item in items if not _is_made(item, is_made)]
    messages: dict[str, str] = {}
    if not missing:
        print(f"{title}: nothing to do, all {len(items)} are made", file=sys.stderr)
    else:
        with (
            closing(_crew(work, workers, ray, len(missing))) as crew,
            _progress(title, len(items), len(items) - len(missing)) as advance,
        ):
            for (name, _), trouble in _attempts(missing, crew, is_made):
                if trouble:
                    messages[name] = trouble.message
                    if trouble.traceback:
                        log.error("%s: %s", name, trouble.traceback)
                advance(bool(trouble))
    return [Failure(name, messages[name]) for name, _ in items if name in messages]


def add_fan_out_options(parser: argparse.ArgumentParser) -> None:
    """Adds --workers and --ray, for `for_each`."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=int, default=1, metavar="N",
        help="processes on this machine, each of which needs memory for a scan; 0: one for each "
        "core; default 1, this process",
    )  # fmt: skip
    where.add_argument(
        "--ray", metavar="ADDRESS",
        help=f"work on a Ray cluster instead: HOST:PORT of its head, or '{LOCAL}' for one on this "
        "machine alone; all its machines need this package and the same folders",
    )  # fmt: skip


def failures_at_end(failures: Sequence[Failure]) -> int:
    """Prints what failed to stderr; returns the exit code, 1 when anything did."""
    for failure in failures:
        print(f"failed: {failure.name}: {failure.message}", file=sys.stderr)
    if failures:
        print(
            f"{len(failures)} failed; the same command again makes only what is missing",
            file=sys.stderr,
        )
    return 1 if failures else 0


def _check_names(items: Sequence[Item], title: str) -> None:
    seen: set[str] = set()
    for name, _ in items:
        if name in seen:  # two workers would write the same file
            raise InputError(f"{title}: expected every name once, got {name} twice")
        seen.add(name)


def _is_made(item: Item, is_made: Callable[[Any], bool] | None) -> bool:
    if is_made is None:
        return False
    try:
        return is_made(item[1])
    except (InputError, OSError):  # of a scan without a mesh, for instance: the work will say so
        return False


def _attempts(
    items: Sequence[Item], crew: Crew, is_made: Callable[[Any], bool] | None
) -> Iterator[tuple[Item, Trouble | None]]:
    """Every item with how it ended, as they end; those whose worker died twice last."""
    died = []
    for item, trouble in _in_turn(items, crew):
        if trouble and trouble.died:
            log.warning("%s: %s; it is tried again at the end", item[0], trouble.message)
            died.append(item)
        else:
            yield item, trouble
    lost = []
    for item in died:
        if _is_made(item, is_made):  # it had written its result before it died
            yield item, None
        else:
            lost.append(item)
    yield from _in_turn(lost, crew, again=True)


def _in_turn(
    items: Sequence[Item], crew: Crew, again: bool = False
) -> Iterator[tuple[Item, Trouble | None]]:
    waiting, running = deque(items), 0
    while waiting or running:
        while waiting and running < (crew.size_again if again else crew.size):
            crew.start(waiting.popleft())
            running += 1
        yield crew.next_finished()
        running -= 1


def _crew(work: Work, workers: int, ray: str | None, item_count: int) -> Crew:
    if ray is not None:
        return RayCluster(work, ray)
    if workers < 0:
        raise InputError(f"--workers: expected 0 (one for each core) or more, got {workers}")
    if workers == 1:
        return ThisProcess(work)
    return Processes(work, min(workers or core_count(), item_count))


@contextmanager
def _progress(title: str, total: int, made: int) -> Iterator[Callable[[bool], None]]:
    """A bar with the time left on a terminal, elsewhere a line now and then, both on stderr.

    Gives a function to call when an item has ended, with whether it failed.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]} failed"),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=3600,  # an item may take minutes
    )
    next_line = time.monotonic() + _LINE_EVERY_S
    with bar:
        key = bar.add_task(title, total=total, completed=made, failed=0)
        task = bar.tasks[0]

        def advance(failed: bool) -> None:
            nonlocal next_line
            bar.update(key, advance=1, failed=task.fields["failed"] + failed)
            if not console.is_terminal and (task.finished or time.monotonic() > next_line):
                next_line = time.monotonic() + _LINE_EVERY_S
                left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
                counts = f"{task.completed:.0f} of {total}, {task.fields['failed']} failed"
                print(f"{title}: {counts}{left}", file=sys.stderr)

        yield advance
