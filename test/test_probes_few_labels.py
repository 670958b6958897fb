"""Learning from parts of the labels: what is drawn, what is learned from, and going on."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from labelled_library import TINY, write_labelled_library

from training.probes import few_labels
from training.probes.few_labels import choose_parts, draw, train_on_labels, train_on_parts
from unscene_ros.models.checkpoint import load_checkpoint
from unscene_ros.scene import InputError
from unscene_ros.settings import from_dict, to_dict
from unscene_ros.voxels import VoxelsConfig

NAMES = [f"scan_{number:02d}" for number in range(100)]


def weights_of(path):
    return load_checkpoint(path).network.state_dict()


def names_of(parts):
    return {part: [scan.name for scan in scans] for part, scans in parts.items()}


def test_a_share_holds_every_smaller_one_and_one_scan_at_least():
    parts = [set(draw(NAMES, share, seed=3)) for share in (0.001, 0.01, 0.05, 0.29, 1.0)]
    assert [len(part) for part in parts] == [1, 1, 5, 29, 100]
    assert all(small <= large for small, large in pairwise(parts))


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_order_of_the_names():
    assert draw(NAMES, 0.2, 3) == draw(NAMES[::-1], 0.2, 3) != draw(NAMES, 0.2, 4)


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_an_error(share):
    with pytest.raises(InputError, match="shares: expected more than 0"):
        draw(NAMES, share, 0)


def test_parts_are_drawn_from_the_labelled_scans_of_a_split_or_are_lists(tmp_path):
    library = write_labelled_library(tmp_path, "a", "b", "c", "d")
    (library.scan("b").folder / "gt.npz").unlink()
    (library.scan("c").folder / "gt.npz").write_bytes(b"")
    library.write_split("train", ["a", "b", "c"])
    library.write_split("train_1", ["d", "c"])
    parts, failures = choose_parts(library, "train", [0.5, 1.0], ["train_1"], seed=0)
    assert names_of(parts) == {"0.5": ["a"], "1.0": ["a"], "train_1": ["d"]}
    assert [failure.name for failure in failures] == ["c"]
    assert names_of(choose_parts(library, "", [], ["train_1"], 0)[0]) == {"train_1": ["d"]}
    with pytest.raises(InputError, match="split val"):
        choose_parts(library, "val", [1.0], [], 0)


def test_learns_with_the_complete_loss_and_goes_on_where_it_ended(tmp_path):
    library = write_labelled_library(tmp_path, "a", "b")
    scans = [library.scan(name) for name in library.names()]
    path = train_on_labels(scans, TINY, tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["settings"]["loss"]["kind"] == "baseline" != TINY.loss.kind
    assert (tmp_path / "run" / "scans.txt").read_text() == "a\nb\n"
    checkpoint = load_checkpoint(path)
    assert from_dict(VoxelsConfig, checkpoint.settings["voxels"]) == TINY.voxels
    assert (checkpoint.provenance["scans"], checkpoint.provenance["steps"]) == (2, 2)

    log = (tmp_path / "run" / "log.csv").read_text()
    again = weights_of(train_on_labels(scans, TINY, tmp_path / "run"))
    assert (tmp_path / "run" / "log.csv").read_text() == log  # nothing was learned twice
    assert all(
        (again[name] == value).all() for name, value in checkpoint.network.state_dict().items()
    )


def test_a_folder_is_of_one_training(tmp_path):
    library = write_labelled_library(tmp_path, "a", "b")
    scans = [library.scan(name) for name in library.names()]
    path = train_on_labels(scans, TINY, tmp_path / "run")
    with pytest.raises(
        InputError, match=r"run: holds a training on 2 other scans, now there are 1"
    ):
        train_on_labels(scans[:1], TINY, tmp_path / "run")
    assert (tmp_path / "run" / "scans.txt").read_text() == "a\nb\n"
    with pytest.raises(InputError, match=r"holds another run: .*initial"):
        train_on_labels(scans, TINY, tmp_path / "run", initial=path)


def test_each_part_starts_anew_from_the_initial_weights_and_a_failure_costs_its_own_part(
    tmp_path, capsys
):
    library = write_labelled_library(tmp_path, "a", "b")
    scans = [library.scan(name) for name in library.names()]
    (initial,), none = train_on_parts({"1.0": scans}, TINY, tmp_path)
    assert (initial.parent.name, none) == ("scratch_1.0", [])
    # No step: what comes out is what it started from, beside batch statistics.
    still = replace(TINY, first_round=replace(TINY.first_round, learning_rate=0.0))
    parts = {"none": [], "0.5": scans[:1], "1.0": scans}
    paths, failures = train_on_parts(parts, still, tmp_path, initial)
    assert [path.parent.name for path in paths] == ["finetuned_0.5", "finetuned_1.0"]
    assert [failure.name for failure in failures] == ["finetuned_none"]
    assert "finetuned_0.5: 1 labelled scans" in capsys.readouterr().err
    start = weights_of(initial)
    for path in paths:
        weights = weights_of(path)
        assert all((weights[n] == start[n]).all() for n in weights if n.endswith("weight"))


def assignments():
    """TINY on the command line, of a recipe with other settings."""

    def flat(values, section=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{section}{key}.")
            else:
                yield f"{section}{key}={json.dumps(value)}"

    settings = {key: to_dict(TINY)[key] for key in ("voxels", "network", "first_round")}
    return [word for text in flat(settings) for word in ("--set", text)]


def test_the_command_trains_each_share_and_says_where(tmp_path, capsys):
    write_labelled_library(tmp_path, "a", "b")
    output = tmp_path / "run"
    command = [str(tmp_path), "-o", str(output), "--shares", "0.5", "1.0", *assignments()]
    assert few_labels.main(command) == 0
    printed = capsys.readouterr().out
    for part in ("scratch_0.5", "scratch_1.0"):
        assert f"checkpoint: {output / part / 'checkpoint.safetensors'}" in printed
    drawn = (output / "scratch_0.5" / "scans.txt").read_text()
    assert drawn in ("a\n", "b\n")


def test_mistakes_are_told_before_anything_is_learned(tmp_path, capsys):
    library = write_labelled_library(tmp_path, "a")
    command = [str(tmp_path), "-o", str(tmp_path / "run")]
    assert few_labels.main([*command, "--shares", "2"]) == 2
    assert few_labels.main([*command, "--lists", "train_1"]) == 2
    (library.scan("a").folder / "gt.npz").unlink()
    assert few_labels.main(command) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in errors] == [
        "--shares",
        "split train_1",
        "labels",
    ]
    assert not (tmp_path / "run").exists()
