"""What surfaces look like: a pattern, two colours and a scale, drawn at random by material."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

PATTERNS = (
    "plain",
    "wood",
    "checks",
    "stripes",
    "marble",
    "tiles",
    "bricks",
    "planks",
    "patches",
    "fabric",
)
Color = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Texture:
    """A pattern that blends two colours (RGB in 0..1); `scale_m` is the size of its detail."""

    pattern: str
    color: Color
    second_color: Color
    scale_m: float
    seed: int


def random_color(rng: np.random.Generator, mood: str = "any") -> Color:
    """A plausible colour: mood "any", "wood", "light" (walls), "metal" or "leaf"."""
    if mood == "any":
        mood = rng.choice(("neutral", "vivid", "wood", "light"), p=(0.35, 0.35, 0.2, 0.1))
    hue, saturation, value = {
        "neutral": (rng.uniform(0, 1), rng.uniform(0, 0.12), rng.uniform(0.1, 0.95)),
        "vivid": (rng.uniform(0, 1), rng.uniform(0.3, 0.85), rng.uniform(0.25, 0.9)),
        "wood": (rng.uniform(0.05, 0.11), rng.uniform(0.25, 0.65), rng.uniform(0.25, 0.85)),
        "light": (rng.uniform(0, 1), rng.uniform(0, 0.22), rng.uniform(0.7, 0.97)),
        "metal": (rng.uniform(0.5, 0.7), rng.uniform(0, 0.08), rng.uniform(0.15, 0.75)),
        "leaf": (rng.uniform(0.2, 0.38), rng.uniform(0.4, 0.8), rng.uniform(0.2, 0.6)),
    }[mood]
    return colorsys.hsv_to_rgb(hue, saturation, value)


def shade_of(color: Color, rng: np.random.Generator, spread: float = 0.25) -> Color:
    """A lighter or darker neighbour of a colour."""
    factor = 1 + spread * rng.uniform(0.5, 1.0) * rng.choice((-1, 1))
    red, green, blue = (float(np.clip(channel * factor, 0.03, 0.97)) for channel in color)
    return red, green, blue


def make_texture(
    rng: np.random.Generator, pattern: str, color: Color, scale_m: float, contrast: float = 0.25
) -> Texture:
    """A texture of one colour and a neighbouring shade, with a seed of its own."""
    second = shade_of(color, rng, contrast)
    return Texture(pattern, color, second, scale_m, int(rng.integers(1 << 20)))


def wood(rng: np.random.Generator) -> Texture:
    """Wood grain, now and then painted over."""
    if rng.random() < 0.3:
        return make_texture(rng, "plain", random_color(rng), 0.3, 0.1)
    return make_texture(rng, "wood", random_color(rng, "wood"), rng.uniform(0.02, 0.06), 0.2)


def metal(rng: np.random.Generator) -> Texture:
    """Painted or bare metal, nearly uniform."""
    return make_texture(rng, "plain", random_color(rng, "metal"), 0.3, 0.08)


def cloth(rng: np.random.Generator) -> Texture:
    """Upholstery and textiles, from plain weave to loud patterns."""
    pattern = str(
        rng.choice(
            ("fabric", "plain", "stripes", "checks", "patches", "marble"),
            p=(0.45, 0.2, 0.1, 0.08, 0.07, 0.1),
        )
    )
    texture = make_texture(rng, pattern, random_color(rng), rng.uniform(0.03, 0.12))
    if pattern in ("stripes", "checks", "patches") and rng.random() < 0.5:
        return Texture(pattern, texture.color, random_color(rng), texture.scale_m, texture.seed)
    return texture


def anything(rng: np.random.Generator) -> Texture:
    """A texture for small things: paint, wood, print or pattern."""
    pattern = str(
        rng.choice(
            ("plain", "wood", "marble", "stripes", "checks", "patches"),
            p=(0.5, 0.12, 0.1, 0.08, 0.05, 0.15),
        )
    )
    scale_m = rng.uniform(0.02, 0.08)
    return Texture(
        pattern, random_color(rng), random_color(rng), scale_m, int(rng.integers(1 << 20))
    )
