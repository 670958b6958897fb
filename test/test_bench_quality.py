"""The quality benchmark: whom it compares with, and a whole run on two very short recordings."""

import json

import cv2
import numpy as np
import pytest
from benchmarks import LeftOut, bench_quality
from labelled_library import TINY
from small_scan import CAMERA, COLORS, small_frames

from training.scans.rooms import HELD_OUT_SEEDS, RoomConfig
from training.unscene3d.train import shared_settings
from unscene_ros.models.checkpoint import save_checkpoint
from unscene_ros.models.instance_network import InstanceNetwork

FLOOR, LEFT_BOX, RIGHT_BOX = 1, 2, 3  # in the order of COLORS


def write_house(folder, frame_count):
    """The two boxes as a scan folder with instance pictures, in place of the rendered house."""
    for name in ("color", "depth", "instance", "pose"):
        (folder / name).mkdir(parents=True)
    for index, frame in enumerate(small_frames(frame_count)):
        what = (frame.color[:, :, None] == COLORS).all(axis=-1).argmax(axis=-1) + FLOOR
        instance = np.where(frame.depth > 0, what, 0).astype(np.uint16)
        depth_mm = (1000 * frame.depth).round().astype(np.uint16)
        cv2.imwrite(str(folder / f"color/{index}.jpg"), frame.color[..., ::-1])
        cv2.imwrite(str(folder / f"depth/{index}.png"), depth_mm)
        cv2.imwrite(str(folder / f"instance/{index}.png"), instance)
        np.savetxt(folder / f"pose/{index}.txt", frame.world_from_camera)
    np.savetxt(folder / "intrinsic.txt", CAMERA.intrinsics)
    models = {FLOOR: "a_Floor_01", LEFT_BOX: "a_Box_01", RIGHT_BOX: "a_Box_02"}
    named = {str(number): {"model": model} for number, model in models.items()}
    (folder / "instances.json").write_text(json.dumps(named))


def figures(ap, ap50, ap25):
    return {"ap": ap, "ap50": ap50, "ap25": ap25}


def test_the_peer_is_the_method_to_beat_that_is_best_in_that_figure():
    of_method = {
        "training_free": figures(0.3, 0.5, 0.6),
        "pseudo_masks": figures(0.4, 0.6, 0.7),
        "felzenszwalb": figures(0.1, 0.4, 0.0),
        "hdbscan": figures(0.2, 0.1, 0.0),
        "euclidean_clusters": figures(0.1, 0.1, 0.0),
        "default": figures(0.2, 0.55, 0.7),
        "default_checkpoint": figures(0.6, 0.55, 0.8),
    }
    rows = {row["name"]: row for row in bench_quality.compared(of_method, "rooms", 10)}
    assert len(rows) == 21
    ap, ap50, ap25 = (rows[f"{name}_training_free_rooms"] for name in ("ap", "ap50", "ap25"))
    assert (ap["peer"], ap["peer_value"], ap["ratio"]) == ("hdbscan", 0.2, pytest.approx(1.5))
    assert (ap50["peer"], ap50["peer_value"]) == ("felzenszwalb", 0.4)
    assert (ap25["peer_value"], ap25["ratio"]) == (0, None)
    assert rows["ap_pseudo_masks_rooms"]["ratio"] == pytest.approx(2)
    # The peer is the same kind of list without training.
    trained, shown = rows["ap50_default_checkpoint_rooms"], rows["ap50_default_rooms"]
    assert (trained["peer"], trained["peer_value"]) == ("pseudo masks", 0.6)
    assert trained["ratio"] == pytest.approx(0.55 / 0.6)
    assert (shown["peer"], shown["peer_value"]) == ("training free", 0.5)
    assert (rows["ap50_felzenszwalb_rooms"]["value"], rows["ap50_hdbscan_rooms"]["peer"]) == (
        0.4,
        None,
    )


def test_published_figures_are_of_held_out_rooms():
    assert len(bench_quality.SEEDS) == 30
    assert set(bench_quality.SEEDS) <= set(HELD_OUT_SEEDS)


def test_without_the_house_its_rows_are_left_out_and_the_message_says_how_to_get_them(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("UNSCENE_DATA", str(tmp_path))
    with pytest.raises(LeftOut, match=r"small_house: .*small_house is not there; UNSCENE_DATA"):
        next(bench_quality.house_rows())


def test_without_a_network_its_rows_are_left_out_after_all_others(monkeypatch, tmp_path):
    monkeypatch.setenv("UNSCENE_DATA", str(tmp_path))
    monkeypatch.setattr(bench_quality, "SHIPPED_CHECKPOINT", tmp_path / "none.safetensors")
    monkeypatch.setattr(bench_quality, "room_rows", lambda *_: iter([{"name": "a row"}]))
    rows = bench_quality.rows([])
    assert next(rows) == {"name": "a row"}
    with pytest.raises(LeftOut, match=r"default_\*: no .*none.*; .*small_house"):
        next(rows)


def test_a_room_and_a_house_give_every_row(monkeypatch, tmp_path):
    write_house(tmp_path / "small_house", frame_count=30)
    monkeypatch.setenv("UNSCENE_DATA", str(tmp_path))
    checkpoint = tmp_path / "network.safetensors"
    save_checkpoint(checkpoint, InstanceNetwork(TINY.network), shared_settings(TINY))
    monkeypatch.setattr(bench_quality, "SHIPPED_CHECKPOINT", checkpoint)
    config = RoomConfig(image_width=96, image_height=72, frame_count=8)
    rows = {row["name"]: row for row in bench_quality.rows([100], config)}
    for place in ("rooms", "small_house"):
        for method in (*bench_quality.METHODS, *bench_quality.TRAINED):
            for name in ("ap", "ap50", "ap25"):
                assert 0 <= rows[f"{name}_{method}_{place}"]["value"] <= 1
            assert rows[f"seconds_{method}_{place}"]["value"] > 0
        assert rows[f"pseudo_masks_{place}"]["value"] > 0
        assert 0 <= rows[f"pseudo_mask_precision_{place}"]["value"] <= 1
    assert rows["ap50_training_free_small_house"]["value"] == 1  # two boxes, far apart
    assert rows["tracked_objects_small_house"]["value"] == 2
    assert rows["id_switches_small_house"]["value"] == 0
