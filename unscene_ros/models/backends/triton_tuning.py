"""The fastest configuration of a kernel on this GPU: measured once, then read from a file.

The file is unscene_ros/triton.json in $XDG_CACHE_HOME, else in ~/.cache. It belongs to one version
of Triton and of the kernels; another version starts it afresh.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

log = logging.getLogger(__name__)


class Config(NamedTuple):
    """How a kernel cuts its work; every choice gives the same result up to rounding."""

    rows: int  # target rows of a tile; pairs of one step in the weight gradient
    columns: int  # output channels of one program
    channels: int  # input channels of one step; of one program in the weight gradient
    splits: int  # parts of the sums that are computed side by side
    warps: int
    stages: int  # half of them hold indices: 5 load features two steps ahead, 7 three


# Of (rows, columns, channels, warps, stages).
CONVOLVE_SHAPES = (
    (64, 64, 32, 4, 5),
    (64, 64, 64, 4, 5),
    (64, 128, 32, 4, 7),
    (128, 32, 32, 4, 5),
    (128, 64, 32, 4, 5),
    (128, 128, 32, 8, 5),
    (128, 128, 64, 8, 5),
)
WEIGHT_GRADIENT_SHAPES = (
    (32, 32, 32, 4, 5),
    (32, 64, 64, 4, 5),
    (64, 64, 64, 4, 7),
    (64, 128, 64, 4, 5),
    (64, 128, 128, 8, 5),
)


def convolve_candidates(
    rows: int, cells: int, channels: int, columns: int, processors: int
) -> list[Config]:
    """Configurations worth trying; those with few programs also with the cells split."""
    candidates = []
    for shape in _fitting(CONVOLVE_SHAPES, channels, columns):
        programs = -(-rows // shape.rows) * -(-columns // shape.columns)
        splits = min(8, cells, _power_of_two(2 * processors // programs))
        candidates += [shape, shape._replace(splits=splits)]
    return list(dict.fromkeys(candidates))


def weight_gradient_candidates(
    pairs: int, channels: int, columns: int, processors: int
) -> list[Config]:
    """Configurations worth trying, with about four and sixteen programs per processor."""
    candidates = []
    for shape in _fitting(WEIGHT_GRADIENT_SHAPES, channels, columns):
        blocks = -(-channels // shape.channels) * -(-columns // shape.columns)
        for programs in (4 * processors, 16 * processors):
            splits = min(_power_of_two(programs // blocks), max(1, pairs // shape.rows))
            candidates.append(shape._replace(splits=splits))
    return list(dict.fromkeys(candidates))


def fastest(
    candidates: Iterable[Config], run: Callable[[Config], object], device: torch.device
) -> Config:
    """The candidate whose median of some runs is shortest; those too large are passed over."""
    from triton.runtime.errors import OutOfResources, PTXASError
    from triton.testing import do_bench

    milliseconds: dict[Config, float] = {}
    for config in candidates:
        try:
            with torch.cuda.device(device):
                milliseconds[config] = do_bench(
                    lambda config=config: run(config), warmup=5, rep=20, return_mode="median"
                )
        except (OutOfResources, PTXASError, torch.OutOfMemoryError) as error:
            log.debug("%s: %s", config, error)
    if not milliseconds:
        raise RuntimeError("no configuration of the Triton kernels fits this GPU")
    return min(milliseconds, key=lambda config: milliseconds[config])


class Choices:
    """The configuration chosen for each key, in memory and in the file."""

    def __init__(self, path: Path, version: str) -> None:
        self.path = path
        self.version = version
        self._warned = False
        self._stored = self._read()
        self._chosen: dict[str, Config] = {}

    def choose(
        self,
        key: str,
        candidates: Callable[[], list[Config]],
        measure: Callable[[list[Config]], Config],
    ) -> Config:
        """What was chosen before, here or in an earlier process, else what `measure` chooses."""
        if key not in self._chosen:
            possible = candidates()
            stored = self._stored.get(key)
            if stored not in possible:
                stored = measure(possible)
                log.info("triton: %s: %s", key, stored)
                self._write(key, stored)
            self._chosen[key] = stored
        return self._chosen[key]

    def _read(self) -> dict[str, Config]:
        try:
            content = json.loads(self.path.read_text())
            if content["version"] != self.version:
                return {}
            return {key: Config(**values) for key, values in content["configs"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._warn(f"cannot read {self.path}, going on without it: {error!r}")
            return {}

    def _write(self, key: str, config: Config) -> None:
        # Read again, since other processes write too. A choice lost between them is measured again.
        self._stored = {**self._read(), key: config}
        configs = {key: config._asdict() for key, config in sorted(self._stored.items())}
        text = json.dumps({"version": self.version, "configs": configs}, indent=1)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:
                file.write(text)
            os.replace(file.name, self.path)
        except OSError as error:
            self._warn(f"cannot write {self.path}, every process will measure again: {error!r}")

    def _warn(self, message: str) -> None:
        if not self._warned:
            log.warning("triton: %s", message)
        self._warned = True


def cache_path() -> Path:
    """Where the choices are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / (
        "unscene_ros/triton.json"
    )


def _fitting(
    shapes: Iterable[tuple[int, int, int, int, int]], channels: int, columns: int
) -> list[Config]:
    """The shapes, none larger than the channels ask for; 16 is the least that Triton multiplies."""
    fitting = [
        Config(
            rows,
            min(most_columns, _power_of_two(max(columns, 16))),
            min(most_channels, _power_of_two(max(channels, 16))),
            splits=1,
            warps=warps,
            stages=stages,
        )
        for rows, most_columns, most_channels, warps, stages in shapes
    ]
    return list(dict.fromkeys(fitting))


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below the number, at least 1."""
    return 1 << max(number - 1, 0).bit_length()
