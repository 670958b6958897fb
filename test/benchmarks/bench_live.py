"""The bundled recording at its own speed through the live nodes: losses, latency, first objects."""

import statistics
import tempfile
from pathlib import Path

from benchmarks import LeftOut, row

RECORDING = Path(__file__).parents[1] / "data" / "office_kitchen"
RUNS = 3


def received() -> dict:
    """What a subscriber got of one run."""
    from unscene_ros.nodes.demo.live_run import LiveRun
    from unscene_ros.nodes.demo.played_bag import PlayedBag

    with (
        tempfile.TemporaryDirectory() as folder,
        LiveRun(PlayedBag.open(RECORDING), Path(folder)) as run,
    ):
        return run.play().received


def rows() -> list[dict]:
    try:
        import rclpy  # noqa: F401
        import unscene_ros.msg  # noqa: F401
    except ImportError as error:
        raise LeftOut(f"live_*: ROS 2 is not installed ({error})") from error
    runs = [received() for _ in range(RUNS)]
    late = [run["stamp_to_marker_ms"] for run in runs]
    figures = (
        ("live_drop_share", [run["drop_share"] for run in runs], "share"),
        ("live_latency_p50_ms", [each["p50"] for each in late], "ms"),
        ("live_latency_p95_ms", [each["p95"] for each in late], "ms"),
        ("live_first_instances_s", [run["first_instances_s"] for run in runs], "s"),
    )
    return [
        row("live", name, statistics.median(values), unit, RUNS) for name, values, unit in figures
    ]
