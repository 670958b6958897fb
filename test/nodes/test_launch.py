"""The launch file against stand-ins for the launch packages, which only a ROS installation has.

Every node is started with exactly the arguments that `ros2 launch` would give it.
"""

import importlib
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from unscene_ros import DEFAULT_SEGMENTER
from unscene_ros.nodes.fusion_node import FusionNodeConfig
from unscene_ros.settings import from_dict, to_dict

REPOSITORY = Path(__file__).parents[2]
LAUNCH_FILE = REPOSITORY / "launch" / "unscene.launch.py"
PROFILE_VARIABLES = {
    "humble": "FASTRTPS_DEFAULT_PROFILES_FILE",
    "jazzy": "FASTRTPS_DEFAULT_PROFILES_FILE",
    "kilted": "FASTDDS_DEFAULT_PROFILES_FILE",
}
CAMERAS = ["realsense", "orbbec", "zed", "simulation"]
PARAMETER_FILES = sorted((REPOSITORY / "config").glob("*.yaml"))
BAG = REPOSITORY / "test" / "data" / "office_kitchen"
BAG_TOPICS = {
    "bag": str(BAG),
    "color_topic": "/camera/color/image_raw",
    "depth_topic": "/camera/depth/image_raw",
    "color_info_topic": "/camera/color/camera_info",
    "depth_info_topic": "/camera/depth/camera_info",
}


class Recorded:
    """A class of the launch packages that only remembers what it was given."""

    def __init__(self, *positional, **named):
        self.positional, self.named = positional, named


NAMES = {
    "launch": ["LaunchDescription"],
    "launch.actions": ["DeclareLaunchArgument", "SetEnvironmentVariable"],
    "launch.conditions": ["IfCondition"],
    "launch.substitutions": [
        "EnvironmentVariable",
        "LaunchConfiguration",
        "PathJoinSubstitution",
        "PythonExpression",
    ],
    "launch_ros": [],
    "launch_ros.actions": ["Node"],
    "launch_ros.parameter_descriptions": ["ParameterValue"],
    "launch_ros.substitutions": ["FindPackageShare"],
}


@pytest.fixture
def launched(monkeypatch):
    """launched(**arguments) -> Launched, as `ros2 launch ... name:=value` would start it."""
    for module_name, class_names in NAMES.items():
        module = ModuleType(module_name)
        for class_name in class_names:
            setattr(module, class_name, type(class_name, (Recorded,), {}))
        monkeypatch.setitem(sys.modules, module_name, module)
    return lambda **arguments: Launched(arguments)


class Launched:
    """The launch description, its substitutions filled in."""

    def __init__(self, arguments):
        description = runpy.run_path(str(LAUNCH_FILE))["generate_launch_description"]()
        [actions] = description.positional
        self.used = set()
        self.declared = {
            action.positional[0]: action.named
            for action in self._of(actions, "DeclareLaunchArgument")
        }
        assert set(arguments) <= set(self.declared)
        assert arguments.get("camera", "none") in self.declared["camera"]["choices"]
        self._arguments = arguments
        self.environment = {
            name: self.text(value)
            for name, value in (a.positional for a in self._of(actions, "SetEnvironmentVariable"))
        }
        self.nodes = {
            node.named["executable"]: node.named
            for node in self._of(actions, "Node")
            if self._runs(node)
        }

    @staticmethod
    def _of(actions, kind):
        return [action for action in actions if type(action).__name__ == kind]

    def _runs(self, node):
        condition = node.named.get("condition")
        return condition is None or self.text(condition.positional[0]).lower() == "true"

    def text(self, value):
        """What a substitution, a text or a list of both becomes."""
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return "".join(self.text(part) for part in value)
        kind = type(value).__name__
        [inner] = value.positional
        if kind == "LaunchConfiguration":
            self.used.add(inner)
            return self.text(self._arguments.get(inner, self.declared[inner]["default_value"]))
        if kind == "PathJoinSubstitution":
            return "/".join(self.text(part) for part in inner)
        if kind == "EnvironmentVariable":
            return os.environ.get(inner, self.text(value.named["default_value"]))
        if kind == "PythonExpression":
            return str(eval(self.text(inner), {}))
        assert kind == "FindPackageShare" and inner == "unscene_ros"
        return str(REPOSITORY)

    def ros_arguments(self, executable):
        """The command line of a node."""
        node = self.nodes[executable]
        arguments = [self.text(argument) for argument in node.get("arguments", ["--ros-args"])]
        if namespace := self.text(node["namespace"]):
            arguments += ["-r", f"__ns:=/{namespace}"]
        for parameters in node.get("parameters", []):
            if isinstance(parameters, dict):
                for name, value in self._flat(parameters):
                    arguments += ["-p", f"{name}:={value}"]
            else:
                arguments += ["--params-file", self.text(parameters)]
        for name, target in node.get("remappings", []):
            arguments += ["-r", f"{name}:={self.text(target)}"]
        return arguments

    def topics(self):
        """Name in the fusion node -> topic that it is remapped to."""
        remappings = self.nodes["fusion_node"]["remappings"]
        return {name: self.text(target) for name, target in remappings}

    def _flat(self, parameters, prefix=""):
        for name, value in parameters.items():
            if isinstance(value, dict):
                yield from self._flat(value, f"{prefix}{name}.")
            elif type(value).__name__ == "ParameterValue":
                yield prefix + name, self.text(value.positional[0])
            else:
                yield prefix + name, self.text(value) or "''"


