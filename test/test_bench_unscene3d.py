"""The benchmark of training: a whole run on tiny recordings."""

from benchmarks import ROW, bench_unscene3d

from training.scans.rooms import TRAINING_SEEDS, RoomConfig


def test_a_step_and_a_sample_are_rows():
    config = RoomConfig(image_width=64, image_height=48, frame_count=4)
    rows = list(bench_unscene3d.rows(steps=1, config=config))
    assert [row["name"] for row in rows] == ["training_sample_s", "training_step_s"]
    assert all(tuple(row) == ROW and row["value"] > 0 and row["unit"] == "s" for row in rows)


def test_rooms_that_are_held_out_are_not_looked_at():
    assert set(bench_unscene3d.SEEDS) <= set(TRAINING_SEEDS)
