import numpy as np
import pytest
from geometry_msgs.msg import Point, Pose, Vector3
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import PointCloud2
from unscene_ros.msg import Instance, InstanceArray
from visualization_msgs.msg import Marker, MarkerArray

from unscene_ros.nodes import display
from unscene_ros.nodes.conversions import make_header
from unscene_ros.nodes.mesh_chunks import MeshChunk
from unscene_ros.palette import class_colors, instance_colors
from unscene_ros.scene import Mesh

RNG = np.random.default_rng(0)
HEADER = make_header("map", 1_500_000_000)


def instance(instance_id, height=0.5, class_id=-1, class_name="object"):
    return Instance(
        id=instance_id,
        class_id=class_id,
        class_name=class_name,
        score=0.75,
        vertex_count=2,
        pose=Pose(position=Point(x=1.0, y=2.0, z=3.0)),
        size=Vector3(x=2.0, y=1.0, z=height),
    )


def instances(*ids, **arrays):
    return InstanceArray(header=HEADER, instances=[instance(i) for i in ids], **arrays)


def rgb_of(marker):
    return [round(255 * value) for value in (marker.color.r, marker.color.g, marker.color.b)]


def test_each_instance_gets_a_box_and_a_label_with_its_id():
    markers = display.instances_to_markers(instances(3, 8), []).markers[1:]
    assert [(m.ns, m.id, m.type) for m in markers] == [
        ("box", 3, Marker.CUBE),
        ("label", 3, Marker.TEXT_VIEW_FACING),
        ("box", 8, Marker.CUBE),
        ("label", 8, Marker.TEXT_VIEW_FACING),
    ]
    box, label = markers[:2]
    assert box.header == HEADER
    assert (box.scale.x, box.scale.y, box.scale.z) == (2.0, 1.0, 0.5)
    assert rgb_of(box) == instance_colors(np.array([3]))[0].tolist()
    assert 0 < box.color.a < 1
    assert label.text == "#3  2.0×1.0×0.5 m  0.75"
    assert rgb_of(label) == [255, 255, 255] and label.color.a == 1
    assert label.pose.position.z > 3.25


def test_a_label_has_the_name_and_the_colour_of_a_known_class():
    chair = instance(3, class_id=4, class_name="chair")
    message = InstanceArray(header=HEADER, instances=[chair])
    label = display.instances_to_markers(message, []).markers[-1]
    assert label.text == "#3  chair  2.0×1.0×0.5 m  0.75"
    assert rgb_of(label) == class_colors(np.array([4]))[0].tolist()


def test_vanished_instances_are_deleted_by_their_ids():
    markers = display.instances_to_markers(instances(), [4]).markers[1:]
    assert [(m.ns, m.id, m.action) for m in markers] == [
        ("box", 4, Marker.DELETE),
        ("label", 4, Marker.DELETE),
    ]


def test_every_array_deletes_everything_before_anything_is_added():
    markers = display.instances_to_markers(instances(1), []).markers
    assert [m.action for m in markers] == [Marker.DELETEALL, Marker.ADD, Marker.ADD]


def test_a_flat_instance_still_has_a_box_with_volume():
    message = InstanceArray(header=HEADER, instances=[instance(1, height=0.0)])
    box = display.instances_to_markers(message, []).markers[1]
    assert box.ns == "box" and box.scale.z > 0


def test_the_cloud_holds_position_colour_class_id_and_score_of_every_vertex():
    vertices = RNG.random((3, 3)).astype(np.float32)
    colors = np.array([[10, 20, 30], [40, 50, 60], [200, 100, 50]], np.uint8)
    mesh = Mesh(vertices, np.zeros((0, 3), np.int32), colors, vertices)
    message = instances(5, 6, instance_of_vertex=[1, -1, 0])
    cloud = display.labelled_cloud_to_msg(mesh, message)
    cloud = deserialize_message(serialize_message(cloud), PointCloud2)
    assert [f.name for f in cloud.fields] == [
        "x",
        "y",
        "z",
        "rgb",
        "label",
        "instance",
        "confidence",
    ]
    sizes = [4] * 7
    assert [f.offset for f in cloud.fields] == np.cumsum([0, *sizes[:-1]]).tolist()
    assert (cloud.width, cloud.height, cloud.point_step, cloud.row_step) == (3, 1, 28, 84)
    points = np.frombuffer(cloud.data, display.CLOUD_POINT)
    np.testing.assert_array_equal(np.stack([points[a] for a in "xyz"], axis=1), vertices)
    assert points["instance"].tolist() == [6, -1, 5]
    assert points["label"].tolist() == [-1, -1, -1]
    assert points["confidence"].tolist() == [0.75, 0.0, 0.75]
    packed = points["rgb"]  # 0x00RRGGBB
    rgb = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    np.testing.assert_array_equal(rgb[[0, 2]], instance_colors(np.array([6, 5])))
    assert (rgb[1] < colors[1]).all()


def test_no_vertices_make_an_empty_cloud():
    cloud = display.labelled_cloud_to_msg(Mesh.empty(), instances())
    assert (cloud.width, len(cloud.data)) == (0, 0)


def chunk(chunk_id, triangle_count):
    points = RNG.normal(size=(3 * triangle_count, 3)).astype(np.float32)
    return MeshChunk(chunk_id, points, RNG.integers(0, 256, points.shape).astype(np.uint8))


@pytest.mark.parametrize("frame_id", ["m", "ma", "map", "odom", "a/frame"])
@pytest.mark.parametrize("start_over", [False, True])
def test_the_spliced_mesh_markers_are_what_ros_itself_would_write(frame_id, start_over):
    """Names of different lengths and chunks of different sizes try out every alignment."""
    chunks = [chunk(i, count) for i, count in enumerate([1, 2, 0, 5, 1, 1])]
    header = make_header(frame_id, 1_500_000_000)
    written = display.mesh_to_markers(chunks, [77, 78], start_over, header)
    markers = deserialize_message(written, MarkerArray).markers
    actions = [Marker.DELETEALL] * start_over + [Marker.DELETE] * 2 + [Marker.ADD] * len(chunks)
    assert [m.action for m in markers] == actions
    assert [m.id for m in markers[start_over:]] == [77, 78, 0, 1, 2, 3, 4, 5]
    for marker, sent in zip(markers[start_over + 2 :], chunks, strict=True):
        assert marker.type == Marker.TRIANGLE_LIST
        assert marker.header == header
        assert (marker.ns, marker.scale.x, marker.pose.orientation.w) == ("mesh", 1.0, 1.0)
        points = np.array([(p.x, p.y, p.z) for p in marker.points]).reshape(-1, 3)
        np.testing.assert_array_equal(points, sent.points)
        colors = np.array([(c.r, c.g, c.b) for c in marker.colors]).reshape(-1, 3)
        np.testing.assert_allclose(colors, sent.colors / 255, atol=1e-6)
        assert {c.a for c in marker.colors} <= {1.0}
    again = deserialize_message(serialize_message(MarkerArray(markers=markers)), MarkerArray)
    assert again == deserialize_message(written, MarkerArray)


def test_no_changes_make_an_empty_array():
    assert deserialize_message(display.mesh_to_markers([], [], False, HEADER), MarkerArray) == (
        MarkerArray()
    )