def node_of(executable):
    module = importlib.import_module(f"unscene_ros.nodes.{executable}")
    assert callable(module.main)
    return getattr(module, "".join(word.title() for word in executable.split("_")))


def test_by_default_the_two_nodes_start_and_nothing_else(launched):
    assert set(launched().nodes) == {"fusion_node", "segmentation_node"}


def test_a_bag_adds_the_player_and_simulated_time(launched):
    launch = launched(bag="/some/bag")
    assert set(launch.nodes) == {"fusion_node", "segmentation_node", "player_node"}
    assert "use_sim_time:=True" in launch.ros_arguments("fusion_node")
    assert "use_sim_time:=False" in launched().ros_arguments("fusion_node")


def test_rviz_starts_on_request_with_the_config_that_is_installed(launched):
    launch = launched(rviz="true", world_frame="odom")
    arguments = [launch.text(argument) for argument in launch.nodes["rviz2"]["arguments"]]
    assert arguments == ["-d", str(REPOSITORY / "config" / "unscene.rviz"), "-f", "odom"]


def test_every_argument_is_explained_and_used_and_every_file_is_there(launched):
    launch = launched(**BAG_TOPICS, rviz="true")
    for executable in launch.nodes:
        launch.ros_arguments(executable) if executable != "rviz2" else None
    assert launch.used == set(launch.declared)
    assert all(declared["description"] for declared in launch.declared.values())


