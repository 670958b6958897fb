"""The command line: arguments reach the stages, mistakes are one line and exit code 2."""

import json
import subprocess
import sys

import numpy as np
import pytest

from unscene_ros import DEFAULT_SEGMENTER
from unscene_ros import replay as replay_module
from unscene_ros.cli import main
from unscene_ros.scene import InputError, Instances, Mesh, Segments
from unscene_ros.segmentation import SharedConfig
from unscene_ros.settings import from_dict
from unscene_ros.storage import Prediction, save_prediction
from unscene_ros.voxels import VoxelsConfig

METRICS = {
    "instances": 3,
    "frames": {"read": 12, "used": 10},
    "map": {"vertices": 50},
    "evaluation": None,
}


@pytest.fixture
def received(monkeypatch) -> list:
    """What the replay and segment commands hand over, instead of doing the work."""
    calls: list = []

    def remember(*arguments):
        calls.append(arguments)
        return METRICS

    monkeypatch.setattr(replay_module, "replay", remember)
    monkeypatch.setattr(replay_module, "segment_file", remember)
    return calls


def fail(capsys, *arguments: str) -> str:
    """The one line that a user's mistake prints."""
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("unscene: ")
    return lines[0]


def write_line_of_two(folder) -> None:
    """A prediction of 200 vertices on a line, its halves being instances 0 and 1."""
    vertices = np.zeros((200, 3), np.float32)
    vertices[:, 0] = np.arange(200)
    mesh = Mesh(vertices, np.zeros((0, 3), np.int32), np.zeros((200, 3), np.uint8), vertices * 0)
    of_vertex = np.repeat(np.array([0, 1], np.int32), 100)
    scores = np.array([0.9, 0.8], np.float32)
    instances = Instances(np.eye(2, dtype=bool), scores, np.full(2, -1, np.int32))
    segments = Segments(of_vertex, np.zeros((0, 2), np.int32), 2)
    folder.mkdir()
    save_prediction(folder, Prediction(mesh, segments, instances, np.zeros(2, np.int32)))
    truth = np.repeat(np.array([0, -2], np.int32), 100)
    np.savez(folder / "gt.npz", points=vertices, instance=truth)


def test_replay_passes_paths_and_defaults_on(received, capsys):
    assert main(["replay", "bag.mcap", "-o", "out"]) == 0
    recording, output, config, segmenter, truth, options, seed = received[0]
    assert (str(recording), str(output), segmenter, truth, seed) == (
        "bag.mcap",
        "out",
        DEFAULT_SEGMENTER,
        None,
        0,
    )
    assert config.fusion.device == "auto" and options.segment_every_frames == 25
    shown = capsys.readouterr().out
    assert "3 instances from 10 of 12 frames" in shown and "out/report.html" in shown


