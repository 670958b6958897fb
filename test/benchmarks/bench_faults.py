"""Every fault of test/nodes/faults.py at the defaults: seen as, recovered in, lost."""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import LeftOut, row

NODE_TESTS = Path(__file__).parents[1] / "nodes"
UNPLUGGED_S = 30.0
OVERLOAD_S = 60.0
SPOILED = 400


def rows() -> Iterator[dict]:
    try:
        import rclpy  # noqa: F401
        import unscene_ros.msg  # noqa: F401
    except ImportError as error:
        raise LeftOut(f"fault_*: ROS 2 is not installed ({error})") from error
    # A ROS domain that nobody else on this machine or network has.
    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    sys.path += [str(NODE_TESTS), str(NODE_TESTS.parent)]
    import faults
    from robot import Robot

    for name, cause in {
        "fusion_killed": faults.kill_fusion,
        "segmentation_killed": faults.kill_segmentation,
        "camera_unplugged": partial(
            faults.replace_camera, make_camera=None, words="no frame for", for_s=UNPLUGGED_S
        ),
        "wrong_topic": partial(
            faults.replace_camera, make_camera=faults.CameraElsewhere, words="the nearest topic"
        ),
        "no_tf": partial(
            faults.replace_camera,
            make_camera=faults.CameraWithoutTransforms,
            words="no frame for",
        ),
        "qos": partial(
            faults.replace_camera,
            make_camera=faults.CameraWithUnreliableTransforms,
            words="no frame for",
        ),
        "spoiled_messages": partial(faults.spoil_messages, count=SPOILED),
        "time_set_back": faults.start_over,
        "gpu_memory": faults.exhaust_gpu,
        "disk_full": faults.fill_disk,
        "overload": partial(faults.overload, for_s=OVERLOAD_S),
    }.items():
        # The stamps of these run ahead of real time: as much fewer frames may wait for a transform.
        given = ("fusion_node:max_wait_s:=0.3",) if name == "spoiled_messages" else ()
        with (
            tempfile.TemporaryDirectory() as folder,
            Robot(Path(folder), parameters=given) as robot,
        ):
            outcome = cause(robot)
        measured = row("faults", f"fault_{name}", outcome.recovered_s, "s", 1)
        seen = outcome.seen.replace(f"{folder}/", "")
        yield {**measured, "seen": seen, "lost": told(outcome.lost)}


def told(lost: Counter[str]) -> str:
    """Like "3 frames, too slow; 1 ids"; empty for nothing."""
    return "; ".join(f"{count} {name}" for name, count in sorted(lost.items()))
