"""A procedural room, scanned from afar in few small pictures, all the way to figures and files."""

import numpy as np
import pytest

from training.scans.rooms import RoomConfig, make_room, write_scan
from unscene_ros.evaluation import evaluate
from unscene_ros.fusion import FusionConfig
from unscene_ros.pipeline import PipelineConfig, build_mesh, segment_mesh
from unscene_ros.replay import replay
from unscene_ros.segmentation import load_segmenter
from unscene_ros.storage import Prediction, load_prediction

HELD_OUT_SEED = 9000
CONFIG = PipelineConfig(fusion=FusionConfig(device="cpu"))


@pytest.fixture(scope="module")
def room():
    return make_room(HELD_OUT_SEED, RoomConfig(image_width=160, image_height=120, frame_count=25))


@pytest.fixture(scope="module")
def scan_folder(room, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan") / room.name
    assert len(list(write_scan(room, folder))) == 25
    return folder


def test_a_rendered_room_becomes_instances_that_are_its_objects(room):
    mesh = build_mesh(room.frames(), CONFIG.fusion)
    segments, instances = segment_mesh(mesh, load_segmenter("training-free", CONFIG.segmentation))
    track_ids = np.arange(len(instances.masks), dtype=np.int32)
    prediction = Prediction(mesh, segments, instances, track_ids)
    figures = evaluate([(prediction, room.ground_truth())])
    assert figures["objects"] >= 10
    assert figures["ap25"] > 0.2


def test_replaying_the_scan_twice_gives_identical_instances_and_figures(scan_folder, tmp_path):
    metrics = [
        replay(scan_folder, tmp_path / name, CONFIG, ground_truth=scan_folder / "gt.npz")
        for name in ("first", "second")
    ]
    first, second = (load_prediction(tmp_path / name) for name in ("first", "second"))
    assert len(first.instances.masks) >= 5
    np.testing.assert_array_equal(first.mesh.vertices, second.mesh.vertices)
    np.testing.assert_array_equal(first.segments.of_vertex, second.segments.of_vertex)
    np.testing.assert_array_equal(first.instances.masks, second.instances.masks)
    np.testing.assert_array_equal(first.instances.scores, second.instances.scores)
    np.testing.assert_array_equal(first.track_ids, second.track_ids)
    assert metrics[0]["frames"] == {"read": 25, "used": 25, "dropped": {}}
    assert metrics[0]["evaluation"] == metrics[1]["evaluation"]
    assert metrics[0]["evaluation"]["ap25"] > 0.2
