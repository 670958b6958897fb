"""A thread that works on the newest items and lets older ones go, so that callbacks never wait."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class NewestWorker(Generic[Item]):
    """Calls `work(item)` in a thread of its own; when items come faster, the oldest are dropped.

    capacity: how many items may wait; 1 keeps only the newest, more ride out a slow moment.
    patience_s: how long one may wait while newer ones do, so that the work never lags further.
    on_drop(item) and on_failure(item, error) tell what did not get done; they must return soon.
    An error in `work` costs that one item, never the thread.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Item], None],
        on_drop: Callable[[Item], object],
        on_failure: Callable[[Item, Exception], object],
        capacity: int = 1,
        patience_s: float = math.inf,
    ) -> None:
        self._work = work
        self._on_drop = on_drop
        self._on_failure = on_failure
        self._capacity = capacity
        self._patience_s = patience_s
        self._waiting: deque[tuple[float, Item]] = deque()  # since when, and the item
        self._working = False
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> None:
        """Hands over an item without waiting; after `stop` it is dropped."""
        with self._changed:
            self._waiting.append((time.monotonic(), item))
            dropped = self._take_beyond(0 if self._stopped else self._capacity)
            self._changed.notify_all()
        for old in dropped:
            self._on_drop(old)

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Drops what waits and ends the thread after its current item; True when it has ended."""
        with self._changed:
            self._stopped = True
            dropped = self._take_beyond(0)
            self._changed.notify_all()
        for old in dropped:
            self._on_drop(old)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def pending(self) -> int:
        """How many items wait or are being worked on."""
        with self._changed:
            return len(self._waiting) + self._working

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if not self._waiting:
                    return
                dropped = self._take_impatient()
                _, item = self._waiting.popleft()
                self._working = True
            for old in dropped:
                self._on_drop(old)
            try:
                self._work(item)
            except Exception as error:  # one bad item must not end the thread
                self._on_failure(item, error)
            self._working = False

    def _take_beyond(self, count: int) -> list[Item]:
        """The oldest, until no more than `count` are left."""
        return [self._waiting.popleft()[1] for _ in range(len(self._waiting) - count)]

    def _take_impatient(self) -> list[Item]:
        """Those that have waited too long, though never the newest."""
        latest_s = time.monotonic() - self._patience_s
        late = sum(since_s < latest_s for since_s, _ in self._waiting)
        return self._take_beyond(max(len(self._waiting) - late, 1))
