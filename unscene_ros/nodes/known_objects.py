"""The objects that the robot knows of: kept as long as their surface is there, and asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from geometry_msgs.msg import Point

from unscene_ros.msg import Instance, InstanceArray
from unscene_ros.scene import InputError
from unscene_ros.srv import GetInstances


class KnownObjects:
    """Each object as it was last found; one that a map misses once is not forgotten."""

    def __init__(self) -> None:
        self._newest = InstanceArray()
        self._of_id: dict[int, Instance] = {}

    def __len__(self) -> int:
        return len(self._of_id)

    def update(self, array: InstanceArray) -> None:
        """Takes what the newest map shows; what vanished is forgotten, another map forgets all."""
        known = dict(self._of_id) if array.map_id == self._newest.map_id else {}
        for gone in array.gone_ids:
            known.pop(gone, None)
        known |= {instance.id: instance for instance in array.instances}
        # Whole at once: services read it from another thread.
        self._of_id, self._newest = known, array

    def answer(self, request: GetInstances.Request) -> GetInstances.Response:
        """The objects that meet all conditions; the message says how many, or what is wrong."""
        newest, known = self._newest, self._of_id
        response = GetInstances.Response(
            header=newest.header, map_id=newest.map_id, map_revision=newest.map_revision
        )
        try:
            conditions = _conditions(request)
        except InputError as error:
            response.message = str(error)
            return response
        found = [
            known[each] for each in sorted(known) if all(meets(known[each]) for meets in conditions)
        ]
        response.success, response.instances = True, found
        response.message = f"{len(found)} of {len(known)} objects"
        return response


def _conditions(request: GetInstances.Request) -> Iterable[Callable[[Instance], bool]]:
    conditions: list[Callable[[Instance], bool]] = []
    if classes := set(request.class_ids):
        conditions.append(lambda instance: instance.class_id in classes)
    if ids := set(request.ids):
        conditions.append(lambda instance: instance.id in ids)
    if request.box:
        if len(request.box) != 2:
            raise InputError(f"box: expected two opposite corners, got {len(request.box)} points")
        corners = np.array([_xyz("box", corner) for corner in request.box])
        low, high = corners.min(axis=0), corners.max(axis=0)
        conditions.append(lambda instance: _is_between(low, _center(instance), high))
    distance = request.max_distance
    if distance:
        if not distance > 0:
            raise InputError(f"max_distance: expected more than 0 m, got {distance}")
        point = _xyz("point", request.point)
        conditions.append(lambda instance: math.dist(_center(instance), point) <= distance)
    return conditions


def _is_between(low: np.ndarray, point: np.ndarray, high: np.ndarray) -> bool:
    return bool(((low <= point) & (point <= high)).all())


def _center(instance: Instance) -> np.ndarray:
    position = instance.pose.position
    return np.array([position.x, position.y, position.z])


def _xyz(name: str, point: Point) -> np.ndarray:
    values = np.array([point.x, point.y, point.z])
    if not np.isfinite(values).all():
        raise InputError(f"{name}: expected finite coordinates in metres, got {values.tolist()}")
    return values
