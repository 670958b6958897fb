"""The live system as a user starts it: processes that talk over DDS, and what came of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from small_report import empty_prediction
from small_scan import small_frames, small_truth

from training.scans.to_bag import BagFormat, BagWriter, write_bag
from unscene_ros import DEFAULT_SEGMENTER
from unscene_ros.nodes.demo import __main__ as demo
from unscene_ros.nodes.demo.live_run import LiveResult, LiveRun
from unscene_ros.nodes.demo.node_process import LiveRunFailed
from unscene_ros.nodes.demo.played_bag import PlayedBag
from unscene_ros.scene import InputError
from unscene_ros.storage import read_mesh

FRAMES = 15


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """Two boxes on a floor, three seconds, compressed as on a robot."""
    path = tmp_path_factory.mktemp("bags") / "two_boxes"
    write_bag(path, small_frames(FRAMES))
    return path


def children_of(pid):
    return [p for p in psutil.Process(pid).children(recursive=True) if p.is_running()]


def test_a_recording_becomes_markers_and_a_report(bag, tmp_path, capsys):
    truth = small_truth(tmp_path)
    assert demo.main([str(bag), "-o", str(tmp_path), "--ground-truth", str(truth)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["frames"] == {"read": FRAMES, "used": FRAMES, "dropped": {}}
    assert metrics["instances"] >= 2
    received = metrics["received"]
    for topic in ("instance_array", "instance_markers", "labelled_cloud"):
        assert received["topics"][f"/segmentation_node/{topic}"]["messages"] >= 1
    for topic in ("mesh", "mesh_markers", "keyframes"):
        assert received["topics"][f"/fusion_node/{topic}"]["messages"] >= 1
    assert received["first_instances_s"] > 0
    assert received["drop_share"] == 0
    assert received["stamp_to_marker_ms"]["p95"] > 0
    stages = {"fusion", "meshing", "oversegmentation", "segmentation", "tracking"}
    assert stages <= set(metrics["latency_ms"])
    mesh = read_mesh(tmp_path / "mesh.ply")
    with np.load(tmp_path / "instances.npz") as instances:
        assert len(instances["instance_of_vertex"]) == len(mesh.vertices) > 1000
        assert len(instances["masks"]) == len(set(instances["track_ids"])) == metrics["instances"]
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert f"{FRAMES} of {FRAMES} frames" in capsys.readouterr().out
    check_that_it_stands_beside_a_replay(metrics, tmp_path)
    assert not children_of(os.getpid())


def check_that_it_stands_beside_a_replay(metrics, output):
    offline = json.loads((output / "offline" / "metrics.json").read_text())
    assert metrics["offline"]["quality_over_time"] == offline["quality_over_time"]
    live, replayed = metrics["quality_over_time"], offline["quality_over_time"]
    assert live["summary"]["objects"] == replayed["summary"]["objects"] == 2
    received = metrics["received"]["topics"]["/segmentation_node/instance_array"]["messages"]
    assert live["summary"]["maps"] == received == len(live["curve"]["time_s"])
    assert np.diff(live["curve"]["time_s"]).min(initial=1) > 0
    for seen in live["objects"]:  # a live result comes after its picture
        assert seen["found_after_s"] is None or seen["found_after_s"] > 0
    beside = metrics["side_by_side"]
    assert beside["drop_share"] == {"live": 0, "offline": 0, "gap": 0}
    assert beside["ap50"]["live"] == metrics["evaluation"]["ap50"]
    assert beside["ap50"]["gap"] == beside["ap50"]["live"] - beside["ap50"]["offline"]
    assert not list(output.glob(".maps-*"))


def test_the_live_run_is_written_when_the_replay_fails(bag, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise InputError("replay: no memory left")

    result = LiveResult(
        prediction=empty_prediction(),
        keyframes=[],
        frames={"read": 3, "used": 2, "dropped": {"too slow": 1}},
        latency_ms={},
        memory_mb={"peak": 1.0},
        tracks=0,
        received={"first_instances_s": None, "topics": {}},
    )
    monkeypatch.setattr(demo, "_play", lambda *_: result)
    monkeypatch.setattr(demo, "judge", lambda *_: {"evaluation": None})
    monkeypatch.setattr(demo, "compare_with_replay", fails)
    truth = small_truth(tmp_path)
    arguments = [str(bag), "-o", str(tmp_path / "out"), "--ground-truth", str(truth)]
    assert demo.main(arguments) == demo.USER_MISTAKE
    assert "no memory left" in capsys.readouterr().err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["frames"] == result.frames and "no memory left" in metrics["error"]
    assert (tmp_path / "out" / "report.html").exists()


def test_a_bad_truth_is_told_before_anything_runs(bag, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_play", lambda *_: pytest.fail("the nodes were started"))
    arguments = [str(bag), "-o", str(tmp_path), "--ground-truth", str(tmp_path / "none.npz")]
    assert demo.main(arguments) == demo.USER_MISTAKE
    assert "none.npz: no such file" in capsys.readouterr().err


def test_the_segmenter_of_the_demo_can_be_named(bag, tmp_path, monkeypatch):
    given = []

    def live_run(_bag, _log_folder, _rate, parameters, _maps):
        given.append(parameters)
        raise LiveRunFailed("seen enough")

    monkeypatch.setattr(demo, "LiveRun", live_run)
    arguments = [str(bag), "-o", str(tmp_path)]
    for more in ([], ["--segmenter", "net.safetensors"]):
        assert demo.main([*arguments, *more]) == demo.FAILED
    names = [parameters["segmentation_node"]["checkpoint"] for parameters in given]
    assert names == [DEFAULT_SEGMENTER, "net.safetensors"]


def test_a_node_that_dies_is_named_with_its_last_words(bag, tmp_path):
    parameters = {"segmentation_node": {"checkpoint": "/nowhere/network.pt"}}
    with (
        pytest.raises(LiveRunFailed, match=r"(?s)segmentation_node.*exit code 2.*/nowhere"),
        LiveRun(PlayedBag.open(bag), tmp_path, parameters=parameters) as run,
    ):
        run.play()
    assert not children_of(os.getpid())


def test_a_demo_that_is_interrupted_leaves_no_process_behind(bag, tmp_path):
    command = [sys.executable, "-m", "unscene_ros.nodes.demo", str(bag), "-o", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (tmp_path / "logs" / "segmentation_node.log").exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    nodes = children_of(process.pid)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == demo.INTERRUPTED
    assert "interrupted" in errors
    assert len(nodes) >= 2
    assert not any(node.is_running() for node in nodes)


def test_the_topics_of_a_bag_reach_the_inputs(bag):
    played = PlayedBag.open(bag)
    assert played.fusion_remappings == {
        "rgb/image": "/camera/color/image_raw",
        "depth/image": "/camera/depth/image_raw",
        "rgb/camera_info": "/camera/color/camera_info",
        "depth/camera_info": "/camera/depth/camera_info",
    }
    assert played.player_remappings == {}
    assert (played.world_frame, played.depth_pictures) == ("map", FRAMES)
    assert {"/tf", "/tf_static"} < set(played.topics)


def test_a_bag_that_the_live_nodes_cannot_use_is_a_users_mistake(tmp_path, capsys):
    for name, write in {
        "no_tf": lambda writer, frame: (
            writer.write_camera_info("/camera/depth", frame.camera, "camera", frame.stamp_ns),
            writer.write_color(frame.color, "camera", frame.stamp_ns),
            writer.write_depth(frame.depth, "camera", frame.stamp_ns),
        ),
        "no_colour": lambda writer, frame: (
            writer.write_camera_info("/camera/depth", frame.camera, "camera", frame.stamp_ns),
            writer.write_depth(frame.depth, "camera", frame.stamp_ns),
            writer.write_transform("map", "camera", frame.stamp_ns, frame.world_from_camera),
        ),
    }.items():
        with BagWriter(tmp_path / name, BagFormat(depth="16UC1")) as writer:
            for frame in small_frames(2):
                write(writer, frame)
        with pytest.raises(InputError, match=name):
            PlayedBag.open(tmp_path / name)
    assert demo.main([str(tmp_path / "nothing"), "-o", str(tmp_path / "out")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_the_default_recording_is_the_bundled_one():
    assert Path(demo.BUNDLED_RECORDING, "metadata.yaml").is_file()
