"""How long each stage takes: measured around the work, summed up as percentiles."""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from unscene_ros.storage import whole_file

NEWEST_KEPT = 10_000  # durations of each stage, so that memory stays bounded on a long drive


class Latency:
    """Durations by stage name; the newest of each stage count. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        # Stage -> when each of its durations ended, and the duration, both in seconds.
        self._measured: defaultdict[str, deque[tuple[float, float]]] = defaultdict(
            lambda: deque(maxlen=NEWEST_KEPT)
        )

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the wall time of the block, also when the block raises."""
        start = self._clock()
        try:
            yield
        finally:
            self.add(stage, self._clock() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Adds a duration that was measured elsewhere."""
        self._measured[stage].append((self._clock(), seconds))

    def summary(self) -> dict[str, dict[str, float]]:
        """{stage: {"p50", "p95", "max"}} in milliseconds, stages in the order of first use."""
        return {
            stage: _summary_ms([seconds for _, seconds in list(measured)])
            for stage, measured in list(self._measured.items())
        }

    def save(self, path: Path) -> str:
        """Writes the summary as JSON and says so; raises InputError when it cannot."""
        summary = self.summary()
        with whole_file(path) as file:
            file.write(json.dumps(summary, indent=1).encode())
        return f"{len(summary)} stages in {path}"

    def recent(self, period_s: float) -> dict[str, dict[str, float]]:
        """{stage: {"rate_hz", "p50_ms", "p95_ms"}} of what ended in the last `period_s`.

        A stage in which nothing ended has the rate 0 alone.
        """
        now = self._clock()
        lasted_s = min(period_s, max(now - self._start, 1.0))  # one event is no rate of 1000 Hz
        figures = {}
        for stage, measured in list(self._measured.items()):
            seconds = [seconds for at, seconds in list(measured) if at > now - period_s]
            figures[stage] = {"rate_hz": round(len(seconds) / lasted_s, 3) if seconds else 0.0}
            if seconds:
                summary = _summary_ms(seconds)
                figures[stage] |= {"p50_ms": summary["p50"], "p95_ms": summary["p95"]}
        return figures


def _summary_ms(seconds: list[float]) -> dict[str, float]:
    milliseconds = np.array(seconds) * 1000
    p50, p95 = np.percentile(milliseconds, (50, 95))
    values = {"p50": p50, "p95": p95, "max": milliseconds.max()}
    return {name: round(float(value), 3) for name, value in values.items()}
