"""Where PyTorch computes."""

from __future__ import annotations

from typing import Literal

import torch

from unscene_ros.scene import InputError


def choose_torch_device(device: Literal["auto", "cuda", "cpu"]) -> torch.device:
    """A GPU for "cuda", and for "auto" where there is one; InputError when it is missing."""
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise InputError(
            "device: expected a GPU for 'cuda', got none that PyTorch can use: "
            "set it to auto or cpu"
        )
    return torch.device("cuda" if has_cuda and device != "cpu" else "cpu")
