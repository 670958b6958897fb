"""Vertex normals for meshes and point clouds that were stored without them.

With faces: Max, "Weights for computing vertex normals from facet normals", 1999 (area weights).
Without: planes fitted to the neighbours, their sides agreed on along the smoothest paths (Hoppe et
al., "Surface reconstruction from unorganized points", SIGGRAPH 1992).
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial import cKDTree

FIT_NEIGHBORS = 16  # points in a fitted plane
AGREE_NEIGHBORS = 8  # points that each point may take its side from


def normals_from_faces(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) float32 unit normals, counter-clockwise faces in front; +z where there is no face."""
    first, second, third = vertices[faces.T].astype(np.float64)
    face_normals = np.cross(second - first, third - first)  # as long as twice the face's area
    corners = faces.ravel()
    normals = np.empty((len(vertices), 3))
    for axis in range(3):
        weights = np.repeat(face_normals[:, axis], 3)
        normals[:, axis] = np.bincount(corners, weights, minlength=len(vertices))
    return _unit(normals)


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
    known = lengths > 1e-20
    return np.where(known, vectors / np.where(known, lengths, 1), (0, 0, 1)).astype(np.float32)
