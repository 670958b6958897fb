"""Scans to bags, the rendered house with its truth, and own recordings as scans of a library."""

import json
import shutil
import sys

import cv2
import numpy as np
import pytest

from training.artifacts import Identity
from training.scans import fuse, recorded, small_house, to_bag
from training.scans.library import Library
from training.scans.procedural.depth_sensor import DepthSensorConfig
from unscene_ros.recordings import open_recording
from unscene_ros.recordings.bags import Bag
from unscene_ros.recordings.scan_folder import ScanFolder
from unscene_ros.scene import Mesh
from unscene_ros.transforms import matrix_from_pose

K = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])
CHAIR, FLOOR, NOTHING = 7, 3, 0


def write_scan(folder, count=6):
    """A wall at 2 m: chair on the left, floor on the right, nothing on top; the camera slides."""
    for name in ("color", "depth", "instance", "pose"):
        (folder / name).mkdir(parents=True)
    instance = np.full((48, 64), FLOOR, np.uint16)
    instance[:, :32] = CHAIR
    instance[:8] = NOTHING
    color = np.zeros((48, 64, 3), np.uint8)
    color[..., 1] = np.arange(64) * 3
    for index in range(count):
        name = f"{index:06d}"
        cv2.imwrite(str(folder / f"color/{name}.jpg"), color)
        cv2.imwrite(str(folder / f"depth/{name}.png"), np.full((48, 64), 2000, np.uint16))
        cv2.imwrite(str(folder / f"instance/{name}.png"), instance)
        np.savetxt(
            folder / f"pose/{name}.txt", matrix_from_pose((0, 0.01 * index, 0), (0, 0, 0, 1))
        )
    np.savetxt(folder / "intrinsic.txt", K)
    models = {str(CHAIR): {"model": "house_ChairA_01"}, str(FLOOR): {"model": "house_FloorB_01"}}
    (folder / "instances.json").write_text(json.dumps(models))
    return folder


