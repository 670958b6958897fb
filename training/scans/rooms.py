"""Procedural rooms: seeded, furnished, scanned by a noisy RGB-D camera, with exact truth.

`make_room(seed)` gives a Room whose frames are ray-cast (Open3D) when they are asked for;
`python -m training.scans.rooms SEED... -o DIR` writes scan folders with ground truth.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn

from training.scans.library import LABELS_FILE, SCANS, Library
from training.scans.procedural.architecture import build_shell
from training.scans.procedural.depth_sensor import DepthSensorConfig, add_depth_noise
from training.scans.procedural.furnishing import furnish
from training.scans.procedural.rendering import Renderer
from training.scans.procedural.shapes import pose, transformed
from training.scans.procedural.trajectory import plan_trajectory
from unscene_ros.evaluation import GroundTruth
from unscene_ros.scene import Camera, Frame, InputError
from unscene_ros.settings import from_assignments, from_dict, settings_hash, to_dict
from unscene_ros.storage import prepare_output_folder, whole_file

VERSION = 1  # another number whenever a seed comes to mean another room
TRAINING_SEEDS = range(0, 9000)
HELD_OUT_SEEDS = range(9000, 9100)  # for tests and reported numbers: never trained or tuned on

VOID, STUFF = -1, -2
STUFF_CLASSES = ("wall", "floor", "ceiling", "carpet")
# Flat things in a wall: whether they are objects is a matter of taste, so nobody is judged on them.
VOID_CLASSES = ("door", "window", "picture")
OBJECT_CLASSES = (
    "table", "desk", "chair", "stool", "sofa", "bed", "shelf", "cabinet", "lamp", "plant", "bin",
    "radiator", "curtain", "box", "bottle", "bowl", "mug", "books", "monitor", "laptop",
    "keyboard", "cushion", "bag", "ball",
)  # fmt: skip
SEMANTIC_CLASSES = ("unlabeled", *STUFF_CLASSES, *VOID_CLASSES, *OBJECT_CLASSES)

TRUTH_SPACING_M = 0.02
MAX_LABELS = 1 << 12  # different objects and kinds of stuff in one room


@dataclass(frozen=True, slots=True)
class RoomConfig:
    """How rooms are scanned; what stands in them depends on the seed alone."""

    image_width: int = 320
    image_height: int = 240
    horizontal_fov_deg: float = 65.0
    frame_count: int = 100
    frame_rate_hz: float = 5.0
    sensor_noise: bool = True  # False gives perfect depth and pictures, within range
    image_noise: float = 2.5  # standard deviation of the grey values
    depth_sensor: DepthSensorConfig = field(default_factory=DepthSensorConfig)

    def camera(self) -> Camera:
        """The pinhole camera, principal point in the picture's centre."""
        focal = self.image_width / 2 / np.tan(np.deg2rad(self.horizontal_fov_deg) / 2)
        center = (self.image_width - 1) / 2, (self.image_height - 1) / 2
        intrinsics = np.array([[focal, 0, center[0]], [0, focal, center[1]], [0, 0, 1.0]])
        return Camera(self.image_width, self.image_height, intrinsics)


