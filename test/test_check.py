"""The check of a library: what is there, what is missing, which command makes it."""

import shutil

import pytest
from rich.console import Console
from scan_sources import write_scannet, write_sens

from training.scans import check, scannet
from training.scans.check import Step, find_missing, show, steps
from training.scans.importing import ImportReport
from training.scans.library import Library
from training.unscene3d import pseudo_masks
from training.unscene3d.recipe import RECIPES
from unscene_ros.scene import InputError

A, B = "scene0000_00", "scene0001_00"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The folder of a library with two scans of ScanNet that lack nothing of the small recipe."""
    folder = tmp_path_factory.mktemp("imported")
    source = write_scannet(folder / "scannet", A, B)
    (source / "scannetv2_train.txt").write_text(B)
    assert scannet.main([str(source), "-o", str(folder / "library")]) == 0
    assert pseudo_masks.main([str(folder / "library"), "--recipe", "small"]) == 0
    return folder / "library"


@pytest.fixture
def library(imported, tmp_path):
    """A copy that a test may damage."""
    return Library(shutil.copytree(imported, tmp_path / "a library"))


def run(library, *options):
    """The exit code, for the recipe whose masks the scans have."""
    return check.main([str(library.root), "--recipe", "small", *options])


def test_nothing_is_missing_from_whole_scans(library, capsys):
    assert run(library) == 0
    output = capsys.readouterr().out
    assert output.count("2 of 2") == 4 and "python" not in output


def test_a_split_is_checked_alone(library, capsys):
    (library.scan(A).folder / "scan.json").unlink()
    assert run(library, "--split", "train") == 0
    assert "1 of 1" in capsys.readouterr().out
    assert run(library) == 1


def test_missing_frames_are_imported_from_where_the_surface_came(library, capsys):
    scan = library.scan(A)
    for name in ("color", "depth"):
        (scan.folder / name).rename(scan.folder / f"no {name}")
    assert run(library) == 1
    output = capsys.readouterr().out
    command = f"python -m training.scans.scannet SCANNET_ROOT -o '{library.root}'"
    assert f"frames of 1 scans:\n  {command}\n" in output
    assert "surface of" not in output


def test_a_missing_surface_is_fused_where_there_are_frames(library, capsys):
    for name in ("scan.json", "mesh.ply", "import.json"):
        (library.scan(B).folder / name).unlink()
    assert run(library) == 1
    output = capsys.readouterr().out
    assert f"surface of 1 scans:\n  python -m training.scans.fuse '{library.root}'\n" in output


def test_an_interrupted_import_is_made_again_and_never_fused(library, capsys):
    scan = library.scan(B)
    ImportReport.begin(scan.folder, "recorded", scan.folder)
    for is_mesh_there in (True, False):
        if not is_mesh_there:
            scan.mesh_path.unlink()
        assert run(library) == 1
        output, error = capsys.readouterr()
        command = f"python -m training.scans.recorded RECORDING... -o '{library.root}'"
        assert f"surface of 1 scans:\n  {command}\n" in output
        assert "training.scans.fuse" not in output
        assert f"incomplete: {B}: its import was interrupted" in error


def test_a_mesh_of_ones_own_is_a_surface_and_its_frames_come_from_no_command(library, capsys):
    scan = library.scan(B)
    for name in ("scan.json", "import.json"):
        (scan.folder / name).unlink()
    assert run(library) == 0
    shutil.rmtree(scan.folder / "color")
    assert run(library) == 1
    output = capsys.readouterr().out
    wanted = f"# put color/, depth/, pose/ and intrinsic.txt into '{library.root}'/scans/NAME"
    assert f"frames of 1 scans:\n  {wanted}\n" in output
    assert "training.scans" not in output and "surface of" not in output


def test_missing_labels_are_no_fault(library, capsys):
    (library.scan(A).folder / "gt.npz").unlink()
    assert run(library) == 0
    assert "labels (optional)" in (output := capsys.readouterr().out) and "1 of 2" in output


def test_what_an_import_left_out_is_told(tmp_path, capsys):
    source = write_scannet(tmp_path / "scannet", A)
    stream = write_sens(source / f"scans/{A}/{A}.sens")
    stream.write_bytes(stream.read_bytes()[:-1500])
    assert scannet.main([str(source), "-o", str(tmp_path / "library"), "--frame-step", "1"]) == 1
    capsys.readouterr()
    run(Library(tmp_path / "library"))
    assert f"incomplete: {A}: " in capsys.readouterr().err


def test_an_empty_folder_of_a_scan_lacks_everything(library, capsys):
    (library.root / "scans/new").mkdir()
    assert run(library) == 1
    output = capsys.readouterr().out
    assert output.count("2 of 3") == 4
    assert output.count(f"python -m training.scans.rooms 0-99 -o '{library.root}'/scans") == 2


def test_each_command_is_told_once_and_errors_count_as_missing(library):
    def fail(scan):
        raise InputError("no mesh")

    scans = [library.scan(A), library.scan(B)]
    looked_for = [
        Step("nothing", lambda scan: True, lambda scan: "x"),
        Step("same", fail, lambda scan: "make it"),
        Step("other", lambda scan: scan.name == A, lambda scan: f"make {scan.name}"),
    ]
    findings = find_missing(scans, looked_for)
    assert [finding.missing for finding in findings] == [[], [A, B], [B]]
    assert [finding.commands for finding in findings] == [[], ["make it"], [f"make {B}"]]


def test_commands_are_never_wrapped(library, capsys):
    long_command = "python -m " + "x" * 300
    findings = find_missing([library.scan(A)], [Step("a", lambda _: False, lambda _: long_command)])
    show(findings, 1, Console(width=40))
    assert f"  {long_command}\n" in capsys.readouterr().out


def test_missing_masks_are_made_with_the_same_options(library, capsys):
    options = "--recipe", "small", "--set", "pseudo_masks.training_free.oversegmentation.k=0.2"
    assert check.main([str(library.root), *options]) == 1
    output = capsys.readouterr().out
    command = "python -m training.unscene3d.pseudo_masks"
    assert f"pseudo masks of 2 scans:\n  {command} '{library.root}' {' '.join(options)}\n" in output
    assert "surface of" not in output


def test_a_recipe_that_reads_geometry_needs_a_network(library, capsys):
    assert check.main([str(library.root)]) == 1
    output = capsys.readouterr().out
    assert f"python -m training.unscene3d.pretrain '{library.root}'\n" in output
    assert f"python -m training.unscene3d.pseudo_masks '{library.root}'\n" in output
    (library.root / "pretrained.safetensors").write_bytes(b"there, though of no use")
    check.main([str(library.root)])
    assert "training.unscene3d.pretrain" not in capsys.readouterr().out


def test_steps_come_in_the_order_in_which_they_are_made(library):
    names = [step.what for step in steps(library, RECIPES["default"], "")]
    assert names == ["frames", "surface", "labels", "network for 3D features", "pseudo masks"]


def test_a_users_mistakes_exit_with_2(library, tmp_path, capsys):
    assert check.main([str(tmp_path / "nowhere")]) == 2
    assert run(library, "--split", "unknown") == 2
    (tmp_path / "empty/scans").mkdir(parents=True)
    assert check.main([str(tmp_path / "empty")]) == 2
    assert "expected scans" in capsys.readouterr().err