def run(module, *arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


# Scan folder to bag


def test_a_scan_becomes_a_bag_with_the_same_frames(tmp_path, monkeypatch, capsys):
    scan = write_scan(tmp_path / "scan")
    run(to_bag, scan, tmp_path / "bag", "--jpeg-quality", 95, monkeypatch=monkeypatch)
    assert "6 frames read, dropped none" in capsys.readouterr().out
    for ours, original in zip(open_recording(tmp_path / "bag"), open_recording(scan), strict=True):
        assert ours.stamp_ns == original.stamp_ns
        np.testing.assert_array_equal(ours.depth, original.depth)
        np.testing.assert_allclose(ours.world_from_camera, original.world_from_camera, atol=1e-12)
        assert np.abs(ours.color.astype(int) - original.color).max() < 10


def test_every_other_frame_at_another_rate_with_raw_depth(tmp_path, monkeypatch):
    scan = write_scan(tmp_path / "scan")
    options = ("--every", 2, "--rate", 10, "--depth-encoding", "16UC1")
    run(to_bag, scan, tmp_path / "bag", *options, monkeypatch=monkeypatch)
    frames = list(open_recording(tmp_path / "bag"))
    assert [frame.stamp_ns for frame in frames] == [100_000_000, 200_000_000, 300_000_000]
    heights = [frame.world_from_camera[1, 3] for frame in frames]
    np.testing.assert_allclose(heights, [0, 0.02, 0.04], atol=1e-12)
    assert Bag(tmp_path / "bag").type_of["/camera/depth/image_raw"] == "sensor_msgs/msg/Image"


def test_the_bag_has_the_topics_and_frames_of_a_robot(tmp_path, monkeypatch):
    run(to_bag, write_scan(tmp_path / "scan"), tmp_path / "bag", monkeypatch=monkeypatch)
    bag = Bag(tmp_path / "bag")
    assert bag.type_of == {
        "/camera/color/camera_info": "sensor_msgs/msg/CameraInfo",
        "/camera/color/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
        "/camera/depth/camera_info": "sensor_msgs/msg/CameraInfo",
        "/camera/depth/image_raw/compressedDepth": "sensor_msgs/msg/CompressedImage",
        "/tf": "tf2_msgs/msg/TFMessage",
        "/tf_static": "tf2_msgs/msg/TFMessage",
    }
    (mounting,) = bag.first("/tf_static").transforms
    assert (mounting.header.frame_id, mounting.child_frame_id) == (
        "camera_link",
        "camera_color_optical_frame",
    )
    turn = mounting.transform.rotation
    np.testing.assert_allclose([turn.x, turn.y, turn.z, turn.w], [0.5, -0.5, 0.5, -0.5])
    color = bag.first("/camera/color/image_raw/compressed")
    assert color.format == "rgb8; jpeg compressed bgr8"


def test_an_optical_frame_looks_along_the_link():
    link_from_optical = to_bag.LINK_FROM_OPTICAL[:3, :3]
    np.testing.assert_allclose(link_from_optical @ (0, 0, 1), (1, 0, 0), atol=1e-12)  # forward
    np.testing.assert_allclose(link_from_optical @ (1, 0, 0), (0, -1, 0), atol=1e-12)  # right
    np.testing.assert_allclose(link_from_optical @ (0, 1, 0), (0, 0, -1), atol=1e-12)  # down


@pytest.mark.parametrize("axis", ["x", "-x", "y", "-y", "z", "-z"])
def test_any_axis_can_be_turned_up(axis):
    up = np.zeros(4)
    up["xyz".index(axis[-1])] = -1 if "-" in axis else 1
    turn = to_bag.map_from_world_with_up(axis)
    np.testing.assert_array_equal(turn @ up, (0, 0, 1, 0))
    assert np.linalg.det(turn) == pytest.approx(1)


def test_a_bag_in_the_way_is_kept(tmp_path, monkeypatch, capsys):
    (tmp_path / "bag").mkdir()
    with pytest.raises(SystemExit) as stopped:
        run(to_bag, write_scan(tmp_path / "scan"), tmp_path / "bag", monkeypatch=monkeypatch)
    assert stopped.value.code == 2
    assert "exists already" in capsys.readouterr().err


# The rendered house


def test_the_truth_is_the_visible_surface_with_its_labels(tmp_path):
    folder = write_scan(tmp_path / "house")
    points, labels = small_house.visible_surface(ScanFolder(folder), folder)
    assert points.dtype == np.float32
    assert labels.dtype == np.int32
    assert set(labels.tolist()) == {CHAIR, small_house.STUFF, small_house.VOID}
    np.testing.assert_allclose(points[:, 2], 2.0, atol=1e-6)
    # The boundary lies between columns 31 and 32: x = 2 * (31.5 - 31.5) / 60 = 0.
    objects = labels != small_house.VOID
    np.testing.assert_array_equal(labels[objects] == CHAIR, points[objects, 0] < 0)
    cells = np.floor(points / small_house.SPACING_M).astype(int)
    assert len(np.unique(cells, axis=0)) == len(points)


def test_the_truth_ends_at_the_range_of_the_sensor(tmp_path):
    folder = write_scan(tmp_path / "house")
    far = np.full((48, 64), 6000, np.uint16)
    far[:, 40:] = 4700
    for file in (folder / "depth").iterdir():
        cv2.imwrite(str(file), far)
    scan = ScanFolder(folder)
    points, _ = small_house.visible_surface(scan, folder)
    np.testing.assert_allclose(np.unique(points[:, 2].round(3)), [4.7])
    points, labels = small_house.visible_surface(scan, folder, DepthSensorConfig(max_range_m=4.5))
    assert len(points) == len(labels) == 0


def test_votes_agree_with_counting_cell_by_cell():
    rng = np.random.default_rng(0)
    points, labels = rng.uniform(-0.1, 0.1, (4000, 3)), rng.integers(-2, 4, 4000)
    votes = small_house.SurfaceVotes()
    for part in np.array_split(np.arange(4000), 7):
        votes.add(points[part], labels[part])
    kept, winners = votes.points()
    cells, kept_cells = np.floor(points / 0.02), np.floor(kept / 0.02)
    assert len(kept) == len(np.unique(cells, axis=0))
    for point, cell, winner in zip(kept, kept_cells, winners, strict=True):
        inside = (cells == cell).all(axis=1)
        values, counts = np.unique(labels[inside], return_counts=True)
        assert winner == values[np.argmax(counts)]
        agreeing = points[inside & (labels == winner)]
        np.testing.assert_allclose(point, agreeing.mean(axis=0), atol=1e-6)


def test_votes_do_not_depend_on_the_order():
    rng = np.random.default_rng(1)
    points, labels = rng.uniform(-0.1, 0.1, (500, 3)), rng.integers(-2, 4, 500)
    results = []
    for order in (np.arange(500), rng.permutation(500)):
        votes = small_house.SurfaceVotes()
        votes.add(points[order], labels[order])
        results.append(votes.points())
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-6)
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_no_votes_give_no_points():
    points, labels = small_house.SurfaceVotes().points()
    assert points.shape == (0, 3)
    assert labels.shape == (0,)


