"""One `bench_<stage>.py` a stage; `make bench` runs them and prints one table."""

import statistics
import time
from collections.abc import Callable

ROW = ("area", "name", "value", "unit", "peer", "peer_value", "ratio", "runs")


class LeftOut(Exception):
    """Raised by `rows` for what cannot be measured here; the message names the rows and says why.

    Rows that were yielded before it count.
    """


def row(
    area: str,
    name: str,
    value: float,
    unit: str,
    runs: int,
    peer: str | None = None,
    peer_value: float | None = None,
    ratio: float | None = None,
) -> dict:
    """One line of the table; `ratio` says how much better than the peer, above 1 for better."""
    values = area, name, value, unit, peer, peer_value, ratio, runs
    return dict(zip(ROW, values, strict=True))


def seconds(work: Callable[[], object], runs: int = 1) -> float:
    """Median time of one call; what compiles on its first call has to be called before."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
