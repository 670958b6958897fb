"""YAML or plain dictionaries to the stages' frozen dataclasses, and back; unknown keys are errors.

A default is written once, in the dataclass beside its stage. A file holds the differences only.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from unscene_ros.scene import InputError

Config = TypeVar("Config")

_RANGE = "range"
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def within(default: float, least: float = -math.inf, most: float = math.inf) -> Any:
    """A field of a config whose value must lie in least..most, both included."""
    return dataclasses.field(default=default, metadata={_RANGE: (least, most)})


def range_of(field: dataclasses.Field) -> tuple[float, float] | None:
    """The smallest and the largest value of a field, None where nothing is said."""
    return field.metadata.get(_RANGE)


def check_ranges(config: Any, section: str = "") -> None:
    """Raises InputError for a value out of its range, as a member of this section."""
    for field in dataclasses.fields(config):
        least, most = range_of(field) or (-math.inf, math.inf)
        value = getattr(config, field.name)
        if range_of(field) and not least <= value <= most:  # NaN is in no range
            wanted = f"{least:g} or more" if most == math.inf else f"{least:g}..{most:g}"
            name = f"{section}.{field.name}" if section else field.name
            raise InputError(f"{name}: expected {wanted}, got {value}")


def from_dict(
    config_class: type[Config],
    values: dict[str, Any],
    section: str = "",
    base: Config | None = None,
) -> Config:
    """Fills a (nested) dataclass from differences to `base`, or else to its defaults.

    A section that is set in part keeps what it has in `base` or in the default of its parent, which
    may differ from the defaults of the section's own class. Raises InputError for an unknown key
    (naming the nearest one) or a value of a wrong type.
    """
    if not isinstance(values, dict):
        raise InputError(f"setting '{section}': expected a section of keys, got {values!r}")
    types = typing.get_type_hints(config_class)
    known = {field.name: field for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    filled = {}
    for key, value in values.items():
        path = f"{section}.{key}" if section else str(key)
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.0)
            prefix = f"{section}." if section else ""
            hint = f", did you mean '{prefix}{near[0]}'?" if near else ""
            raise InputError(f"unknown setting '{path}'{hint}")
        if dataclasses.is_dataclass(types[key]):
            present = _default(known[key]) if base is None else getattr(base, key)
            filled[key] = from_dict(types[key], value, path, present)
        else:
            filled[key] = _typed(types[key], value, path)
    return config_class(**filled) if base is None else dataclasses.replace(base, **filled)  # type: ignore[type-var]


def _default(field: dataclasses.Field) -> Any:
    """What a field has when nobody sets it; None for a field that must be set."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _typed(wanted: Any, value: Any, path: str) -> Any:
    """`value` as type `wanted`; an int serves as a float, a list as a tuple."""
    if dataclasses.is_dataclass(wanted):
        return from_dict(wanted, value, path)  # type: ignore[arg-type]
    origin, choices = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Literal:
        if value not in choices:
            allowed = ", ".join(str(choice) for choice in choices)
            raise InputError(f"setting '{path}': expected one of {allowed}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"setting '{path}': expected a list, got {value!r}")
        if choices[-1] is Ellipsis:
            choices = (choices[0],) * len(value)
        if len(value) != len(choices):
            raise InputError(f"setting '{path}': expected {len(choices)} values, got {value!r}")
        return tuple(
            _typed(choice, item, path) for choice, item in zip(choices, value, strict=True)
        )
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)  # YAML 1.1 reads 5e-4 as a text: it wants 5.0e-4
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise InputError(f"setting '{path}': expected {wanted.__name__}, got {value!r}")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain dictionary in a YAML file; raises InputError when it is missing or not YAML."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"settings file {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"settings file {path}: not valid YAML: {error}") from error
    if values is not None and not isinstance(values, dict):
        raise InputError(f"settings file {path}: expected sections of keys, got {values!r}")
    return values or {}


def from_assignments(assignments: list[str]) -> dict[str, Any]:
    """['fusion.voxel_size_m=0.02'] as a nested dictionary; values are read as YAML."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"setting '{assignment}': expected section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"setting '{assignment}': expected a value in YAML") from error
        *sections, key = path.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise InputError(f"setting '{path}': '{section}' is already set to {place!r}")
        place[key] = value
    return values


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, section by section."""
    result = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if nested else value
    return result


def to_dict(config: Any) -> dict[str, Any]:
    """All settings as plain values, ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def settings_hash(config: Any) -> str:
    """Twelve hexadecimal digits that change when any setting changes."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
