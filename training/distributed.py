"""Several processes that learn as one (torchrun): gloo on the CPU, NCCL on CUDA.

Each process has all the weights and its share of the batch. The gradients are averaged here and not
by DistributedDataParallel, which waits for ever once a loss reaches a weight in one process alone.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
from torch import nn

from unscene_ros.models.device import choose_torch_device
from unscene_ros.scene import InputError

PATIENCE = timedelta(minutes=20)  # for the other processes, before it is an error
LONG_PATIENCE = timedelta(days=7)  # for what the first process does while the others wait

_numbers = itertools.count()  # of the groups that this process has been in


def choose_device(device: Literal["auto", "cuda", "cpu"]) -> torch.device:
    """The device of this process; InputError when CUDA is asked for and missing."""
    chosen = choose_torch_device(device)
    if chosen.type == "cpu":
        return chosen
    number = int(os.environ.get("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise InputError(
            f"device: expected a GPU for each process, got {torch.cuda.device_count()}: "
            "start torchrun with that many processes"
        )
    return torch.device("cuda", number)


def is_first_process() -> bool:
    """Whether this process writes: always, but for the second and later ones of torchrun."""
    return int(os.environ.get("RANK", 0)) == 0


def wait_for_all(value: int = 0) -> int:
    """The largest value of all processes, when each has called it.

    What the first one has written before is there then. If one of them ends instead, torchrun ends
    the others.
    """
    with joined_processes(torch.device("cpu"), LONG_PATIENCE) as processes:
        return processes.largest(value)


@contextmanager
def joined_processes(device: torch.device, patience: timedelta = PATIENCE) -> Iterator[Processes]:
    """The processes that torchrun started, joined for the time of the block; else this one."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Processes(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    # The store keeps the addresses of groups before this one: each needs a place of its own there.
    store, rank, count = next(torch.distributed.rendezvous("env://", timeout=patience))
    torch.distributed.init_process_group(
        backend,
        timeout=patience,
        store=torch.distributed.PrefixStore(f"learning {next(_numbers)}", store),
        rank=rank,
        world_size=count,
    )
    try:
        yield Processes(rank, count, device)
    finally:
        torch.distributed.destroy_process_group()


@dataclass(frozen=True, slots=True)
class Processes:
    """What `count` processes do together; each calls the same methods in the same order.

    rank: the number of this one. device: where its tensors are.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def largest(self, value: int) -> int:
        """The largest value of all processes."""
        if self.count == 1:
            return value
        of_all = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(of_all, torch.distributed.ReduceOp.MAX)
        return int(of_all)

    def means(self, values: Sequence[float]) -> list[float]:
        """The mean over the processes of each value."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(sums)
        return (sums / self.count).tolist()

    def share(self, network: nn.Module) -> None:
        """Gives all of them the weights and buffers of the first."""
        if self.count > 1:
            for tensor in network.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """A gradient that some processes do not have counts as zero there."""
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if self.count == 1 or not parameters:
            return
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in parameters
        ]
        present = gradients[0].new_tensor([parameter.grad is not None for parameter in parameters])
        flat = torch.cat([gradient.flatten() for gradient in gradients] + [present])
        torch.distributed.all_reduce(flat)
        *parts, present = flat.split([gradient.numel() for gradient in gradients] + [len(present)])
        for parameter, part, had in zip(parameters, parts, present.tolist(), strict=True):
            parameter.grad = part.view_as(parameter) / self.count if had else None
