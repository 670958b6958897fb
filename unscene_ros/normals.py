"""Vertex normals of meshes and point clouds.

With faces: Max, "Weights for computing vertex normals from facet normals", 1999 (area weights).
Without: planes fitted to the neighbours, their sides agreed on along the smoothest paths (Hoppe et
al., "Surface reconstruction from unorganized points", SIGGRAPH 1992).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial import cKDTree

FIT_NEIGHBORS = 16  # points in a fitted plane
AGREE_NEIGHBORS = 8  # points that each point may take its side from
NO_DIRECTION = 1e-20  # vectors shorter than this point nowhere


@njit(cache=True)
def normals_from_faces(vertices, faces):
    """(V, 3) float32 unit normals: the area-weighted mean of the faces (F, 3) around each vertex.

    Counter-clockwise faces are seen from the front. A vertex (V, 3) without a face, or whose faces
    cancel out, gets +z.
    """
    sums = np.zeros(vertices.shape)
    for face in faces:
        a, b, c = vertices[face[0]], vertices[face[1]], vertices[face[2]]
        for axis in range(3):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            twice_area = (b[u] - a[u]) * (c[v] - a[v]) - (b[v] - a[v]) * (c[u] - a[u])
            for corner in range(3):
                sums[face[corner], axis] += twice_area
    normals = np.zeros(vertices.shape, np.float32)
    for vertex in range(len(normals)):
        x, y, z = sums[vertex]
        length = np.sqrt(x * x + y * y + z * z)
        if NO_DIRECTION < length < np.inf:
            normals[vertex] = x / length, y / length, z / length
        else:
            normals[vertex, 2] = 1
    return normals


def normals_from_neighbors(points: np.ndarray) -> np.ndarray:
    """(P, 3) float32 unit normals of a point cloud that agree along the surface.

    Which of the two sides is outside is not known; one piece of surface has one side throughout.
    Fewer than three points get +z.
    """
    if len(points) < 3:
        return _unit(np.zeros((len(points), 3)))
    neighbor_count = min(FIT_NEIGHBORS, len(points))
    nearest = cKDTree(points).query(points, neighbor_count, workers=-1)[1]
    normals = _plane_normals(points.astype(np.float64), nearest)
    return _unit(_agreed(normals, nearest[:, 1 : AGREE_NEIGHBORS + 1]))


def _plane_normals(points: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """(P, 3) the direction in which each point's neighbours vary least."""
    normals = np.empty((len(points), 3))
    for start in range(0, len(points), 100_000):  # bounds the memory of the gathered neighbours
        around = points[nearest[start : start + 100_000]]
        offsets = around - around.mean(axis=1, keepdims=True)
        normals[start : start + 100_000] = np.linalg.eigh(offsets.mT @ offsets)[1][:, :, 0]
    return normals


def _agreed(normals: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """(P, 3) the normals, turned so that each has the side of the one before it in the tree."""
    count = len(normals)
    neighbors = neighbors.astype(np.int32)  # the tree of scipy takes no wider indices
    rows = np.repeat(np.arange(count, dtype=np.int32), neighbors.shape[1])
    bends = 1 - np.abs(np.einsum("pc,pkc->pk", normals, normals[neighbors])).ravel()
    # The small constant keeps edges between parallel normals: a stored zero would be no edge.
    graph = csr_array((bends + 1e-9, (rows, neighbors.ravel())), shape=(count, count))
    tree = minimum_spanning_tree(graph)
    previous = _previous_in_tree(tree, count)
    flips = np.where(np.einsum("pc,pc->p", normals, normals[previous]) < 0, -1.0, 1.0)
    # Each round doubles how far back a point has looked, until all have reached their root.
    while (previous != previous[previous]).any():
        flips *= flips[previous]
        previous = previous[previous]
    return normals * flips[:, None]


def _previous_in_tree(tree: csr_array, count: int) -> np.ndarray:
    """(P,) the point before each point on its way from the root of its piece; roots are their own.

    One extra point joins the pieces, so that a single walk visits all of them.
    """
    pieces = connected_components(tree, directed=False)[1]
    roots = np.unique(pieces, return_index=True)[1]
    joined = coo_array(tree)
    edges = (
        np.concatenate((joined.data, np.ones(len(roots)))),
        (
            np.concatenate((joined.coords[0], np.full(len(roots), count))),
            np.concatenate((joined.coords[1], roots)),
        ),
    )
    graph = csr_array(edges, shape=(count + 1, count + 1))
    previous = breadth_first_order(graph, count, directed=False)[1][:count]
    previous[roots] = roots
    return previous


def _unit(vectors: np.ndarray) -> np.ndarray:
    """(V, 3) float32 the vectors at length 1; +z where there is no direction."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = lengths > NO_DIRECTION
    return np.where(known, vectors / np.where(known, lengths, 1), (0, 0, 1)).astype(np.float32)
