"""Settings files hold differences to the defaults; whatever is not a setting is refused by name."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml

from unscene_ros.scene import InputError
from unscene_ros.settings import (
    check_ranges,
    from_assignments,
    from_dict,
    merged,
    range_of,
    read_yaml,
    settings_hash,
    to_dict,
    within,
)


@dataclass(frozen=True, slots=True)
class FusionConfig:
    voxel_size_m: float = 0.04
    block_count: int = 10_000
    device: Literal["auto", "cuda", "cpu"] = "auto"
    scales: tuple[float, ...] = (1.0, 0.5)
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)
    colored: bool = True


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    fusion: FusionConfig = field(default_factory=FusionConfig)
    name: str = "room"


def test_no_differences_give_the_defaults():
    assert from_dict(PipelineConfig, {}) == PipelineConfig()


def test_nested_difference_changes_only_its_field():
    config = from_dict(PipelineConfig, {"fusion": {"voxel_size_m": 0.02}})
    assert config == PipelineConfig(fusion=FusionConfig(voxel_size_m=0.02))


@dataclass(frozen=True, slots=True)
class RobotConfig:
    """Its defaults differ from those of the sections' own classes."""

    fine: PipelineConfig = field(
        default_factory=lambda: PipelineConfig(FusionConfig(voxel_size_m=0.01, colored=False))
    )
    wide: FusionConfig = FusionConfig(block_count=7)


def test_a_section_set_in_part_keeps_the_default_of_its_parent():
    config = from_dict(RobotConfig, {"fine": {"fusion": {"block_count": 3}}, "wide": {}})
    assert config.fine.fusion == FusionConfig(voxel_size_m=0.01, block_count=3, colored=False)
    assert config.wide == FusionConfig(block_count=7)


def test_values_differ_from_a_base_where_one_is_given():
    base = PipelineConfig(FusionConfig(voxel_size_m=0.1, scales=(3.0,)), name="hall")
    config = from_dict(PipelineConfig, {"fusion": {"scales": [1, 2]}}, base=base)
    assert config == PipelineConfig(FusionConfig(voxel_size_m=0.1, scales=(1.0, 2.0)), name="hall")
    assert from_dict(PipelineConfig, {}, base=base) == base
    assert from_dict(PipelineConfig, {"name": "attic"}, base=base).fusion == base.fusion


def test_a_wrong_value_over_a_base_is_refused_with_its_path():
    with pytest.raises(InputError, match=r"setting 'robot.fusion.colored': expected bool"):
        from_dict(PipelineConfig, {"fusion": {"colored": 1}}, "robot", PipelineConfig())


@dataclass(frozen=True, slots=True)
class CarConfig:
    fusion: FusionConfig  # must be set


def test_a_section_without_a_default_starts_from_its_class():
    config = from_dict(CarConfig, {"fusion": {"block_count": 3}})
    assert config == CarConfig(FusionConfig(block_count=3))


def test_whole_number_serves_as_a_float_and_a_list_as_a_tuple():
    config = from_dict(FusionConfig, {"voxel_size_m": 1, "scales": [2, 1], "up": [0, 1, 0]})
    assert config.voxel_size_m == 1.0 and isinstance(config.voxel_size_m, float)
    assert config.scales == (2.0, 1.0) and isinstance(config.scales[0], float)
    assert config.up == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"fusion": {"voxel_size": 0.1}},
            r"'fusion.voxel_size', did you mean 'fusion.voxel_size_m'",
        ),
        ({"fuson": {}}, r"unknown setting 'fuson', did you mean 'fusion'"),
        ({"fusion": {3: 1}}, r"unknown setting 'fusion.3'"),
    ],
)
def test_unknown_key_suggests_the_nearest(values, message):
    with pytest.raises(InputError, match=message):
        from_dict(PipelineConfig, values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("voxel_size_m", "4cm", "expected float, got '4cm'"),
        ("voxel_size_m", True, "expected float, got True"),
        ("voxel_size_m", None, "expected float, got None"),
        ("block_count", 1.5, "expected int, got 1.5"),
        ("block_count", True, "expected int, got True"),
        ("colored", 1, "expected bool, got 1"),
        ("device", "gpu", "expected one of auto, cuda, cpu, got 'gpu'"),
        ("scales", 1.0, "expected a list, got 1.0"),
        ("scales", ["wide"], "expected float, got 'wide'"),
        ("up", [0, 1], r"expected 3 values, got \[0, 1\]"),
        ("up", [0, 1, "z"], "expected float, got 'z'"),
    ],
)
def test_value_of_another_type_is_refused_with_its_path(key, value, message):
    with pytest.raises(InputError, match=f"setting 'fusion.{key}': {message}"):
        from_dict(PipelineConfig, {"fusion": {key: value}})


