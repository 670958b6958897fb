"""The training loop: exact resume, honest folders and logs, several processes as one."""

import csv
import math
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny_learning
import torch
from tiny_learning import (
    ITEMS,
    SPARSE_RUNS,
    STEPS,
    dense_config,
    dense_loss,
    dense_network,
    dense_run,
    dense_sample,
    sparse_run,
    weights,
)
from torch import nn

from training.learner import LearnerConfig, learn
from training.optimization import MOST_SKIPPED
from unscene_ros.scene import InputError

REPOSITORY = Path(__file__).parents[1]


def learn_dense(folder, network=None, sample=dense_sample, loss=dense_loss, **changes):
    network = network or dense_network()
    learn(
        network, sample, loss, dense_config(**changes), folder,
        sample_count=ITEMS, identity={"data": "dense"},
    )  # fmt: skip
    return weights(network)


@contextmanager
def started(*arguments: str, launcher: tuple[str, ...] = ()) -> Iterator[subprocess.Popen]:
    """`tiny_learning` as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, tiny_learning.__file__, *arguments]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def rows_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    path, deadline = folder / "log.csv", time.monotonic() + 100
    while not path.exists() or path.read_text().count("\n") <= step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it does not learn"
        time.sleep(0.002)


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder and weights of `dense_run`."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, dense_run(folder)


class Interruption(Exception):
    """What stops a run in this process."""


def fails_in_step(step: int):
    """A loss that fails once, in the step of this number, counted from 1."""
    calls = iter(range(1, 10**6))

    def loss(network, samples):
        if next(calls) == step:
            raise Interruption
        return dense_loss(network, samples)

    return loss


def test_learning_lowers_the_loss_and_reports_it(tmp_path):
    network = dense_network()
    result = learn(
        network, dense_sample, dense_loss, dense_config(), tmp_path,
        sample_count=ITEMS, identity={},
    )  # fmt: skip
    losses = [row["total"] for row in rows_of(tmp_path)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert (result.steps, result.loss) == (STEPS, losses[-1])
    assert result.seconds > 0 and result.peak_memory_mb > 10
    assert not network.training


def test_a_finished_run_returns_at_once_with_its_weights(uninterrupted):
    def untouched(*_):
        raise AssertionError("there is nothing left to learn")

    folder, expected = uninterrupted
    before = (folder / "log.csv").read_bytes()
    assert_same(learn_dense(folder, sample=untouched, loss=untouched), expected)
    assert (folder / "log.csv").read_bytes() == before


def test_killed_at_any_step_it_ends_with_the_same_weights_and_log(tmp_path, uninterrupted):
    whole_folder, expected = uninterrupted
    step = random.randrange(1, STEPS - 10)
    with started("dense", str(tmp_path), "7") as process:
        wait_for_step(tmp_path, step, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert_same(dense_run(tmp_path), expected)
    measured = [
        [(row["step"], row["epoch"], row["learning_rate"], row["total"]) for row in rows_of(folder)]
        for folder in (tmp_path, whole_folder)
    ]
    assert measured[0] == measured[1], f"killed after step {step}"


def test_sigterm_saves_the_step_it_was_in(tmp_path, uninterrupted):
    with started("dense", str(tmp_path), "1000") as process:
        wait_for_step(tmp_path, 9, process)
        process.terminate()
        told = process.communicate()[1]
        assert process.returncode == 128 + signal.SIGTERM
    done = len(rows_of(tmp_path))
    assert f"stopped after step {done}" in told
    assert torch.load(tmp_path / "state.pt")["numbers"][0] == done
    assert_same(dense_run(tmp_path), uninterrupted[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "schedule": "poly"},
        {"schedule": "constant", "max_gradient_norm": 0.0},
        {"precision": "bfloat16"},
        {"precision": "float16"},
    ],
    ids=str,
)
def test_every_kind_of_run_resumes_exactly(changes, tmp_path):
    expected = learn_dense(tmp_path / "whole", **changes)
    with pytest.raises(Interruption):
        learn_dense(tmp_path / "part", loss=fails_in_step(40), **changes)
    assert_same(learn_dense(tmp_path / "part", **changes), expected)
    losses = [row["total"] for row in rows_of(tmp_path / "part")]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_the_number_of_threads_that_make_samples_changes_nothing(tmp_path, uninterrupted):
    def late_sample(item, visit):
        time.sleep(0.001 * ((7 * item + visit) % 5))
        return dense_sample(item, visit)

    learned = learn_dense(tmp_path, sample=late_sample, workers=5, ahead=0)
    assert_same(learned, uninterrupted[1])


def test_an_epoch_visits_each_item_once_in_an_order_of_its_own(tmp_path):
    seen, lock = [], threading.Lock()

    def sample(item, visit):
        with lock:
            seen.append((visit, item))
        return dense_sample(item, visit)

    learn_dense(tmp_path, sample=sample, workers=1, steps=10)  # 40 samples: 4 epochs
    orders = [[item for visit, item in seen if visit == epoch] for epoch in range(4)]
    assert [visit for visit, _ in seen] == sorted(visit for visit, _ in seen)
    assert all(sorted(order) == list(range(ITEMS)) for order in orders)
    assert all(order != other for order, other in pairwise(orders))


def test_samples_are_not_made_long_before_they_are_needed(tmp_path):
    made = []
    most = []

    def loss(network, samples):
        time.sleep(0.005)  # time enough to make too many
        most.append(len(made) - 4 * len(most))
        return dense_loss(network, samples)

    def sample(item, visit):
        made.append(item)
        return dense_sample(item, visit)

    learn_dense(tmp_path, sample=sample, loss=loss, steps=8, ahead=3)
    assert 4 < max(most) <= 4 + 3
    assert len(made) == 4 * 8


def test_a_failing_sample_is_named_and_costs_no_step(tmp_path, uninterrupted):
    def sample(item, visit):
        if (item, visit) == (5, 2):
            raise OSError("scan 5 is gone")
        return dense_sample(item, visit)

    with pytest.raises(InputError, match=r"sample 5 \(visit 2\).*scan 5 is gone"):
        learn_dense(tmp_path, sample=sample, checkpoint_every=1000)
    assert torch.load(tmp_path / "state.pt")["numbers"][0] == len(rows_of(tmp_path)) >= 5
    assert_same(learn_dense(tmp_path), uninterrupted[1])


def test_another_run_does_not_continue_in_the_folder(tmp_path, uninterrupted):
    folder, expected = uninterrupted
    with pytest.raises(InputError, match=r"learner\.learning_rate is 0\.03 there, 0\.02 now"):
        learn_dense(folder, learning_rate=0.02)
    with pytest.raises(InputError, match=r"data is 'dense' there, 'other' now.*another folder"):
        learn(
            dense_network(), dense_sample, dense_loss, dense_config(), folder,
            sample_count=ITEMS, identity={"data": "other"},
        )  # fmt: skip
    assert_same(learn_dense(folder, workers=1, checkpoint_every=99), expected)


def test_a_folder_that_does_not_say_which_run_it_holds_is_refused(tmp_path):
    learn_dense(tmp_path, steps=2)
    (tmp_path / "run.json").write_text("[3")
    with pytest.raises(InputError, match=r"run\.json: expected the settings of a run"):
        learn_dense(tmp_path, steps=2)
    (tmp_path / "run.json").unlink()
    with pytest.raises(InputError, match=r"lost its run\.json"):
        learn_dense(tmp_path, steps=2)


def test_the_state_of_another_network_is_refused(tmp_path):
    learn_dense(tmp_path, steps=2)
    with pytest.raises(InputError, match=r"does not fit this network"):
        learn_dense(tmp_path, network=nn.Sequential(nn.Linear(4, 1)), steps=2)


def test_a_damaged_state_is_an_error(tmp_path):
    learn_dense(tmp_path, steps=2)
    path = tmp_path / "state.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"state\.pt.*damaged"):
        learn_dense(tmp_path, steps=2)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"state\.pt.*damaged"):
        learn_dense(tmp_path, steps=2)


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_state_cannot_run_code(tmp_path):
    learn_dense(tmp_path / "run", steps=2)
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(RunsCode(trace)))
    assert trace.exists()
    trace.unlink()
    torch.save({"numbers": RunsCode(trace)}, tmp_path / "run" / "state.pt")
    with pytest.raises(InputError, match=r"state\.pt.*damaged"):
        learn_dense(tmp_path / "run", steps=2)
    assert not trace.exists()


def test_a_full_disk_leaves_the_old_state(tmp_path, uninterrupted):
    with pytest.raises(Interruption):
        learn_dense(tmp_path, loss=fails_in_step(10))
    before = (tmp_path / "state.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(InputError, match=r"state\.pt: cannot be written \(File too large\)"):
            learn_dense(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} <= {
        "state.pt", "run.json", "log.csv", "tensorboard",
    }  # fmt: skip
    assert_same(learn_dense(tmp_path), uninterrupted[1])


def broken_in(steps):
    """A loss that is NaN in these steps, counted from 0, and spoils the running statistics."""
    calls = iter(range(10**6))

    def loss(network, samples):
        broken = next(calls) in steps
        samples = [sample * math.nan for sample in samples] if broken else samples
        return dense_loss(network, samples)

    return loss


def test_a_step_whose_loss_is_not_finite_changes_nothing(tmp_path, caplog):
    before = weights(dense_network())
    assert_same(learn_dense(tmp_path / "one", loss=broken_in({0}), steps=1), before)
    assert "step 1 skipped: loss nan" in caplog.text
    learned = learn_dense(tmp_path / "many", loss=broken_in({3, 4, 20}))
    assert all(np.isfinite(value).all() for value in learned.values())
    assert [row["step"] for row in rows_of(tmp_path / "many") if math.isnan(row["total"])] == [
        4, 5, 21,
    ]  # fmt: skip


def test_a_loss_that_stays_not_finite_ends_the_run(tmp_path):
    with pytest.raises(InputError, match=rf"{MOST_SKIPPED} steps up to step {5 + MOST_SKIPPED}"):
        learn_dense(tmp_path, loss=broken_in(range(5, 1000)))


@pytest.mark.parametrize("longest", [0.0, 0.01])
def test_a_step_of_sgd_follows_the_clipped_gradient(longest, tmp_path):
    network, by_hand = dense_network()[0], dense_network()[0]

    def loss(network, samples):
        return {"total": network(torch.stack(samples)).square().mean()}

    samples = [torch.arange(4.0), torch.ones(4)]
    loss(by_hand, samples)["total"].backward()
    gradients = [parameter.grad for parameter in by_hand.parameters()]
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    factor = min(1.0, longest / norm) if longest else 1.0
    config = dense_config(
        steps=1, batch_size=2, optimizer="sgd", schedule="constant", learning_rate=0.1,
        weight_decay=0.0, max_gradient_norm=longest,
    )  # fmt: skip
    learn(
        network, lambda item, _: samples[item], loss, config, tmp_path, sample_count=2, identity={}
    )
    for got, parameter, gradient in zip(
        network.parameters(), by_hand.parameters(), gradients, strict=True
    ):
        torch.testing.assert_close(got, parameter - 0.1 * factor * gradient)
    assert rows_of(tmp_path)[0]["gradient_norm"] == pytest.approx(norm)


def test_the_learning_rate_follows_its_schedule(tmp_path):
    rates = {}
    for schedule in ("one_cycle", "poly", "constant"):
        learn_dense(tmp_path / schedule, schedule=schedule, steps=20, learning_rate=0.5)
        rates[schedule] = [row["learning_rate"] for row in rows_of(tmp_path / schedule)]
    steps = np.arange(20)
    np.testing.assert_allclose(rates["constant"], np.full(20, 0.5))
    np.testing.assert_allclose(rates["poly"], 0.5 * (1 - steps / 20) ** 0.9)
    # From 1/25 of the highest rate up for 30 % of the steps, down to a 10,000th of the first.
    up, down = 0.3 * 20 - 1, 0.7 * 20
    cosine = (1 - np.cos(np.pi * np.where(steps <= up, steps / up, (steps - up) / down))) / 2
    low, lowest = 0.5 / 25, 0.5 / 25e4
    expected = np.where(steps <= up, low + (0.5 - low) * cosine, 0.5 - (0.5 - lowest) * cosine)
    np.testing.assert_allclose(rates["one_cycle"], expected)


def test_the_log_has_a_row_of_numbers_a_step(uninterrupted):
    folder, _ = uninterrupted
    text = (folder / "log.csv").read_text()
    assert text.splitlines()[0] == (
        "step,epoch,learning_rate,total,error,gradient_norm,seconds,samples_per_second"
    )
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["epoch"] for row in rows] == [4 * step // ITEMS for step in range(STEPS)]
    assert all(row["total"] == pytest.approx(2 * row["error"]) for row in rows)
    assert all(first["seconds"] < second["seconds"] for first, second in pairwise(rows))


def test_a_row_that_a_kill_cut_off_is_removed(tmp_path, uninterrupted):
    with pytest.raises(Interruption):
        learn_dense(tmp_path, loss=fails_in_step(10))
    with (tmp_path / "log.csv").open("a") as file:
        file.write("1")
    learn_dense(tmp_path)
    steps = [row["step"] for row in rows_of(tmp_path)]
    assert steps == list(range(1, STEPS + 1))


def test_tensorboard_shows_what_the_log_has(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Interruption):
        learn_dense(tmp_path, loss=fails_in_step(10))
    learn_dense(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("total")]
    rows = rows_of(tmp_path)
    assert [step for step, _ in shown] == [row["step"] for row in rows]
    np.testing.assert_allclose([value for _, value in shown], [row["total"] for row in rows])


def test_a_batch_with_nothing_to_learn_from_changes_no_weight(tmp_path):
    before = weights(dense_network())
    learned = learn_dense(
        tmp_path, sample=lambda *_: None, loss=lambda *_: {"total": torch.tensor(1.0)}, steps=3
    )
    assert_same(learned, before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps: expected at least 1"),
        ({"workers": 0}, "workers: expected at least 1"),
        ({"learning_rate": -1.0}, "learning_rate: expected a number from 0 on"),
        ({"learning_rate": math.nan}, "learning_rate: expected a number from 0 on"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes, words, tmp_path):
    with pytest.raises(InputError, match=words):
        learn_dense(tmp_path, **changes)


def test_no_samples_are_refused(tmp_path):
    with pytest.raises(InputError, match="at least one sample"):
        learn(
            dense_network(), dense_sample, dense_loss, LearnerConfig(), tmp_path,
            sample_count=0, identity={},
        )  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error(tmp_path):
    with pytest.raises(InputError, match="expected a GPU for 'cuda'"):
        learn_dense(tmp_path, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_it_learns_on_a_gpu_in_half_precision(tmp_path):
    network = dense_network()

    def loss(network, samples):
        return dense_loss(network, [sample.cuda() for sample in samples])

    for precision in ("auto", "float16"):
        config = dense_config(device="cuda", precision=precision)
        folder = tmp_path / precision
        learn(network, dense_sample, loss, config, folder, sample_count=ITEMS, identity={})
        losses = [row["total"] for row in rows_of(folder)]
        assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_two_processes_learn_what_one_does_from_the_joined_batches(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    with started("sparse", str(tmp_path), launcher=launcher) as process:
        told = process.communicate()[1]
        assert process.returncode == 0, told
    for name, config in SPARSE_RUNS.items():
        network, result = sparse_run(tmp_path / f"{name}-alone", config)
        together, alone = rows_of(tmp_path / name), rows_of(tmp_path / f"{name}-alone")
        assert len(together) == result.steps
        for key in ("total", "gradient_norm", "learning_rate"):
            np.testing.assert_allclose([r[key] for r in together], [r[key] for r in alone])
        first, second = (dict(np.load(tmp_path / f"{name}-{rank}.npz")) for rank in (0, 1))
        assert_same(first, second)
        for key, value in weights(network).items():
            np.testing.assert_allclose(first[key], value, rtol=1e-6, atol=1e-9, err_msg=key)
    assert "multiple of the 2 processes" in (tmp_path / "uneven-1.txt").read_text()


def test_a_sparse_network_learns_the_same_from_the_same_seed_alone(tmp_path):
    config = replace(SPARSE_RUNS["sgd"], steps=3)
    first, _ = sparse_run(tmp_path / "first", config)
    again, _ = sparse_run(tmp_path / "again", replace(config, workers=1))
    other, _ = sparse_run(tmp_path / "other", replace(config, seed=1))
    assert_same(weights(again), weights(first))
    assert not np.array_equal(weights(other)["conv1.kernel"], weights(first)["conv1.kernel"])
