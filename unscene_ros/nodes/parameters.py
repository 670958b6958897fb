"""A config dataclass as ROS parameters: names, types, defaults and descriptions come from it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node

from unscene_ros.settings import from_dict

Config = TypeVar("Config")


def declare(node: Node, config_class: type[Config], prefix: str = "") -> Config:
    """Declares every field of a (nested) dataclass and returns it filled with what the user set.

    `fusion.voxel_size_m` is field `voxel_size_m` of section `fusion`. Parameters are read once,
    when the node starts, and are read-only from then on. Raises InputError for a value of a wrong
    type and for a parameter under `prefix` that does not exist, naming the nearest one; a file for
    several nodes therefore names each node.
    """
    config = from_dict(config_class, _overrides(node, prefix), prefix)
    for name, value, description in _parameters(config, prefix):
        node.declare_parameter(
            name,
            list(value) if isinstance(value, tuple) else value,
            ParameterDescriptor(description=description, read_only=True),
            ignore_override=True,  # `value` holds the override, an int made float where it is due
        )
    return config


def _overrides(node: Node, prefix: str) -> dict[str, Any]:
    """What file and command line set under `prefix`, as nested sections."""
    sections: dict[str, Any] = {}
    # rclpy shows the overrides of parameters that nobody has declared only under this name.
    for name, parameter in node._parameter_overrides.items():
        of_ros = node.has_parameter(name) or name.startswith("qos_overrides.")
        if of_ros or not name.startswith(f"{prefix}." if prefix else ""):
            continue
        *path, key = name.removeprefix(f"{prefix}.").split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        value = parameter.value
        section[key] = list(value) if parameter.type_.name.endswith("_ARRAY") else value
    return sections


def _parameters(config: Any, prefix: str) -> Iterator[tuple[str, Any, str]]:
    """Full name, value and description of every field, sections opened."""
    hints = typing.get_type_hints(type(config))
    comments = field_comments(type(config))
    for field in dataclasses.fields(config):
        name = f"{prefix}.{field.name}" if prefix else field.name
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _parameters(value, name)
            continue
        description = comments.get(field.name, "")
        if typing.get_origin(hints[field.name]) is typing.Literal:
            choices = ", ".join(str(choice) for choice in typing.get_args(hints[field.name]))
            description = f"{description} (one of {choices})".strip()
        yield name, value, description


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
