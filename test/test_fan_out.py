"""A step over many items: what fails, dies or is interrupted, in processes and on a local Ray."""

import argparse
import errno
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from training import crews, fan_out
from training.fan_out import Failure, add_fan_out_options, failures_at_end, for_each
from unscene_ros.scene import InputError

REPOSITORY = Path(__file__).parents[1]
NO_RAY = not importlib.util.find_spec("ray") and os.environ.get("UNSCENE_REQUIRE_RAY") != "1"
needs_ray = pytest.mark.skipif(NO_RAY, reason="Ray is not installed")
RAY = pytest.param("ray", marks=needs_ray)


@dataclass(frozen=True)
class Task:
    """What becomes of an item: the name says how it behaves."""

    folder: Path
    name: str

    @property
    def result(self) -> Path:
        return self.folder / f"{self.name}.result"

    def is_made(self) -> bool:
        return self.result.exists()


def work(task: Task) -> None:
    """Notes the attempt, behaves as the name says, writes the result."""
    with (task.folder / "attempts").open("a") as file:
        file.write(f"{task.name} {os.getpid()}\n")
    is_first = attempts(task.folder)[task.name] == 1
    if task.name == "mistake":
        raise InputError("scan mistake: expected frames, got none")
    if task.name == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/full.npz")
    if task.name == "bug":
        raise unpicklable_error()
    if task.name == "dies" or (task.name == "dies once" and is_first):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.name == "exits":
        os._exit(3)
    if (task.name == "waits once" and is_first) or task.name.startswith("waits long"):
        time.sleep(60)
    task.result.write_text("made")
    if task.name == "dies afterwards":
        os.kill(os.getpid(), signal.SIGKILL)


def unpicklable_error() -> Exception:
    class LocalError(Exception):
        def __init__(self) -> None:
            super().__init__("no such channel", lambda: None)

        def __str__(self) -> str:
            return "no such channel"

    return LocalError()


def attempts(folder: Path) -> Counter:
    """How often work was begun on each item."""
    lines = (folder / "attempts").read_text().splitlines()
    return Counter(line.rpartition(" ")[0] for line in lines)


def process_ids(folder: Path) -> set[int]:
    lines = (folder / "attempts").read_text().splitlines()
    return {int(line.rpartition(" ")[2]) for line in lines}


