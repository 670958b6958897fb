"""ScanNet into a library: what is taken, from where, and what damaged or missing parts do."""

import itertools
import json

import cv2
import numpy as np
import pytest
from scan_sources import (
    ALIGNED_FROM_SCANNED,
    CLASS_OF_STRIP,
    COLOR_K,
    DEPTH_K,
    INSTANCE_OF_STRIP,
    STRIP_IDS,
    UNKNOWN_POSE,
    pose,
    scannet_ply,
    sens_frame,
    sens_header,
    strip_mesh,
    write_scannet,
    write_scannet_frames,
)

from training.artifacts import load_artifact
from training.scans import scannet
from training.scans.importing import ImportReport
from training.scans.library import Library
from training.scans.scannet_labels import label_vertices, segments_from_ids
from training.scans.scannet_splits import draw_parts
from unscene_ros.evaluation import read_ground_truth

A, B = "scene0000_00", "scene0001_00"


@pytest.fixture
def source(tmp_path):
    return write_scannet(tmp_path / "scannet", A)


def run(source, tmp_path, *options):
    """(exit code, library) of importing with every frame."""
    output = tmp_path / "library"
    arguments = [source, "-o", output, "--frame-step", 1, *options]
    return scannet.main([str(argument) for argument in arguments]), output


def imported(source, tmp_path, *options):
    code, output = run(source, tmp_path, *options)
    return code, Library(output).scan(A)


def scene_file(source, ending, name=A):
    return source / "scans" / name / f"{name}{ending}"


