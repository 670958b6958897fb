"""The first masks of scans: every method, what decides them, what is missing, the command."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from boxes_library import TINY, narrow_networks
from small_library import write_small_library

from training.artifacts import Identity, load_artifact, unpack_masks
from training.scans.library import Library
from training.unscene3d import features, pseudo_masks
from training.unscene3d.affinity import AffinityConfig
from training.unscene3d.features import FeaturesConfig, SceneImageFeaturesConfig
from training.unscene3d.freemask import FreeMaskConfig
from training.unscene3d.layers import LayersConfig
from training.unscene3d.masked_cuts import PAPER_CUTS_3D, MaskedCutsConfig
from training.unscene3d.pseudo_masks import (
    PseudoMasksConfig,
    find_pseudo_masks,
    make_pseudo_masks,
    pseudo_masks_identity,
)
from training.unscene3d.segment_graph import MaskLimits
from unscene_ros.image_features import ImageFeaturesConfig
from unscene_ros.models.checkpoint import save_checkpoint
from unscene_ros.models.sparse_unet import SparseUNet
from unscene_ros.oversegmentation import OversegmentationConfig
from unscene_ros.scene import InputError
from unscene_ros.settings import to_dict
from unscene_ros.training_free import TrainingFreeConfig, TrainingFreeSegmenter

SEGMENTS = OversegmentationConfig(k=0.03, min_vertices=10)
CONFIG = replace(
    TINY,
    features=FeaturesConfig(SEGMENTS, SceneImageFeaturesConfig(frame_step=4)),
    pseudo_masks=PseudoMasksConfig(method="cuts"),
)
METHODS = ("cuts", "freemask", "layers", "training_free")


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    narrow_networks(monkeypatch)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A library of two scans of two boxes, with a network for 3D features that nobody trained."""
    root = tmp_path_factory.mktemp("written")
    write_small_library(root, "a", "b")
    with pytest.MonkeyPatch.context() as patch:
        narrow_networks(patch)
        torch.manual_seed(0)
        network = SparseUNet(TINY.network.backbone)
        save_checkpoint(root / "pretrained.safetensors", network, {"voxels": to_dict(TINY.voxels)})
    return root


@pytest.fixture
def library(written, tmp_path):
    return Library(shutil.copytree(written, tmp_path / "library"))


def with_method(method: str, **settings):
    return replace(CONFIG, pseudo_masks=PseudoMasksConfig(method, **settings))


def made(scan, config):
    """The masks (K, V) of the scan with their scores and sources."""
    make_pseudo_masks(scan, config)
    identity = find_pseudo_masks(scan, config)
    arrays = load_artifact(scan.result_path("masks", identity, "pseudo_masks"))
    masks = unpack_masks(arrays["masks"], len(scan.mesh().vertices))
    return masks, arrays["scores"], arrays["sources"].tolist()


