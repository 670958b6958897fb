"""Tiny data sets for tests, in the layouts in which ScanNet and ARKitScenes are downloaded."""

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

COLOR_SIZE, DEPTH_SIZE = (24, 18), (16, 12)  # width, height
COLOR_K = np.array([[20.0, 0, 11.5], [0, 20, 8.5], [0, 0, 1]])
DEPTH_K = np.array([[13.0, 0, 7.5], [0, 13, 5.5], [0, 0, 1]])
UNKNOWN_POSE = np.full((4, 4), -np.inf)


def color_picture(number: int) -> np.ndarray:
    """(h, w, 3) uint8 RGB, smooth enough for jpeg, another one for each number."""
    picture = np.zeros((*COLOR_SIZE[::-1], 3), np.uint8)
    picture[..., 0] = 10 * number
    picture[..., 1] = np.arange(COLOR_SIZE[0]) * 8
    return picture


def depth_picture(number: int) -> np.ndarray:
    """(H, W) uint16 millimetres, with a hole of no readings."""
    picture = np.full(DEPTH_SIZE[::-1], 1000 + number, np.uint16)
    picture += np.arange(DEPTH_SIZE[0], dtype=np.uint16)
    picture[0, 0] = 0
    return picture


def pose(number: int) -> np.ndarray:
    """(4, 4) world_from_camera: a step along x for each number."""
    matrix = np.eye(4)
    matrix[:3, 3] = 0.25 * number, 0.5, 1.5
    return matrix


