"""Files: meshes in (ply, obj, glb, stl, pcd), predictions out and in (mesh.ply, instances.npz).

A file is written whole or not at all. Everything that can be wrong with a file is an InputError,
also when somebody made it to do harm: nothing in it is executed, nothing too large is begun.
"""

from __future__ import annotations

import fcntl
import glob
import io
import logging
import math
import os
import secrets
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from unscene_ros.normals import normals_from_faces, normals_from_neighbors
from unscene_ros.ply import ply_bytes, read_ply
from unscene_ros.scene import InputError, Instances, Mesh, Segments, check_array

log = logging.getLogger(__name__)

UNKNOWN_COLOR = 128  # one single colour everywhere means that colour is unknown
MESH_FORMATS = (".ply", ".obj", ".glb", ".stl", ".pcd")
MESH_FILE, INSTANCES_FILE = "mesh.ply", "instances.npz"
MAX_PREDICTION_BYTES = 500e6  # 500 instances in a mesh of 8 million vertices
NPY_HEADER_BYTES = 4096  # at most; numpy writes 128 for a plain array

# Shape and dtype of each array in a file. A name in a shape is any length, the same everywhere.
Layout = Mapping[str, tuple[tuple[int | str, ...], type]]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What the pipeline says about one place; track_ids (N,) int32, one lasting id an instance."""

    mesh: Mesh
    segments: Segments
    instances: Instances
    track_ids: np.ndarray

    def __post_init__(self) -> None:
        vertex_count, segment_count = len(self.mesh.vertices), self.segments.count
        instance_count = len(self.instances.masks)
        check_array("Prediction.segments", self.segments.of_vertex, (vertex_count,), np.int32)
        check_array(
            "Prediction.instances", self.instances.masks, (instance_count, segment_count), np.bool_
        )
        check_array("Prediction.track_ids", self.track_ids, (instance_count,), np.int32)


def prepare_output_folder(path: Path) -> None:
    """Makes the folder and proves that a file can be written there; raises InputError if not."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"output folder {path}: cannot be written ({error.strerror}); choose another with -o"
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when it is complete and on the disk.

    Removes what killed writers of the same file have left. Raises InputError.
    """
    path = Path(path)
    # A name of its own, so that two writers of one file do not mix.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        _remove_left_over_parts(path)
        with part.open("wb") as file:
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name without the content
            os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _remove_left_over_parts(path: Path) -> None:
    """Those that nobody has locked; an empty one may be about to be."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError), part.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_size:
                part.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes new names in it outlast a power cut, where its file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def inside(folder: Path, name: str) -> Path:
    """The path of the file `name` in `folder`, for names that others choose, in a service call.

    Raises InputError for a name that is empty, absolute or leads out of the folder, also by a link.
    """
    given, root = PurePath(name), Path(os.path.realpath(folder))
    try:
        path = Path(os.path.realpath(root / given))
    except ValueError:  # no path at all: a zero byte, for example
        path = root
    leads_out = given.is_absolute() or ".." in given.parts or not path.is_relative_to(root)
    if leads_out or path == root:
        raise InputError(f"{name!r}: expected the name of a file inside {folder}: take such a name")
    return path


def read_mesh(path: Path) -> Mesh:
    """Reads a triangle mesh or a point cloud, in metres.

    Colours that are missing become one mid-grey, normals come from the faces or the neighbours.
    Vertices that are not finite are dropped with their faces, and a warning is logged.
    Raises InputError when the file is missing, unreadable, cut short or without a vertex.
    """
    mesh = _read_any_mesh(Path(path))
    if not len(mesh.vertices):
        raise InputError(f"mesh {path}: expected vertices, got none: is it a mesh or point cloud?")
    return mesh


def _read_any_mesh(path: Path) -> Mesh:
    """As read_mesh, but a file that says it has no vertices is an empty mesh."""
    suffix = path.suffix.lower()
    if suffix not in MESH_FORMATS:
        raise InputError(f"mesh {path}: expected one of {', '.join(MESH_FORMATS)}, got '{suffix}'")
    try:
        with path.open("rb"):
            parts = read_ply(path) if suffix == ".ply" else _read_with_open3d(path, suffix)
    except OSError as error:
        raise InputError(f"mesh {path}: {error.strerror}") from error
    return _checked_mesh(path, *parts)


