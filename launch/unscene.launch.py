"""The live system: fusion and segmentation, on request with a bag as the camera and with RViz."""

import os
from typing import List  # noqa: UP035 - as launch names it

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import (
    EnvironmentVariable,
    LaunchConfiguration,
    PathJoinSubstitution,
    PythonExpression,
)
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from unscene_ros import DEFAULT_SEGMENTER

# What each driver calls its topics, and the file of what is different from the defaults with it.
CAMERAS = {
    "none": {
        "color": "rgb/image",
        "depth": "depth/image",
        "color_info": "rgb/camera_info",
        "depth_info": "depth/camera_info",
        "file": "live.yaml",  # which is read in any case
    },
    "realsense": {  # realsense2_camera 4.55 and later
        "color": "/camera/camera/color/image_raw",
        "depth": "/camera/camera/depth/image_rect_raw",
        "color_info": "/camera/camera/color/camera_info",
        "depth_info": "/camera/camera/depth/camera_info",
        "file": "realsense.yaml",
    },
    "orbbec": {  # orbbec_camera
        "color": "/camera/color/image_raw",
        "depth": "/camera/depth/image_raw",
        "color_info": "/camera/color/camera_info",
        "depth_info": "/camera/depth/camera_info",
        "file": "orbbec.yaml",
    },
    "zed": {  # zed_wrapper 5.1 and later
        "color": "/zed/zed_node/rgb/color/rect/image",
        "depth": "/zed/zed_node/depth/depth_registered",
        "color_info": "/zed/zed_node/rgb/color/rect/camera_info",
        "depth_info": "/zed/zed_node/depth/camera_info",
        "file": "zed.yaml",
    },
    "simulation": {  # the rgbd_camera of Gazebo's demos, through ros_gz_bridge
        "color": "/rgbd_camera/image",
        "depth": "/rgbd_camera/depth_image",
        "color_info": "/rgbd_camera/camera_info",
        "depth_info": "/rgbd_camera/camera_info",
        "file": "simulation.yaml",
    },
}

FAST_DDS_2 = ("humble", "iron", "jazzy")  # version 3 warns of the old name of its variable

SAVING_S = 60  # after Ctrl-C, before the nodes are killed: that long a large map may take

DISPLAYED = [
    "fusion_node/mesh_markers",
    "segmentation_node/instance_markers",
    "segmentation_node/labelled_cloud",
]


def config_file(name):
    """A file of the installed config folder."""
    return PathJoinSubstitution([FindPackageShare("unscene_ros"), "config", name])


def set_profile():
    """Tells Fast DDS its profile, unless the site has set one itself."""
    prefix = "FASTRTPS" if os.environ.get("ROS_DISTRO") in FAST_DDS_2 else "FASTDDS"
    variable = f"{prefix}_DEFAULT_PROFILES_FILE"
    profile = EnvironmentVariable(variable, default_value=config_file("fastdds.xml"))
    return SetEnvironmentVariable(variable, profile)


def is_set(argument):
    """ "True" when a launch argument is not empty."""
    return PythonExpression(["'", LaunchConfiguration(argument), "' != ''"])


def of_camera(key):
    """What CAMERAS says of the chosen one."""
    values = {camera: row[key] for camera, row in CAMERAS.items()}
    return PythonExpression([str(values), "['", LaunchConfiguration("camera"), "']"])


ARGUMENTS = [
    ("camera", "none", "whose topics and parameters to take; none has those of the nodes"),
    ("color_topic", of_camera("color"), "colour pictures; compressed ones are found below"),
    (
        "depth_topic",
        of_camera("depth"),
        "depth pictures; need not be aligned with the colour when TF connects both cameras",
    ),
    ("color_info_topic", of_camera("color_info"), "CameraInfo of the colour pictures"),
    ("depth_info_topic", of_camera("depth_info"), "CameraInfo of the depth pictures"),
    ("world_frame", "map", "TF frame to build the map in, z up; odom where nothing localises"),
    ("params_file", config_file("live.yaml"), "parameters of the nodes, over the camera's"),
    (
        "checkpoint",
        DEFAULT_SEGMENTER,
        "training-free, default (network and training-free together), a FILE or consensus:FILE",
    ),
    ("device", "auto", "auto, cuda or cpu"),
    ("bag", "", "a recording to play instead of a camera"),
    (
        "use_sim_time",
        PythonExpression(
            [is_set("bag"), " or '", LaunchConfiguration("camera"), "' == 'simulation'"]
        ),
        "take the time from /clock",
    ),
    ("autostart", "true", "configure and activate the nodes at once, without a lifecycle manager"),
    ("rviz", "false", "open RViz with the map and the objects"),
    ("namespace", "", "of the nodes and their topics"),
    ("log_level", "info", "debug, info, warn or error"),
]


def generate_launch_description():
    """Called by `ros2 launch unscene_ros unscene.launch.py`; -s lists the arguments."""
    value = LaunchConfiguration
    use_sim_time = ParameterValue(value("use_sim_time"), value_type=bool)
    autostart = ParameterValue(value("autostart"), value_type=bool)
    common = {
        "package": "unscene_ros",
        "namespace": value("namespace"),
        "arguments": ["--ros-args", "--log-level", value("log_level")],
        "output": "screen",
        "sigterm_timeout": str(SAVING_S),
    }
    nodes = [
        Node(
            executable="fusion_node",
            parameters=[
                config_file(of_camera("file")),
                value("params_file"),
                {
                    "world_frame": value("world_frame"),
                    "fusion": {"device": value("device")},
                    "autostart": autostart,
                    "use_sim_time": use_sim_time,
                },
            ],
            remappings=[
                ("rgb/image", value("color_topic")),
                ("rgb/camera_info", value("color_info_topic")),
                ("depth/image", value("depth_topic")),
                ("depth/camera_info", value("depth_info_topic")),
            ],
            **common,
        ),
        Node(
            executable="segmentation_node",
            parameters=[
                config_file(of_camera("file")),
                value("params_file"),
                {
                    "checkpoint": value("checkpoint"),
                    "autostart": autostart,
                    "segmentation": {
                        "training_free": {"image_features": {"device": value("device")}},
                        "network": {"device": value("device")},
                    },
                    "use_sim_time": use_sim_time,
                },
            ],
            **common,
        ),
        Node(
            executable="player_node",
            parameters=[
                {
                    "bag": value("bag"),
                    # One text that is read as a list: a list of substitutions would be joined.
                    "wait_for": ParameterValue(
                        ["['", value("color_topic"), "', '", value("depth_topic"), "']"],
                        value_type=List[str],  # noqa: UP006 - launch compares with this one
                    ),
                }
            ],
            condition=IfCondition(is_set("bag")),
            **common,
        ),
        Node(
            package="rviz2",
            executable="rviz2",
            namespace=value("namespace"),
            arguments=["-d", config_file("unscene.rviz"), "-f", value("world_frame")],
            # The config names the topics of an empty namespace.
            remappings=[(f"/{topic}", topic) for topic in DISPLAYED],
            parameters=[{"use_sim_time": use_sim_time}],
            condition=IfCondition(value("rviz")),
        ),
    ]
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(
                    name,
                    default_value=default,
                    description=description,
                    choices=list(CAMERAS) if name == "camera" else None,
                )
                for name, default, description in ARGUMENTS
            ),
            set_profile(),
            *nodes,
        ]
    )
