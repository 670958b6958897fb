"""Rounds of self-training: one command that goes on anywhere, repeats nothing, sees no truth."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_rounds
import torch
import yaml
from boxes_library import TINY, boxes_mesh, narrow_networks, write_boxes_library, write_pseudo_masks

from training.artifacts import file_hash
from training.scans.library import Library
from training.unscene3d import export as export_module
from training.unscene3d import rounds
from training.unscene3d import train as train_module
from training.unscene3d.pseudo_masks import STEP, find_pseudo_masks
from training.unscene3d.rounds import self_train
from unscene_ros.models.checkpoint import load_checkpoint
from unscene_ros.scene import InputError
from unscene_ros.settings import to_dict
from unscene_ros.storage import MESH_FILE

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    narrow_networks(monkeypatch)


@pytest.fixture
def library(tmp_path):
    return write_boxes_library(tmp_path / "library", "a", "b", "c")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a library, and in it that of a run of two rounds that has ended."""
    with pytest.MonkeyPatch.context() as patch:
        narrow_networks(patch)
        root = tmp_path_factory.mktemp("finished")
        library = write_boxes_library(root, "a", "b", "c")
        assert self_train(scans_of(library), TINY, root / "run")[1] == []
    return root


@pytest.fixture
def finished_copy(finished, tmp_path):
    return Library(shutil.copytree(finished, tmp_path / "copy"))


def scans_of(library, names=None):
    return [library.scan(name) for name in names or library.names()]


def learn(library, config=TINY, names=None, **options):
    """The checkpoint, and the failures by name."""
    run = library.root / "run"
    checkpoint, failures = self_train(scans_of(library, names), config, run, **options)
    return checkpoint, {failure.name: failure.message for failure in failures}


def command(library, *options, config=TINY) -> list[str]:
    """Of the module, with all of the settings in a file."""
    path = library.root / "tiny.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    return [str(library.root), "-o", str(library.root / "run"), "--config", str(path), *options]


def state_of(folder: Path) -> dict[str, int]:
    """When each file of a run was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("rounds.json", "checkpoint.safetensors")
    }


def same_weights(first: Path, second: Path) -> bool:
    weights = [load_checkpoint(path).network.state_dict() for path in (first, second)]
    return all(weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.fixture
def steps(monkeypatch):
    """The folders of the rounds in which steps were made."""
    made = []
    learn_really = train_module.learn

    def noted(network, sample, loss, config, folder, **options):
        def noted_loss(model, samples):
            made.append(folder.name)
            return loss(model, samples)

        return learn_really(network, sample, noted_loss, config, folder, **options)

    monkeypatch.setattr(train_module, "learn", noted)
    return made


def fail_export_of(name: str, patch) -> None:
    """As if the disk were full when this scan's masks are written."""
    save = export_module.save_artifact

    def full(path, identity, **arrays):
        if path.parents[1].name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(path, identity, **arrays)

    patch.setattr(export_module, "save_artifact", full)


# --- what comes out ---


def test_the_result_is_the_checkpoint_of_the_last_round(finished):
    run = finished / "run"
    last = run / "round_2" / "checkpoint.safetensors"
    result, trained = load_checkpoint(run / "checkpoint.safetensors"), load_checkpoint(last)
    assert result.provenance["last_round"] == file_hash(last)
    assert result.settings == trained.settings
    weights = trained.network.state_dict()
    for name, tensor in result.network.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-6)
    assert (run / "checkpoint.safetensors").stat().st_size < 0.6 * last.stat().st_size
    assert not same_weights(*(run / f"round_{n}" / "checkpoint.safetensors" for n in (1, 2)))
    assert not (run / "round_3").exists()
    start = json.loads((run / "round_2" / "run.json").read_text())["inputs"]["initial"]
    assert start == file_hash(run / "round_1" / "checkpoint.safetensors")