def test_the_house_becomes_a_bag_with_its_truth(tmp_path, monkeypatch):
    folder = write_scan(tmp_path / "house")
    run(small_house, folder, "-o", tmp_path / "out", monkeypatch=monkeypatch)
    frames = list(open_recording(tmp_path / "out" / "house"))
    assert len(frames) == 6
    assert all((frame.depth == 2).all() for frame in frames)
    truth = np.load(tmp_path / "out" / "gt.npz")
    points, labels = small_house.visible_surface(ScanFolder(folder), folder)
    np.testing.assert_array_equal(truth["points"], points)
    np.testing.assert_array_equal(truth["instance"], labels)


def test_sensor_noise_changes_the_bag_and_not_the_truth(tmp_path, monkeypatch):
    folder = write_scan(tmp_path / "house")
    for name in ("clean", "noisy", "noisy_again"):
        noise = [] if name == "clean" else ["--noise"]
        run(small_house, folder, "-o", tmp_path / name, *noise, monkeypatch=monkeypatch)
    clean, noisy, again = (
        np.stack([frame.depth for frame in open_recording(tmp_path / name / "house")])
        for name in ("clean", "noisy", "noisy_again")
    )
    np.testing.assert_array_equal(noisy, again)
    seen = noisy > 0
    assert 0.5 < seen.mean() < 1
    assert 0.001 < np.abs(noisy[seen] - clean[seen]).mean() < 0.02
    truths = [np.load(tmp_path / name / "gt.npz")["points"] for name in ("clean", "noisy")]
    np.testing.assert_array_equal(*truths)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("instances.json", None, "instances.json: expected"),
        ("instances.json", "[1, 2]", "instances.json: expected"),
        ("instances.json", '{"7": {}}', "instances.json: expected"),
        ("instance/000003.png", None, "000003.png: expected a picture of the size of its depth"),
    ],
)
def test_wrong_files_of_the_house_are_named(tmp_path, monkeypatch, capsys, file, content, words):
    folder = write_scan(tmp_path / "house")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(SystemExit) as stopped:
        run(small_house, folder, "-o", tmp_path / "out", monkeypatch=monkeypatch)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


# Own recordings


def import_recordings(*recordings, into, options=()):
    return recorded.main(
        [*map(str, recordings), "-o", str(into), "--set", "frame_step=2", *options]
    )


def test_an_own_recording_is_a_scan_without_labels(tmp_path):
    to_bag.write_bag(tmp_path / "kitchen", open_recording(write_scan(tmp_path / "scan")))
    assert import_recordings(tmp_path / "kitchen", into=tmp_path, options=("--split", "train")) == 0
    library = Library(tmp_path)
    assert library.names("train") == ["kitchen"]
    scan = library.scan("kitchen")
    np.testing.assert_allclose(scan.mesh().vertices[:, 2], 2.0, atol=0.03)
    original = list(open_recording(tmp_path / "kitchen"))
    frames = list(scan.frames())
    assert [frame.stamp_ns for frame in frames] == [frame.stamp_ns for frame in original[::2]]
    np.testing.assert_allclose(frames[1].depth, original[2].depth, atol=5e-4)
    assert not (scan.folder / "gt.npz").exists()


def test_a_second_import_makes_only_what_is_missing_or_was_made_otherwise(tmp_path):
    write_scan(tmp_path / "kitchen")
    assert import_recordings(tmp_path / "kitchen", into=tmp_path) == 0
    mesh = tmp_path / "scans" / "kitchen" / "mesh.ply"
    written = mesh.stat().st_mtime_ns
    assert import_recordings(tmp_path / "kitchen", into=tmp_path) == 0
    assert mesh.stat().st_mtime_ns == written
    coarser = ("--set", "fusion.voxel_size_m=0.1")
    assert import_recordings(tmp_path / "kitchen", into=tmp_path, options=coarser) == 0
    assert mesh.stat().st_mtime_ns > written


