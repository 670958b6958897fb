"""The library of scans: names and splits, meshes, frames, and results that fit their mesh."""

import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.artifacts import Identity, save_artifact
from training.scans.library import Library, Scan
from unscene_ros.oversegmentation import OversegmentationConfig, oversegment
from unscene_ros.scene import InputError, Mesh
from unscene_ros.storage import MESH_FILE, write_mesh

FUSED = Identity("fuse", {"voxel_size_m": 0.02}, {"frames": "0123456789ab"})
CONFIG = OversegmentationConfig()


@pytest.fixture
def library(tmp_path):
    for name in ("room_b", "room_a", "my kitchen"):
        (tmp_path / "scans" / name).mkdir(parents=True)
    (tmp_path / "scans" / "notes.txt").write_text("a file among the scans")
    return Library(tmp_path)


@pytest.fixture
def scan(library):
    return library.scan("room_a")


def plane(columns: int = 12, rows: int = 8) -> Mesh:
    """A flat piece of floor, one half red."""
    y, x = np.divmod(np.arange(columns * rows), columns)
    vertices = np.column_stack([x * 0.02, y * 0.02, np.zeros(len(x))]).astype(np.float32)
    corner = np.arange(columns * rows).reshape(rows, columns)[:-1, :-1].ravel()
    lower = np.column_stack([corner, corner + 1, corner + columns])
    upper = np.column_stack([corner + 1, corner + columns + 1, corner + columns])
    colors = np.where(x[:, None] < columns / 2, (200, 20, 20), (90, 90, 90)).astype(np.uint8)
    normals = np.tile(np.array([0, 0, 1], np.float32), (len(x), 1))
    return Mesh(vertices, np.concatenate([lower, upper]).astype(np.int32), colors, normals)


def write_frames(folder: Path, count: int = 4, color: bool = True) -> None:
    """Grey pictures of a wall one metre away, as a scan folder."""
    for name in ("color", "depth", "pose"):
        (folder / name).mkdir(exist_ok=True)
    np.savetxt(folder / "intrinsic.txt", [[20.0, 0, 7.5], [0, 20, 5.5], [0, 0, 1]])
    for number in range(count):
        depth = np.full((12, 16), 1000 + number, np.uint16)
        cv2.imwrite(str(folder / "depth" / f"{number}.png"), depth)
        np.savetxt(folder / "pose" / f"{number}.txt", np.eye(4))
        if color:
            picture = np.full((12, 16, 3), 10 * number, np.uint8)
            cv2.imwrite(str(folder / "color" / f"{number}.png"), picture)


def test_a_folder_without_scans_is_no_library(tmp_path):
    with pytest.raises(InputError, match=r"expected a folder 'scans'.*training\.scans\.rooms"):
        Library(tmp_path / "nowhere")


def test_without_a_split_all_folders_are_scans_in_the_order_of_their_names(library):
    assert library.names() == ["my kitchen", "room_a", "room_b"]


def test_a_split_comes_back_in_its_own_order_whatever_its_names(library):
    library.write_split("val", ["room_b", "my kitchen"])
    assert library.names("val") == ["room_b", "my kitchen"]
    library.write_split("val", [])
    assert library.names("val") == []


def test_a_split_by_hand_may_have_empty_lines_and_windows_line_ends(library):
    (library.root / "splits").mkdir()
    (library.root / "splits" / "train.txt").write_bytes(b"room_a\r\n\r\n  room_b  \r\n")
    assert library.names("train") == ["room_a", "room_b"]


def test_wrong_splits_are_sentences(library):
    library.write_split("val", ["room_a", "room_c", "../room_a"])
    with pytest.raises(InputError, match=r"2 of its 3 scans are not in .*: \.\./room_a, room_c"):
        library.names("val")
    with pytest.raises(InputError, match=r"split test: .*there are \['val'\]"):
        library.names("test")
    (library.root / "splits" / "binary.txt").write_bytes(b"\xff\xfe\x00room_a")
    with pytest.raises(InputError, match="split binary"):
        library.names("binary")


def test_names_are_added_to_a_split_once_and_none_is_lost(library):
    library.extend_split("train", [])
    assert not (library.root / "splits").exists()
    library.extend_split("train", ["room_b"])
    library.extend_split("train", ["room_a", "room_b"])
    library.extend_split("train", [])
    assert library.names("train") == ["room_b", "room_a"]


def test_a_scan_on_its_way_to_another_process_stays_the_same(library, scan):
    again = pickle.loads(pickle.dumps(scan))
    assert again == scan and again.name == "room_a" and again.library == library.root