def test_the_report_counts_the_masks_of_each_round(finished):
    first, second = json.loads((finished / "run" / "rounds.json").read_text())
    assert (first["round"], first["scans"], first["masks"]) == (1, 3, {"by hand": 3})
    box_of_vertex = boxes_mesh()[1]
    share = (box_of_vertex == 1).mean()
    assert first["covered_share"] == pytest.approx(share, abs=0.01)
    assert first["scores_by_tenths"] == [0] * 9 + [3]
    assert second["masks"]["by hand"] == 3 and second["masks"]["export"] > 0
    assert second["covered_share"] > first["covered_share"]
    assert sum(second["scores_by_tenths"]) == sum(second["masks"].values())
    last = finished / "run" / "round_2" / "checkpoint.safetensors"
    assert second["checkpoint"] == file_hash(last)


def test_each_round_adds_to_the_initial_masks_alone(library, monkeypatch):
    initials = []

    def noted(scan, config, initial, checkpoint):
        initials.append((scan.name, initial.step, initial.hash, checkpoint.parent.name))
        return export_module.export(scan, config, initial, checkpoint)

    monkeypatch.setattr(rounds, "export", noted)
    learn(library, replace(TINY, rounds=3))
    expected = {name: find_pseudo_masks(library.scan(name), TINY).hash for name in "abc"}
    assert initials == [
        (name, STEP, expected[name], folder) for folder in ("round_1", "round_2") for name in "abc"
    ]


def test_labels_are_not_opened(library):
    (library.scan("a").folder / "gt.npz").write_text("no one reads this")
    (library.scan("b").folder / "gt.npz").mkdir()
    assert learn(library)[1] == {}


def test_one_round_is_a_training_alone(library, monkeypatch):
    monkeypatch.setattr(rounds, "export", None)
    checkpoint, failures = learn(library, replace(TINY, rounds=1))
    assert failures == {} and checkpoint.exists()


# --- going on ---


def test_a_run_that_was_killed_after_round_1_goes_on_at_round_2(library, finished, steps):
    def kill(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rounds, "for_each", lambda *a: kill() if a[-1] == "adding masks" else [])
        learn(library)
    before = state_of(library.root / "run")
    assert "round_1/checkpoint.safetensors" not in before and steps == ["round_1"] * 2
    first = file_hash(library.root / "run" / "round_1" / "checkpoint.safetensors")
    checkpoint, failures = learn(library)
    assert failures == {} and steps == ["round_1"] * 2 + ["round_2"] * 2
    assert before.items() <= state_of(library.root / "run").items()
    assert file_hash(library.root / "run" / "round_1" / "checkpoint.safetensors") == first
    assert same_weights(checkpoint, finished / "run" / "checkpoint.safetensors")


def test_a_second_call_changes_nothing(finished_copy, steps, monkeypatch):
    run = finished_copy.root / "run"
    before, report = state_of(run), (run / "rounds.json").read_text()
    weights = file_hash(run / "checkpoint.safetensors")
    monkeypatch.setattr(export_module, "densified", None)
    assert learn(finished_copy) == (run / "checkpoint.safetensors", {})
    assert (steps, state_of(run), (run / "rounds.json").read_text()) == ([], before, report)
    assert file_hash(run / "checkpoint.safetensors") == weights


def test_more_rounds_can_follow(finished_copy, steps):
    assert learn(finished_copy, replace(TINY, rounds=3))[1] == {}
    assert set(steps) == {"round_3"}
    assert len(json.loads((finished_copy.root / "run" / "rounds.json").read_text())) == 3


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (r"export\.max_new is 5 there, 1 now", {"export": replace(TINY.export, max_new=1)}),
        (
            r"voxels\.voxel_size_m is 0\.08 there, 0\.1 now",
            {"voxels": replace(TINY.voxels, voxel_size_m=0.1)},
        ),
        (r"seed is 0 there, 4 now", {"seed": 4}),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_before_any_work(
    words, config, finished_copy, monkeypatch
):
    monkeypatch.setattr(rounds, "for_each", None)
    with pytest.raises(InputError, match=f"run: holds another run: {words}: choose another folder"):
        learn(finished_copy, replace(TINY, **config))


