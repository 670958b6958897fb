"""Memory of replaying a bag four times as long, and the time to segment the bundled room."""

import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import row, seconds
from training.scans.to_bag import write_bag
from unscene_ros.keyframes import Keyframes
from unscene_ros.pipeline import PipelineConfig, build_mesh, segment_mesh
from unscene_ros.recordings import open_recording
from unscene_ros.scene import Frame
from unscene_ros.segmentation import load_segmenter

ROOM = Path(__file__).parents[1] / "data" / "office_kitchen"
TIMES_AS_LONG = 4
MEMORY_RUNS, TIME_RUNS = 3, 5

# A process of its own for each replay, because a peak never falls again.
REPLAY = "import sys; from unscene_ros.replay import replay; from pathlib import Path; "
REPLAY += "print(replay(Path(sys.argv[1]), Path(sys.argv[2]))['memory_mb']['peak'])"


def repeated(times: int) -> Iterator[Frame]:
    """The room's frames over and over, each round a second after the one before."""
    recording = open_recording(ROOM)
    stamp_ns = 1_000_000_000
    for _ in range(times):
        frames = iter(recording)
        first = next(frames)
        for frame in itertools.chain([first], frames):
            last_ns = stamp_ns + frame.stamp_ns - first.stamp_ns
            yield replace(frame, stamp_ns=last_ns)
        stamp_ns = last_ns + 1_000_000_000


def peak_mb(bag: Path, output: Path) -> float:
    """Median peak memory of replaying a bag."""
    command = [sys.executable, "-c", REPLAY, bag, output]
    peaks = []
    for _ in range(MEMORY_RUNS):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.splitlines()[-1]))
    return statistics.median(peaks)


def memory_rows() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for times in (1, TIMES_AS_LONG):
            bag = Path(folder) / f"{times}"
            write_bag(bag, repeated(times))
            peaks.append(peak_mb(bag, Path(folder) / "output"))
    growth = peaks[1] / peaks[0] - 1
    return [
        row("replay", "replay_peak_mb", peaks[0], "MB", MEMORY_RUNS),
        row("replay", "replay_memory_growth", growth, "share", MEMORY_RUNS),
    ]


def time_row() -> dict:
    config = PipelineConfig()
    keyframes = Keyframes(config.keyframes)
    frames = (frame for frame in open_recording(ROOM) if keyframes.offer(frame) or True)
    mesh = build_mesh(frames, config.fusion)
    segmenter = load_segmenter("training-free")
    segment_mesh(mesh, segmenter, keyframes.frames)  # compiles
    taken = seconds(lambda: segment_mesh(mesh, segmenter, keyframes.frames), TIME_RUNS)
    return row("replay", "segment_mesh_room_s", taken, "s", TIME_RUNS)


def rows() -> Iterator[dict]:
    yield time_row()
    yield from memory_rows()
