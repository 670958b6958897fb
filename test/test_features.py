"""Features of a scan's segments: from pictures, from a network, kept under what made them."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from small_library import small_mesh, write_small_library
from small_scan import small_frames

from training.artifacts import load_artifact
from training.scans.library import Library
from training.unscene3d import features
from training.unscene3d.features import (
    FeaturesConfig,
    GeometryFeaturesConfig,
    SceneImageFeaturesConfig,
    geometry_features,
    geometry_features_of,
    geometry_identity,
    image_features_of,
    image_identity,
)
from unscene_ros.image_features import (
    ImageFeaturesConfig,
    lift_to_mesh,
    load_image_features,
    segment_features,
)
from unscene_ros.models.checkpoint import save_checkpoint
from unscene_ros.models.sparse_tensor import batch_voxels
from unscene_ros.models.sparse_unet import SparseUNet, SparseUNetConfig
from unscene_ros.oversegmentation import OversegmentationConfig
from unscene_ros.recordings.scan_folder import ScanFolder
from unscene_ros.scene import InputError, Mesh, Segments
from unscene_ros.storage import write_mesh
from unscene_ros.voxels import VoxelsConfig, make_voxels

SEGMENTS = OversegmentationConfig()
IMAGES = SceneImageFeaturesConfig(
    frame_step=3, features=ImageFeaturesConfig(image_width=160, border_px=2)
)
VOXELS = VoxelsConfig(voxel_size_m=0.1)


@pytest.fixture
def library(tmp_path) -> Library:
    return write_small_library(tmp_path / "library", "a")


@pytest.fixture
def scan(library):
    return library.scan("a")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SparseUNet(SparseUNetConfig("Res16UNet14A")).eval()


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "pretrained.safetensors"
    save_checkpoint(path, network, {"voxels": dataclasses.asdict(VOXELS)})
    return path


def only_result(scan, name):
    (path,) = (scan.folder / "features").glob(f"{name}-*.npz")
    return path


# 2D


def test_image_features_are_those_of_every_nth_frame_lifted_and_pooled(scan):
    folder = ScanFolder(scan.folder)
    frames = [folder.frame(number) for number in range(0, 12, 3)]
    provider = load_image_features(IMAGES.features)
    lifted = lift_to_mesh(scan.mesh(), frames, provider, IMAGES.features)
    segments = scan.segments(SEGMENTS)
    values, valid = segment_features(lifted, segments)
    found = image_features_of(scan, SEGMENTS, IMAGES)
    np.testing.assert_array_equal(found.values, values.astype(np.float16))
    np.testing.assert_array_equal(found.valid, valid)
    assert found.view_counts.sum() == lifted.view_counts.sum() > 0


def test_results_are_kept_and_read_again(scan, monkeypatch):
    first = image_features_of(scan, SEGMENTS, IMAGES)
    kept = load_artifact(only_result(scan, "image"))
    assert {name: array.dtype.name for name, array in kept.items()} == {
        "values": "float16", "valid": "bool", "view_counts": "int32",
    }  # fmt: skip
    monkeypatch.setattr(features, "lift_maps", None)  # nothing is computed again
    np.testing.assert_array_equal(image_features_of(scan, SEGMENTS, IMAGES).values, first.values)


@pytest.mark.parametrize(
    "change",
    ["settings", "provider", "segments", "mesh", "pose", "picture"],
)
def test_what_decides_image_features_is_in_their_identity(library, scan, change):
    before = image_identity(scan, SEGMENTS, IMAGES).hash
    segments, images = SEGMENTS, IMAGES
    if change == "settings":
        images = dataclasses.replace(IMAGES, frame_step=4)
    elif change == "provider":
        images = dataclasses.replace(IMAGES, features=ImageFeaturesConfig(image_width=320))
    elif change == "segments":
        segments = OversegmentationConfig(k=0.2)
    elif change == "mesh":
        mesh = scan.mesh()
        write_mesh(scan.mesh_path, dataclasses.replace(mesh, vertices=mesh.vertices + 1))
    elif change == "pose":
        np.savetxt(scan.folder / "pose/000000.txt", np.full((4, 4), np.nan))
    else:
        cv2.imwrite(str(scan.folder / "color/000000.png"), np.zeros((120, 160, 3), np.uint8))
    assert image_identity(library.scan("a"), segments, images).hash != before


def test_where_features_are_computed_is_not_in_their_identity(scan, checkpoint):
    on_cpu = ImageFeaturesConfig(image_width=160, border_px=2, device="cpu")
    moved = dataclasses.replace(IMAGES, features=on_cpu)
    assert image_identity(scan, SEGMENTS, moved) == image_identity(scan, SEGMENTS, IMAGES)
    identities = {
        geometry_identity(scan, SEGMENTS, checkpoint, GeometryFeaturesConfig(device=device)).hash
        for device in ("auto", "cpu")
    }
    assert len(identities) == 1


def test_frames_with_nan_poses_are_left_out(scan):
    np.savetxt(scan.folder / "pose/000003.txt", np.full((4, 4), np.nan))
    frames = [frame for number, frame in enumerate(small_frames()) if number in (0, 6, 9)]
    lifted = lift_to_mesh(
        scan.mesh(), frames, load_image_features(IMAGES.features), IMAGES.features
    )
    assert image_features_of(scan, SEGMENTS, IMAGES).view_counts.sum() == pytest.approx(
        lifted.view_counts.sum(),
        rel=0.02,  # of depths rounded to millimetres
    )


# 3D


def naive_geometry_features(mesh, segments, network, stride):
    """Voxel by voxel: each vertex looks up the cell of the feature map that it lies in."""
    voxels = make_voxels(mesh, VOXELS)
    with torch.inference_mode():
        feature_map = network.feature_maps(batch_voxels([voxels]))[stride]
    cells = feature_map.level.coordinates[:, 1:].tolist()
    row_of_cell = {tuple(cell): row for row, cell in enumerate(cells)}
    sums = np.zeros((segments.count, feature_map.features.shape[1]))
    for vertex, segment in zip(mesh.vertices, segments.of_vertex, strict=True):
        voxel = np.floor(vertex.astype(np.float64) / VOXELS.voxel_size_m).astype(int)
        cell = tuple((voxel // stride * stride).tolist())
        sums[segment] += feature_map.features[row_of_cell[cell]].numpy()
    return sums / np.bincount(segments.of_vertex)[:, None]


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_geometry_features_are_means_of_the_cells_that_vertices_lie_in(scan, network, stride):
    mesh, segments = scan.mesh(), scan.segments(SEGMENTS)
    config = GeometryFeaturesConfig(stride=stride)
    found = geometry_features(mesh, segments, network, VOXELS, config)
    expected = naive_geometry_features(mesh, segments, network, stride)
    assert found.shape == (segments.count, network.map_channels[stride])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_unit_length_is_of_each_voxel_before_the_mean(scan, network):
    config = GeometryFeaturesConfig(unit_length=True)
    mesh = scan.mesh()
    every_vertex = np.arange(len(mesh.vertices), dtype=np.int32)
    single = Segments(every_vertex, np.zeros((0, 2), np.int32), len(mesh.vertices))
    values = geometry_features(mesh, single, network, VOXELS, config)
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-4)


def test_geometry_features_are_kept_with_the_hash_of_the_checkpoint(
    scan, network, checkpoint, tmp_path
):
    config = GeometryFeaturesConfig()
    found = geometry_features_of(scan, SEGMENTS, checkpoint, config)
    direct = geometry_features(scan.mesh(), scan.segments(SEGMENTS), network, VOXELS, config)
    np.testing.assert_array_equal(found.values, direct.astype(np.float16))
    assert found.valid.all() and len(found.values) == scan.segments(SEGMENTS).count
    path = only_result(scan, "geometry")
    assert geometry_identity(scan, SEGMENTS, checkpoint, config).hash in path.name
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, SparseUNet(network.config), {"voxels": dataclasses.asdict(VOXELS)})
    assert geometry_identity(scan, SEGMENTS, other, config).hash not in path.name


def test_the_voxels_of_the_checkpoint_win_over_those_of_the_settings(scan, checkpoint, tmp_path):
    one = GeometryFeaturesConfig(voxels=VoxelsConfig(voxel_size_m=0.05))
    other = GeometryFeaturesConfig(voxels=VoxelsConfig(voxel_size_m=0.06))
    hashes = [geometry_identity(scan, SEGMENTS, checkpoint, c).hash for c in (one, other)]
    assert hashes[0] == hashes[1]
    imported = tmp_path / "imported.safetensors"  # says nothing of voxels
    save_checkpoint(imported, SparseUNet(SparseUNetConfig("Res16UNet14A")))
    hashes = [geometry_identity(scan, SEGMENTS, imported, c).hash for c in (one, other)]
    assert hashes[0] != hashes[1]


# Bad input


def test_a_mesh_of_one_vertex_has_features(tmp_path, checkpoint):
    scan = write_small_library(tmp_path / "library", "a").scan("a")
    whole = small_mesh()
    top = whole.vertices[:, 2].argmax()
    part = (whole.vertices[[top]], np.zeros((0, 3), np.int32), whole.colors[[top]])
    write_mesh(scan.mesh_path, Mesh(*part, whole.normals[[top]]))
    assert image_features_of(scan, SEGMENTS, IMAGES).values.shape[0] == 1
    with pytest.raises(InputError, match="no colours"):  # one vertex, one colour
        geometry_features_of(scan, SEGMENTS, checkpoint, GeometryFeaturesConfig())
    settings = {"voxels": dataclasses.asdict(VoxelsConfig(channels=("normal",)))}
    save_checkpoint(tmp_path / "n.st", SparseUNet(SparseUNetConfig("Res16UNet14A")), settings)
    found = geometry_features_of(scan, SEGMENTS, tmp_path / "n.st", GeometryFeaturesConfig())
    assert found.values.shape == (1, 96)


def test_a_mesh_that_no_frame_sees_is_an_error(scan):
    mesh = scan.mesh()
    write_mesh(scan.mesh_path, dataclasses.replace(mesh, vertices=mesh.vertices + 50))
    with pytest.raises(InputError, match="no frame sees the mesh"):
        image_features_of(scan, SEGMENTS, IMAGES)


def test_features_too_large_for_half_precision_are_an_error(scan, tmp_path):
    network = SparseUNet(SparseUNetConfig("Res16UNet14A"))
    with torch.no_grad():
        for parameter in network.block7.parameters():
            parameter.fill_(1e4)
    save_checkpoint(tmp_path / "x.st", network, {"voxels": dataclasses.asdict(VOXELS)})
    with pytest.raises(InputError, match="65504"):
        geometry_features_of(scan, SEGMENTS, tmp_path / "x.st", GeometryFeaturesConfig())
    assert not (scan.folder / "features").exists()


def test_the_command_goes_on_after_failures_and_makes_only_what_is_missing(
    tmp_path, checkpoint, capsys
):
    library = write_small_library(tmp_path / "library", "a", "b", "c", "d")
    library.scan("b").mesh_path.unlink()
    for path in (library.scan("c").folder / "pose").iterdir():
        np.savetxt(path, np.full((4, 4), np.nan))
    arguments = [str(library.root), "--checkpoint", str(checkpoint)]
    arguments += ["--set", "features.images.frame_step=6"]
    assert features.main(arguments) == 1
    said = capsys.readouterr().err
    assert "failed: b: " in said and "failed: c: " in said and "failed: a" not in said
    made = {
        name: sorted(
            path.stem.split("-")[0] for path in library.scan(name).folder.glob("features/*")
        )
        for name in "abcd"
    }
    assert made == {"a": ["geometry", "image"], "b": [], "c": [], "d": ["geometry", "image"]}
    write_mesh(library.scan("b").mesh_path, small_mesh())
    before = only_result(library.scan("a"), "image").stat().st_mtime_ns
    assert features.main([*arguments, "--no-images"]) == 0
    assert only_result(library.scan("a"), "image").stat().st_mtime_ns == before
    assert only_result(library.scan("c"), "geometry").exists()


def test_a_checkpoint_of_another_network_is_told_once(library, tmp_path, capsys):
    from unscene_ros.models.dgcnn import Dgcnn

    save_checkpoint(tmp_path / "other.st", Dgcnn())
    for path in (tmp_path / "other.st", tmp_path / "missing.st"):
        assert features.main([str(library.root), "--checkpoint", str(path)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {path}")


def test_defaults_are_those_of_the_paper():
    config = FeaturesConfig()
    assert (config.images.frame_step, config.geometry.stride) == (20, 2)
