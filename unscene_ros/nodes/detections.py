"""Objects as standard messages: vision_msgs, for planners and viewers that know nothing of us."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseWithCovariance
from std_msgs.msg import Header

from unscene_ros.msg import Instance, InstanceArray
from unscene_ros.nodes import qos
from unscene_ros.nodes.conversions import UNKNOWN_CLASS
from unscene_ros.nodes.managed import ManagedNode

try:
    from vision_msgs.msg import (
        BoundingBox3D,
        Detection3D,
        Detection3DArray,
        LabelInfo,
        ObjectHypothesis,
        ObjectHypothesisWithPose,
        VisionClass,
    )
except ImportError:  # a robot need not have it
    VISION_MSGS = False
else:
    VISION_MSGS = True


class DetectionPublisher:
    """~/instances with every map and ~/label_info once; without vision_msgs neither."""

    def __init__(self, node: ManagedNode, undo: ExitStack, class_names: Sequence[str] = ()) -> None:
        """`class_names` are indexed by class id; none: the model tells objects, not classes."""
        self._publisher: Any = None
        if not VISION_MSGS:
            node.get_logger().info("no ~/instances and ~/label_info: vision_msgs is not installed")
            return
        self._publisher = node.publish_on(undo, Detection3DArray, "~/instances", qos.MAP)
        labels = node.publish_on(undo, LabelInfo, "~/label_info", qos.MAP)
        labels.publish(label_info(class_names, node.get_clock().now().to_msg()))

    def publish(self, message: InstanceArray) -> None:
        """Sends the objects of one map."""
        if self._publisher is not None:
            self._publisher.publish(instances_to_detections(message))


def instances_to_detections(message: InstanceArray) -> Detection3DArray:
    """The same objects: `id` is the lasting id, the hypothesis the name of the class."""
    return Detection3DArray(
        header=message.header,
        detections=[_detection(message.header, instance) for instance in message.instances],
    )


def _detection(header: Header, instance: Instance) -> Detection3D:
    hypothesis = ObjectHypothesis(class_id=instance.class_name, score=instance.score)
    pose = PoseWithCovariance(pose=instance.pose)
    return Detection3D(
        header=header,
        results=[ObjectHypothesisWithPose(hypothesis=hypothesis, pose=pose)],
        bbox=BoundingBox3D(center=instance.pose, size=instance.size),
        id=str(instance.id),
    )


def label_info(class_names: Sequence[str], stamp: Time) -> LabelInfo:
    """The classes that hypotheses may name; without names the one of everything unknown."""
    return LabelInfo(
        header=Header(stamp=stamp),
        class_map=[
            VisionClass(class_id=class_id, class_name=name)
            for class_id, name in enumerate(class_names or [UNKNOWN_CLASS])
        ],
    )
