"""Layers of sparse networks: parameters in MinkowskiEngine's shapes and under its names.

`kernel` is (K³, C, D), or (C, D) where K is 1; `bias` (1, D); batch normalisation keeps its numbers
under `bn`. So the state dicts of both fit without renaming.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from unscene_ros.models.backends import Epilogue
from unscene_ros.models.sparse_convolution import convolve, convolve_down, convolve_up
from unscene_ros.models.sparse_tensor import Level, SparseTensor
from unscene_ros.scene import InputError


class Convolution(nn.Module):
    """Submanifold convolution of odd size, or of size 2 and stride 2 to the coarser level."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        if stride not in (1, 2) or (stride == 2) != (kernel_size == 2):
            raise ValueError(f"kernel size {kernel_size} with stride {stride} is not implemented")
        self.down = stride == 2
        if min(inputs, outputs) < 1:
            raise InputError(
                f"convolution: expected at least 1 channel in and out, got {inputs} and {outputs}"
            )
        shape = (inputs, outputs) if kernel_size == 1 else (kernel_size**3, inputs, outputs)
        self.kernel = nn.Parameter(_initial_kernel(shape, kernel_size**3 * outputs))
        self.bias = nn.Parameter(torch.zeros(1, outputs)) if bias else None

    def forward(self, tensor: SparseTensor, epilogue: Epilogue | None = None) -> SparseTensor:
        """epilogue: what follows, for convolutions without bias and without gradients."""
        if self.bias is not None and epilogue is not None:
            raise ValueError("a convolution with bias takes no epilogue")
        output = (convolve_down if self.down else convolve)(tensor, self.kernel, epilogue)
        return output if self.bias is None else output.with_features(output.features + self.bias)


class TransposedConvolution(nn.Module):
    """Transposed convolution of size 2³ and stride 2, to the level that the tensor came from."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(_initial_kernel((8, inputs, outputs), 8 * inputs))

    def forward(
        self, tensor: SparseTensor, level: Level, epilogue: Epilogue | None = None
    ) -> SparseTensor:
        """level: where it leads. epilogue: as in `Convolution`."""
        return convolve_up(tensor, self.kernel, level, epilogue)


class BatchNormalization(nn.Module):
    """Batch normalisation over all voxels of all scenes."""

    def __init__(self, channels: int, momentum: float = 0.02) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, momentum=momentum)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        return tensor.with_features(normalize_rows(tensor.features, self.bn))

    def folded(self) -> tuple[Tensor, Tensor]:
        """(scale, shift) that it amounts to at inference."""
        bn = self.bn
        assert bn.running_mean is not None and bn.running_var is not None
        scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
        return scale, bn.bias - bn.running_mean * scale


def normalize_rows(rows: Tensor, bn: nn.BatchNorm1d) -> Tensor:
    """Batch normalisation of (N, C), also of no row and of one.

    Where several processes learn together (torch.distributed) it is over the rows of all of them,
    which then must all call this, those without rows too, and all go backward through it.
    """
    if bn.training and _learning_processes() > 1:
        return _normalize_jointly(rows, bn)
    if bn.training and len(rows) > 1:
        return bn(rows)
    return _normalize_by_running_statistics(rows, bn)


def _learning_processes() -> int:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size()


def _normalize_jointly(rows: Tensor, bn: nn.BatchNorm1d) -> Tensor:
    """What torch.nn.SyncBatchNorm does on CUDA alone, for every device and for no rows."""
    full = rows.to(torch.promote_types(rows.dtype, torch.float32))
    sums = _SumOverProcesses.apply(torch.cat([full.sum(0), full.new_tensor([len(full)])]))
    count = float(sums[-1].detach())
    if count <= 1:
        return _normalize_by_running_statistics(rows, bn)
    mean = sums[:-1] / count
    centered = full - mean
    variance = _SumOverProcesses.apply(centered.square().sum(0)) / count
    assert bn.running_mean is not None and bn.running_var is not None
    assert bn.momentum is not None and bn.num_batches_tracked is not None
    with torch.no_grad():
        bn.num_batches_tracked += 1
        bn.running_mean.lerp_(mean.to(bn.running_mean), bn.momentum)
        unbiased = variance * (count / (count - 1))
        bn.running_var.lerp_(unbiased.to(bn.running_var), bn.momentum)
    return (centered * torch.rsqrt(variance + bn.eps) * bn.weight + bn.bias).to(rows.dtype)


def _normalize_by_running_statistics(rows: Tensor, bn: nn.BatchNorm1d) -> Tensor:
    """At inference; and of a single row, which has no variance."""
    return nn.functional.batch_norm(
        rows, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps
    )


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every process's loss depends on the sum: their gradients add up.
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


def convolve_normalized(
    tensor: SparseTensor,
    convolution: Convolution | TransposedConvolution,
    normalization: BatchNormalization,
    level: Level | None = None,
    residual: SparseTensor | None = None,
    relu: bool = True,
) -> SparseTensor:
    """relu(normalization(convolution(tensor)) + residual): one operation at inference.

    level: where a transposed convolution leads.
    """

    def convolved(epilogue: Epilogue | None = None) -> SparseTensor:
        if isinstance(convolution, TransposedConvolution):
            assert level is not None
            return convolution(tensor, level, epilogue)
        return convolution(tensor, epilogue)

    if not torch.is_grad_enabled() and not normalization.training:
        scale, shift = normalization.folded()
        addend = None if residual is None else residual.features
        return convolved(Epilogue(scale, shift, addend, relu))
    output = normalization(convolved())
    # In place: nobody else needs what the normalisation returned, and gradients do not either.
    if residual is not None:
        output.features.add_(residual.features)
    return output.with_features(output.features.relu_()) if relu else output


def _initial_kernel(shape: tuple[int, ...], fan: int) -> Tensor:
    """He et al., "Delving deep into rectifiers", ICCV 2015, for ReLU."""
    return torch.randn(shape) * (2 / fan) ** 0.5