def test_what_is_no_recording_does_not_stop_the_others(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_scan(tmp_path / "kitchen")
    assert import_recordings(tmp_path / "empty", tmp_path / "kitchen", into=tmp_path) == 1
    assert Library(tmp_path).scan("kitchen").about()["step"] == "recorded"
    assert "expected a ROS 2 bag" in capsys.readouterr().err


def test_an_import_that_stops_in_the_middle_is_not_taken_for_whole(tmp_path, monkeypatch, capsys):
    write_scan(tmp_path / "kitchen")
    assert import_recordings(tmp_path / "kitchen", into=tmp_path) == 0

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recorded, "write_frames", stop)
        every = ("--set", "frame_step=1")
        assert import_recordings(tmp_path / "kitchen", into=tmp_path, options=every) == 130
    assert not Library(tmp_path).scan("kitchen").about()
    assert fuse.main([str(tmp_path)]) == 1  # what frames there are may be a part of them
    assert "its import was interrupted: import it again" in capsys.readouterr().err
    assert import_recordings(tmp_path / "kitchen", into=tmp_path) == 0
    assert Library(tmp_path).scan("kitchen").about()["step"] == "recorded"


def test_a_recording_without_a_surface_leaves_no_scan(tmp_path, capsys):
    write_scan(tmp_path / "kitchen")
    far = ("--set", "fusion.depth_max_m=0.5")  # everything it shows is farther
    assert import_recordings(tmp_path / "kitchen", into=tmp_path, options=far) == 1
    assert "shows a surface within range" in capsys.readouterr().err
    assert Library(tmp_path).names() == []


def test_two_recordings_of_one_name_are_refused(tmp_path, capsys):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        write_scan(tmp_path / place / "kitchen")
    both = (tmp_path / "a" / "kitchen", tmp_path / "b" / "kitchen")
    assert import_recordings(*both, into=tmp_path) == 2
    assert "got kitchen twice" in capsys.readouterr().err


@pytest.mark.parametrize("made_by", ["recorded", "fuse", "its user"])
def test_a_recording_does_not_replace_a_scan_that_came_from_elsewhere(tmp_path, capsys, made_by):
    other = write_scan(tmp_path / "b" / "kitchen", count=4)
    if made_by == "recorded":
        write_scan(tmp_path / "a" / "kitchen")
        assert import_recordings(tmp_path / "a" / "kitchen", into=tmp_path) == 0
    else:
        write_scan(tmp_path / "scans" / "kitchen")
    if made_by == "fuse":
        assert fuse.main([str(tmp_path)]) == 0
    scan = Library(tmp_path).scan("kitchen")
    before = {path: path.stat().st_mtime_ns for path in scan.folder.rglob("*")}
    assert import_recordings(other, into=tmp_path, options=("--split", "train")) == 1
    error = capsys.readouterr().err
    holds = {
        "recorded": f"it is of {tmp_path / 'a' / 'kitchen'}",
        "fuse": "the step fuse made it",
        "its user": "it is of something else",
    }
    assert f"scan kitchen is there already, and {holds[made_by]}: " in error
    assert f"give the recording {other} another name, or delete {scan.folder}" in error
    assert {path: path.stat().st_mtime_ns for path in scan.folder.rglob("*")} == before
    assert not (tmp_path / "splits").exists()


def test_a_recording_that_was_made_anew_or_moved_is_the_same_scan(tmp_path):
    place = tmp_path / "a" / "kitchen"
    write_scan(place, count=4)
    assert import_recordings(place, into=tmp_path) == 0
    shutil.rmtree(place)
    write_scan(place, count=6)
    assert import_recordings(place, into=tmp_path) == 0
    scan = Library(tmp_path).scan("kitchen")
    assert len(list(scan.frames())) == 3
    moved = place.rename(tmp_path / "kitchen")
    options = ("--set", "frame_step=1")
    assert import_recordings(moved, into=tmp_path, options=options) == 0
    assert len(list(scan.frames())) == 6


