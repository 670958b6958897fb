"""What an operator may ask of the objects, and that their ids last."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Point
from glb_reader import read_parts
from operator_calls import Caller, set_parameter
from test_segmentation_node import EverySegment, Other, tiles
from unscene_ros.srv import GetInstances
from vision_msgs.msg import Detection3DArray, LabelInfo

from unscene_ros.nodes import (
    background_services,
    conversions,
    detections,
    qos,
    segmentation_node,
)
from unscene_ros.nodes.segmentation_node import SegmentationNode
from unscene_ros.ply import read_vertex_property
from unscene_ros.storage import read_mesh


@pytest.fixture(autouse=True)
def segmenter(monkeypatch):
    segmenter = EverySegment()
    monkeypatch.setattr(segmentation_node, "load_segmenter", lambda *_, **__: segmenter)
    return segmenter


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Short work is answered with its result, however busy this machine is."""
    monkeypatch.setattr(background_services, "ANSWER_WITHIN_S", 10.0)


class Stage:
    """A segmentation node, somebody who sends it maps, and an operator."""

    def __init__(self, ros, *parameters):
        ros.start(*parameters)
        self.ros = ros
        self.node = ros.add(SegmentationNode())
        self.other = ros.add(Other())
        self.operator = ros.add(Caller(ros, "segmentation_node"))
        ros.spin_until(self.other.mesh_publisher.get_subscription_count)

    def segment(self, mesh, revision, map_id="kitchen"):
        """The objects of a map."""
        count = len(self.other.arrays)
        self.other.send(mesh, revision, map_id)
        self.ros.spin_until(lambda: len(self.other.arrays) > count)
        return self.other.arrays[-1]

    def ask(self, **conditions):
        return self.operator.call(GetInstances, "get_instances", **conditions)


@pytest.fixture
def start(ros):
    return lambda *parameters: Stage(ros, *parameters)


def ids_by_place(array):
    return {round(each.pose.position.x - 0.5): each.id for each in array.instances}


def seconds(stamp):
    return stamp.sec + stamp.nanosec / 1e9


def test_objects_are_told_by_place_with_when_they_were_last_seen(start):
    stage = start()
    stage.segment(tiles(0, 3), revision=1)
    array = stage.segment(tiles(0, 3, 6), revision=2)
    everything = stage.ask()
    assert everything.success and everything.message == "3 of 3 objects"
    assert (everything.map_id, everything.map_revision) == ("kitchen", 2)
    [near] = stage.ask(point=Point(x=3.5, y=0.5), max_distance=0.5).instances
    assert near.id == ids_by_place(array)[3]
    assert near.vertex_count == 121 and near.score == 0.5
    assert seconds(near.last_seen) == 2.0
    refused = stage.ask(box=[Point()])
    assert not refused.success and "two opposite corners" in refused.message


def test_an_object_that_is_missed_keeps_its_time_and_one_that_vanished_is_told_as_gone(
    start, segmenter, monkeypatch
):
    stage = start()
    first = ids_by_place(stage.segment(tiles(0, 3), revision=1))
    find_all = segmenter.segment

    def find_first(mesh, segments, keyframes=()):
        found = find_all(mesh, segments, keyframes)
        return type(found)(found.masks[:1], found.scores[:1], found.class_ids[:1])

    monkeypatch.setattr(segmenter, "segment", find_first)
    missed = stage.segment(tiles(0, 3), revision=2)
    assert len(missed.instances) == 1 and not missed.gone_ids
    times = {each.id: seconds(each.last_seen) for each in stage.ask().instances}
    found = missed.instances[0].id
    assert times == {each: 2.0 if each == found else 1.0 for each in first.values()}
    vanished = stage.segment(tiles(0), revision=3)
    assert list(vanished.gone_ids) == [first[3]]
    assert [each.id for each in stage.ask().instances] == [first[0]]


def test_without_automatic_a_map_is_segmented_only_when_somebody_asks(start, segmenter):
    stage = start("automatic:=false")
    refused = stage.operator.trigger("segment_now")
    assert not refused.success and "no map has come yet" in refused.message
    for revision in (1, 2):
        stage.other.send(tiles(0), revision)
        stage.ros.spin_until(lambda r=revision: getattr(stage.node._newest, "revision", 0) == r)
    stage.ros.spin_for(0.2)
    assert stage.other.arrays == [] and not stage.node.maps
    told = stage.operator.trigger("segment_now")
    assert told.success and "map 2" in told.message
    stage.ros.spin_until(lambda: stage.other.arrays)
    assert [array.map_revision for array in stage.other.arrays] == [2]
    assert set_parameter(stage.node, "automatic", True).successful
    assert stage.segment(tiles(0), revision=3).map_revision == 3


