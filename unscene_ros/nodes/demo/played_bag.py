"""Which topics of a bag the live nodes need, and how these reach the inputs of the fusion node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unscene_ros.nodes.picture_topic import COMPRESSED_NAME
from unscene_ros.recordings.bags import Bag
from unscene_ros.recordings.poses import BagPoses
from unscene_ros.recordings.topics import COMPRESSED_IMAGE, RecordingTopics, choose_topics
from unscene_ros.scene import InputError


@dataclass(frozen=True, slots=True)
class PlayedBag:
    """A bag for the live nodes; remappings are by the name in the node.

    A topic is listed once for each subscription of the fusion node.
    """

    path: Path
    topics: list[str]
    player_remappings: dict[str, str]
    fusion_remappings: dict[str, str]
    world_frame: str
    depth_topic: str
    depth_info_topic: str
    depth_pictures: int

    @staticmethod
    def open(path: Path) -> PlayedBag:
        """Finds the topics; raises InputError for a bag that the live nodes cannot use."""
        bag = Bag(path)
        chosen = choose_topics(bag, RecordingTopics())
        camera_frame = bag.first(chosen.depth).header.frame_id
        poses = BagPoses(bag, chosen, RecordingTopics(), camera_frame)
        if poses.pose_topic or not chosen.color:
            lacking = "TF for its poses" if poses.pose_topic else "a colour topic"
            raise InputError(
                f"recording {path}: the live nodes need {lacking}; `unscene replay` does without"
            )
        played, raw = {}, {}
        for kind, topic in (("rgb", chosen.color), ("depth", chosen.depth)):
            suffix = f"/{COMPRESSED_NAME[kind]}" if bag.type_of[topic] == COMPRESSED_IMAGE else ""
            raw[kind] = topic.removesuffix(suffix)
            played[topic] = raw[kind] + suffix  # another name only where the suffix was missing
        return PlayedBag(
            path=path,
            topics=[*played, chosen.color_info, chosen.depth_info, *poses.tf_topics],
            player_remappings={topic: name for topic, name in played.items() if topic != name},
            fusion_remappings={
                "rgb/image": raw["rgb"],
                "depth/image": raw["depth"],
                "rgb/camera_info": chosen.color_info,
                "depth/camera_info": chosen.depth_info,
            },
            world_frame=poses.world_frame,
            depth_topic=chosen.depth,
            depth_info_topic=chosen.depth_info,
            depth_pictures=bag.count_of[chosen.depth],
        )