def test_recordings_of_a_later_day_join_the_split(tmp_path):
    for name in ("kitchen", "hall"):
        write_scan(tmp_path / name)
        assert import_recordings(tmp_path / name, into=tmp_path, options=("--split", "all")) == 0
    assert Library(tmp_path).names("all") == ["kitchen", "hall"]


def test_surface_that_does_not_fit_into_the_map_is_told(tmp_path, capsys, caplog):
    folder = write_scan(tmp_path / "long")
    np.savetxt(folder / "pose/000005.txt", matrix_from_pose((0, 50, 0), (0, 0, 0, 1)))
    assert import_recordings(folder, into=tmp_path) == 1
    assert "incomplete: long: " in (error := capsys.readouterr().err)
    assert "fusion.max_radius_m (30)" in error and "fusion.max_megabytes (1024)" in error
    wider = ("--set", "fusion.max_radius_m=100")
    assert import_recordings(folder, into=tmp_path, options=wider) == 0

    shutil.copytree(folder, tmp_path / "scans" / "own")
    assert fuse.main([str(tmp_path)]) == 0
    assert "scan own: " in caplog.text and "fusion.max_radius_m (30)" in caplog.text


def test_a_mesh_that_no_step_made_is_not_replaced(tmp_path, capsys):
    scan = Library(write_scan(tmp_path / "scans" / "kitchen").parents[1]).scan("kitchen")
    scan.mesh_path.write_bytes(b"somebody's own")
    assert fuse.main([str(tmp_path)]) == 1
    assert "its mesh.ply was not made here: delete it to fuse" in capsys.readouterr().err
    assert scan.mesh_path.read_bytes() == b"somebody's own"
    scan.mesh_path.unlink()
    assert fuse.main([str(tmp_path)]) == 0
    (scan.folder / "scan.json").write_text("{")  # it was made here, whatever has become of this
    assert fuse.main([str(tmp_path)]) == 0


def test_an_interrupted_fusion_leaves_no_mesh_that_passes_for_the_users_own(tmp_path, monkeypatch):
    scan = Library(write_scan(tmp_path / "scans" / "kitchen").parents[1]).scan("kitchen")
    assert fuse.main([str(tmp_path)]) == 0

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.scans.library.write_mesh", stop)
        assert fuse.main([str(tmp_path), "--set", "voxel_size_m=0.05"]) == 130
    assert fuse.main([str(tmp_path)]) == 0 and scan.about()


def test_what_an_older_fusion_made_is_made_anew(tmp_path):
    scan = Library(write_scan(tmp_path / "scans" / "kitchen").parents[1]).scan("kitchen")
    assert fuse.main([str(tmp_path)]) == 0
    about = scan.about()
    del about["version"]
    (scan.folder / "scan.json").write_text(json.dumps(about))
    assert fuse.main([str(tmp_path)]) == 0
    assert scan.about()["version"] == fuse.VERSION


def test_a_scan_without_frames_is_fused_from_nothing_and_keeps_its_mesh(tmp_path, capsys):
    scan = Library(write_scan(tmp_path / "scans" / "kitchen").parents[1]).scan("kitchen")
    shutil.rmtree(scan.folder / "depth")
    assert fuse.main([str(tmp_path)]) == 1
    assert "kitchen: scan kitchen: expected pictures" in capsys.readouterr().err
    scan.write_mesh(Mesh.empty(), Identity("by hand", {}))
    assert fuse.main([str(tmp_path)]) == 0


def test_frames_are_fused_to_the_mesh_of_a_scan_once(tmp_path):
    write_scan(tmp_path / "scans" / "kitchen")
    assert fuse.main([str(tmp_path), "--set", "voxel_size_m=0.05"]) == 0
    scan = Library(tmp_path).scan("kitchen")
    assert scan.about()["step"] == "fuse"
    np.testing.assert_allclose(scan.mesh().vertices[:, 2], 2.0, atol=0.03)
    written = scan.mesh_path.stat().st_mtime_ns
    assert fuse.main([str(tmp_path), "--set", "voxel_size_m=0.05"]) == 0
    assert scan.mesh_path.stat().st_mtime_ns == written
    (scan.folder / "pose" / "000000.txt").unlink()
    assert fuse.main([str(tmp_path), "--set", "voxel_size_m=0.05"]) == 0
    assert scan.mesh_path.stat().st_mtime_ns > written
