"""Every encoding there and back, and hand-made bytes."""

import struct

import cv2
import numpy as np
import pytest

from unscene_ros import image_codecs as codecs
from unscene_ros.scene import InputError

COLOR = np.array(
    [[[10, 20, 30], [200, 100, 50]], [[0, 255, 0], [1, 2, 3]], [[9, 8, 7], [50, 60, 70]]], np.uint8
)
DEPTH = np.array([[0.0, 1.234], [65.534, 0.001]], np.float32)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_raw_color_survives(encoding):
    data = codecs.encode_color(encoding, COLOR)
    decoded = codecs.decode_color(encoding, 3, 2, len(data) // 3, 0, data)
    np.testing.assert_array_equal(decoded, COLOR)


@pytest.mark.parametrize(
    ("encoding", "pixel"),
    [("rgb8", (1, 2, 3)), ("bgr8", (3, 2, 1)), ("rgba8", (1, 2, 3, 9)), ("bgra8", (3, 2, 1, 9))],
)
def test_channel_order_of_raw_color(encoding, pixel):
    decoded = codecs.decode_color(encoding, 1, 1, len(pixel), 0, bytes(pixel))
    np.testing.assert_array_equal(decoded, [[[1, 2, 3]]])


def test_mono_becomes_grey():
    decoded = codecs.decode_color("mono8", 1, 2, 2, 0, bytes([7, 250]))
    np.testing.assert_array_equal(decoded, [[[7, 7, 7], [250, 250, 250]]])


def test_padding_at_the_end_of_rows_is_skipped():
    rows = bytes([1, 2, 3, 4, 5, 6, 99, 99, 7, 8, 9, 10, 11, 12, 99, 99])
    decoded = codecs.decode_color("rgb8", 2, 2, 8, 0, rows)
    np.testing.assert_array_equal(decoded.ravel(), range(1, 13))
    depth = codecs.decode_depth("16UC1", 2, 1, 4, 0, struct.pack("<HHHH", 1000, 9, 2000, 9))
    np.testing.assert_array_equal(depth, [[1.0], [2.0]])


def test_millimetres_without_reading_become_zero():
    data = struct.pack("<HHH", 0, 65535, 1500)
    depth = codecs.decode_depth("16UC1", 1, 3, 6, 0, data)
    np.testing.assert_array_equal(depth, np.array([[0, 0, 1.5]], np.float32))
    assert depth.dtype == np.float32


def test_metres_without_reading_become_zero():
    data = struct.pack("<fffff", np.nan, np.inf, -np.inf, -1.0, 2.5)
    depth = codecs.decode_depth("32FC1", 1, 5, 20, 0, data)
    np.testing.assert_array_equal(depth, np.array([[0, 0, 0, 0, 2.5]], np.float32))


def test_big_endian_depth():
    depth = codecs.decode_depth("16UC1", 1, 2, 4, 1, struct.pack(">HH", 1000, 65535))
    np.testing.assert_array_equal(depth, [[1.0, 0.0]])
    depth = codecs.decode_depth("32FC1", 1, 1, 4, 1, struct.pack(">f", 1.5))
    np.testing.assert_array_equal(depth, [[1.5]])


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_raw_depth_survives(encoding):
    data = codecs.encode_depth(encoding, DEPTH)
    decoded = codecs.decode_depth(encoding, 2, 2, len(data) // 2, 0, data)
    np.testing.assert_allclose(decoded, DEPTH, rtol=1e-6)


def test_decoding_leaves_the_message_alone():
    data = np.frombuffer(codecs.encode_depth("32FC1", DEPTH), np.uint8)
    assert not data.flags.writeable
    decoded = codecs.decode_depth("32FC1", 2, 2, 8, 0, data)
    decoded[0, 0] = 5.0
    assert codecs.decode_depth("32FC1", 2, 2, 8, 0, data)[0, 0] == 0.0


@pytest.mark.parametrize("image_format", ["png", "rgb8; png compressed bgr8", "bgr8; png"])
def test_png_color_survives(image_format):
    decoded = codecs.decode_compressed_color(image_format, codecs.encode_png(COLOR))
    np.testing.assert_array_equal(decoded, COLOR)


@pytest.mark.parametrize("image_format", ["jpeg", "rgb8; jpeg compressed bgr8", "jpg"])
def test_jpeg_color_is_close_and_keeps_its_channels(image_format):
    color = np.zeros((32, 32, 3), np.uint8)
    color[:] = (200, 100, 20)
    decoded = codecs.decode_compressed_color(image_format, codecs.encode_jpeg(color, 95))
    assert np.abs(decoded.astype(int) - color).max() <= 3


def test_a_jpeg_that_asks_to_be_turned_stays_as_the_sensor_saw_it():
    color = np.zeros((16, 32, 3), np.uint8)
    jpeg = codecs.encode_jpeg(color, 95)
    orientation = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    exif = b"Exif\0\0" + orientation
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    as_asked = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    assert as_asked.shape == (32, 16, 3)
    assert codecs.decode_compressed_color("jpeg", turned).shape == (16, 32, 3)


def test_a_grey_picture_file_becomes_three_channels():
    decoded = codecs.decode_compressed_color(
        "mono8; png compressed", codecs.encode_png(COLOR[..., 0])
    )
    np.testing.assert_array_equal(decoded, np.repeat(COLOR[..., :1], 3, axis=2))


def test_compressed_millimetres_survive():
    data = codecs.encode_compressed_depth(DEPTH)
    for image_format in ("16UC1; compressedDepth png", "16UC1; compressedDepth"):
        np.testing.assert_array_equal(codecs.decode_compressed_depth(image_format, data), DEPTH)


def test_png_depth_without_header_survives():
    data = codecs.encode_png(codecs.millimetres(DEPTH))
    np.testing.assert_array_equal(
        codecs.decode_compressed_depth("16UC1; png compressed", data), DEPTH
    )


def test_inverse_depth_by_hand():
    header = struct.pack("<iff", 0, 100.0, 50.0)
    values = np.array([[0, 100, 150]], np.uint16)
    decoded = codecs.decode_compressed_depth(
        "32FC1; compressedDepth png", header + codecs.encode_png(values)
    )
    np.testing.assert_array_equal(decoded, [[0.0, 2.0, 1.0]])


def test_inverse_depth_survives_within_its_quantisation():
    depth = np.linspace(0.3, 9.9, 200, dtype=np.float32).reshape(10, 20)
    depth[0, 0] = 0.0
    data = codecs.encode_compressed_depth(depth, "32FC1")
    decoded = codecs.decode_compressed_depth("32FC1; compressedDepth png", data)
    # One step of the inverse depth is 1/10100 m, so half a step is depth² / 20200.
    np.testing.assert_array_less(np.abs(decoded - depth), depth**2 / 20200 * 1.01 + 1e-6)
    assert decoded[0, 0] == 0.0


def test_inverse_depth_loses_what_is_out_of_range():
    data = codecs.encode_compressed_depth(np.array([[11.0, 1.0]], np.float32), "32FC1")
    decoded = codecs.decode_compressed_depth("32FC1; compressedDepth png", data)
    np.testing.assert_allclose(decoded, [[0.0, 1.0]], atol=1e-4)


def test_millimetres_that_do_not_fit_are_no_reading():
    depth = np.array([[-1.0, np.nan, np.inf, 65.535, 70.0, 65.534]], np.float32)
    np.testing.assert_array_equal(codecs.millimetres(depth), [[0, 0, 0, 0, 0, 65534]])


@pytest.mark.parametrize(
    ("decode", "arguments", "known"),
    [
        (codecs.decode_color, ("yuv422", 1, 1, 2, 0, bytes(2)), "rgb8, bgr8"),
        (codecs.decode_color, ("16UC1", 1, 1, 2, 0, bytes(2)), "rgb8, bgr8"),
        (codecs.decode_depth, ("rgb8", 1, 1, 3, 0, bytes(3)), "16UC1, 32FC1"),
        (codecs.decode_compressed_color, ("webp", b"x"), "jpeg, png"),
        (codecs.decode_compressed_color, ("16UC1; compressedDepth png", b"x"), "jpeg, png"),
        (
            codecs.decode_compressed_depth,
            ("16UC1; compressedDepth rvl", b"x"),
            "compressedDepth png",
        ),
        (codecs.decode_compressed_depth, ("jpeg", b"x"), "compressedDepth png"),
    ],
)
def test_names_the_unknown_encoding_and_the_known_ones(decode, arguments, known):
    with pytest.raises(InputError, match="unknown encoding") as caught:
        decode(*arguments)
    assert f"'{arguments[0]}'" in str(caught.value)
    assert known in str(caught.value)


@pytest.mark.parametrize(
    ("height", "width", "step", "size"),
    [(2, 2, 6, 11), (2, 2, 6, 13), (2, 2, 5, 10), (0, 2, 6, 0), (2, 0, 0, 0)],
)
def test_refuses_data_that_is_not_of_the_announced_size(height, width, step, size):
    with pytest.raises(InputError, match="image"):
        codecs.decode_color("rgb8", height, width, step, 0, bytes(size))


@pytest.mark.parametrize("data", [b"", b"no picture", codecs.encode_png(COLOR)[:20]])
def test_refuses_broken_picture_files(data):
    with pytest.raises(InputError, match="readable picture"):
        codecs.decode_compressed_color("png", data)
    with pytest.raises(InputError, match="readable picture"):
        codecs.decode_compressed_depth("16UC1; compressedDepth png", bytes(12) + data)


def test_refuses_depth_files_that_hold_color():
    with pytest.raises(InputError, match="one 16-bit channel"):
        codecs.decode_compressed_depth("16UC1; png", codecs.encode_png(COLOR))


@pytest.mark.parametrize(
    ("image_format", "is_depth"),
    [
        ("16UC1", True),
        ("32FC1; compressedDepth", True),
        ("16UC1; png compressed", True),
        ("rgb8", False),
        ("rgb8; jpeg compressed bgr8", False),
        ("jpeg", False),
    ],
)
def test_tells_depth_from_color_by_the_format(image_format, is_depth):
    assert codecs.is_depth_format(image_format) == is_depth
