"""Colour picture -> dense features of a self-supervised vision transformer (DINO, DINOv2).

Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021; Oquab et al.,
"DINOv2", 2023. Overlapping patches and the key facet: Amir et al., "Deep ViT features as dense
visual descriptors", 2021. The networks come from `transformers`; weights are never executed.
"""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import nn

from unscene_ros.models.device import choose_torch_device
from unscene_ros.scene import InputError

# Channel mean and spread that the pictures are normalised with.
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
MODEL_TYPES = ("vit", "dinov2", "dinov2_with_registers")


class VisionTransformerFeatures:
    """A pretrained transformer, cut off behind the block whose facet is wanted.

    model: a local folder written by `save_pretrained`, or a hub id such as facebook/dino-vits8 or
    facebook/dinov2-with-registers-small. layer counts blocks as a list index does, -1 is the last.
    overlap: patches per patch length, 1 is the model's own grid. Raises InputError when the model
    cannot be loaded or has no such layer.
    """

    def __init__(
        self,
        model: str,
        facet: Literal["key", "query", "value", "token"] = "key",
        layer: int = -2,
        overlap: int = 2,
        image_width: int = 256,
        normalization: Literal["imagenet", "half"] = "imagenet",
        device: Literal["auto", "cuda", "cpu"] = "auto",
    ) -> None:
        self._device = choose_torch_device(device)
        self._model = _load(model).to(self._device)
        self._image_width = image_width
        self._mean, self._spread = (torch.tensor(v) for v in NORMALIZATIONS[normalization])
        self._patch = self._model.config.patch_size
        self._stride = max(self._patch // overlap, 1)
        self._special_tokens = 1 + getattr(self._model.config, "num_register_tokens", 0)
        blocks = self._model.encoder.layer
        if not -len(blocks) <= layer < len(blocks):
            raise InputError(
                f"image_features.layer: expected {-len(blocks)}..{len(blocks) - 1} for {model}, "
                f"got {layer}"
            )
        block = blocks[layer]
        self._model.encoder.layer = blocks[: list(blocks).index(block) + 1]
        source = block if facet == "token" else getattr(block.attention.attention, facet)
        source.register_forward_hook(self._keep)
        self._kept = torch.empty(0)

    def _keep(self, _module: nn.Module, _inputs: tuple, output: torch.Tensor | tuple) -> None:
        self._kept = output[0] if isinstance(output, tuple) else output

    @torch.inference_mode()
    def __call__(self, color: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (h, w, C) float32, heads side by side; cells tile the picture."""
        tokens, rows, columns = self._embed(self._pixels(color))
        self._model.encoder(tokens)
        patches = self._kept[0, self._special_tokens :]
        return patches.reshape(rows, columns, -1).cpu().numpy()

    def _pixels(self, color: np.ndarray) -> torch.Tensor:
        """(1, 3, H, W) the picture at the wanted width, both sides whole numbers of patches."""
        width = max(round(self._image_width / self._patch), 1) * self._patch
        height = width * color.shape[0] / color.shape[1]
        height = max(round(height / self._patch), 1) * self._patch
        shrinks = width < color.shape[1]
        resized = cv2.resize(
            color, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
        pixels = (torch.from_numpy(resized) / 255 - self._mean) / self._spread
        return pixels.permute(2, 0, 1)[None].to(self._device)

    def _embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """((1, T, C) special tokens and patches with their positions, patch rows, columns).

        The border is mirrored so that one patch is centred on each cell of stride x stride pixels;
        positions are read from the learned grid where those centres are.
        """
        embeddings = self._model.embeddings
        height, width = pixels.shape[2:]
        margin = self._patch - self._stride
        before, after = margin // 2, margin - margin // 2
        padded = nn.functional.pad(pixels, (before, after, before, after), mode="reflect")
        projection = embeddings.patch_embeddings.projection
        patches = nn.functional.conv2d(
            padded, projection.weight, projection.bias, stride=self._stride
        )
        rows, columns = patches.shape[2:]
        offset = self._patch / 2 - before
        positions = self._positions(
            (torch.arange(rows) * self._stride + offset) / height,
            (torch.arange(columns) * self._stride + offset) / width,
        )
        patches = (patches + positions).flatten(2).transpose(1, 2)
        special = [embeddings.cls_token + embeddings.position_embeddings[:, :1]]
        if self._special_tokens > 1:
            special.append(embeddings.register_tokens)
        return torch.cat((*special, patches), dim=1), rows, columns

    def _positions(self, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
        """(1, C, rows, columns) the learned grid read bicubically; places in 0..1 of the picture.

        On the model's own patch grid this is what resizing the learned grid gives.
        """
        learned = self._model.embeddings.position_embeddings[0, 1:]
        side = round(len(learned) ** 0.5)
        grid = learned.T.reshape(1, -1, side, side)
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)
        places = (2 * places - 1)[None].to(grid)
        return nn.functional.grid_sample(
            grid, places, mode="bicubic", padding_mode="border", align_corners=False
        )


def _load(model: str) -> Any:
    """The network in evaluation mode; raises InputError when it is missing or of another kind."""
    remedy = (
        "give a local folder with config.json and model.safetensors, or a hub id such as "
        "facebook/dino-vits8 while online, or set image_features.provider to filters"
    )
    if not model:
        raise InputError(f"image_features.model: provider dino needs a model, got none: {remedy}")
    try:
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.from_pretrained(model)
        if config.model_type not in MODEL_TYPES:
            raise InputError(
                f"image_features.model '{model}': expected one of {', '.join(MODEL_TYPES)}, "
                f"got {config.model_type}: {remedy}"
            )
        pooler = {"add_pooling_layer": False} if config.model_type == "vit" else {}
        network, report = AutoModel.from_pretrained(
            model, dtype=torch.float32, output_loading_info=True, **pooler
        )
    except ImportError as error:
        raise InputError("image_features.provider dino: run `pip install transformers`") from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"image_features.model '{model}': cannot be loaded ({reason}): {remedy}"
        ) from error
    if report["missing_keys"]:
        raise InputError(
            f"image_features.model '{model}': expected all weights, got a file without "
            f"{min(report['missing_keys'])}: {remedy}"
        )
    return network.eval()
