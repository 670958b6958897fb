"""Sparse convolution by MinkowskiEngine, where it is installed: for comparisons.

Choy et al., "4D spatio-temporal ConvNets: Minkowski convolutional neural networks", CVPR 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from unscene_ros.models.backends import Epilogue, choose_backend
from unscene_ros.models.backends.torch_backend import neighbor_rows
from unscene_ros.scene import InputError

if TYPE_CHECKING:
    from unscene_ros.models.kernel_map import Cells, KernelMap


class MinkowskiBackend:
    """See `Backend`; float32 and float64.

    Raises InputError where MinkowskiEngine is missing or was built without the device.
    """

    name = "minkowski"

    def __init__(self, device: str) -> None:
        try:
            import MinkowskiEngine
        except ImportError as error:
            raise InputError(
                f"minkowski backend: expected MinkowskiEngine, got {type(error).__name__}: "
                f"{error}: install it or choose another backend"
            ) from error
        if device != "cpu" and not (device == "cuda" and MinkowskiEngine.is_cuda_available()):
            raise InputError(
                "minkowski backend: expected a device that MinkowskiEngine was built for, got "
                f"{device}: build it there or choose another backend"
            )
        self._engine = MinkowskiEngine
        self._device = device
        # By the finer level of a kernel map. MinkowskiEngine finds its own kernel maps.
        self._levels: WeakKeyDictionary[Cells, _Levels] = WeakKeyDictionary()

    def __reduce__(self) -> tuple:
        return choose_backend, (self.name, torch.device(self._device))

    def neighbor_rows(self, keys: Tensor, extent: tuple[int, int, int], kernel_size: int) -> Tensor:
        return neighbor_rows(keys, extent, kernel_size)

    def convolve(
        self,
        features: Tensor,
        weight: Tensor,
        kernel_map: KernelMap,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        with torch.no_grad():
            output = self._apply(features, weight, kernel_map)
        scale, shift, residual, relu = epilogue or Epilogue()
        if scale is not None:
            output *= scale
        for addend in (shift, residual):
            if addend is not None:
                output += addend
        return output.relu_() if relu else output

    def weight_gradient(self, features: Tensor, gradient: Tensor, kernel_map: KernelMap) -> Tensor:
        shape = kernel_map.rows.shape[1], features.shape[1], gradient.shape[1]
        weight = features.new_zeros(shape)  # its values do not matter to its own gradient
        if not len(gradient):
            return weight
        with torch.enable_grad():
            output = self._apply(features.detach(), weight.requires_grad_(), kernel_map)
        return torch.autograd.grad(output, weight, gradient)[0]

    def _apply(self, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        if features.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"minkowski backend: expected float32 or float64, got {features.dtype}: "
                "choose another backend for half precision"
            )
        source, target = kernel_map.source, kernel_map.target
        if not len(target):
            return features.new_empty(0, weight.shape[2])

        from MinkowskiEngineBackend._C import ConvolutionMode

        engine, up = self._engine, source.stride > target.stride
        levels = self._levels_of(target if up else source)
        from_level, to_level = levels.of(source), levels.of(target)
        operation = (
            engine.MinkowskiConvolutionTransposeFunction
            if up
            else engine.MinkowskiConvolutionFunction
        )
        output = operation.apply(
            features[from_level.rows_here],
            weight.contiguous(),
            engine.KernelGenerator(
                kernel_size=round(len(weight) ** (1 / 3)),
                stride=1 if source is target else 2,
                dimension=3,
            ),
            ConvolutionMode.DEFAULT,
            from_level.key,
            to_level.key,
            levels.manager,
        )
        return output[to_level.rows_there]

    def _levels_of(self, finer: Cells) -> _Levels:
        if finer not in self._levels:
            place = self._engine.CoordinateMapType
            self._levels[finer] = _Levels(
                self._engine.CoordinateManager(
                    D=3, coordinate_map_type=place.CUDA if self._device == "cuda" else place.CPU
                )
            )
        return self._levels[finer]


class _Level(NamedTuple):
    """A level in MinkowskiEngine, which may hold its rows in another order than we do."""

    key: Any
    rows_here: Tensor  # for each row there, ours
    rows_there: Tensor  # for each row of ours, theirs


class _Levels:
    """Levels that share a coordinate manager of MinkowskiEngine."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self._levels: WeakKeyDictionary[Cells, _Level] = WeakKeyDictionary()

    def of(self, cells: Cells) -> _Level:
        """The level of these cells; it enters the manager on the first call."""
        if cells not in self._levels:
            key, rows = self.manager.insert_and_map(cells.coordinates, [cells.stride] * 3)
            self._levels[cells] = _Level(key, *rows)
        return self._levels[cells]
