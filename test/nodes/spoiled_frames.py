"""What a faulty driver or network may make of the messages of one frame, for hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from builtin_interfaces.msg import Time
from fake_camera import Camera, packed
from hypothesis import strategies as st
from tf2_msgs.msg import TFMessage

from unscene_ros.scene import Frame

UNSIGNED = st.integers(0, 2**32 - 1)
SIZES = st.one_of(st.integers(0, 200), UNSIGNED)
STAMPS = st.builds(Time, sec=st.integers(-(2**31), 2**31 - 1), nanosec=UNSIGNED)
NUMBERS = st.one_of(
    st.floats(), st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e300])
)
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=20)
ENCODINGS = st.one_of(
    WORDS, st.sampled_from(["16UC1", "32FC1", "rgb8", "bgra8", "mono8", "8UC3", "yuv422_yuy2"])
)
FORMATS = st.one_of(
    WORDS,
    st.sampled_from(
        ["jpeg", "png", "rgb8; jpeg compressed bgr8", "16UC1; png", "16UC1; compressedDepth rvl"]
        + [f"{encoding}; compressedDepth png" for encoding in ("16UC1", "32FC1", "")]
    ),
)
PICTURE_FIELDS = {
    "width": SIZES,
    "height": SIZES,
    "step": SIZES,
    "encoding": ENCODINGS,
    "is_bigendian": st.integers(0, 255),
}
INFO_FIELDS = {
    "width": SIZES,
    "height": SIZES,
    "k": st.lists(NUMBERS, min_size=9, max_size=9),
    "d": st.lists(NUMBERS, max_size=9),
    "distortion_model": st.one_of(WORDS, st.sampled_from(["plumb_bob", "equidistant"])),
    "binning_x": SIZES,
    "binning_y": SIZES,
}


def spoiled_frames() -> st.SearchStrategy[dict[str, dict[str, Any]]]:
    """Part of a frame -> fields of its message with other values; `send_spoiled` applies them."""
    header = {"stamp": STAMPS, "frame_id": WORDS}
    cuts = st.one_of(
        st.binary(max_size=2000),  # something else
        st.integers(0, 100_000),  # the message ends there
        st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=9),
    )
    numbers = st.lists(NUMBERS, min_size=4, max_size=4)
    picture = _some({**PICTURE_FIELDS, **header, "format": FORMATS, "data": cuts})
    info = _some({**INFO_FIELDS, **header})
    pose = _some({"translation": numbers, "rotation": numbers, **header})
    parts = {"color": picture, "depth": picture, "info": info, "pose": pose}
    return _some(parts, most=2)


def _some(fields: dict[str, st.SearchStrategy], most: int = 3) -> st.SearchStrategy:
    """One to `most` of these fields."""
    names = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=most, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({n: fields[n] for n in chosen}))


def send_spoiled(camera: Camera, frame: Frame, changes: dict[str, dict[str, Any]]) -> None:
    """Sends the messages of a frame, with some of their fields changed."""
    with ExitStack() as stack:
        for publisher, part in (
            (camera.color, "color"),
            (camera.depth, "depth"),
            (camera.color_info, "info"),
            (camera.depth_info, "info"),
            (camera.tf, "pose"),
        ):
            publish = partial(_publish_changed, publisher.publish, changes.get(part, {}))
            stack.enter_context(mock.patch.object(publisher, "publish", publish))
        camera.send(frame)


def _publish_changed(publish: Callable[[Any], None], fields: dict[str, Any], message: Any) -> None:
    for part in message.transforms if isinstance(message, TFMessage) else [message]:
        _change(part, fields)
    publish(message)


def _change(message: Any, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name == "data":
            message.data = packed(_damaged(bytes(message.data), value))
        elif name in ("translation", "rotation"):
            moved = getattr(message.transform, name)
            for axis, number in zip("xyzw", value, strict=True):
                if hasattr(moved, axis):  # a translation has no w
                    setattr(moved, axis, number)
        elif hasattr(message.header, name):
            setattr(message.header, name, value)
        elif hasattr(message, name):  # a compressed picture has no step, a raw one no format
            setattr(message, name, value)


def _damaged(data: bytes, how: bytes | int | list[tuple[int, int]]) -> bytes:
    if isinstance(how, bytes):
        return how
    if isinstance(how, int):
        return data[:how]
    values = np.frombuffer(data, np.uint8).copy()
    for place, value in how:
        values[place % len(values)] = value
    return values.tobytes()
