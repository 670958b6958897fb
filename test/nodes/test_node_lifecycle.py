"""Both nodes through their lifecycle, with pictures and maps before and after."""

import gc
import sys
import threading
import weakref

import pytest
from fake_camera import Camera
from operator_calls import set_parameter
from rclpy.lifecycle import TransitionCallbackReturn
from test_fusion_node import QUICK, Receiver, dropped, frames
from test_segmentation_node import EverySegment, Other, tiles

from unscene_ros.fusion import FusionConfig
from unscene_ros.nodes import conversions, segmentation_node
from unscene_ros.nodes.fusion_node import FusionNode
from unscene_ros.nodes.segmentation_node import SegmentationNode
from unscene_ros.nodes.warm_up import sample_frames
from unscene_ros.segmentation import load_segmenter

SUCCESS = TransitionCallbackReturn.SUCCESS


def topics_of(node):
    """What a node is subscribed to, without what every node is."""
    return {subscription.topic_name for subscription in node.subscriptions} - {"/clock"}


class Mapping:
    """A fusion node that a manager leads, a camera and a receiver."""

    def __init__(self, ros, *parameters):
        ros.start(*QUICK, "autostart:=false", *parameters)
        self.ros = ros
        self.node, self.camera = ros.add(FusionNode()), ros.add(Camera())
        self.receiver = ros.add(Receiver())
        self._sent = 0

    def activate(self):
        assert self.node.trigger_activate() == SUCCESS
        self.ros.spin_until(self.camera.is_connected)

    def send(self, count):
        for frame in frames(count, start=1 + self._sent):
            self.camera.send(frame)
        self._sent += count

    def fuse(self, count=3):
        used = self.node.live_map.frames_used
        self.send(count)
        self.ros.spin_until(lambda: self.node.live_map.frames_used == used + count)

    def newest(self):
        """The newest map that was published, of all frames."""
        self.ros.spin_until(
            lambda: (
                not self.node._map_publisher._is_old
                and self.receiver.meshes
                and self.receiver.meshes[-1].revision == self.node._map_publisher.revision
            )
        )
        return self.receiver.meshes[-1]


@pytest.fixture
def mapping(ros):
    def start(*parameters):
        mapping = Mapping(ros, *parameters)
        assert mapping.node.trigger_configure() == SUCCESS
        mapping.activate()
        return mapping

    return start


def test_the_map_outlasts_a_pause_and_is_gone_after_cleanup(mapping):
    stage = mapping()
    stage.fuse()
    before = stage.newest()
    assert stage.node.trigger_deactivate() == SUCCESS
    assert topics_of(stage.node) == set()
    stage.send(2)  # to nobody
    stage.ros.spin_for(0.3)
    assert stage.node.live_map.frames_used == 3
    stage.activate()
    stage.fuse(2)
    assert stage.newest().map_id == before.map_id
    assert stage.node._received == 5 and dropped(stage.node) == {}

    map_alive = weakref.ref(stage.node.live_map)
    stage.node.trigger_deactivate()
    assert stage.node.trigger_cleanup() == SUCCESS
    stage.ros.spin_for(0.1)  # the executor lets go of its timers
    gc.collect()
    assert map_alive() is None
    assert stage.node.trigger_configure() == SUCCESS
    stage.activate()
    stage.fuse(1)
    after = stage.newest()
    assert after.map_id != before.map_id
    assert stage.node.live_map._volume.frames == 1


def test_a_paused_node_that_is_cleaned_up_begins_unpaused(mapping):
    stage = mapping()
    stage.node._paused = True
    stage.node.trigger_deactivate()
    stage.node.trigger_cleanup()
    stage.node.trigger_configure()
    stage.activate()
    stage.fuse(1)


@pytest.mark.parametrize("make", [FusionNode, SegmentationNode])
def test_no_thread_is_left_when_a_node_is_destroyed(ros, monkeypatch, make):
    monkeypatch.setattr(segmentation_node, "load_segmenter", lambda *_, **__: EverySegment())
    before = set(threading.enumerate())
    ros.start()
    node = make()
    background = node._map_services.background if make is FusionNode else node._background
    background.start("nothing", lambda: "done").result(5)
    assert len(set(threading.enumerate()) - before) >= 2
    node.destroy_node()
    assert set(threading.enumerate()) <= before


def test_a_start_that_fails_leaves_no_thread(ros, tmp_path):
    before = set(threading.enumerate())
    ros.start(f"checkpoint:={tmp_path}/missing.safetensors")
    with pytest.raises(Exception, match=r"missing\.safetensors"):
        SegmentationNode()
    assert set(threading.enumerate()) <= before


