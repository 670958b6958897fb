"""Sparse convolution on CUDA by Triton; other types than float32, float16 and bfloat16 by PyTorch.

The values are tested in Triton's interpreter, on the processor, and the kernels are compiled for
several GPUs; their speed on a GPU has not been measured yet.

float32 is multiplied as torch.backends.cuda.matmul says. The first convolution of each
shape measures which configuration is fastest, see `triton_tuning`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from unscene_ros.models.backends import Epilogue, choose_backend
from unscene_ros.models.backends.torch_backend import TorchBackend, neighbor_rows
from unscene_ros.models.backends.triton_tiles import cut_chunks, cut_tiles, list_pairs
from unscene_ros.models.backends.triton_tuning import (
    Choices,
    Config,
    cache_path,
    convolve_candidates,
    fastest,
    weight_gradient_candidates,
)
from unscene_ros.scene import InputError

if TYPE_CHECKING:
    from unscene_ros.models.kernel_map import KernelMap

TYPES = (torch.float32, torch.float16, torch.bfloat16)
T = TypeVar("T")


class TritonBackend:
    """See `Backend`. device: "cuda", or "cpu" where TRITON_INTERPRET=1 was set from the start."""

    name = "triton"

    def __init__(self, device: str) -> None:
        try:
            from unscene_ros.models.backends import triton_kernels
        except ImportError as error:
            raise InputError(
                f"triton backend: expected the package triton, got {error}: install PyTorch for "
                "CUDA, which brings it along"
            ) from error
        if device != "cuda" and not (device == "cpu" and triton_kernels.INTERPRETED):
            raise InputError(
                f"triton backend: expected features on a CUDA device, got {device}: move them "
                "there or use another backend"
            )
        self._device = device
        self._kernels = triton_kernels
        self._torch = TorchBackend()
        self._choices = Choices(cache_path(), triton_kernels.VERSION)
        # Work cut from the rows of kernel maps, forgotten with them.
        self._made = WeakTensorKeyDictionary()

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
        if features.dtype not in TYPES or weight.dtype != features.dtype:
            return self._torch.convolve(features, weight, kernel_map, epilogue)
        rows = kernel_map.rows
        cells, channels, columns = weight.shape
        if not len(rows) or not columns:
            return features.new_empty(len(rows), columns)
        precision = _precision(features.dtype)

        def run(config: Config, epilogue: Epilogue | None = None) -> Tensor:
            tiles = self._once(rows, f"{config.rows} rows", lambda: cut_tiles(rows, config.rows))
            return self._kernels.convolve(features, weight, tiles, epilogue, config, precision)

        size = len(rows).bit_length()
        key = (
            f"convolve {cells} x {channels} x {columns}, {features.dtype} {precision}, "
            f"2^{len(features).bit_length()} to 2^{size} rows"
        )
        candidates = partial(convolve_candidates, 2**size, cells, channels, columns)
        return run(self._choose(key, features.device, candidates, run), epilogue)

    def weight_gradient(self, features: Tensor, gradient: Tensor, kernel_map: KernelMap) -> Tensor:
        if features.dtype not in TYPES or gradient.dtype != features.dtype:
            return self._torch.weight_gradient(features, gradient, kernel_map)
        rows = kernel_map.rows
        cells, channels, columns = rows.shape[1], features.shape[1], gradient.shape[1]
        pairs = self._once(rows, "pairs", lambda: list_pairs(rows))
        pair_count = sum(pairs.of_cell)
        if not pair_count or not channels or not columns:
            return features.new_zeros(cells, channels, columns)
        precision = _precision(features.dtype)

        def run(config: Config) -> Tensor:
            splits = config.splits
            chunks = self._once(rows, f"{splits} chunks", lambda: cut_chunks(pairs, splits))
            return self._kernels.weight_gradient(features, gradient, chunks, config, precision)

        size = pair_count.bit_length()
        key = (
            f"weight gradient {cells} x {channels} x {columns}, {features.dtype} {precision}, "
            f"2^{size} pairs"
        )
        candidates = partial(weight_gradient_candidates, 2**size, channels, columns)
        return run(self._choose(key, features.device, candidates, run))

    def _choose(
        self,
        key: str,
        device: torch.device,
        candidates: Callable[[int], list[Config]],
        run: Callable[[Config], Tensor],
    ) -> Config:
        if self._kernels.INTERPRETED:
            return candidates(1)[0]
        name, processors = _gpu(device)
        return self._choices.choose(
            f"{name}: {key}",
            partial(candidates, processors),
            lambda possible: fastest(possible, run, device),
        )

    def _once(self, rows: Tensor, name: str, make: Callable[[], T]) -> T:
        """What `make` made of these rows under this name, now or before."""
        made = self._made.setdefault(rows, {})
        if name not in made:
            made[name] = make()
        return made[name]


def _precision(dtype: torch.dtype) -> str:
    """How Triton multiplies float32; for the other types there is one way."""
    products = torch.backends.cuda.matmul
    if hasattr(products, "fp32_precision"):  # since PyTorch 2.9, which refuses to mix both settings
        allowed = products.fp32_precision == "tf32"
    else:
        allowed = products.allow_tf32
    return "tf32" if dtype == torch.float32 and allowed else "ieee"


@cache
def _gpu(device: torch.device) -> tuple[str, int]:
    """Its name and its number of processors."""
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.multi_processor_count
