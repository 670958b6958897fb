"""The rendered small house -> a bag as a robot would record it, and its exact ground truth.

In: a scan folder with instance/<n>.png (uint16 id of the model at each pixel, 0 = nothing) and
instances.json (what each id is). Out: DIR/<name of the folder> (bag) and DIR/gt.npz (points,
instance), where only surfaces that the camera saw count.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from training.scans.procedural.depth_sensor import DepthSensorConfig, add_depth_noise
from training.scans.to_bag import write_bag
from unscene_ros.recordings.scan_folder import ScanFolder
from unscene_ros.scene import Frame, InputError

VOID, STUFF = -1, -2
# Parts of the building and what lies flat on it are no objects to find.
STUFF_MODELS = ("Wall", "Floor", "Ceiling", "Window", "Door", "Carpet", "Curtain")
MAX_RANGE_M = 5.0  # what RGB-D cameras see; the rendered depth goes farther
SPACING_M = 0.02
_CELL_BITS, _LABEL_BITS = 15, 16  # cells within 327 m of the origin, and labels, in one int64


class SurfaceVotes:
    """Labelled points of many pictures -> one point for each cell, with the label most saw there.

    A point is the mean of those with the winning label; ties go to the smaller label. The result
    depends on what was added, not on the order.
    """

    def __init__(self) -> None:
        self._keys: list[np.ndarray] = []
        self._sums: list[np.ndarray] = []  # x, y, z and 1, summed for each key

    def add(self, points: np.ndarray, labels: np.ndarray) -> None:
        """points (P, 3) metres; labels (P,) int from STUFF up."""
        cells = np.floor(points / SPACING_M).astype(np.int64) + (1 << (_CELL_BITS - 1))
        key = labels.astype(np.int64) - STUFF
        for axis in range(3):
            key |= cells[:, axis] << (_LABEL_BITS + axis * _CELL_BITS)
        self._append(key, np.column_stack([points, np.ones(len(points))]))

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """points (P, 3) float32 sorted by cell, labels (P,) int32."""
        if not self._keys:
            return np.zeros((0, 3), np.float32), np.zeros(0, np.int32)
        keys, sums = np.concatenate(self._keys), np.concatenate(self._sums)
        self._keys, self._sums = [], []
        self._append(keys, sums)
        keys, sums = self._keys[0], self._sums[0]
        cells = keys >> _LABEL_BITS
        # Stable: of equally many votes in a cell the first, which has the smaller label, wins.
        order = np.lexsort((-sums[:, 3], cells))
        winners = order[np.unique(cells[order], return_index=True)[1]]
        points = sums[winners, :3] / sums[winners, 3:]
        labels = (keys[winners] & ((1 << _LABEL_BITS) - 1)) + STUFF
        return points.astype(np.float32), labels.astype(np.int32)

    def _append(self, keys: np.ndarray, sums: np.ndarray) -> None:
        """Sums up what belongs to one key."""
        unique, group = np.unique(keys, return_inverse=True)
        self._keys.append(unique)
        self._sums.append(
            np.stack([np.bincount(group, column, len(unique)) for column in sums.T], axis=1)
        )


def read_labels(folder: Path) -> np.ndarray:
    """(65536,) int32: for each id of the instance pictures itself, STUFF or VOID."""
    path = folder / "instances.json"
    try:
        models = {int(key): entry["model"] for key, entry in json.loads(path.read_text()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{path}: expected {{"id": {{"model": name}}}}, got: {error}') from error
    label_of_id = np.full(1 << 16, VOID, np.int32)
    for instance, model in models.items():
        is_stuff = any(part in model for part in STUFF_MODELS)
        label_of_id[instance] = STUFF if is_stuff else instance
    return label_of_id


def visible_surface(
    scan: ScanFolder, folder: Path, sensor: DepthSensorConfig | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Points (P, 3) float32 in the world frame and labels (P,) int32 of what the camera saw.

    Only what was within range counts: MAX_RANGE_M, or that of the sensor. Noise does not move it.
    """
    low, high = (sensor.min_range_m, sensor.max_range_m) if sensor else (0.0, MAX_RANGE_M)
    label_of_id = read_labels(folder)
    votes = SurfaceVotes()
    for index in track(range(len(scan)), "ground truth"):
        frame = scan.frame(index)
        path = folder / "instance" / scan.depth_path(index).name
        instances = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if instances is None or instances.shape != frame.depth.shape:
            raise InputError(f"{path}: expected a picture of the size of its depth picture")
        v, u = np.nonzero((frame.depth > 0) & (frame.depth >= low) & (frame.depth <= high))
        rays = np.column_stack([u, v, np.ones(len(u))]) @ np.linalg.inv(frame.camera.intrinsics).T
        in_camera = rays * frame.depth[v, u, None]
        pose = frame.world_from_camera
        votes.add(in_camera @ pose[:3, :3].T + pose[:3, 3], label_of_id[instances[v, u]])
    return votes.points()


def write_small_house(folder: Path, output: Path, sensor: DepthSensorConfig | None = None) -> None:
    """Writes the bag and gt.npz into `output`; with a sensor the bag's depth has its noise."""
    scan = ScanFolder(folder)
    points, instance = visible_surface(scan, folder, sensor)
    frames: Iterable[Frame] = (scan.frame(index) for index in range(len(scan)))
    if sensor:
        frames = _with_noise(frames, sensor)
    write_bag(output / folder.resolve().name, track(frames, "bag", total=len(scan)))
    np.savez_compressed(output / "gt.npz", points=points, instance=instance)


def _with_noise(frames: Iterable[Frame], sensor: DepthSensorConfig) -> Iterator[Frame]:
    for index, frame in enumerate(frames):
        rng = np.random.default_rng(index)
        yield replace(frame, depth=add_depth_noise(frame.depth, rng, frame.camera, sensor))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.scans.small_house", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="scan folder with instance/ and instances.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--noise", action="store_true", help="depth as a Kinect would measure it")
    options = parser.parse_args()
    try:
        sensor = DepthSensorConfig() if options.noise else None
        write_small_house(options.folder, options.output, sensor)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
