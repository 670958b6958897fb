"""A live run beside the deterministic replay of its recording, both judged by one truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unscene_ros.evaluation import evaluate, read_ground_truth
from unscene_ros.nodes.demo.live_run import LiveResult
from unscene_ros.nodes.demo.received_maps import ReceivedMaps
from unscene_ros.quality_over_time import QualityOverTime
from unscene_ros.replay import ReplayConfig, replay


def judge(live: LiveResult, maps: ReceivedMaps, ground_truth: Path) -> dict[str, Any]:
    """What the truth says of a live run: `evaluation` and `quality_over_time` of metrics.json."""
    truth = read_ground_truth(ground_truth)
    quality = QualityOverTime(truth)
    for each in maps:
        quality.add(*each)
    return {
        "evaluation": evaluate([(live.prediction, truth)]),
        "quality_over_time": quality.figures(),
    }


def compare_with_replay(
    live: dict[str, Any], recording: Path, ground_truth: Path, segmenter: str, output: Path
) -> dict[str, Any]:
    """Replays the recording of a judged live run into `output`; returns what metrics.json adds.

    live: metrics of the live run. The replay fuses every frame and segments as often as the live
    nodes did: `offline` has its figures, `side_by_side` both with their gap. Raises what `replay`
    raises.
    """
    maps = live["quality_over_time"]["summary"]["maps"]
    options = ReplayConfig(segment_every_frames=max(1, round(live["frames"]["read"] / maps)))
    replayed = replay(
        recording, output, segmenter_name=segmenter, ground_truth=ground_truth, options=options
    )
    kept = "frames", "evaluation", "quality_over_time", "replay"
    return {
        "offline": {name: replayed[name] for name in kept},
        "side_by_side": side_by_side(live, replayed),
    }


def side_by_side(
    live: dict[str, Any], offline: dict[str, Any]
) -> dict[str, dict[str, float | None]]:
    """{figure: {"live", "offline", "gap"}} of two runs' metrics; null where one is undefined."""
    pairs = {name: (value, _figures(offline)[name]) for name, value in _figures(live).items()}
    return {
        name: {"live": ours, "offline": theirs, "gap": _difference(ours, theirs)}
        for name, (ours, theirs) in pairs.items()
    }


def _figures(metrics: dict[str, Any]) -> dict[str, float | None]:
    frames = metrics["frames"]
    return {
        "drop_share": 1 - frames["used"] / frames["read"],
        **{name: metrics["evaluation"][name] for name in ("ap", "ap50", "ap25")},
        **metrics["quality_over_time"]["summary"],
    }


def _difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs
