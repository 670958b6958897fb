"""A plausible path of a hand-held or robot-borne camera through the free floor of a room.

The camera visits well spread stations, always with some room around it, and turns as it walks.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter1d, label
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

CELL_M = 0.1
STATIONS = 6
BODY_HEIGHT_M = 1.9  # whoever carries the camera cannot walk through what is lower than this


def plan_trajectory(
    rng: np.random.Generator, blocked: np.ndarray, corners: np.ndarray, frame_count: int
) -> np.ndarray:
    """Camera poses (frame_count, 4, 4) room_from_camera.

    blocked (n, 8): boxes as in `Placed.boxes`, walls included; corners (c, 2): the room's outline.
    """
    origin = corners.min(axis=0)
    cells = np.ceil((corners.max(axis=0) - origin) / CELL_M).astype(int)
    clearance = _clearance(blocked, origin, cells)
    free = _walkable(clearance)
    places = origin + (np.argwhere(free) + 0.5) * CELL_M
    route = places[_tour(rng, free, clearance)]
    route = gaussian_filter1d(np.repeat(route, 2, axis=0), 2.0, axis=0, mode="nearest")
    travelled = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(route, axis=0), axis=1))])
    at = np.linspace(0, travelled[-1], frame_count)
    x, y = (np.interp(at, travelled, route[:, axis]) for axis in (0, 1))
    return _poses(rng, np.stack([x, y], axis=-1), corners)


def _clearance(blocked: np.ndarray, origin: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(nx, ny) metres from each cell's centre to the nearest obstacle of body height."""
    low = blocked[(blocked[:, 6] < BODY_HEIGHT_M) & (blocked[:, 7] > 0.1)]
    grid = np.stack(np.meshgrid(*map(np.arange, cells), indexing="ij"), axis=-1)
    offset = (origin + (grid + 0.5) * CELL_M)[..., None, :] - low[:, :2]
    along = offset[..., 0] * low[:, 2] + offset[..., 1] * low[:, 3]
    across = -offset[..., 0] * low[:, 3] + offset[..., 1] * low[:, 2]
    hit = (np.abs(along) <= low[:, 4] + CELL_M / 2) & (np.abs(across) <= low[:, 5] + CELL_M / 2)
    padded = np.pad(~hit.any(axis=-1), 1)
    return distance_transform_edt(padded)[1:-1, 1:-1] * CELL_M


def _walkable(clearance: np.ndarray) -> np.ndarray:
    """(nx, ny) bool largest connected free floor, as roomy as the furniture allows."""
    for reach in (0.25, 0.15, 0.05):
        regions, count = label(clearance >= reach)
        if count:
            largest = regions == 1 + np.argmax(np.bincount(regions.ravel())[1:])
            if largest.sum() >= 30:
                return largest
    return clearance == clearance.max()


def _tour(rng: np.random.Generator, free: np.ndarray, clearance: np.ndarray) -> np.ndarray:
    """Indices into the free cells, from station to station along shortest paths."""
    cells = np.argwhere(free)
    graph = _grid_graph(free, clearance)
    # The walk begins at an end of the room: where it is farthest from a random place.
    first = int(np.argmax(dijkstra(graph, indices=int(rng.integers(len(cells))))))
    nearest, remaining, route = dijkstra(graph, indices=first), [], [first]
    for _ in range(min(STATIONS, len(cells)) - 1):
        remaining.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, dijkstra(graph, indices=remaining[-1]))
    while remaining:
        distances, before = dijkstra(graph, indices=route[-1], return_predecessors=True)
        target = min(remaining, key=lambda cell: distances[cell])
        remaining.remove(target)
        leg = [target]
        while before[leg[-1]] >= 0 and before[leg[-1]] != route[-1]:
            leg.append(before[leg[-1]])
        route += leg[::-1]
    return np.array(route)