def everything(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def moved(points):
    return points @ ALIGNED_FROM_SCANNED[:3, :3].T + ALIGNED_FROM_SCANNED[:3, 3]


# A whole scene


def test_mesh_is_aligned_and_has_normals(source, tmp_path):
    code, scan = imported(source, tmp_path)
    vertices, faces, _ = strip_mesh()
    mesh = scan.mesh()
    assert code == 0
    np.testing.assert_allclose(mesh.vertices, moved(vertices), atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, faces)
    np.testing.assert_allclose(mesh.normals, np.tile((0, 0, 1), (len(vertices), 1)), atol=1e-6)
    assert (mesh.colors == (200, 100, 50)).all()


def test_frames_are_aligned_like_the_mesh(source, tmp_path):
    _, scan = imported(source, tmp_path)
    frames = list(scan.frames())
    assert len(frames) == 6
    for number, frame in enumerate(frames):
        expected = ALIGNED_FROM_SCANNED @ pose(number)
        np.testing.assert_allclose(frame.world_from_camera, expected, atol=1e-6)
        assert frame.stamp_ns == pytest.approx((number + 1) * 1e9 / 30, abs=2)
        assert frame.depth[5, 5] == pytest.approx(1.005 + number / 1000)
        assert frame.depth[0, 0] == 0
    np.testing.assert_allclose(np.loadtxt(scan.folder / "intrinsic.txt"), DEPTH_K)
    np.testing.assert_allclose(np.loadtxt(scan.folder / "intrinsic_color.txt"), COLOR_K)


def test_labels_are_objects_of_the_evaluated_classes(source, tmp_path):
    _, scan = imported(source, tmp_path)
    truth = read_ground_truth(scan.folder / "gt.npz")
    _, _, strips = strip_mesh()
    np.testing.assert_array_equal(truth.points, scan.mesh().vertices)
    np.testing.assert_array_equal(truth.instance, INSTANCE_OF_STRIP[strips])
    np.testing.assert_array_equal(truth.semantic, CLASS_OF_STRIP[strips])


def test_published_segments_are_kept_as_a_result(source, tmp_path):
    _, scan = imported(source, tmp_path)
    identity = scannet.published_segments_identity(scan)
    arrays = scan.result("segments", identity, "scannet")
    _, _, strips = strip_mesh()
    rank = np.argsort(np.argsort(STRIP_IDS))  # ids without gaps, in the order of the ids
    np.testing.assert_array_equal(arrays["of_vertex"], rank[strips])
    touching = {tuple(sorted((rank[i], rank[i + 1]))) for i in range(7)}
    assert {tuple(pair) for pair in arrays["neighbors"].tolist()} == touching
    assert len(arrays["neighbors"]) == 7


def test_classes_come_from_the_objects_where_there_is_no_labelled_mesh(source, tmp_path):
    scene_file(source, "_vh_clean_2.labels.ply").unlink()
    code, scan = imported(source, tmp_path)
    truth = read_ground_truth(scan.folder / "gt.npz")
    assert code == 0
    np.testing.assert_array_equal(truth.semantic, CLASS_OF_STRIP[strip_mesh()[2]])


def test_only_chosen_frames_and_smaller_pictures(source, tmp_path):
    code, scan = imported(source, tmp_path, "--frame-step", 4, "--image-width", 12)
    frames = list(scan.frames())
    assert code == 0
    assert [path.name for path in sorted((scan.folder / "depth").iterdir())] == [
        "000000.png",
        "000004.png",
    ]
    assert frames[0].depth.shape == (9, 12)
    np.testing.assert_allclose(
        np.loadtxt(scan.folder / "intrinsic_color.txt")[:2], COLOR_K[:2] / 2, atol=1e-6
    )
    np.testing.assert_allclose(
        np.loadtxt(scan.folder / "intrinsic.txt")[:2], DEPTH_K[:2] * 0.75, atol=1e-6
    )


def test_pictures_that_are_small_enough_keep_their_bytes(source, tmp_path):
    _, scan = imported(source, tmp_path, "--image-width", 0)
    assert (scan.folder / "color/000002.jpg").read_bytes() in sens_frame(2)


# Frames as pictures


def test_frames_25k_serve_where_there_is_no_stream(tmp_path):
    source = write_scannet(tmp_path / "scannet", A, stream=False)
    write_scannet_frames(source / "scannet_frames_25k" / A)
    code, scan = imported(source, tmp_path, "--frame-step", 20)
    frames = list(scan.frames())
    assert code == 0 and len(frames) == 3
    np.testing.assert_allclose(frames[1].world_from_camera, ALIGNED_FROM_SCANNED @ pose(1))
    assert frames[2].depth[5, 5] == pytest.approx(1.007)
    np.testing.assert_allclose(np.loadtxt(scan.folder / "intrinsic_color.txt"), COLOR_K)


def test_frames_25k_elsewhere_with_all_defects(tmp_path):
    source = write_scannet(tmp_path / "scannet", A, stream=False)
    numbers = tuple(range(0, 800, 100))
    folder = write_scannet_frames(tmp_path / "pictures" / A, numbers)
    (folder / "color/000100.jpg").unlink()
    (folder / "color/000200.jpg").write_bytes(b"no picture")
    (folder / "depth/000300.png").write_bytes(b"no picture")
    (folder / "pose/000400.txt").unlink()
    np.savetxt(folder / "pose/000500.txt", UNKNOWN_POSE)
    (folder / "pose/000600.txt").write_text("1 2 3\n")
    code, scan = imported(source, tmp_path, "--frames", tmp_path / "pictures")
    report = ImportReport.load(scan.folder)
    assert code == 0 and len(list(scan.frames())) == report.frames == 2
    assert report.dropped == {
        "no colour partner": 1,
        "undecodable": 3,
        "no transform": 1,
        "pose not finite": 1,
    }


def test_intrinsics_of_the_full_picture_are_scaled_to_a_shrunken_one(tmp_path):
    source = write_scannet(tmp_path / "scannet", A, stream=False)
    folder = write_scannet_frames(source / "scannet_frames_25k" / A)
    full = np.diag([1170.0, 1170, 1, 1])
    full[:2, 2] = 648, 484
    np.savetxt(folder / "intrinsics_color.txt", full)
    _, scan = imported(source, tmp_path)
    expected = [[1170 * 24 / 1296, 0, 12], [0, 1170 * 18 / 968, 9], [0, 0, 1]]
    np.testing.assert_allclose(np.loadtxt(scan.folder / "intrinsic_color.txt"), expected)


def test_a_scene_without_frames_is_a_mesh_with_labels(tmp_path):
    code, scan = imported(write_scannet(tmp_path / "scannet", A, stream=False), tmp_path)
    assert code == 0 and not scan.has_frames()
    assert len(scan.mesh().vertices) and (scan.folder / "gt.npz").exists()


# Missing and damaged parts


def test_a_test_scene_has_no_labels_and_no_segments(source, tmp_path):
    for ending in (".aggregation.json", "_vh_clean_2.labels.ply", ".txt"):
        scene_file(source, ending).unlink()
    scene_file(source, "_vh_clean_2.0.010000.segs.json").unlink()
    code, scan = imported(source, tmp_path)
    assert code == 0
    assert not (scan.folder / "gt.npz").exists() and not (scan.folder / "segments").exists()
    np.testing.assert_allclose(scan.mesh().vertices, strip_mesh()[0])  # not aligned either


def test_without_the_label_map_there_are_no_labels(source, tmp_path, capsys):
    (source / scannet.LABEL_MAP).unlink()
    code, scan = imported(source, tmp_path)
    assert code == 0 and not (scan.folder / "gt.npz").exists()
    assert "no labels will be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        (".aggregation.json", b"{", "expected JSON"),
        (".aggregation.json", b"{}", "segGroups"),
        ("_vh_clean_2.0.010000.segs.json", b'{"segIndices": [1, 2]}', "expected 80 vertices"),
        ("_vh_clean_2.0.010000.segs.json", b'{"segIndices": "no"}', "segIndices"),
        ("_vh_clean_2.labels.ply", b"ply\n", "PLY header"),
        ("_vh_clean_2.labels.ply", scannet_ply(*strip_mesh()[:2]), "with a 'label'"),
        ("_vh_clean_2.labels.ply", scannet_ply(*strip_mesh()[:2], np.full(80, 50)), "0..40"),
    ],
)
def test_damaged_labels_are_left_out_and_told(source, tmp_path, capsys, ending, content, message):
    scene_file(source, ending).write_bytes(content)
    code, scan = imported(source, tmp_path)
    assert code == 1 and message in capsys.readouterr().err
    assert not (scan.folder / "gt.npz").exists()
    assert len(list(scan.frames())) == 6


