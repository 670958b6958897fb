"""Counts what a node could not use and says why, without flooding the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from unscene_ros.synchronization import Drops

WARNING_PERIOD_S = 5.0


class DropLog(Drops):
    """Drops that warn: each reason at once and then at most once in WARNING_PERIOD_S.

    Safe to use from several threads.
    """

    def __init__(
        self, warn: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._warn = warn
        self._clock = clock
        self._warned_at: dict[str, float] = {}
        self._reported: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, reason: str, explanation: str) -> None:
        """Counts one drop; `explanation` says what was wrong and what to do."""
        with self._lock:
            super().add(reason, explanation)
        self.warn(f"dropped, {reason}", f"{explanation} ({self.counts[reason]} so far)")

    def warn(self, subject: str, text: str) -> None:
        """Warns without counting, as seldom for each subject."""
        with self._lock:
            now = self._clock()
            if now - self._warned_at.get(subject, -WARNING_PERIOD_S) < WARNING_PERIOD_S:
                return
            self._warned_at[subject] = now
        self._warn(f"{subject}: {text}")

    def news(self) -> str:
        """What was dropped since the last call, in one line; empty when nothing was."""
        with self._lock:
            counts, before = dict(self.counts), self._reported
            self._reported = counts
        new = {reason: count - before.get(reason, 0) for reason, count in counts.items()}
        listed = ", ".join(f"{count} {reason}" for reason, count in new.items() if count)
        return f"dropped: {listed}" if listed else ""
