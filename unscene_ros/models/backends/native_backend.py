"""Sparse convolution on the processor by native_kernel.c, a C library without ties to PyTorch.

AVX-512, AVX2 or the vectors of every processor are chosen when it runs; as many threads as PyTorch.
A forked process must call torch.set_num_threads(1) first, as DataLoader workers do, or be spawned:
OpenMP, which PyTorch uses too, does not survive a fork with its threads.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_int64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unscene_ros.models.backends import Epilogue, choose_backend
from unscene_ros.scene import InputError

if TYPE_CHECKING:
    from unscene_ros.models.kernel_map import KernelMap


class _Convolution(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("targets", "cells", "inputs", "outputs")),
        ("rows", c_void_p),
        *((name, c_int64) for name in ("row_stride", "cell_stride")),
        *((name, c_void_p) for name in ("features", "weight")),
        *((name, c_void_p) for name in ("scale", "shift", "residual")),
        ("relu", c_int64),
        ("output", c_void_p),
        *((name, c_int64) for name in ("is_double", "threads")),
    )


class _WeightGradient(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("targets", "cells", "inputs", "outputs")),
        ("rows", c_void_p),
        *((name, c_int64) for name in ("row_stride", "cell_stride")),
        *((name, c_void_p) for name in ("features", "gradient", "sums")),
        *((name, c_int64) for name in ("is_double", "threads")),
    )


class NativeBackend:
    """See `Backend`. Computes in float32 and float64; half precision goes through float32.

    Raises InputError where the library was not built, and for other devices than the processor.
    """

    name = "native"

    def __init__(self, device: str) -> None:
        if device != "cpu":
            raise InputError(f"native backend: expected the device cpu, got {device}")
        self._library = _load_library()

    def __reduce__(self) -> tuple:
        return choose_backend, (self.name, torch.device("cpu"))

    def neighbor_rows(self, keys: Tensor, extent: tuple[int, int, int], kernel_size: int) -> Tensor:
        _, y_extent, z_extent = extent
        rows = torch.empty((kernel_size**3, len(keys)), dtype=torch.int32)
        self._library.unscene_neighbor_rows(
            keys.data_ptr(), len(keys), y_extent, z_extent, kernel_size, torch.get_num_threads(),
            rows.data_ptr(),
        )  # fmt: skip
        return rows.T

    def convolve(
        self,
        features: Tensor,
        weight: Tensor,
        kernel_map: KernelMap,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        scale, shift, residual, relu = epilogue or Epilogue()
        dtype, rows = features.dtype, kernel_map.rows
        features, weight = (_full_precision(t, dtype) for t in (features, weight))
        addends = [
            None if t is None else _full_precision(t, dtype) for t in (scale, shift, residual)
        ]
        output = features.new_empty(len(rows), weight.shape[2])
        self._check(
            self._library.unscene_convolve(
                _Convolution(
                    len(rows), *weight.shape,
                    rows.data_ptr(), *rows.stride(),
                    features.data_ptr(), weight.data_ptr(),
                    *(None if t is None else t.data_ptr() for t in addends),
                    relu, output.data_ptr(),
                    features.dtype == torch.float64, torch.get_num_threads(),
                )
            )
        )  # fmt: skip
        return output.to(dtype)

    def weight_gradient(self, features: Tensor, gradient: Tensor, kernel_map: KernelMap) -> Tensor:
        dtype, rows = features.dtype, kernel_map.rows
        features, gradient = (_full_precision(t, dtype) for t in (features, gradient))
        sums = features.new_zeros(rows.shape[1], features.shape[1], gradient.shape[1])
        self._check(
            self._library.unscene_weight_gradient(
                _WeightGradient(
                    len(rows), *sums.shape,
                    rows.data_ptr(), *rows.stride(),
                    features.data_ptr(), gradient.data_ptr(), sums.data_ptr(),
                    features.dtype == torch.float64, torch.get_num_threads(),
                )
            )
        )  # fmt: skip
        return sums.to(dtype)

    def _check(self, status: int) -> None:
        if status:
            raise MemoryError("native backend: no memory for the scratch of its threads")


def _full_precision(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(torch.float64 if dtype == torch.float64 else torch.float32).contiguous()


def _load_library() -> ctypes.CDLL:
    libraries = Path(__file__).parent.glob("native_kernel*.so")
    paths = sorted(libraries, key=lambda path: path.stat().st_mtime)
    if not paths:
        raise InputError(
            "native backend: its library is not built: for several times the speed, install a C "
            "compiler and run `pip install .` again"
        )
    try:
        library = ctypes.CDLL(str(paths[-1]))
        library.unscene_struct_bytes.restype = c_int64
        expected = sum(map(ctypes.sizeof, (_Convolution, _WeightGradient)))
        if library.unscene_struct_bytes() != expected:
            raise OSError("it was built from other sources")
    except (OSError, AttributeError) as error:
        raise InputError(
            f"native backend: {paths[-1].name} does not load ({error}): run `pip install .` again"
        ) from None
    library.unscene_convolve.argtypes = [POINTER(_Convolution)]
    library.unscene_weight_gradient.argtypes = [POINTER(_WeightGradient)]
    library.unscene_neighbor_rows.argtypes = [c_void_p, *[c_int64] * 5, c_void_p]
    library.unscene_neighbor_rows.restype = None
    library.unscene_limit_vector_bytes.argtypes = [c_int64]
    library.unscene_vector_bytes.restype = c_int64
    return library
