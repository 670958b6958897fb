"""A recording through the live ROS 2 nodes: python -m unscene_ros.nodes.demo [BAG] [-o DIR].

The nodes run as processes that talk over DDS; what a subscriber received is written to DIR as
mesh.ply, instances.npz, metrics.json and report.html. With --ground-truth GT.npz it is judged, and
stands beside a replay of the same recording that takes all the time it needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from unscene_ros import DEFAULT_SEGMENTER
from unscene_ros.evaluation import read_ground_truth
from unscene_ros.nodes.conversions import mesh_from_msg
from unscene_ros.nodes.demo.live_listener import MARKERS, LiveListener
from unscene_ros.nodes.demo.live_run import LiveResult, LiveRun
from unscene_ros.nodes.demo.node_process import LiveRunFailed
from unscene_ros.nodes.demo.played_bag import PlayedBag
from unscene_ros.nodes.demo.received_maps import ReceivedMaps
from unscene_ros.nodes.demo.side_by_side import compare_with_replay, judge
from unscene_ros.pipeline import PipelineConfig
from unscene_ros.provenance import provenance
from unscene_ros.report import write_report
from unscene_ros.scene import InputError
from unscene_ros.settings import settings_hash, to_dict
from unscene_ros.storage import (
    MESH_FILE,
    prepare_output_folder,
    save_prediction,
    whole_file,
    write_mesh,
)

BUNDLED_RECORDING = Path(__file__).parents[3] / "test" / "data" / "office_kitchen"
FAILED, USER_MISTAKE, INTERRUPTED = 1, 2, 130


def run_demo(
    recording: Path,
    output: Path,
    rate: float = 1.0,
    segmenter: str = DEFAULT_SEGMENTER,
    ground_truth: Path | None = None,
) -> dict[str, Any]:
    """Plays a bag into the live nodes, writes the four files and returns the metrics.

    segmenter: as parameter `checkpoint` of the segmentation node.
    ground_truth: labelled points (.npz) in the recording's world; every map is judged by them, and
    so is a replay of the recording, written to `output`/offline.
    Raises InputError for a bag that cannot be played or a bad truth, and LiveRunFailed when the
    nodes fail. What the live run gave is written even when the replay fails.
    """
    prepare_output_folder(output / "logs")
    if ground_truth:
        read_ground_truth(ground_truth)  # a mistake in it is told before the run, not after it
    bag = PlayedBag.open(recording)
    with tempfile.TemporaryDirectory(prefix=".maps-", dir=output) as folder:
        maps = ReceivedMaps(Path(folder))
        started = time.monotonic()
        result = _play(bag, output, rate, segmenter, maps if ground_truth else None)
        metrics = _metrics(recording, segmenter, result, time.monotonic() - started)
        save_prediction(output, result.prediction)
        try:
            if ground_truth:
                metrics |= judge(result, maps, ground_truth)
                metrics |= compare_with_replay(
                    metrics, recording, ground_truth, segmenter, output / "offline"
                )
        except BaseException as error:
            metrics["error"] = f"no comparison with a replay: {str(error) or type(error).__name__}"
            raise
        finally:
            _write_figures(output, metrics, result)
    return metrics


def _play(
    bag: PlayedBag, output: Path, rate: float, segmenter: str, maps: ReceivedMaps | None
) -> LiveResult:
    """The live run, with a progress bar; when it fails, the map that came is kept in `output`."""
    parameters = {"segmentation_node": {"checkpoint": segmenter}}
    with LiveRun(bag, output / "logs", rate, parameters, maps) as run, _progress() as progress:
        task = progress.add_task("starting", total=bag.depth_pictures)

        def show(listener: LiveListener) -> None:
            frames = listener.diagnostics.get("fusion_node", {}).get("frames", {"used": 0})
            found = len(listener.instances.instances) if listener.instances else 0
            progress.update(task, completed=frames["used"], description=f"{found} objects")

        try:
            return run.play(show)
        except BaseException:
            if run.listener.mesh is not None:
                write_mesh(output / MESH_FILE, mesh_from_msg(run.listener.mesh))
            raise


def _write_figures(output: Path, metrics: dict[str, Any], result: LiveResult) -> None:
    with whole_file(output / "metrics.json") as file:
        file.write(json.dumps(metrics, indent=2).encode())
    write_report(
        output / "report.html", metrics, result.prediction, result.keyframes, result.received
    )


def _metrics(
    recording: Path, segmenter: str, result: LiveResult, duration_s: float
) -> dict[str, Any]:
    """As replay writes them, and what was received."""
    config, prediction = PipelineConfig(), result.prediction
    return {
        "recording": recording.resolve().stem,
        "segmenter": segmenter,
        "frames": result.frames,
        "map": {"vertices": len(prediction.mesh.vertices), "segments": prediction.segments.count},
        "instances": len(prediction.instances.masks),
        "tracks": result.tracks,
        "latency_ms": result.latency_ms,
        "memory_mb": result.memory_mb,
        "duration_s": duration_s,
        "received": result.received,
        "evaluation": None,
        "quality_over_time": None,
        "settings": to_dict(config),
        "settings_hash": settings_hash(config),
        "seed": 0,
        **provenance(),
    }


def _progress() -> Progress:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(
        *columns, TextColumn("frames"), console=console, disable=not console.is_terminal
    )


def _summary(metrics: dict[str, Any], output: Path) -> str:
    """What happened, in a few lines."""
    frames, received = metrics["frames"], metrics["received"]
    dropped = ", ".join(f"{count} {reason}" for reason, count in frames["dropped"].items())
    first, markers = received["first_instances_s"], received["topics"][MARKERS]
    lines = [
        f"{frames['used']} of {frames['read']} frames fused, dropped: {dropped or 'none'}",
        f"{metrics['instances']} objects on {metrics['map']['vertices']} vertices",
        f"first objects {first:.1f} s after the first frame" if first else "no objects were found",
    ]
    if late := markers["latency_ms"]:
        lines.append(f"picture to markers: median {late['p50']:.0f} ms, p95 {late['p95']:.0f} ms")
    if metrics["evaluation"]:
        live, offline = (
            each["quality_over_time"]["summary"] for each in (metrics, metrics["offline"])
        )
        lines.append(
            f"AP50 of all maps: {_percent(live['mean_ap50'])} live, "
            f"{_percent(offline['mean_ap50'])} offline; found {live['found']} and "
            f"{offline['found']} of {offline['objects']} objects"
        )
    return "\n".join([*lines, f"report: {output / 'report.html'}"])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m unscene_ros.nodes.demo", description=__doc__.split("\n\n")[1]
    )
    parser.add_argument("bag", nargs="?", type=Path, default=BUNDLED_RECORDING)
    parser.add_argument("-o", "--output", type=Path, default=Path("output/demo"))
    parser.add_argument(
        "--ground-truth", type=Path, metavar="GT.npz", help="labelled points, to judge every map"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="2 plays twice as fast")
    parser.add_argument(
        "--segmenter",
        default=DEFAULT_SEGMENTER,
        metavar="NAME",
        help="training-free, default (the network in the package and training-free together), a "
        f"network's FILE, or consensus:FILE for both; without it {DEFAULT_SEGMENTER}",
    )
    options = parser.parse_args(arguments)
    try:
        metrics = run_demo(
            options.bag, options.output, options.rate, options.segmenter, options.ground_truth
        )
    except InputError as error:
        print(f"demo: {error}", file=sys.stderr)
        return USER_MISTAKE
    except LiveRunFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return INTERRUPTED
    print(_summary(metrics, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