def test_where_it_runs_may_change(finished_copy, steps):
    elsewhere = replace(TINY.later_rounds, workers=2, threads=2, checkpoint_every=1)
    assert learn(finished_copy, replace(TINY, later_rounds=elsewhere))[1] == {}
    assert steps == []


def test_other_masks_or_other_weights_to_start_from_are_another_run(finished_copy):
    scan = finished_copy.scan("a")
    scan.write_mesh(boxes_mesh(0.2)[0], find_pseudo_masks(scan, TINY))
    write_pseudo_masks(scan, (boxes_mesh(0.2)[1] == 1)[None])
    with pytest.raises(InputError, match=r"round_1: holds another run: .*inputs\.targets"):
        learn(finished_copy)
    initial = finished_copy.root / "run" / "checkpoint.safetensors"
    with pytest.raises(InputError, match=r"round_1: holds another run: .*inputs\.initial"):
        learn(finished_copy, initial=initial)


# --- scans that cannot be used ---


def test_scans_without_masks_or_mesh_are_left_out_and_listed(library):
    shutil.rmtree(library.scan("a").folder / "masks")
    (library.scan("b").folder / MESH_FILE).unlink()
    checkpoint, failures = learn(library)
    assert checkpoint is not None and failures.keys() == {"a", "b"}
    assert "make them with python -m training.unscene3d.pseudo_masks" in failures["a"]
    assert "no mesh.ply: fuse its frames" in failures["b"]
    assert (library.root / "run" / "scans.txt").read_text() == "c\n"


def test_missing_features_leave_a_scan_out(library):
    config = replace(TINY, pseudo_masks=replace(TINY.pseudo_masks, method="cuts"))
    checkpoint, failures = learn(library, config)
    assert checkpoint is None
    assert "no network for 3D features: make it with" in failures["a"]


def test_a_scan_that_comes_later_is_told_to_be_too_late(library, steps):
    masks = library.scan("a").folder / "masks"
    masks.rename(masks.with_name("elsewhere"))
    assert learn(library)[1].keys() == {"a"}
    masks.with_name("elsewhere").rename(masks)
    checkpoint, failures = learn(library)
    assert checkpoint is not None and len(steps) == 4
    assert "start another run with it" in failures["a"]


