"""The one training loop: a network, samples and a loss in, a network that has learned out.

`learn` goes on wherever it was stopped or killed and ends with the same weights, with one process
or, under torchrun, with several. What it learns from, and by which loss, is the caller's.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from training.distributed import choose_device, joined_processes
from training.optimization import Loss, Training
from training.run_folder import claim, read_state, write_state
from training.training_log import TrainingLog
from unscene_ros.scene import InputError
from unscene_ros.settings import to_dict

SAMPLE_FAILED = 1000  # a reason to stop; others are the numbers of signals

Sampler = Callable[[int, int], Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    """How to learn. What is in `WHERE_IT_RUNS` may change when a run goes on."""

    steps: int = 10_000
    batch_size: int = 8  # samples a step, of all processes together
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-4  # the highest of the schedule
    weight_decay: float = 0.01
    # one_cycle: up over the first 30 % of the steps, then down by a cosine (Smith and Topin, 2019);
    # poly: down to 0 as (1 - step / steps)^0.9.
    schedule: Literal["one_cycle", "poly", "constant"] = "one_cycle"
    max_gradient_norm: float = 10.0  # longer gradients are cut to this length; 0: never
    # auto: float32 on the CPU; on CUDA bfloat16, or float16 where the GPU has no bfloat16.
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = 0
    checkpoint_every: int = 500  # steps
    device: Literal["auto", "cuda", "cpu"] = "auto"
    workers: int = 2  # threads that make samples, in each process
    ahead: int = 16  # samples that they make before they are needed
    threads: int = 0  # that compute on the CPU, in each process; 0: all cores


WHERE_IT_RUNS = ("checkpoint_every", "device", "workers", "ahead", "threads")


def deciding_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings, in all their sections, without those of `WHERE_IT_RUNS`."""
    return {
        name: deciding_settings(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if name not in WHERE_IT_RUNS
    }


@dataclass(frozen=True, slots=True)
class LearningResult:
    """loss: "total" of the last step. seconds: without interruptions.

    peak_memory_mb: of the first process; on CUDA of its tensors there.
    """

    steps: int
    loss: float
    seconds: float
    peak_memory_mb: float


def learn(
    network: nn.Module,
    sample: Sampler,
    loss: Loss,
    config: LearnerConfig,
    folder: Path,
    *,
    sample_count: int,
    identity: Mapping[str, Any],
) -> LearningResult:
    """Trains the network in place and leaves it on the device, in evaluation mode.

    sample(item, visit) -> what `loss` takes, made in threads. All that is random in it comes from
    its arguments: item from 0 to sample_count - 1, and visit, the number of the epoch. An epoch
    visits each item once, in an order of its own. loss(network, samples) -> "total", which is
    minimised, and its parts, the same ones in each step. It moves the samples to the network's
    device and draws random numbers from PyTorch's own generators, which each step seeds anew.

    folder: of the run: run.json (its settings), state.pt, log.csv and tensorboard/. identity: plain
    values that decide the result beside `config`, as the settings of network and data, and hashes
    of files. The same run goes on where it was, on the CPU to the bit, and a finished one returns
    at once. Ctrl-C and SIGTERM save the state.

    Under torchrun each process takes its share of the batch, and gradients are averaged: a loss is
    a mean over its samples or divides by what all processes have, divided by their number. It calls
    network(...) in each process, also when its samples are empty. All see one folder; the first
    process writes.

    Raises InputError for a folder of another run, a damaged state, a full disk, a sample that fails
    and a loss that is no longer finite.
    """
    _check(config, sample_count)
    folder, device = Path(folder), choose_device(config.device)
    torch.set_num_threads(config.threads or _cores())
    settings = deciding_settings(to_dict(config))
    run = {**identity, "learner": settings, "sample_count": sample_count}
    with joined_processes(device) as processes:
        if config.batch_size % processes.count:
            raise InputError(
                f"batch_size: expected a multiple of the {processes.count} processes, "
                f"got {config.batch_size}"
            )
        claim(folder, run, write=processes.first)
        training = Training(network.to(device).train(), config, processes)
        training.restore(read_state(folder))
        if training.step < config.steps:
            _go_on(training, sample, loss, sample_count, folder)
    network.eval()
    return LearningResult(training.step, training.loss, training.seconds, training.peak_memory_mb)


def _check(config: LearnerConfig, sample_count: int) -> None:
    if sample_count < 1:
        raise InputError("learning: expected at least one sample, got none")
    for name in ("steps", "batch_size", "checkpoint_every", "workers"):
        if getattr(config, name) < 1:
            raise InputError(f"{name}: expected at least 1, got {getattr(config, name)}")
    for name in ("learning_rate", "weight_decay", "max_gradient_norm", "seed", "ahead", "threads"):
        if not 0 <= getattr(config, name) < math.inf:
            raise InputError(f"{name}: expected a number from 0 on, got {getattr(config, name)}")


def _cores() -> int:
    """That this process may use, shared with the others that torchrun started here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _go_on(
    training: Training, sample: Sampler, loss: Loss, sample_count: int, folder: Path
) -> None:
    """The steps that are left."""
    config, processes = training.config, training.processes
    size = config.batch_size
    positions = range(training.step * size, config.steps * size)[processes.rank :: processes.count]
    made = _batches(
        sample,
        _visits(sample_count, positions, config.seed),
        size // processes.count,
        config.workers,
        config.ahead,
    )
    training_log = TrainingLog(folder, training.step, config.steps) if processes.first else None

    def save() -> None:
        state = training.state()
        if training_log:
            training_log.flush()
            write_state(folder, state)

    with training_log or nullcontext(), closing(made), _StopSignals() as stop:
        while training.step < config.steps:
            started = time.perf_counter()
            failure: InputError | None = None
            try:
                samples = next(made)
            except InputError as error:
                failure = error
            # All processes end after the same step, whichever of them is asked to or fails.
            if reason := processes.largest(SAMPLE_FAILED if failure else stop.number):
                save()
                log.warning("stopped after step %d; the same run goes on there", training.step)
                raise failure or _ended_by(reason)
            measured = training.advance(samples, loss)
            seconds = time.perf_counter() - started
            training.seconds += seconds
            if training_log:
                epoch = (training.step - 1) * size // sample_count
                times = {"seconds": training.seconds, "samples_per_second": size / seconds}
                training_log.write({"step": training.step, "epoch": epoch, **measured, **times})
            if training.step % config.checkpoint_every == 0 or training.step == config.steps:
                save()


def _batches(
    sample: Sampler, visits: Iterator[tuple[int, int]], size: int, workers: int, ahead: int
) -> Generator[list[Any], None, None]:
    """Batches of `size` samples while there are visits, made in threads before they are needed.

    The same ones with any number of threads. Threads and not processes: a sample is mostly numpy,
    which lets others run meanwhile, and nothing has to be copied or to survive a fork. Raises
    InputError when a sample fails, in the step that needs it; close it to end the threads.
    """
    waiting: deque[tuple[int, int, Future[Any]]] = deque()
    with ThreadPoolExecutor(workers, "sample") as pool:
        try:
            while True:
                for item, visit in islice(visits, size + ahead - len(waiting)):
                    waiting.append((item, visit, pool.submit(sample, item, visit)))
                if len(waiting) < size:
                    return
                yield [_made(*waiting.popleft()) for _ in range(size)]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _visits(sample_count: int, positions: range, seed: int) -> Iterator[tuple[int, int]]:
    """(item, visit) at each position of an endless row of epochs.

    Each epoch visits every item once, in an order of its own; its number is that of the visit.
    """
    order: np.ndarray = np.zeros(0, np.int64)
    order_of = -1
    for position in positions:
        epoch, place = divmod(position, sample_count)
        if epoch != order_of:
            order, order_of = np.random.default_rng((seed, epoch)).permutation(sample_count), epoch
        yield int(order[place]), epoch


def _made(item: int, visit: int, future: Future[Any]) -> Any:
    try:
        return future.result()
    except Exception as error:
        reason = error if isinstance(error, InputError) else repr(error)
        raise InputError(
            f"sample {item} (visit {visit}): {reason}: repair or leave out what it is made from"
        ) from error


class _StopSignals:
    """Ctrl-C and SIGTERM wait for the end of a step; asked for a second time, they do not."""

    def __init__(self) -> None:
        self.number = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        if threading.current_thread() is threading.main_thread():  # others get no signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.number:
            raise _ended_by(number)
        self.number = number


def _ended_by(reason: int) -> BaseException:
    """What ends the process as this signal would have, or since another process had to end."""
    if reason == SAMPLE_FAILED:
        return InputError("another process of this run failed: its message says why")
    return KeyboardInterrupt() if reason == signal.SIGINT else SystemExit(128 + reason)
