"""ARKitScenes into a library: surfaces, frames matched in time, lenses, missing parts."""

import cv2
import numpy as np
import pytest
from scan_sources import (
    COLOR_K,
    COLOR_SIZE,
    DEPTH_K,
    DEPTH_SIZE,
    PERIOD_S,
    START_S,
    arkit_pose,
    arkit_pose_line,
    color_picture,
    depth_picture,
    scannet_ply,
    strip_mesh,
    write_arkit_scene,
    write_pincam,
)

from training.scans import arkitscenes
from training.scans.arkitscenes import find_scenes
from training.scans.importing import ImportReport
from training.scans.library import Library
from training.scans.poisson import PoissonConfig, reconstruct_surface
from unscene_ros.ply import ply_bytes
from unscene_ros.scene import InputError, Mesh

A, B = "40753679", "40753686"
NOTHING = np.zeros((0, 3))


@pytest.fixture
def scene(tmp_path):
    return write_arkit_scene(tmp_path / "arkit/raw/Training" / A)


def run(tmp_path, *options):
    arguments = [tmp_path / "arkit", "-o", tmp_path / "library", *options]
    return arkitscenes.main([str(argument) for argument in arguments])


def imported(tmp_path, *options):
    """(exit code, scan, its report) with every frame unless told otherwise."""
    code = run(tmp_path, "--set", "frame_interval_s=0", *options)
    scan = Library(tmp_path / "library").scan(A)
    return code, scan, ImportReport.load(scan.folder)


def stem(number):
    return f"{A}_{START_S + number * PERIOD_S:.3f}"


# A whole scene


def test_a_scene_becomes_a_scan(scene, tmp_path):
    code, scan, report = imported(tmp_path)
    frames = list(scan.frames())
    assert code == 0 and len(frames) == report.frames == 6 and not report.dropped
    np.testing.assert_array_equal(scan.mesh().vertices, strip_mesh()[0])
    np.testing.assert_allclose(np.loadtxt(scan.folder / "intrinsic.txt"), DEPTH_K)
    for number, frame in enumerate(frames):
        time_s = START_S + number * PERIOD_S
        assert frame.stamp_ns == pytest.approx(time_s * 1e9, abs=2)
        np.testing.assert_array_equal(
            np.rint(frame.depth * 1000).astype(int), depth_picture(number)
        )
        expected = cv2.resize(color_picture(number), DEPTH_SIZE)
        assert np.abs(frame.color.astype(int) - expected).max() < 15


def test_poses_are_inverted_and_interpolated_between_those_around(scene, tmp_path):
    _, scan, _ = imported(tmp_path)
    for number, frame in enumerate(scan.frames()):
        expected = arkit_pose(START_S + number * PERIOD_S)
        np.testing.assert_allclose(frame.world_from_camera, expected, atol=1e-3)


def test_frames_are_at_least_the_interval_apart(scene, tmp_path):
    assert run(tmp_path, "--set", "frame_interval_s=0.25") == 0
    scan = Library(tmp_path / "library").scan(A)
    assert [path.name for path in sorted((scan.folder / "depth").iterdir())] == [
        "000000.png",
        "000003.png",
    ]


def test_the_sharper_pictures_are_taken_with_their_own_lens(scene, tmp_path):
    (scene / "vga_wide").mkdir()
    for number in range(6):
        picture = color_picture(number)[..., ::-1]
        cv2.imwrite(str(scene / f"vga_wide/{stem(number)}.png"), picture)
        write_pincam(scene / f"vga_wide_intrinsics/{stem(number)}.pincam", COLOR_SIZE, COLOR_K)
    code, scan, _ = imported(tmp_path)
    assert code == 0
    picture = cv2.imread(str(scan.folder / "color/000002.jpg"))
    assert picture.shape[1::-1] == COLOR_SIZE
    np.testing.assert_allclose(np.loadtxt(scan.folder / "intrinsic_color.txt"), COLOR_K)
    np.testing.assert_allclose(np.loadtxt(scan.folder / "intrinsic.txt"), DEPTH_K)


