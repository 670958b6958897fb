"""A live run beside the deterministic replay of its recording, both judged by one truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unscene_ros.evaluation import evaluate, read_ground_truth
from unscene_ros.nodes.demo.live_run import LiveResult
from unscene_ros.nodes.demo.received_maps import ReceivedMaps
from unscene_ros.quality_over_time import QualityOverTime
from unscene_ros.replay import ReplayConfig, replay


def compare_with_replay(
    recording: Path,
    ground_truth: Path,
    live: LiveResult,
    maps: ReceivedMaps,
    segmenter: str,
    output: Path,
) -> dict[str, Any]:
    """Judges a live run, replays its recording into `output`, and returns what metrics.json adds.

    `evaluation` and `quality_over_time` are of the live run, `offline` has those of the replay,
    which fuses every frame and segments as often as the live nodes did. `side_by_side` has
    {figure: {"live", "offline", "gap": live - offline}}. Raises what `replay` raises.
    """
    truth = read_ground_truth(ground_truth)
    quality = QualityOverTime(truth)
    for each in maps:
        quality.add(*each)
    judged = {
        "frames": live.frames,
        "evaluation": evaluate([(live.prediction, truth)]),
        "quality_over_time": quality.figures(),
    }
    options = ReplayConfig(segment_every_frames=max(1, round(live.frames["used"] / len(maps))))
    replayed = replay(
        recording, output, segmenter_name=segmenter, ground_truth=ground_truth, options=options
    )
    offline = {key: replayed[key] for key in (*judged, "replay")}
    return {**judged, "offline": offline, "side_by_side": side_by_side(judged, offline)}


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
