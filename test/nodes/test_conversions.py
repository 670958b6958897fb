import array

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage

from unscene_ros import image_codecs
from unscene_ros.boxes import upright_box
from unscene_ros.nodes import conversions
from unscene_ros.nodes.warm_up import sample_frames
from unscene_ros.registration import Calibration
from unscene_ros.scene import InputError, Instances, Mesh, Segments

RNG = np.random.default_rng(0)
STAMP_NS = 1_234_567_890_123_456_789
COLOR = RNG.integers(0, 256, (6, 8, 3), np.uint8)
DEPTH = RNG.integers(1, 9000, (6, 8)).astype(np.float32) / np.float32(1000)
DEPTH[0, :3] = 0


def sent(message):
    """The message as a subscriber gets it."""
    return deserialize_message(serialize_message(message), type(message))


def image_msg(encoding, data, width, height, step=None, big_endian=0):
    packed = array.array("B")
    packed.frombytes(data)
    return Image(
        header=conversions.make_header("camera", STAMP_NS),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=big_endian,
        step=len(data) // height if step is None else step,
        data=packed,
    )


def compressed_msg(image_format, data):
    packed = array.array("B")
    packed.frombytes(data)
    header = conversions.make_header("camera", STAMP_NS)
    return CompressedImage(header=header, format=image_format, data=packed)


def box_mesh():
    """A cube's corners as a mesh of twelve triangles, far from the origin."""
    vertices = np.array([(x, y, z) for x in (0, 2) for y in (0, 1) for z in (0, 1)], np.float32)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))], np.int32)
    normals = np.tile(np.float32([0, 0, 1]), (8, 1))
    return Mesh(vertices + 10, faces, RNG.integers(0, 256, (8, 3), np.uint8), normals)


