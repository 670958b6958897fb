import dataclasses
import threading

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2
from unscene_ros.msg import InstanceArray, Keyframe
from unscene_ros.msg import Mesh as MeshMsg
from visualization_msgs.msg import Marker, MarkerArray

from unscene_ros.nodes import conversions, qos, segmentation_node
from unscene_ros.nodes.diagnostics import diagnostics_from_msg
from unscene_ros.nodes.warm_up import sample_frames
from unscene_ros.oversegmentation import OversegmentationConfig
from unscene_ros.scene import Instances, Mesh


def tile_at(x):
    """A square of 1 m with 11 x 11 vertices that starts at x."""
    grid = np.mgrid[0:11, 0:11].reshape(2, -1).T / 10
    index = np.arange(121, dtype=np.int32).reshape(11, 11)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[:-1, 1:], index[1:, 1:]
    faces = np.stack((a, b, d, a, d, c), axis=-1).reshape(-1, 3)
    return np.column_stack([grid[:, 0] + x, grid[:, 1], np.zeros(121)]), faces


def tiles(*places):
    """A mesh of separate tiles: each becomes one segment."""
    parts = [tile_at(x) for x in places]
    vertices = np.concatenate([vertices for vertices, _ in parts]).astype(np.float32)
    faces = np.concatenate([faces + 121 * i for i, (_, faces) in enumerate(parts)])
    colors = np.full((len(vertices), 3), 90, np.uint8)
    normals = np.tile(np.float32([0, 0, 1]), (len(vertices), 1))
    return Mesh(vertices, faces.astype(np.int32), colors, normals)


class EverySegment:
    """A segmenter that calls every segment an instance, and can be held up or made to fail."""

    oversegmentation = OversegmentationConfig()

    def __init__(self):
        self.go_on = threading.Event()
        self.go_on.set()
        self.started = threading.Semaphore(0)
        self.failure = None
        self.keyframe_counts = []

    def segment(self, mesh, segments, keyframes=()):
        self.started.release()
        assert self.go_on.wait(10)
        if self.failure:
            raise self.failure
        self.keyframe_counts.append(len(keyframes))
        count = segments.count
        return Instances(
            np.eye(count, dtype=bool),
            np.full(count, 0.5, np.float32),
            np.full(count, -1, np.int32),
        )


class Other(Node):
    """Sends maps as the fusion node does and keeps what comes back."""

    def __init__(self):
        super().__init__("other")
        self.arrays, self.markers, self.clouds, self.values = [], [], [], {}
        self.mesh_publisher = self.create_publisher(MeshMsg, "/fusion_node/mesh", qos.MAP)
        self.keyframe_publisher = self.create_publisher(
            Keyframe, "/fusion_node/keyframes", qos.latched(24)
        )
        for kind, name, received in (
            (InstanceArray, "instance_array", self.arrays),
            (MarkerArray, "instance_markers", self.markers),
            (PointCloud2, "labelled_cloud", self.clouds),
        ):
            topic = f"/segmentation_node/{name}"
            self.create_subscription(kind, topic, received.append, qos.latched(10))
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def send(self, mesh, revision, map_id="kitchen"):
        header = conversions.make_header("odom", 1_000_000_000 * revision)
        self.mesh_publisher.publish(conversions.mesh_to_msg(mesh, header, revision, map_id))

    def _on_diagnostics(self, message):
        self.values = diagnostics_from_msg(message)["segmentation_node"]


@pytest.fixture
def segmenter(monkeypatch):
    segmenter = EverySegment()
    monkeypatch.setattr(segmentation_node, "load_segmenter", lambda *_, **__: segmenter)
    return segmenter


@pytest.fixture
def start(ros, segmenter):
    def make():
        ros.start()
        node = ros.add(segmentation_node.SegmentationNode())
        other = ros.add(Other())
        ros.spin_until(
            lambda: (
                other.mesh_publisher.get_subscription_count()
                and other.keyframe_publisher.get_subscription_count()
            )
        )
        segmenter.keyframe_counts.clear()  # what warming up saw
        while segmenter.started.acquire(blocking=False):
            pass
        return node, other

    return make


def ids_of(markers, action=Marker.ADD):
    return {m.id for m in markers.markers if m.ns == "box" and m.action == action}


def test_a_map_becomes_instances_markers_and_a_cloud_of_the_same_revision(ros, start):
    _, other = start()
    mesh = tiles(0, 3)
    other.send(mesh, revision=4)
    ros.spin_until(lambda: other.arrays and other.markers and other.clouds)
    [array], [markers], [cloud] = other.arrays, other.markers, other.clouds
    assert (array.map_revision, array.header.frame_id, array.header.stamp.sec) == (4, "odom", 4)
    assert [instance.vertex_count for instance in array.instances] == [121, 121]
    assert len(array.instance_of_vertex) == cloud.width == len(mesh.vertices)
    assert ids_of(markers) == {instance.id for instance in array.instances}
    assert cloud.header == array.header


