"""Counts what a node could not use and says why, without flooding the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from unscene_ros.nodes.diagnostics import Problem
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
        self._newest: dict[str, tuple[float, str]] = {}  # by reason: when, and its explanation
        self._lock = threading.Lock()

    def add(self, reason: str, explanation: str) -> None:
        """Counts one drop; `explanation` says what was wrong and what to do."""
        with self._lock:
            super().add(reason, explanation)
            self._newest[reason] = self._clock(), explanation
        self.warn(f"dropped, {reason}", f"{explanation} ({self.counts[reason]} so far)")

    def warn(self, subject: str, text: str) -> None:
        """Warns without counting, as seldom for each subject."""
        with self._lock:
            now = self._clock()
            if now - self._warned_at.get(subject, -WARNING_PERIOD_S) < WARNING_PERIOD_S:
                return
            self._warned_at[subject] = now
        self._warn(f"{subject}: {text}")

    def recent(self, period_s: float) -> dict[str, str]:
        """The newest explanation of each reason that left something out in the last period."""
        with self._lock:
            since = self._clock() - period_s
            return {reason: text for reason, (at, text) in self._newest.items() if at >= since}

    def news(self) -> list[Problem]:
        """A warning of what was dropped since the last call, in one line; none for nothing."""
        with self._lock:
            counts, before = dict(self.counts), self._reported
            self._reported = counts
        new = {reason: count - before.get(reason, 0) for reason, count in counts.items()}
        listed = ", ".join(f"{count} {reason}" for reason, count in new.items() if count)
        return [Problem("warn", f"dropped: {listed}")] if listed else []