def test_before_training_has_begun_a_repaired_scan_is_taken_in(library):
    masks = library.scan("a").folder / "masks"
    masks.rename(masks.with_name("elsewhere"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rounds, "train_round", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        learn(library)
    masks.with_name("elsewhere").rename(masks)
    assert learn(library)[1] == {}


def test_a_run_does_not_go_on_with_a_part_of_its_scans(finished_copy, steps):
    path = next((finished_copy.scan("a").folder / "masks").glob(f"{STEP}-*.npz"))
    content = path.read_bytes()
    path.write_bytes(content[:200])
    checkpoint, failures = learn(finished_copy, replace(TINY, rounds=3))
    assert checkpoint is None and failures.keys() == {"a"} and steps == []
    path.write_bytes(content)
    checkpoint, failures = learn(finished_copy, replace(TINY, rounds=3), names=["a", "c"])
    assert checkpoint is None and "no longer asked for" in failures["b"]
    assert learn(finished_copy, replace(TINY, rounds=3))[1] == {}


def test_damaged_masks_of_a_later_round_are_made_anew(finished_copy, steps):
    path = next((finished_copy.scan("a").folder / "masks").glob("export-*.npz"))
    content = path.read_bytes()
    path.write_bytes(content[:200])
    assert learn(finished_copy)[1] == {} and steps == []
    assert len(path.read_bytes()) == len(content)


def test_a_full_disk_costs_one_export_which_a_later_run_makes(library, finished, monkeypatch):
    with monkeypatch.context() as patch:
        fail_export_of("b", patch)
        checkpoint, failures = learn(library)
    assert checkpoint is None and failures.keys() == {"b"}
    assert "No space left on device" in failures["b"]
    assert not (library.root / "run" / "round_2").exists()
    made = []
    densified = export_module.densified

    def noted(*arguments):
        made.append(1)
        return densified(*arguments)

    monkeypatch.setattr(export_module, "densified", noted)
    checkpoint, failures = learn(library)
    assert failures == {} and len(made) == 1
    assert same_weights(checkpoint, finished / "run" / "checkpoint.safetensors")


def test_scans_without_any_mask_teach_nothing_and_are_asked_again(library, steps):
    nothing = np.zeros((0, len(library.scan("a").mesh().vertices)), bool)
    write_pseudo_masks(library.scan("a"), nothing)
    assert learn(library)[1] == {}
    first, second = json.loads((library.root / "run" / "rounds.json").read_text())
    assert first["scans"] == second["scans"] == 3
    count = json.loads((library.root / "run" / "round_1" / "run.json").read_text())["sample_count"]
    assert count == 2
    for name in "bc":
        empty = np.zeros((0, len(library.scan(name).mesh().vertices)), bool)
        write_pseudo_masks(library.scan(name), empty)
    shutil.rmtree(library.root / "run")
    with pytest.raises(InputError, match="expected scans with masks to learn from, got none"):
        learn(library)


# --- the command ---


def test_the_command_says_what_it_learned_from_and_where_the_result_is(library, capsys):
    assert rounds.main(command(library)) == 0
    output = capsys.readouterr().out
    assert f"checkpoint: {library.root / 'run' / 'checkpoint.safetensors'}" in output
    assert "3 by hand" in output
    (library.scan("c").folder / MESH_FILE).unlink()
    library.write_split("two", ["a", "b"])
    assert rounds.main(command(library)) == 1
    captured = capsys.readouterr()
    assert "checkpoint:" not in captured.out
    assert "failed: c: scan c: no mesh.ply" in captured.err
    other = ["--split", "two", "-o", str(library.root / "other")]
    assert rounds.main(command(library, *other)) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--recipe", "papre"), "recipe: expected one of paper, default, small, got 'papre'"),
        (("--set", "rouns=2"), "unknown setting 'rouns', did you mean 'rounds'?"),
        (("--set", "rounds=0"), "rounds: expected 1 or more, got 0"),
        (("--split", "val"), "split val: expected"),
        (("--initial", "nothing.safetensors"), "nothing.safetensors: cannot be read"),
        (("--config", "nothing.yaml"), "nothing.yaml"),
        (("--workers", "-1"), "--workers: expected 0"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(options, words, library, capsys):
    assert rounds.main(command(library, *options)) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_a_split_without_scans_is_a_mistake(library, capsys):
    library.write_split("empty", [])
    assert rounds.main(command(library, "--split", "empty")) == 2
    assert "expected scans to learn from, got none" in capsys.readouterr().err


def test_a_path_that_cannot_be_written_is_a_mistake(library, capsys):
    (library.root / "file").write_text("in the way")
    assert rounds.main(command(library, "-o", str(library.root / "file" / "run"))) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.slow  # each process imports PyTorch anew
def test_two_processes_learn_together_and_the_first_one_writes(finished, tmp_path):
    root = tmp_path / "library"
    shutil.copytree(finished / "scans", root / "scans", ignore=shutil.ignore_patterns("export-*"))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [*launcher, tiny_rounds.__file__, *command(Library(root))]
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("checkpoint:") == 1
    report = json.loads((root / "run" / "rounds.json").read_text())
    of_one = json.loads((finished / "run" / "rounds.json").read_text())
    assert report[0]["masks"] == of_one[0]["masks"] and len(report) == 2
    logs = [
        np.genfromtxt(folder / "run" / "round_2" / "log.csv", delimiter=",", names=True)
        for folder in (root, finished)
    ]
    assert logs[0]["step"].tolist() == logs[1]["step"].tolist()
    # Not the same: which voxels a query sees in training is drawn by each process.
    np.testing.assert_allclose(logs[0]["total"], logs[1]["total"], rtol=0.3)
