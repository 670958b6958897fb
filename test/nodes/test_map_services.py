"""What an operator may ask of the map: begin anew, pause, save, load, resume."""

import errno
import json
import threading
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from operator_calls import Caller, set_parameter
from std_srvs.srv import SetBool
from test_fusion_node import QUICK, Camera, Receiver, frames
from visualization_msgs.msg import Marker

from unscene_ros import map_file
from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.nodes import background_services, conversions, live_map
from unscene_ros.nodes.fusion_node import FusionNode
from unscene_ros.nodes.map_services import AUTOSAVE_NAME
from unscene_ros.nodes.warm_up import sample_frames
from unscene_ros.scene import InputError

VOXEL_M = 0.05  # as QUICK has it


class Stage:
    """A fusion node with a camera, a receiver and an operator."""

    def __init__(self, ros, *parameters):
        ros.start(*QUICK, *parameters)
        self.ros = ros
        self.node = ros.add(FusionNode())
        self.camera, self.receiver = ros.add(Camera()), ros.add(Receiver())
        self.operator = ros.add(Caller(ros, "fusion_node"))
        ros.spin_until(self.camera.is_connected)
        self._sent = 0

    def fuse(self, count=3):
        """Sends frames until the map is made of them and published."""
        used = self.node.live_map.frames_used
        for frame in frames(count, start=1 + self._sent):
            self.camera.send(frame)
        self._sent += count
        self.ros.spin_until(lambda: self.node.live_map.frames_used == used + count)
        self.settle()

    def settle(self):
        """Waits until the newest map has arrived."""
        self.ros.spin_until(
            lambda: (
                not self.node._map_publisher._is_old
                and self.receiver.meshes
                and self.receiver.meshes[-1].revision == self.node._map_publisher.revision
            )
        )

    @property
    def mesh(self):
        return conversions.mesh_from_msg(self.receiver.meshes[-1])

    @property
    def map_id(self):
        return self.receiver.meshes[-1].map_id


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Short work is answered with its result, however busy this machine is."""
    monkeypatch.setattr(background_services, "ANSWER_WITHIN_S", 10.0)


@pytest.fixture
def impatient(patient, monkeypatch):
    """Long work is answered before its end."""
    monkeypatch.setattr(background_services, "ANSWER_WITHIN_S", 0.05)


@pytest.fixture
def start(ros, tmp_path):
    return lambda *parameters: Stage(ros, f"map_folder:={tmp_path}", *parameters)


def saved_map(path, voxel_size_m=VOXEL_M):
    """A map of the sample wall in a file."""
    volume = TsdfVolume(FusionConfig(voxel_size_m=voxel_size_m))
    for frame in sample_frames():
        volume.integrate(frame)
    volume.save(path)
    return volume


def same_surface(mesh, other):
    """Whether both have the same vertices, in any order."""
    rows = [np.unique(m.vertices.round(4), axis=0) for m in (mesh, other)]
    return rows[0].shape == rows[1].shape and np.allclose(*rows, atol=1e-3)


def test_reset_gives_an_empty_map_of_another_identity_and_takes_the_markers_away(start):
    stage = start()
    stage.fuse()
    stage.receiver.watch_markers()
    stage.ros.spin_until(lambda: stage.receiver.markers)
    shown = {(m.ns, m.id) for m in stage.receiver.markers[0].markers if m.action == Marker.ADD}
    before = stage.map_id
    assert stage.operator.trigger("reset").success
    stage.ros.spin_until(lambda: stage.map_id != before)
    assert len(stage.mesh.vertices) == 0 and len(stage.map_id) == 32
    stage.ros.spin_until(lambda: len(stage.receiver.markers) > 1)
    deleted = {
        (m.ns, m.id) for m in stage.receiver.markers[-1].markers if m.action == Marker.DELETE
    }
    assert shown and deleted == shown
    stage.fuse()
    assert len(stage.mesh.vertices) > 500


def test_while_paused_nothing_is_fused_and_afterwards_it_goes_on(start):
    stage = start()
    stage.fuse()
    assert stage.operator.call(SetBool, "pause", data=True).success
    for frame in frames(2, start=10):
        stage.camera.send(frame)
    stage.ros.spin_until(lambda: stage.node._received == 5)
    stage.ros.spin_until(lambda: "paused" in stage.operator.message)
    assert stage.node.live_map.frames_used == 3
    assert stage.operator.level == DiagnosticStatus.WARN
    assert stage.operator.call(SetBool, "pause", data=False).success
    for frame in frames(2, start=20):
        stage.camera.send(frame)
    stage.ros.spin_until(lambda: stage.node.live_map.frames_used == 5)


@pytest.mark.parametrize(("service", "dropped"), [("reset", {"map replaced": 3}), ("pause", {})])
def test_frames_that_wait_are_not_fused_after_it(start, monkeypatch, service, dropped):
    stage = start()
    stage.fuse()
    go_on, integrate = threading.Event(), stage.node.live_map.integrate

    def held_up(frame):
        assert go_on.wait(10)
        return integrate(frame)

    monkeypatch.setattr(stage.node.live_map, "integrate", held_up)
    for frame in frames(4, start=10):
        stage.camera.send(frame)
    stage.ros.spin_until(lambda: stage.node._worker.pending == 4)
    if service == "reset":
        assert stage.operator.trigger("reset").success
    else:
        assert stage.operator.call(SetBool, "pause", data=True).success
    go_on.set()
    stage.ros.spin_until(lambda: not stage.node._worker.pending)
    assert stage.node.live_map.frames_used == 4  # with the one that was begun
    assert stage.node.drops.counts == dropped


def test_a_saved_map_comes_back_as_it_was_and_goes_on_being_fused(start, tmp_path):
    stage = start()
    stage.fuse()
    mesh, map_id = stage.mesh, stage.map_id
    saved = stage.operator.file("save_map", "kitchen.npz")
    assert saved.success and str(tmp_path / "kitchen.npz") in saved.message
    stage.operator.trigger("reset")
    stage.ros.spin_until(lambda: stage.map_id != map_id)
    loaded = stage.operator.file("load_map", "kitchen.npz")
    assert loaded.success and "3 frames" in loaded.message
    stage.ros.spin_until(lambda: stage.map_id == map_id)
    assert same_surface(stage.mesh, mesh)
    stage.fuse(2)
    assert stage.map_id == map_id
    assert stage.node.live_map._volume.frames == 5


@pytest.mark.parametrize("service", ["save_map", "load_map", "save_timings"])
def test_without_a_folder_services_of_files_refuse_and_say_what_to_set(ros, service):
    stage = Stage(ros)
    answer = stage.operator.file(service, "kitchen.npz")
    assert not answer.success
    assert "map_folder" in answer.message


def test_names_that_are_no_file_of_the_folder_are_refused_and_nothing_is_written(start, tmp_path):
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (tmp_path / "link").symlink_to(outside)
    stage = start()
    names = ("../x.npz", "/tmp/x.npz", "a/../../x.npz", "link/x.npz", "", "x.npy", "x", ".npz/..")
    for name in names:
        answer = stage.operator.file("save_map", name)
        assert not answer.success and "expected" in answer.message, name
    assert sorted(tmp_path.iterdir()) == [tmp_path / "link"]
    assert not list(outside.iterdir())


def test_a_file_that_is_no_such_map_is_refused_and_the_map_is_kept(start, tmp_path):
    saved_map(tmp_path / "whole.npz")
    data = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.npz").write_text("no map")
    saved_map(tmp_path / "coarse.npz", voxel_size_m=0.1)
    stage = start()
    stage.fuse()
    map_id, change = stage.map_id, stage.node.live_map.change
    for name, words in (
        ("missing.npz", "no such file"),
        ("cut.npz", "damaged"),
        ("text.npz", "damaged"),
        ("coarse.npz", "set fusion.voxel_size_m"),
    ):
        answer = stage.operator.file("load_map", name)
        assert not answer.success
        assert words in answer.message and name in answer.message
    assert stage.node.live_map.change == change
    stage.fuse(1)
    assert stage.map_id == map_id


def test_timings_of_every_stage_are_written(start, tmp_path):
    stage = start()
    stage.fuse()
    assert stage.operator.file("save_timings", "timings.json").success
    assert {"fusion", "meshing"} <= json.loads((tmp_path / "timings.json").read_text()).keys()


def test_changed_settings_outlast_a_load_that_takes_long(start, tmp_path, monkeypatch, impatient):
    saved_map(tmp_path / "kitchen.npz")
    go_on, begun, load = threading.Event(), threading.Event(), TsdfVolume.load

    def slow_load(path, config):
        volume = load(path, config)
        begun.set()
        assert go_on.wait(10)
        return volume

    monkeypatch.setattr(live_map.TsdfVolume, "load", slow_load)
    stage = start()
    before = stage.node.live_map.change
    assert "background" in stage.operator.file("load_map", "kitchen.npz").message
    assert begun.wait(10)
    assert set_parameter(stage.node, "fusion.depth_max_m", 2.5).successful
    go_on.set()
    stage.ros.spin_until(lambda: stage.node.live_map.change > before)
    assert stage.node.live_map._volume.config.depth_max_m == 2.5


# Work that takes longer than a caller waits.


@pytest.fixture
def slow_save(monkeypatch, impatient):
    """Writing a map waits for the event; the class and words of what it raises may be set.

    An error made by the test would outlast it and keep the map alive until the process ends, for
    which Open3D makes that end a failure.
    """
    go_on, outcome = threading.Event(), []

    def write(*_):
        assert go_on.wait(10)
        for kind, words in outcome:
            raise kind(words)

    monkeypatch.setattr(map_file.MapSnapshot, "write", write)
    yield go_on, outcome
    go_on.set()


def test_long_work_is_answered_at_once_and_its_end_is_in_the_log(start, slow_save, capfd):
    go_on, _ = slow_save
    stage = start()
    answer = stage.operator.file("save_map", "kitchen.npz")
    assert answer.success and "in the background" in answer.message
    assert stage.operator.call(SetBool, "pause", data=False).success  # others are served meanwhile
    assert stage.node._map_services.background.last == ""
    go_on.set()
    stage.ros.spin_until(lambda: stage.node._map_services.background.last)
    assert "save_map: 0 blocks in" in capfd.readouterr().err


@pytest.mark.parametrize("kind", [InputError, ZeroDivisionError])
def test_long_work_that_fails_is_an_error_on_diagnostics(start, slow_save, kind, capfd):
    go_on, outcome = slow_save
    outcome.append((kind, "no room"))
    stage = start()
    assert "in the background" in stage.operator.file("save_map", "kitchen.npz").message
    go_on.set()
    stage.ros.spin_until(lambda: "save_map failed: no room" in stage.operator.message)
    assert stage.operator.level == DiagnosticStatus.ERROR
    assert "save_map failed: no room" in capfd.readouterr().err
    outcome.clear()
    stage.operator.file("save_map", "kitchen.npz")
    stage.ros.spin_until(lambda: "save_map" not in stage.operator.message)


def test_a_full_disk_is_told_and_the_old_file_stays_whole(start, tmp_path, monkeypatch):
    stage = start()
    stage.fuse()
    assert stage.operator.file("save_map", "kitchen.npz").success
    before = (tmp_path / "kitchen.npz").read_bytes()
    stage.fuse(1)

    def full(file, **_):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(map_file.np, "savez_compressed", full)
    answer = stage.operator.file("save_map", "kitchen.npz")
    assert not answer.success and "No space left on device" in answer.message
    assert (tmp_path / "kitchen.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["kitchen.npz"]


# What is saved without being asked for.


def test_a_changed_map_is_saved_again_and_again_and_a_new_node_resumes_with_it(start, tmp_path):
    stage = start("autosave_s:=0.1", "resume:=true")
    stage.fuse()
    path = tmp_path / AUTOSAVE_NAME
    stage.ros.spin_until(path.exists)
    map_id, mesh = stage.map_id, stage.mesh
    stage.ros.stop()
    again = start("autosave_s:=0.1", "resume:=true")
    again.settle()
    assert again.map_id == map_id
    assert same_surface(again.mesh, mesh)
    again.fuse(2)
    assert again.map_id == map_id
    assert again.node.live_map._volume.frames == 5


def test_a_map_that_does_not_change_is_not_saved_again(start, tmp_path, capfd):
    stage = start("autosave_s:=0.05")
    stage.fuse()
    stage.ros.spin_until((tmp_path / AUTOSAVE_NAME).exists)
    stage.ros.spin_for(0.3)
    saves = stage.node._map_services.background.last
    assert saves.startswith("autosave: ")
    capfd.readouterr()
    stage.ros.spin_for(0.5)
    assert "autosave" not in capfd.readouterr().err


def test_the_last_changes_are_saved_when_the_node_ends(start, tmp_path):
    stage = start("autosave_s:=1000.0")
    stage.fuse()
    assert not list(tmp_path.iterdir())
    stage.ros.stop()
    assert TsdfVolume.load(tmp_path / AUTOSAVE_NAME, FusionConfig(voxel_size_m=VOXEL_M)).frames == 3


def test_an_autosave_that_failed_is_tried_again_although_no_frame_comes(start, tmp_path, capfd):
    folder = tmp_path / "maps"
    stage = start(f"map_folder:={folder}", "autosave_s:=0.1")
    stage.node._map_services.background.folder.rmdir()
    stage.fuse()
    stage.ros.spin_until(lambda: "autosave failed" in stage.node._map_services.background.last)
    folder.mkdir()
    stage.ros.spin_until((folder / AUTOSAVE_NAME).exists)
    assert "autosave failed" in capfd.readouterr().err


def test_on_a_slow_disk_autosaves_do_not_pile_up(start, slow_save):
    go_on, _ = slow_save
    stage = start("autosave_s:=0.05")
    stage.fuse(1)
    for _ in range(3):
        stage.fuse(1)
        stage.ros.spin_for(0.1)
    assert (
        stage.node._map_services.background._thread._work_queue.qsize() == 0
    )  # one is being written
    go_on.set()


@pytest.mark.parametrize("damage", ["cut", "voxel size"])
def test_a_node_begins_without_an_autosave_that_it_cannot_read_and_keeps_it(
    start, tmp_path, damage, capfd
):
    path = tmp_path / AUTOSAVE_NAME
    saved_map(path, voxel_size_m=0.1)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    data = path.read_bytes()
    stage = start("resume:=true", "autosave_s:=0.1")
    assert stage.node.state == "active"
    said = capfd.readouterr().err
    kept = [each for each in tmp_path.iterdir() if each.name != AUTOSAVE_NAME]
    assert [each.read_bytes() for each in kept] == [data]
    assert "ERROR" in said and str(kept[0]) in said
    assert stage.node.live_map.figures()["blocks"] == 0
    stage.fuse()
    stage.ros.spin_until(path.exists)
    assert kept[0].read_bytes() == data


@pytest.mark.parametrize("parameter", ["resume:=true", "autosave_s:=1.0"])
def test_to_keep_a_map_without_a_folder_stops_the_start(ros, parameter):
    ros.start(*QUICK, parameter)
    with pytest.raises(InputError, match="map_folder"):
        FusionNode()


def test_what_was_begun_is_finished_before_the_node_ends(start, tmp_path, monkeypatch, impatient):
    write = map_file.MapSnapshot.write

    def slow_write(*arguments):
        time.sleep(0.3)
        write(*arguments)

    monkeypatch.setattr(map_file.MapSnapshot, "write", slow_write)
    stage = start()
    stage.fuse()
    assert "background" in stage.operator.file("save_map", "kitchen.npz").message
    stage.ros.stop()
    assert (tmp_path / "kitchen.npz").exists()
