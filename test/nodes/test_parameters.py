import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter

from unscene_ros.nodes.parameters import changed, declare, field_comments
from unscene_ros.scene import InputError
from unscene_ros.settings import within


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """An engine."""

    power_kw: float = 4.0  # at the shaft
    # Where it stands:
    # left or right.
    side: Literal["left", "right"] = "left"
    gears: tuple[float, ...] = (1.0, 2.0)


@dataclass(frozen=True, slots=True)
class CarConfig:
    """A car."""

    name: str = "beetle"  # on the plate
    seats: int = within(4, 1, 9)
    top_speed_kmh: float = within(120.0, 0)
    engine: EngineConfig = field(default_factory=EngineConfig)


@pytest.fixture
def node_with(ros, tmp_path):
    def make(yaml="", *parameters):
        arguments = ["--ros-args"]
        if yaml:
            path = tmp_path / "parameters.yaml"
            path.write_text(yaml)
            arguments += ["--params-file", str(path)]
        for parameter in parameters:
            arguments += ["-p", parameter]
        rclpy.init(args=arguments if len(arguments) > 1 else None)
        return Node("car", namespace="garage")

    return make


def test_without_overrides_the_dataclass_defaults_hold(node_with):
    node = node_with()
    assert declare(node, CarConfig) == CarConfig()
    assert node.get_parameter("engine.power_kw").value == 4.0
    assert list(node.get_parameter("engine.gears").value) == [1.0, 2.0]


@pytest.mark.parametrize("key", ["/**", "/**/car", "/garage/car"])
def test_a_file_and_the_command_line_override_fields_of_sections(node_with, key):
    node = node_with(
        f"{key}:\n  ros__parameters:\n    seats: 5\n    engine: {{power_kw: 7, gears: [3.0]}}\n",
        "engine.side:=right",
    )
    expected = CarConfig(seats=5, engine=EngineConfig(7.0, "right", (3.0,)))
    assert declare(node, CarConfig) == expected
    assert node.get_parameter("engine.power_kw").value == 7.0


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("engine.power:=5.0", ["engine.power", "did you mean 'engine.power_kw'"]),
        ("seat:=5", ["'seat'", "did you mean 'seats'"]),
        ("seats:=five", ["seats", "expected int", "five"]),
        ("engine.side:=top", ["engine.side", "left, right"]),
    ],
)
def test_a_wrong_name_or_value_is_an_error_that_helps(node_with, parameter, words):
    with pytest.raises(InputError) as error:
        declare(node_with("", parameter), CarConfig)
    for word in words:
        assert word in str(error.value)


def test_parameters_of_ros_itself_are_none_of_ours(node_with):
    node = node_with("", "use_sim_time:=true", "qos_overrides./tf.subscription.depth:=9")
    assert declare(node, CarConfig) == CarConfig()


def test_field_comments_become_descriptions(node_with):
    node = node_with()
    declare(node, CarConfig)
    assert node.describe_parameter("name").description == "on the plate"
    side = node.describe_parameter("engine.side").description
    assert side == "Where it stands: left or right. (one of left, right)"
    assert field_comments(EngineConfig)["power_kw"] == "at the shaft"


def test_a_parameter_cannot_be_changed_without_effect(node_with):
    node = node_with()
    declare(node, CarConfig)
    [result] = node.set_parameters([Parameter("seats", value=2)])
    assert not result.successful


def test_ranges_are_shown_to_tools(node_with):
    node = node_with()
    declare(node, CarConfig)
    [seats] = node.describe_parameter("seats").integer_range
    assert (seats.from_value, seats.to_value) == (1, 9)
    [speed] = node.describe_parameter("top_speed_kmh").floating_point_range
    assert (speed.from_value, speed.to_value) == (0.0, sys.float_info.max)
    assert not node.describe_parameter("name").integer_range


def test_changed_parameters_make_a_new_config(node_with):
    node_with()
    parameters = [Parameter("engine.power_kw", value=9.0), Parameter("engine.gears", value=[3.0])]
    config = changed(CarConfig(seats=2), parameters)
    assert config == CarConfig(seats=2, engine=EngineConfig(9.0, "left", (3.0,)))
    with pytest.raises(InputError, match="one of left, right"):
        changed(config, [Parameter("engine.side", value="top")])
