"""Who does the work of a step: this process, several of this machine, or a Ray cluster.

Every crew takes items and gives back how each of them ended, as they end.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from unscene_ros.scene import InputError

Item = tuple[str, Any]  # its name for people, and what the work is called with
Work = Callable[[Any], None]

LOCAL = "local"  # as the address of a cluster: one on this machine, for as long as it is needed
_CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """How one attempt failed."""

    message: str
    traceback: str = ""  # of an error that nobody foresaw
    died: bool = False  # the worker did, so that another attempt may go well


class Crew(Protocol):
    """Those who do the work, some items at a time."""

    @property
    def size(self) -> int:
        """How many items are in hand at a time."""

    @property
    def size_again(self) -> int:
        """The same for items whose worker died, when they are tried again."""

    def start(self, item: Item) -> None:
        """Begins with an item."""

    def next_finished(self) -> tuple[Item, Trouble | None]:
        """Waits for one of those begun, whichever ends first."""

    def close(self) -> None:
        """Stops at once; unfinished items are given up."""


def _attempt(work: Work, argument: Any) -> Trouble | None:
    """Works; a failure comes back as text, since not every exception can be pickled."""
    try:
        work(argument)
    except InputError as error:
        return Trouble(str(error))
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        return Trouble(f"{error.filename}: {reason}" if error.filename else reason)
    except Exception as error:
        what = traceback.format_exception_only(error)[-1].strip()
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return Trouble(f"{what} (unexpected, in {place})", traceback.format_exc())
    return None


class ThisProcess:
    """Works here and now: one item after the other, all of it within reach of a debugger."""

    size = size_again = 1

    def __init__(self, work: Work) -> None:
        self._work = work
        self._finished: tuple[Item, Trouble | None]

    def start(self, item: Item) -> None:
        self._finished = item, _attempt(self._work, item[1])

    def next_finished(self) -> tuple[Item, Trouble | None]:
        return self._finished

    def close(self) -> None:
        pass


class Processes:
    """Processes of this machine, each with a pipe of its own, so that a dead one names its item.

    They are spawned: the threads of PyTorch and OpenMP do not survive a fork.
    """

    size_again = 1  # with the memory to itself

    def __init__(self, work: Work, size: int) -> None:
        self.size = size
        self._work = work
        self._context = get_context("spawn")
        self._hired: list[BaseProcess] = []
        self._idle: list[tuple[Connection, BaseProcess]] = []
        self._busy: dict[Connection, tuple[Item, BaseProcess]] = {}

    def start(self, item: Item) -> None:
        connection, process = self._idle.pop() if self._idle else self._hire()
        self._busy[connection] = item, process
        with suppress(BrokenPipeError, ConnectionResetError):  # dead: next_finished will see it
            connection.send(item[1])

    def next_finished(self) -> tuple[Item, Trouble | None]:
        connection = wait(list(self._busy))[0]
        assert isinstance(connection, Connection)
        item, process = self._busy.pop(connection)
        try:
            trouble = connection.recv()
        except (EOFError, OSError):
            process.join()
            connection.close()
            return item, Trouble(_how_it_died(process.exitcode), died=True)
        self._idle.append((connection, process))
        return item, trouble

    def close(self) -> None:
        # What they made is on disk, so nothing is lost by killing them.
        for process in self._hired:
            process.kill()
        for process in self._hired:
            process.join()

    def _hire(self) -> tuple[Connection, BaseProcess]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._work))
        with _environment_of_workers(max(1, core_count() // self.size)):
            process.start()
        self._hired.append(process)
        theirs.close()  # so that the pipe ends when the process does
        return ours, process


def _serve(connection: Connection, work: Work) -> None:
    """What a process of `Processes` does, until the other end of its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all: one will do
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send(_attempt(work, connection.recv()))


def _how_it_died(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return "its process was killed; was the memory full? Fewer --workers need less"
    if exit_code is not None and exit_code < 0:
        return f"its process died of {signal.Signals(-exit_code).name}"
    return f"its process ended with exit code {exit_code}"


@contextmanager
def _environment_of_workers(threads: int) -> Iterator[None]:
    """What processes started meanwhile inherit: their share of threads; the user's choice stays.

    The libraries read these variables when they are loaded, which is too early for `_serve`.
    """
    before = dict(os.environ)
    os.environ.update(_thread_limits(threads) | before)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def _thread_limits(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
    return dict.fromkeys(names, str(threads))


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class RayCluster:
    """Tasks on a Ray cluster, one CPU each."""

    def __init__(self, work: Work, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        try:
            import ray
        except ImportError as error:
            raise InputError(
                "--ray: Ray is not installed; pip install 'unscene_ros[cluster]', or use --workers"
            ) from error
        self._ray = ray
        self._is_ours = not ray.is_initialized()
        if self._is_ours and address == LOCAL:
            _start(ray)
        elif self._is_ours:
            _connect(ray, address)
        # `fan_out` alone tries again, and asks first whether the result is there.
        task = ray.remote(num_cpus=1, max_retries=0)(_attempt_in_folder)
        self._task = task.options(runtime_env={"env_vars": _thread_limits(1)})
        self._work = ray.put(work)
        self._running: dict[Any, Item] = {}

    @property
    def size(self) -> int:
        # Twice what runs at a time: no CPU waits, and an autoscaler sees that more are wanted.
        return 2 * max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    size_again = size

    def start(self, item: Item) -> None:
        self._running[self._task.remote(os.getcwd(), self._work, item[1])] = item

    def next_finished(self) -> tuple[Item, Trouble | None]:
        errors = self._ray.exceptions
        (reference,), _ = self._ray.wait(list(self._running), num_returns=1)
        item = self._running.pop(reference)
        try:
            return item, self._ray.get(reference)
        except (errors.RayTaskError, errors.RuntimeEnvSetupError) as error:
            return item, Trouble(f"its task could not start: {_last_line(error)}", str(error))
        except errors.LocalRayletDiedError as error:
            raise InputError(
                "--ray: Ray has stopped on this machine; what was finished is kept"
            ) from error
        except errors.RayError as error:
            return item, Trouble(f"its worker died: {_first_sentence(error)}", died=True)

    def close(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        if self._is_ours:
            self._ray.shutdown()


def _start(ray: Any) -> None:
    """Starts a Ray of this machine alone; it waits half a minute, too short for a busy one."""
    for is_last in (False, False, True):
        try:
            ray.init(address=LOCAL, include_dashboard=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # it raises nothing narrower
            ray.shutdown()
            if is_last:
                raise InputError(
                    f"--ray {LOCAL}: Ray did not start ({_first_sentence(error)}); --workers does "
                    "without it"
                ) from error


def _connect(ray: Any, address: str) -> None:
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for many minutes
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        ray.init(address=address, logging_level=logging.WARNING)
    except (OSError, ImportError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(
            f"--ray {address}: expected HOST:PORT as `ray start --head` prints it, or '{LOCAL}', "
            f"got: {_first_sentence(error)}"
        ) from error


def _attempt_in_folder(folder: str, work: Work, argument: Any) -> Trouble | None:
    """As `_attempt`, where relative paths mean what they mean to who gave the work."""
    try:
        os.chdir(folder)
    except OSError as error:
        return Trouble(f"{socket.gethostname()} has no folder {folder} ({error.strerror})")
    return _attempt(work, argument)


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0]


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]