def test_pictures_of_another_focal_length_are_brought_to_the_common_one(scene, tmp_path):
    """Seen through twice the focal length, a step at 4 px from the centre lies at 8 px."""
    other = DEPTH_K.copy()
    other[[0, 1], [0, 1]] *= 2
    write_pincam(scene / f"lowres_wide_intrinsics/{stem(3)}.pincam", DEPTH_SIZE, other)
    center = DEPTH_K[0, 2]
    columns = np.arange(DEPTH_SIZE[0])
    near = np.abs(columns - center) < 6
    depth = np.tile(np.where(near, 1000, 3000).astype(np.uint16), (DEPTH_SIZE[1], 1))
    cv2.imwrite(str(scene / f"lowres_depth/{stem(3)}.png"), depth)
    _, scan, _ = imported(tmp_path)
    frame = list(scan.frames())[3]
    np.testing.assert_allclose(frame.camera.intrinsics, DEPTH_K)
    inside, beyond = np.abs(columns - center) < 3, np.abs(columns - center) > 4.5
    seen = frame.depth[5]
    assert (seen[inside] == 1).all()
    assert set(seen[~inside & ~beyond]) <= {np.float32(1), np.float32(3), np.float32(0)}
    assert set(seen[beyond]) <= {np.float32(0)}  # what the longer lens did not see


def test_the_layout_with_a_folder_of_frames_is_known_too(tmp_path):
    scene = write_arkit_scene(tmp_path / "arkit/3dod/Validation" / A)
    frames = scene / f"{A}_frames"
    frames.mkdir()
    for path in [*scene.glob("lowres*")]:
        path.rename(frames / path.name)
    code, scan, _ = imported(tmp_path)
    assert code == 0 and len(list(scan.frames())) == 6
    assert Library(tmp_path / "library").names("val") == [A]


def test_splits_follow_the_folders(scene, tmp_path):
    write_arkit_scene(tmp_path / "arkit/raw/Validation" / B)
    assert run(tmp_path, "--split", "val") == 0
    library = Library(tmp_path / "library")
    assert library.names() == [B]
    assert run(tmp_path) == 0
    assert library.names("train") == [A] and library.names("val") == [B]


# Missing and damaged parts


def test_what_cannot_be_used_is_counted_with_its_reason(scene, tmp_path):
    (scene / f"lowres_wide/{stem(0)}.png").unlink()
    (scene / f"lowres_wide/{stem(1)}.png").write_bytes(b"no picture")
    (scene / f"lowres_depth/{stem(2)}.png").write_bytes(b"no picture")
    (scene / f"lowres_wide_intrinsics/{stem(3)}.pincam").write_text("16 12 13")
    (scene / f"lowres_wide_intrinsics/{stem(4)}.pincam").unlink()
    code, scan, report = imported(tmp_path)
    assert code == 0 and len(list(scan.frames())) == report.frames == 1
    assert report.dropped == {"no colour partner": 1, "undecodable": 4}


def test_frames_without_poses_around_them_are_left_out(scene, tmp_path):
    poses = [
        arkit_pose_line(START_S + 0.05, arkit_pose(START_S + 0.05)),
        arkit_pose_line(START_S + 0.15, arkit_pose(START_S + 0.15)),
        arkit_pose_line(START_S + 0.45, arkit_pose(START_S + 0.45)),
        arkit_pose_line(START_S + 0.5, arkit_pose(START_S + 0.5)),
    ]
    (scene / "lowres_wide.traj").write_text("".join(poses))
    code, scan, report = imported(tmp_path)
    assert code == 0 and report.dropped == {"no transform": 4}
    assert sorted(path.name for path in (scan.folder / "pose").iterdir()) == [
        "000001.txt",
        "000005.txt",
    ]


