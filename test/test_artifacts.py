"""Results on disk: identities, files that are whole or not there, packed masks."""

import errno
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training import artifacts
from training.artifacts import (
    Identity,
    file_hash,
    is_made,
    load_artifact,
    pack_masks,
    save_artifact,
    unpack_masks,
)
from unscene_ros.scene import InputError

IDENTITY = Identity("cuts", {"tau": 0.65, "sizes": [20, 50]}, {"mesh": "0123456789ab"}, seed=3)
VALUES = np.arange(600, dtype=np.float16).reshape(100, 6)


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_identity_has_the_same_hash_in_every_process_and_for_any_order_of_its_keys():
    assert IDENTITY.hash == "32b4ddc2b4d9"  # results already on disk are found by it
    again = Identity("cuts", {"sizes": (20, 50), "tau": 0.65}, {"mesh": "0123456789ab"}, seed=3)
    assert again.hash == IDENTITY.hash
    code = (
        "from training.artifacts import Identity; print(Identity("
        "'cuts', {'tau': 0.65, 'sizes': [20, 50]}, {'mesh': '0123456789ab'}, seed=3).hash)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == IDENTITY.hash


@pytest.mark.parametrize(
    "change",
    [
        {"step": "cut"},
        {"settings": {"tau": 0.66, "sizes": [20, 50]}},
        {"settings": {"tau": 0.65, "sizes": [50, 20]}},
        {"settings": {"tau": 0.65, "sizes": [20, 50], "more": None}},
        {"settings": {"tau": 0.65}},
        {"settings": {"tau": "0.65", "sizes": [20, 50]}},
        {"inputs": {"mesh": "0123456789ac"}},
        {"inputs": {"features": "0123456789ab"}},
        {"inputs": {}},
        {"seed": 4},
    ],
)
def test_every_part_of_an_identity_changes_its_hash(change):
    assert replace(IDENTITY, **change).hash != IDENTITY.hash


def test_a_new_version_of_a_step_is_another_and_the_first_one_is_not_written():
    assert "version" not in IDENTITY.to_json()
    second, third = replace(IDENTITY, version=2), replace(IDENTITY, version=3)
    assert len({IDENTITY.hash, second.hash, third.hash}) == 3


def test_settings_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="settings of cuts"):
        _ = Identity("cuts", {"tau": float("inf")}).hash


def test_a_file_is_known_by_its_content(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"mesh")
    two.write_bytes(b"mesh")
    assert file_hash(one) == file_hash(two) and len(file_hash(one)) == 12
    two.write_bytes(b"mash")
    assert file_hash(one) != file_hash(two)
    with pytest.raises(InputError, match="missing: cannot be read"):
        file_hash(tmp_path / "missing")


def test_what_is_saved_is_read_back_and_made(tmp_path):
    path = tmp_path / "scan" / "features" / "both.npz"
    names = np.array(["cut", "layer"])
    assert not is_made(path, IDENTITY)
    save_artifact(path, IDENTITY, values=VALUES, names=names, nothing=np.zeros((0, 3), np.int32))
    arrays = load_artifact(path)
    assert set(arrays) == {"values", "names", "nothing"}
    np.testing.assert_array_equal(arrays["values"], VALUES)
    assert arrays["values"].dtype == np.float16 and arrays["nothing"].shape == (0, 3)
    assert arrays["names"].tolist() == ["cut", "layer"]
    assert is_made(path, IDENTITY)
    assert contents(tmp_path) == ["scan/features/both.npz"]


def test_a_file_says_from_what_it_was_made(tmp_path):
    save_artifact(tmp_path / "a.npz", IDENTITY, values=VALUES)
    with np.load(tmp_path / "a.npz") as arrays:
        assert json.loads(str(arrays["identity"])) == {
            "step": "cuts",
            "settings": {"tau": 0.65, "sizes": [20, 50]},
            "inputs": {"mesh": "0123456789ab"},
            "seed": 3,
        }
        assert "versions" in json.loads(str(arrays["provenance"]))