def test_a_mesh_comes_back_with_what_made_it(scan):
    mesh = plane()
    assert scan.about() == {} and not scan.is_from(FUSED)
    scan.write_mesh(mesh, FUSED)
    np.testing.assert_array_equal(scan.mesh().vertices, mesh.vertices)
    np.testing.assert_array_equal(scan.mesh().colors, mesh.colors)
    assert scan.about()["settings"] == {"voxel_size_m": 0.02}
    assert scan.is_from(FUSED)
    assert not scan.is_from(Identity("fuse", {"voxel_size_m": 0.03}, FUSED.inputs))
    scan.mesh_path.unlink()
    assert scan.about() == {} and not scan.is_from(FUSED)


def test_a_scan_that_was_interrupted_while_its_mesh_was_written_is_not_complete(scan, monkeypatch):
    scan.write_mesh(plane(), FUSED)

    def interrupted(path, mesh):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.scans.library.write_mesh", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan.write_mesh(plane(20), FUSED)
    assert scan.about() == {}


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00\x01"])
def test_a_damaged_note_of_what_made_the_mesh_makes_it_anew(scan, text):
    scan.write_mesh(plane(), FUSED)
    (scan.folder / "scan.json").write_text(text)
    assert scan.about() == {} and not scan.is_from(FUSED)


def test_without_a_mesh_every_question_about_it_names_the_step_that_makes_it(scan):
    for ask in (scan.mesh, lambda: scan.mesh_hash, lambda: scan.segments(CONFIG)):
        with pytest.raises(InputError, match=r"scan room_a: no mesh\.ply: .*training\.scans\.fuse"):
            ask()


def test_a_damaged_mesh_is_a_sentence(scan):
    scan.write_mesh(plane(), FUSED)
    scan.mesh_path.write_bytes(scan.mesh_path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"mesh\.ply"):
        scan.mesh()


def test_frames_are_read_one_by_one_and_every_nth_where_asked(scan):
    write_frames(scan.folder, count=5)
    assert scan.has_frames()
    frames = scan.frames()
    assert next(frames).color[0, 0, 0] == 0  # a generator: nothing is held
    assert [frame.color[0, 0, 0] for frame in frames] == [10, 20, 30, 40]
    every_second = [float(frame.depth[0, 0]) for frame in scan.frames(every=2)]
    np.testing.assert_allclose(every_second, [1, 1.002, 1.004])


def test_a_scan_without_frames_or_without_colour_is_a_sentence(library):
    bare, colorless, empty = (library.scan(name) for name in library.names())
    shutil.rmtree(colorless.folder)
    colorless.folder.mkdir()
    write_frames(colorless.folder, color=False)
    shutil.rmtree(colorless.folder / "color")
    (empty.folder / "color").mkdir()
    (empty.folder / "depth").mkdir()
    for scan in (bare, colorless):
        assert not scan.has_frames()
        with pytest.raises(InputError, match=f"scan {scan.name}: expected pictures in color/"):
            next(scan.frames())
    with pytest.raises(InputError, match="got 0 and 0 pictures"):
        next(empty.frames())


def test_frames_that_cannot_be_used_are_left_out_and_none_at_all_is_a_sentence(scan):
    write_frames(scan.folder, count=3)
    not_a_pose = np.full((4, 4), np.nan)
    np.savetxt(scan.folder / "pose" / "0.txt", not_a_pose)
    (scan.folder / "color" / "1.png").write_bytes(b"no picture")
    assert [frame.color[0, 0, 0] for frame in scan.frames()] == [20]
    (scan.folder / "pose" / "2.txt").unlink()
    with pytest.raises(InputError, match=r"room_a: no frame can be used: .*NaN"):
        list(scan.frames())


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: np.savetxt(folder / "pose" / "1.txt", np.eye(4) * 1.001),
        lambda folder: (folder / "color" / "1.png").unlink(),
        lambda folder: (folder / "depth" / "3.png").write_bytes(b"another"),
        lambda folder: np.savetxt(folder / "intrinsic.txt", np.eye(3)),
        lambda folder: (folder / "color" / "1.png").rename(folder / "color" / "7.png"),
    ],
)
def test_other_frames_have_another_hash(scan, change):
    write_frames(scan.folder)
    before = scan.frames_hash
    assert Scan(scan.folder).frames_hash == before
    change(scan.folder)
    assert Scan(scan.folder).frames_hash != before


def test_frames_that_are_left_out_are_told(scan, caplog):
    write_frames(scan.folder)
    assert len(list(scan.frames())) == 4 and not caplog.text
    np.savetxt(scan.folder / "pose" / "2.txt", np.full((4, 4), np.nan))
    assert len(list(scan.frames())) == 3
    assert "scan room_a: 1 of 4 frames are left out {'pose not finite': 1}: " in caplog.text


