"""What goes wrong on robots costs the frames in flight, is told to the operator, and passes."""

import dataclasses

import numpy as np
import pytest
from faults import (
    CameraElsewhere,
    CameraWithoutTransforms,
    CameraWithUnreliableTransforms,
    exhaust_gpu,
    fill_disk,
    kill_fusion,
    kill_segmentation,
    overload,
    replace_camera,
    spoil_messages,
    start_over,
)
from robot import Robot

from unscene_ros.nodes.fusion_node import FusionNodeConfig

FUSING_S = 0.2
MAX_WAITING = FusionNodeConfig().synchronization.max_waiting  # frames that may wait to be fused
MAX_WAIT_S = FusionNodeConfig().max_wait_s
IMPATIENT = ("fusion_node:diagnostics.no_data_after_s:=2.5",)


@pytest.fixture
def robot(tmp_path):
    with Robot(tmp_path) as robot:
        yield robot


@pytest.fixture
def impatient_robot(tmp_path):
    """Its operator is told sooner that no frame comes."""
    with Robot(tmp_path, parameters=IMPATIENT) as robot:
        yield robot


def test_a_killed_fusion_node_goes_on_with_its_autosaved_map_and_the_ids_stay(robot):
    outcome = kill_fusion(robot)
    assert outcome.seen.endswith("is the fusion node running, or has it ended?")
    assert outcome.figures["frames_resumed"] > 0
    assert outcome.lost.keys() <= {"frames since the last autosave"}


@pytest.mark.slow  # DDS takes 8 s to find that a process was killed
def test_objects_keep_their_ids_when_the_segmentation_node_is_killed_and_fusion_goes_on(robot):
    outcome = kill_segmentation(robot)
    assert outcome.seen == "node 'segmentation_node' takes the map no more: has it ended?"
    assert outcome.figures["fused_meanwhile"] > 0
    assert outcome.lost["ids"] == 0


def test_a_camera_that_was_unplugged_is_fused_again_when_it_is_back(impatient_robot):
    outcome = replace_camera(impatient_robot, None, "nobody publishes '/rgb/image'")
    assert "is the driver running" in outcome.seen
    assert not outcome.lost


@pytest.mark.slow
@pytest.mark.parametrize(
    ("camera", "words"),
    [
        (CameraElsewhere, "the nearest topic with such data is '/front/rgb/image'"),
        (CameraWithoutTransforms, "is what publishes it still running?"),
        (CameraWithUnreliableTransforms, "'/tf' is not delivered, best effort publisher"),
    ],
)
def test_a_camera_that_is_set_up_wrongly_is_told_of_and_fused_when_it_is_right(
    impatient_robot, camera, words
):
    outcome = replace_camera(impatient_robot, camera, words)
    assert outcome.seen.startswith("no frame for")
    assert outcome.lost.keys() <= {"frames, no transform"}  # those that waited too long for TF


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
def test_spoiled_messages_are_counted_and_the_good_ones_between_them_are_fused(
    tmp_path, compressed
):
    # What lacks its transform is given up before the good frames behind it fill the queue.
    with Robot(tmp_path, parameters=("fusion_node:max_wait_s:=0.3",)) as robot:
        outcome = spoil_messages(robot, 40, compressed)
    assert outcome.lost["frames, undecodable"] > 0
    assert outcome.lost["good frames"] == 0
    assert "frames without a reason" not in outcome.lost
    assert outcome.lost.total() <= outcome.figures["spoiled"]


def test_a_recording_that_starts_over_is_told_of_and_fused_into_the_same_map(robot):
    outcome = start_over(robot, back_s=60.0)
    assert outcome.seen.startswith("time was set back: by 59.")
    assert not outcome.lost


def test_a_map_for_which_the_gpu_has_no_memory_is_told_of_and_the_next_one_segmented(robot):
    pytest.importorskip("torch")
    outcome = exhaust_gpu(robot)
    assert "the GPU's memory is exhausted: set segmentation.network.device to cpu" in outcome.seen
    assert outcome.lost["ids"] == 0


def test_a_full_disk_costs_neither_the_map_saved_before_nor_a_frame(robot):
    outcome = fill_disk(robot)
    assert outcome.seen.startswith("save_map failed: ")
    assert "cannot be written" in outcome.seen
    assert outcome.figures["left_over"] == 0
    assert outcome.lost["saved maps"] == 0
    assert "frames without a reason" not in outcome.lost


def test_of_pictures_that_come_too_fast_the_newest_are_fused_and_the_others_counted(robot):
    outcome = overload(robot, for_s=4.0, fusing_s=FUSING_S)
    figures = outcome.figures
    assert figures["waiting"] <= MAX_WAITING + 1  # and the one that is being fused
    assert figures["newest_is_fused"]
    assert outcome.lost == {"frames, too slow": figures["sent"] - figures["fused"]}
    assert outcome.lost.total() > figures["fused"]
    # All of them in turn would take five times as long as they came for.
    assert figures["latency_s"] < MAX_WAIT_S + 5 * FUSING_S


@pytest.mark.slow
def test_memory_is_flat_while_pictures_come_too_fast(robot):
    robot.frames = [enlarged(frame) for frame in robot.frames[:8]]
    outcome = overload(robot, for_s=30.0, fusing_s=0.4)
    waiting_mb = (outcome.figures["sent"] - outcome.figures["fused"]) * 640 * 480 * 5 / 1e6
    assert waiting_mb > 300  # what the dropped ones would have taken
    assert outcome.figures["growth_mb"] < 0.1 * waiting_mb


def enlarged(frame, times=4):
    """The same view in more pixels."""
    grow = np.ones((times, times), np.uint8)
    return dataclasses.replace(
        frame,
        camera=frame.camera.resized(frame.camera.width * times, frame.camera.height * times),
        color=np.kron(frame.color, grow[..., None]),
        depth=np.kron(frame.depth, grow.astype(np.float32)),
    )