def test_known_defects_of_the_published_labels_are_repaired(tmp_path):
    name = "scene0270_02"
    source = write_scannet(tmp_path / "scannet", name)
    vertices, faces, strips = strip_mesh()
    labels = np.where(strips == 7, 50, CLASS_OF_STRIP[strips])
    path = scene_file(source, "_vh_clean_2.labels.ply", name)
    path.write_bytes(scannet_ply(vertices, faces, labels))
    code, output = run(source, tmp_path)
    truth = read_ground_truth(output / "scans" / name / "gt.npz")
    assert code == 0
    assert (truth.semantic[strips == 7] == 0).all() and truth.semantic.max() == 22


def test_of_a_stream_that_is_cut_off_the_rest_is_kept_and_told_every_time(source, tmp_path, capsys):
    stream = scene_file(source, ".sens")
    stream.write_bytes(stream.read_bytes()[:-2000])
    for _ in range(2):  # the second run imports nothing
        code, scan = imported(source, tmp_path)
        assert code == 1
        assert f"incomplete: {A}: " in (error := capsys.readouterr().err)
        assert "ends in frame" in error
    report = ImportReport.load(scan.folder)
    assert 0 < len(list(scan.frames())) == report.frames < 6
    assert report.frames + report.dropped["cut off"] == 6


def test_a_stream_with_a_damaged_header_leaves_the_scan_without_frames(source, tmp_path, capsys):
    scene_file(source, ".sens").write_bytes(sens_header(6)[:50])
    code, scan = imported(source, tmp_path)
    assert code == 1 and "cut off in its header" in capsys.readouterr().err
    assert not scan.has_frames() and (scan.folder / "gt.npz").exists()


def test_a_stream_without_a_single_pose_leaves_no_folders(source, tmp_path, capsys):
    frames = [sens_frame(number, UNKNOWN_POSE) for number in range(3)]
    scene_file(source, ".sens").write_bytes(b"".join([sens_header(3), *frames]))
    code, scan = imported(source, tmp_path)
    assert code == 1 and "no usable frame" in capsys.readouterr().err
    assert not scan.has_frames() and not (scan.folder / "intrinsic.txt").exists()
    assert ImportReport.load(scan.folder).dropped == {"pose not finite": 3}