class Room:
    """One room: its surfaces, and what the camera sees of them along its trajectory."""

    def __init__(
        self,
        seed: int,
        config: RoomConfig,
        renderer: Renderer,
        labels: np.ndarray,
        trajectory: np.ndarray,
    ) -> None:
        """Made by `make_room`.

        labels (P, 2): instance and semantic class of each part of the renderer; trajectory
        (N, 4, 4) world_from_camera.
        """
        self.seed = seed
        self.config = config
        self.name = f"room_{seed:05d}"
        self.trajectory = trajectory
        self._renderer = renderer
        self._labels = labels
        self._camera = config.camera()

    def frames(self, trajectory: np.ndarray | None = None) -> Sequence[Frame]:
        """The recording, rendered when read, along the room's or another (N, 4, 4) trajectory."""
        trajectory = self.trajectory if trajectory is None else trajectory
        return _Frames(self, trajectory, range(len(trajectory)))

    def render(self, world_from_camera: np.ndarray, index: int = 0) -> Frame:
        """The frame number `index` of a recording, taken from this pose (4, 4)."""
        config, shape = self.config, (self.config.image_height, self.config.image_width)
        rng = np.random.default_rng((self.seed, index))
        hits = self._renderer.cast(self._camera, world_from_camera)
        color = self._renderer.colors(hits).reshape(*shape, 3)
        depth = np.where(np.isfinite(hits.depths), hits.depths, np.float32(0)).reshape(shape)
        if config.sensor_noise:
            color = _photographed(color, rng, config.image_noise)
            depth = add_depth_noise(depth, rng, self._camera, config.depth_sensor)
        else:
            depth = np.where(self._in_range(depth), depth, np.float32(0))
        return Frame(
            # From one period on, since a stamp of 0 means "now" to many ROS tools.
            stamp_ns=round((index + 1) * 1e9 / config.frame_rate_hz),
            camera=self._camera,
            color=cv2.convertScaleAbs(color, alpha=255.0),
            depth=depth,
            world_from_camera=world_from_camera,
        )

    def ground_truth(self) -> GroundTruth:
        """Surface points seen by a frame within range, thinned to 2 cm; sensor noise is left out.

        Objects are numbered without gaps; semantic is an index into SEMANTIC_CLASSES. In every 2 cm
        cell the first sighting of each object or kind of stuff is kept.
        """
        labels, label_of_part = np.unique(self._labels, axis=0, return_inverse=True)
        keys, points = [np.zeros(0, np.int64)], [np.zeros((0, 3), np.float32)]
        for world_from_camera in self.trajectory:
            hits = self._renderer.cast(self._camera, world_from_camera)
            hit = self._in_range(hits.depths)
            seen = hits.points(hit)
            new_keys, first = np.unique(
                _cell_keys(seen, label_of_part[hits.parts[hit]]), return_index=True
            )
            keys.append(new_keys)
            points.append(seen[first])
        unique_keys, first = np.unique(np.concatenate(keys), return_index=True)
        instance, semantic = labels[unique_keys & (MAX_LABELS - 1)].T.astype(np.int32)
        is_object = instance >= 0
        instance[is_object] = np.unique(instance[is_object], return_inverse=True)[1]
        return GroundTruth(np.concatenate(points)[first], instance, semantic)

    def write_ground_truth(self, path: Path) -> None:
        """Writes `ground_truth()` as npz: points, instance, semantic."""
        truth = self.ground_truth()
        with whole_file(path) as file:
            np.savez_compressed(
                file, points=truth.points, instance=truth.instance, semantic=truth.semantic
            )

    def _in_range(self, depth: np.ndarray) -> np.ndarray:
        sensor = self.config.depth_sensor
        return (depth >= sensor.min_range_m) & (depth <= sensor.max_range_m)


class _Frames(Sequence[Frame]):
    """Frames of a room along a trajectory, rendered when read; a slice is lazy too."""

    def __init__(self, room: Room, trajectory: np.ndarray, numbers: range) -> None:
        self._room = room
        self._trajectory = trajectory
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index):
        number = self._numbers[index]
        if isinstance(number, range):
            return _Frames(self._room, self._trajectory, number)
        return self._room.render(self._trajectory[number], number)


def make_room(seed: int, config: RoomConfig | None = None) -> Room:
    """The room of this seed: the same seed and settings give the same arrays."""
    config = config or RoomConfig()
    rng = np.random.default_rng(seed)
    shell, layout = build_shell(rng)
    furnish(layout)

    # A robot's map has its origin wherever it was switched on, at any heading.
    world_from_room = pose(rng.uniform(-2, 2, 3), (0, 0, rng.uniform(0, 2 * np.pi)))
    parts, labels = [], []
    for kind, part in shell.surfaces:
        parts.append((world_from_room, part))
        labels.append((STUFF if kind in STUFF_CLASSES else VOID, SEMANTIC_CLASSES.index(kind)))
    for instance, placed in enumerate(layout.placed):
        world_from_object = world_from_room @ placed.room_from_object()
        parts += [(world_from_object, part) for part in placed.model.parts]
        semantic = SEMANTIC_CLASSES.index(placed.model.kind)
        labels += [(instance, semantic)] * len(placed.model.parts)
    renderer = Renderer(parts, transformed(world_from_room, shell.lamp))

    corners = np.array([wall.start for wall in shell.walls])
    path = plan_trajectory(rng, layout.blocked, corners, config.frame_count)
    return Room(seed, config, renderer, np.array(labels, np.int32), world_from_room @ path)


