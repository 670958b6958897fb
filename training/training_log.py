"""What a run tells while it learns: log.csv, TensorBoard, and progress on standard error."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from unscene_ros.scene import InputError
from unscene_ros.storage import whole_file

LOG_FILE, TENSORBOARD_FOLDER = "log.csv", "tensorboard"
SECONDS_BETWEEN_LINES = 30.0  # where standard error is no terminal

log = logging.getLogger(__name__)


class TrainingLog:
    """One row a step, whose first column is the step, counted from 1.

    A context manager. Rows after `start`, the step that learning goes on from, are of a run that
    was killed: they are removed, so that no step is there twice.
    """

    def __init__(self, folder: Path, start: int, steps: int) -> None:
        """Raises InputError when the folder cannot be written or log.csv is not a log."""
        self._path = folder / LOG_FILE
        self._columns = _remove_rows_after(self._path, start)
        try:
            self._file = self._path.open("a", newline="", encoding="utf-8", buffering=1)
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written ({error.strerror})") from error
        self._tensorboard = _tensorboard(folder / TENSORBOARD_FOLDER, start)
        self._progress = _Progress(folder.name, start, steps)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def write(self, row: dict[str, float]) -> None:
        """Every row has the columns of the first; raises InputError on a full disk."""
        try:
            writer = csv.writer(self._file, lineterminator="\n")
            if not self._columns:
                self._columns = list(row)
                writer.writerow(self._columns)
            if list(row) != self._columns:
                raise ValueError(
                    f"training log: expected the columns {self._columns}, got {list(row)}: a loss "
                    "has the same parts in every step"
                )
            writer.writerow(row.values())
            if self._tensorboard is not None:
                for name, value in row.items():
                    if name != "step":
                        self._tensorboard.add_scalar(name, value, int(row["step"]))
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written ({error.strerror})") from error
        self._progress.show(row)

    def flush(self) -> None:
        """Whatever happens now, the rows so far are on disk."""
        if self._tensorboard is not None:
            self._tensorboard.flush()


def _remove_rows_after(path: Path, step: int) -> list[str]:
    """The columns of the log; without it, none. A row that a kill cut off goes too."""
    if step == 0 or not path.exists():
        path.unlink(missing_ok=True)
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            columns, *rows = list(csv.reader(file)) or [[]]
        kept = [row for row in rows if len(row) == len(columns) and int(row[0]) <= step]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the log of this run ({error}): delete it") from error
    with whole_file(path) as whole:
        text = "".join(",".join(row) + "\n" for row in [columns, *kept])
        whole.write(text.encode())
    return columns


def _tensorboard(folder: Path, start: int) -> Any:
    """A writer that hides what an earlier process wrote after `start`; None if not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed: the log is in %s alone", LOG_FILE)
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)


class _Progress:
    """A bar with the time that is left; a line now and then where there is no terminal."""

    def __init__(self, title: str, start: int, steps: int) -> None:
        self.console = Console(stderr=True)
        self._start, self._steps = start, steps
        self._started = self._told = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4g}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=steps, completed=start, loss=float("nan"))
        self._bar.start()

    def show(self, row: dict[str, float]) -> None:
        step, now = int(row["step"]), time.monotonic()
        self._bar.update(self._task, completed=step, loss=row["total"])
        if self.console.is_terminal or now - self._told < SECONDS_BETWEEN_LINES:
            return
        self._told = now
        left_s = (now - self._started) / (step - self._start) * (self._steps - step)
        self.console.print(
            f"step {step} of {self._steps}, loss {row['total']:.4g}, "
            f"{row['samples_per_second']:.3g} samples/s, {left_s / 60:.0f} min left",
            highlight=False,
        )

    def close(self) -> None:
        self._bar.stop()