def test_colour_of_another_size_than_promised_costs_its_frame(source, tmp_path):
    small = cv2.imencode(".jpg", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    parts = [sens_header(3), sens_frame(0), sens_frame(1, color=small), sens_frame(2, color=b"?")]
    scene_file(source, ".sens").write_bytes(b"".join(parts))
    code, scan = imported(source, tmp_path)
    assert code == 0 and len(list(scan.frames())) == 1
    assert ImportReport.load(scan.folder).dropped == {"undecodable": 2}


def test_a_mesh_of_one_vertex_is_a_scan(source, tmp_path):
    for ending in (".aggregation.json", "_vh_clean_2.labels.ply"):
        scene_file(source, ending).unlink()
    scene_file(source, "_vh_clean_2.0.010000.segs.json").write_text('{"segIndices": [4]}')
    one = scannet_ply(np.ones((1, 3)), np.zeros((0, 3), int))
    scene_file(source, "_vh_clean_2.ply").write_bytes(one)
    code, scan = imported(source, tmp_path)
    assert code == 0 and len(scan.mesh().vertices) == 1
    arrays = scan.result("segments", scannet.published_segments_identity(scan), "scannet")
    assert arrays["of_vertex"].tolist() == [0] and arrays["neighbors"].shape == (0, 2)


def test_failures_are_listed_and_the_other_scenes_go_on(tmp_path, capsys):
    source = write_scannet(tmp_path / "scannet", A, B, "scene0002_00", "scene0003_00")
    scene_file(source, "_vh_clean_2.ply").unlink()
    scene_file(source, "_vh_clean_2.ply", B).write_bytes(b"ply\nformat binary_little")
    scene_file(source, ".txt", "scene0002_00").write_text("axisAlignment = 1 2 3\n")
    code, output = run(source, tmp_path)
    error = capsys.readouterr().err
    assert code == 1
    for name in (A, B, "scene0002_00"):
        assert f"failed: {name}: " in error
        assert not Library(output).scan(name).about()
    assert len(list(Library(output).scan("scene0003_00").frames())) == 6


def test_a_full_disk_fails_the_scan_and_a_later_run_finishes_it(
    source, tmp_path, monkeypatch, capsys
):
    _, whole = imported(source, tmp_path / "other")
    real_replace, left = scannet.whole_file.__globals__["os"].replace, [4]

    def replace(*paths):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real_replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr("unscene_ros.storage.os.replace", replace)
        code, scan = imported(source, tmp_path)
    assert code == 1 and "No space left on device" in capsys.readouterr().err
    assert not scan.about() and not list(scan.folder.rglob("*.part"))
    code, scan = imported(source, tmp_path)
    assert code == 0
    assert {path.name for path in everything(scan.folder)} == {
        path.name for path in everything(whole.folder)
    }
    assert len(list(scan.frames())) == 6


# Doing it again


def test_a_second_run_changes_nothing(source, tmp_path, monkeypatch):
    _, scan = imported(source, tmp_path)
    before = everything(scan.folder)
    monkeypatch.setattr(scannet, "read_mesh", lambda path: pytest.fail("imported again"))
    code, _ = imported(source, tmp_path)
    assert code == 0 and everything(scan.folder) == before


def test_other_settings_or_inputs_import_again_and_leave_nothing_old(source, tmp_path):
    _, scan = imported(source, tmp_path)
    first = scan.about()
    _, scan = imported(source, tmp_path, "--frame-step", 3)
    assert len(list(scan.frames())) == 2
    assert scan.about()["settings"]["frame_step"] == 3 != first["settings"]["frame_step"]
    scene_file(source, ".aggregation.json").unlink()
    scene_file(source, ".sens").unlink()
    _, scan = imported(source, tmp_path, "--frame-step", 3)
    assert not scan.has_frames() and not (scan.folder / "gt.npz").exists()
    assert not (scan.folder / "timestamps.txt").exists()


def test_the_same_mesh_keeps_its_results(source, tmp_path):
    _, scan = imported(source, tmp_path)
    path = scan.result_path("segments", scannet.published_segments_identity(scan), "scannet")
    (scan.folder / "masks").mkdir()
    (scan.folder / "masks/other.npz").write_bytes(b"masks")
    _, scan = imported(source, tmp_path, "--frame-step", 2)
    assert load_artifact(path) and (scan.folder / "masks/other.npz").exists()


@pytest.mark.slow  # starts processes
def test_two_workers_make_the_same_library(tmp_path):
    source = write_scannet(tmp_path / "scannet", A, B)
    run(source, tmp_path / "one")
    code, output = run(source, tmp_path / "two", "--workers", 2)
    assert code == 0
    one = everything(tmp_path / "one/library")
    two = {path.relative_to(output): data for path, data in everything(output).items()}
    assert {path.relative_to(tmp_path / "one/library") for path in one} == set(two)
    for path, data in one.items():
        if path.suffix != ".npz":  # an archive holds the time of its making
            assert two[path.relative_to(tmp_path / "one/library")] == data


# Splits


def many_scenes(tmp_path):
    names = [f"scene{number:04d}_00" for number in range(4)]
    source = write_scannet(tmp_path / "scannet", *names, stream=False)
    (source / "scannetv2_train.txt").write_text("\n".join([*names[:2], "scene0500_00"]) + "\n")
    (source / "scannetv2_val.txt").write_text(names[2] + "\n")
    return source, names


def test_splits_hold_the_scans_that_are_there(tmp_path):
    source, names = many_scenes(tmp_path)
    code, output = run(source, tmp_path)
    library = Library(output)
    assert code == 0 and library.names() == names
    assert library.names("train") == names[:2]
    assert library.names("val") == names[2:3]


def test_only_the_scenes_of_a_split(tmp_path, capsys):
    source, names = many_scenes(tmp_path)
    _, output = run(source, tmp_path, "--split", "train")
    assert Library(output).names() == names[:2]
    assert "2 of 3 scenes are downloaded" in capsys.readouterr().out
    _, output = run(source, tmp_path, "--split", "val")  # adds to what is there
    assert Library(output).names("train") == names[:2]
    assert Library(output).names("val") == names[2:3]


def test_parts_of_the_training_scenes_are_given_or_drawn_and_named_so(tmp_path):
    source, names = many_scenes(tmp_path)
    (source / "scannetv2_train_5.txt").write_text(names[1] + "\n")
    _, output = run(source, tmp_path, "--seed", 3)
    splits = {path.stem for path in (output / "splits").glob("train_*")}
    assert Library(output).names("train_5") == [names[1]]
    assert "train_5_drawn_seed3" not in splits
    assert splits <= {"train_5", *(f"train_{p}_drawn_seed3" for p in (1, 10, 20, 50))}


def test_drawn_parts_are_nested_and_as_large_as_the_benchmarks():
    train = [f"scene{number:04d}_00" for number in range(1201)]
    parts = draw_parts(train, seed=0)
    sizes = {name: len(part) for name, part in parts.items()}
    assert sizes == {
        f"train_{percent}_drawn_seed0": count
        for percent, count in ((1, 12), (5, 60), (10, 120), (20, 240), (50, 600))
    }
    ordered = [set(part) for part in parts.values()]
    assert all(small < large for small, large in itertools.pairwise(ordered))
    assert parts == draw_parts(train[::-1], seed=0)
    assert list(parts.values()) != list(draw_parts(train, seed=1).values())


def test_scenes_that_unscene3d_leaves_out(tmp_path):
    source = write_scannet(tmp_path / "scannet", A, "scene0154_00", "scene0636_00", stream=False)
    (source / "scannetv2_train.txt").write_text(f"{A}\nscene0154_00\n")
    _, output = run(source, tmp_path, "--unscene3d")
    assert Library(output).names() == [A] and Library(output).names("train") == [A]
    _, output = run(source, tmp_path)
    assert len(Library(output).names()) == 3


# A user's mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "train"], "scannetv2_train.txt"),
        (["--label-map", "nowhere.tsv"], "no such file"),
        (["--frame-step", "0"], "frame step"),
        (["--workers", "-1"], "workers"),
    ],
)
def test_wrong_options_exit_with_2(source, tmp_path, capsys, options, message):
    code, _ = run(source, tmp_path, *options)
    assert code == 2 and message in capsys.readouterr().err


