"""RGB-D frames of a scan -> pairs of views that show the same surface, and the points they share.

Hou et al. (CVPR 2021) and Xie et al. ("PointContrast", ECCV 2020) learn from such pairs: what is at
one place in the world should look alike from both sides.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from training.artifacts import Identity, is_made, save_artifact
from training.command import chosen_scans, exit_code, step_parser
from training.fan_out import Failure, failures_at_end, for_each
from training.scans.library import Scan, log_left_out
from unscene_ros.normals import normals_from_faces
from unscene_ros.recordings.scan_folder import ScanFolder
from unscene_ros.scene import Frame, InputError, Mesh
from unscene_ros.settings import to_dict
from unscene_ros.synchronization import Drops

STEP, KIND = "frame_pairs", "pairs"  # of results of a scan
MOST_DEPTH_STEP = 0.05  # of the depth, between neighbouring pixels of one surface


@dataclass(frozen=True, slots=True)
class FramePairsConfig:
    """Which frames are pairs."""

    frame_step: int = 25  # only each that many-th frame of a scan is looked at
    smallest_overlap: float = 0.3  # part of the cells of either frame that the other one sees too
    largest_overlap: float = 1.0
    cell_m: float = 0.1  # edge of the cells in which overlap is counted
    max_depth_m: float = 4.0  # what is farther is not looked at
    pixel_step: int = 1  # of the depth picture: each that many-th pixel, across and down

    def __post_init__(self) -> None:
        for name in ("frame_step", "cell_m", "max_depth_m", "pixel_step"):
            if not getattr(self, name) > 0:
                raise InputError(f"pairs.{name}: expected more than 0, got {getattr(self, name)}")
        if not 0 < self.smallest_overlap <= self.largest_overlap:
            raise InputError(
                f"pairs: expected 0 < smallest_overlap <= largest_overlap, got "
                f"{self.smallest_overlap} and {self.largest_overlap}"
            )


def frame_surface(frame: Frame, config: FramePairsConfig) -> Mesh:
    """What a frame saw, as a mesh in the world: a vertex for each pixel that borders a face.

    Neighbouring pixels make faces where their depths say that they lie on one surface; single
    pixels between foreground and background are left out that way.
    """
    step = config.pixel_step
    depth, color = frame.depth[::step, ::step], frame.color[::step, ::step]
    depth = np.where(depth <= config.max_depth_m, depth, 0)
    v, u = step * np.mgrid[: depth.shape[0], : depth.shape[1]]
    faces = _grid_faces(depth)
    seen, faces = np.unique(faces, return_inverse=True)
    faces = faces.reshape(-1, 3).astype(np.int32)

    rays = np.stack((u, v, np.ones_like(u)), axis=-1).reshape(-1, 3)[seen]
    points = (rays @ np.linalg.inv(frame.camera.intrinsics).T) * depth.ravel()[seen, None]
    pose = frame.world_from_camera
    points = (points @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32)
    return Mesh(points, faces, color.reshape(-1, 3)[seen], normals_from_faces(points, faces))


def _grid_faces(depth: np.ndarray) -> np.ndarray:
    """(F, 3) triangles of pixels (H, W) that lie on one surface, their fronts to the camera."""
    pixel = np.arange(depth.size).reshape(depth.shape)
    a, b, c, d = pixel[:-1, :-1], pixel[:-1, 1:], pixel[1:, :-1], pixel[1:, 1:]
    faces = np.stack((a, c, b, b, c, d), axis=-1).reshape(-1, 3)
    first, second, third = depth.ravel()[faces.T]
    nearest = np.minimum(np.minimum(first, second), third)
    farthest = np.maximum(np.maximum(first, second), third)
    return faces[(nearest > 0) & (farthest - nearest <= MOST_DEPTH_STEP * nearest)]


def find_pairs(folder: ScanFolder, config: FramePairsConfig, drops: Drops) -> np.ndarray:
    """(P, 2) int32 numbers of frames that overlap, smaller first.

    What cannot be used is counted in `drops`.
    """
    numbers, cells = [], []
    for number in range(0, len(folder), config.frame_step):
        try:
            frame = folder.frame(number)
        except InputError as error:  # such as a pose that is not finite
            drops.add("unusable", str(error))
            continue
        numbers.append(number)
        cells.append(_cells(frame_surface(frame, config).vertices, config.cell_m))
    overlaps = _overlaps(cells)
    enough = (overlaps >= config.smallest_overlap) & (overlaps <= config.largest_overlap)
    pairs = np.argwhere(np.triu(enough, 1))
    return np.array(numbers, np.int32)[pairs].reshape(-1, 2)


def _cells(points: np.ndarray, cell_m: float) -> np.ndarray:
    """One int64 for each cell with points (P, 3), ascending: x, y and z with 21 bits each."""
    x, y, z = np.floor(points / cell_m).astype(np.int64).T & (2**21 - 1)
    return np.unique(x << 42 | y << 21 | z)


def _overlaps(cells: list[np.ndarray]) -> np.ndarray:
    """(F, F) share of common cells in the larger of two frames."""
    if not cells:
        return np.zeros((0, 0))
    sizes = np.array([len(of_frame) for of_frame in cells])
    distinct, columns = np.unique(np.concatenate(cells), return_inverse=True)
    rows = np.repeat(np.arange(len(cells)), sizes)
    ones = np.ones(len(rows), np.int32)
    sees = csr_array((ones, (rows, columns)), shape=(len(cells), len(distinct)))
    common = (sees @ sees.T).toarray()
    return common / np.maximum(np.maximum(sizes[:, None], sizes), 1)


def find_matches(
    first: np.ndarray,
    second: np.ndarray,
    distance_m: float,
    count: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Which points are the same: (K,) of the first and (K,) of the second, K at most `count`.

    first, second (P, 3) and (Q, 3) in the world. Points of the first are drawn at random; each one
    takes the nearest of the second within the distance, or is left out.
    """
    drawn = rng.permutation(len(first))[:count]
    nearest = cKDTree(second).query(first[drawn], distance_upper_bound=distance_m)[1]
    found = nearest < len(second)
    return drawn[found], nearest[found]


