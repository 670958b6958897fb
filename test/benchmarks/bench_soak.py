"""The bundled recording again and again through the live nodes: what grows, slows or flickers.

UNSCENE_SOAK_MINUTES sets for how long; the figures are of the time after the warm-up. All samples
are in output/soak.csv.
"""

import csv
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import LeftOut, row

RECORDING = Path(__file__).parents[1] / "data" / "office_kitchen"
SAMPLES = Path(__file__).parents[2] / "output" / "soak.csv"
MINUTES = float(os.environ.get("UNSCENE_SOAK_MINUTES", "5"))
WARM_UP = 0.3  # of the time: the map grows, arenas and caches fill
SAMPLE_EVERY_S = 2.0
NODES = ("fusion_node", "segmentation_node")
STAGES = {"fusion_node": "fusion", "segmentation_node": "segmentation"}


class Enough(Exception):
    """The time is over."""


@dataclass
class Watch:
    """Samples memory, latency and ids while the nodes run."""

    run: object
    started: float = field(default_factory=time.monotonic)
    minutes: list[float] = field(default_factory=list)
    memory_mb: dict[str, list[float]] = field(default_factory=lambda: {n: [] for n in NODES})
    p95_ms: dict[str, list[float]] = field(default_factory=lambda: {n: [] for n in NODES})
    ids: list[set[int]] = field(default_factory=list)
    known: list[float] = field(default_factory=list)  # objects that can be asked for

    def look(self, listener) -> None:
        """Takes a sample when it is time, and ends the run when that is over."""
        minutes = (time.monotonic() - self.started) / 60
        if self.minutes and minutes < self.minutes[-1] + SAMPLE_EVERY_S / 60:
            return
        self.minutes.append(minutes)
        for node in NODES:
            self.memory_mb[node].append(resident_mb(self.run.processes[node].pid))
            recent = listener.diagnostics.get(node, {}).get("recent", {})
            self.p95_ms[node].append(recent.get(STAGES[node], {}).get("p95_ms", np.nan))
        found = listener.instances.instances if listener.instances else []
        self.ids.append({instance.id for instance in found})
        objects = listener.diagnostics.get("segmentation_node", {}).get("instances", {})
        self.known.append(objects.get("known", np.nan))
        if minutes > MINUTES:
            raise Enough

    def save(self, path: Path) -> None:
        """All samples, one a line."""
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            stages = [STAGES[node] for node in NODES]
            memory, latency = [f"{s}_mb" for s in stages], [f"{s}_p95_ms" for s in stages]
            table.writerow(["minutes", *memory, *latency, "shown", "known"])
            columns = [*self.memory_mb.values(), *self.p95_ms.values()]
            columns += [[len(ids) for ids in self.ids], self.known]
            table.writerows(
                [f"{value:g}" for value in row] for row in zip(self.minutes, *columns, strict=True)
            )

    def after_warm_up(self) -> slice:
        """The samples that count."""
        return slice(int(np.searchsorted(self.minutes, WARM_UP * MINUTES)), None)


def resident_mb(pid: int) -> float:
    """Memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soaked() -> tuple[Watch, dict]:
    """The samples of a whole run, and the fusion node's last figures."""
    from unscene_ros.nodes.demo.live_run import LiveRun
    from unscene_ros.nodes.demo.played_bag import PlayedBag

    parameters = {
        "player_node": {"loop": True},
        "segmentation_node": {"checkpoint": "training-free"},
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        LiveRun(PlayedBag.open(RECORDING), Path(folder), parameters=parameters) as run,
    ):
        watch = Watch(run)
        try:
            run.play(watch.look)
        except Enough:
            return watch, run.listener.diagnostics["fusion_node"]
        raise RuntimeError("the player ended although it was to begin again")


def rows() -> list[dict]:
    try:
        import rclpy  # noqa: F401
        import unscene_ros.msg  # noqa: F401
    except ImportError as error:
        raise LeftOut(f"soak_*: ROS 2 is not installed ({error})") from error
    watch, fusion = soaked()
    watch.save(SAMPLES)
    counted = watch.after_warm_up()
    minutes = np.array(watch.minutes)[counted]
    figures = [("soak_minutes", watch.minutes[-1], "min")]
    for node in NODES:
        memory = np.array(watch.memory_mb[node])[counted]
        first, last = np.array_split(np.array(watch.p95_ms[node])[counted], 2)
        stage = STAGES[node]
        figures += [
            (f"soak_memory_growth_{stage}", np.polyfit(minutes, memory, 1)[0], "MB a minute"),
            (f"soak_p95_{stage}_ms", float(np.nanmedian(last)), "ms"),
            (f"soak_p95_growth_{stage}", np.nanmedian(last) / np.nanmedian(first), "times"),
        ]
    # Of the objects shown when the warm-up ended, and of those at the end: under the same ids.
    before, after = watch.ids[counted][0], watch.ids[-1]
    dropped = sum(fusion.get("dropped", {}).values()) / max(fusion["frames"]["received"], 1)
    figures += [
        ("soak_ids_kept", len(before & after) / max(len(after), 1), "share"),
        ("soak_drop_share", dropped, "share"),
    ]
    return [row("soak", name, float(value), unit, 1) for name, value, unit in figures]