# Parameters of the running nodes.


def test_a_shorter_range_holds_for_the_next_frame(mapping):
    stage = mapping()
    assert set_parameter(stage.node, "fusion.depth_max_m", 1.3).successful  # between box and wall
    stage.fuse()
    box = len(stage.newest().vertices)
    assert set_parameter(stage.node, "fusion.depth_max_m", 5.0).successful
    stage.fuse()
    assert len(stage.newest().vertices) > 3 * box > 0


def test_another_mesh_rate_holds_at_once(mapping):
    stage = mapping("mesh_rate_hz:=0.001")
    stage.fuse()
    assert stage.receiver.meshes == []
    assert set_parameter(stage.node, "mesh_rate_hz", 20.0).successful
    stage.newest()
    assert set_parameter(stage.node, "mesh_rate_hz", 0.001).successful
    count = len(stage.receiver.meshes)
    stage.fuse()
    stage.ros.spin_for(0.3)
    assert len(stage.receiver.meshes) == count


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("fusion.voxel_size_m", 0.1, "ros2 lifecycle set /fusion_node cleanup"),
        ("max_wait_s", 1.0, "ros2 lifecycle set /fusion_node deactivate"),
        ("fusion.depth_max_m", -1.0, "fusion.depth_max_m"),
        ("fusion.depth_max_m", 0.1, "depth_min_m"),
        ("mesh_rate_hz", 0.0, "mesh_rate_hz"),
        ("fusion.max_weight", 0, "fusion.max_weight"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_reason_and_changes_nothing(
    mapping, name, value, words
):
    stage = mapping()
    before = stage.node.config
    result = set_parameter(stage.node, name, value)
    assert not result.successful and words in result.reason
    assert stage.node.config == before
    assert stage.node.live_map._volume.config == before.fusion
    stage.fuse(1)


def test_another_voxel_size_holds_after_cleanup(mapping):
    stage = mapping()
    stage.node.trigger_deactivate()
    stage.node.trigger_cleanup()
    assert set_parameter(stage.node, "fusion.voxel_size_m", 0.1).successful
    stage.node.trigger_configure()
    assert stage.node.live_map._volume.config == FusionConfig(voxel_size_m=0.1)


@pytest.mark.parametrize("make", [FusionNode, SegmentationNode])
def test_thresholds_of_diagnostics_change_while_a_node_runs(ros, monkeypatch, make):
    monkeypatch.setattr(segmentation_node, "load_segmenter", lambda *_, **__: EverySegment())
    ros.start()
    node = ros.add(make())
    assert set_parameter(node, "diagnostics.recent_s", 3.0).successful
    assert node._diagnostics.config.recent_s == 3.0
    assert {e.config.recent_s for e in getattr(node, "_explanations", [])} <= {3.0}


# The segmentation node.


class Segmenting:
    """A segmentation node that a manager leads, and somebody who sends maps."""

    def __init__(self, ros, *parameters):
        ros.start("autostart:=false", *parameters)
        self.ros = ros
        self.node, self.other = ros.add(SegmentationNode()), ros.add(Other())
        assert self.node.trigger_configure() == SUCCESS

    def activate(self):
        assert self.node.trigger_activate() == SUCCESS
        self.ros.spin_until(self.other.mesh_publisher.get_subscription_count)


def test_the_segmenter_is_freed_on_deactivate_and_loaded_again(ros, monkeypatch):
    loaded = []

    def load(*_, **__):
        segmenter = EverySegment()
        loaded.append(weakref.ref(segmenter))
        return segmenter

    monkeypatch.setattr(segmentation_node, "load_segmenter", load)
    stage = Segmenting(ros)
    assert loaded == []
    stage.activate()
    stage.other.send(tiles(0), revision=1)
    ros.spin_until(lambda: len(stage.other.arrays) == 1)
    assert loaded[0]() is not None
    stage.node.trigger_deactivate()
    assert loaded[0]() is None
    assert topics_of(stage.node) == set()
    stage.activate()
    ros.spin_until(lambda: len(stage.other.arrays) == 2)  # the newest map is latched
    ids = [[each.id for each in array.instances] for array in stage.other.arrays]
    assert ids == [[1], [1]]
    assert len(loaded) == 2


def test_maps_and_keyframes_are_gone_after_cleanup(ros, monkeypatch):
    monkeypatch.setattr(segmentation_node, "load_segmenter", lambda *_, **__: EverySegment())
    stage = Segmenting(ros)
    stage.activate()
    keyframe = conversions.keyframe_to_msg(sample_frames()[0], "odom", "kitchen")
    stage.other.keyframe_publisher.publish(keyframe)
    ros.spin_until(lambda: stage.node._keyframes[1].frames)
    stage.other.send(tiles(0), revision=1)
    ros.spin_until(lambda: stage.other.clouds and stage.node._segmented)
    held = stage.node._newest_result[0].vertices, stage.node._keyframes[1].frames[0].depth
    alive = [weakref.ref(array) for array in held]
    del held
    stage.node.trigger_deactivate()
    assert all(array() is not None for array in alive)
    assert stage.node.trigger_cleanup() == SUCCESS
    ros.spin_for(0.1)  # the executor lets go of its timers
    gc.collect()
    assert [array() for array in alive] == [None, None]
    assert stage.node.trigger_configure() == SUCCESS
    stage.activate()
    ros.spin_until(lambda: len(stage.other.arrays) == 2)  # the newest map is latched


class FakeTorch:
    """As much of torch as is asked to give memory back."""

    def __init__(self):
        self.cuda, self.emptied = self, []

    def is_initialized(self):
        return True

    def mem_get_info(self):
        return 1, 2

    def memory_allocated(self):
        return 0

    def max_memory_allocated(self):
        return 0

    def empty_cache(self):
        self.emptied.append(threading.current_thread().name)


def test_a_broken_gpu_does_not_keep_a_node_from_being_deactivated(ros, monkeypatch, capfd):
    monkeypatch.setattr(segmentation_node, "load_segmenter", lambda *_, **__: EverySegment())
    torch = FakeTorch()
    stage = Segmenting(ros)
    stage.activate()

    def fails():
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch, "empty_cache", fails)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert stage.node.trigger_deactivate() == SUCCESS
    assert stage.node.state == "inactive"
    assert "start it again" in capfd.readouterr().err


