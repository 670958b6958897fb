"""Whatever an .npz file holds, reading it gives arrays or an InputError, and never takes much."""

import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hostile_files import DAMAGES, claim_size, npy, write_zip
from hypothesis import given, settings
from hypothesis import strategies as st
from rendered_room import CONFIG, wall

from unscene_ros.fusion import TsdfVolume
from unscene_ros.scene import InputError, Instances, Mesh, Segments
from unscene_ros.storage import Prediction, load_prediction, read_arrays, save_prediction
from unscene_ros.tracking import InstanceTracker

SEEDS = st.integers(0, 2**32 - 1)
EXTREMES = (0, 1, -1, 2, 3, 1e9, -1e9, 1e30, np.inf, -np.inf, np.nan)


def small_prediction() -> Prediction:
    """Two instances over three segments of four vertices each."""
    vertices = np.random.default_rng(0).random((12, 3), np.float32)
    mesh = Mesh(vertices, np.zeros((0, 3), np.int32), np.zeros((12, 3), np.uint8), vertices)
    segments = Segments(np.repeat(np.arange(3, dtype=np.int32), 4), np.zeros((0, 2), np.int32), 3)
    masks = np.array([[1, 0, 0], [0, 1, 1]], bool)
    instances = Instances(masks, np.array([0.5, 1], np.float32), np.array([-1, 2], np.int32))
    return Prediction(mesh, segments, instances, np.array([1, 2], np.int32))


def save_map(folder: Path) -> Path:
    volume = TsdfVolume(CONFIG)
    volume.integrate(wall(0.3))
    volume.save(folder / "map.npz")
    return folder / "map.npz"


def go_on_with_map(path: Path) -> None:
    volume = TsdfVolume.load(path, CONFIG)
    volume.integrate(wall(0.3))
    volume.extract_mesh()


def save_tracks(folder: Path) -> Path:
    prediction, tracker = small_prediction(), InstanceTracker(map_id="here")
    tracker.update(prediction.mesh, prediction.segments, prediction.instances)
    tracker.save(folder / "tracks.npz")
    return folder / "tracks.npz"


def go_on_with_tracks(path: Path) -> None:
    prediction, tracker = small_prediction(), InstanceTracker.load(path)
    tracker.update(prediction.mesh, prediction.segments, prediction.instances)


def save_small_prediction(folder: Path) -> Path:
    save_prediction(folder, small_prediction())
    return folder / "instances.npz"


@dataclass
class Saved:
    """A file, as it was written, and what reads it."""

    path: Path
    content: bytes
    read: Callable[[Path], object]

    def __repr__(self) -> str:
        return self.path.name


@pytest.fixture(
    scope="module",
    params=[
        (save_map, go_on_with_map),
        (save_tracks, go_on_with_tracks),
        (save_small_prediction, lambda path: load_prediction(path.parent)),
    ],
    ids=["map", "tracks", "prediction"],
)
def saved(request, tmp_path_factory) -> Saved:
    save, read = request.param
    path = save(tmp_path_factory.mktemp("hostile"))
    read(path)
    return Saved(path, path.read_bytes(), read)


@settings(deadline=None, max_examples=80)
@given(damage=DAMAGES)
def test_a_damaged_file_gives_what_was_saved_or_an_input_error(saved, damage):
    saved.path.write_bytes(saved.content)
    whole = read_arrays(saved.path)
    saved.path.write_bytes(damage(saved.content))
    try:
        saved.read(saved.path)
        found = read_arrays(saved.path)
    except InputError as error:
        assert str(saved.path) in str(error)
    else:
        assert all(np.array_equal(found[name], array) for name, array in whole.items())


@settings(deadline=None, max_examples=80)
@given(seed=SEEDS)
def test_a_file_with_senseless_values_is_refused_or_harmless(saved, seed):
    saved.path.write_bytes(saved.content)
    arrays, random = read_arrays(saved.path), np.random.default_rng(seed)
    name = random.choice(list(arrays))
    changed = arrays[name].flatten()
    places = random.integers(0, max(changed.size, 1), random.integers(1, 4))
    values = random.choice([*EXTREMES, *random.normal(0, 1000, 3)], len(places))
    if changed.size:
        with np.errstate(invalid="ignore", over="ignore"):
            changed[places] = np.asarray(values).astype(changed.dtype)
    np.savez(saved.path, **arrays | {name: changed.reshape(arrays[name].shape)})
    try:
        saved.read(saved.path)
    except InputError as error:
        assert str(saved.path) in str(error)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_a_file_with_arrays_of_another_kind_is_refused_by_their_name(saved, seed):
    saved.path.write_bytes(saved.content)
    arrays, random = read_arrays(saved.path), np.random.default_rng(seed)
    name = random.choice(list(arrays))
    other = [
        arrays[name].astype(np.complex64),
        arrays[name].astype(arrays[name].dtype.newbyteorder()),
        np.zeros((*arrays[name].shape, 1), arrays[name].dtype),
        np.array("text"),
    ][random.integers(4)]
    if other.dtype != np.uint8 or other.shape != arrays[name].shape:
        np.savez(saved.path, **arrays | {name: other})
        with pytest.raises(InputError, match=name):
            saved.read(saved.path)
    del arrays[name]
    np.savez(saved.path, **arrays)
    with pytest.raises(InputError, match=f"expected an array '{name}'"):
        saved.read(saved.path)