def assert_same_mesh(one, other):
    for name in ("vertices", "faces", "colors", "normals"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_stamps_keep_their_nanoseconds():
    header = conversions.make_header("map", STAMP_NS)
    assert (header.stamp.sec, header.stamp.nanosec) == (1_234_567_890, 123_456_789)
    assert conversions.stamp_ns_of(header) == STAMP_NS
    assert conversions.make_time(STAMP_NS) == header.stamp


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_color_comes_back_from_every_raw_encoding(encoding):
    message = image_msg(encoding, image_codecs.encode_color(encoding, COLOR), 8, 6)
    np.testing.assert_array_equal(conversions.color_from_msg(sent(message)), COLOR)


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_comes_back_in_metres_from_every_raw_encoding(encoding):
    message = image_msg(encoding, image_codecs.encode_depth(encoding, DEPTH), 8, 6)
    np.testing.assert_allclose(conversions.depth_from_msg(sent(message)), DEPTH, atol=1e-6)


def test_compressed_pictures_come_back():
    png = compressed_msg("rgb8; png compressed bgr8", image_codecs.encode_png(COLOR))
    np.testing.assert_array_equal(conversions.color_from_msg(sent(png)), COLOR)
    data = image_codecs.encode_compressed_depth(DEPTH)
    depth = compressed_msg("16UC1; compressedDepth png", data)
    np.testing.assert_allclose(conversions.depth_from_msg(sent(depth)), DEPTH, atol=1e-6)


def test_cv_bridge_and_the_numpy_path_decode_alike(monkeypatch):
    if conversions.CvBridge is None:
        pytest.skip("cv_bridge is not installed")
    messages = [
        (conversions.color_from_msg, encoding, image_codecs.encode_color(encoding, COLOR))
        for encoding in image_codecs.COLOR_ENCODINGS
    ] + [
        (conversions.depth_from_msg, encoding, image_codecs.encode_depth(encoding, DEPTH))
        for encoding in image_codecs.DEPTH_ENCODINGS
    ]
    for decode, encoding, data in messages:
        message = image_msg(encoding, data, 8, 6)
        with_cv_bridge = decode(message)
        monkeypatch.setattr(conversions, "CvBridge", None)
        np.testing.assert_array_equal(decode(message), with_cv_bridge)
        monkeypatch.undo()


@pytest.mark.parametrize(
    "message",
    [
        image_msg("rgb8", COLOR.tobytes(), 8, 6, step=7),
        image_msg("rgb8", COLOR.tobytes()[:-1], 8, 6, step=24),
        image_msg("rgb8", b"", 0, 6, step=0),
        image_msg("yuv422", COLOR.tobytes(), 8, 6),
        compressed_msg("jpeg", b"not a picture"),
        compressed_msg("", b""),
    ],
    ids=["step", "too short", "no width", "encoding", "no jpeg", "nothing"],
)
@pytest.mark.parametrize("decode", [conversions.color_from_msg, conversions.depth_from_msg])
def test_a_picture_that_lies_about_itself_is_refused(message, decode):
    with pytest.raises(InputError):
        decode(message)


def test_a_picture_is_stamped_now_and_decoded_later():
    calibration = Calibration.pinhole(sample_frames()[0].camera)
    message = image_msg("yuv422", COLOR.tobytes(), 8, 6)
    picture = conversions.picture_from_msg("rgb", message, calibration)
    assert (picture.stamp_ns, picture.frame_id) == (STAMP_NS, "camera")
    with pytest.raises(InputError, match="yuv422"):
        picture.decode()


def test_a_calibration_comes_from_camera_info():
    info = CameraInfo(width=8, height=6, distortion_model="plumb_bob")
    info.k = [5.0, 0.0, 4.0, 0.0, 5.5, 3.0, 0.0, 0.0, 1.0]
    camera = Calibration.from_camera_info(sent(info)).camera
    np.testing.assert_array_equal(camera.intrinsics, [[5, 0, 4], [0, 5.5, 3], [0, 0, 1]])
    assert (camera.width, camera.height) == (8, 6)


def test_a_transform_becomes_parent_from_child():
    transform = TransformStamped(child_frame_id="camera")
    transform.header = conversions.make_header("map", STAMP_NS)
    transform.transform.translation.x = 1.0
    transform.transform.rotation.z = transform.transform.rotation.w = np.sqrt(0.5)
    [(parent, child, stamp_ns, matrix)] = conversions.transforms_from_msg(
        sent(TFMessage(transforms=[transform]))
    )
    assert (parent, child, stamp_ns) == ("map", "camera", STAMP_NS)
    np.testing.assert_allclose(matrix @ [1, 0, 0, 1], [1, 1, 0, 1], atol=1e-12)


@pytest.mark.parametrize("mesh", [box_mesh(), Mesh.empty()], ids=["box", "empty"])
def test_a_mesh_comes_back(mesh):
    header = conversions.make_header("map", STAMP_NS)
    message = sent(conversions.mesh_to_msg(mesh, header, 3, map_id="4f3a"))
    assert (message.header.frame_id, message.map_id, message.revision) == ("map", "4f3a", 3)
    assert_same_mesh(conversions.mesh_from_msg(message), mesh)


@pytest.mark.parametrize("field", ["vertices", "normals", "colors", "faces"])
def test_a_mesh_with_an_array_of_a_wrong_length_is_refused(field):
    message = conversions.mesh_to_msg(box_mesh(), conversions.make_header("map", 0), 1)
    setattr(message, field, getattr(message, field)[:-1])
    with pytest.raises(InputError, match=field):
        conversions.mesh_from_msg(message)


def test_a_mesh_whose_faces_point_outside_is_refused():
    message = conversions.mesh_to_msg(box_mesh(), conversions.make_header("map", 0), 1)
    message.faces[0] = 2**32 - 1
    with pytest.raises(InputError, match="faces"):
        conversions.mesh_from_msg(message)


def test_a_keyframe_comes_back_with_jpeg_colour_and_exact_depth():
    frame = sample_frames()[3]
    message = sent(conversions.keyframe_to_msg(frame, "map"))
    back = conversions.keyframe_from_msg(message)
    assert back.stamp_ns == frame.stamp_ns
    assert message.header.frame_id == "map"
    np.testing.assert_array_equal(back.depth, frame.depth)
    np.testing.assert_array_equal(back.world_from_camera, frame.world_from_camera)
    np.testing.assert_array_equal(back.camera.intrinsics, frame.camera.intrinsics)
    assert np.abs(back.color.astype(int) - frame.color).mean() < 3
    assert back.color[..., 0].mean() > back.color[..., 2].mean() + 5  # red stays red


def test_a_keyframe_with_a_picture_of_another_size_is_refused():
    message = conversions.keyframe_to_msg(sample_frames()[0], "map")
    message.width += 1
    with pytest.raises(InputError, match=r"Frame\.color"):
        conversions.keyframe_from_msg(message)


def box_instances():
    """The cube's lower four corners are instance 0, one of the upper is instance 1."""
    mesh = box_mesh()
    low = mesh.vertices[:, 2] < 10.5
    of_vertex = np.where(low, 0, 1).astype(np.int32)
    of_vertex[np.flatnonzero(~low)[0]] = 2
    segments = Segments(of_vertex, np.array([[0, 1], [1, 2]], np.int32), 3)
    masks = np.array([[True, False, False], [False, False, True]])
    scores, class_ids = np.array([0.5, 0.75], np.float32), np.array([-1, 4], np.int32)
    return mesh, segments, Instances(masks, scores, class_ids), np.array([7, 9], np.int32)


def instances_msg(*parts, **more):
    """`parts` are those of box_instances."""
    header = conversions.make_header("map", STAMP_NS)
    map_message = conversions.mesh_to_msg(parts[0], header, 5, map_id="4f3a")
    return sent(conversions.instances_to_msg(map_message, *parts, **more))


def test_instances_come_back_with_their_ids():
    mesh, segments, instances, track_ids = box_instances()
    message = instances_msg(mesh, segments, instances, track_ids)
    assert (message.header.frame_id, message.map_id, message.map_revision) == ("map", "4f3a", 5)
    back_segments, back, back_ids = conversions.instances_from_msg(message)
    np.testing.assert_array_equal(back_segments.of_vertex, segments.of_vertex)
    np.testing.assert_array_equal(back.masks, instances.masks)
    np.testing.assert_array_equal(back.scores, instances.scores)
    np.testing.assert_array_equal(back.class_ids, instances.class_ids)
    np.testing.assert_array_equal(back_ids, track_ids)


def test_an_instance_says_the_box_around_its_vertices():
    mesh, segments, instances, track_ids = box_instances()
    low, single = instances_msg(mesh, segments, instances, track_ids).instances
    box = upright_box(mesh.vertices[mesh.vertices[:, 2] < 10.5])
    assert (low.id, low.class_id, low.score, low.vertex_count) == (7, -1, 0.5, 4)
    center, size = low.pose.position, low.size
    np.testing.assert_allclose((center.x, center.y, center.z), box.center)
    np.testing.assert_allclose((size.x, size.y, size.z), (2, 1, 0), atol=1e-6)
    turn = low.pose.orientation
    assert 2 * np.arctan2(turn.z, turn.w) == pytest.approx(box.yaw_rad)
    assert (single.id, single.vertex_count) == (9, 1)


def test_an_instance_says_when_it_was_seen_and_what_it_is():
    unknown, nameless = instances_msg(*box_instances()).instances
    assert unknown.last_seen == nameless.last_seen == conversions.make_time(STAMP_NS)
    assert (unknown.class_name, nameless.class_name) == ("object", "class 4")
    names = ["wall", "floor", "chair", "table", "door"]
    unknown, named = instances_msg(*box_instances(), class_names=names).instances
    assert (unknown.class_name, named.class_name) == ("object", "door")


def test_instances_that_are_gone_are_told():
    assert instances_msg(*box_instances(), gone_ids=[3, 12]).gone_ids.tolist() == [3, 12]


def test_no_instances_in_an_empty_map_come_back():
    segments = Segments(np.zeros(0, np.int32), np.zeros((0, 2), np.int32), 0)
    message = instances_msg(Mesh.empty(), segments, Instances.empty(0), np.zeros(0, np.int32))
    back_segments, back, track_ids = conversions.instances_from_msg(message)
    assert back_segments.count == len(back.masks) == len(track_ids) == 0


@pytest.mark.parametrize("field", ["segment_of_vertex", "instance_of_vertex"])
def test_an_instance_array_that_does_not_fit_together_is_refused(field):
    message = instances_msg(*box_instances())
    broken = getattr(message, field)
    setattr(message, field, broken[:-1])
    with pytest.raises(InputError):
        conversions.instances_from_msg(message)


def test_an_instance_array_with_an_index_outside_is_refused():
    message = instances_msg(*box_instances())
    message.instance_of_vertex[0] = 2
    with pytest.raises(InputError, match="below 2"):
        conversions.instances_from_msg(message)