def test_a_segmenter_that_failed_is_not_kept_by_its_error(ros, monkeypatch):
    loaded = []

    def load(*_, **__):
        segmenter = EverySegment()
        segmenter.failure = RuntimeError("cannot")
        loaded.append(weakref.ref(segmenter))
        return segmenter

    monkeypatch.setattr(segmentation_node, "load_segmenter", load)
    stage = Segmenting(ros)
    assert stage.node.trigger_activate() != SUCCESS
    assert stage.node.state == "unconfigured"
    gc.collect()
    assert loaded[0]() is None


def test_results_of_a_segmenter_that_was_freed_meanwhile_are_not_shown(ros, monkeypatch):
    slow, quick = EverySegment(), EverySegment()
    segmenters = iter((slow, quick))
    monkeypatch.setattr(segmentation_node, "load_segmenter", lambda *_, **__: next(segmenters))
    stop = segmentation_node.NewestWorker.stop
    monkeypatch.setattr(segmentation_node.NewestWorker, "stop", lambda worker: stop(worker, 0.05))
    stage = Segmenting(ros)
    stage.activate()
    assert slow.started.acquire(blocking=False)  # to warm up
    slow.go_on.clear()
    stage.other.send(tiles(0), revision=1)
    ros.spin_until(lambda: slow.started.acquire(blocking=False))
    thread = stage.node._worker._thread
    torch = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    stage.node.trigger_deactivate()
    assert torch.emptied == ["MainThread"]
    stage.other.send(tiles(0), revision=2)
    stage.activate()
    ros.spin_until(lambda: stage.other.arrays)
    slow.go_on.set()
    thread.join(5)
    ros.spin_for(0.2)
    assert [array.map_revision for array in stage.other.arrays] == [2]
    assert torch.emptied == ["MainThread", "segmentation"]


def test_without_its_checkpoint_the_node_stays_inactive_until_it_is_given_one(
    ros, tmp_path, monkeypatch, capfd
):
    def load(checkpoint, *more):
        return (
            EverySegment() if checkpoint == "training-free" else load_segmenter(checkpoint, *more)
        )

    monkeypatch.setattr(segmentation_node, "load_segmenter", load)
    stage = Segmenting(ros, f"checkpoint:={tmp_path}/missing.safetensors")
    assert stage.node.trigger_activate() == TransitionCallbackReturn.FAILURE
    assert stage.node.state == "inactive"
    assert f"{tmp_path}/missing.safetensors" in capfd.readouterr().err
    assert set_parameter(stage.node, "checkpoint", "training-free").successful
    stage.activate()
    stage.other.send(tiles(0), revision=1)
    ros.spin_until(lambda: stage.other.arrays)
    refused = set_parameter(stage.node, "checkpoint", "default")
    assert not refused.successful and "deactivate" in refused.reason