def test_a_setting_on_the_command_line_beats_the_device_which_beats_the_file(received, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("fusion: {voxel_size_m: 0.1, depth_max_m: 3, device: cuda}\n")
    options = ["--config", str(path), "--set", "fusion.voxel_size_m=0.02"]
    main(["replay", "bag", "-o", "out", *options])
    main(["replay", "bag", "-o", "out", *options, "--device", "cpu"])
    main(["replay", "bag", "-o", "out", *options, "--device", "cpu", "--set", "fusion.device=cuda"])
    fusion = [call[2].fusion for call in received]
    assert [(f.voxel_size_m, f.depth_max_m) for f in fusion] == [(0.02, 3)] * 3
    assert [f.device for f in fusion] == ["cuda", "cpu", "cuda"]


def test_the_recording_has_settings_too(received):
    main(["replay", "bag", "-o", "out", "--set", "replay.topics.depth=/d", "--segment-every", "7"])
    options = received[0][5]
    assert options.topics.depth == "/d" and options.segment_every_frames == 7


def test_segment_passes_its_arguments_on(received, capsys):
    arguments = ["segment", "a.stl", "-o", "out", "--segmenter", "net.pt", "--seed", "4"]
    assert main(arguments) == 0
    mesh, output, _, segmenter, seed = received[0]
    assert (str(mesh), str(output), segmenter, seed) == ("a.stl", "out", "net.pt", 4)
    assert "3 instances on 50 vertices" in capsys.readouterr().out


def test_mistakes_are_one_line_and_exit_code_two(received, capsys, tmp_path):
    replay = ["replay", "bag", "-o", "out"]
    assert "fusion.voxel_size_m" in fail(capsys, *replay, "--set", "fusion.voxel=0.1")
    assert "did you mean" in fail(capsys, *replay, "--set", "replay.segment_every=3")
    assert "0 (only at the end)" in fail(capsys, *replay, "--segment-every", "-1")
    assert "section.key=value" in fail(capsys, *replay, "--set", "fusion")
    assert "'fusion=['" in fail(capsys, *replay, "--set", "fusion=[")
    assert "none.yaml" in fail(capsys, *replay, "--config", str(tmp_path / "none.yaml"))
    (tmp_path / "old.yaml").write_text("fusion: {voxel_size: 0.1}")
    told = fail(capsys, *replay, "--config", str(tmp_path / "old.yaml"))
    assert "old.yaml: unknown setting 'fusion.voxel_size'" in told
    assert received == []


def test_a_mistake_found_by_a_stage_is_one_line_and_exit_code_two(monkeypatch, capsys):
    def fails(*_):
        raise InputError("recording x: no depth")

    monkeypatch.setattr(replay_module, "replay", fails)
    assert fail(capsys, "replay", "x", "-o", "out") == "unscene: recording x: no depth"


def test_an_interrupted_replay_says_so(monkeypatch, capsys):
    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(replay_module, "replay", stops)
    assert main(["replay", "x", "-o", "out"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_evaluate_prints_a_table_and_writes_json(tmp_path, capsys):
    write_line_of_two(tmp_path / "a")
    pair = [str(tmp_path / "a"), str(tmp_path / "a" / "gt.npz")]
    assert main(["evaluate", *pair, "--json", str(tmp_path / "scores.json")]) == 0
    shown = capsys.readouterr().out
    assert "AP50" in shown and "100.0" in shown and "1 objects" in shown
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["ap"] == scores["ap50"] == scores["ap25"] == 1
    assert scores["mask_precision"] == 0.5


def test_evaluate_pools_pairs_and_takes_protocol_and_grid(tmp_path):
    write_line_of_two(tmp_path / "a")
    write_line_of_two(tmp_path / "b")
    pairs = [str(tmp_path / name) for name in ("a", "a/gt.npz", "b", "b/gt.npz")]
    path = tmp_path / "scores.json"
    main(["evaluate", *pairs, "--protocol", "compat", "--grid", "full", "--json", str(path)])
    scores = json.loads(path.read_text())
    assert (scores["protocol"], scores["grid"], scores["objects"]) == ("compat", "full", 4)
    assert scores["mask_precision"] == 1


def test_evaluate_refuses_what_it_cannot_read(tmp_path, capsys):
    write_line_of_two(tmp_path / "a")
    folder, truth = str(tmp_path / "a"), str(tmp_path / "a" / "gt.npz")
    assert "pairs" in fail(capsys, "evaluate", folder)
    assert "no.npz" in fail(capsys, "evaluate", folder, str(tmp_path / "no.npz"))
    assert "mesh.ply" in fail(capsys, "evaluate", str(tmp_path / "none"), truth)
    unwritable = str(tmp_path / "a" / "gt.npz" / "scores.json")
    assert main(["evaluate", folder, truth, "--json", unwritable]) == 2


@pytest.mark.parametrize("command", ["replay", "segment", "evaluate"])
def test_help_shows_examples_that_can_be_parsed(command, received, capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    examples = [words[1:] for words in lines if words[:1] == ["unscene"] and "[-h]" not in words]
    assert len(examples) >= 2
    monkeypatch.chdir(tmp_path)
    for example in examples:
        # What an example names is not there, so only `evaluate` can fail, and only for that.
        assert main(example) == (2 if command == "evaluate" else 0)


def test_help_answers_without_loading_the_stages():
    program = (
        "import sys\nfrom unscene_ros.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(any(name in sys.modules for name in ('open3d', 'torch', 'scipy', 'cv2')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


def test_weights_become_a_checkpoint_that_names_its_origin(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    from unscene_ros.models.checkpoint import load_checkpoint, make_network

    network = make_network("SparseUNet", {"architecture": "Res16UNet14A"})
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(
        {"state_dict": state | {"module.final.kernel": torch.zeros(96, 9)}}, tmp_path / "a.pth"
    )
    command = ["import-weights", str(tmp_path / "a.pth"), "-o", str(tmp_path / "a.safetensors")]
    command += ["--network", "SparseUNet", "--set", "architecture=Res16UNet14A"]
    assert main(command) == 2
    assert "final.kernel" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()

    share = ["--share", "voxels.voxel_size_m=0.03"]
    assert main([*command, "--allow", "final", *share]) == 0
    printed = capsys.readouterr().out
    assert f"{len(state)} tensors loaded from 'state_dict.module.*'" in printed
    checkpoint = load_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.provenance["imported_from"] == "a.pth"
    shared = from_dict(SharedConfig, checkpoint.settings)
    assert shared == SharedConfig(voxels=VoxelsConfig(voxel_size_m=0.03))
    for name, tensor in network.state_dict().items():
        assert torch.equal(checkpoint.network.state_dict()[name], tensor)


def test_what_is_shared_with_a_robot_is_checked_before_weights_are_read(tmp_path, capsys):
    arguments = ["nothing.pth", "-o", str(tmp_path / "b"), "--network", "InstanceNetwork"]
    told = fail(capsys, "import-weights", *arguments, "--share", "voxels.size_m=0.02")
    assert "unknown setting 'voxels.size_m', did you mean 'voxels.voxel_size_m'" in told


def test_importing_into_an_unknown_network_lists_those_that_exist(tmp_path, capsys):
    arguments = [str(tmp_path / "a.pth"), "-o", str(tmp_path / "b"), "--network", "ResNet"]
    assert main(["import-weights", *arguments]) == 2
    assert "SparseUNet" in capsys.readouterr().err
