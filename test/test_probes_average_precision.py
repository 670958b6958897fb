"""Many methods in one table: figures of known masks, rounds and their marks, and what fails."""

import json

import numpy as np
import pytest
import torch
from labelled_library import TINY, write_labelled_library

from training.artifacts import file_hash, pack_masks, save_artifact
from training.baselines.hdbscan import HdbscanConfig
from training.probes import average_precision
from training.probes.labels import object_masks, read_labels
from training.probes.rows import (
    BASELINES,
    PICTURE_BASELINES,
    Row,
    parse_rows,
    prediction_of_masks,
)
from training.unscene3d.pseudo_masks import pseudo_masks_identity
from training.unscene3d.recipe import recipe
from training.unscene3d.train import shared_settings
from unscene_ros.models.checkpoint import save_checkpoint
from unscene_ros.models.instance_network import InstanceNetwork
from unscene_ros.scene import InputError, Mesh


@pytest.fixture
def library(tmp_path):
    return write_labelled_library(tmp_path / "library", "a", "b")


def write_masks(scan, masks, scores, assignments="small"):
    """As pseudo masks of the recipe."""
    identity = pseudo_masks_identity(scan, recipe(assignments))
    path = scan.result_path("masks", identity, identity.step)
    scores, sources = np.array(scores, np.float32), np.full(len(masks), "known")
    save_artifact(path, identity, masks=pack_masks(masks), scores=scores, sources=sources)


def true_masks(scan):
    return object_masks(scan.mesh(), read_labels(scan))


