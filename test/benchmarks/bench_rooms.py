"""Time to furnish a procedural room, to render a noisy frame of it, and to make its truth."""

import statistics

from benchmarks import row, seconds
from training.scans.rooms import make_room

SEEDS = (0, 5, 12)  # rooms of different size and fullness
FRAMES = 20


def rows() -> list[dict]:
    """Medians over rooms and frames; there is no peer."""
    make_room(0).frames()[0]  # compiles
    making = [seconds(lambda seed=seed: make_room(seed)) for seed in SEEDS]
    rooms = [make_room(seed) for seed in SEEDS]
    frames = [
        seconds(lambda room=room, index=index: room.frames()[index])
        for room in rooms
        for index in range(FRAMES)
    ]
    truths = [seconds(room.ground_truth) for room in rooms]
    measured = (
        ("room_layout_s", "s", making, 1),
        ("room_frame_ms", "ms", frames, 1000),
        ("room_truth_s", "s", truths, 1),
    )
    return [
        row("rooms", name, statistics.median(times) * factor, unit, len(times))
        for name, unit, times, factor in measured
    ]
