"""Where a result comes from: code, packages and machine, for metrics.json and benchmarks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import psutil

import unscene_ros

PACKAGES = (
    "numpy",
    "scipy",
    "numba",
    "scikit-learn",
    "open3d",
    "open3d-cpu",
    "opencv-python-headless",
    "rosbags",
    "torch",
    "transformers",
)


def provenance() -> dict[str, Any]:
    """{"git": commit or None, "versions": {package: version}, "machine": one line}."""
    return {"git": git_commit(), "versions": versions(), "machine": machine()}


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with -dirty after it when changed.

    None for an installed copy, also when that lies inside some other repository.
    """
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, **QUIET)
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            **QUIET,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


QUIET: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10}


def versions() -> dict[str, str]:
    """Versions of this package, Python and those of PACKAGES that are installed."""
    found = {"unscene_ros": unscene_ros.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Processor, cores this process may use, memory and system in one line."""
    gigabytes = psutil.virtual_memory().total / 1e9
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.release()}"
    return f"{_processor()}, {cores} cores, {gigabytes:.0f} GB, {system}"


def _processor() -> str:
    names = _values(Path("/proc/cpuinfo"), "model name")
    return names[0] if names else platform.machine()


def peak_memory_mb() -> float:
    """The most memory this process has held so far, in megabytes."""
    # What getrusage says on Linux includes the process that started this one.
    kilobytes = _values(Path("/proc/self/status"), "VmHWM")
    if kilobytes:
        return int(kilobytes[0].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


def _values(path: Path, key: str) -> list[str]:
    """What follows `key:` in the lines of a file of the system; nothing where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]
