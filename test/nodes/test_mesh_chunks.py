import numpy as np

from unscene_ros.nodes.mesh_chunks import CHUNK_M, MeshChunks
from unscene_ros.scene import Mesh

EVERYTHING = 1_000_000


def mesh_of_triangles(corners, colors=None):
    """A triangle at each corner (N, 3), 10 cm large."""
    shape = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]])
    vertices = (np.asarray(corners, float).reshape(-1, 1, 3) + shape).reshape(-1, 3)
    count = len(vertices)
    return Mesh(
        vertices.astype(np.float32),
        np.arange(count, dtype=np.int32).reshape(-1, 3),
        np.full((count, 3), 100, np.uint8) if colors is None else colors,
        np.tile(np.float32([0, 0, 1]), (count, 1)),
    )


def permuted(mesh, rng):
    order = rng.permutation(len(mesh.faces))
    return Mesh(mesh.vertices, mesh.faces[order], mesh.colors, mesh.normals)


def triangles(chunks):
    """All triangles of some chunks as a sorted list of their corner coordinates."""
    return sorted(
        tuple(triangle.ravel().round(4))
        for chunk in chunks
        for triangle in chunk.points.reshape(-1, 3, 3)
    )


def test_the_chunks_hold_every_triangle_once():
    mesh = mesh_of_triangles(np.random.default_rng(0).uniform(-5, 5, (200, 3)))
    changed, gone = MeshChunks().update(mesh, EVERYTHING)
    expected = sorted(tuple(t.ravel().round(4)) for t in mesh.vertices[mesh.faces])
    assert triangles(changed) == expected
    assert len({chunk.id for chunk in changed}) == len(changed) > 20
    assert gone == []


def test_an_unchanged_mesh_sends_nothing_whatever_the_order_of_its_triangles():
    rng = np.random.default_rng(0)
    mesh = mesh_of_triangles(rng.uniform(-5, 5, (200, 3)))
    chunks = MeshChunks()
    chunks.update(mesh, EVERYTHING)
    assert chunks.update(permuted(mesh, rng), EVERYTHING) == ([], [])


def test_only_the_chunk_with_a_new_triangle_a_moved_or_a_repainted_one_is_sent():
    places = [(0.5, 0.5, 0.5), (CHUNK_M + 0.5, 0.5, 0.5), (0.5, CHUNK_M + 0.5, 0.5)]
    chunks = MeshChunks()
    ids = [chunk.id for chunk in chunks.update(mesh_of_triangles(places), EVERYTHING)[0]]
    assert len(ids) == 3
    moved = [(0.5, 0.5, 0.501), *places[1:]]
    more = [*moved, (CHUNK_M + 0.9, 0.5, 0.5)]
    repainted = np.full((12, 3), 100, np.uint8)
    repainted[6, 2] = 101
    sent = [
        {chunk.id for chunk in chunks.update(mesh, EVERYTHING)[0]}
        for mesh in (
            mesh_of_triangles(moved),
            mesh_of_triangles(more),
            mesh_of_triangles(more, repainted),
        )
    ]
    assert [len(s) for s in sent] == [1, 1, 1]
    assert set.union(*sent) == set(ids)


def test_a_vanished_chunk_is_reported_once():
    chunks = MeshChunks()
    first = chunks.update(mesh_of_triangles([(0, 0, 0), (9, 0, 0)]), EVERYTHING)[0]
    far = next(chunk.id for chunk in first if chunk.points[0, 0] > 5)
    assert chunks.update(mesh_of_triangles([(0, 0, 0)]), EVERYTHING) == ([], [far])
    assert chunks.update(Mesh.empty(), EVERYTHING)[1] != []
    assert chunks.update(Mesh.empty(), EVERYTHING) == ([], [])


def test_what_does_not_fit_into_an_update_follows_and_the_longest_waiting_goes_first():
    places = np.array([(i * CHUNK_M + 0.5, 0.5, 0.5) for i in range(5)])
    chunks = MeshChunks()
    sent = []
    for step in range(5):  # everything changes all the time, and only one chunk fits
        changed, _ = chunks.update(mesh_of_triangles(places + 0.001 * step), max_triangles=1)
        sent += [chunk.id for chunk in changed]
        assert chunks.remaining == 4
    assert sorted(sent) == sorted(set(sent))
    assert len(sent) == 5