def modality(name: str) -> PseudoMasksConfig:
    config = MaskedCutsConfig()
    return PseudoMasksConfig(cuts=replace(config, affinity=replace(config.affinity, modality=name)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_masks_of_whole_segments_with_scores(method, library):
    scan = library.scan("a")
    masks, scores, sources = made(scan, with_method(method))
    assert len(masks) == len(scores) and sources == [method] * len(masks)
    assert masks.any(axis=1).all() and ((scores >= 0) & (scores <= 1)).all()
    of_vertex = scan.segments(SEGMENTS).of_vertex
    for mask in masks:
        held = np.unique(of_vertex[mask])
        np.testing.assert_array_equal(np.isin(of_vertex, held), mask)


def test_the_robot_s_own_segmenter_finds_the_boxes(library):
    scan = library.scan("a")
    masks, _, _ = made(scan, with_method("training_free"))
    vertices = scan.mesh().vertices
    for side in (-0.5, 0.5):
        inside = (np.abs(vertices - (side, 0, 0.2)) < 0.24).all(axis=1) & (vertices[:, 2] > 0.02)
        overlaps = (masks & inside).sum(axis=1) / (masks | inside).sum(axis=1)
        assert overlaps.max() > 0.7


@pytest.mark.parametrize("name", ["2d", "3d", "both"])
def test_only_the_features_of_the_modality_are_made(name, library):
    scan = library.scan("a")
    make_pseudo_masks(scan, replace(CONFIG, pseudo_masks=modality(name)))
    kinds = {path.name.split("-")[0] for path in (scan.folder / "features").glob("*.npz")}
    assert kinds == {"2d": {"image"}, "3d": {"geometry"}, "both": {"image", "geometry"}}[name]


def test_a_second_call_makes_nothing(library, monkeypatch):
    scan = library.scan("a")
    make_pseudo_masks(scan, CONFIG)
    monkeypatch.setattr(pseudo_masks, "save_artifact", None)
    make_pseudo_masks(scan, CONFIG)


def test_damaged_masks_are_not_there_and_made_anew(library):
    scan = library.scan("a")
    masks, scores, _ = made(scan, CONFIG)
    path = next((scan.folder / "masks").glob("*.npz"))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="no pseudo masks of these settings: make them with"):
        find_pseudo_masks(scan, CONFIG)
    again, again_scores, _ = made(scan, CONFIG)
    np.testing.assert_array_equal(again, masks)
    np.testing.assert_array_equal(again_scores, scores)


def identity(scan, config) -> str:
    return pseudo_masks_identity(scan, config).hash


def test_what_decides_the_masks_is_in_their_identity_and_nothing_else(library):
    scan = library.scan("a")
    here = identity(scan, CONFIG)
    coarser = replace(SEGMENTS, k=0.1)
    others = [
        *(with_method(method) for method in METHODS[1:]),
        with_method("cuts", cuts=PAPER_CUTS_3D),
        replace(CONFIG, features=replace(CONFIG.features, oversegmentation=coarser)),
        replace(CONFIG, features=replace(CONFIG.features, images=SceneImageFeaturesConfig(2))),
    ]
    assert len({here, *(identity(scan, other) for other in others)}) == 1 + len(others)
    on_gpu = ImageFeaturesConfig(device="cuda")
    same = [
        replace(CONFIG, rounds=7, voxels=replace(CONFIG.voxels, voxel_size_m=0.3)),
        with_method("cuts", freemask=FreeMaskConfig(anchors=3)),
        replace(
            CONFIG, features=replace(CONFIG.features, images=SceneImageFeaturesConfig(4, on_gpu))
        ),
    ]
    assert {identity(scan, other) for other in same} == {here}
    free = with_method("training_free")
    moved = with_method(
        "training_free",
        training_free=replace(free.pseudo_masks.training_free, image_features=on_gpu),
    )
    assert identity(scan, free) == identity(scan, moved)


def test_another_mesh_network_or_picture_needs_other_masks(library):
    scan = library.scan("a")
    before = identity(scan, CONFIG)
    torch.manual_seed(1)
    save_checkpoint(library.root / "pretrained.safetensors", SparseUNet(TINY.network.backbone))
    assert (other_network := identity(library.scan("a"), CONFIG)) != before
    (scan.folder / "pose" / "000000.txt").unlink()
    assert identity(library.scan("a"), CONFIG) != other_network
    mesh = library.scan("b").mesh()
    library.scan("b").write_mesh(
        replace(mesh, colors=mesh.colors[::-1].copy()), Identity("by hand", {})
    )
    assert identity(library.scan("b"), CONFIG) != other_network


@pytest.mark.parametrize("method", ["training_free", "layers"])
def test_another_model_of_the_same_path_needs_other_masks(method, library):
    model = library.root / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"one")
    dino = ImageFeaturesConfig(provider="dino", model=str(model))
    if method == "layers":
        images = SceneImageFeaturesConfig(4, dino)
        chosen = PseudoMasksConfig("layers", layers=LayersConfig(AffinityConfig(modality="3d")))
        config = replace(CONFIG, pseudo_masks=chosen, features=FeaturesConfig(SEGMENTS, images))
    else:
        config = with_method(method, training_free=TrainingFreeConfig(image_features=dino))
    scan = library.scan("a")
    before = identity(scan, config)
    (model / "weights").write_bytes(b"two")
    features.model_hash.cache_clear()  # it is remembered as long as a command runs
    assert identity(scan, config) != before