def test_poses_that_are_not_finite_are_left_out(scene, tmp_path):
    lines = (scene / "lowres_wide.traj").read_text().splitlines()
    lines[3] = lines[3].split()[0] + " nan" * 6
    (scene / "lowres_wide.traj").write_text("\n".join(lines))
    _, _, report = imported(tmp_path)
    assert report.frames == 4 and report.dropped == {"pose not finite": 2}


@pytest.mark.parametrize(
    ("content", "message"), [("1 2 3\n", "7 numbers"), ("hello\n", "7 numbers"), ("", "7 numbers")]
)
def test_a_trajectory_that_cannot_be_read_leaves_the_scan_without_frames(
    scene, tmp_path, capsys, content, message
):
    (scene / "lowres_wide.traj").write_text(content)
    code, scan, _ = imported(tmp_path)
    assert code == 1 and message in capsys.readouterr().err
    assert not scan.has_frames() and len(scan.mesh().vertices)


def test_a_scene_without_frames_is_a_mesh(scene, tmp_path):
    for path in scene.glob("lowres*"):
        path.rename(tmp_path / path.name)
    code, scan, report = imported(tmp_path)
    assert code == 0 and not scan.has_frames() and len(scan.mesh().vertices)
    assert report.problems == []


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (["lowres_wide.traj"], "no frames: lowres_wide.traj missing"),
        (["lowres_depth"], "no frames: lowres_depth missing"),
        (["lowres_wide"], "no frames: vga_wide or lowres_wide missing"),
        (["lowres_wide", "lowres_depth"], "lowres_depth and vga_wide or lowres_wide missing"),
    ],
)
def test_what_is_missing_of_the_frames_is_told(scene, tmp_path, capsys, gone, message):
    for name in gone:
        (scene / name).rename(tmp_path / name)
    code, scan, _ = imported(tmp_path)
    assert code == 1 and message in capsys.readouterr().err
    assert not scan.has_frames() and len(scan.mesh().vertices)
    for name in gone:
        (tmp_path / name).rename(scene / name)
    assert imported(tmp_path)[0] == 0


def test_a_scene_without_a_surface_fails_and_the_others_go_on(scene, tmp_path, capsys):
    other = write_arkit_scene(tmp_path / "arkit/raw/Training" / B)
    (other / f"{B}_3dod_mesh.ply").unlink()
    assert run(tmp_path) == 1
    assert f"failed: {B}: " in capsys.readouterr().err
    assert Library(tmp_path / "library").names("train") == [A]