def pairs_identity(scan: Scan, config: FramePairsConfig) -> Identity:
    """Of what `save_pairs` writes."""
    return Identity(STEP, to_dict(config), {"frames": scan.frames_hash})


def has_pairs(scan: Scan, config: FramePairsConfig) -> bool:
    """Whether `save_pairs` has found some."""
    identity = pairs_identity(scan, config)
    return is_made(scan.result_path(KIND, identity), identity)


def save_pairs(scan: Scan, config: FramePairsConfig) -> None:
    """Finds the pairs of a scan; raises InputError when there are none."""
    if not scan.has_frames():
        raise InputError(f"scan {scan.name}: expected pictures in color/ and depth/, got none")
    folder, drops = ScanFolder(scan.folder), Drops()
    pairs = find_pairs(folder, config, drops)
    looked_at = len(range(0, len(folder), config.frame_step))
    log_left_out(scan.name, looked_at - sum(drops.counts.values()), drops)
    if not len(pairs):
        raise InputError(
            f"scan {scan.name}: no two usable frames overlap by {config.smallest_overlap:.0%} to "
            f"{config.largest_overlap:.0%}: lower pairs.smallest_overlap or pairs.frame_step"
        )
    identity = pairs_identity(scan, config)
    save_artifact(scan.result_path(KIND, identity), identity, pairs=pairs)


def find_all_pairs(
    scans: Sequence[Scan], config: FramePairsConfig, workers: int, ray: str | None
) -> list[Failure]:
    """The pairs of many scans; those that have none are returned with the reason."""
    items = [(scan.name, scan) for scan in scans]
    work, is_found = partial(save_pairs, config=config), partial(has_pairs, config=config)
    return for_each(items, work, workers, ray, "pairs of frames", is_found)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a scan failed, 2 for a wrong argument."""
    from training.unscene3d.recipe import add_recipe_options, chosen_recipe  # it imports this file

    parser = step_parser(
        "training.unscene3d.frame_pairs", "Find the overlapping frames of a library's scans."
    )
    add_recipe_options(parser)
    options = parser.parse_args(arguments)

    def run() -> int:
        config = chosen_recipe(options).pretrain.pairs
        scans = chosen_scans(options)
        return failures_at_end(find_all_pairs(scans, config, options.workers, options.ray))

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
