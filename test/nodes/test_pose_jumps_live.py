"""A loop closes while the robot maps: the correction of its odometry jumps in TF."""

import threading

import numpy as np
import pytest
from fake_camera import Camera
from operator_calls import Caller
from test_fusion_node import QUICK, frames

from unscene_ros.nodes.fusion_node import FusionNode
from unscene_ros.nodes.warm_up import WALL_M


class Stage:
    """A fusion node and a robot whose odometry is corrected."""

    def __init__(self, ros, *parameters):
        ros.start(*QUICK, *parameters)
        self.ros = ros
        self.node, self.camera = ros.add(FusionNode()), ros.add(Camera())
        self.operator = ros.add(Caller(ros, "fusion_node"))
        ros.spin_until(self.camera.is_connected)
        self._sent = 0

    def send(self, count, correction_m):
        """Frames of a robot that stands still, with the correction forward in the view."""
        map_from_odom = np.eye(4)
        map_from_odom[1, 3] = correction_m
        for frame in frames(count, start=1 + self._sent):
            self.camera.send_info(frame)
            self.camera.send_transform("map", "odom", frame.stamp_ns, map_from_odom)
            self.camera.send_pose(frame, "odom")
            self.camera.send_pictures(frame)
        self._sent += count

    def map(self, count, correction_m):
        used = self.node.live_map.frames_used
        self.send(count, correction_m)
        self.ros.spin_until(lambda: self.node.live_map.frames_used == used + count)

    def surface_at(self, y_m):
        """Vertices within a voxel of a wall there."""
        vertices = self.node.live_map.extract().mesh.vertices
        return int((np.abs(vertices[:, 1] - y_m) < 0.05).sum())


@pytest.fixture
def start(ros):
    return lambda *parameters: Stage(ros, *parameters)


@pytest.mark.parametrize(
    ("policy", "words"), [("keep", "the map is kept"), ("clear", "were cleared")]
)
def test_a_jump_is_told_and_counted_and_the_map_kept_or_cleared(start, capfd, policy, words):
    stage = start(f"pose_jumps.policy:={policy}")
    stage.map(4, correction_m=0.0)
    before = stage.surface_at(WALL_M)
    assert before > 500
    stage.map(4, correction_m=-0.6)
    stage.ros.spin_until(lambda: stage.operator.values.get("pose_jumps") == 1)
    said = capfd.readouterr().err
    assert "'odom' jumped in 'map'" in said and "0.60 m" in said and words in said
    assert stage.surface_at(WALL_M - 0.6) > 500
    left = stage.surface_at(WALL_M)
    assert left == 0 if policy == "clear" else left > before / 2


def test_a_correction_that_creeps_is_no_jump(start):
    stage = start("pose_jumps.window_s:=0.3")
    for step in range(6):
        stage.map(1, correction_m=0.05 * step)
    assert stage.node._jump_count == 0


def test_nobody_who_corrects_is_no_jump_either(start):
    stage = start("pose_jumps.frame:=''")
    stage.map(2, correction_m=0.0)
    stage.map(2, correction_m=-0.6)
    assert stage.node._jump_count == 0


def test_frames_that_waited_from_before_a_jump_are_cleared_with_the_rest(start, monkeypatch):
    stage = start("pose_jumps.policy:=clear")
    stage.map(2, correction_m=0.0)
    go_on, integrate = threading.Event(), stage.node.live_map.integrate

    def held_up(frame):
        assert go_on.wait(10)
        return integrate(frame)

    monkeypatch.setattr(stage.node.live_map, "integrate", held_up)
    for count, correction_m in ((3, 0.0), (6, -0.6)):
        stage.send(3, correction_m)
        stage.ros.spin_until(lambda count=count: stage.node._worker.pending == count)
    go_on.set()
    stage.ros.spin_until(lambda: stage.node.live_map.frames_used == 8)
    assert stage.node._jump_count == 1
    assert stage.surface_at(WALL_M) == 0