def _grid_graph(free: np.ndarray, clearance: np.ndarray) -> coo_matrix:
    """Costs between touching free cells (eight neighbours), dearer where it is narrow."""
    number = np.full(np.array(free.shape) + 2, -1)
    number[1:-1, 1:-1][free] = np.arange(free.sum())
    inner = number[1:-1, 1:-1]
    cost = 1 + 0.3 / np.maximum(clearance[free], 0.1)
    rows, columns, costs = [], [], []
    for dx, dy in ((1, 0), (0, 1), (1, 1), (1, -1)):
        other = number[1 + dx : number.shape[0] - 1 + dx, 1 + dy : number.shape[1] - 1 + dy]
        joined = (inner >= 0) & (other >= 0)
        a, b = inner[joined], other[joined]
        rows += [a, b]
        columns += [b, a]
        costs += [np.hypot(dx, dy) * (cost[a] + cost[b]) / 2] * 2
    size = int(free.sum())
    return coo_matrix(
        (np.concatenate(costs), (np.concatenate(rows), np.concatenate(columns))), (size, size)
    ).tocsr()


def _poses(rng: np.random.Generator, places: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Poses at floor places (n, 2): the heading turns all the time, height and tilt waver."""
    count = len(places)

    def waver(amount: float, smoothness: float) -> np.ndarray:
        noise = gaussian_filter1d(rng.normal(size=count), smoothness, mode="reflect")
        return amount * noise * np.sqrt(2 * smoothness * np.sqrt(np.pi))

    yaw = _sweep(rng, places, corners) + waver(0.12, 2.0)
    # Looking up and down while turning, so that floor, tops and walls are all seen.
    nod = np.sin(np.arange(count) * 2 * np.pi / rng.uniform(30, 40) + rng.uniform(0, 2 * np.pi))
    down = np.deg2rad(rng.uniform(22, 28) + 11 * nod) + waver(np.deg2rad(3), 2.0)
    roll = waver(np.deg2rad(1.5), 1.0)
    height = rng.uniform(1.2, 1.65) + waver(0.06, 4.0) + waver(0.01, 0.6)

    forward = np.stack([np.cos(yaw) * np.cos(down), np.sin(yaw) * np.cos(down), -np.sin(down)], -1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros(count)], axis=-1)
    below = np.cross(forward, right)
    cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 0] = cos * right + sin * below
    poses[:, :3, 1] = cos * below - sin * right
    poses[:, :3, 2] = forward
    poses[:, :2, 3] = places
    poses[:, 2, 3] = height
    return poses


def _sweep(rng: np.random.Generator, places: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Headings (n,) going round and round, fast past a near wall, slowly where there is a view."""
    yaw, turn = rng.uniform(0, 2 * np.pi), rng.choice((-1, 1)) * np.deg2rad(rng.uniform(12, 16))
    back_at = len(places) // 2 if rng.random() < 0.5 else len(places)
    headings = np.empty(len(places))
    for index, place in enumerate(places):
        view_m = _wall_distance(place, yaw, corners)
        yaw += (turn if index < back_at else -turn) * np.clip(2.2 / view_m, 0.75, 3.0)
        headings[index] = yaw
    return headings


def _wall_distance(place: np.ndarray, yaw: float, corners: np.ndarray) -> float:
    """Metres from a place (2,) to the outline (c, 2) in direction `yaw`."""
    edge = np.roll(corners, -1, axis=0) - corners
    cos, sin = np.cos(yaw), np.sin(yaw)
    offset = corners - place
    across = cos * edge[:, 1] - sin * edge[:, 0]
    across = np.where(np.abs(across) < 1e-9, 1e-9, across)
    distance = (offset[:, 0] * edge[:, 1] - offset[:, 1] * edge[:, 0]) / across
    along_edge = (offset[:, 0] * sin - offset[:, 1] * cos) / across
    ahead = (distance > 0) & (along_edge >= 0) & (along_edge <= 1)
    return float(distance[ahead].min(initial=10.0))
