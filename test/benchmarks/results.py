"""output/bench.json -> results.json and the results in README.md: run after `make bench`.

What was measured takes the place of the same rows of before; each keeps its commit. A table of
quality, one of speed and memory and one of faults; a figure that was not measured shows as a dash.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unscene_ros.provenance import machine

REPOSITORY = Path(__file__).parents[2]
MEASURED = REPOSITORY / "output" / "bench.json"
KEPT = Path(__file__).with_name("results.json")
README = REPOSITORY / "README.md"
MARK = "<!-- results -->"

METHODS = {
    "default": "**default: network and training-free segmenter**",
    "default_masks": "**the same, its whole ranked list**",
    "default_checkpoint": "**its network alone**, whole ranked list",
    "training_free": "**training-free segmenter**",
    "pseudo_masks": "**the same, its whole ranked list**",
    "euclidean_clusters": "planes removed, Euclidean clusters",
    "hdbscan": "HDBSCAN",
    "felzenszwalb": "Felzenszwalb segments",
}
PLACES = {"rooms": "rooms", "small_house": "house"}
FIGURES = {"ap": "AP", "ap50": "AP50", "ap25": "AP25"}
OTHERS = {
    "pseudo_masks_rooms": "pseudo masks (all hypotheses), rooms",
    "pseudo_mask_precision_rooms": "of them on one object by more than half",
    "pseudo_masks_small_house": "pseudo masks, small house",
    "pseudo_mask_precision_small_house": "of them on one object by more than half",
    "id_switches_small_house": "changes of id, small house",
    "fusion_4cm_ms": "one frame into the map, 4 cm",
    "fusion_2cm_ms": "one frame into the map, 2 cm",
    "map_update_4cm_ms": "mesh of what changed, 4 cm",
    "map_update_2cm_ms": "mesh of what changed, 2 cm",
    "oversegmentation_250k_s": "over-segmentation of 250k vertices",
    "cut_1500_ms": "normalised cut of 1500 segments",
    "cut_3600_ms": "normalised cut of 3600 segments",
    "pseudo_masks_1500_s": "pseudo masks of a scene of 1500 segments",
    "pseudo_masks_paper_1500_s": "the same by the published cuts",
    "freemask_1500_s": "the same by FreeMask",
    "training_step_s": "a training step of the instance network",
    "segment_mesh_room_s": "mesh of the bundled room to instances",
    "sparse_inference_s": "Res16UNet34C on a room of 116k voxels",
    "sparse_inference_torch_s": "the same in plain PyTorch",
    "sparse_inference_of_peak": "share of the peak of torch.mm that it reaches",
    "sparse_training_step_s": "its training step",
    "sparse_inference_memory_mb": "memory of the inference",
    "sparse_training_memory_mb": "memory of the training step",
    "live_training_free_first_instances_s": "live, training-free: first frame to first instances",
    "live_training_free_latency_p50_ms": "picture to markers, median",
    "live_training_free_latency_p95_ms": "picture to markers, 95 %",
    "live_training_free_drop_share": "frames dropped",
    "live_first_instances_s": "live, default: first frame to first instances",
    "live_latency_p50_ms": "picture to markers, median",
    "live_latency_p95_ms": "picture to markers, 95 %",
    "live_drop_share": "frames dropped",
    "soak_minutes": "soak test: the recording again and again, for",
    "soak_memory_growth_fusion": "memory of fusion, after warming up",
    "soak_memory_growth_segmentation": "memory of segmentation, after warming up",
    "soak_p95_growth_fusion": "p95 of fusion, second half to first",
    "soak_p95_growth_segmentation": "p95 of segmentation, second half to first",
    "soak_ids_kept": "objects under the id that they had after warming up",
    "soak_drop_share": "frames dropped",
    "replay_peak_mb": "peak memory of a replay",
    "replay_memory_growth": "its growth when the bag is four times as long",
}
FAULTS = {
    "fault_fusion_killed": "fusion node killed, started again with `resume`",
    "fault_segmentation_killed": "segmentation node killed while fusion goes on, started again",
    "fault_camera_unplugged": "camera unplugged for 30 s",
    "fault_wrong_topic": "camera on other topics",
    "fault_no_tf": "TF stops",
    "fault_qos": "TF with another QoS",
    "fault_spoiled_messages": "400 spoiled messages among good ones",
    "fault_time_set_back": "time goes backwards by 60 s",
    "fault_gpu_memory": "no memory left on the GPU",
    "fault_disk_full": "disk full while a map is saved",
    "fault_overload": "input at five times what can be fused, 60 s",
}
LONGEST_MESSAGE = 120


def main() -> None:
    """Keeps the newest measurements and writes them into the README."""
    if not MEASURED.exists():
        sys.exit(f"expected {MEASURED}: make bench writes it")
    rows = json.loads(MEASURED.read_text())
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if kept.get("machine") == machine():  # figures of two machines do not compare
        names = {row["name"] for row in rows}
        rows = [row for row in kept["rows"] if row["name"] not in names] + rows
    measured = {"machine": machine(), "rows": rows}
    KEPT.write_text(json.dumps(measured, indent=1) + "\n")
    before, _, after = README.read_text().split(MARK)
    README.write_text(before + MARK + rendered(measured) + MARK + after)


def rendered(measured: dict[str, Any] | None) -> str:
    """The tables as Markdown; None: nothing was measured yet."""
    rows = {row["name"]: row for row in measured["rows"]} if measured else {}
    places = [f"{place} {figure}" for place in PLACES.values() for figure in FIGURES.values()]
    quality = [
        [label, *(_percent(rows, f"{f}_{method}_{p}") for p in PLACES for f in FIGURES)]
        for method, label in METHODS.items()
    ]
    others = [[label, *_with_peer(rows.get(name))] for name, label in OTHERS.items()]
    tables = [
        _table(["%", *places], quality),
        _table(["", "measured", "for comparison"], others),
        _table(["fault", "seen as", "recovered in", "lost"], [*_faults(rows)], numbers=False),
    ]
    if measured:
        origin = f"Medians, on {measured['machine']}, at commit {_commits(measured['rows'])}."
    else:
        origin = "Not measured yet."
    return "\n\n" + "\n\n".join([*tables, origin]) + "\n\n"


def _commits(rows: list[dict[str, Any]]) -> str:
    """The commit of most rows, and those of the areas that were measured at another one."""
    counts = Counter(row["commit"] for row in rows)
    [(most, _)] = counts.most_common(1)
    others = {commit: "" for commit in counts if commit != most}
    for commit in others:
        areas = sorted({row["area"] for row in rows if row["commit"] == commit})
        others[commit] = f", {' and '.join(areas)} at `{commit}`"
    return f"`{most}`" + "".join(others.values())


def _table(heading: list[str], rows: list[list[str]], numbers: bool = True) -> str:
    ruler = ["---", *["---:" if numbers else "---"] * (len(heading) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heading, ruler, *rows])


def _faults(rows: dict[str, Any]) -> Iterator[list[str]]:
    for name, label in FAULTS.items():
        if name in rows:
            row = rows[name]
            seen = shortened(row["seen"])
            yield [label, seen, _number(row["value"], row["unit"]), row["lost"] or "nothing"]
        else:
            yield [label, "–", "–", "–"]


def shortened(message: str) -> str:
    """The beginning of a message, as it stands in a cell: nothing in it is Markdown."""
    cut = message[:LONGEST_MESSAGE] + ("…" if len(message) > LONGEST_MESSAGE else "")
    return re.sub(r"[`|<>*]", lambda mark: f"&#{ord(mark[0])};", cut)


def _percent(rows: dict[str, Any], name: str) -> str:
    return f"{100 * rows[name]['value']:.1f}" if name in rows else "–"


def _with_peer(row: dict[str, Any] | None) -> tuple[str, str]:
    """(our value, the peer with its value)."""
    if row is None:
        return "–", ""
    if row["peer"] is None:
        return _number(row["value"], row["unit"]), ""
    return _number(row["value"], row["unit"]), (
        f"{_number(row['peer_value'], row['unit'])} ({row['peer']})"
    )


def _number(value: float, unit: str) -> str:
    if unit in ("share", "0..1"):
        return f"{100 * value:.1f} %"
    return f"{value:.4g} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


if __name__ == "__main__":
    main()
