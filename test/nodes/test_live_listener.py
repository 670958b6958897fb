"""What the listener remembers does not grow; the maps it keeps on disk come back as they were."""

import numpy as np
import pytest
from small_report import two_tiles

from unscene_ros.nodes.demo import live_listener
from unscene_ros.nodes.demo.live_listener import _Arrivals, _PictureTimes
from unscene_ros.nodes.demo.received_maps import ReceivedMaps
from unscene_ros.nodes.demo.side_by_side import side_by_side
from unscene_ros.scene import InputError


def test_a_result_is_as_late_as_the_first_picture_of_its_stamp_or_later():
    pictures = _PictureTimes()
    assert pictures.seconds_at(7.0) == 0 and pictures.time_of(0) is None
    for stamp_ns, at in ((100, 5.0), (200, 5.5), (300, 6.0)):
        pictures.add(stamp_ns, at)
    assert [pictures.time_of(stamp_ns) for stamp_ns in (50, 200, 201, 301)] == [5.0, 5.5, 6.0, None]
    assert pictures.seconds_at(6.0) == 1.0


def test_old_pictures_are_forgotten_except_when_the_first_came(monkeypatch):
    monkeypatch.setattr(live_listener, "NEWEST_PICTURES", 10)
    pictures = _PictureTimes()
    for number in range(1000):
        pictures.add(number, 2.0 * number)
    assert len(pictures._times) == len(pictures._stamps_ns) <= 20
    assert pictures.time_of(995) == 1990 and pictures.seconds_at(4.0) == 4
    assert pictures.time_of(999 - 10) == 1978


def test_the_rate_of_a_topic_is_that_between_its_messages():
    arrivals = _Arrivals()
    assert (arrivals.count, arrivals.rate_hz) == (0, 0)
    for at in (10.0, 10.4, 11.0):
        arrivals.add(at)
    assert (arrivals.count, arrivals.rate_hz) == (3, 2)


def test_maps_come_back_from_the_disk_in_order(tmp_path):
    maps, tiles = ReceivedMaps(tmp_path), two_tiles()
    assert list(maps) == []
    for second in range(3):
        maps.add(tiles, second, second + 0.5)
    assert len(maps) == 3
    for second, (prediction, picture_s, result_s) in enumerate(maps):
        assert (picture_s, result_s) == (second, second + 0.5)
        assert np.array_equal(prediction.mesh.vertices, tiles.mesh.vertices)
        assert np.array_equal(prediction.segments.of_vertex, tiles.segments.of_vertex)
        assert np.array_equal(prediction.instances.masks, tiles.instances.masks)
        assert np.array_equal(prediction.instances.scores, tiles.instances.scores)
        assert np.array_equal(prediction.track_ids, tiles.track_ids)


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        ReceivedMaps(tmp_path / "missing").add(two_tiles(), 0, 0)


def test_runs_stand_side_by_side_with_their_gap():
    def run(used, ap50, switches):
        return {
            "frames": {"read": 10, "used": used},
            "evaluation": {"ap": 0.5, "ap50": ap50, "ap25": 1.0},
            "quality_over_time": {"summary": {"id_switches_per_object": switches}},
        }

    beside = side_by_side(run(8, 0.5, None), run(10, 0.75, 2.0))
    assert beside["drop_share"]["gap"] == pytest.approx(0.2)
    assert beside["ap50"] == {"live": 0.5, "offline": 0.75, "gap": -0.25}
    assert beside["id_switches_per_object"] == {"live": None, "offline": 2.0, "gap": None}
