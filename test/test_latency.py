"""Latency summaries against hand-computed percentiles."""

import json
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


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_rate_and_percentiles_are_of_the_recent_past_alone():
    clock = Clock()
    latency = Latency(clock)
    latency.add("fusion", 9.0)
    latency.add("meshing", 9.0)
    for clock.now in range(1, 31):
        latency.add("fusion", clock.now / 1000)
    assert latency.recent(10.0) == {
        "fusion": {"rate_hz": 1.0, "p50_ms": pytest.approx(25.5), "p95_ms": pytest.approx(29.55)},
        "meshing": {"rate_hz": 0.0},
    }


def test_the_rate_of_a_run_shorter_than_the_period_counts_the_time_it_has_lasted():
    clock = Clock()
    latency = Latency(clock)
    for clock.now in (0.5, 1.0, 1.5, 2.0):
        latency.add("fusion", 0.1)
    assert latency.recent(10.0)["fusion"]["rate_hz"] == 2.0


def test_a_block_is_recent_by_its_end():
    clock = Clock()
    latency = Latency(clock)
    with latency.measure("segmentation"):
        clock.now = 60.0
    assert latency.recent(10.0)["segmentation"]["p50_ms"] == pytest.approx(60_000)


def test_only_the_newest_durations_are_kept():
    latency = Latency()
    latency.add("fusion", 100.0)
    for _ in range(NEWEST_KEPT):
        latency.add("fusion", 0.001)
    assert latency.summary()["fusion"]["max"] == pytest.approx(1)


def test_the_summary_is_saved_as_json(tmp_path):
    latency = Latency()
    latency.add("fusion", 0.25)
    told = latency.save(tmp_path / "timings.json")
    assert json.loads((tmp_path / "timings.json").read_text()) == latency.summary()
    assert told == f"1 stages in {tmp_path / 'timings.json'}"