def made(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.result")}


def items(folder: Path, *names: str) -> list[tuple[str, Task]]:
    return [(name, Task(folder, name)) for name in names]


def numbered(count: int) -> list[str]:
    return [f"{number:02d}" for number in range(count)]


@pytest.fixture(scope="module")
def cluster():
    """A Ray on this machine, whose workers can import this file."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
        crews._start(ray)
        yield
        ray.shutdown()


@pytest.fixture(params=["processes", pytest.param("ray", marks=[needs_ray, pytest.mark.slow])])
def many(request):
    """`for_each` with two workers of either kind."""
    if request.param == "processes":
        return partial(for_each, workers=2)
    request.getfixturevalue("cluster")
    return partial(for_each, ray="local")


def test_twenty_items_with_every_kind_of_trouble_and_a_second_run_makes_what_is_missing(
    many, tmp_path
):
    good = numbered(14)
    names = [*good[:5], "bug", "mistake", "dies once", *good[5:], "dies", "exits", "full"]
    failures = many(items(tmp_path, *names), work, title="trying", is_made=Task.is_made)

    assert [failure.name for failure in failures] == ["bug", "mistake", "dies", "exits", "full"]
    messages = {failure.name: failure.message for failure in failures}
    assert messages["mistake"] == "scan mistake: expected frames, got none"
    assert messages["full"] == "/data/full.npz: No space left on device"
    assert messages["bug"].startswith("test_fan_out.unpicklable_error.<locals>.LocalError: no such")
    assert "unexpected, in test_fan_out.py:" in messages["bug"]
    assert "died" in messages["dies"] or "killed" in messages["dies"]
    assert made(tmp_path) == {*good, "dies once"}
    twice = {"dies once", "dies", "exits"}
    assert attempts(tmp_path) == {name: 1 + (name in twice) for name in names}

    (tmp_path / "07.result").unlink()
    (tmp_path / "attempts").unlink()
    failures = many(items(tmp_path, *names[:15]), work, title="again", is_made=Task.is_made)
    assert [failure.name for failure in failures] == ["bug", "mistake"]
    assert attempts(tmp_path) == {"bug": 1, "mistake": 1, "07": 1}


@pytest.mark.parametrize("many", ["processes", RAY], indirect=True)
def test_when_a_worker_is_killed_in_the_middle_nothing_is_lost_and_nothing_done_twice(
    many, tmp_path
):
    names = [*numbered(6), "waits once", *numbered(20)[6:]]
    killed = []

    def kill_the_waiting_worker() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not killed:
            with_process = (tmp_path / "attempts").read_text() if made(tmp_path) else ""
            for line in with_process.splitlines():
                if line.startswith("waits once "):
                    killed.append(int(line.split()[-1]))
                    os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill_the_waiting_worker)
    killer.start()
    failures = many(items(tmp_path, *names), work, title="killed", is_made=Task.is_made)
    killer.join()
    assert killed and failures == []
    assert made(tmp_path) == set(names)
    assert attempts(tmp_path) == {name: 1 + (name == "waits once") for name in names}


def test_an_item_that_was_finished_when_its_worker_died_is_not_done_again(many, tmp_path):
    pairs = items(tmp_path, "dies afterwards", *numbered(4))
    assert many(pairs, work, title="late", is_made=Task.is_made) == []
    assert attempts(tmp_path) == {name: 1 for name, _ in pairs}


@pytest.mark.slow
@needs_ray
def test_a_local_ray_is_started_for_the_work_and_stopped_after_it(tmp_path, monkeypatch):
    import ray

    ray.shutdown()  # that of the other tests; it is started again where it is needed
    monkeypatch.chdir(tmp_path)
    pairs = [(name, f"{name}.made") for name in numbered(3)]
    write_here = partial(Path.write_text, data="made")  # importable everywhere
    assert for_each([(name, Path(path)) for name, path in pairs], write_here, ray="local") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [path for _, path in pairs]
    assert not ray.is_initialized()


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:10001"])
def test_a_cluster_that_is_not_there_is_a_sentence(tmp_path, monkeypatch, address):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # that of the other tests
    with pytest.raises(InputError, match=f"--ray {address}: expected HOST:PORT"):
        for_each(items(tmp_path, "00"), work, ray=address)


@needs_ray
def test_a_ray_that_does_not_start_is_a_sentence(tmp_path, monkeypatch):
    import ray

    def too_slow(**options):
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_slow)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(InputError, match=r"--ray local: Ray did not start \(The .* startup\)"):
        for_each(items(tmp_path, "00"), work, ray="local")


def test_without_ray_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="pip install"):
        for_each(items(tmp_path, "00"), work, ray="local")


def test_interruption_stops_at_once_and_keeps_what_was_finished(tmp_path):
    code = f"import test_fan_out as t; t.work_long(t.Path({str(tmp_path)!r}))"
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "test")])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        begun = attempts(tmp_path) if (tmp_path / "attempts").exists() else {}
        if {"waits long 0", "waits long 1"} <= set(begun):
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all processes get it
    _, stderr = process.communicate(timeout=20)  # not the minute that its items would take
    assert stderr.count("KeyboardInterrupt") == 1, stderr  # the workers stay silent
    assert made(tmp_path) == {"00", "01"}
    assert "02" not in attempts(tmp_path)
    for process_id in process_ids(tmp_path):
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)


def work_long(folder: Path) -> None:
    for_each(items(folder, "00", "01", "waits long 0", "waits long 1", "02"), work, workers=2)


def note_threads(folder: Path) -> None:
    import cv2
    import numba
    import torch

    counts = cv2.getNumThreads(), numba.config.NUMBA_NUM_THREADS, torch.get_num_threads()
    (folder / "threads").write_text(" ".join(map(str, counts)))


def test_workers_have_their_share_of_threads_and_this_process_stays_as_it_was(
    tmp_path, monkeypatch
):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(crews, "core_count", lambda: 1)
    before = dict(os.environ)
    assert for_each([("scan", tmp_path)], note_threads, workers=2) == []
    assert (tmp_path / "threads").read_text() == "1 1 1"
    assert dict(os.environ) == before


def note_environment(path: Path) -> None:
    path.write_text(f"{os.environ['OMP_NUM_THREADS']} {os.environ['NUMBA_NUM_THREADS']}")


def test_fewer_workers_have_more_threads_and_the_users_own_number_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(crews, "core_count", lambda: 7)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    pairs = [(name, tmp_path / name) for name in "ab"]
    assert for_each(pairs, note_environment, workers=2) == []
    assert (tmp_path / "a").read_text() == "5 3"


def note_process(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(0.3)  # so that one worker does not do it all


@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (0, 3)])
def test_one_worker_is_this_process_and_zero_is_one_for_each_core(
    tmp_path, monkeypatch, workers, processes
):
    monkeypatch.setattr(fan_out, "core_count", lambda: 3)
    pairs = [(name, tmp_path / name) for name in numbered(6)]
    assert for_each(pairs, note_process, workers=workers) == []
    ids = {int(path.read_text()) for _, path in pairs}
    if workers == 1:
        assert ids == {os.getpid()}
    else:
        assert os.getpid() not in ids and len(ids) <= processes


def test_in_this_process_failures_are_collected_too(tmp_path):
    failures = for_each(items(tmp_path, "00", "bug", "full", "mistake", "01"), work)
    assert [failure.name for failure in failures] == ["bug", "full", "mistake"]
    assert made(tmp_path) == {"00", "01"}


def test_an_unexpected_error_is_logged_with_its_traceback_and_a_mistake_is_not(tmp_path, caplog):
    for_each(items(tmp_path, "mistake", "bug"), work)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("bug: Traceback") and "raise unpicklable_error()" in message


def test_an_item_whose_state_cannot_be_told_is_worked_on(tmp_path):
    def is_made(task: Task) -> bool:
        raise InputError("scan 00: no mesh.ply")

    assert for_each(items(tmp_path, "00"), work, is_made=is_made) == []
    assert made(tmp_path) == {"00"}


def test_wrong_input_is_an_error_before_any_work(tmp_path):
    with pytest.raises(InputError, match="--workers: expected 0"):
        for_each(items(tmp_path, "00"), work, workers=-1)
    with pytest.raises(InputError, match="expected every name once, got 00 twice"):
        for_each(items(tmp_path, "00", "01", "00"), work)
    assert made(tmp_path) == set()


def test_no_items_and_none_missing_is_nothing_to_do(tmp_path, capsys):
    assert for_each([], work, workers=2, title="fusing") == []
    assert for_each(items(tmp_path, "00"), work, is_made=lambda task: True) == []
    assert not (tmp_path / "attempts").exists()
    assert "fusing: nothing to do" in capsys.readouterr().err


def test_without_a_terminal_progress_is_a_line_now_and_then(tmp_path, capsys, monkeypatch):
    pairs = items(tmp_path, *numbered(4), "mistake")
    pairs[0][1].result.write_text("made before")
    for_each(pairs, work, title="features", is_made=Task.is_made)
    assert capsys.readouterr().err == "features: 5 of 5, 1 failed, 0 s left\n"
    monkeypatch.setattr(fan_out, "_LINE_EVERY_S", 0)
    for_each(pairs, work, title="again")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"again: {n} of 5" for n in range(1, 6)]


def test_failures_at_the_end_are_listed_and_decide_the_exit_code(capsys):
    assert failures_at_end([]) == 0
    assert capsys.readouterr().err == ""
    assert failures_at_end([Failure("room_00003", "disk full"), Failure("b", "no frames")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["failed: room_00003: disk full", "failed: b: no frames"]
    assert lines[2].startswith("2 failed; the same command again")


def test_options_are_either_workers_or_ray(capsys):
    parser = argparse.ArgumentParser()
    add_fan_out_options(parser)
    default = parser.parse_args([])
    assert (default.workers, default.ray) == (1, None)
    assert parser.parse_args(["--workers", "4"]).workers == 4
    assert parser.parse_args(["--ray", "10.0.0.1:6379"]).ray == "10.0.0.1:6379"
    with pytest.raises(SystemExit):
        parser.parse_args(["--workers", "4", "--ray", "local"])
