from unscene_ros.nodes.diagnostics import Problem
from unscene_ros.nodes.drop_log import WARNING_PERIOD_S, DropLog


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_every_drop_counts_but_a_reason_warns_once_in_a_period():
    clock, warnings = Clock(), []
    drops = DropLog(warnings.append, clock)
    for _ in range(3):
        drops.add("no transform", "frame 'camera' is unknown")
    drops.add("too slow", "newer frames were waiting")
    assert drops.counts == {"no transform": 3, "too slow": 1}
    assert len(warnings) == 2
    assert "frame 'camera' is unknown" in warnings[0]
    clock.now = WARNING_PERIOD_S
    drops.add("no transform", "still unknown")
    assert len(warnings) == 3
    assert "still unknown (4 so far)" in warnings[2]


def test_a_warning_without_a_drop_is_not_counted():
    warnings = []
    drops = DropLog(warnings.append, Clock())
    drops.warn("CameraInfo", "is missing")
    assert warnings == ["CameraInfo: is missing"]
    assert drops.counts == {}


def test_news_are_what_was_dropped_since_the_last_news():
    drops = DropLog(lambda text: None)
    assert drops.news() == []
    drops.add("no transform", "")
    drops.add("no transform", "")
    assert drops.news() == [Problem("warn", "dropped: 2 no transform")]
    assert drops.news() == []
    drops.add("too slow", "")
    assert drops.news() == [Problem("warn", "dropped: 1 too slow")]


def test_recent_are_the_reasons_of_the_last_seconds_each_with_its_newest_explanation():
    clock = Clock()
    drops = DropLog(lambda text: None, clock)
    drops.add("too slow", "long ago")
    drops.add("no transform", "first")
    clock.now = 10.0
    drops.add("no transform", "second")
    assert drops.recent(5.0) == {"no transform": "second"}