def test_a_folder_without_scenes_exits_with_2(tmp_path, capsys):
    assert run(tmp_path, tmp_path)[0] == 2
    assert "expected folders such as" in capsys.readouterr().err


def test_a_label_map_of_another_kind_exits_with_2(source, tmp_path, capsys):
    (source / scannet.LABEL_MAP).write_text("a\tb\n1\t2\n")
    assert run(source, tmp_path)[0] == 2
    assert "raw_category" in capsys.readouterr().err


def test_a_library_that_cannot_be_written_exits_with_2(source, tmp_path, capsys):
    (tmp_path / "library").write_text("a file is in the way")
    assert run(source, tmp_path)[0] == 2
    assert "cannot be written" in capsys.readouterr().err


# Parts


def test_of_two_annotations_of_a_segment_the_later_counts():
    ids = np.array([1, 1, 2, 3])
    objects = [("chair", [1, 2]), ("table", [2]), ("chair", []), ("chair", [3, 77])]
    instance, semantic = label_vertices(ids, objects, {"chair": 5, "table": 7})
    assert instance.tolist() == [0, 0, 1, 2]  # without a gap for the empty one
    assert semantic.tolist() == [5, 5, 7, 5]


def test_neighbouring_segments_are_those_that_an_edge_joins():
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 300, (400, 3))
    ids = rng.choice([5, 9, 2, 70, -3], 300)
    segments = segments_from_ids(ids, faces)
    names = sorted(set(ids.tolist()))
    naive = {
        tuple(sorted((names.index(ids[a]), names.index(ids[b]))))
        for face in faces
        for a in face
        for b in face
        if ids[a] != ids[b]
    }
    assert {tuple(pair) for pair in segments.neighbors.tolist()} == naive
    assert [names[segment] for segment in segments.of_vertex] == ids.tolist()


def test_a_scan_without_a_report_has_nothing_to_report(tmp_path):
    assert ImportReport.load(tmp_path) == ImportReport()
    (tmp_path / "import.json").write_text(json.dumps({"unknown": 1}))
    assert ImportReport.load(tmp_path) == ImportReport()