@pytest.mark.parametrize(("text", "value"), [("5e-4", 5e-4), ("1E3", 1e3), ("-2.5e+1", -25.0)])
def test_a_number_may_have_an_exponent(text, value):
    config = from_dict(PipelineConfig, from_assignments([f"fusion.voxel_size_m={text}"]))
    assert config.fusion.voxel_size_m == value


@dataclass(frozen=True, slots=True)
class Limits:
    share: float = within(0.5, 0, 1)
    count: int = within(3, 1)
    name: str = "any"

    def __post_init__(self) -> None:
        check_ranges(self, "limits")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"share": 1.01}, r"limits\.share: expected 0\.\.1, got 1\.01"),
        ({"share": float("nan")}, r"limits\.share: expected 0\.\.1, got nan"),
        ({"count": 0}, r"limits\.count: expected 1 or more, got 0"),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_the_range(wrong, message):
    assert Limits(share=0, count=1) and Limits(share=1, count=10**9)
    with pytest.raises(InputError, match=message):
        Limits(**wrong)
    with pytest.raises(InputError, match=message):
        from_dict(Limits, wrong)


def test_a_field_knows_its_range():
    ranges = {field.name: range_of(field) for field in dataclasses.fields(Limits)}
    assert ranges == {"share": (0, 1), "count": (1, math.inf), "name": None}


def test_section_that_holds_a_plain_value_is_refused():
    with pytest.raises(InputError, match=r"setting 'fusion': expected a section of keys, got 0.04"):
        from_dict(PipelineConfig, {"fusion": 0.04})


def test_plain_values_survive_yaml_and_come_back_equal():
    config = PipelineConfig(FusionConfig(scales=(0.25,), device="cpu"), name="küche")
    assert from_dict(PipelineConfig, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_hash_follows_every_setting_and_nothing_else():
    same = settings_hash(PipelineConfig())
    assert settings_hash(PipelineConfig()) == same
    changes = [
        {"name": "hall"},
        {"fusion": {"voxel_size_m": 0.041}},
        {"fusion": {"block_count": 10_001}},
        {"fusion": {"device": "cpu"}},
        {"fusion": {"scales": [1.0]}},
        {"fusion": {"colored": False}},
    ]
    hashes = {settings_hash(from_dict(PipelineConfig, change)) for change in changes}
    assert len(hashes | {same}) == len(changes) + 1


def test_yaml_file_holds_differences(tmp_path):
    file = tmp_path / "live.yaml"
    file.write_text("fusion: {voxel_size_m: 0.02}\nname: küche\n", encoding="utf-8")
    assert read_yaml(file) == {"fusion": {"voxel_size_m": 0.02}, "name": "küche"}


def test_empty_yaml_file_holds_no_differences(tmp_path):
    file = tmp_path / "live.yaml"
    file.write_text("# nothing yet\n")
    assert read_yaml(file) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fusion: [1", "not valid YAML"),
        ("name: küche".encode("latin-1"), "not valid YAML"),
        (b"- fusion", "expected sections of keys"),
    ],
)
def test_file_that_is_no_settings_file_is_refused_by_name(tmp_path, content, message):
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"broken.yaml: {message}"):
        read_yaml(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml: No such file"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_assignments_become_nested_values():
    values = from_assignments(["fusion.voxel_size_m=0.02", "fusion.scales=[1, 2]", "name=hall"])
    assert values == {"fusion": {"voxel_size_m": 0.02, "scales": [1, 2]}, "name": "hall"}
    assert from_assignments([]) == {}


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["fusion.voxel_size_m"], "'fusion.voxel_size_m': expected section.key=value"),
        (["fusion.scales=[1"], r"'fusion.scales=\[1': expected a value in YAML"),
        (["fusion=1", "fusion.voxel_size_m=2"], "'fusion.voxel_size_m': 'fusion' is already set"),
    ],
)
def test_assignment_that_cannot_be_read_is_refused(assignments, message):
    with pytest.raises(InputError, match=message):
        from_assignments(assignments)


def test_merging_lays_changes_over_the_base_and_leaves_it_alone():
    base = {"fusion": {"voxel_size_m": 0.04, "device": "cpu"}, "name": "room"}
    result = merged(base, {"fusion": {"voxel_size_m": 0.02}, "name": "hall"})
    assert result == {"fusion": {"voxel_size_m": 0.02, "device": "cpu"}, "name": "hall"}
    assert base["fusion"]["voxel_size_m"] == 0.04
