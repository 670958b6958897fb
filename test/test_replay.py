"""Replay writes everything, does so twice alike, and keeps what it has when something breaks."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from small_scan import small_frames, small_truth

from training.scans.to_bag import write_bag
from unscene_ros import replay as replay_module
from unscene_ros.fusion import FusionConfig
from unscene_ros.oversegmentation import OversegmentationConfig
from unscene_ros.pipeline import PipelineConfig, build_mesh
from unscene_ros.replay import ReplayConfig, replay, segment_file
from unscene_ros.scene import Frame, InputError, Instances, Mesh, Segments
from unscene_ros.storage import load_prediction, read_mesh, write_mesh

CONFIG = PipelineConfig(fusion=FusionConfig(voxel_size_m=0.03, device="cpu"))
CONTRACT = {  # the keys that others read
    "frames",
    "map",
    "instances",
    "latency_ms",
    "memory_mb",
    "evaluation",
    "settings",
    "settings_hash",
    "seed",
    "git",
    "versions",
    "machine",
}
FILES = {"mesh.ply", "instances.npz", "metrics.json", "report.html"}


class LeftAndRight:
    """A segmenter that knows the test's world: what stands on the floor, left and right."""

    oversegmentation = OversegmentationConfig()

    def __init__(self) -> None:
        self.calls = 0

    def segment(self, mesh: Mesh, segments: Segments, keyframes: Sequence[Frame] = ()) -> Instances:
        self.calls += 1
        sizes = np.bincount(segments.of_vertex, minlength=segments.count)
        middles = [
            np.bincount(segments.of_vertex, mesh.vertices[:, axis], segments.count) / sizes
            for axis in range(3)
        ]
        high = middles[2] > 0.04
        masks = np.stack((high & (middles[0] < 0), high & (middles[0] > 0)))
        return Instances(masks, np.array([0.9, 0.8], np.float32), np.full(2, -1, np.int32))


@pytest.fixture
def segmenter(monkeypatch) -> LeftAndRight:
    known = LeftAndRight()
    monkeypatch.setattr(replay_module, "load_segmenter", lambda *_: known)
    return known


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "boxes"
    write_bag(path, small_frames())
    return path


class BreaksAfter:
    """A recording that gives some frames and then raises."""

    name = "broken"
    warnings = ()

    def __init__(self, frames, error) -> None:
        self.frames, self.error, self.dropped, self.read = frames, error, {"no transform": 2}, 2

    def __len__(self) -> int:
        return 100

    def __iter__(self):
        for frame in self.frames:
            self.read += 1
            yield frame
        if self.error:
            raise self.error


def use_recording(monkeypatch, frames, error) -> None:
    monkeypatch.setattr(replay_module, "open_recording", lambda *_: BreaksAfter(frames, error))


def metrics_in(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def names_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_surface_that_was_forgotten_is_told(bag, tmp_path, segmenter, caplog):
    fusion = FusionConfig(voxel_size_m=0.03, device="cpu", depth_max_m=1.5, max_radius_m=1.5)
    metrics = replay(bag, tmp_path, PipelineConfig(fusion=fusion))
    assert metrics["evicted_blocks"] > 0
    assert "raise them for a place of this size" in caplog.text


def test_the_four_files_are_written_and_hold_the_same_run(bag, tmp_path, segmenter):
    metrics = replay(bag, tmp_path, CONFIG, ground_truth=small_truth(tmp_path))
    assert names_in(tmp_path) == FILES | {"gt.npz"}
    assert metrics_in(tmp_path) == json.loads(json.dumps(metrics))
    assert set(metrics) >= CONTRACT
    assert metrics["frames"] == {"read": 12, "used": 12, "dropped": {}}
    assert metrics["recording"] == "boxes" and metrics["error"] is None
    prediction = load_prediction(tmp_path)
    assert metrics["map"]["vertices"] == len(prediction.mesh.vertices) > 1000
    assert metrics["map"]["segments"] == prediction.segments.count
    assert metrics["instances"] == metrics["tracks"] == 2
    assert prediction.track_ids.tolist() == [1, 2]
    assert metrics["evaluation"]["ap50"] == 1 and metrics["evaluation"]["objects"] == 2
    assert metrics["settings"]["fusion"]["voxel_size_m"] == 0.03
    before = "reading", "fusion", "keyframes", "meshing"
    for stage in (*before, "oversegmentation", "segmentation", "tracking"):
        summary = metrics["latency_ms"][stage]
        assert 0 <= summary["p50"] <= summary["p95"] <= summary["max"]


def test_the_same_recording_gives_the_same_files(bag, tmp_path, segmenter):
    for name in ("first", "second"):
        replay(bag, tmp_path / name, CONFIG)
    first, second = tmp_path / "first", tmp_path / "second"
    assert (first / "mesh.ply").read_bytes() == (second / "mesh.ply").read_bytes()
    with np.load(first / "instances.npz") as a, np.load(second / "instances.npz") as b:
        assert all(np.array_equal(a[key], b[key]) for key in a.files)
    hashes = {metrics_in(folder)["settings_hash"] for folder in (first, second)}
    assert len(hashes) == 1


def test_the_quality_of_every_map_is_kept_with_truth_and_only_then(bag, tmp_path, segmenter):
    options = ReplayConfig(segment_every_frames=4)
    assert replay(bag, tmp_path, CONFIG, options=options)["quality_over_time"] is None
    truth = small_truth(tmp_path)
    metrics = replay(bag, tmp_path, CONFIG, ground_truth=truth, options=options)
    quality = metrics["quality_over_time"]
    # Seconds of the recording, from its first frame to the 4th, 8th and 12th.
    assert quality["curve"]["time_s"] == pytest.approx([0.6, 1.4, 2.2])
    assert quality["curve"]["ap50"][-1] == metrics["evaluation"]["ap50"] == 1
    assert [seen["object"] for seen in quality["objects"]] == [0, 1]
    for seen in quality["objects"]:
        assert (seen["found_after_s"], seen["id_switches"]) == (0, 0)
        assert seen["share_under_one_id"] == 1


@pytest.mark.parametrize(("every", "calls"), [(0, 1), (5, 3), (4, 3), (100, 1)])
def test_the_map_is_segmented_as_often_as_asked_and_at_the_end(
    bag, tmp_path, segmenter, every, calls
):
    replay(bag, tmp_path, CONFIG, options=ReplayConfig(segment_every_frames=every))
    assert segmenter.calls == calls


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [(InputError, "bag broken: ends early"), (KeyboardInterrupt, "interrupted by the user")],
)
def test_what_was_computed_is_kept_when_the_recording_stops(
    tmp_path, segmenter, monkeypatch, kind, sentence
):
    use_recording(monkeypatch, small_frames()[:8], kind(sentence))
    with pytest.raises(kind):
        replay("broken", tmp_path, CONFIG)
    assert names_in(tmp_path) == FILES
    metrics = metrics_in(tmp_path)
    assert metrics["frames"] == {"read": 10, "used": 8, "dropped": {"no transform": 2}}
    assert metrics["error"] == sentence
    assert len(load_prediction(tmp_path).mesh.vertices) > 1000


