"""The parts of a mask transformer: where queries start, what they take, and from whom.

Layers normalise after they add (Vaswani et al., "Attention is all you need", 2017). Parameters
carry the names of Mask3D's published weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierEncoding(nn.Module):
    """Sines and cosines of positions at fixed random frequencies.

    Tancik et al., "Fourier features let networks learn high frequency functions", NeurIPS 2020.
    """

    def __init__(self, width: int, spread: float) -> None:
        super().__init__()
        self.register_buffer("gauss_B", spread * torch.randn(3, width // 2))

    gauss_B: Tensor

    def forward(self, positions: Tensor) -> Tensor:
        """(..., 3) in 0..1 -> (..., width), never in half precision."""
        with torch.autocast(positions.device.type, enabled=False):
            angles = 2 * math.pi * positions @ self.gauss_B
        return torch.cat([angles.sin(), angles.cos()], -1)


class CrossAttention(nn.Module):
    """Queries take from the voxels of one scene, then are normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(width, heads)
        self.norm = nn.LayerNorm(width)
        _initialize(self)

    def forward(
        self,
        queries: Tensor,
        query_positions: Tensor,
        voxels: Tensor,
        voxel_positions: Tensor,
        hidden: Tensor,
    ) -> Tensor:
        """(Q, C) for voxels (N, C); hidden (Q, N). A query from which all is hidden sees all."""
        hidden = hidden & ~hidden.all(1, keepdim=True)
        taken, _ = self.multihead_attn(
            queries + query_positions,
            voxels + voxel_positions,
            voxels,
            attn_mask=hidden,
            need_weights=False,
        )
        return self.norm(queries + taken)


class SelfAttention(nn.Module):
    """The queries (Q, C) of a scene take from each other, then are normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads)
        self.norm = nn.LayerNorm(width)
        _initialize(self)

    def forward(self, queries: Tensor, positions: Tensor) -> Tensor:
        placed = queries + positions
        taken, _ = self.self_attn(placed, placed, queries, need_weights=False)
        return self.norm(queries + taken)


class FeedForward(nn.Module):
    """Two linear layers with a residual around them, then normalised."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden_width)
        self.linear2 = nn.Linear(hidden_width, width)
        self.norm = nn.LayerNorm(width)
        _initialize(self)

    def forward(self, queries: Tensor) -> Tensor:
        return self.norm(queries + self.linear2(self.linear1(queries).relu()))


class RegionHead(nn.Module):
    """Where a mask is, as a bias of its logits: high at a centre, 0 at a radius, falling beyond.

    The centre is that of the segment in which the query starts, moved by the query, which also says
    how large and how firm the region is. Alike things at two places thereby are two masks from the
    start.
    """

    FIRMNESS = 3.0  # logit at the centre before anything is learned

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 5)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, queries: Tensor, centers: Tensor, starts: Tensor) -> Tensor:
        """(Q, S) for queries (Q, C), segments with centres (S, 3) and starts (Q,) among them."""
        change = self.linear(queries).to(centers.dtype)
        center = centers[starts] + change[:, :3]
        radius = change[:, 3:4].exp()
        return self.FIRMNESS * (1 + change[:, 4:5] - torch.cdist(center, centers) / radius)


def farthest_points(points: Tensor, count: int, start: int = 0) -> Tensor:
    """Rows of the points (N, 3), each as far as possible from those chosen before it.

    (count,) int64, or (N,) where there are fewer points; no row twice unless points coincide. The
    first one is row `start`; of equally far points the first is taken.
    """
    axes = points.T.contiguous()
    chosen = torch.empty(min(count, len(points)), dtype=torch.int64, device=points.device)
    distances = axes.new_full((len(points),), math.inf)
    farthest = chosen.new_tensor([start])
    for index in range(len(chosen)):
        chosen[index : index + 1] = farthest
        offsets = axes - axes.index_select(1, farthest)
        distances = torch.minimum(distances, offsets.square_().sum(0))
        farthest = distances.argmax(keepdim=True)
    return chosen


def _initialize(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
