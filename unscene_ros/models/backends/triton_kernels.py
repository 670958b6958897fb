"""Triton kernels of sparse convolutions, and the functions that launch them.

Implicit GEMM, output stationary: each program gathers the features it multiplies while it loads
them and owns what it writes. Nothing is added atomically: the same configuration gives the same
bits each time. Sums are kept in float32 whatever the type of the features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unscene_ros.models.backends import Epilogue
from unscene_ros.models.backends.triton_tiles import Chunks, Tiles
from unscene_ros.models.backends.triton_tuning import Config

# Configurations measured for another version are forgotten.
VERSION = f"Triton {triton.__version__}, kernels 1"


@triton.jit
def _finish(sums, targets, columns, output, scale, shift, residual, D, RELU: tl.constexpr):
    """output[targets, columns] = relu(sums · scale + shift + residual), where both exist."""
    exists = (targets >= 0)[:, None] & (columns < D)[None, :]
    places = targets.to(tl.int64)[:, None] * D + columns[None, :]
    if scale is not None:
        sums *= tl.load(scale + columns, mask=columns < D, other=0).to(tl.float32)[None, :]
    if shift is not None:
        sums += tl.load(shift + columns, mask=columns < D, other=0).to(tl.float32)[None, :]
    if residual is not None:
        sums += tl.load(residual + places, mask=exists, other=0).to(tl.float32)
    if RELU:
        sums = tl.where(sums < 0, 0.0, sums)  # NaN stays
    tl.store(output + places, sums.to(output.dtype.element_ty), mask=exists)


@triton.jit
def _convolve(
    features,
    weight,
    output,
    partial,
    targets,
    first_step,
    cells,
    sources,
    scale,
    shift,
    residual,
    C,
    D,
    cell_stride,
    c_stride,
    d_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPLITS: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile · column blocks + column block, split): a part of the steps of one tile.

    Writes the finished (ROWS, COLUMNS) to `output`, or its part of the sums to
    partial (SPLITS, tiles · ROWS, D).
    """
    column_blocks = tl.cdiv(D, COLUMNS)
    tile = tl.program_id(0) // column_blocks
    split = tl.program_id(1)
    columns = tl.program_id(0) % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    rows = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)

    first = tl.load(first_step + tile)
    last = tl.load(first_step + tile + 1)
    share = tl.cdiv(last - first, SPLITS)
    first += split * share
    last = tl.minimum(first + share, last)

    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    blocks = tl.cdiv(C, CHANNELS)
    # One loop over steps and channels, so that loads stay in flight from step to step.
    for position in range((last - first) * blocks):
        step = (first + position // blocks).to(tl.int64)
        channels = position % blocks * CHANNELS + tl.arange(0, CHANNELS)
        source = tl.load(sources + step * ROWS + tl.arange(0, ROWS))
        gathered = tl.load(
            features + source.to(tl.int64)[:, None] * C + channels[None, :],
            mask=(source >= 0)[:, None] & (channels < C)[None, :],
            other=0,
        )
        cell_weight = tl.load(
            weight
            + tl.load(cells + step).to(tl.int64) * cell_stride
            + channels[:, None] * c_stride
            + columns[None, :] * d_stride,
            mask=(channels < C)[:, None] & (columns < D)[None, :],
            other=0,
        )
        sums = tl.dot(gathered, cell_weight, sums, input_precision=PRECISION)

    if SPLITS == 1:
        target = tl.load(targets + rows)
        _finish(sums, target, columns, output, scale, shift, residual, D, RELU)
    else:
        tiles = tl.num_programs(0) // column_blocks
        places = (split.to(tl.int64) * tiles * ROWS + rows)[:, None] * D + columns[None, :]
        tl.store(partial + places, sums, mask=(columns < D)[None, :])


@triton.jit
def _add_splits(
    partial,
    output,
    targets,
    scale,
    shift,
    residual,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
    RELU: tl.constexpr,
):
    """Program (ROWS block, column block): adds the parts of `_convolve` in their order."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for split in range(SPLITS):
        places = (split * tl.num_programs(0).to(tl.int64) * ROWS + rows)[:, None] * D
        sums += tl.load(partial + places + columns[None, :], mask=(columns < D)[None, :], other=0)
    target = tl.load(targets + rows)
    _finish(sums, target, columns, output, scale, shift, residual, D, RELU)


@triton.jit
def _weight_gradient(
    features,
    gradient,
    partial,
    targets,
    sources,
    bounds,
    C,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (chunk · blocks + block): partial[chunk], (CHANNELS, COLUMNS) of its (C, D).

    A chunk is a run of pairs of one cell; the sum over the chunks of a cell is its gradient.
    """
    column_blocks = tl.cdiv(D, COLUMNS)
    blocks = tl.cdiv(C, CHANNELS) * column_blocks
    chunk = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    channels = block // column_blocks * CHANNELS + tl.arange(0, CHANNELS)
    columns = block % column_blocks * COLUMNS + tl.arange(0, COLUMNS)

    sums = tl.zeros((CHANNELS, COLUMNS), tl.float32)
    last = tl.load(bounds + 2 * chunk + 1)
    for first in range(tl.load(bounds + 2 * chunk), last, ROWS):
        pairs = first + tl.arange(0, ROWS)
        source = tl.load(sources + pairs, mask=pairs < last, other=0).to(tl.int64)
        target = tl.load(targets + pairs, mask=pairs < last, other=0).to(tl.int64)
        gathered = tl.load(
            features + source[None, :] * C + channels[:, None],
            mask=(pairs < last)[None, :] & (channels < C)[:, None],
            other=0,
        )
        gathered_gradient = tl.load(
            gradient + target[:, None] * D + columns[None, :],
            mask=(pairs < last)[:, None] & (columns < D)[None, :],
            other=0,
        )
        sums = tl.dot(gathered, gathered_gradient, sums, input_precision=PRECISION)

    places = (chunk * C + channels)[:, None] * D + columns[None, :]
    tl.store(partial + places, sums, mask=(channels < C)[:, None] & (columns < D)[None, :])


# TRITON_INTERPRET=1, set before Triton is imported, runs kernels on the processor by NumPy.
INTERPRETED = not isinstance(_convolve, triton.JITFunction)


def convolve(
    features: Tensor,
    weight: Tensor,
    tiles: Tiles,
    epilogue: Epilogue | None,
    config: Config,
    precision: str,
) -> Tensor:
    """(M, D), see `Backend.convolve`. tiles: cut with the rows of `config`."""
    _, channels, columns = weight.shape
    scale, shift, residual, relu = epilogue or Epilogue()
    if residual is not None:
        residual = residual.contiguous()
    output = features.new_empty(tiles.target_count, columns)
    partial = None
    if config.splits > 1:
        size = (config.splits, tiles.targets.numel(), columns)
        partial = features.new_empty(size, dtype=torch.float32)
    tile_count = len(tiles.targets)
    column_blocks = triton.cdiv(columns, config.columns)
    with torch.cuda.device_of(features):
        _convolve[tile_count * column_blocks, config.splits](
            features,
            weight,
            output,
            partial,
            tiles.targets,
            tiles.first_step,
            tiles.cells,
            tiles.sources,
            scale,
            shift,
            residual,
            channels,
            columns,
            *weight.stride(),
            ROWS=config.rows,
            COLUMNS=config.columns,
            CHANNELS=config.channels,
            SPLITS=config.splits,
            RELU=relu,
            PRECISION=precision,
            num_warps=config.warps,
            num_stages=config.stages,
        )
        if partial is not None:
            _add_splits[tile_count, column_blocks](
                partial,
                output,
                tiles.targets,
                scale,
                shift,
                residual,
                columns,
                ROWS=config.rows,
                COLUMNS=config.columns,
                SPLITS=config.splits,
                RELU=relu,
                num_warps=config.warps,
            )
    return output


def weight_gradient(
    features: Tensor, gradient: Tensor, chunks: Chunks, config: Config, precision: str
) -> Tensor:
    """(K, C, D), see `Backend.weight_gradient`. chunks: cut with the splits of `config`."""
    channels, columns = features.shape[1], gradient.shape[1]
    partial = features.new_empty(len(chunks.bounds), channels, columns, dtype=torch.float32)
    blocks = triton.cdiv(channels, config.channels) * triton.cdiv(columns, config.columns)
    with torch.cuda.device_of(features):
        _weight_gradient[(len(chunks.bounds) * blocks,)](
            features,
            gradient,
            partial,
            chunks.targets,
            chunks.sources,
            chunks.bounds,
            channels,
            columns,
            ROWS=config.rows,
            COLUMNS=config.columns,
            CHANNELS=config.channels,
            PRECISION=precision,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    sums = torch.segment_reduce(
        partial, "sum", lengths=chunks.of_cell, axis=0, initial=0, unsafe=True
    )  # unsafe: the lengths are right, and checking them would wait for the GPU
    return sums.to(features.dtype)