def _cell_keys(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) int64 numbers of (2 cm cell, label), for rooms within 600 m of the origin."""
    x, y, z = (np.floor(points / TRUTH_SPACING_M).astype(np.int64) + (1 << 15)).T
    return ((x << 32 | y << 16 | z) * MAX_LABELS) | labels


def _photographed(color: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    """The picture as a cheap camera takes it: soft, grainy, of wandering exposure and tint."""
    tint = rng.normal(1, (0.015, 0.01, 0.015)) * rng.normal(1, 0.05)
    soft = cv2.GaussianBlur(color, (0, 0), 0.6)
    grain = rng.standard_normal((*color.shape[:2], 1), np.float32) * np.float32(noise / 255)
    return np.maximum(soft * tint.astype(np.float32) + grain, 0)


def write_scan(room: Room, folder: Path) -> Iterator[int]:
    """Writes a room as a scan folder with `gt.npz`, yielding each frame's number when written.

    `room.json` holds the seed and the settings; the truth is written last and marks completion.
    """
    (folder / "gt.npz").unlink(missing_ok=True)
    for name in ("color", "depth", "pose"):
        shutil.rmtree(folder / name, ignore_errors=True)  # frames of an older, longer recording
        (folder / name).mkdir(parents=True)
    np.savetxt(folder / "intrinsic.txt", room.config.camera().intrinsics)
    for index, frame in enumerate(room.frames()):
        picture, depth_mm = frame.color[..., ::-1], np.rint(frame.depth * 1000).astype(np.uint16)
        _write_image(folder / "color" / f"{index:06d}.jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
        _write_image(folder / "depth" / f"{index:06d}.png", depth_mm, [])
        np.savetxt(folder / "pose" / f"{index:06d}.txt", frame.world_from_camera, fmt="%.9f")
        yield index
    (folder / "room.json").write_text(json.dumps(_identity(room.seed, room.config), indent=2))
    room.write_ground_truth(folder / "gt.npz")


def is_written(seed: int, config: RoomConfig, folder: Path) -> bool:
    """Whether the folder holds this very room, whole."""
    try:
        found = json.loads((folder / "room.json").read_text())
    except (OSError, ValueError):
        return False
    return found == _identity(seed, config) and (folder / "gt.npz").exists()


def _identity(seed: int, config: RoomConfig) -> dict[str, object]:
    return {
        "version": VERSION,
        "seed": seed,
        "settings": to_dict(config),
        "settings_hash": settings_hash(config),
    }


def _write_image(path: Path, image: np.ndarray, options: list[int]) -> None:
    if not cv2.imwrite(str(path), image, options):
        raise OSError(f"{path}: cannot write")


def write_rooms(seeds: Sequence[int], config: RoomConfig, folder: Path) -> list[str]:
    """Writes rooms that are not there yet to `folder`/room_SEED; returns what failed and why."""
    failures = []
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[room]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("rooms", total=len(seeds) * config.frame_count, room="")
        for number, seed in enumerate(seeds):
            target = folder / f"room_{seed:05d}"
            progress.update(task, completed=number * config.frame_count, room=target.name)
            if is_written(seed, config, target):
                continue
            try:
                for _ in write_scan(make_room(seed, config), target):
                    progress.advance(task)
            except (OSError, InputError) as error:
                failures.append(f"{target}: {error}")
        progress.update(task, completed=len(seeds) * config.frame_count, room="done")
    return failures


def write_split(seeds: Sequence[int], config: RoomConfig, library: Path, split: str) -> list[str]:
    """As `write_rooms`, to the scans of a library, and adds them to a split of it."""
    prepare_output_folder(library / SCANS)
    failures = write_rooms(seeds, config, library / SCANS)
    names = [f"room_{seed:05d}" for seed in seeds]
    there = [name for name in names if (library / SCANS / name / LABELS_FILE).exists()]
    Library(library).extend_split(split, there)
    return failures


def _seeds(texts: list[str]) -> list[int]:
    """Seeds from numbers and ranges: ["3", "9000-9009"]."""
    seeds: list[int] = []
    for text in texts:
        first, dash, last = text.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InputError(f"SEED: expected a number or a range like 9000-9009, got '{text}'")
        seeds += range(int(first), int(last if dash else first) + 1)
    return seeds


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a room failed, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m training.scans.rooms",
        description="Write procedural rooms as scan folders with ground truth (gt.npz). A second "
        f"run writes only what is missing. Seeds {HELD_OUT_SEEDS[0]}-{HELD_OUT_SEEDS[-1]} are held "
        "out for tests and reported numbers.",
    )
    parser.add_argument("seeds", nargs="+", metavar="SEED", help="a number or a range: 0-99")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--split", metavar="NAME",
        help="DIR is a library: the rooms become scans of it and are added to this split",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="a setting, for example image_width=640 or depth_sensor.max_range_m=6",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        config = from_dict(RoomConfig, from_assignments(options.set))
        seeds = _seeds(options.seeds)
        if options.split:
            failures = write_split(seeds, config, options.output, options.split)
        else:
            failures = write_rooms(seeds, config, options.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