@pytest.mark.parametrize(
    "content",
    [
        npy("(3,)", data=bytes(8)),
        npy("(3,)", data=bytes(16)),
        npy("(1000000000000, 3)"),
        npy("(-2, -3)", data=bytes(24)),
        npy("(0, 1000000000000000000000000)"),
        npy("(" * 3000),
        npy("-" * 3000 + "1"),
        npy("(True,)", data=bytes(4)),
        npy("(3.0,)", data=bytes(12)),
        npy("(1,)", "|O", pickle.dumps([1])),
        npy("()", "nonsense"),
        npy("(1,)", data=bytes(4)).replace(b"\x01\x00", b"\x02\x00", 1),
        npy("(1,)", data=bytes(4)).replace(b"\x01\x00", b"\x03\x00", 1),
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPY",
        b"",
        b"text",
    ],
    ids=lambda content: content[:60],
)
def test_an_array_that_lies_about_itself_is_an_input_error(tmp_path, content):
    path = tmp_path / "lies.npz"
    write_zip(path, {"a.npy": content})
    with pytest.raises(InputError, match=r"lies\.npz: expected an \.npz file of plain arrays"):
        read_arrays(path)


def test_objects_are_not_brought_to_life(tmp_path):
    class Attack:
        def __reduce__(self):
            return (Path(tmp_path / "executed").touch, ())

    np.savez(tmp_path / "attack.npz", a=np.array([Attack()], object))
    with pytest.raises(InputError, match="no plain array"):
        read_arrays(tmp_path / "attack.npz")
    assert not (tmp_path / "executed").exists()


def test_too_much_is_refused_before_there_is_memory_for_it(tmp_path):
    path, size = tmp_path / "bomb.npz", 64_000_000
    write_zip(
        path, {"a.npy": npy(f"({size},)", "|u1", bytes(size))}, compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(InputError, match=r"expected at most 1\.0 MB of arrays, got 64\.0 MB: wait"):
        read_arrays(path, max_bytes=1e6, remedy="wait")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert len(read_arrays(path, max_bytes=1.01 * size)["a"]) == size


def test_a_directory_that_lies_as_the_array_does_helps_neither(tmp_path):
    path, count = tmp_path / "lies.npz", 1_000_000_000
    content = npy(f"({count},)", data=bytes(40))
    write_zip(path, {"a.npy": content})
    claim_size(path, len(content) - 40 + 4 * count)
    with pytest.raises(InputError, match="expected at most"):
        read_arrays(path, max_bytes=1e9)
    small = npy("(1000,)", data=bytes(40))
    write_zip(path, {"a.npy": small})
    claim_size(path, len(small) - 40 + 4000)
    with pytest.raises(InputError, match="plain arrays"):
        read_arrays(path, max_bytes=1e9)


def test_compressions_that_need_much_memory_are_refused(tmp_path):
    content = npy("(1,)", data=bytes(4))
    write_zip(tmp_path / "a.npz", {"a.npy": content}, compression=zipfile.ZIP_LZMA)
    with pytest.raises(InputError, match="unknown compression"):
        read_arrays(tmp_path / "a.npz")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for name in ("pipe.npz", "missing.npz", "."):
        with pytest.raises(InputError, match="no such file"):
            read_arrays(tmp_path / name)


def test_a_layout_names_lengths_that_must_be_the_same(tmp_path):
    path = tmp_path / "arrays.npz"
    layout = {"a": (("rows", 3), np.float32), "b": (("rows",), np.int32)}
    np.savez(path, a=np.zeros((4, 3), np.float32), b=np.zeros(4, np.int32), c=np.zeros(9))
    assert [*read_arrays(path, layout)] == ["a", "b"]
    np.savez(path, a=np.zeros((4, 3), np.float32), b=np.zeros(5, np.int32))
    with pytest.raises(InputError, match=r"b: expected \(4,\) int32, got \(5,\) int32"):
        read_arrays(path, layout)
    np.savez(path, a=np.zeros((4, 2), np.float32), b=np.zeros(4, np.int32))
    with pytest.raises(InputError, match=r"a: expected \(4, 3\) float32, got \(4, 2\)"):
        read_arrays(path, layout)
