"""A config dataclass as ROS parameters: names, types, defaults and descriptions come from it."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from unscene_ros.settings import from_dict, range_of

Config = TypeVar("Config")

_LARGEST_INTEGER = 2**63 - 1


def declare(node: Node, config_class: type[Config], read_only: bool = True) -> Config:
    """Declares every field of a (nested) dataclass and returns it filled with what the user set.

    `fusion.voxel_size_m` is field `voxel_size_m` of section `fusion`. Types, ranges and
    descriptions are shown to `ros2 param describe`. Raises InputError for a value of a wrong type
    and for a parameter that does not exist, naming the nearest one; a file for several nodes
    therefore names each node.
    """
    config = from_dict(config_class, _overrides(node))
    for name, value, descriptor in _parameters(config):
        descriptor.read_only = read_only
        node.declare_parameter(
            name,
            list(value) if isinstance(value, tuple) else value,
            descriptor,
            ignore_override=True,  # `value` holds the override, an int made float where it is due
        )
    return config


def changed(config: Config, parameters: Iterable[Parameter]) -> Config:
    """The config with these parameters' values in place of its own; raises InputError as above."""
    return from_dict(type(config), _nested({p.name: p for p in parameters}), base=config)


def _overrides(node: Node) -> dict[str, Any]:
    """What file and command line set, as nested sections."""
    # rclpy shows the overrides of parameters that nobody has declared only under this name.
    return _nested(
        {
            name: parameter
            for name, parameter in node._parameter_overrides.items()
            if not (node.has_parameter(name) or name.startswith("qos_overrides."))  # of ROS itself
        }
    )


def _nested(parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    for name, parameter in parameters.items():
        *path, key = name.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        value = parameter.value
        section[key] = list(value) if parameter.type_.name.endswith("_ARRAY") else value
    return sections


def _parameters(config: Any, section: str = "") -> Iterator[tuple[str, Any, ParameterDescriptor]]:
    """Full name, value and descriptor of every field, sections opened."""
    hints = typing.get_type_hints(type(config))
    comments = field_comments(type(config))
    for field in dataclasses.fields(config):
        name = f"{section}.{field.name}" if section else field.name
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _parameters(value, name)
            continue
        description = comments.get(field.name, "")
        if typing.get_origin(hints[field.name]) is typing.Literal:
            choices = ", ".join(str(choice) for choice in typing.get_args(hints[field.name]))
            description = f"{description} (one of {choices})".strip()
        descriptor = ParameterDescriptor(description=description)
        _set_range(descriptor, hints[field.name], range_of(field))
        yield name, value, descriptor


def _set_range(
    descriptor: ParameterDescriptor, kind: Any, limits: tuple[float, float] | None
) -> None:
    """Tools draw a slider for a range; what has no end ends at the largest number that there is."""
    if limits is None:
        return
    least, most = limits
    if kind is int:
        largest = _LARGEST_INTEGER
        ends = [int(max(least, -largest)), largest if math.isinf(most) else int(most)]
        descriptor.integer_range = [IntegerRange(from_value=ends[0], to_value=ends[1])]
    elif kind is float:
        start, end = max(least, -sys.float_info.max), min(most, sys.float_info.max)
        descriptor.floating_point_range = [FloatingPointRange(from_value=start, to_value=end)]


def field_comments(config_class: type) -> dict[str, str]:
    """The comment behind each field of a dataclass or, without one, the comment lines above it."""
    comments: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(config_class).splitlines():
        text = line.strip()
        if text.startswith("#"):
            above.append(text.lstrip("# "))
            continue
        field = re.match(r"(\w+)\s*:\s*[^#]+(?:#\s*(.+))?$", text)
        if field:
            comments[field[1]] = field[2] or " ".join(above)
        above = []
    return comments
