import threading
import time

import pytest

from unscene_ros.nodes.newest_worker import NewestWorker


class Gate:
    """Work that waits until it is let through, and remembers what happened."""

    def __init__(self):
        self.open = threading.Event()
        self.started = threading.Semaphore(0)
        self.done, self.dropped, self.failed = [], [], []

    def work(self, item):
        self.started.release()
        assert self.open.wait(5)
        if item == "bad":
            raise ValueError("a bad item")
        self.done.append(item)

    def worker(self, capacity=1, **more):
        return NewestWorker(
            "test",
            self.work,
            self.dropped.append,
            lambda item, error: self.failed.append((item, str(error))),
            capacity,
            **more,
        )


def wait_until_idle(worker):
    end = time.monotonic() + 5
    while worker.pending:
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("capacity", "done", "dropped"), [(1, [0, 4], [1, 2, 3]), (2, [0, 3, 4], [1, 2])]
)
def test_while_it_works_only_the_newest_items_wait(capacity, done, dropped):
    gate = Gate()
    worker = gate.worker(capacity)
    worker.submit(0)
    gate.started.acquire(timeout=5)
    for item in (1, 2, 3, 4):
        worker.submit(item)
    assert worker.pending == 1 + capacity
    gate.open.set()
    wait_until_idle(worker)
    assert gate.done == done
    assert gate.dropped == dropped
    assert worker.stop()


@pytest.mark.parametrize(
    ("late", "in_time", "done", "dropped"),
    [([1, 2], [3], [0, 3], [1, 2]), ([1, 2], [], [0, 2], [1])],
)
def test_what_waits_too_long_is_dropped_for_newer_items_but_never_the_newest(
    late, in_time, done, dropped
):
    gate = Gate()
    worker = gate.worker(capacity=10, patience_s=0.2)
    worker.submit(0)
    gate.started.acquire(timeout=5)
    for item in late:
        worker.submit(item)
    time.sleep(0.3)
    for item in in_time:
        worker.submit(item)
    gate.open.set()
    wait_until_idle(worker)
    assert gate.done == done
    assert gate.dropped == dropped
    assert worker.stop()


def test_a_burst_is_worked_on_whole():
    gate = Gate()
    gate.open.set()
    worker = gate.worker(capacity=30, patience_s=5.0)
    for item in range(30):
        worker.submit(item)
    wait_until_idle(worker)
    assert gate.done == list(range(30))
    assert worker.stop()


def test_an_error_costs_one_item_and_not_the_thread():
    gate = Gate()
    gate.open.set()
    worker = gate.worker(capacity=10)
    for item in ("bad", "good", "bad", "better"):
        worker.submit(item)
    wait_until_idle(worker)
    assert gate.done == ["good", "better"]
    assert gate.failed == [("bad", "a bad item")] * 2
    assert worker.stop()


def test_any_item_is_worked_on_also_none():
    gate = Gate()
    gate.open.set()
    worker = gate.worker(capacity=3)
    for item in (None, 0, None):
        worker.submit(item)
    wait_until_idle(worker)
    assert gate.done == [None, 0, None]
    assert worker.stop()


def test_stop_finishes_the_current_item_and_drops_the_rest():
    gate = Gate()
    worker = gate.worker(capacity=5)
    worker.submit(0)
    gate.started.acquire(timeout=5)
    worker.submit(1)
    threading.Timer(0.05, gate.open.set).start()
    assert worker.stop()
    worker.submit(2)
    assert gate.done == [0]
    assert gate.dropped == [1, 2]


def test_a_hanging_item_does_not_hang_stop():
    gate = Gate()
    worker = gate.worker()
    worker.submit(0)
    gate.started.acquire(timeout=5)
    assert not worker.stop(timeout_s=0.05)
    gate.open.set()
