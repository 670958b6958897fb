"""One step of learning: losses to gradients to weights, and the state that goes to disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from training.distributed import Processes
from unscene_ros.provenance import peak_memory_mb
from unscene_ros.scene import InputError

if TYPE_CHECKING:
    from training.learner import LearnerConfig

# As is usual for sparse networks since Choy et al., "4D Spatio-Temporal ConvNets" (CVPR 2019).
SGD_MOMENTUM, SGD_DAMPENING, POLY_POWER = 0.9, 0.1, 0.9
MOST_SKIPPED = 20  # steps in a row; a float16 scale that starts too high takes up to 16

Loss = Callable[[nn.Module, list[Any]], dict[str, Tensor]]

log = logging.getLogger(__name__)


class Training:
    """All that a step changes. Nothing random is in it: each step seeds PyTorch by its number."""

    def __init__(self, network: nn.Module, config: LearnerConfig, processes: Processes) -> None:
        self.config, self.processes = config, processes
        self.step, self.loss, self.seconds, self.peak_memory_mb = 0, math.nan, 0.0, 0.0
        self._skipped_in_row = 0
        self._network = network
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._optimizer = _make_optimizer(self._parameters, config)
        self._schedule = _make_schedule(self._optimizer, config)
        self._half = _half_precision(config.precision, processes.device)
        self._scaler = torch.amp.GradScaler(
            processes.device.type, enabled=self._half is torch.float16
        )

    def advance(self, samples: list[Any], loss: Loss) -> dict[str, float]:
        """One step: its learning rate, losses and gradient norm.

        Raises InputError when loss or gradient have not been finite for `MOST_SKIPPED` steps.
        """
        seed = np.random.SeedSequence((self.config.seed, self.step, self.processes.rank))
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        learning_rate = self._schedule.get_last_lr()[0]
        buffers = [buffer.clone() for buffer in self._network.buffers()]
        losses = self._backward(samples, loss)
        self.step, self.loss = self.step + 1, losses["total"]
        norm = 0.0
        if any(parameter.grad is not None for parameter in self._parameters):
            self._scaler.unscale_(self._optimizer)
            longest = self.config.max_gradient_norm or math.inf
            norm = float(nn.utils.clip_grad_norm_(self._parameters, longest))
            self._scaler.update()
        if math.isfinite(self.loss + norm):
            self._skipped_in_row = 0
        else:
            self._optimizer.zero_grad()
            for buffer, before in zip(self._network.buffers(), buffers, strict=True):
                buffer.copy_(before)
            self._count_skipped(norm)
        self._optimizer.step()  # without gradients it changes nothing
        self._schedule.step()
        return {"learning_rate": learning_rate, **losses, "gradient_norm": norm}

    def _backward(self, samples: list[Any], loss: Loss) -> dict[str, float]:
        """The gradients, and the losses, of the batches of all processes on average."""
        outputs: list[Any] = []
        self._optimizer.zero_grad()
        hook = self._network.register_forward_hook(lambda *call: outputs.append(call[-1]))
        device = self.processes.device.type
        with hook, torch.autocast(device, self._half, enabled=self._half is not None):
            losses = loss(self._network, samples)
        total = self._scaler.scale(losses["total"])
        roots, gradients = [total], [torch.ones_like(total)]
        if self.processes.count > 1:
            # Normalisation over all processes waits for all of them to go backward: also for one
            # whose loss, with nothing to compare for instance, leaves some of the output out.
            roots += _tensors(outputs)
            gradients += [torch.zeros_like(output) for output in roots[1:]]
        pairs = [pair for pair in zip(roots, gradients, strict=True) if pair[0].requires_grad]
        if pairs:
            torch.autograd.backward([root for root, _ in pairs], [of_root for _, of_root in pairs])
        self.processes.average_gradients(self._parameters)
        means = self.processes.means([float(value.detach()) for value in losses.values()])
        return dict(zip(losses, means, strict=True))

    def _count_skipped(self, norm: float) -> None:
        self._skipped_in_row += 1
        if self.processes.first:
            log.warning("step %d skipped: loss %g, gradient norm %g", self.step, self.loss, norm)
        if self._skipped_in_row == MOST_SKIPPED:
            raise InputError(
                f"learning: expected a finite loss, got none in {MOST_SKIPPED} steps up to step "
                f"{self.step}: lower learning_rate, set precision to float32, or look at the data"
            )

    def state(self) -> dict[str, Any]:
        """As plain values and tensors."""
        device, memory_mb = self.processes.device, peak_memory_mb()
        if device.type == "cuda":
            memory_mb = torch.cuda.max_memory_allocated(device) / 1e6
        self.peak_memory_mb = max(self.peak_memory_mb, memory_mb)
        return {
            "numbers": (self.step, self.loss, self.seconds, self.peak_memory_mb),
            "skipped_in_row": self._skipped_in_row,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over a state, unless it is empty; all processes begin alike.

        Raises InputError for the state of another network.
        """
        try:
            if state:
                self.step, self.loss, self.seconds, self.peak_memory_mb = state["numbers"]
                self._skipped_in_row = state["skipped_in_row"]
                self._network.load_state_dict(state["network"])
                self._optimizer.load_state_dict(state["optimizer"])
                self._schedule.load_state_dict(state["schedule"])
                self._scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"the saved state does not fit this network ({error}): was it written by another "
                "version? delete the folder of the run to start anew"
            ) from error
        self.processes.share(self._network)
        if self.processes.largest(self.step) != -self.processes.largest(-self.step):
            raise InputError("folder of the run: expected one that all processes share")


def _make_optimizer(parameters: Sequence[nn.Parameter], config: LearnerConfig) -> Any:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, weight_decay=decay)
    return torch.optim.SGD(
        parameters, rate, momentum=SGD_MOMENTUM, dampening=SGD_DAMPENING, weight_decay=decay
    )


def _make_schedule(optimizer: Any, config: LearnerConfig) -> Any:
    schedules = torch.optim.lr_scheduler
    if config.schedule == "one_cycle":
        return schedules.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
    if config.schedule == "poly":
        return schedules.PolynomialLR(optimizer, config.steps, POLY_POWER)
    return schedules.ConstantLR(optimizer, factor=1.0)


def _half_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """What torch.autocast computes in; None: float32 throughout."""
    if precision == "auto" and device.type == "cuda":
        precision = (
            "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        )
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        yield value
        return
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    elif is_dataclass(value):
        parts = (getattr(value, field.name) for field in fields(value))
    for part in parts:
        yield from _tensors(part)
