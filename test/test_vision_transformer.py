"""The transformer provider on checkpoints of tiny random networks, against the library itself."""

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from unscene_ros.image_features import ImageFeaturesConfig, load_image_features
from unscene_ros.scene import InputError

SMALL = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}


def make_vit():
    config = ViTConfig(**SMALL, intermediate_size=24, image_size=32, patch_size=8)
    return ViTModel(config, add_pooling_layer=False)


def make_dinov2():
    return Dinov2Model(Dinov2Config(**SMALL, mlp_ratio=2, image_size=56, patch_size=14))


def make_dinov2_with_registers():
    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            **SMALL, mlp_ratio=2, image_size=56, patch_size=14, num_register_tokens=3
        )
    )


@pytest.fixture
def saved(tmp_path):
    """Writes a network with clearly different weights and returns it with its folder."""

    def save(make):
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(tmp_path)
        return model, str(tmp_path)

    return save


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def naive_facet(model, color, facet, layer, mean, spread):
    """Patch tokens of one facet when the library's own model runs the picture."""
    kept = []
    block = model.encoder.layer[layer]
    source = block if facet == "token" else getattr(block.attention.attention, facet)
    hook = source.register_forward_hook(lambda _m, _i, output: kept.append(output))
    pixels = (torch.from_numpy(color).float() / 255 - torch.tensor(mean)) / torch.tensor(spread)
    options = {"interpolate_pos_encoding": True} if isinstance(model, ViTModel) else {}
    with torch.no_grad():
        model(pixels.permute(2, 0, 1)[None], **options)
    hook.remove()
    tokens = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    patch = model.config.patch_size
    rows, columns = color.shape[0] // patch, color.shape[1] // patch
    return tokens[0, -rows * columns :].reshape(rows, columns, -1).numpy()


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("facet", ["key", "query", "value", "token"])
@pytest.mark.parametrize("layer", [-2, -1, 0])
def test_dino_on_its_own_grid_equals_the_library(saved, facet, layer):
    model, folder = saved(make_vit)
    config = ImageFeaturesConfig("dino", 64, folder, facet, layer, overlap=1, device="cpu")
    color = picture(48, 64)
    features = load_image_features(config)(color)
    assert features.shape == (6, 8, 12)
    assert features.dtype == np.float32
    expected = naive_facet(model, color, facet, layer, *IMAGENET)
    np.testing.assert_allclose(features, expected, atol=2e-4)


@pytest.mark.parametrize(
    ("make", "height", "width"),
    [(make_dinov2, 56, 56), (make_dinov2, 42, 84), (make_dinov2_with_registers, 56, 56)],
)
def test_dinov2_on_its_own_grid_equals_the_library(saved, make, height, width):
    model, folder = saved(make)
    config = ImageFeaturesConfig(
        "dino", width, folder, overlap=1, normalization="half", device="cpu"
    )
    color = picture(height, width)
    expected = naive_facet(model, color, "key", -2, *HALF)
    np.testing.assert_allclose(load_image_features(config)(color), expected, atol=2e-4)


@pytest.mark.parametrize(("make", "cell"), [(make_vit, 4), (make_dinov2_with_registers, 7)])
def test_overlapping_patches_double_the_grid(saved, make, cell):
    _, folder = saved(make)
    provider = load_image_features(ImageFeaturesConfig("dino", 112, folder, device="cpu"))
    assert provider(picture(300, 300)).shape == (112 // cell, 112 // cell, 12)


def test_overlapping_patches_read_their_positions_at_their_own_centres(saved):
    model, folder = saved(make_vit)
    with torch.no_grad():
        model.embeddings.patch_embeddings.projection.weight.zero_()
        model.embeddings.patch_embeddings.projection.bias.zero_()
    model.save_pretrained(folder)
    provider = load_image_features(ImageFeaturesConfig("dino", 32, folder, device="cpu"))
    with torch.no_grad():
        tokens, rows, columns = provider._embed(torch.zeros(1, 3, 32, 32))
    # 4 x 4 learned positions, one for 8 pixels; 8 x 8 cells of 4 pixels lie between them as the
    # pixels of a doubled picture do.
    learned = model.embeddings.position_embeddings[:, 1:].detach().transpose(1, 2)
    doubled = torch.nn.functional.interpolate(
        learned.reshape(1, -1, 4, 4), size=(8, 8), mode="bicubic", align_corners=False
    )
    assert (rows, columns) == (8, 8)
    torch.testing.assert_close(tokens[:, 1:].transpose(1, 2).reshape(1, -1, 8, 8), doubled)


def test_a_missing_model_says_what_to_do(tmp_path):
    for model in ("", str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(InputError, match=r"image_features.model.*provider to filters"):
            load_image_features(ImageFeaturesConfig("dino", model=model))


def test_a_checkpoint_of_another_kind_or_without_weights_is_refused(saved, tmp_path):
    model, folder = saved(make_vit)
    weights = {k: v for k, v in model.state_dict().items() if "layer.1" not in k}
    model.save_pretrained(folder, state_dict=weights)
    with pytest.raises(InputError, match=r"without encoder\.layer\.1"):
        load_image_features(ImageFeaturesConfig("dino", model=folder))
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="got bert"):
        load_image_features(ImageFeaturesConfig("dino", model=str(tmp_path / "bert")))


def test_a_layer_that_does_not_exist_is_refused(saved):
    _, folder = saved(make_vit)
    with pytest.raises(InputError, match=r"layer: expected -3\.\.2"):
        load_image_features(ImageFeaturesConfig("dino", model=folder, layer=3))
