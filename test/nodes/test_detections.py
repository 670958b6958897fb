from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from rclpy.node import Node
from rclpy.serialization import deserialize_message, serialize_message
from unscene_ros.msg import Instance, InstanceArray
from vision_msgs.msg import Detection3DArray, LabelInfo

from unscene_ros.nodes import detections, qos
from unscene_ros.nodes.conversions import make_header, make_time
from unscene_ros.nodes.detections import DetectionPublisher
from unscene_ros.nodes.managed import ManagedNode

HEADER = make_header("map", 1_500_000_000)
POSE = Pose(position=Point(x=1.0, y=2.0, z=3.0), orientation=Quaternion(z=0.6, w=0.8))
CHAIR = Instance(
    id=12, class_id=4, class_name="chair", score=0.75, pose=POSE, size=Vector3(x=2.0, y=1.0, z=0.5)
)
THING = Instance(id=7, class_id=-1, class_name="object", score=0.5)


def sent(message):
    """The message as a subscriber gets it."""
    return deserialize_message(serialize_message(message), type(message))


def test_a_detection_says_id_class_score_and_oriented_box():
    message = InstanceArray(header=HEADER, instances=[CHAIR, THING])
    array = sent(detections.instances_to_detections(message))
    chair, thing = array.detections
    assert array.header == chair.header == HEADER
    [found] = chair.results
    assert (chair.id, found.hypothesis.class_id, found.hypothesis.score) == ("12", "chair", 0.75)
    assert chair.bbox.center == found.pose.pose == CHAIR.pose
    assert chair.bbox.size == CHAIR.size
    assert not np.any(found.pose.covariance)
    assert (thing.id, thing.results[0].hypothesis.class_id) == ("7", "object")


def test_no_objects_are_an_empty_array_of_their_map():
    array = sent(detections.instances_to_detections(InstanceArray(header=HEADER)))
    assert array == Detection3DArray(header=HEADER)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ([], [(0, "object")]),
        (["wall", "floor", "chair"], [(0, "wall"), (1, "floor"), (2, "chair")]),
    ],
    ids=["label-free", "three classes"],
)
def test_the_labels_are_the_classes_of_the_model(names, classes):
    info = sent(detections.label_info(names, make_time(1_500_000_000)))
    assert [(label.class_id, label.class_name) for label in info.class_map] == classes
    assert info.header.stamp == HEADER.stamp


@dataclass(frozen=True, slots=True)
class NoConfig:
    """No parameters."""


@pytest.fixture
def node(ros):
    ros.start()
    return ros.add(ManagedNode("segmentation_node", NoConfig))


def test_who_comes_late_gets_the_newest_objects_and_the_labels(ros, node):
    with ExitStack() as undo:
        publisher = DetectionPublisher(node, undo, ["wall"])
        publisher.publish(InstanceArray(header=HEADER, instances=[CHAIR]))
        arrays, labels = [], []
        late = ros.add(Node("late"))
        late.create_subscription(
            Detection3DArray, "/segmentation_node/instances", arrays.append, qos.MAP
        )
        late.create_subscription(LabelInfo, "/segmentation_node/label_info", labels.append, qos.MAP)
        ros.spin_until(lambda: arrays and labels)
    assert arrays[0].detections[0].id == "12"
    assert labels[0].class_map[0].class_name == "wall"
    assert not {"instances", "label_info"} & own_topics(node)  # taken back


def test_without_vision_msgs_nothing_is_published_and_that_is_said_once(node, monkeypatch):
    monkeypatch.setattr(detections, "VISION_MSGS", False)
    said = []
    monkeypatch.setattr(node.get_logger(), "info", said.append)
    with ExitStack() as undo:
        publisher = DetectionPublisher(node, undo)
        publisher.publish(InstanceArray(header=HEADER, instances=[CHAIR]))
        assert not {"instances", "label_info"} & own_topics(node)
    assert said == ["no ~/instances and ~/label_info: vision_msgs is not installed"]


def own_topics(node):
    """The last part of the name of each topic that the node publishes."""
    return {publisher.topic_name.rsplit("/", 1)[-1] for publisher in node.publishers}
