"""Random sparse tensors, and the dense grids that they are compared with."""

import torch

from unscene_ros.models.sparse_tensor import SparseTensor, sparse_tensor

SIZE = 12  # edge of the dense grids; their first voxel lies at -SIZE / 2


def random_voxels(
    channels: int = 5,
    count: int = 260,
    scenes: int = 2,
    backend: str = "torch",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> SparseTensor:
    """Voxels around the origin, so that half of the coordinates are negative."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(scenes * SIZE**3, generator=generator)[:count]
    xyz = [cells // SIZE**axis % SIZE - SIZE // 2 for axis in range(3)]
    features = torch.randn(count, channels, generator=generator, dtype=dtype)
    return sparse_tensor(
        torch.stack([cells // SIZE**3, *xyz], 1), features, scenes=scenes, backend=backend
    )


def dense(tensor: SparseTensor) -> torch.Tensor:
    """(B, C, X, Y, Z), zero where no voxel is."""
    edge = SIZE // tensor.level.stride
    shape = (tensor.level.scenes, edge, edge, edge, tensor.features.shape[1])
    grid = tensor.features.new_zeros(shape).index_put(_dense_index(tensor), tensor.features)
    return grid.permute(0, 4, 1, 2, 3)


def at_voxels(grid: torch.Tensor, tensor: SparseTensor) -> torch.Tensor:
    """The numbers of a dense grid at the voxels of a tensor."""
    return grid.permute(0, 2, 3, 4, 1)[_dense_index(tensor)]


def dense_kernel(weight: torch.Tensor) -> torch.Tensor:
    """(K³, C, D), x fastest -> the (D, C, X, Y, Z) of conv3d."""
    size = round(len(weight) ** (1 / 3))
    return weight.reshape(size, size, size, *weight.shape[1:]).permute(4, 3, 2, 1, 0)


def _dense_index(tensor: SparseTensor) -> tuple[torch.Tensor, ...]:
    batch, *xyz = tensor.level.coordinates.long().T
    return batch, *((axis + SIZE // 2) // tensor.level.stride for axis in xyz)
