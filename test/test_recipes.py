"""The recipes as shell scripts: what they run can be run, failures, and tiny ones to the end."""

import importlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scan_sources
import torch
from scan_sources import LABEL_MAP, jpeg, sens_frame, sens_header
from small_library import small_mesh, write_small_library
from small_scan import BOXES, CAMERA, small_frames

from training.probes.few_labels import SHARES
from training.scans.library import Library
from training.unscene3d.recipe import RECIPES as NAMED
from training.unscene3d.recipe import UnScene3DConfig
from unscene_ros.models.checkpoint import load_checkpoint, save_checkpoint
from unscene_ros.models.instance_network import InstanceNetwork
from unscene_ros.models.sparse_unet import SparseUNet, SparseUNetConfig
from unscene_ros.ply import ply_bytes
from unscene_ros.settings import from_assignments, from_dict

REPOSITORY = Path(__file__).parents[1]
RECIPES = REPOSITORY / "training" / "recipes"
ROOMS, OWN, SCANNET = (
    RECIPES / f"unscene3d_{name}.sh" for name in ("rooms", "own_recordings", "scannet")
)
CALLS = {
    ROOMS: ["OUTPUT"],
    OWN: ["OUTPUT", "a bag", "a_scan"],
    SCANNET: ["SCANNET", "csc.pth", "OUTPUT"],
}
TINY = (
    "first_round.steps=1 later_rounds.steps=1 first_round.batch_size=1 later_rounds.batch_size=1 "
    "first_round.threads=1 later_rounds.threads=1 rounds=2 samples.max_voxels=1500 "
    "network.backbone.architecture=Res16UNet14S network.decoder.queries=8 "
    "network.decoder.rounds=1 export.inference.min_score=0.0 export.passes=0"
)