def jpeg(picture: np.ndarray) -> bytes:
    """The picture (h, w, 3) RGB as a file."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95]
    return cv2.imencode(".jpg", picture[..., ::-1], options)[1].tobytes()


def sens_header(
    frame_count: int,
    version: int = 4,
    name: bytes = b"StructureSensor",
    formats: tuple[int, int] = (2, 1),
    sizes: tuple[int, ...] = (*COLOR_SIZE, *DEPTH_SIZE),
    units_per_m: float = 1000.0,
) -> bytes:
    """The first part of a .sens file."""
    matrices = np.tile(np.eye(4, dtype="<f4"), (4, 1, 1))
    matrices[0, :3, :3], matrices[2, :3, :3] = COLOR_K, DEPTH_K
    return (
        struct.pack("<IQ", version, len(name))
        + name
        + matrices.tobytes()
        + struct.pack("<2i4IfQ", *formats, *sizes, units_per_m, frame_count)
    )


def sens_frame(
    number: int,
    world_from_camera: np.ndarray | None = None,
    color: bytes | None = None,
    depth: bytes | None = None,
    stamp_us: int = 0,
) -> bytes:
    """One frame of a .sens file."""
    matrix = pose(number) if world_from_camera is None else world_from_camera
    color = jpeg(color_picture(number)) if color is None else color
    depth = zlib.compress(depth_picture(number).tobytes()) if depth is None else depth
    head = matrix.astype("<f4").tobytes()
    head += struct.pack("<4Q", stamp_us, stamp_us, len(color), len(depth))
    return head + color + depth


def write_sens(path: Path, count: int = 6, **header: object) -> Path:
    """A whole stream with a sample of the inertial sensor at its end."""
    frames = b"".join(sens_frame(number) for number in range(count))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sens_header(count, **header) + frames + struct.pack("<Q", 1) + bytes(128))
    return path


# ScanNet


ALIGNED_FROM_SCANNED = np.array([[0, -1, 0, 1.0], [1, 0, 0, 2], [0, 0, 1, -0.5], [0, 0, 0, 1]])
LABEL_MAP = {"wall": 1, "floor": 2, "chair": 5, "office chair": 5, "table": 7, "ceiling": 22}
# Eight strips of the mesh, each a published segment with an id of its own.
STRIP_IDS = np.array([7, 3, 90, 11, 12, 40, 5, 1000])
# Raw label and the strips that it holds; strip 7 is annotated by nobody.
OBJECTS = (
    ("wall", [0]), ("floor", [1]), ("chair", [2]), ("office chair", [3, 4]), ("ceiling", [5]),
    ("something unheard of", [6]),
)  # fmt: skip
CLASS_OF_STRIP = np.array([1, 2, 5, 5, 5, 22, 0, 0])
INSTANCE_OF_STRIP = np.array([-2, -2, 0, 1, 1, -1, -1, -1])


def strip_mesh(rows: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(vertices (V, 3), faces (F, 3), strip of each vertex): a flat sheet of eight strips."""
    columns = 2 * len(STRIP_IDS)
    x, y = np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij")
    vertices = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3).astype(np.float32) * 0.1
    corner = (x * rows + y)[:-1, :-1].ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + rows, corner + 1], axis=1),
            np.stack([corner + rows, corner + rows + 1, corner + 1], axis=1),
        ]
    )
    return vertices, faces.astype(np.int32), (x // 2).ravel()


def scannet_ply(vertices: np.ndarray, faces: np.ndarray, labels: np.ndarray | None = None) -> bytes:
    """A PLY as ScanNet writes it: colours with alpha, no normals, labels where they are given."""
    fields = [("xyz", "<f4", 3), ("rgba", "u1", 4)]
    lines = [f"property float {name}" for name in "xyz"]
    lines += [f"property uchar {name}" for name in ("red", "green", "blue", "alpha")]
    if labels is not None:
        fields.append(("label", "<u2"))
        lines.append("property ushort label")
    rows = np.zeros(len(vertices), fields)
    rows["xyz"], rows["rgba"] = vertices, (200, 100, 50, 255)
    if labels is not None:
        rows["label"] = labels
    corners = np.zeros(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    corners["count"], corners["corners"] = 3, faces
    start = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    end = [f"element face {len(corners)}", "property list uchar int vertex_indices", "end_header\n"]
    header = "\n".join([*start, *lines, *end])
    return header.encode() + rows.tobytes() + corners.tobytes()


def write_scannet(root: Path, *names: str, stream: bool = True) -> Path:
    """A download of ScanNet with these annotated scenes; returns `root`."""
    for name in names:
        write_scannet_scene(root / "scans" / name, stream)
    rows = [f"{i}\t{raw}\t{raw}\t{nyu}" for i, (raw, nyu) in enumerate(LABEL_MAP.items())]
    table = "\n".join(["id\traw_category\tcategory\tnyu40id", *rows, "99\trare\trare\t"])
    (root / "scannetv2-labels.combined.tsv").write_text(table + "\n")
    return root


def write_scannet_scene(folder: Path, stream: bool = True) -> None:
    """One scene: mesh, alignment, segments, objects, classes, and six frames."""
    folder.mkdir(parents=True)
    vertices, faces, strips = strip_mesh()
    name = folder.name
    (folder / f"{name}_vh_clean_2.ply").write_bytes(scannet_ply(vertices, faces))
    (folder / f"{name}_vh_clean_2.labels.ply").write_bytes(
        scannet_ply(vertices, faces, CLASS_OF_STRIP[strips])
    )
    values = " ".join(f"{value:.6f}" for value in ALIGNED_FROM_SCANNED.ravel())
    (folder / f"{name}.txt").write_text(f"appVersion = 1\naxisAlignment = {values} \nm = 2\n")
    (folder / f"{name}_vh_clean_2.0.010000.segs.json").write_text(
        json.dumps({"sceneId": name, "segIndices": STRIP_IDS[strips].tolist()})
    )
    groups = [
        {"id": i, "objectId": i, "label": label, "segments": STRIP_IDS[held].tolist()}
        for i, (label, held) in enumerate(OBJECTS)
    ]
    (folder / f"{name}.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    if stream:
        write_sens(folder / f"{name}.sens")


def write_scannet_frames(folder: Path, numbers: tuple[int, ...] = (0, 100, 200)) -> Path:
    """One scene of scannet_frames_25k."""
    for kind in ("color", "depth", "pose"):
        (folder / kind).mkdir(parents=True)
    for number in numbers:
        stem = f"{number:06d}"
        (folder / f"color/{stem}.jpg").write_bytes(jpeg(color_picture(number // 100)))
        cv2.imwrite(str(folder / f"depth/{stem}.png"), depth_picture(number // 100))
        np.savetxt(folder / f"pose/{stem}.txt", pose(number // 100))
    for kind, matrix in (("color", COLOR_K), ("depth", DEPTH_K)):
        four = np.eye(4)
        four[:3, :3] = matrix
        np.savetxt(folder / f"intrinsics_{kind}.txt", four)
    return folder


# ARKitScenes


START_S, PERIOD_S = 3353.405, 0.1  # of depth pictures


def write_arkit_scene(folder: Path, count: int = 6) -> Path:
    """A scene with small colour pictures: mesh, frames 0.1 s apart, poses 0.05 s beside them."""
    name = folder.name
    for kind in ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics"):
        (folder / kind).mkdir(parents=True)
    vertices, faces, _ = strip_mesh()
    (folder / f"{name}_3dod_mesh.ply").write_bytes(scannet_ply(vertices, faces))
    for number in range(count):
        write_arkit_frame(folder, START_S + number * PERIOD_S, number)
    times = START_S + PERIOD_S * (np.arange(count + 1) - 0.5)
    lines = [arkit_pose_line(time_s, arkit_pose(time_s)) for time_s in times]
    (folder / "lowres_wide.traj").write_text("".join(lines))
    return folder


def write_arkit_frame(folder: Path, time_s: float, number: int) -> None:
    """Colour, depth and lens of one moment."""
    stem = f"{folder.name}_{time_s:.3f}"
    picture = cv2.resize(color_picture(number), DEPTH_SIZE)
    cv2.imwrite(str(folder / f"lowres_wide/{stem}.png"), picture[..., ::-1])
    cv2.imwrite(str(folder / f"lowres_depth/{stem}.png"), depth_picture(number))
    write_pincam(folder / f"lowres_wide_intrinsics/{stem}.pincam", DEPTH_SIZE, DEPTH_K)


def write_pincam(path: Path, size: tuple[int, int], intrinsics: np.ndarray) -> None:
    """The lens of one picture."""
    values = *size, *intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
    path.parent.mkdir(exist_ok=True)
    path.write_text(" ".join(str(value) for value in values))


def arkit_pose(time_s: float) -> np.ndarray:
    """(4, 4) world_from_camera: turning about z and walking along x, both evenly."""
    angle = 0.5 * (time_s - START_S)
    matrix = np.eye(4)
    matrix[:3, :3] = cv2.Rodrigues(np.array([0, 0, angle]))[0]
    matrix[:3, 3] = 2 * (time_s - START_S), 0.5, 1.5
    return matrix


def arkit_pose_line(time_s: float, world_from_camera: np.ndarray) -> str:
    """A line of lowres_wide.traj, which tells camera_from_world."""
    camera_from_world = np.linalg.inv(world_from_camera)
    turn = cv2.Rodrigues(camera_from_world[:3, :3])[0].ravel()
    values = [time_s, *turn, *camera_from_world[:3, 3]]
    return " ".join(f"{value:.9f}" for value in values) + "\n"