def test_the_launch_file_needs_nothing_that_the_python_of_ros2_launch_lacks(launched, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("unscene_ros.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("numpy", "scipy", "numba", "cv2", "torch", "open3d", "yaml"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    assert launched().nodes


@pytest.mark.parametrize(("distribution", "variable"), PROFILE_VARIABLES.items())
def test_fast_dds_gets_the_profile_where_the_site_has_none(
    launched, monkeypatch, distribution, variable
):
    monkeypatch.setenv("ROS_DISTRO", distribution)
    monkeypatch.delenv(variable, raising=False)
    profile = str(REPOSITORY / "config" / "fastdds.xml")
    assert launched().environment == {variable: profile}
    assert Path(profile).is_file()
    monkeypatch.setenv(variable, "/site/profile.xml")
    assert launched().environment == {variable: "/site/profile.xml"}


def test_nodes_that_save_at_their_end_are_given_time_for_it(launched):
    nodes = launched().nodes
    for executable in ("fusion_node", "segmentation_node"):
        assert float(nodes[executable]["sigterm_timeout"]) >= 60


@pytest.mark.parametrize("executable", ["fusion_node", "segmentation_node", "player_node"])
@pytest.mark.parametrize("namespace", ["", "robot"])
def test_each_node_starts_with_the_arguments_it_gets(ros, launched, executable, namespace):
    launch = launched(**BAG_TOPICS, namespace=namespace, device="cpu", world_frame="odom")
    ros.start(arguments=launch.ros_arguments(executable))
    node = ros.add(node_of(executable)())
    assert node.get_namespace() == f"/{namespace}"
    if executable == "segmentation_node":
        assert node.get_parameter("checkpoint").value == DEFAULT_SEGMENTER
        devices = ("training_free.image_features.device", "network.device")
        for device in devices:
            assert node.get_parameter(f"segmentation.{device}").value == "cpu"
    if executable == "fusion_node":
        assert node.get_parameter("world_frame").value == "odom"
        assert node.get_parameter("fusion.max_megabytes").value == 512.0  # from live.yaml
        subscribed = {subscription.topic_name for subscription in node.subscriptions}
        expected = {value for name, value in BAG_TOPICS.items() if name != "bag"}
        assert expected <= subscribed  # each remapping met a name that the node uses


def test_what_fusion_publishes_is_where_segmentation_listens_in_any_namespace(ros, launched):
    launch = launched(namespace="robot")
    ros.start(arguments=launch.ros_arguments("fusion_node"))
    fusion = ros.add(node_of("fusion_node")())
    published = {publisher.topic_name for publisher in fusion.publishers}
    ros.stop()
    ros.start(arguments=launch.ros_arguments("segmentation_node"))
    segmentation = ros.add(node_of("segmentation_node")())
    listened = {subscription.topic_name for subscription in segmentation.subscriptions}
    assert {"/robot/fusion_node/mesh", "/robot/fusion_node/keyframes"} <= published & listened


def test_every_camera_can_be_chosen_and_has_its_file(launched):
    assert launched().declared["camera"]["choices"] == ["none", *CAMERAS]
    assert {path.stem for path in PARAMETER_FILES} == {"live", *CAMERAS}


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_camera_brings_its_topics_and_one_that_is_given_wins(launched, camera):
    topics = launched(camera=camera).topics()
    assert all(topic.startswith("/") for topic in topics.values())
    assert topics["rgb/image"] != topics["depth/image"]
    given = launched(camera=camera, depth_topic="/other").topics()
    assert given == topics | {"depth/image": "/other"}


def test_without_a_camera_the_topics_keep_the_names_of_the_node(launched):
    topics = launched().topics()
    assert topics == {name: name for name in topics}


def leaves(settings, prefix=""):
    """Dotted name -> value of nested settings."""
    flat = {}
    for name, value in settings.items():
        flat |= (
            leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat


@pytest.mark.parametrize("path", PARAMETER_FILES, ids=lambda path: path.stem)
def test_each_parameter_of_a_file_exists_is_in_range_and_is_not_the_default(path):
    of_node = yaml.safe_load(path.read_text())
    of_all = of_node.pop("/**", None)
    assert of_all == ({"ros__parameters": {"use_sim_time": True}} if of_all else None)
    assert list(of_node) == ["/**/fusion_node"]
    parameters = of_node["/**/fusion_node"]["ros__parameters"]
    config = from_dict(FusionNodeConfig, parameters)  # refuses what is unknown or out of range
    taken, default = leaves(to_dict(config)), leaves(to_dict(FusionNodeConfig()))
    for name, value in leaves(parameters).items():
        assert taken[name] == value != default[name]


def test_own_parameters_win_over_those_of_the_camera(ros, launched, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("/**/fusion_node:\n  ros__parameters:\n    fusion:\n      depth_max_m: 2.5\n")
    launch = launched(camera="realsense", params_file=str(own))
    ros.start(arguments=launch.ros_arguments("fusion_node"))
    node = ros.add(node_of("fusion_node")())
    assert node.get_parameter("fusion.depth_min_m").value == 0.3  # from realsense.yaml
    assert node.get_parameter("fusion.depth_max_m").value == 2.5


def test_a_simulated_camera_brings_simulated_time(ros, launched):
    for executable in ("fusion_node", "segmentation_node"):
        launch = launched(camera="simulation")
        assert "use_sim_time:=True" in launch.ros_arguments(executable)
    alone = ["--ros-args", "--params-file", str(REPOSITORY / "config" / "simulation.yaml")]
    ros.start(arguments=alone)
    assert ros.add(node_of("fusion_node")()).get_parameter("use_sim_time").value is True


def displays():
    config = yaml.safe_load((REPOSITORY / "config" / "unscene.rviz").read_text())
    return [d for d in config["Visualization Manager"]["Displays"] if "Topic" in d]


def test_rviz_shows_topics_that_are_published_with_a_delivery_that_fits(ros, launched):
    ros.start()
    nodes = [ros.add(node_of(name)()) for name in ("fusion_node", "segmentation_node")]
    profiles = {p.topic_name: p.qos_profile for node in nodes for p in node.publishers}
    remapped = {name for name, _ in launched(rviz="true").nodes["rviz2"]["remappings"]}
    assert {display["Topic"]["Value"] for display in displays()} == remapped
    for display in displays():
        profile = profiles[display["Topic"]["Value"]]
        wanted = display["Topic"]["Durability Policy"].upper().replace(" ", "_")
        assert profile.durability.name == wanted
        assert profile.reliability.name == "RELIABLE"
