"""The segmented maps of a live run, kept on disk, to be judged when the nodes have ended.

Judging takes time that the nodes would miss, and many maps would fill the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unscene_ros.scene import Instances, Mesh, Segments
from unscene_ros.storage import Prediction, read_arrays, whole_file


class ReceivedMaps:
    """A folder with a file for each map, of some 16 bytes a vertex."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, prediction: Prediction, picture_s: float, result_s: float) -> None:
        """Times are as QualityOverTime takes them. Raises InputError when the disk is full."""
        instances = prediction.instances
        with whole_file(self._path(self._count)) as file:
            np.savez(
                file,
                vertices=prediction.mesh.vertices,
                segment_of_vertex=prediction.segments.of_vertex,
                masks=instances.masks,
                scores=instances.scores,
                class_ids=instances.class_ids,
                track_ids=prediction.track_ids,
                times_s=np.array([picture_s, result_s]),
            )
        self._count += 1

    def __iter__(self) -> Iterator[tuple[Prediction, float, float]]:
        """The arguments of each `add`, in order; of a mesh only the vertices come back."""
        for number in range(self._count):
            arrays = read_arrays(self._path(number))
            vertices, masks = arrays["vertices"], arrays["masks"]
            mesh = Mesh(
                vertices,
                np.zeros((0, 3), np.int32),
                np.zeros(vertices.shape, np.uint8),
                np.zeros_like(vertices),
            )
            no_neighbors = np.zeros((0, 2), np.int32)
            segments = Segments(arrays["segment_of_vertex"], no_neighbors, masks.shape[1])
            instances = Instances(masks, arrays["scores"], arrays["class_ids"])
            prediction = Prediction(mesh, segments, instances, arrays["track_ids"])
            picture_s, result_s = arrays["times_s"].tolist()
            yield prediction, picture_s, result_s

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npz"