def test_ids_last_and_what_vanished_is_deleted(ros, start):
    _, other = start()
    for revision, mesh in enumerate((tiles(0, 3), tiles(0, 3, 6), tiles(0, 6)), start=1):
        other.send(mesh, revision)
        ros.spin_until(lambda revision=revision: len(other.markers) == revision)
    first, second, third = other.markers
    assert first.markers[0].action == Marker.DELETEALL
    assert len(ids_of(first)) == 2 and ids_of(first) < ids_of(second)
    gone = ids_of(third, Marker.DELETE)
    assert len(gone) == 1 and gone < ids_of(first)
    assert ids_of(third) == ids_of(second) - gone


def test_every_array_clears_what_a_viewer_that_missed_one_still_shows(ros, start):
    _, other = start()
    for count, (revision, map_id) in enumerate(((5, "a"), (1, "a"), (2, "b")), start=1):
        other.send(tiles(0), revision, map_id)
        ros.spin_until(lambda count=count: len(other.markers) == count)
    assert {m.markers[0].action for m in other.markers} == {Marker.DELETEALL}


def test_a_slow_subscriber_is_told_of_everything_that_is_gone(ros, start):
    _, other = start()
    for revision, mesh in enumerate((tiles(0, 3, 6), tiles(0, 6), tiles(0)), start=1):
        other.send(mesh, revision)
        ros.spin_until(lambda revision=revision: len(other.clouds) == revision)
    late, got = ros.add(Node("late")), []
    topic = "/segmentation_node/instance_array"
    late.create_subscription(InstanceArray, topic, got.append, qos.INSTANCES)
    ros.spin_until(lambda: len(got) == 3)
    assert [list(array.gone_ids) for array in got] == [[], [2], [3]]


def test_an_instance_inside_a_better_one_is_not_told(ros, start, segmenter, monkeypatch):
    find_all = segmenter.segment

    def find_all_and_everything(mesh, segments, keyframes=()):
        found = find_all(mesh, segments, keyframes)
        return Instances(
            np.concatenate([found.masks, np.ones_like(found.masks[:1])]),
            np.append(found.scores, np.float32(0.25)),
            np.append(found.class_ids, np.int32(-1)),
        )

    monkeypatch.setattr(segmenter, "segment", find_all_and_everything)
    _, other = start()
    for revision in (1, 2):
        other.send(tiles(0, 3), revision)
        ros.spin_until(lambda revision=revision: len(other.markers) == revision)
    for array, markers in zip(other.arrays, other.markers, strict=True):
        assert [instance.id for instance in array.instances] == [1, 2]
        assert ids_of(markers) == {1, 2}


def test_while_it_segments_only_the_newest_map_waits(ros, start, segmenter):
    node, other = start()
    segmenter.go_on.clear()
    other.send(tiles(0), revision=1)
    ros.spin_until(lambda: segmenter.started.acquire(blocking=False))
    for revision in (2, 3, 4):
        other.send(tiles(0), revision)
        ros.spin_for(0.1)
    segmenter.go_on.set()
    ros.spin_until(lambda: len(other.arrays) == 2)
    assert [array.map_revision for array in other.arrays] == [1, 4]
    ros.spin_until(lambda: node.maps == {"segmented": 2, "skipped": 2})


@pytest.mark.parametrize("failure", ["segmenter", "message"])
def test_a_map_that_fails_costs_itself_only(ros, start, segmenter, failure):
    node, other = start()
    if failure == "segmenter":
        segmenter.failure = RuntimeError("out of memory")
        other.send(tiles(0), revision=1)
    else:
        broken = conversions.mesh_to_msg(tiles(0), conversions.make_header("odom", 0), 1)
        broken.vertices = broken.vertices[:-1]
        other.mesh_publisher.publish(broken)
    ros.spin_until(lambda: node.drops.counts == {"map failed": 1})
    segmenter.failure = None
    other.send(tiles(0), revision=2)
    ros.spin_until(lambda: other.arrays)
    assert other.arrays[0].map_revision == 2
    ros.spin_until(lambda: other.values.get("dropped") == {"map failed": 1})


def test_keyframes_reach_the_segmenter_and_a_broken_one_does_not(ros, start, segmenter):
    node, other = start()
    frame = sample_frames()[0]
    shifted = frame.world_from_camera.copy()
    shifted[0, 3] = 2.0
    for each in (frame, dataclasses.replace(frame, world_from_camera=shifted)):
        other.keyframe_publisher.publish(conversions.keyframe_to_msg(each, "odom", "kitchen"))
    broken = conversions.keyframe_to_msg(frame, "odom", "kitchen")
    broken.color = broken.color[:10]
    other.keyframe_publisher.publish(broken)
    ros.spin_until(lambda: node.drops.counts == {"unusable keyframe": 1})
    other.send(tiles(0), revision=1)
    ros.spin_until(lambda: other.arrays)
    assert segmenter.keyframe_counts == [2]