def _read_with_open3d(path: Path, suffix: str) -> tuple[Any, Any, Any, Any]:
    """(vertices, faces, colors, normals) as Open3D holds them; empty for an unreadable file."""
    import open3d as o3d  # a second to import, so only where it is needed

    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        if suffix == ".pcd":
            cloud = o3d.io.read_point_cloud(path)
            return cloud.points, np.zeros((0, 3), int), cloud.colors, cloud.normals
        mesh = o3d.io.read_triangle_mesh(path)
    # obj, glb and stl repeat a vertex for each face or seam: welded, the surface is whole again.
    mesh.vertex_normals.clear()
    mesh.remove_duplicated_vertices()
    return mesh.vertices, mesh.triangles, mesh.vertex_colors, mesh.vertex_normals


def _checked_mesh(path: Path, vertices: Any, faces: Any, colors: Any, normals: Any) -> Mesh:
    """A Mesh from Open3D's double arrays: finite, indices in range, nothing missing."""
    with np.errstate(over="ignore"):  # too large for a float is not finite, and dropped below
        vertices, normals = np.asarray(vertices, np.float32), np.asarray(normals, np.float32)
    faces, colors = np.asarray(faces), np.asarray(colors)
    if len(faces) and not (faces.min() >= 0 and faces.max() < len(vertices)):
        raise InputError(
            f"mesh {path}: expected faces between vertices 0..{len(vertices) - 1}, "
            f"got {faces.min()}..{faces.max()}"
        )
    finite = np.isfinite(vertices).all(axis=1)
    if not finite.all():
        log.warning("mesh %s: %d vertices that are not finite dropped", path, (~finite).sum())
        new_index = np.cumsum(finite) - 1
        faces = new_index[faces[finite[faces].all(axis=1)]]
        colors, normals = (part[finite] if len(part) else part for part in (colors, normals))
        vertices = vertices[finite]
    faces = faces.astype(np.int32)
    grey = np.full(vertices.shape, UNKNOWN_COLOR, np.uint8)
    colors = np.rint(np.clip(colors, 0, 1) * 255).astype(np.uint8) if len(colors) else grey
    lengths = np.linalg.norm(normals, axis=1)
    if len(normals) and np.isfinite(lengths).all() and (lengths > 0).all():
        normals = normals / lengths[:, None]
    elif len(faces):
        normals = normals_from_faces(vertices, faces)
    else:
        normals = normals_from_neighbors(vertices)
    return Mesh(vertices, faces, colors, normals)


def write_mesh(path: Path, mesh: Mesh) -> None:
    """Writes a binary PLY with normals and colours; raises InputError when it cannot."""
    with whole_file(path) as file:
        file.write(ply_bytes(mesh))


