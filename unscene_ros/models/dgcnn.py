"""Voxels as a point cloud -> features of each, from a graph that is drawn anew in every layer.

The segmentation network of Wang et al., "Dynamic graph CNN for learning on point clouds", ACM
Transactions on Graphics 2019, as a backbone without sparse convolutions: each point is joined to
its nearest points, in space at first, then among the features of the layer before.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from unscene_ros.models.sparse_convolution import pool_scenes
from unscene_ros.models.sparse_layers import normalize_rows
from unscene_ros.models.sparse_tensor import SparseTensor
from unscene_ros.scene import InputError

# Channels of the paper's segmentation network.
EDGE_CHANNELS = ((64, 64), (64, 64), (64,))
SCENE_CHANNELS = 1024
POINT_CHANNELS = (512, 256)
NEGATIVE_SLOPE = 0.2

DISTANCES_AT_ONCE = 2**24


@dataclass(frozen=True, slots=True)
class DgcnnConfig:
    """Channels in and out, and the density of the graph."""

    input_channels: int = 6
    output_channels: int = 128
    neighbors: int = 20  # of each point, itself among them


class Dgcnn(nn.Module):
    """Features of voxels in, features of the same voxels out.

    Time grows with the square of the points in a scene; memory for distances does not grow. Raises
    InputError for a graph without neighbours.
    """

    def __init__(self, config: DgcnnConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DgcnnConfig()
        if config.neighbors < 1:
            raise InputError(f"Dgcnn: expected at least 1 of neighbors, got {config.neighbors}")
        last_channels = [outputs[-1] for outputs in EDGE_CHANNELS]
        inputs = [config.input_channels, *last_channels]
        self.edges = nn.ModuleList(map(EdgeConvolution, inputs, EDGE_CHANNELS))
        self.scene = normalized_linear(sum(last_channels), SCENE_CHANNELS)
        widths = (SCENE_CHANNELS + sum(last_channels), *POINT_CHANNELS)
        self.points = nn.Sequential(*(normalized_linear(*ends) for ends in pairwise(widths)))
        self.final = nn.Linear(widths[-1], config.output_channels)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        features, level = tensor.features, tensor.level
        if features.shape[1] != self.config.input_channels:
            raise InputError(
                f"Dgcnn: expected {self.config.input_channels} channels per voxel, "
                f"got {features.shape[1]}"
            )
        xyz = level.coordinates[:, 1:].long()
        places = (xyz - xyz.new_tensor(level.layout.minimum)).to(features.dtype)
        of_edges = []
        for edges in self.edges:
            neighbors = neighbor_rows(places, level.scene_sizes, self.config.neighbors)
            features = places = edges(features, neighbors)
            of_edges.append(features)
        local = torch.cat(of_edges, 1)
        scenes = pool_scenes(tensor.with_features(self.scene(local)), "max")
        around = scenes[level.coordinates[:, 0].long()]
        return tensor.with_features(self.final(self.points(torch.cat([around, local], 1))))


class EdgeConvolution(nn.Module):
    """The maximum over a point's edges of what a small network says about each (equation 8).

    An edge is described by the point and by the difference of its neighbour to it.
    """

    def __init__(self, inputs: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.difference = nn.Linear(inputs, outputs[0], bias=False)
        self.point = nn.Linear(inputs, outputs[0], bias=False)
        self.normalization = NormalizedReLU(outputs[0])
        self.following = nn.Sequential(*(normalized_linear(*ends) for ends in pairwise(outputs)))

    def forward(self, features: Tensor, neighbors: Tensor) -> Tensor:
        """(N, D) for features (N, C) and rows of neighbours (N, k)."""
        # Multiplied before the differences are taken: once per point instead of once per edge.
        ends = self.difference(features)
        edges = ends[neighbors] + (self.point(features) - ends)[:, None]
        return self.following(self.normalization(edges)).amax(1)


class NormalizedReLU(nn.Module):
    """Batch normalisation over all rows of (..., C), then a leaky ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, features: Tensor) -> Tensor:
        rows = normalize_rows(features.flatten(0, -2), self.bn)
        return leaky_relu(rows, NEGATIVE_SLOPE).reshape(features.shape)


def normalized_linear(inputs: int, outputs: int) -> nn.Sequential:
    """A linear layer, batch normalisation and leaky ReLU."""
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), NormalizedReLU(outputs))


@torch.no_grad()
def neighbor_rows(places: Tensor, scene_sizes: list[int], count: int) -> Tensor:
    """(N, count) int64: the rows of the points (N, C) nearest to each, within its scene.

    The point itself is among them. A scene of fewer points repeats it.
    """
    rows = torch.arange(len(places), device=places.device)[:, None].repeat(1, count)
    start = 0
    for scene in places.split(scene_sizes):
        nearest = nearest_points(scene, count)
        rows[start : start + len(scene), : nearest.shape[1]] = start + nearest
        start += len(scene)
    return rows


def nearest_points(points: Tensor, count: int) -> Tensor:
    """(N, min(count, N)) int64: the nearest of the points (N, C) to each, itself included.

    Looks at some 16 million distances at a time.
    """
    count = min(count, len(points))
    centred = points.to(torch.promote_types(points.dtype, torch.float32))
    # Distances are made from squares, which lose digits far from the origin.
    centred = centred - centred.mean(0)
    with torch.autocast(points.device.type, enabled=False):
        found = [
            torch.cdist(some, centred).topk(count, largest=False).indices
            for some in centred.split(max(DISTANCES_AT_ONCE // max(len(points), 1), 1))
        ]
    return torch.cat(found)
