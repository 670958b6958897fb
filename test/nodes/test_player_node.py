import dataclasses

import numpy as np
import pytest
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage

from training.scans.to_bag import BagFormat, BagWriter, write_bag
from unscene_ros.nodes import player_node, qos
from unscene_ros.nodes.conversions import depth_from_msg, stamp_ns_of
from unscene_ros.nodes.player_node import PlayerNode
from unscene_ros.nodes.warm_up import sample_frames
from unscene_ros.recordings.bags import Bag
from unscene_ros.scene import InputError

SECOND_NS = 1_000_000_000
COUNT = 4
COLOR, DEPTH = "/camera/color/image_raw/compressed", "/camera/depth/image_raw"


@pytest.fixture
def bag(tmp_path):
    """Four frames, one each 100 ms from second 5 on, depth raw and colour compressed."""
    frames = [
        dataclasses.replace(frame, stamp_ns=5 * SECOND_NS + index * SECOND_NS // 10)
        for index, frame in enumerate(sample_frames()[:COUNT])
    ]
    path = tmp_path / "bag"
    write_bag(path, frames, BagFormat(depth="16UC1"))
    return path


class Receiver(Node):
    """Keeps what is played."""

    def __init__(self, color=COLOR):
        super().__init__("receiver")
        self.clock, self.color, self.depth, self.infos, self.tf, self.tf_static = (
            [] for _ in range(6)
        )
        self.create_subscription(Clock, "/clock", self.clock.append, qos.reliable(1000))
        self.create_subscription(CompressedImage, color, self.color.append, qos.SENSOR)
        self.create_subscription(Image, DEPTH, self.depth.append, qos.SENSOR)
        self.create_subscription(
            CameraInfo, "/camera/color/camera_info", self.infos.append, qos.SENSOR
        )
        self.create_subscription(TFMessage, "/tf", self.tf.append, qos.TRANSFORMS)
        self.create_subscription(
            TFMessage, "/tf_static", self.tf_static.append, qos.STATIC_TRANSFORMS
        )


def wait_for(*topics):
    return f"wait_for:=[{', '.join(topics)}]"


def test_everything_recorded_comes_out_as_it_was_recorded(ros, bag):
    ros.start(f"bag:={bag}", "rate:=5.0", wait_for(COLOR, DEPTH, "/tf"))
    receiver = ros.add(Receiver())
    ros.add(PlayerNode())
    received = (receiver.color, receiver.depth, receiver.infos, receiver.tf)
    ros.spin_until(lambda: all(len(messages) == COUNT for messages in received))
    stamps = [5 * SECOND_NS + index * SECOND_NS // 10 for index in range(COUNT)]
    assert [stamp_ns_of(message.header) for message in receiver.depth] == stamps
    np.testing.assert_allclose(
        depth_from_msg(receiver.depth[0]), sample_frames()[0].depth, atol=1e-3
    )
    assert len(receiver.tf_static) == 1


def test_the_clock_runs_from_the_first_to_the_last_message(ros, bag):
    ros.start(f"bag:={bag}", "rate:=5.0", wait_for("/tf"))
    receiver = ros.add(Receiver())
    ros.add(PlayerNode())
    ros.spin_until(lambda: len(receiver.tf) == COUNT)
    ros.spin_for(0.2)
    times = [message.clock.sec * SECOND_NS + message.clock.nanosec for message in receiver.clock]
    assert times == sorted(times)
    assert times[-1] == 5 * SECOND_NS + (COUNT - 1) * SECOND_NS // 10


def test_nothing_is_played_before_the_awaited_subscribers_are_there(ros, bag):
    ros.start(f"bag:={bag}", "rate:=50.0", wait_for("/camera/color/image_raw"))
    player = ros.add(PlayerNode())
    ros.spin_for(0.5)
    assert not player._played
    receiver = ros.add(Receiver())  # listens to the compressed topic of that raw name
    ros.spin_until(lambda: len(receiver.color) == COUNT)


def test_without_subscribers_it_starts_after_the_timeout(ros, bag):
    ros.start(f"bag:={bag}", "rate:=50.0", wait_for(DEPTH), "wait_timeout_s:=0.1")
    player = ros.add(PlayerNode())
    ros.spin_until(lambda: player._played[DEPTH] == COUNT)


def test_a_loop_starts_over_and_the_end_without_one_ends_the_process(ros, bag):
    ros.start(f"bag:={bag}", "rate:=50.0", "loop:=true")
    looping = ros.add(PlayerNode())
    ros.spin_until(lambda: looping._played["/tf"] > 2 * COUNT)


def test_the_process_ends_when_everything_was_played(ros, bag):
    ros.start(f"bag:={bag}", "rate:=50.0")
    player = ros.add(PlayerNode())
    with pytest.raises(SystemExit) as end:
        ros.spin_for(5)
    assert end.value.code == 0
    assert player._played["/tf"] == COUNT


def test_only_the_named_topics_are_played(ros, bag):
    ros.start(f"bag:={bag}", "rate:=50.0", f"topics:=[{DEPTH}]")
    player = ros.add(PlayerNode())
    ros.spin_until(lambda: player._ended_at is not None)
    assert set(player._played) == {DEPTH}


def test_a_type_that_is_not_installed_is_left_out(ros, tmp_path, monkeypatch):
    path = tmp_path / "odd"
    with BagWriter(path) as writer:
        writer.write_transform("map", "link", SECOND_NS, np.eye(4))
        writer.write_transform("map", "link", SECOND_NS, np.eye(4), static=True)
    ros.start(f"bag:={path}")

    class OddBag(Bag):
        def __init__(self, path):
            super().__init__(path)
            self.type_of["/tf"] = "acme_msgs/msg/Flux"

    monkeypatch.setattr(player_node, "Bag", OddBag)
    player = ros.add(PlayerNode())
    assert list(player._publisher_of) == ["/tf_static"]


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ([], "bag"),
        (["bag:=/nowhere.mcap"], "nowhere"),
        (["bag:={bag}", "topics:=[/nothing]"], "/camera/depth/image_raw"),
        (["bag:={bag}", "wait_for:=[/nothing]"], "/camera/depth/image_raw"),
        (["bag:={bag}", "rate:=0.0"], "rate"),
    ],
)
def test_a_users_mistake_is_an_error_that_names_it(ros, bag, parameters, word):
    ros.start(*(parameter.format(bag=bag) for parameter in parameters))
    with pytest.raises(InputError, match=word):
        PlayerNode()
