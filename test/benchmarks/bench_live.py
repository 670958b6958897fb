"""The bundled recording at its own speed through the live nodes: losses, latency, first objects."""

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import LeftOut, row
from unscene_ros import DEFAULT_SEGMENTER

RECORDING = Path(__file__).parents[1] / "data" / "office_kitchen"
RUNS = 3


def received(segmenter: str) -> dict:
    """What a subscriber got of one run."""
    from unscene_ros.nodes.demo.live_run import LiveRun
    from unscene_ros.nodes.demo.played_bag import PlayedBag

    parameters = {"segmentation_node": {"checkpoint": segmenter}}
    with (
        tempfile.TemporaryDirectory() as folder,
        LiveRun(PlayedBag.open(RECORDING), Path(folder), parameters=parameters) as run,
    ):
        return run.play().received


def rows() -> Iterator[dict]:
    try:
        import rclpy  # noqa: F401
        import unscene_ros.msg  # noqa: F401
    except ImportError as error:
        raise LeftOut(f"live_*: ROS 2 is not installed ({error})") from error
    for name, segmenter in (("live", DEFAULT_SEGMENTER), ("live_training_free", "training-free")):
        runs = [received(segmenter) for _ in range(RUNS)]
        late = [run["stamp_to_marker_ms"] for run in runs]
        figures = (
            ("drop_share", [run["drop_share"] for run in runs], "share"),
            ("latency_p50_ms", [each["p50"] for each in late], "ms"),
            ("latency_p95_ms", [each["p95"] for each in late], "ms"),
            ("first_instances_s", [run["first_instances_s"] for run in runs], "s"),
        )
        for figure, values, unit in figures:
            yield row("live", f"{name}_{figure}", statistics.median(values), unit, RUNS)