def test_the_robot_s_own_segmenter_looks_at_what_the_robot_would_have_kept(library, monkeypatch):
    seen = []

    class Watching(TrainingFreeSegmenter):
        def segment(self, mesh, segments, keyframes=()):
            seen.extend(keyframes)
            return super().segment(mesh, segments, keyframes)

    monkeypatch.setattr(pseudo_masks, "TrainingFreeSegmenter", Watching)
    scan = library.scan("a")
    for number in (4, 8):  # the camera stands still
        shutil.copy(scan.folder / "pose/000000.txt", scan.folder / f"pose/{number:06d}.txt")
    make_pseudo_masks(scan, with_method("training_free"))
    assert [frame.stamp_ns for frame in seen] == [next(scan.frames()).stamp_ns]


def test_without_a_network_for_3d_features_it_says_how_to_get_one(library):
    (library.root / "pretrained.safetensors").unlink()
    scan = library.scan("a")
    with pytest.raises(InputError, match=r"pretrained\.safetensors: no network for 3D features"):
        make_pseudo_masks(scan, CONFIG)
    make_pseudo_masks(scan, replace(CONFIG, pseudo_masks=modality("2d")))
    elsewhere = library.root.parent / "elsewhere.safetensors"
    network = SparseUNet(TINY.network.backbone)
    save_checkpoint(elsewhere, network, {"voxels": to_dict(TINY.voxels)})
    make_pseudo_masks(scan, replace(CONFIG, geometry_checkpoint=str(elsewhere)))


def test_no_mask_at_all_is_a_result(library):
    scan = library.scan("a")
    nothing = MaskedCutsConfig(limits=MaskLimits(min_area_m2=1000))
    masks, scores, sources = made(scan, with_method("cuts", cuts=nothing))
    assert masks.shape == (0, len(scan.mesh().vertices)) and len(scores) == len(sources) == 0


# --- the command ---


def command(library, *options, config=CONFIG) -> list[str]:
    path = library.root / "settings.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    return [str(library.root), "--config", str(path), *options]


def test_what_lacks_something_is_listed_and_the_others_go_on(library, capsys):
    for kind in ("color", "depth"):
        shutil.rmtree(library.scan("a").folder / kind)
    assert pseudo_masks.main(command(library)) == 1
    error = capsys.readouterr().err
    assert "failed: a: scan a: expected pictures" in error and "failed: b" not in error
    find_pseudo_masks(library.scan("b"), CONFIG)
    library.write_split("whole", ["b"])
    assert pseudo_masks.main(command(library, "--split", "whole")) == 0


def test_only_what_is_missing_is_made_by_a_later_run(library, monkeypatch, capsys):
    save = pseudo_masks.save_artifact

    def full(path, identity, **arrays):
        if path.parents[1].name == "b":
            raise InputError(f"{path}: cannot be written (No space left on device)")
        save(path, identity, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(pseudo_masks, "save_artifact", full)
        assert pseudo_masks.main(command(library)) == 1
    assert "failed: b: " in capsys.readouterr().err
    written = next((library.scan("a").folder / "masks").glob("*.npz")).stat().st_mtime_ns
    monkeypatch.setattr(features, "lift_maps", None)  # features are there
    assert pseudo_masks.main(command(library)) == 0
    assert next((library.scan("a").folder / "masks").glob("*.npz")).stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "pseudo_masks.method=magic"), "expected one of cuts, freemask, layers"),
        (("--recipe", "none"), "recipe: expected one of"),
        (("--split", "none"), "split none: expected"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(options, words, library, capsys):
    assert pseudo_masks.main(command(library, *options)) == 2
    assert words in capsys.readouterr().err
