"""Batch normalisation over several processes against one process that has all the rows."""

import numpy as np
import pytest
import torch
from torch import nn

from unscene_ros.models.sparse_layers import normalize_rows

CHANNELS = 3
ROW_COUNTS = [(7, 4), (6, 0), (1, 1), (1, 0), (0, 0)]  # of the two processes


def normalization() -> nn.BatchNorm1d:
    bn = nn.BatchNorm1d(CHANNELS, momentum=0.02).double()
    with torch.no_grad():
        bn.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
        bn.bias.copy_(torch.tensor([0.0, -1.0, 0.3]))
        bn.running_mean.copy_(torch.tensor([0.1, 0.2, 0.3]))
    return bn


def random_rows(count: int) -> torch.Tensor:
    return torch.randn(count, CHANNELS, generator=torch.Generator().manual_seed(1)).double() + 5


def forward_and_backward(rows: torch.Tensor, first: int) -> dict[str, np.ndarray]:
    """Output, gradients and running statistics for a loss that weighs each row differently.

    first: the number of the first of these rows among all.
    """
    rows, bn = rows.clone().requires_grad_(), normalization()
    output = normalize_rows(rows, bn)
    weights = torch.arange(first, first + len(rows)).double()[:, None] + 1
    (output.square() * output * weights).sum().backward()
    results = {
        "output": output,
        "of_rows": rows.grad,
        "of_weight": bn.weight.grad,
        "of_bias": bn.bias.grad,
        "running_mean": bn.running_mean,
        "running_var": bn.running_var,
        "batches": bn.num_batches_tracked,
    }
    return {
        name: np.zeros(CHANNELS) if value is None else value.detach().numpy()
        for name, value in results.items()
    }


def one_of_two(rank: int, folder: str) -> None:
    """One process: its part of the rows of each case, the results to files."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    for counts in ROW_COUNTS:
        first = rank * counts[0]
        rows = random_rows(sum(counts))[first : first + counts[rank]]
        np.savez(f"{folder}/{counts}-{rank}.npz", **forward_and_backward(rows, first))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results_of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(one_of_two, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("counts", ROW_COUNTS)
def test_two_processes_normalise_as_one_with_all_rows(counts, results_of_two):
    expected = forward_and_backward(random_rows(sum(counts)), 0)
    first, second = (dict(np.load(results_of_two / f"{counts}-{rank}.npz")) for rank in (0, 1))
    for name in ("output", "of_rows"):
        both = np.concatenate([first[name], second[name]])
        np.testing.assert_allclose(both, expected[name], atol=1e-8)
    for name in ("of_weight", "of_bias"):
        np.testing.assert_allclose(first[name] + second[name], expected[name], rtol=1e-8)
    for name in ("running_mean", "running_var", "batches"):
        np.testing.assert_allclose(first[name], expected[name], rtol=1e-12)
        np.testing.assert_array_equal(first[name], second[name])


def test_one_process_normalises_as_pytorch_does():
    rows, ours, theirs = random_rows(9), normalization(), normalization()
    torch.testing.assert_close(normalize_rows(rows, ours), theirs(rows), rtol=0, atol=0)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=0, atol=0)


@pytest.mark.parametrize("count", [0, 1])
def test_what_has_no_variance_takes_the_running_statistics(count):
    rows, bn = random_rows(count), normalization()
    expected = normalization().eval()(rows)
    torch.testing.assert_close(normalize_rows(rows, bn), expected)
    assert bn.num_batches_tracked == 0
