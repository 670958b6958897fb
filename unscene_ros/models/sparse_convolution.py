"""The operations of sparse networks as functions of sparse tensors, with gradients.

Convolutions go to the backend of the level; pooling, batch normalisation and 1³ convolutions are
PyTorch. Convolutions in half precision follow torch.autocast.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unscene_ros.models.backends import Backend, Epilogue
from unscene_ros.models.kernel_map import KernelMap
from unscene_ros.models.sparse_tensor import Level, SparseTensor, reduce_runs
from unscene_ros.scene import InputError


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, kernel_map: KernelMap, backend: Backend
    ) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.kernel_map, ctx.backend = kernel_map, backend
        return backend.convolve(features, weight, kernel_map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        features, weight = ctx.saved_tensors
        kernel_map, backend = ctx.kernel_map, ctx.backend
        of_features = of_weight = None
        gradient = gradient.contiguous()
        if ctx.needs_input_grad[0]:
            if kernel_map.opposite_rows is None:
                weight = weight.flip(0)
            of_features = backend.convolve(gradient, weight.transpose(1, 2), kernel_map.opposite)
        if ctx.needs_input_grad[1]:
            of_weight = backend.weight_gradient(features, gradient, kernel_map)
        return of_features, of_weight, None, None


def convolve(
    tensor: SparseTensor, weight: Tensor, epilogue: Epilogue | None = None
) -> SparseTensor:
    """Submanifold convolution: the output lies on the voxels of the input.

    weight (K³, C, D) with K 3, 5 or 7, or (C, D) for K 1. epilogue: without gradients only.
    """
    if weight.ndim == 2:
        features = _multiply(tensor.features, weight, epilogue)
        return tensor.with_features(features)
    kernel_map = tensor.level.neighbors(round(len(weight) ** (1 / 3)))
    return tensor.with_features(_apply(tensor, weight, kernel_map, epilogue))


def convolve_down(
    tensor: SparseTensor, weight: Tensor, epilogue: Epilogue | None = None
) -> SparseTensor:
    """Convolution of size 2³ and stride 2 to the coarser level; weight (8, C, D)."""
    coarser, kernel_map = tensor.level.coarser
    return SparseTensor(_apply(tensor, weight, kernel_map, epilogue), coarser)


def convolve_up(
    tensor: SparseTensor, weight: Tensor, level: Level, epilogue: Epilogue | None = None
) -> SparseTensor:
    """Transposed convolution of size 2³ and stride 2 to the finer `level`; weight (8, C, D)."""
    kernel_map = _map_between(level, tensor)
    return SparseTensor(_apply(tensor, weight, kernel_map.opposite, epilogue), level)


def pool_down(tensor: SparseTensor, mode: Literal["mean", "max"]) -> SparseTensor:
    """The mean or maximum of the occupied voxels in each voxel of the coarser level."""
    coarser, kernel_map = tensor.level.coarser
    occupied = (kernel_map.rows >= 0)[:, :, None]
    if not len(coarser):
        return SparseTensor(tensor.features, coarser)
    children = tensor.features[kernel_map.rows.clamp(min=0)]
    if mode == "max":
        pooled = children.masked_fill(~occupied, -torch.inf).amax(1)
    else:
        pooled = children.masked_fill(~occupied, 0).sum(1) / occupied.sum(1)
    return SparseTensor(pooled, coarser)


def unpool(tensor: SparseTensor, level: Level) -> SparseTensor:
    """Each voxel of the finer `level` takes the features of the voxel it lies in."""
    parents = _map_between(level, tensor).opposite.rows.amax(1)
    return SparseTensor(tensor.features[parents], level)


def pool_scenes(tensor: SparseTensor, mode: Literal["mean", "max"]) -> Tensor:
    """(B, C): one row per scene; an empty scene has zeros."""
    lengths = torch.tensor(tensor.level.scene_sizes, device=tensor.features.device)
    pooled = reduce_runs(tensor.features, mode, lengths)
    return pooled.masked_fill(lengths[:, None] == 0, 0)


def _map_between(level: Level, tensor: SparseTensor) -> KernelMap:
    coarser, kernel_map = level.coarser
    if coarser is not tensor.level:
        raise InputError(
            f"sparse convolution: expected a tensor of the level that `level.coarser` made, of "
            f"stride {coarser.stride}, got one of stride {tensor.level.stride}"
        )
    return kernel_map


def _apply(
    tensor: SparseTensor, weight: Tensor, kernel_map: KernelMap, epilogue: Epilogue | None
) -> Tensor:
    features, weight = _same_type(tensor.features, weight)
    _check_shape("weight", weight, (kernel_map.rows.shape[1], features.shape[1], None))
    backend = tensor.level.backend
    if epilogue is not None:
        _check_epilogue(epilogue, features, len(kernel_map.target), weight.shape[2])
        return backend.convolve(features.contiguous(), weight, kernel_map, epilogue)
    return _Convolve.apply(features.contiguous(), weight, kernel_map, backend)


def _multiply(features: Tensor, weight: Tensor, epilogue: Epilogue | None) -> Tensor:
    features, weight = _same_type(features, weight)
    _check_shape("weight", weight, (features.shape[1], None))
    if epilogue is None:
        return features @ weight
    _check_epilogue(epilogue, features, len(features), weight.shape[1])
    scale, shift, residual, relu = epilogue
    output = features @ (weight if scale is None else weight * scale)
    for addend in (shift, residual):
        if addend is not None:
            output += addend
    return output.relu_() if relu else output


def _same_type(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, weight = features.to(dtype), weight.to(dtype)
    if (features.dtype, features.device) != (weight.dtype, weight.device):
        raise InputError(
            f"sparse convolution: expected a network of the features' {features.dtype} on "
            f"{features.device}, got {weight.dtype} on {weight.device}: move or convert one of them"
        )
    return features, weight


def _check_epilogue(epilogue: Epilogue, features: Tensor, rows: int, columns: int) -> None:
    shapes = {"scale": (columns,), "shift": (columns,), "residual": (rows, columns)}
    for name, shape in shapes.items():
        tensor = getattr(epilogue, name)
        if tensor is not None:
            _check_shape(name, tensor, shape)
            if tensor.device != features.device:
                raise InputError(
                    f"sparse convolution: expected the {name} on {features.device}, "
                    f"got {tensor.device}"
                )


def _check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    fits = tensor.ndim == len(shape) and all(
        want in (None, got) for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("channels" if size is None else str(size) for size in shape)
        raise InputError(
            f"sparse convolution: expected a {name} of shape ({wanted}), got {tuple(tensor.shape)}"
        )