def run(recipe: Path, *arguments, folder=None, **variables) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable, "WORKERS": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(REPOSITORY)} | variables
    return subprocess.run(
        [str(recipe), *map(str, arguments)],
        cwd=folder or REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def fake_python(folder: Path, lines: str = "") -> Path:
    """A program in the place of Python that writes down what it should run."""
    path = folder / "fake python"
    path.write_text(
        f'#!/bin/bash\nprintf "%q " "$@" >> "{folder}/calls"\necho >> "{folder}/calls"\n{lines}\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def commands(recipe: Path, folder: Path, *arguments, **variables) -> list[list[str]]:
    """What the recipe runs, as words after `python -m`."""
    done = run(recipe, *arguments, folder=folder, PYTHON=str(fake_python(folder)), **variables)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    lines = (folder / "calls").read_text().splitlines()
    (folder / "calls").unlink()
    words = [shlex.split(line) for line in lines]
    assert all(line[0] == "-m" for line in words)
    return [line[1:] for line in words]


# --- what is run ---


@pytest.mark.parametrize("recipe", CALLS, ids=lambda path: path.stem)
def test_every_command_is_understood_and_only_data_is_missing(recipe, tmp_path, capsys):
    """Each is called where there is nothing: it must complain of that, and of nothing else."""
    lines = commands(recipe, tmp_path, *CALLS[recipe], SETTINGS="seed=3 rounds=2")
    assert len({tuple(line) for line in lines}) >= 3
    for module, *arguments in {tuple(line) for line in lines}:
        if module == "training.scans.rooms":  # which needs nothing
            arguments[arguments.index("-o") + 1] = "/proc/nowhere"
        shutil.rmtree(tmp_path / "OUTPUT", ignore_errors=True)
        code = importlib.import_module(module).main(arguments)
        said = capsys.readouterr().err
        assert code != 0
        missing = r"expected a folder 'scans'|round|few_label|csc\.pth|scans/|a bag|a_scan|/nowhere"
        assert re.search(missing, said), (module, arguments, said)
        assert "unknown setting" not in said and "usage:" not in said


def test_paths_are_those_of_where_the_recipe_is_called(tmp_path):
    (tmp_path / "deep").mkdir()
    lines = commands(OWN, tmp_path, "../out", "deep/bag", INITIAL="x.safetensors")
    recorded, rounds = lines[0], lines[-1]
    assert recorded[1:4] == [f"{tmp_path}/deep/bag", "-o", f"{tmp_path.parent}/out"]
    assert rounds[rounds.index("--initial") + 1] == f"{tmp_path}/x.safetensors"
    (first, *_) = commands(ROOMS, tmp_path)
    assert first[first.index("-o") + 1] == "output/unscene3d_rooms"  # of the repository


def test_variables_change_the_recipes(tmp_path):
    lines = commands(
        ROOMS, tmp_path, ROOMS="3 5-6", ROOM_OPTIONS="--set frame_count=4",
        RECIPE="default", SETTINGS="rounds=1 voxels.channels=[color,normal]", WORKERS="7",
    )  # fmt: skip
    assert lines[0][1:4] == ["3", "5-6", "-o"] and lines[0][-2:] == ["--set", "frame_count=4"]
    rounds = next(line for line in lines if line[0] == "training.unscene3d.rounds")
    options = " ".join(rounds)
    assert "--recipe default --set rounds=1 --set voxels.channels=[color,normal]" in options
    assert "--workers 7" in options


def test_the_recipe_of_the_shipped_checkpoint_is_small_as_it_is(tmp_path):
    rounds = next(
        line for line in commands(ROOMS, tmp_path) if line[0] == "training.unscene3d.rounds"
    )
    assert "--set" not in rounds and rounds[rounds.index("--recipe") + 1] == "small"


def settings_by_run(lines: list[list[str]]) -> dict[str, set[str]]:
    """The settings of each run of rounds, by the name of its folder."""
    found = {}
    for line in lines:
        if "training.unscene3d.rounds" in line:
            name = Path(line[line.index("-o") + 1]).name
            found[name] = {after for word, after in pairwise(line) if word == "--set"}
    return found


@pytest.mark.parametrize(
    ("table", "runs", "rows"),
    [
        ("table1", {"cuts_both"}, 5),
        ("table2", {f"{m}_{d}" for m in ("cuts", "freemask") for d in ("2d", "3d", "both")}, 6),
        ("table3", {"baseline", "projection", "cuts_both"}, 4),
        ("table4", {"cuts_3d", "cuts_both"}, 4),
        ("table5", {"cuts_both"}, 12),
    ],
)
def test_each_table_of_the_paper_can_be_made_alone(table, runs, rows, tmp_path):
    lines = commands(SCANNET, tmp_path, "scannet", "csc.pth", "out", table)
    made = settings_by_run(lines)
    assert made.keys() == runs
    methods = {name: name.split("_") for name in runs if "_" in name}
    for name, (method, modality) in methods.items():
        assert f"pseudo_masks.method={method}" in made[name]
        assert f"pseudo_masks.{method}.affinity.modality={modality}" in made[name]
    assert all("features.images.frame_step=1" in settings for settings in made.values())
    probes = [line for line in lines if line[0] == "training.probes.average_precision"]
    assert [line[line.index("--protocol") + 1] for line in probes] == ["compat", "clean"]
    for line in probes:
        assert sum("=" in word for word in line) == rows
    # The row of pseudo masks means those that were made.
    for row in (word for word in probes[0] if "=pseudo_masks:paper " in word):
        name, method = row.split(", ")[0], row.split("=", 1)[1].split()
        assert set(method[1:]) == made[name]


def test_losses_of_the_third_table_share_their_masks(tmp_path):
    made = settings_by_run(commands(SCANNET, tmp_path, "scannet", "csc.pth", "out", "table3"))
    configs = [
        from_dict(UnScene3DConfig, from_assignments(sorted(settings)), base=NAMED["paper"])
        for settings in made.values()
    ]
    assert {config.loss.kind for config in configs} == {"baseline", "projection", "drop"}
    assert all(config.pseudo_masks == configs[0].pseudo_masks for config in configs)
    assert all(config.features == configs[0].features for config in configs)


def test_parts_of_the_labels_are_learned_from_scratch_and_after_self_training(tmp_path):
    lines = commands(SCANNET, tmp_path, "scannet", "csc.pth", "out", "table5")
    trained = [line for line in lines if "training.probes.few_labels" in line]
    starts = [line[line.index("--initial") + 1] if "--initial" in line else "" for line in trained]
    assert starts == ["", f"{tmp_path}/out/runs/cuts_both/checkpoint.safetensors"]
    folder = Path(trained[0][trained[0].index("-o") + 1])
    probe = next(line for line in lines if line[0] == "training.probes.average_precision")
    judged = {word.split("checkpoint:")[1] for word in probe if "checkpoint:" in word}
    assert judged == {
        str(folder / f"{start}_{share}" / "checkpoint.safetensors")
        for start in ("scratch", "finetuned")
        for share in SHARES
    }


def test_several_gpus_train_together(tmp_path):
    lines = commands(SCANNET, tmp_path, "scannet", "csc.pth", "out", "table1", GPUS="4")
    rounds = next(line for line in lines if "training.unscene3d.rounds" in line)
    assert rounds[:5] == [
        "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "-m"
    ]  # fmt: skip


# --- what fails ---


@pytest.mark.parametrize(
    ("recipe", "arguments"), [(OWN, ["only_output"]), (SCANNET, ["scannet", "csc.pth"])]
)
def test_too_few_arguments_print_how_it_is_called(recipe, arguments, tmp_path):
    done = run(recipe, *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert f"training/recipes/{recipe.name} " in done.stderr and "pipefail" not in done.stderr


def test_an_unknown_table_is_told_before_any_work(tmp_path):
    done = run(SCANNET, "a", "b", "c", "table4", "table6", PYTHON=str(fake_python(tmp_path)))
    assert done.returncode == 2 and "got table6" in done.stderr
    assert not (tmp_path / "calls").exists()


def test_scans_that_fail_do_not_stop_the_recipe_but_are_not_forgotten(tmp_path):
    python = fake_python(tmp_path, "[[ $2 != training.scans.fuse ]] || exit 1")
    done = run(ROOMS, tmp_path / "out", PYTHON=str(python))
    assert done.returncode == 1
    assert "average_precision" in (tmp_path / "calls").read_text().splitlines()[-1]


@pytest.mark.parametrize("code", [2, 130])
def test_a_mistake_or_ctrl_c_stops_the_recipe(code, tmp_path):
    python = fake_python(tmp_path, f"[[ $2 != training.scans.fuse ]] || exit {code}")
    done = run(ROOMS, tmp_path / "out", PYTHON=str(python))
    assert done.returncode == code
    assert "training.scans.fuse" in (tmp_path / "calls").read_text().splitlines()[-1]


# --- to the end ---


@pytest.mark.slow
def test_rooms_to_the_end_and_once_more(tmp_path):
    variables = {
        "ROOMS": "0-1", "HELD_OUT": "9000", "SETTINGS": f"{TINY} voxels.voxel_size_m=0.1",
        "ROOM_OPTIONS": "--set image_width=80 --set image_height=60 --set frame_count=6",
    }  # fmt: skip
    done = run(ROOMS, tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "held_out.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["training_free", "rounds, round 1", "rounds, round 2"]
    assert all(row["ap"] is not None and row["objects"] > 0 for row in rows)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    load_checkpoint(checkpoint, InstanceNetwork)
    written = checkpoint.with_name("round_2").joinpath("state.pt").stat().st_mtime_ns
    assert run(ROOMS, tmp_path, **variables).returncode == 0
    assert (tmp_path / "run" / "round_2" / "state.pt").stat().st_mtime_ns == written


def write_recording(folder: Path, count: int = 12) -> Path:
    return write_small_library(folder, "kitchen", frame_count=count).scan("kitchen").folder


@pytest.mark.slow
def test_own_recordings_to_the_end_although_one_is_empty(tmp_path):
    recording = write_recording(tmp_path / "recorded")
    (recording / "mesh.ply").unlink()
    (tmp_path / "empty").mkdir()
    settings = f"{TINY} features.images.frame_step=1"
    done = run(OWN, tmp_path / "mine", recording, tmp_path / "empty", SETTINGS=settings)
    assert done.returncode == 1, done.stderr
    assert "failed: empty: " in done.stderr
    checkpoint = tmp_path / "mine" / "run" / "checkpoint.safetensors"
    assert str(checkpoint) in done.stdout
    load_checkpoint(checkpoint, InstanceNetwork)
    assert Library(tmp_path / "mine").names() == ["kitchen"]
    done = run(
        OWN, tmp_path / "mine", recording,
        SETTINGS=settings, RUN="second", INITIAL=str(checkpoint),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "second" / "checkpoint.safetensors").exists()


def write_scannet(root: Path, *names: str) -> None:
    """The small scan of two boxes as scenes of ScanNet, with pictures and labels."""
    mesh = small_mesh()
    thing = np.zeros(len(mesh.vertices), np.int64)  # floor, then the boxes
    for number, (low, high) in enumerate(BOXES, start=1):
        inside = ((mesh.vertices > low - 0.03) & (mesh.vertices < high + 0.03)).all(axis=1)
        thing[inside & (mesh.vertices[:, 2] > 0.03)] = number
    rows = [f"{i}\t{raw}\t{raw}\t{nyu}" for i, (raw, nyu) in enumerate(LABEL_MAP.items())]
    table = "\n".join(["id\traw_category\tcategory\tnyu40id", *rows])
    groups = [
        {"id": number, "objectId": number, "label": label, "segments": [number]}
        for number, label in enumerate(("floor", "chair", "table"))
    ]
    (root / "scans").mkdir(parents=True)
    (root / "scannetv2-labels.combined.tsv").write_text(table + "\n")
    for name in names:
        folder = root / "scans" / name
        folder.mkdir()
        (folder / f"{name}_vh_clean_2.ply").write_bytes(ply_bytes(mesh))
        (folder / f"{name}.txt").write_text(
            "axisAlignment = " + " ".join(str(value) for value in np.eye(4).ravel()) + "\n"
        )
        (folder / f"{name}_vh_clean_2.0.010000.segs.json").write_text(
            json.dumps({"sceneId": name, "segIndices": thing.tolist()})
        )
        (folder / f"{name}.aggregation.json").write_text(json.dumps({"segGroups": groups}))
        (folder / f"{name}.sens").write_bytes(stream_of_small_scan())


def stream_of_small_scan() -> bytes:
    size = (CAMERA.width, CAMERA.height)
    frames = [
        sens_frame(
            number,
            frame.world_from_camera,
            jpeg(frame.color),
            zlib.compress(np.rint(1000 * frame.depth).astype(np.uint16).tobytes()),
        )
        for number, frame in enumerate(small_frames())
    ]
    return sens_header(len(frames), sizes=(*size, *size)) + b"".join(frames)


@pytest.mark.slow
def test_a_table_of_the_paper_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(scan_sources, "COLOR_K", CAMERA.intrinsics)
    monkeypatch.setattr(scan_sources, "DEPTH_K", CAMERA.intrinsics)
    source, library = tmp_path / "scannet", tmp_path / "out"
    names = {"train": "scene0000_00", "val": "scene0001_00"}
    write_scannet(source, *names.values())
    for split, name in names.items():
        (source / f"scannetv2_{split}.txt").write_text(name + "\n")
    torch.manual_seed(0)
    library.mkdir()
    # In place of the published weights, which are large.
    save_checkpoint(library / "csc.safetensors", SparseUNet(SparseUNetConfig("Res16UNet14S")))
    settings = (
        f"{TINY} features.images.features.provider=filters voxels.voxel_size_m=0.08 "
        "features.oversegmentation.rule=normal_color features.oversegmentation.k=0.03 "
        "features.oversegmentation.min_vertices=10 oversegmentation.rule=normal_color "
        "oversegmentation.k=0.03 oversegmentation.min_vertices=10 "
        "pseudo_masks.cuts.limits.min_segments=1"
    )
    done = run(
        SCANNET, source, tmp_path / "csc.pth", library, "data", "table4",
        IMPORT_OPTIONS="--frame-step 3", SETTINGS=settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for protocol in ("compat", "clean"):
        rows = json.loads((library / "tables" / f"table4_{protocol}.json").read_text())["rows"]
        expected = [
            f"{variant}, {what}"
            for variant in ("cuts_3d", "cuts_both")
            for what in ("pseudo masks", "round 1", "round 2")
        ]
        assert [row["name"] for row in rows] == expected
        assert all(row["ap"] is not None for row in rows)
        assert {row["objects"] for row in rows} == {2}
