"""Latency summaries against hand-computed percentiles."""

import time

import pytest

from unscene_ros.latency import NEWEST_KEPT, Latency


def test_summary_gives_percentiles_in_milliseconds():
    latency = Latency()
    for seconds in (0.005, 0.001, 0.002, 0.003, 0.004):
        latency.add("fusion", seconds)
    assert latency.summary() == {
        "fusion": {"p50": pytest.approx(3), "p95": pytest.approx(4.8), "max": pytest.approx(5)}
    }


def test_nothing_measured_gives_an_empty_summary():
    assert Latency().summary() == {}


def test_stages_keep_the_order_of_their_first_use():
    latency = Latency()
    for stage in ("tracking", "fusion", "tracking"):
        with latency.measure(stage):
            pass
    assert list(latency.summary()) == ["tracking", "fusion"]


def test_measure_counts_at_least_the_time_of_the_block_even_when_it_raises():
    latency = Latency()
    with pytest.raises(RuntimeError), latency.measure("broken"):
        time.sleep(0.02)
        raise RuntimeError
    assert latency.summary()["broken"]["max"] >= 20


def test_only_the_newest_durations_are_kept():
    latency = Latency()
    latency.add("fusion", 100.0)
    for _ in range(NEWEST_KEPT):
        latency.add("fusion", 0.001)
    assert latency.summary()["fusion"]["max"] == pytest.approx(1)
