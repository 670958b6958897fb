"""The benchmark runner: one bad file costs its own rows only, and nothing goes missing silently."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unscene_ros.provenance import git_commit

BENCHMARKS = Path(__file__).parent / "benchmarks"
KEYS = ("area", "name", "value", "unit", "peer", "peer_value", "ratio", "runs")
GOOD = f"""
import numpy
def rows():
    return [dict(zip({KEYS}, ("cut", "cut_ms", numpy.float32(1.5), "ms", None, None, None, 9)))]
"""
HALF = GOOD.replace("return [", "yield from [") + (
    "    from benchmarks import LeftOut\n    raise LeftOut('the rooms: no recording')\n"
)


@pytest.fixture
def bench(tmp_path):
    """bench({name: source}, *arguments) -> (exit code, rows, printed), in a folder of its own."""
    folder = tmp_path / "test" / "benchmarks"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(BENCHMARKS / name, folder)

    def run(files: dict[str, str], *arguments: str):
        for name, source in files.items():
            (folder / f"bench_{name}.py").write_text(source)
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks", *arguments],
            env=os.environ | {"PYTHONPATH": str(folder.parent), "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        output = tmp_path / "output" / "bench.json"
        rows = json.loads(output.read_text()) if output.exists() else None
        return result.returncode, rows, result.stdout + result.stderr

    return run


def test_rows_are_printed_and_written_as_plain_numbers(bench):
    code, rows, printed = bench({"cut": GOOD})
    assert code == 0
    values = ("cut", "cut_ms", 1.5, "ms", None, None, None, 9)
    assert rows == [dict(zip(KEYS, values, strict=True)) | {"commit": git_commit()}]
    assert "cut_ms" in printed and "cores" in printed


def test_file_that_fails_is_named_and_the_others_still_run(bench):
    code, rows, printed = bench({"broken": "def rows(): return 1 / 0", "cut": GOOD})
    assert code == 1
    assert [row["name"] for row in rows] == ["cut_ms"]
    assert "failed: broken: ZeroDivisionError: division by zero" in printed


def test_row_with_a_missing_key_fails_its_file(bench):
    code, rows, printed = bench({"cut": "def rows(): return [{'area': 'cut'}]"})
    assert (code, rows) == (1, [])
    assert "expected a row with area, name" in printed


def test_what_is_left_out_is_said_and_what_came_before_it_counts(bench):
    code, rows, printed = bench({"cut": HALF})
    assert code == 0
    assert len(rows) == 1
    assert "left out: cut: the rooms: no recording" in printed


def test_only_the_stages_asked_for_are_run(bench):
    broken = "raise RuntimeError('imported')"
    files = {"normalized_cut": GOOD, "fusion": broken, "tracking": broken}
    assert bench(files, "--only", "cut")[0] == 0
    code, _, printed = bench({}, "--only", "cut,cat")
    assert code == 2
    assert "nothing is named cat: fusion, normalized_cut, tracking" in printed


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("bench_*.py")), ids=lambda file: file.stem)
def test_every_bench_file_has_rows(file):
    functions = {
        node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)
    }
    assert "rows" in functions