def test_a_second_run_imports_what_has_changed(scene, tmp_path, monkeypatch):
    imported(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(arkitscenes, "read_surface", lambda *_: pytest.fail("imported again"))
        assert imported(tmp_path)[0] == 0
    (scene / f"lowres_depth/{stem(5)}.png").unlink()
    assert len(list(imported(tmp_path)[1].frames())) == 5


def test_a_users_mistakes_exit_with_2(scene, tmp_path, capsys):
    assert run(tmp_path, "--set", "frame_interval=1") == 2
    assert "frame_interval_s" in capsys.readouterr().err
    assert run(tmp_path, "--set", "poisson.cell_m=0") == 2
    assert arkitscenes.main([str(tmp_path / "library"), "-o", str(tmp_path / "x")]) == 2
    assert "expected folders such as" in capsys.readouterr().err


def test_scenes_are_found_once_wherever_they_lie(tmp_path):
    for place in (A, f"raw/Training/{A}", f"raw/Validation/{B}", "3dod/Training/notes"):
        (tmp_path / place).mkdir(parents=True)
    assert find_scenes(tmp_path) == [tmp_path / A, tmp_path / f"raw/Validation/{B}"]


# Points without a mesh


def open_box(spacing=0.02):
    """(points on the inside of a box of 0.6 m without a lid, colours), a little noisy."""
    rng = np.random.default_rng(0)
    side = np.arange(0, 0.6, spacing)
    u, v = (grid.ravel() for grid in np.meshgrid(side, side))
    zero, end = np.zeros_like(u), np.full_like(u, 0.6)
    walls = [(u, v, zero), (u, zero, v), (u, end, v), (zero, u, v), (end, u, v)]
    points = np.concatenate([np.column_stack(wall) for wall in walls])
    points += rng.normal(0, 0.001, points.shape)
    return points, np.tile((1.0, 0.5, 0.0), (len(points), 1))


@pytest.fixture(scope="module")
def box_surface():
    return reconstruct_surface(*open_box(), NOTHING)


def test_a_surface_goes_through_the_points_and_ends_where_they_do(box_surface):
    mesh = box_surface
    assert len(mesh.faces) > 500
    inside = (mesh.vertices > -0.05).all(axis=1) & (mesh.vertices < 0.65).all(axis=1)
    assert inside.all()
    distances = np.abs(mesh.vertices[:, :, None] - np.array([0, 0.6])).min(axis=(1, 2))
    assert np.quantile(distances, 0.95) < 0.01
    lid = (mesh.vertices[:, 2] > 0.55) & (np.abs(mesh.vertices[:, :2] - 0.3) < 0.2).all(axis=1)
    assert not lid.any()
    assert np.abs(mesh.colors.astype(int) - (255, 128, 0)).max() < 30


def test_fitted_normals_look_into_the_room():
    points, _ = open_box()
    mesh = reconstruct_surface(points, NOTHING, NOTHING)
    inwards = np.einsum("vc,vc->v", mesh.normals, (0.3, 0.3, 0.3) - mesh.vertices)
    assert (inwards > 0).mean() > 0.95
    assert (mesh.colors == 128).all()  # grey stands for unknown


def test_the_same_points_give_the_same_surface(box_surface):
    again = reconstruct_surface(*open_box(), NOTHING)
    np.testing.assert_array_equal(again.vertices, box_surface.vertices)
    np.testing.assert_array_equal(again.faces, box_surface.faces)


@pytest.mark.parametrize("count", [0, 1, 99])
def test_too_few_points_are_no_surface(count):
    points = np.arange(3 * count, dtype=float).reshape(-1, 3)
    with pytest.raises(InputError, match="100 points or more"):
        reconstruct_surface(points, NOTHING, NOTHING)


def test_points_that_are_not_finite_are_left_out():
    points, colors = open_box()
    points[::50] = np.nan
    assert np.isfinite(reconstruct_surface(points, colors, NOTHING).vertices).all()


def test_settings_without_meaning_are_refused():
    with pytest.raises(InputError, match=r"poisson\.cell_m"):
        PoissonConfig(cell_m=float("nan"))


def test_a_scene_of_several_clouds_gets_one_surface(scene, tmp_path):
    (scene / f"{A}_3dod_mesh.ply").unlink()
    points, colors = open_box()
    for number, part in enumerate(np.array_split(np.arange(len(points)), 2)):
        cloud = Mesh(
            points[part].astype(np.float32),
            np.zeros((0, 3), np.int32),
            (colors[part] * 255).astype(np.uint8),
            np.zeros((len(part), 3), np.float32),
        )
        (scene / f"laser_{number}.ply").write_bytes(ply_bytes(cloud).replace(b" nx", b" ax"))
    code, scan, _ = imported(tmp_path)
    mesh = scan.mesh()
    assert code == 0 and len(mesh.faces) > 500
    assert mesh.vertices.max(axis=0) == pytest.approx(0.6, abs=0.06)


def test_one_vertex_is_a_mesh_but_no_cloud_to_reconstruct(scene, tmp_path, capsys):
    one = scannet_ply(np.ones((1, 3)), np.zeros((0, 3), int))
    (scene / f"{A}_3dod_mesh.ply").write_bytes(one)
    code, scan, _ = imported(tmp_path)
    assert code == 1 and "100 points or more" in capsys.readouterr().err
    assert not scan.about()
