"""Names and shapes of published weights as their repositories define them, without our networks."""

import torch


def normalization(name, channels):
    statistics = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.bn.{part}": (channels,) for part in statistics} | {
        f"{name}.bn.num_batches_tracked": ()
    }


def stage(name, inputs, outputs, blocks):
    shapes = {}
    for block in range(blocks):
        unit = f"{name}.{block}"
        shapes[f"{unit}.conv1.kernel"] = (27, inputs, outputs)
        shapes |= normalization(f"{unit}.norm1", outputs)
        shapes[f"{unit}.conv2.kernel"] = (27, outputs, outputs)
        shapes |= normalization(f"{unit}.norm2", outputs)
        if inputs != outputs:
            shapes[f"{unit}.downsample.0.kernel"] = (inputs, outputs)
            shapes |= normalization(f"{unit}.downsample.1", outputs)
        inputs = outputs
    return shapes


def encoder(inputs, planes, blocks, stem):
    shapes = {"conv0p1s1.kernel": (stem**3, inputs, 32)} | normalization("bn0", 32)
    before = 32
    for number, name in enumerate(("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")):
        shapes[f"{name}.kernel"] = (8, before, before)
        shapes |= normalization(f"bn{number + 1}", before)
        shapes |= stage(f"block{number + 1}", before, planes[number], blocks[number])
        before = planes[number]
    return shapes


def unet_shapes(planes, blocks, inputs=3, outputs=20, stem=5):
    shapes = encoder(inputs, planes, blocks, stem)
    before, skips = planes[3], (planes[2], planes[1], planes[0], 32)
    names = ("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")
    for number, (name, skip) in enumerate(zip(names, skips, strict=True), start=4):
        shapes[f"{name}.kernel"] = (8, before, planes[number])
        shapes |= normalization(f"bntr{number}", planes[number])
        joined = planes[number] + skip
        shapes |= stage(f"block{number + 1}", joined, planes[number], blocks[number])
        before = planes[number]
    return shapes | {"final.kernel": (before, outputs), "final.bias": (1, outputs)}


def fpn_shapes(inputs=6, stem=5):
    planes = (32, 64, 128, 256)
    shapes = encoder(inputs, planes, (2, 2, 2, 2), stem)
    for number, channels in enumerate(reversed(planes), start=1):
        shapes[f"delayer{number}.linear.weight"] = (128, channels)
    return shapes


def decoder_shapes(channels, width, feedforward, classes):
    """Of Mask3D and UnScene3D, without the backbone."""
    *seen, finest = channels
    linear = {"weight": (width, width), "bias": (width,)}
    norm = {"norm.weight": (width,), "norm.bias": (width,)}
    attention = {
        "in_proj_weight": (3 * width, width),
        "in_proj_bias": (3 * width,),
        "out_proj.weight": (width, width),
        "out_proj.bias": (width,),
    }
    parts = {
        "mask_features_head": {"kernel": (finest, width), "bias": (1, width)},
        "pos_enc": {"gauss_B": (3, width // 2)},
        "query_projection.layers.0": {"weight": (width, width, 1), "bias": (width,)},
        "query_projection.layers.2": {"weight": (width, width, 1), "bias": (width,)},
        "mask_embed_head.0": linear,
        "mask_embed_head.2": linear,
        "class_embed_head": {"weight": (classes + 1, width), "bias": (classes + 1,)},
        "decoder_norm": {"weight": (width,), "bias": (width,)},
    }
    for layer, inputs in enumerate(seen):
        parts |= {
            f"lin_squeeze.0.{layer}": {"weight": (width, inputs), "bias": (width,)},
            f"cross_attention.0.{layer}": norm,
            f"cross_attention.0.{layer}.multihead_attn": attention,
            f"self_attention.0.{layer}": norm,
            f"self_attention.0.{layer}.self_attn": attention,
            f"ffn_attention.0.{layer}": norm,
            f"ffn_attention.0.{layer}.linear1": {
                "weight": (feedforward, width),
                "bias": (feedforward,),
            },
            f"ffn_attention.0.{layer}.linear2": {
                "weight": (width, feedforward),
                "bias": (width,),
            },
        }
    return {f"{part}.{name}": shape for part in parts for name, shape in parts[part].items()}


def class_and_offset_shapes(channels, classes):
    """Of Contrastive Scene Contexts, without the backbone."""
    linear = {"final": classes, "offsets_pre": channels, "offsets": 3}
    shapes = {f"{name}.kernel": (channels, outputs) for name, outputs in linear.items()}
    shapes |= {f"{name}.bias": (1, outputs) for name, outputs in linear.items()}
    return shapes | normalization("bntr_offset", channels)


UNET14A = ((32, 64, 128, 256, 128, 128, 96, 96), (1,) * 8)
UNET34C = ((32, 64, 128, 256, 256, 128, 96, 96), (2, 3, 4, 6, 2, 2, 2, 2))


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors of one small number each, different for each tensor; PyTorch's files stay small."""
    return {
        name: torch.tensor(7 if name.endswith("tracked") else 0.001 * index).expand(shape)
        for index, (name, shape) in enumerate(shapes.items())
    }
