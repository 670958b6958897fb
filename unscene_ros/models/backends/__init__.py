"""The engines that compute sparse convolutions, and the choice between them.

torch   any device, always there: the specification of the others
native  the processor, by a small C library
triton  CUDA
minkowski  MinkowskiEngine, where it is installed; for comparisons, never chosen by itself

The environment variable UNSCENE_SPARSE_BACKEND forces one.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from unscene_ros.scene import InputError

if TYPE_CHECKING:
    from unscene_ros.models.kernel_map import KernelMap

BackendName = Literal["auto", "torch", "native", "triton", "minkowski"]

log = logging.getLogger(__name__)


class Epilogue(NamedTuple):
    """What follows a convolution at inference: relu(output · scale + shift + residual).

    scale and shift (C,), for a bias or a folded batch normalisation; residual (M, C); None: absent.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    relu: bool = False


class Backend(Protocol):
    """The operations that differ between engines; everything else of a network is PyTorch."""

    name: str

    def neighbor_rows(self, keys: Tensor, extent: tuple[int, int, int], kernel_size: int) -> Tensor:
        """(N, K³) int32: the row at each cell around each voxel, -1 where none is.

        keys (N,) int64, ascending, as `KeyLayout` with this extent makes them.
        """

    def convolve(
        self,
        features: Tensor,
        weight: Tensor,
        kernel_map: KernelMap,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        """(M, D): for each target row the sum over k of features[rows[:, k]] @ weight[k].

        features (N, C); weight (K, C, D), possibly a transposed view. No gradients.
        """

    def weight_gradient(self, features: Tensor, gradient: Tensor, kernel_map: KernelMap) -> Tensor:
        """(K, C, D): for each k the sum over its pairs of featuresᵀ @ gradient."""


def choose_backend(name: BackendName, device: torch.device) -> Backend:
    """The backend of this name; "auto" takes the fastest one that serves the device.

    Raises InputError for an unknown name and for a backend that this machine does not have.
    """
    if name == "auto":
        name = os.environ.get("UNSCENE_SPARSE_BACKEND", "auto")  # type: ignore[assignment]
    if name not in get_args(BackendName):
        raise InputError(
            f"UNSCENE_SPARSE_BACKEND: expected one of {', '.join(get_args(BackendName))}, "
            f"got {name!r}"
        )
    return _choose(name, device.type)


@cache  # so that the choice is told once
def _choose(name: BackendName, device: str) -> Backend:
    backend = _fastest(device) if name == "auto" else _load(name, device)
    log.info("sparse convolutions: %s backend on %s", backend.name, device)
    return backend


def _fastest(device: str) -> Backend:
    try:
        return _load("triton" if device == "cuda" else "native", device)
    except InputError as error:
        log.warning("%s; going on with the torch backend", error)
        return _load("torch", device)


def _load(name: str, device: str) -> Backend:
    if name == "native":
        from unscene_ros.models.backends.native_backend import NativeBackend

        return NativeBackend(device)
    if name == "triton":
        from unscene_ros.models.backends.triton_backend import TritonBackend

        return TritonBackend(device)
    if name == "minkowski":
        from unscene_ros.models.backends.minkowski_backend import MinkowskiBackend

        return MinkowskiBackend(device)
    from unscene_ros.models.backends.torch_backend import TorchBackend

    return TorchBackend()
