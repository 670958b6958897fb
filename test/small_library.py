"""A library of the small scan of boxes, for tests of what is learned from scans."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from small_scan import CAMERA, small_frames

from training.scans.library import Library
from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.scene import Mesh
from unscene_ros.storage import write_mesh


@cache
def small_mesh() -> Mesh:
    """The fused frames."""
    volume = TsdfVolume(FusionConfig())
    for frame in small_frames():
        volume.integrate(frame)
    return volume.extract_mesh()


def write_small_library(root: Path, *names: str, frame_count: int = 12) -> Library:
    """The same scan under each name: frames of a camera that circles the boxes, and their mesh."""
    for name in names:
        folder = root / "scans" / name
        for kind in ("color", "depth", "pose"):
            (folder / kind).mkdir(parents=True)
        for number, frame in enumerate(small_frames(frame_count)):
            stem = f"{number:06d}"
            cv2.imwrite(str(folder / f"color/{stem}.png"), frame.color[..., ::-1])
            depth_mm = np.rint(1000 * frame.depth).astype(np.uint16)
            cv2.imwrite(str(folder / f"depth/{stem}.png"), depth_mm)
            np.savetxt(folder / f"pose/{stem}.txt", frame.world_from_camera)
        np.savetxt(folder / "intrinsic.txt", CAMERA.intrinsics)
        write_mesh(folder / "mesh.ply", small_mesh())
    return Library(root)
