"""Cuts a mesh into cubes of space and tells which of them changed since they were last sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from unscene_ros.scene import Mesh

CHUNK_M = 2.0
CHUNK_AXIS_BITS = 10  # ids repeat after 2^10 chunks along an axis: two kilometres
_HASH_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64
)


@dataclass(frozen=True, slots=True, eq=False)
class MeshChunk:
    """The triangles of one cube, corner by corner: points (3n, 3) float32, colors (3n, 3) uint8."""

    id: int
    points: np.ndarray
    colors: np.ndarray


class MeshChunks:
    """Remembers what was sent of a growing mesh, so that only changes travel."""

    def __init__(self) -> None:
        self.remaining = 0  # chunks that are left for the next update
        self._hash_of_sent: dict[int, int] = {}
        self._sent_at: dict[int, int] = {}
        self._updates = 0

    def update(self, mesh: Mesh, max_triangles: int) -> tuple[list[MeshChunk], list[int]]:
        """Chunks that changed and ids of chunks that vanished.

        About `max_triangles` are sent at most (one chunk always is): the chunk that has waited
        longest goes first, the rest follows with the next updates.
        """
        self._updates += 1
        chunks = {chunk: (hashed, faces) for chunk, hashed, faces in _chunks(mesh)}
        gone = [chunk for chunk in self._hash_of_sent if chunk not in chunks]
        for chunk in gone:
            del self._hash_of_sent[chunk], self._sent_at[chunk]
        changed = [c for c, (hashed, _) in chunks.items() if self._hash_of_sent.get(c) != hashed]
        sent: list[MeshChunk] = []
        triangles = 0
        for chunk in sorted(changed, key=lambda c: self._sent_at.get(c, 0)):
            hashed, faces = chunks[chunk]
            triangles += len(faces)
            if sent and triangles > max_triangles:
                break
            corners = faces.reshape(-1)
            sent.append(MeshChunk(chunk, mesh.vertices[corners], mesh.colors[corners]))
            self._hash_of_sent[chunk], self._sent_at[chunk] = hashed, self._updates
        self.remaining = len(changed) - len(sent)
        return sent, gone


def _chunks(mesh: Mesh) -> Iterator[tuple[int, int, np.ndarray]]:
    """Id, hash and faces of each cube that holds the first corner of a triangle."""
    cube = np.floor(mesh.vertices[mesh.faces[:, 0]] / CHUNK_M).astype(np.int64)
    cube &= (1 << CHUNK_AXIS_BITS) - 1
    chunk_of_face = cube @ (1 << CHUNK_AXIS_BITS * np.arange(3))
    order = np.argsort(chunk_of_face, kind="stable")
    ids, starts = np.unique(chunk_of_face[order], return_index=True)
    if not len(ids):
        return
    # A sum does not depend on the order of the triangles, which differs between extractions.
    hashes = np.add.reduceat(_face_hashes(mesh)[order], starts)
    for chunk, hashed, faces in zip(
        ids, hashes, np.split(mesh.faces[order], starts[1:]), strict=True
    ):
        yield int(chunk), int(hashed), faces


def _face_hashes(mesh: Mesh) -> np.ndarray:
    """(F,) uint64 from the bits of the corners' positions and colours."""
    vertex = mesh.vertices.view(np.uint32).astype(np.uint64) @ _HASH_FACTORS[:3]
    vertex += (mesh.colors.astype(np.uint64) @ np.array([1, 256, 65536], np.uint64)) * (
        _HASH_FACTORS[3]
    )
    face = vertex[mesh.faces].sum(axis=1) * _HASH_FACTORS[0]
    return (face ^ (face >> np.uint64(29))) * _HASH_FACTORS[1]
