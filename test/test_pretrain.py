"""Pairs of frames and contrastive pre-training on a small scan of two boxes."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from small_library import write_small_library
from small_scan import BOXES, CAMERA, FLOOR, small_frames

from training.learner import LearnerConfig
from training.scans.library import Library, Scan
from training.unscene3d import frame_pairs, pretrain
from training.unscene3d.augmentation import AugmentationConfig
from training.unscene3d.frame_pairs import (
    FramePairsConfig,
    find_all_pairs,
    find_matches,
    find_pairs,
    frame_surface,
    has_pairs,
    save_pairs,
)
from training.unscene3d.pretrain import (
    ContrastiveNetwork,
    PairSampler,
    PretrainConfig,
    contrastive_loss,
)
from unscene_ros.models.checkpoint import load_checkpoint
from unscene_ros.models.sparse_unet import SparseUNet, SparseUNetConfig
from unscene_ros.recordings.scan_folder import ScanFolder
from unscene_ros.scene import Frame, InputError
from unscene_ros.synchronization import Drops
from unscene_ros.voxels import VoxelsConfig

TOLERANCE_M = 0.02  # the small scan is drawn through the corners of pixels
PAIRS = FramePairsConfig(frame_step=1, pixel_step=2)
CONFIG = PretrainConfig(
    voxels=VoxelsConfig(voxel_size_m=0.1),
    network=SparseUNetConfig("Res16UNet14A"),
    feature_channels=8,
    pairs=dataclasses.replace(PAIRS, pixel_step=4),
    match_distance_m=0.05,
    matches=64,
    learner=LearnerConfig(steps=2, batch_size=2, learning_rate=1e-3, device="cpu", threads=1),
)
ASSIGNMENTS = [
    "voxels.voxel_size_m=0.1", "network.architecture=Res16UNet14A", "pairs.frame_step=1",
    "pairs.pixel_step=4", "matches=64", "learner.steps=2", "learner.batch_size=2",
    "learner.threads=1",
]  # fmt: skip


@pytest.fixture
def library(tmp_path) -> Library:
    return write_small_library(tmp_path / "library", "a", "b")


@pytest.fixture
def scan(library):
    return library.scan("a")


def frame_of(depth, world_from_camera=None):
    depth = np.asarray(depth, np.float32)
    color = np.arange(depth.size * 3).reshape(*depth.shape, 3).astype(np.uint8)
    camera = dataclasses.replace(CAMERA, width=depth.shape[1], height=depth.shape[0])
    pose = np.eye(4) if world_from_camera is None else world_from_camera
    return Frame(0, camera, color, depth, pose)


# Surfaces of frames


@pytest.mark.parametrize("pixel_step", [1, 3])
def test_the_surface_of_a_frame_lies_on_the_boxes_and_looks_at_the_camera(pixel_step):
    frame = small_frames()[2]
    surface = frame_surface(frame, dataclasses.replace(PAIRS, pixel_step=pixel_step))
    points = surface.vertices
    on_floor = np.abs(points[:, 2]) < TOLERANCE_M
    on_a_box = np.zeros(len(points), bool)
    for low, high in (*BOXES, FLOOR):
        on_a_box |= ((points > low - TOLERANCE_M) & (points < high + TOLERANCE_M)).all(axis=1)
    assert on_a_box.all()
    up = surface.normals[on_floor].mean(axis=0)
    assert np.allclose(up, (0, 0, 1), atol=0.1)
    to_camera = frame.world_from_camera[:3, 3] - surface.vertices
    assert ((to_camera * surface.normals).sum(axis=1) > 0).mean() > 0.99


def test_pixels_keep_their_colours_and_far_ones_and_steps_of_depth_are_left_out():
    depth = np.ones((4, 6))
    depth[:, 3:] = 2.0
    depth[0, 0] = 0.0
    frame = frame_of(depth)
    config = FramePairsConfig()
    surface = frame_surface(frame, config)
    assert len(surface.vertices) == 4 * 6 - 1
    assert set(np.round(surface.vertices[surface.faces][..., 2].std(axis=1), 6)) == {0.0}
    assert surface.colors.tolist() == frame.color.reshape(-1, 3)[1:].tolist()
    near = frame_surface(frame, dataclasses.replace(config, max_depth_m=1.5))
    assert len(near.vertices) == 4 * 3 - 1


def test_a_frame_without_depth_has_no_surface():
    assert len(frame_surface(frame_of(np.zeros((4, 6))), PAIRS).vertices) == 0


# Pairs


def test_frames_that_share_enough_cells_are_pairs(scan):
    config = dataclasses.replace(PAIRS, pixel_step=4, smallest_overlap=0.6)
    folder = ScanFolder(scan.folder)
    surfaces = [frame_surface(folder.frame(number), config) for number in range(12)]
    cells = [{tuple(cell) for cell in np.floor(s.vertices / config.cell_m)} for s in surfaces]
    expected = [
        [a, b]
        for a, b in itertools.combinations(range(12), 2)
        if len(cells[a] & cells[b]) >= 0.6 * max(len(cells[a]), len(cells[b]))
    ]
    assert find_pairs(folder, config, Drops()).tolist() == expected
    assert 0 < len(expected) < 66


def test_only_frames_at_the_step_are_paired_and_too_alike_ones_are_not(scan):
    folder = ScanFolder(scan.folder)
    every_third = find_pairs(folder, dataclasses.replace(PAIRS, frame_step=3), Drops())
    assert set(every_third.ravel() % 3) == {0}
    different = find_pairs(folder, dataclasses.replace(PAIRS, largest_overlap=0.6), Drops())
    assert 0 < len(different) < len(find_pairs(folder, PAIRS, Drops()))


def test_frames_that_cannot_be_used_are_in_no_pair(scan):
    np.savetxt(scan.folder / "pose/000003.txt", np.full((4, 4), np.nan))
    (scan.folder / "color/000005.png").unlink()
    (scan.folder / "depth/000007.png").write_bytes(b"cut off")
    drops = Drops()
    numbers = set(find_pairs(ScanFolder(scan.folder), PAIRS, drops).ravel())
    assert numbers and not numbers & {3, 5, 7}
    assert drops.counts == {"unusable": 3}


def test_frames_left_out_of_the_pairs_are_told(scan, caplog):
    save_pairs(scan, PAIRS)
    assert not caplog.text
    (scan.folder / "color/000005.png").unlink()
    save_pairs(Scan(scan.folder), PAIRS)
    assert f"scan {scan.name}: 1 of 12 frames are left out" in caplog.text


def test_other_frames_make_pairs_anew(scan):
    save_pairs(scan, PAIRS)
    assert has_pairs(scan, PAIRS)
    assert not has_pairs(scan, dataclasses.replace(PAIRS, frame_step=2))
    np.savetxt(scan.folder / "pose/000003.txt", np.full((4, 4), np.nan))
    assert not has_pairs(Scan(scan.folder), PAIRS)


def test_scans_without_pairs_are_listed_and_the_others_go_on(library):
    for path in (library.scan("a").folder / "pose").iterdir():
        np.savetxt(path, np.full((4, 4), np.nan))
    (library.root / "scans/c").mkdir()
    scans = [library.scan(name) for name in library.names()]
    failures = {f.name: f.message for f in find_all_pairs(scans, PAIRS, 1, None)}
    assert failures.keys() == {"a", "c"}
    assert "overlap" in failures["a"] and "pictures" in failures["c"]
    assert has_pairs(library.scan("b"), PAIRS)


def test_matches_are_nearest_points_within_the_distance():
    rng = np.random.default_rng(0)
    first, second = rng.random((50, 3)), rng.random((80, 3))
    rows, partners = find_matches(first, second, 0.1, 50, rng)
    distances = np.linalg.norm(first[:, None] - second, axis=2)
    near = distances.min(axis=1) <= 0.1
    assert sorted(rows) == np.flatnonzero(near).tolist()
    assert (partners == distances.argmin(axis=1)[rows]).all()
    assert len(find_matches(first, second, np.inf, 7, rng)[0]) == 7


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0)])
def test_nothing_has_no_match(sizes):
    first, second = (np.zeros((size, 3)) for size in sizes)
    rows, partners = find_matches(first, second, 0.1, 10, np.random.default_rng(0))
    assert len(rows) == len(partners) == 0


# Samples


def test_matched_voxels_hold_the_same_place_of_the_world(scan):
    config = dataclasses.replace(CONFIG, augmentation=AugmentationConfig(enabled=False))
    save_pairs(scan, config.pairs)
    pair = PairSampler([scan], config)(0, 0)
    assert 10 < len(pair.positions) <= config.matches
    for view, rows in zip(pair.views, pair.voxel_of_match.T, strict=True):
        assert len(set(rows)) == len(rows)
        middle = (view.coordinates[rows] + 0.5) * config.voxels.voxel_size_m
        reach = config.voxels.voxel_size_m / 2 + config.match_distance_m
        assert (np.abs(middle - pair.positions) <= reach + 1e-6).all()


def test_a_sample_depends_on_its_numbers_and_the_seed_alone(scan):
    save_pairs(scan, CONFIG.pairs)
    sampler, again = PairSampler([scan], CONFIG), PairSampler([scan], CONFIG)
    again(3, 1)  # what was asked for before does not matter
    for numbers in ((0, 0), (5, 2)):
        one, other = sampler(*numbers), again(*numbers)
        for mine, yours in zip(one.views, other.views, strict=True):
            assert np.array_equal(mine.features, yours.features)
        assert np.array_equal(one.voxel_of_match, other.voxel_of_match)
    assert not np.array_equal(sampler(0, 0).positions, sampler(0, 1).positions)


def test_a_sampler_needs_scans_whose_pairs_were_found(scan):
    with pytest.raises(InputError, match="got none"):
        PairSampler([], CONFIG)
    with pytest.raises(InputError, match="frame_pairs"):
        PairSampler([scan], CONFIG)


# Loss and training


def test_the_loss_of_a_batch_is_the_mean_over_its_pairs(scan):
    save_pairs(scan, CONFIG.pairs)
    sampler = PairSampler([scan], CONFIG)
    batch = [sampler(0, 0), sampler(1, 0)]
    network = ContrastiveNetwork(CONFIG.network, 8).eval()  # so that pairs do not mix
    single = [contrastive_loss(network, [pair], CONFIG.contexts)["total"].item() for pair in batch]
    joint = contrastive_loss(network, batch, CONFIG.contexts)["total"].item()
    assert joint == pytest.approx(np.mean(single), rel=1e-4)
    assert single[0] != pytest.approx(single[1], rel=1e-4)


def test_training_lowers_the_loss(scan):
    save_pairs(scan, CONFIG.pairs)
    batch = [PairSampler([scan], CONFIG)(0, 0)]
    torch.manual_seed(0)
    network = ContrastiveNetwork(CONFIG.network, 8)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(contrastive_loss(network, batch, CONFIG.contexts)["total"])
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < 0.8 * losses[0].item()


def test_a_pair_without_matches_costs_nothing_and_trains_on(scan):
    save_pairs(scan, CONFIG.pairs)
    pair = PairSampler([scan], CONFIG)(0, 0)
    alone = dataclasses.replace(
        pair, voxel_of_match=pair.voxel_of_match[:0], positions=pair.positions[:0]
    )
    network = ContrastiveNetwork(CONFIG.network, 8)
    loss = contrastive_loss(network, [alone], CONFIG.contexts)["total"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_the_command_writes_a_network_with_its_voxels_and_lists_failures(library, tmp_path, capsys):
    (library.root / "scans/empty").mkdir()
    output = tmp_path / "pretrained.safetensors"
    arguments = [str(library.root), "-o", str(output), "--workers", "1"]
    for assignment in ASSIGNMENTS:
        arguments += ["--set", f"pretrain.{assignment}"]
    assert pretrain.main(arguments) == 1
    assert "empty" in "".join(capsys.readouterr())
    checkpoint = load_checkpoint(output, SparseUNet)
    assert checkpoint.settings["voxels"]["voxel_size_m"] == 0.1
    assert checkpoint.network.config == SparseUNetConfig("Res16UNet14A")
    assert (tmp_path / "pretrained-run/log.csv").exists()
    written = output.stat().st_mtime_ns
    assert pretrain.main(arguments) == 1  # there is nothing left to learn
    assert output.stat().st_mtime_ns == written  # features go by its hash
    again = load_checkpoint(output, SparseUNet).network.state_dict()
    weights = checkpoint.network.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in again.items())


def test_without_a_usable_scan_the_reasons_are_listed(tmp_path, capsys):
    (tmp_path / "scans/empty").mkdir(parents=True)
    assert pretrain.main([str(tmp_path), "--workers", "1"]) == 1
    assert "failed: empty: " in capsys.readouterr().err
    assert not (tmp_path / "pretrained.safetensors").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--set", "pretrain.matches=0"],
        ["--set", "pretrain.contexts.temperature=0"],
        ["--split", "none"],
    ],
)
def test_wrong_arguments_are_told(library, tmp_path, capsys, wrong):
    arguments = [str(library.root), "-o", str(tmp_path / "x.safetensors"), *wrong]
    assert pretrain.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_pairs_are_found_by_their_own_command_too(library):
    assert frame_pairs.main([str(library.root), "--set", "pretrain.pairs.frame_step=1"]) == 0
    assert has_pairs(library.scan("b"), FramePairsConfig(frame_step=1))