def test_meshes_are_saved_with_the_ids_that_are_shown(start, tmp_path):
    stage = start(f"map_folder:={tmp_path}")
    refused = stage.operator.file("save_mesh", "room.ply")
    assert not refused.success and "nothing is segmented yet" in refused.message
    ids = ids_by_place(stage.segment(tiles(0, 3), revision=1))
    for name in ("room.ply", "room.glb"):
        answer = stage.operator.file("save_mesh", name)
        assert answer.success and "with 2 objects" in answer.message
    mesh = read_mesh(tmp_path / "room.ply")
    labels = read_vertex_property(tmp_path / "room.ply", "instance")
    for place, identity in ids.items():
        np.testing.assert_array_equal(labels == identity, mesh.vertices[:, 0] // 3 * 3 == place)
    parts = read_parts((tmp_path / "room.glb").read_bytes())
    assert {p["extras"]["id"] for name, p in parts.items() if name != "rest"} == {*ids.values()}
    assert not stage.operator.file("save_mesh", "room.obj").success


def test_after_a_restart_objects_of_the_same_map_have_their_ids_and_of_another_new_ones(
    start, tmp_path
):
    stage = start(f"map_folder:={tmp_path}")
    stage.segment(tiles(9), revision=1)
    ids = ids_by_place(stage.segment(tiles(0, 3), revision=2))
    assert sorted(ids.values()) == [2, 3]
    stage.ros.stop()
    again = start(f"map_folder:={tmp_path}")
    found = again.segment(tiles(0, 3, 6), revision=1)
    assert ids_by_place(found) == {**ids, 6: 4}
    elsewhere = again.segment(tiles(0, 3), revision=1, map_id="hall")
    assert sorted(ids_by_place(elsewhere).values()) == [1, 2]
    back = again.segment(tiles(0, 3, 6), revision=2)
    assert ids_by_place(back) == {**ids, 6: 4}


def test_a_map_id_that_is_no_file_name_leads_nowhere(start, tmp_path):
    folder = tmp_path / "maps"
    stage = start(f"map_folder:={folder}")
    stage.other.send(tiles(0), revision=1, map_id="../../evil")
    stage.ros.spin_until(lambda: stage.node.drops.counts.get("map failed"))
    assert sorted(tmp_path.rglob("*")) == [folder]
    assert len(stage.segment(tiles(0), revision=2).instances) == 1


def test_exhausted_gpu_memory_is_told_with_what_to_do_and_the_next_map_is_tried(start, segmenter):
    torch = pytest.importorskip("torch")
    stage = start()
    segmenter.failure = torch.OutOfMemoryError("tried to allocate 2 GiB")
    stage.other.send(tiles(0), revision=1)
    stage.ros.spin_until(lambda: "GPU's memory is exhausted" in stage.operator.message)
    assert stage.operator.level == DiagnosticStatus.ERROR
    for words in ("segmentation.network.device", "fusion.voxel_size_m", "2 GiB"):
        assert words in stage.operator.message
    segmenter.failure = None
    assert len(stage.segment(tiles(0), revision=2).instances) == 1


def test_a_network_too_large_for_the_gpu_leaves_the_node_inactive_with_what_to_do(
    ros, segmenter, capfd
):
    torch = pytest.importorskip("torch")
    ros.start("autostart:=false")
    node = ros.add(SegmentationNode())
    node.trigger_configure()
    segmenter.failure = torch.OutOfMemoryError("tried to allocate 2 GiB")
    node.trigger_activate()
    assert node.state == "inactive"
    assert "segmentation.network.device to cpu" in capfd.readouterr().err
    segmenter.failure = None
    node.trigger_activate()
    assert node.state == "active"


def test_a_failed_first_map_does_not_leave_the_objects_of_another_on_screen(start, segmenter):
    stage = start()
    stage.segment(tiles(0, 3), revision=1)
    segmenter.failure = RuntimeError("once")
    stage.other.send(tiles(0), revision=1, map_id="hall")
    stage.ros.spin_until(lambda: stage.node.drops.counts.get("map failed"))
    segmenter.failure = None
    stage.segment(tiles(0), revision=2, map_id="hall")
    stage.ros.spin_until(lambda: len(stage.other.markers) == 2)
    assert stage.other.markers[-1].markers[0].action == stage.other.markers[-1].markers[0].DELETEALL


def test_planners_get_the_objects_as_detections_and_late_ones_the_labels(start):
    assert detections.VISION_MSGS
    stage = start()
    ids = ids_by_place(stage.segment(tiles(0, 3), revision=1))
    got = {}
    for kind, name in ((Detection3DArray, "instances"), (LabelInfo, "label_info")):
        topic = f"/segmentation_node/{name}"
        stage.operator.create_subscription(
            kind, topic, lambda m, n=name: got.update({n: m}), qos.MAP
        )
    stage.ros.spin_until(lambda: len(got) == 2)
    found = got["instances"].detections
    assert {each.id for each in found} == {str(each) for each in ids.values()}
    assert found[0].results[0].hypothesis.class_id == conversions.UNKNOWN_CLASS
    assert [each.class_name for each in got["label_info"].class_map] == [conversions.UNKNOWN_CLASS]