def test_the_hash_of_frames_knows_nothing_of_what_was_made_from_them(library):
    hashes = set()
    for name in ("room_a", "room_b"):
        write_frames(library.scan(name).folder)
        hashes.add(library.scan(name).frames_hash)
    library.scan("room_a").write_mesh(plane(), FUSED)
    hashes.add(library.scan("room_a").frames_hash)
    assert len(hashes) == 1


def test_segments_are_computed_once_for_each_setting(scan, monkeypatch):
    scan.write_mesh(plane(), FUSED)
    first = scan.segments(CONFIG)
    direct = oversegment(scan.mesh(), CONFIG)
    np.testing.assert_array_equal(first.of_vertex, direct.of_vertex)
    scan.segments(OversegmentationConfig(k=0.3))
    assert len(list((scan.folder / "segments").iterdir())) == 2

    def again(mesh, config):
        raise AssertionError("computed again")

    monkeypatch.setattr("training.scans.library.oversegment", again)
    loaded = Scan(scan.folder).segments(CONFIG)
    np.testing.assert_array_equal(loaded.of_vertex, first.of_vertex)
    np.testing.assert_array_equal(loaded.neighbors, first.neighbors)
    assert loaded.count == first.count


def test_segments_cut_short_are_computed_anew(scan):
    scan.write_mesh(plane(), FUSED)
    first = scan.segments(CONFIG)
    (path,) = (scan.folder / "segments").iterdir()
    path.write_bytes(path.read_bytes()[:200])
    np.testing.assert_array_equal(scan.segments(CONFIG).of_vertex, first.of_vertex)
    assert path.stat().st_size > 200


@pytest.mark.parametrize("by_whom", ["another program", "this scan itself"])
def test_results_of_a_mesh_that_changed_are_not_taken_for_those_of_the_new_one(scan, by_whom):
    scan.write_mesh(plane(), FUSED)
    identity = Identity("features", {}, {"mesh": scan.mesh_hash})
    save_artifact(scan.result_path("features", identity, "color"), identity, values=np.ones(3))
    assert scan.result("features", identity, "color")["values"].sum() == 3
    old_segments = scan.segments(CONFIG)

    if by_whom == "this scan itself":
        scan.write_mesh(plane(20), FUSED)
    else:
        write_mesh(scan.folder / MESH_FILE, plane(20))
        scan = Scan(scan.folder)
    changed = Identity("features", {}, {"mesh": scan.mesh_hash})
    old, new = (scan.result_path("features", each, "color") for each in (identity, changed))
    assert old != new and old.exists() and not new.exists()
    with pytest.raises(InputError, match=r"scan room_a: no features/color-.*the step features"):
        scan.result("features", changed, "color")
    assert len(scan.segments(CONFIG).of_vertex) == 160 != len(old_segments.of_vertex)
    assert len(list((scan.folder / "segments").iterdir())) == 2  # nothing was lost


def test_a_result_under_the_right_name_with_another_content_is_not_taken(scan):
    identity, other = Identity("masks", {"tau": 1}), Identity("masks", {"tau": 2})
    save_artifact(scan.result_path("masks", identity), other, masks=np.zeros((0, 1), np.uint8))
    with pytest.raises(InputError, match="made by the step masks"):
        scan.result("masks", identity)


def test_one_vertex_is_a_scan_with_one_segment(scan):
    one = Mesh(
        np.zeros((1, 3), np.float32),
        np.zeros((0, 3), np.int32),
        np.full((1, 3), 90, np.uint8),
        np.array([[0, 0, 1]], np.float32),
    )
    scan.write_mesh(one, FUSED)
    assert len(scan.mesh().vertices) == 1
    for _ in range(2):  # computed, then read
        segments = scan.segments(CONFIG)
        assert segments.of_vertex.tolist() == [0] and segments.neighbors.shape == (0, 2)
        assert segments.count == 1


def test_a_scan_without_colour_in_its_mesh_has_segments(scan):
    mesh = plane()
    grey = np.full_like(mesh.colors, 128)
    scan.write_mesh(Mesh(mesh.vertices, mesh.faces, grey, mesh.normals), FUSED)
    assert scan.segments(CONFIG).count == 1


def test_a_million_vertices_are_written_hashed_and_segmented(scan):
    mesh = plane(1000, 1000)
    scan.write_mesh(mesh, FUSED)
    assert len(scan.mesh_hash) == 12
    segments = scan.segments(CONFIG, mesh)
    loaded = Scan(scan.folder).segments(CONFIG)
    np.testing.assert_array_equal(loaded.of_vertex, segments.of_vertex)
    assert len(loaded.of_vertex) == 1_000_000
    assert len(scan.mesh().vertices) == 1_000_000
