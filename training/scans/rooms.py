"""Procedural rooms: seeded, furnished, scanned by a noisy RGB-D camera, with exact truth.

`make_room(seed)` gives a Room whose frames are ray-cast (Open3D) when they are asked for;
`python -m training.scans.rooms SEED... -o DIR` writes scan folders with ground truth.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import open3d as o3d
from rich.console import Console
from rich.progress import Progress, TextColumn

from training.scans.procedural.architecture import build_shell
from training.scans.procedural.depth_sensor import DepthSensorConfig, add_depth_noise
from training.scans.procedural.furnishing import furnish
from training.scans.procedural.shading import pixel_rays, rays_to, shade
from training.scans.procedural.shapes import Part, pose, transformed
from training.scans.procedural.textures import PATTERNS
from training.scans.procedural.trajectory import plan_trajectory
from unscene_ros.scene import Camera, Frame, InputError
from unscene_ros.settings import from_assignments, from_dict, settings_hash, to_dict

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
SEMANTIC_CLASSES = STUFF_CLASSES + VOID_CLASSES + OBJECT_CLASSES

TRUTH_SPACING_M = 0.02
MAX_LABELS = 1 << 12
WINDOW_LIGHT = np.array((0.78, 0.86, 0.95), np.float32)  # what is seen through an open window


@dataclass(frozen=True, slots=True)
class RoomConfig:
    """How rooms are scanned; what stands in them depends on the seed alone."""

    image_width: int = 320
    image_height: int = 240
    horizontal_fov_deg: float = 60.0
    frame_count: int = 80
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


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """Labelled surface points that the camera saw.

    points (P, 3) float32 in the world frame; instance (P,) int32: 0.. objects without gaps, -1
    void, -2 stuff; semantic (P,) int32, index into SEMANTIC_CLASSES.
    """

    points: np.ndarray
    instance: np.ndarray
    semantic: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class _Surfaces:
    """All triangles of a room and how they look: T triangles of P parts, in the world frame."""

    vertices: np.ndarray  # (n, 3) float32
    triangles: np.ndarray  # (T, 3) uint32
    part_of_triangle: np.ndarray  # (T,) int32
    instance_of_part: np.ndarray  # (P,) int32
    semantic_of_part: np.ndarray  # (P,) int32
    part_from_world: np.ndarray  # (P, 3, 4) float32
    patterns: np.ndarray  # (P,) int64
    colors: np.ndarray  # (P, 2, 3) float32
    scales: np.ndarray  # (P,) float32
    long_axes: np.ndarray  # (P,) int64
    seeds: np.ndarray  # (P,) int64


class Room:
    """One room: its surfaces, and what the camera sees of them along its trajectory."""

    def __init__(
        self,
        seed: int,
        config: RoomConfig,
        surfaces: _Surfaces,
        lamp: np.ndarray,
        trajectory: np.ndarray,
    ) -> None:
        """Made by `make_room`. lamp (3,); trajectory (N, 4, 4) world_from_camera."""
        self.seed = seed
        self.config = config
        self.name = f"room_{seed:05d}"
        self.trajectory = trajectory
        self._surfaces = surfaces
        self._lamp = lamp
        self._camera = config.camera()
        self._raycaster = o3d.t.geometry.RaycastingScene()
        self._raycaster.add_triangles(
            o3d.core.Tensor(surfaces.vertices), o3d.core.Tensor(surfaces.triangles)
        )

    def frames(self, trajectory: np.ndarray | None = None) -> Sequence[Frame]:
        """The recording, rendered when read, along the room's or another (N, 4, 4) trajectory."""
        return _Frames(self, self.trajectory if trajectory is None else trajectory)

    def render(self, world_from_camera: np.ndarray, index: int = 0) -> Frame:
        """The frame number `index` of a recording, taken from this pose (4, 4)."""
        config, shape = self.config, (self.config.image_height, self.config.image_width)
        rng = np.random.default_rng((self.seed, index))
        rays, distances, triangles, normals = self._cast(world_from_camera)
        color = self._shaded(rays, distances, triangles, normals)
        color = color.reshape(*shape, 3)
        depth = np.where(np.isfinite(distances), distances, np.float32(0)).reshape(shape)
        if config.sensor_noise:
            color = _photographed(color, rng, config.image_noise)
            depth = add_depth_noise(depth, rng, self._camera, config.depth_sensor)
        else:
            depth = np.where(self._in_range(depth), depth, np.float32(0))
        return Frame(
            stamp_ns=round(index * 1e9 / config.frame_rate_hz),
            camera=self._camera,
            color=cv2.convertScaleAbs(color, alpha=255.0),
            depth=depth,
            world_from_camera=world_from_camera,
        )

    def ground_truth(self) -> GroundTruth:
        """Surface points seen by a frame within range, thinned to 2 cm; sensor noise is left out.

        In every 2 cm cell the first sighting of each object (or kind of stuff) there is kept.
        """
        surfaces = self._surfaces
        labels = np.stack([surfaces.instance_of_part, surfaces.semantic_of_part], axis=-1)
        labels, label_of_part = np.unique(labels, axis=0, return_inverse=True)
        keys, points = [np.zeros(0, np.int64)], [np.zeros((0, 3), np.float32)]
        for world_from_camera in self.trajectory:
            rays, distances, triangles, _ = self._cast(world_from_camera)
            hit = self._in_range(distances)
            seen = rays[hit, :3] + distances[hit, None] * rays[hit, 3:]
            label = label_of_part[surfaces.part_of_triangle[triangles[hit]]]
            new_keys, first = np.unique(_cell_keys(seen, label), return_index=True)
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
        # Whoever finds the file finds it whole, even when this is interrupted.
        unfinished = path.with_suffix(".part.npz")
        np.savez_compressed(
            unfinished, points=truth.points, instance=truth.instance, semantic=truth.semantic
        )
        unfinished.replace(path)

    def _cast(
        self, world_from_camera: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Per pixel: ray (N, 6), depth (N,) or inf, triangle (N,), its normal (N, 3)."""
        camera = self._camera
        rays = pixel_rays(camera.width, camera.height, camera.intrinsics, world_from_camera)
        hits = self._raycaster.cast_rays(o3d.core.Tensor(rays))
        distances, triangles, normals = (
            hits[key].numpy() for key in ("t_hit", "primitive_ids", "primitive_normals")
        )
        return rays, distances, triangles, normals

    def _shaded(
        self, rays: np.ndarray, distances: np.ndarray, triangles: np.ndarray, normals: np.ndarray
    ) -> np.ndarray:
        """(N, 3) float32 colours of the hits, with the shadows of the room's lamp."""
        surfaces = self._surfaces
        to_lamp = rays_to(self._lamp, rays, distances, normals)
        shadowed = self._raycaster.test_occlusions(o3d.core.Tensor(to_lamp), 0.005, 0.99).numpy()
        return shade(
            rays, distances, normals,
            surfaces.part_of_triangle[np.where(np.isfinite(distances), triangles, 0)], ~shadowed,
            self._lamp, WINDOW_LIGHT, surfaces.part_from_world, surfaces.patterns, surfaces.colors,
            surfaces.scales, surfaces.long_axes, surfaces.seeds,
        )  # fmt: skip

    def _in_range(self, depth: np.ndarray) -> np.ndarray:
        sensor = self.config.depth_sensor
        return (depth >= sensor.min_range_m) & (depth <= sensor.max_range_m)


class _Frames(Sequence[Frame]):
    """Frames of a room along a trajectory, rendered when read."""

    def __init__(self, room: Room, trajectory: np.ndarray) -> None:
        self._room = room
        self._trajectory = trajectory

    def __len__(self) -> int:
        return len(self._trajectory)

    def __getitem__(self, index: int) -> Frame:
        index = range(len(self))[index]
        return self._room.render(self._trajectory[index], index)


def make_room(seed: int, config: RoomConfig | None = None) -> Room:
    """The room of this seed: the same seed and settings give the same arrays."""
    config = config or RoomConfig()
    rng = np.random.default_rng(seed)
    shell, layout = build_shell(rng)
    furnish(layout)

    corners = np.array([wall.start for wall in shell.walls])
    # A robot's map has its origin wherever it was switched on, at any heading.
    world_from_room = pose(rng.uniform(-2, 2, 3), (0, 0, rng.uniform(0, 2 * np.pi)))
    parts: list[tuple[int, str, Part, np.ndarray]] = [
        (STUFF if kind in STUFF_CLASSES else VOID, kind, part, world_from_room)
        for kind, part in shell.surfaces
    ]
    for instance, placed in enumerate(layout.placed):
        world_from_object = world_from_room @ placed.room_from_object()
        parts += [
            (instance, placed.model.kind, part, world_from_object) for part in placed.model.parts
        ]
    lamp = transformed(world_from_room, shell.lamp[None])[0].astype(np.float32)
    path = plan_trajectory(rng, layout.blocked, corners, config.frame_count)
    return Room(seed, config, _surfaces_of(parts), lamp, world_from_room @ path)


def _surfaces_of(parts: list[tuple[int, str, Part, np.ndarray]]) -> _Surfaces:
    """Joins (instance, class, part, world_from_object) into arrays for casting and shading."""
    world_from_part = [world @ part.object_from_part for _, _, part, world in parts]
    vertices = [
        transformed(matrix, part.vertices)
        for matrix, (_, _, part, _) in zip(world_from_part, parts, strict=True)
    ]
    starts = np.concatenate([[0], np.cumsum([len(v) for v in vertices])])
    triangles = [
        part.faces + start for start, (_, _, part, _) in zip(starts[:-1], parts, strict=True)
    ]
    textures = [part.texture for _, _, part, _ in parts]
    sizes = [np.ptp(part.vertices, axis=0) for _, _, part, _ in parts]
    return _Surfaces(
        vertices=np.concatenate(vertices).astype(np.float32),
        triangles=np.concatenate(triangles).astype(np.uint32),
        part_of_triangle=np.repeat(np.arange(len(parts)), [len(t) for t in triangles]).astype(
            np.int32
        ),
        instance_of_part=np.array([instance for instance, *_ in parts], np.int32),
        semantic_of_part=np.array(
            [SEMANTIC_CLASSES.index(kind) for _, kind, *_ in parts], np.int32
        ),
        part_from_world=np.linalg.inv(world_from_part)[:, :3].astype(np.float32),
        patterns=np.array([PATTERNS.index(texture.pattern) for texture in textures]),
        colors=np.array([(t.color, t.second_color) for t in textures], np.float32),
        scales=np.array([texture.scale_m for texture in textures], np.float32),
        long_axes=np.argmax(sizes, axis=1),
        seeds=np.array([texture.seed for texture in textures]),
    )


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
    for name in ("color", "depth", "pose"):
        (folder / name).mkdir(parents=True, exist_ok=True)
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
    return {"seed": seed, "settings": to_dict(config), "settings_hash": settings_hash(config)}


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
            except OSError as error:
                failures.append(f"{target}: {error.strerror or error}")
        progress.update(task, completed=len(seeds) * config.frame_count, room="done")
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
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="a setting, for example image_width=640 or depth_sensor.max_range_m=6",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        config = from_dict(RoomConfig, from_assignments(options.set))
        failures = write_rooms(_seeds(options.seeds), config, options.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