def save_prediction(folder: Path, prediction: Prediction) -> None:
    """Writes mesh.ply and instances.npz into a folder that exists; raises InputError.

    instances.npz: masks (N, ceil(V/8)) uint8, bits packed little end first; scores (N,) float32;
    class_ids, track_ids (N,) int32; instance_of_vertex, segment_of_vertex (V,) int32, -1 none.
    """
    instances, of_vertex = prediction.instances, prediction.segments.of_vertex
    packed = np.zeros((len(instances.masks), (len(of_vertex) + 7) // 8), np.uint8)
    for row, mask in zip(packed, instances.masks, strict=True):
        row[:] = np.packbits(mask[of_vertex], bitorder="little")
    write_mesh(Path(folder) / MESH_FILE, prediction.mesh)
    with whole_file(Path(folder) / INSTANCES_FILE) as file:
        np.savez_compressed(
            file,
            masks=packed,
            scores=instances.scores,
            class_ids=instances.class_ids,
            track_ids=prediction.track_ids,
            instance_of_vertex=instances.of_vertex(prediction.segments),
            segment_of_vertex=of_vertex,
        )


def load_prediction(folder: Path) -> Prediction:
    """Reads what save_prediction wrote; raises InputError for what is missing or does not fit.

    Segments are neighbours where an edge of the mesh joins them.
    """
    mesh = _read_any_mesh(Path(folder) / MESH_FILE)
    path = Path(folder) / INSTANCES_FILE
    vertex_count = len(mesh.vertices)
    layout: Layout = {
        "masks": (("instances", (vertex_count + 7) // 8), np.uint8),
        "scores": (("instances",), np.float32),
        "class_ids": (("instances",), np.int32),
        "track_ids": (("instances",), np.int32),
        "instance_of_vertex": ((vertex_count,), np.int32),
        "segment_of_vertex": ((vertex_count,), np.int32),
    }
    arrays = read_arrays(path, layout, MAX_PREDICTION_BYTES)
    of_vertex = arrays["segment_of_vertex"]
    count = int(of_vertex.max(initial=-1)) + 1
    if of_vertex.min(initial=0) < 0 or len(np.unique(of_vertex)) < count:
        raise InputError(
            f"{path}: segment_of_vertex: expected all ids from 0 on, got "
            f"{of_vertex.min(initial=0)}..{count - 1} with gaps: make the prediction again"
        )
    segments = Segments(of_vertex, _touching(of_vertex, mesh.faces), count)
    masks = np.zeros((len(arrays["masks"]), count), bool)
    for mask, packed in zip(masks, arrays["masks"], strict=True):
        on_vertices = np.unpackbits(packed, count=vertex_count, bitorder="little").astype(bool)
        mask[of_vertex] = on_vertices
        if not np.array_equal(mask[of_vertex], on_vertices):
            raise InputError(f"{path}: expected masks made of whole segments, got a cut segment")
    instances = Instances(masks, arrays["scores"], arrays["class_ids"])
    return Prediction(mesh, segments, instances, arrays["track_ids"])


def read_arrays(
    path: Path,
    layout: Layout | None = None,
    max_bytes: float = math.inf,
    remedy: str = "take a smaller file",
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, all or those of `layout`; nothing in it is executed.

    max_bytes: of the arrays together; remedy: what to do about more. Raises InputError for a file
    that is missing, damaged or holds objects, and, before there is memory for any array, for arrays
    that are missing, of another shape or dtype, or too large.
    """
    try:
        if not Path(path).is_file():  # a pipe would be waited for
            raise InputError(f"{path}: no such file")
        with zipfile.ZipFile(path) as file:
            claims = _claims(file)
            if layout is not None:
                claims = _laid_out(path, claims, layout)
            needed = sum(claim.member.file_size for claim in claims.values())
            if needed > max_bytes:
                raise InputError(
                    f"{path}: expected at most {max_bytes / 1e6:.1f} MB of arrays, got "
                    f"{needed / 1e6:.1f} MB: {remedy}"
                )
            return {name: _array(file, claim.member) for name, claim in claims.items()}
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have a dozen kinds for damaged bytes
        raise InputError(
            f"{path}: expected an .npz file of plain arrays, got a damaged or other file "
            f"({str(error) or repr(error)}): make it again"
        ) from error


class _Claim(NamedTuple):
    """What an .npz file says of an array before its data."""

    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype


def _claims(file: zipfile.ZipFile) -> dict[str, _Claim]:
    """The plain arrays of a file by their names; raises an error for any other content."""
    claims = {}
    for member in file.infolist():
        # Others may take gigabytes for a dictionary to decompress with.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename} has an unknown compression")
        with file.open(member) as stream:
            start = io.BytesIO(stream.read(NPY_HEADER_BYTES))
        if np.lib.format.read_magic(start) != (1, 0):
            raise ValueError(f"{member.filename} is of a version that plain arrays do not need")
        shape, _, dtype = np.lib.format.read_array_header_1_0(start)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"{member.filename} is no plain array")
        if start.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename} is not as long as it says")
        claims[member.filename.removesuffix(".npy")] = _Claim(member, shape, dtype)
    return claims


def _laid_out(path: Path, claims: dict[str, _Claim], layout: Layout) -> dict[str, _Claim]:
    """The arrays of the layout alone; raises InputError where they differ from it."""
    lengths: dict[int | str, int] = {}
    for name, (shape, dtype) in layout.items():
        if name not in claims:
            raise InputError(
                f"{path}: expected an array '{name}', got {', '.join(claims) or 'none'}: "
                "is it a file of another kind or version?"
            )
        claim = claims[name]
        for length, found in zip(shape, claim.shape, strict=False):
            if isinstance(length, str):
                lengths.setdefault(length, found)
        wanted = tuple(lengths.get(length, length) for length in shape)
        if claim.shape != wanted or claim.dtype != dtype:
            raise InputError(
                f"{path}: {name}: expected {wanted} {np.dtype(dtype)}, got {claim.shape} "
                f"{claim.dtype}: is it a file of another kind or version?"
            )
    return {name: claims[name] for name in layout}


def _array(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with file.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _touching(of_vertex: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(E, 2) int32 pairs of segments that a mesh edge joins, once each, smaller id first."""
    pairs = of_vertex[faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)]
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(pairs, axis=0).reshape(-1, 2).astype(np.int32)