def test_the_result_of_another_identity_is_not_made(tmp_path):
    save_artifact(tmp_path / "a.npz", IDENTITY, values=VALUES)
    assert not is_made(tmp_path / "a.npz", replace(IDENTITY, seed=4))


def test_a_file_cut_short_anywhere_is_not_made_and_a_sentence_when_read(tmp_path):
    path = tmp_path / "a.npz"
    save_artifact(path, IDENTITY, values=VALUES)
    whole = path.read_bytes()
    for length in [0, 1, *range(10, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert not is_made(path, IDENTITY), length
        with pytest.raises(InputError, match=r"a\.npz"):
            load_artifact(path)
    path.write_bytes(whole)
    assert is_made(path, IDENTITY)


def test_a_wrong_byte_in_an_array_is_never_taken_for_the_result(tmp_path):
    path = tmp_path / "a.npz"
    save_artifact(path, IDENTITY, values=VALUES)
    whole = path.read_bytes()
    for place in range(0, whole.index(b"PK\x01\x02"), 13):  # up to the list of the arrays
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        if is_made(path, IDENTITY):  # the byte meant nothing, as that of a date
            np.testing.assert_array_equal(load_artifact(path)["values"], VALUES)


def test_files_of_other_kinds_are_not_made_and_a_sentence_when_read(tmp_path):
    np.savez(tmp_path / "foreign.npz", values=VALUES)
    np.save(tmp_path / "single.npy", VALUES)
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    (tmp_path / "folder.npz").mkdir()
    for name in ("foreign.npz", "single.npz", "folder.npz", "missing.npz"):
        assert not is_made(tmp_path / name, IDENTITY)
        with pytest.raises(InputError, match=name):
            load_artifact(tmp_path / name)


def test_a_full_disk_is_a_sentence_and_leaves_what_was_there_before(tmp_path, monkeypatch):
    path = tmp_path / "masks" / "a.npz"
    save_artifact(path, IDENTITY, values=VALUES)
    before = path.read_bytes()

    def fail_in_the_middle(file, **arrays):
        file.write(b"PK half a file")
        file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.np, "savez_compressed", fail_in_the_middle)
    other = path.with_name("b.npz")
    for target in (path, other):
        with pytest.raises(InputError, match=r"\.npz: cannot be written \(No space left"):
            save_artifact(target, IDENTITY, values=VALUES)
    assert path.read_bytes() == before and contents(tmp_path) == ["masks/a.npz"]


def test_a_file_larger_than_the_disk_allows_leaves_nothing_and_the_next_try_succeeds(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"a\.npz: cannot be written \(File too large"):
            save_artifact(tmp_path / "a.npz", IDENTITY, values=noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == []
    save_artifact(tmp_path / "a.npz", IDENTITY, values=noise)
    assert is_made(tmp_path / "a.npz", IDENTITY)


def test_where_no_folder_can_be_made_it_is_a_sentence(tmp_path):
    (tmp_path / "masks").write_text("a file is in the way")
    with pytest.raises(InputError, match="masks: cannot be made"):
        save_artifact(tmp_path / "masks" / "a.npz", IDENTITY, values=VALUES)


def test_masks_are_packed_with_the_first_vertex_in_the_lowest_bit():
    masks = np.zeros((2, 10), bool)
    masks[0, [0, 3]] = True
    masks[1, [8, 9]] = True
    packed = pack_masks(masks)
    assert packed.dtype == np.uint8 and packed.tolist() == [[0b1001, 0], [0, 0b11]]


@pytest.mark.parametrize("shape", [(0, 0), (0, 9), (3, 0), (1, 1), (4, 8), (5, 17), (2, 1_000_000)])
def test_packed_masks_come_back(shape):
    masks = np.random.default_rng(1).random(shape) < 0.3
    packed = pack_masks(masks)
    assert packed.shape == (shape[0], -(-shape[1] // 8))
    back = unpack_masks(packed, shape[1])
    assert back.dtype == bool and back.shape == shape
    np.testing.assert_array_equal(back, masks)
