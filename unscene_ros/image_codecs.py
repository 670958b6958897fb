"""Picture bytes of ROS image messages <-> RGB uint8 and depth in metres.

In: the fields of a sensor_msgs Image (encoding, height, width, step, is_bigendian, data) or
CompressedImage (format, data). Out: color (H, W, 3) uint8 RGB, depth (H, W) float32 metres with 0
where there is no reading. Depth units follow REP 118: 16UC1 millimetres, 32FC1 metres.
"""

from __future__ import annotations

import struct
from typing import Literal

import cv2
import numpy as np

from unscene_ros.scene import InputError

# Encoding -> channel order as indices into RGB, one entry per byte of a pixel (3 = alpha).
_COLOR_CHANNELS = {
    "rgb8": (0, 1, 2),
    "bgr8": (2, 1, 0),
    "rgba8": (0, 1, 2, 3),
    "bgra8": (2, 1, 0, 3),
    "mono8": (0,),
}
_DEPTH_TYPES = {"16UC1": "u2", "32FC1": "f4"}

# As the sensor saw it, which the calibration and the depth are of: phones ask to turn their JPEGs.
COLOR_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
COLOR_ENCODINGS = tuple(_COLOR_CHANNELS)
DEPTH_ENCODINGS = tuple(_DEPTH_TYPES)

DepthEncoding = Literal["16UC1", "32FC1"]

# compressedDepth: int32 format, then the two float32 parameters of the inverse-depth quantisation.
_DEPTH_HEADER = struct.Struct("<iff")
_NO_READING_MM = 65535  # what several drivers write instead of 0
# The defaults of ROS's compressed_depth_image_transport: range 10 m, 100 quantisation steps.
_QUANTISATION_RANGE_M = 10.0
_QUANTISATION_STEPS = 100.0


def is_depth_format(image_format: str) -> bool:
    """Whether an Image encoding or a CompressedImage format string announces depth."""
    return "compressedDepth" in image_format or image_format.startswith(DEPTH_ENCODINGS)


def decode_color(
    encoding: str, height: int, width: int, step: int, is_bigendian: int, data: np.ndarray | bytes
) -> np.ndarray:
    """Color (H, W, 3) uint8 RGB of a raw Image; `is_bigendian` does not matter for single bytes.

    Raises InputError for an encoding outside COLOR_ENCODINGS or data of a wrong size.
    """
    if encoding not in _COLOR_CHANNELS:
        raise _unknown("colour image", encoding, COLOR_ENCODINGS)
    channels = _COLOR_CHANNELS[encoding]
    pixels = _rows(encoding, height, width, step, data, len(channels)).reshape(height, width, -1)
    if len(channels) == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., list(channels[:3])])


def decode_depth(
    encoding: str, height: int, width: int, step: int, is_bigendian: int, data: np.ndarray | bytes
) -> np.ndarray:
    """Depth (H, W) float32 metres of a raw Image.

    Raises InputError for an encoding outside DEPTH_ENCODINGS or data of a wrong size.
    """
    if encoding not in _DEPTH_TYPES:
        raise _unknown("depth image", encoding, DEPTH_ENCODINGS)
    pixel_type = np.dtype((">" if is_bigendian else "<") + _DEPTH_TYPES[encoding])
    rows = _rows(encoding, height, width, step, data, pixel_type.itemsize)
    return metres(np.ascontiguousarray(rows).view(pixel_type))


def decode_compressed_color(image_format: str, data: np.ndarray | bytes) -> np.ndarray:
    """Color (H, W, 3) uint8 RGB of a CompressedImage holding a jpeg or png.

    `image_format` is like "jpeg" or "rgb8; jpeg compressed bgr8": the file inside follows its own
    standard, whatever channel order the string names. Raises InputError for other formats and
    broken files.
    """
    holds_picture = any(kind in image_format for kind in ("jpeg", "jpg", "png"))
    if is_depth_format(image_format) or not holds_picture:
        raise _unknown("compressed colour image", image_format, ("jpeg", "png"))
    bgr = _read_picture(image_format, data, COLOR_FLAGS)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def decode_compressed_depth(image_format: str, data: np.ndarray | bytes) -> np.ndarray:
    """Depth (H, W) float32 metres of a CompressedImage.

    Known: "16UC1; compressedDepth png" (PNG of millimetres behind a 12-byte header),
    "32FC1; compressedDepth png" (PNG of quantised inverse depth, depth = a / (value - b) with a and
    b from the header), and "16UC1; png compressed" (PNG of millimetres without header).
    Raises InputError for other formats and broken files.
    """
    with_header = "compressedDepth" in image_format
    if "rvl" in image_format or not (with_header or "png" in image_format):
        known = ("16UC1; compressedDepth png", "32FC1; compressedDepth png", "16UC1; png")
        raise _unknown("compressed depth image", image_format, known)
    buffer = np.frombuffer(data, np.uint8)
    header, picture = np.split(buffer, [_DEPTH_HEADER.size if with_header else 0])
    values = _read_picture(image_format, picture, cv2.IMREAD_UNCHANGED)
    if values.dtype != np.uint16 or values.ndim != 2:
        raise InputError(
            f"compressed depth image '{image_format}': expected a PNG of one 16-bit channel, "
            f"got {values.shape} {values.dtype}"
        )
    if not image_format.startswith("32FC1"):
        return metres(values)
    _, a, b = _DEPTH_HEADER.unpack(header.tobytes())
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.float32(a) / (values - np.float32(b))
    return metres(np.where(values == 0, np.float32(0), depth))