def test_everything_else_is_kept_when_the_evaluation_fails(bag, tmp_path, segmenter, monkeypatch):
    def fails(*_):
        raise InputError("truth: does not fit")

    monkeypatch.setattr(replay_module, "evaluate", fails)
    with pytest.raises(InputError, match="does not fit"):
        replay(bag, tmp_path, CONFIG, ground_truth=small_truth(tmp_path))
    assert names_in(tmp_path) == FILES | {"gt.npz"}
    assert metrics_in(tmp_path)["evaluation"] is None
    assert metrics_in(tmp_path)["error"] == "truth: does not fit"


def test_the_mesh_is_kept_when_the_segmenter_fails(bag, tmp_path, segmenter, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(segmenter, "segment", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        replay(bag, tmp_path, CONFIG)
    assert len(read_mesh(tmp_path / "mesh.ply").vertices) > 1000


def test_frames_without_depth_are_counted_and_the_others_used(tmp_path, segmenter, monkeypatch):
    frames = small_frames()
    blind = [
        Frame(f.stamp_ns, f.camera, f.color, np.zeros_like(f.depth), f.world_from_camera)
        for f in frames[:3]
    ]
    use_recording(monkeypatch, [*blind, *frames[3:]], None)
    metrics = replay("some", tmp_path, CONFIG)
    assert metrics["frames"]["used"] == 9
    assert metrics["frames"]["dropped"] == {"no transform": 2, "no depth in range": 3}
    assert metrics["frames"]["read"] == 14


def test_no_usable_frame_is_an_input_error_with_the_reasons(tmp_path, segmenter, monkeypatch):
    frame = small_frames(1)[0]
    blind = Frame(0, frame.camera, frame.color, frame.depth * 0, frame.world_from_camera)
    use_recording(monkeypatch, [blind] * 3, None)
    with pytest.raises(InputError, match="2 × no transform; 3 × no depth in range"):
        replay("blind", tmp_path, CONFIG)


def test_a_map_without_surface_gives_empty_files(bag, tmp_path, monkeypatch, segmenter):
    segmenter.segment = lambda mesh, segments, keyframes=(): Instances.empty(segments.count)
    nothing = PipelineConfig(fusion=FusionConfig(min_weight=30, max_weight=30, device="cpu"))
    metrics = replay(bag, tmp_path, nothing, ground_truth=small_truth(tmp_path))
    assert metrics["map"] == {"vertices": 0, "segments": 0}
    assert metrics["evaluation"]["ap"] == 0
    assert len(load_prediction(tmp_path).mesh.vertices) == 0


def test_mistakes_are_found_before_the_recording_is_read(bag, tmp_path, segmenter, monkeypatch):
    monkeypatch.setattr(replay_module, "_feed", lambda *_: pytest.fail("the work had started"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="output folder"):
        replay(bag, tmp_path / "file", CONFIG)
    with pytest.raises(InputError, match=r"truth\.npz"):
        replay(bag, tmp_path / "out", CONFIG, ground_truth=tmp_path / "truth.npz")
    with pytest.raises(InputError, match="nowhere"):
        replay(tmp_path / "nowhere", tmp_path / "out", CONFIG)


def test_a_mesh_file_is_segmented_alone(tmp_path, segmenter):
    write_mesh(tmp_path / "room.ply", build_mesh(small_frames(), CONFIG.fusion))
    metrics = segment_file(tmp_path / "room.ply", tmp_path / "out", CONFIG)
    assert names_in(tmp_path / "out") == FILES
    assert metrics["instances"] == 2 and "frames" not in metrics
    assert load_prediction(tmp_path / "out").track_ids.tolist() == [1, 2]


@pytest.mark.slow
def test_training_free_instances_are_the_two_boxes(bag, tmp_path):
    metrics = replay(bag, tmp_path, CONFIG, ground_truth=small_truth(tmp_path))
    assert metrics["evaluation"]["ap50"] == 1