def write_network(path, seed=0, **origin):
    """Of random weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    save_checkpoint(path, InstanceNetwork(TINY.network), shared_settings(TINY), origin)


def table(library, tmp_path, *rows, code=0):
    """The JSON that the command writes, checked for its exit code."""
    output = tmp_path / "results" / "table.json"
    assert average_precision.main([str(library.root), *rows, "-o", str(output)]) == code
    return json.loads(output.read_text())


def test_vertices_of_the_same_masks_are_one_segment():
    rng = np.random.default_rng(0)
    masks = rng.random((11, 300)) < 0.1
    vertices = rng.random((300, 3)).astype(np.float32)
    mesh = Mesh(vertices, np.zeros((0, 3), np.int32), np.zeros((300, 3), np.uint8), vertices)
    prediction = prediction_of_masks(mesh, masks, np.linspace(0, 1, 11, dtype=np.float32))
    segments = prediction.segments
    assert np.array_equal(prediction.instances.masks[:, segments.of_vertex], masks)
    assert segments.count == len({column.tobytes() for column in masks.T})
    assert prediction.instances.scores[-1] == 1


@pytest.mark.parametrize(("mask_count", "vertex_count"), [(0, 5), (3, 0), (0, 0)])
def test_no_masks_and_no_vertices_are_predictions(mask_count, vertex_count):
    vertices = np.zeros((vertex_count, 3), np.float32)
    mesh = Mesh(vertices, np.zeros((0, 3), np.int32), vertices.astype(np.uint8), vertices)
    masks, scores = np.zeros((mask_count, vertex_count), bool), np.ones(mask_count, np.float32)
    prediction = prediction_of_masks(mesh, masks, scores)
    assert prediction.segments.count == min(vertex_count, 1)
    assert prediction.instances.masks.shape == (mask_count, prediction.segments.count)


def test_known_pseudo_masks_have_known_figures(library, tmp_path, capsys):
    a, b = (library.scan(name) for name in "ab")
    write_masks(a, true_masks(a), [1.0, 0.9])
    write_masks(b, true_masks(b)[:1], [0.8])  # misses one of four objects
    result = table(library, tmp_path, "first masks=pseudo_masks:small")
    (row,) = result["rows"]
    assert (row["objects"], row["predictions"], row["mask_precision"]) == (4, 3, 1.0)
    assert row["ap50"] == row["ap25"] == 0.75  # three correct ones first, the last never found
    assert row["seconds_per_scan"] is None
    assert (row["protocol"], row["grid"]) == ("clean", "scannet")
    assert row["origin"]["settings"]["pseudo_masks"]["method"] == "training_free"
    assert list(result["scans"]) == ["a", "b"] and result["left_out"] == {}
    assert result["provenance"]["versions"]["numpy"] == np.__version__
    assert "75.0" in capsys.readouterr().out


def test_pseudo_masks_of_other_settings_are_not_taken_for_these(library, tmp_path, capsys):
    for name in library.names():
        scan = library.scan(name)
        write_masks(scan, true_masks(scan), [1.0, 0.9])
    other = "pseudo_masks.training_free.max_length_m=3"
    rows = f"other=pseudo_masks:small {other}", "these=pseudo_masks:small"
    failed, good = table(library, tmp_path, *rows, code=1)["rows"]
    assert "on scan a: scan a: no pseudo masks of these settings" in failed["error"]
    assert "ap" not in failed and good["ap"] == 1
    assert "failed: other: on scan a" in capsys.readouterr().err


def test_methods_that_need_nothing_are_measured_on_every_scan_with_their_whole_list(
    library, tmp_path
):
    methods = "training-free", *BASELINES, *PICTURE_BASELINES
    shown = "shown=training-free min_score=0.5"
    rows = table(library, tmp_path, *(f"{name}={name}" for name in methods), shown)["rows"]
    for row in rows:
        assert 0 <= row["ap"] <= row["ap50"] <= row["ap25"] <= 1
        assert row["objects"] == 4 and row["seconds_per_scan"] > 0
    assert rows[0]["ap25"] == 1  # two boxes on a floor
    assert rows[0]["origin"]["settings"]["min_score"] == 0
    assert rows[-1]["origin"]["settings"]["min_score"] == 0.5
    assert rows[-1]["predictions"] <= rows[0]["predictions"]


def test_protocol_and_grid_are_those_asked_for(library, tmp_path):
    for name in library.names():
        write_masks(library.scan(name), true_masks(library.scan(name)), [1.0, 0.9])
    options = "--protocol", "compat", "--grid", "full"
    (row,) = table(library, tmp_path, "these=pseudo_masks:small", *options)["rows"]
    assert (row["protocol"], row["grid"], row["objects"]) == ("compat", "full", 6)  # the floors too


def test_a_network_shows_its_whole_ranked_list(library, tmp_path):
    path = tmp_path / "network.safetensors"
    write_network(path)
    rows = f"all=checkpoint:{path} min_area_m2=0", f"sure=checkpoint:{path} min_score=1"
    every, sure = table(library, tmp_path, *rows)["rows"]
    assert every["predictions"] > 0 == sure["predictions"]
    assert every["origin"]["checkpoint"] == sure["origin"]["checkpoint"]
    assert every["origin"]["settings"]["min_score"] == 0


def test_a_network_works_together_with_the_training_free_segmenter(library, tmp_path):
    path = tmp_path / "network.safetensors"
    write_network(path)
    rows = (
        f"both=consensus:{path}",
        f"free=consensus:{path} consensus.training_free_share=1 consensus.max_overlap=1",
    )
    both, free = table(library, tmp_path, *rows)["rows"]
    assert both["predictions"] > 0 and both["origin"]["settings"]["consensus"]["min_score"] == 0
    assert both["origin"]["checkpoint"] == file_hash(path)
    assert free["ap25"] == 1  # two boxes on a floor


def test_all_rounds_are_rows_and_only_the_one_that_the_run_ended_with_is_the_result(
    library, tmp_path
):
    run = tmp_path / "run"
    paths = [run / f"round_{number}" / "checkpoint.safetensors" for number in (1, 2, 3)]
    for seed, path in enumerate(paths):
        write_network(path, seed)
    write_network(run / "checkpoint.safetensors", last_round=file_hash(paths[1]))
    rows = table(library, tmp_path, f"self-trained=rounds:{run}", "free=training-free")["rows"]
    assert [row["name"] for row in rows] == [
        "self-trained, round 1", "self-trained, round 2", "self-trained, round 3", "free",
    ]  # fmt: skip
    assert len({row["origin"]["checkpoint"] for row in rows[:3]}) == 3
    # The third is left from a longer run.
    assert [row["mark"] == "result" for row in rows] == [False, True, False, False]


@pytest.mark.parametrize(
    ("figures", "marks"),
    [
        ((0.1, 0.3, 0.2), ("", "oracle best, not chosen", "result")),
        ((0.1, 0.2, 0.3), ("", "", "result")),
        ((0.2, 0.2, 0.2), ("", "", "result")),
        ((0.2, None, None), ("oracle best, not chosen", "", "result")),
        ((None, None, None), ("", "", "result")),
    ],
)
def test_the_round_that_labels_like_best_is_marked_apart(tmp_path, monkeypatch, figures, marks):
    rows = [Row(name, "", None, {}, "run", name == "3") for name in "123"]
    of_row = iter(figures)
    monkeypatch.setattr(average_precision, "measure", lambda *_: {"ap": next(of_row)})
    lines = average_precision.measure_rows(rows, [], {}, tmp_path / "table.json")
    assert tuple(line["mark"] for line in lines) == marks


def test_a_run_that_has_not_ended_has_no_result(tmp_path):
    write_network(tmp_path / "round_1" / "checkpoint.safetensors")
    with pytest.raises(InputError, match=r"row run: expected .*checkpoint\.safetensors, which"):
        parse_rows(f"run=rounds:{tmp_path}")


def test_a_row_that_fails_does_not_lose_the_others(library, tmp_path, monkeypatch):
    def broken(mesh, config):
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(BASELINES, "hdbscan", (HdbscanConfig, broken))
    (tmp_path / "damaged.safetensors").write_bytes(b"not one")
    rows = (
        "bug=hdbscan",
        f"damaged=checkpoint:{tmp_path / 'damaged.safetensors'}",
        "good=felzenszwalb",
    )
    lines = table(library, tmp_path, *rows, code=1)["rows"]
    assert lines[0]["error"] == "on scan a: ZeroDivisionError('a bug')"
    assert "damaged.safetensors" in lines[1]["error"]
    assert lines[2]["objects"] == 4


def test_results_are_on_disk_before_the_next_row_begins(library, tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    seen = []

    def measure(row, *_):
        seen.append(len(json.loads(path.read_text())["rows"]) if path.exists() else None)
        return {"ap": 0.5}

    monkeypatch.setattr(average_precision, "measure", measure)
    rows = [row for name in "xyz" for row in parse_rows(f"{name}=hdbscan")]
    average_precision.measure_rows(rows, [], {}, path)
    assert seen == [None, 1, 2]


def test_scans_that_cannot_be_used_are_left_out_of_every_row_and_named(library, tmp_path, capsys):
    (library.scan("b").folder / "gt.npz").write_bytes(b"")
    result = table(library, tmp_path, "x=felzenszwalb", "y=euclidean_clusters", code=1)
    assert [row["objects"] for row in result["rows"]] == [2, 2]
    assert list(result["scans"]) == ["a"] and list(result["left_out"]) == ["b"]
    assert "left out: b: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["hdbscan"], "row 'hdbscan': expected NAME=METHOD"),
        (["x="], "row 'x=': expected NAME=METHOD"),
        (["x=wishful"], "a method being one of"),
        (["x='hdbscan"], "No closing quotation"),
        (["x=hdbscan tempo=3"], "unknown setting 'tempo'"),
        (["x=hdbscan", "x=felzenszwalb"], "a name of its own, got 'x'"),
        (["=hdbscan"], "a name of its own, got ''"),
        (["x=checkpoint:nowhere.safetensors"], "nowhere.safetensors: cannot be read"),
        (["x=rounds:nowhere"], "row x: expected nowhere/checkpoint.safetensors"),
        (["x=pseudo_masks:"], "recipe: expected one of"),
        (["x=pseudo_masks:small pseudo_masks.method=magic"], "pseudo_masks.method"),
        (["x=hdbscan", "--split", "val"], "split val"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(library, tmp_path, capsys, rows, message):
    output = tmp_path / "results" / "table.json"
    assert average_precision.main([str(library.root), *rows, "-o", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_network_gets_the_segments_of_its_training(library, tmp_path):
    path = tmp_path / "network.safetensors"
    write_network(path)
    (row,) = parse_rows(f"x=checkpoint:{path}")
    scan = library.scan("a")
    mesh = scan.mesh()
    prediction = row.prepare()(scan, mesh).prediction
    segments = scan.segments(TINY.oversegmentation, mesh)
    assert np.array_equal(prediction.segments.of_vertex, segments.of_vertex)
    assert prediction.instances.masks.shape[1] == segments.count


def test_keyframes_are_few_and_spread_and_there_need_be_none(library):
    scan = library.scan("a")
    assert len(scan.keyframes()) == 2
    for path in (scan.folder / "color").iterdir():
        path.unlink()
    (scan.folder / "color").rmdir()
    assert scan.keyframes() == []