def encode_color(encoding: str, color: np.ndarray) -> bytes:
    """The pixel bytes of a raw Image without row padding, from color (H, W, 3) uint8 RGB."""
    if encoding not in _COLOR_CHANNELS:
        raise _unknown("colour image", encoding, COLOR_ENCODINGS)
    if encoding == "mono8":
        return cv2.cvtColor(color, cv2.COLOR_RGB2GRAY).tobytes()
    rgba = np.dstack([color, np.full(color.shape[:2], 255, np.uint8)])
    return rgba[..., list(_COLOR_CHANNELS[encoding])].tobytes()


def encode_depth(encoding: str, depth: np.ndarray) -> bytes:
    """The pixel bytes of a raw little-endian Image, from depth (H, W) float32 metres."""
    if encoding not in _DEPTH_TYPES:
        raise _unknown("depth image", encoding, DEPTH_ENCODINGS)
    if encoding == "16UC1":
        return millimetres(depth).astype("<u2").tobytes()
    return np.where(depth > 0, depth, np.nan).astype("<f4").tobytes()


def encode_jpeg(color: np.ndarray, quality: int) -> bytes:
    """A JPEG file from color (H, W, 3) uint8 RGB, spending time to be small; quality 0 to 100."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options += [cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    return cv2.imencode(".jpg", cv2.cvtColor(color, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def encode_png(picture: np.ndarray, compression: int = 3) -> bytes:
    """A PNG file from (H, W, 3) uint8 RGB or (H, W) uint8/uint16; compression 0 (fast) to 9."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_PNG_COMPRESSION, compression]
    options += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_FILTERED]
    return cv2.imencode(".png", picture, options)[1].tobytes()


def encode_compressed_depth(
    depth: np.ndarray, encoding: DepthEncoding = "16UC1", compression: int = 3
) -> bytes:
    """The data of a CompressedImage of format "<encoding>; compressedDepth png".

    depth (H, W) float32 metres. 16UC1 keeps millimetres exactly; 32FC1 quantises the inverse depth
    and loses what lies beyond 10 m.
    """
    if encoding == "16UC1":
        return _DEPTH_HEADER.pack(0, 0.0, 0.0) + encode_png(millimetres(depth), compression)
    a = _QUANTISATION_STEPS * (_QUANTISATION_STEPS + 1)
    b = 1 - a / _QUANTISATION_RANGE_M
    readable = (depth > 0) & (depth < _QUANTISATION_RANGE_M)
    quantised = a / np.where(readable, depth, np.inf) + b
    values = np.where(readable, quantised.round(), 0).clip(0, 65535).astype(np.uint16)
    return _DEPTH_HEADER.pack(0, a, b) + encode_png(values, compression)


def millimetres(depth: np.ndarray) -> np.ndarray:
    """Depth in metres as uint16 millimetres; what does not fit becomes 0, no reading."""
    with np.errstate(invalid="ignore"):
        rounded = np.round(depth * 1000.0)
        fits = (rounded > 0) & (rounded < _NO_READING_MM)
    return np.where(fits, rounded, 0).astype(np.uint16)


def metres(values: np.ndarray) -> np.ndarray:
    """(H, W) float32 metres from uint16 millimetres or float metres, 0 where there is no depth."""
    if values.dtype.kind == "u":
        readings = np.where(values == _NO_READING_MM, 0, values)
        return readings / np.float32(1000)
    values = values.astype(np.float32)
    return np.where(np.isfinite(values) & (values > 0), values, np.float32(0))


def _rows(
    encoding: str, height: int, width: int, step: int, data: np.ndarray | bytes, pixel_bytes: int
) -> np.ndarray:
    """(H, W * pixel_bytes) uint8 view of the rows without their padding."""
    buffer = np.frombuffer(data, np.uint8)
    row_bytes = width * pixel_bytes
    if height <= 0 or width <= 0:
        raise InputError(f"image: expected a positive size, got {width}x{height}")
    if step < row_bytes or len(buffer) != height * step:
        raise InputError(
            f"image {width}x{height} {encoding}: expected step >= {row_bytes} and height * step "
            f"bytes, got step {step} and {len(buffer)} bytes"
        )
    return buffer.reshape(height, step)[:, :row_bytes]


def _read_picture(image_format: str, data: np.ndarray | bytes, flags: int) -> np.ndarray:
    buffer = np.frombuffer(data, np.uint8)
    try:
        picture = cv2.imdecode(buffer, flags)
    except cv2.error:  # an empty buffer, or a header that promises an absurd size
        picture = None
    if picture is None:
        raise InputError(
            f"compressed image '{image_format}': expected a readable picture file, "
            f"got {len(buffer)} bytes that are none"
        )
    return picture


def _unknown(what: str, got: str, known: tuple[str, ...]) -> InputError:
    return InputError(
        f"{what}: unknown encoding '{got}', expected one of {', '.join(known)}: "
        f"convert the topic or record another one"
    )
