"""A map that is saved and loaded is the same map and goes on the same."""

import dataclasses
import resource

import numpy as np
import pytest
from rendered_room import CONFIG, assert_same, fused, moved, room, walk, wall

from unscene_ros.fusion import FusionConfig, TsdfVolume
from unscene_ros.map_file import FILE_FORMAT
from unscene_ros.scene import InputError


def test_a_saved_map_gives_the_same_mesh_and_goes_on_the_same(tmp_path):
    frames = walk(room(((0.9, 0.5, -0.4), (0.5, 0.4, 0.5))), 10)
    volume = fused(frames[:6])
    volume.save(tmp_path / "map.npz")
    loaded = TsdfVolume.load(tmp_path / "map.npz", CONFIG)
    assert (loaded.frames, loaded.block_count) == (volume.frames, volume.block_count)
    assert_same(loaded.extract_mesh(), volume.extract_mesh())
    for frame in frames[6:10]:
        assert loaded.integrate(frame) == volume.integrate(frame)
    assert_same(loaded.extract_mesh(), volume.extract_mesh())
    assert [path.name for path in tmp_path.iterdir()] == ["map.npz"]


def test_a_map_keeps_its_identity_and_each_new_one_has_its_own(tmp_path):
    volume, other = TsdfVolume(CONFIG), TsdfVolume(CONFIG)
    assert volume.map_id != other.map_id and len(volume.map_id) == 32
    volume.save(tmp_path / "map.npz")
    assert TsdfVolume.load(tmp_path / "map.npz", CONFIG).map_id == volume.map_id


def test_a_snapshot_is_the_map_of_its_moment(tmp_path):
    volume = fused([wall()] * 3)
    mesh, snapshot = volume.extract_mesh(), volume.snapshot()
    for _ in range(5):
        volume.integrate(moved(wall(1.8), 0.5))
    snapshot.write(tmp_path / "map.npz")
    assert_same(TsdfVolume.load(tmp_path / "map.npz", CONFIG).extract_mesh(), mesh)


def test_an_empty_map_can_be_saved_and_loaded(tmp_path):
    TsdfVolume(CONFIG).save(tmp_path / "map.npz")
    loaded = TsdfVolume.load(tmp_path / "map.npz", CONFIG)
    assert not len(loaded.extract_mesh().vertices)
    assert loaded.integrate(wall())


def test_a_map_of_another_voxel_size_is_refused(tmp_path):
    fused([wall()]).save(tmp_path / "map.npz")
    with pytest.raises(InputError, match=r"expected a map of voxels of 0\.04 m, got 0\.05 m"):
        TsdfVolume.load(tmp_path / "map.npz", FusionConfig(voxel_size_m=0.04))


def test_a_map_larger_than_the_settings_allow_is_refused(tmp_path):
    roomy = FusionConfig(voxel_size_m=0.01, min_weight=1)
    volume = fused([moved(wall(), x) for x in (0, 4, 8)], roomy)
    volume.save(tmp_path / "map.npz")
    assert TsdfVolume.load(tmp_path / "map.npz", roomy).block_count == volume.block_count
    with pytest.raises(InputError, match=r"expected at most 32\.3 MB.*raise fusion\.max_megabytes"):
        TsdfVolume.load(tmp_path / "map.npz", dataclasses.replace(roomy, max_megabytes=32))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "format",
            FILE_FORMAT + 1,
            f"expected maps of format {FILE_FORMAT}, got {FILE_FORMAT + 1}",
        ),
        ("keys", np.zeros((2, 3), np.int32), "a block twice"),
        ("keys", np.array([[0, 0, 0], [0, 0, 1 << 20]], np.int32), "blocks out of reach"),
        ("keys", np.zeros((2, 3), np.int64), "keys: expected"),
        ("last_seen", np.array([0, 9]), "blocks of frames to come"),
        ("frames", -1, "blocks of frames to come"),
        ("tsdf", np.full((2, 8, 8, 8), np.nan, np.float32), "tsdf out of range"),
        ("tsdf", np.full((2, 8, 8, 8), 2, np.float32), "tsdf out of range"),
        ("weight", np.full((2, 8, 8, 8), np.inf, np.float32), "weight out of range"),
        ("weight", np.zeros((2, 8, 8), np.float32), "weight: expected"),
        ("color", np.full((2, 8, 8, 8, 3), -1, np.float32), "color out of range"),
        ("voxel_size_m", np.nan, "got nan m"),
        ("map_id", np.zeros(8, np.uint8), "map_id: expected"),
    ],
)
def test_a_map_file_with_senseless_content_is_refused(tmp_path, name, value, said):
    path = tmp_path / "map.npz"
    arrays = {
        "format": FILE_FORMAT,
        "map_id": np.zeros(16, np.uint8),
        "voxel_size_m": 0.05,
        "frames": 1,
        "keys": np.array([[0, 0, 0], [0, 0, 1]], np.int32),
        "last_seen": np.zeros(2, np.int64),
        "tsdf": np.zeros((2, 8, 8, 8), np.float32),
        "weight": np.zeros((2, 8, 8, 8), np.float32),
        "color": np.zeros((2, 8, 8, 8, 3), np.float32),
    }
    np.savez(path, **arrays)
    assert TsdfVolume.load(path, CONFIG).block_count == 2
    np.savez(path, **arrays | {name: value})
    with pytest.raises(InputError, match=rf"map\.npz: .*{said}"):
        TsdfVolume.load(path, CONFIG)


def test_a_folder_that_does_not_exist_is_named_when_saving(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        TsdfVolume(CONFIG).save(tmp_path / "nowhere" / "map.npz")


def test_a_disk_that_fills_up_while_saving_leaves_the_old_map(tmp_path):
    path = tmp_path / "map.npz"
    fused([wall()]).save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(InputError, match=r"map\.npz: cannot be written \(File too large\)"):
            fused([wall(1.5)]).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["map.npz"]