def test_keyframes_of_another_map_take_the_place_of_those_before(ros, start, segmenter):
    _, other = start()
    shifted = sample_frames()[0].world_from_camera.copy()
    shifted[0, 3] = 2.0
    frame = dataclasses.replace(sample_frames()[0], world_from_camera=shifted)
    for each, map_id in ((sample_frames()[0], "hall"), (frame, "kitchen")):
        other.keyframe_publisher.publish(conversions.keyframe_to_msg(each, "odom", map_id))
    ros.spin_for(0.3)
    other.send(tiles(0), revision=1)
    ros.spin_until(lambda: other.arrays)
    assert segmenter.keyframe_counts == [1]


def test_a_map_is_not_segmented_with_the_keyframes_of_another(ros, start, segmenter):
    node, other = start()
    frame = sample_frames()[0]
    other.keyframe_publisher.publish(conversions.keyframe_to_msg(frame, "odom", "hall"))
    ros.spin_until(lambda: node._keyframes[1].frames)
    for count, map_id in enumerate(("kitchen", "hall"), start=1):
        other.send(tiles(0), count, map_id)
        ros.spin_until(lambda count=count: len(other.arrays) == count)
    assert segmenter.keyframe_counts == [0, 1]


def test_the_age_is_that_of_the_oldest_map_that_waits(ros, start, segmenter):
    node, other = start()

    def age_s():
        return node._figures().get("segmentation", {}).get("age_s")

    ros.spin_for(0.3)
    assert age_s() is None
    segmenter.failure = RuntimeError("cannot")
    for revision in (1, 2):
        other.send(tiles(0), revision)
        ros.spin_until(lambda revision=revision: node.drops.counts == {"map failed": revision})
        ros.spin_for(0.2)
    assert 0.4 < age_s() < 10
    segmenter.failure = None
    other.send(tiles(0), revision=3)
    ros.spin_until(lambda: node.maps["segmented"] and age_s() is None)
    ros.spin_for(0.5)  # nothing new: the result does not age
    segmenter.go_on.clear()
    other.send(tiles(0), revision=4)
    ros.spin_until(age_s)
    assert age_s() < 0.5
    segmenter.go_on.set()


def test_a_network_runs_in_the_node_and_is_told_of(ros, tmp_path, capfd):
    torch = pytest.importorskip("torch")
    from unscene_ros.models.checkpoint import make_network, save_checkpoint
    from unscene_ros.segmentation import SharedConfig
    from unscene_ros.settings import to_dict

    torch.manual_seed(0)
    decoder = {"classes": 1, "queries": 6, "width": 16, "feedforward_width": 20, "rounds": 1}
    network = make_network(
        "InstanceNetwork", {"backbone": {"architecture": "Res16UNet14A"}, "decoder": decoder}
    )
    checkpoint = tmp_path / "tiny.safetensors"
    save_checkpoint(checkpoint, network, to_dict(SharedConfig()))
    doubtful_too = "segmentation.network.min_score:=0.0"
    ros.start(f"checkpoint:={checkpoint}", doubtful_too, "segmentation.network.device:=cpu")
    node, other = ros.add(segmentation_node.SegmentationNode()), ros.add(Other())
    ros.spin_until(lambda: other.mesh_publisher.get_subscription_count())
    colourful = tiles(0, 3)
    colourful.colors[::2] = 200
    for revision, mesh in enumerate((colourful, Mesh.empty()), start=1):
        other.send(mesh, revision)
        ros.spin_until(lambda revision=revision: len(other.arrays) == revision)
    full, empty = (array.instances for array in other.arrays)
    assert len(full) and not len(empty)
    assert "segmentation" in node._latency.summary()
    assert not node.drops.counts
    told = [line for line in capfd.readouterr().err.splitlines() if "segmenter:" in line]
    assert len(told) == 1 and all(word in told[0] for word in (str(checkpoint), "cpu", "INFO"))


def test_an_empty_map_has_no_instances(ros, start):
    _, other = start()
    other.send(Mesh.empty(), revision=1)
    ros.spin_until(lambda: other.arrays and other.markers and other.clouds)
    assert list(other.arrays[0].instances) == []
    assert other.clouds[0].width == 0


def test_who_comes_late_gets_the_newest_results(ros, start):
    _, other = start()
    other.send(tiles(0), revision=1)
    ros.spin_until(lambda: other.clouds)
    late, got = ros.add(Node("late")), []
    for kind, name in ((MarkerArray, "instance_markers"), (PointCloud2, "labelled_cloud")):
        late.create_subscription(kind, f"/segmentation_node/{name}", got.append, qos.MAP)
    ros.spin_until(lambda: len(got) == 2)
