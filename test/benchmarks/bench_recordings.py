"""Speed and memory of reading the bundled bag, against bare rosbags and OpenCV without poses."""

import itertools
import multiprocessing
import re
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from rosbags.highlevel import AnyReader

from benchmarks import row, seconds
from training.scans.to_bag import write_bag
from unscene_ros.recordings import open_recording
from unscene_ros.transforms import TransformTree, matrix_from_pose

OFFICE = Path(__file__).parents[1] / "data" / "office_kitchen"
RUNS, LOOKUPS = 5, 2000


def read_office() -> int:
    return sum(1 for _ in open_recording(OFFICE))


def read_office_bare() -> int:
    """Decodes the same pictures with the libraries alone: no pairing, no poses, no checks."""
    count = 0
    with AnyReader([OFFICE]) as reader:
        pictures = [c for c in reader.connections if c.msgtype.endswith("CompressedImage")]
        for connection, _, raw in reader.messages(pictures):
            data = reader.deserialize(raw, connection.msgtype).data
            is_depth = connection.topic.endswith("compressedDepth")
            flag = cv2.IMREAD_UNCHANGED if is_depth else cv2.IMREAD_COLOR
            picture = cv2.imdecode(data[12:] if is_depth else data, flag)
            if is_depth:
                picture = picture.astype(np.float32) / 1000
                count += 1
            else:
                picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return count


def peak_memory_mb(path: Path) -> float:
    """Of a fresh process that reads this recording."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_read_and_measure, (path,))


def _read_and_measure(path: Path) -> float:
    for _ in open_recording(path):
        pass
    # Not getrusage: its maximum includes that of the process which started this one.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def repeated(times: int):
    """Forty frames of the office, again and again in ever later time."""
    frames = list(itertools.islice(open_recording(OFFICE), 40))
    for index, frame in enumerate(itertools.chain.from_iterable(itertools.repeat(frames, times))):
        yield replace(frame, stamp_ns=(index + 1) * 200_000_000)


def memory_growth() -> float:
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for times in (1, 4):
            bag = Path(folder) / f"{times}"
            write_bag(bag, repeated(times))
            peaks.append(statistics.median(peak_memory_mb(bag) for _ in range(3)))
    return peaks[1] / peaks[0] - 1


def lookup_us() -> float:
    """One pose over two moving and two fixed transforms, 200 Hz TF."""
    rng = np.random.default_rng(0)
    tree = TransformTree()
    for parent, child in (("map", "odom"), ("odom", "base"), ("base", "link"), ("link", "camera")):
        for sample in range(2000):
            pose = matrix_from_pose(rng.normal(size=3), rng.normal(size=4))
            tree.add(parent, child, sample * 5_000_000, pose, static=parent in ("base", "link"))
    stamps = iter(rng.integers(0, 9_990_000_000, LOOKUPS).tolist())
    return 1e6 * seconds(lambda: tree.lookup("map", "camera", next(stamps)), LOOKUPS)


def rows() -> list[dict]:
    frames = read_office()
    ours, bare = (frames / seconds(read, RUNS) for read in (read_office, read_office_bare))
    peer = "rosbags and OpenCV, pictures only", bare, ours / bare
    growth = "share, four times the length"
    return [
        row("recordings", "recording_read_hz", ours, "frames/s", RUNS, *peer),
        row("recordings", "recording_memory_growth", memory_growth(), growth, 3),
        row("recordings", "transform_lookup_us", lookup_us(), "us", LOOKUPS),
    ]
