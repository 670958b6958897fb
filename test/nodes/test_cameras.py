"""Several cameras that look at one map."""

import dataclasses

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from fake_camera import CAMERA_FRAME, Camera
from operator_calls import Caller
from rclpy.qos import ReliabilityPolicy
from test_fusion_node import QUICK, dropped, frames

from unscene_ros.nodes.camera_input import CamerasConfig
from unscene_ros.nodes.fusion_node import FusionNode
from unscene_ros.nodes.warm_up import WALL_M
from unscene_ros.scene import InputError

TWO = ("cameras.names:=['front','rear']", "cameras.frames:=['front_optical','rear_optical']")


def turned(frame):
    """The same picture, taken in the opposite direction."""
    pose = frame.world_from_camera.copy()
    pose[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ pose[:3, :3]
    return dataclasses.replace(frame, world_from_camera=pose)


@pytest.fixture
def start(ros):
    def start(*parameters, rear_frame="rear_optical"):
        ros.start(*QUICK, *TWO, *parameters)
        node = ros.add(FusionNode())
        front = ros.add(Camera(name="front", frame_id="front_optical"))
        rear = ros.add(Camera(name="rear", frame_id=rear_frame))
        for camera in (front, rear):
            ros.spin_until(camera.is_connected)
        return node, front, rear

    return start


def walls(node):
    """Where the walls of the map are, to 10 cm: y of its vertices that are many."""
    places = node.live_map.extract().mesh.vertices[:, 1].astype(float).round(1)
    values, counts = np.unique(places, return_counts=True)
    return set(values[counts > 300].tolist())


def test_two_cameras_are_fused_into_one_map(ros, start):
    node, front, rear = start()
    for count, frame in enumerate(frames(4), start=1):
        front.send(frame)
        rear.send(turned(frame))
        ros.spin_until(lambda count=count: node.live_map.frames_used == 2 * count)
    wall = round(WALL_M, 1)
    assert {wall, -wall} <= walls(node)
    assert dropped(node) == {} and node._received == 8


def test_the_frame_of_a_camera_overrides_what_its_pictures_say(ros, start):
    node, _, rear = start(rear_frame=CAMERA_FRAME)
    for frame in frames(3):
        rear.send_info(frame)
        rear.send_transform("map", "rear_optical", frame.stamp_ns, turned(frame).world_from_camera)
        rear.send_transform("map", CAMERA_FRAME, frame.stamp_ns, frame.world_from_camera)
        rear.send_pictures(frame)
    ros.spin_until(lambda: node.live_map.frames_used == 3)
    assert -round(WALL_M, 1) in walls(node) and round(WALL_M, 1) not in walls(node)


def test_each_camera_asks_for_the_delivery_that_was_set(ros, start):
    node, _, _ = start("cameras.reliable:=[true,false]")
    asked = {
        name: {
            info.qos_profile.reliability
            for part in ("rgb/image", "rgb/camera_info", "depth/image", "depth/camera_info")
            for info in node.get_subscriptions_info_by_topic(f"/{name}/{part}")
            if info.node_name == "fusion_node"
        }
        for name in ("front", "rear")
    }
    best_effort, reliable = ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE
    assert asked == {"front": {reliable}, "rear": {best_effort}}


def test_a_silent_camera_is_named_while_the_other_goes_on(ros, start):
    node, front, _ = start("diagnostics.no_data_after_s:=0.5")
    operator = ros.add(Caller(ros, "fusion_node"))
    sent = iter(frames(1000))
    for _ in range(40):
        front.send(next(sent))
        ros.spin_for(0.1)
        if "no frame for" in operator.message:
            break
    assert operator.level == DiagnosticStatus.ERROR
    cause = operator.message.partition("seen:")[0]
    assert "/rear/" in cause and "/front/" not in cause
    used = node.live_map.frames_used
    front.send(next(sent))
    ros.spin_until(lambda: node.live_map.frames_used > used)


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("cameras.frames:=['a','b','c']", "cameras.frames: expected one for each"),
        ("cameras.reliable:=[true,false,true]", "cameras.reliable: expected one for each"),
        ("cameras.names:=['front','front']", "cameras.names: expected different names"),
        ("cameras.names:=['front left']", "cameras.names: expected the first part of a topic"),
        ("cameras.names:=['2nd']", "cameras.names: expected the first part of a topic"),
    ],
)
def test_lists_that_do_not_fit_stop_the_node_with_the_reason(ros, parameter, words):
    names = () if "names" in parameter else ("cameras.names:=['front','rear']",)
    ros.start(*QUICK, *names, parameter)
    with pytest.raises(InputError, match=words):
        FusionNode()


def test_one_entry_counts_for_all_cameras():
    cameras = CamerasConfig(names=("front", "rear"), frames=("",), reliable=(True,))
    assert cameras.each() == [("front", "", True), ("rear", "", True)]
