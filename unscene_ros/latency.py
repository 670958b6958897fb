"""How long each stage takes: measured around the work, summed up as percentiles."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

NEWEST_KEPT = 10_000  # durations of each stage, so that memory stays bounded on a long drive


class Latency:
    """Durations by stage name; the newest of each stage count. Safe to use from several threads."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, deque[float]] = defaultdict(
            lambda: deque(maxlen=NEWEST_KEPT)
        )

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the wall time of the block, also when the block raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Adds a duration that was measured elsewhere."""
        self._seconds[stage].append(seconds)

    def summary(self) -> dict[str, dict[str, float]]:
        """{stage: {"p50", "p95", "max"}} in milliseconds, stages in the order of first use."""
        return {stage: _summary_ms(list(kept)) for stage, kept in list(self._seconds.items())}


def _summary_ms(seconds: list[float]) -> dict[str, float]:
    milliseconds = np.array(seconds) * 1000
    p50, p95 = np.percentile(milliseconds, (50, 95))
    values = {"p50": p50, "p95": p95, "max": milliseconds.max()}
    return {name: round(float(value), 3) for name, value in values.items()}
