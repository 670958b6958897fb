"""The files around the code agree with each other and with the code."""

import array
import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

import unscene_ros

REPOSITORY = Path(__file__).parents[1]
NODES = sorted(path.stem for path in REPOSITORY.glob("unscene_ros/nodes/*_node.py"))
# Where the name of a package and of its module differ.
MODULES = {
    "open3d-cpu": "open3d",
    "opencv-python-headless": "cv2",
    "PyYAML": "yaml",
    "scikit-learn": "sklearn",
}


def read(path: str) -> str:
    return (REPOSITORY / path).read_text()


def package_xml(*tags: str) -> set[str]:
    """The texts of these elements of package.xml."""
    root = ElementTree.fromstring(read("package.xml"))
    return {element.text or "" for tag in tags for element in root.iter(tag)}


def requirements(path: str) -> dict[str, str]:
    """Package -> what follows its name, markers and comments cut off."""
    lines = [line.partition("#")[0].partition(";")[0].strip() for line in read(path).splitlines()]
    return dict(re.fullmatch(r"([\w.-]+(?:\[\w+\])?)(.*)", line).groups() for line in lines if line)


def setup_argument(name: str):
    """The value of a keyword of setup(...)."""
    call = next(
        node
        for node in ast.walk(ast.parse(read("setup.py")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    return ast.literal_eval(next(key.value for key in call.keywords if key.arg == name))


def imported(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def needs_ros():
    """Skips where ROS cannot be had; where it must be there, its absence fails the test."""
    if os.environ.get("UNSCENE_REQUIRE_ROS") != "1":
        pytest.importorskip("unscene_ros.msg")


# --- the package, its version and its parts ---


def test_versions_agree():
    setup = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert setup.stdout.split()[-1] == unscene_ros.__version__
    assert package_xml("version") == {unscene_ros.__version__}


def test_package_xml_is_valid():
    needs_ros()
    from catkin_pkg.package import parse_package

    warnings = []
    package = parse_package(str(REPOSITORY / "package.xml"), warnings=warnings)
    package.validate(warnings=warnings)  # a bad one would silently be built as plain cmake
    assert warnings == []
    assert package.get_build_type() == "ament_cmake"
    assert package.licenses == ["Apache-2.0"] and "Apache License" in read("LICENSE")


def test_every_node_starts_by_its_own_command():
    scripts = dict(
        entry.split(" = ") for entry in setup_argument("entry_points")["console_scripts"]
    )
    assert scripts.pop("unscene") == "unscene_ros.cli:main"
    assert scripts == {node: f"unscene_ros.nodes.{node}:main" for node in NODES}
    for node in NODES:
        tree = ast.parse(read(f"unscene_ros/nodes/{node}.py"))
        assert "main" in {child.name for child in tree.body if isinstance(child, ast.FunctionDef)}


def test_every_file_beside_the_code_is_installed():
    package = REPOSITORY / "unscene_ros"
    made = (".py", ".pyc", ".nbi", ".nbc", ".c", ".h", ".so")  # code, caches and the C library
    files = {path for path in package.rglob("*") if path.is_file()}
    patterns = setup_argument("package_data")["unscene_ros"]
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    assert installed == {path for path in files if not path.name.endswith(made)}
    assert installed


def test_messages_and_services_use_only_declared_packages():
    files = [*REPOSITORY.glob("msg/*.msg"), *REPOSITORY.glob("srv/*.srv")]
    text = "\n".join(path.read_text() for path in files)
    used = set(re.findall(r"^(\w+)/\w+", text, re.MULTILINE))
    assert used
    assert used <= package_xml("depend")
    assert used <= set(re.findall(r"find_package\((\w+)", read("CMakeLists.txt")))


@pytest.mark.slow
def test_install_tree_is_what_ros2_run_and_launch_expect(tmp_path):
    needs_ros()
    source, build, install = tmp_path / "source", tmp_path / "build", tmp_path / "install"
    for folder in ("config", "launch", "msg", "srv", "unscene_ros"):
        shutil.copytree(REPOSITORY / folder, source / folder)
    for file in ("CMakeLists.txt", "package.xml"):
        shutil.copy(REPOSITORY / file, source)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "CMAKE_PREFIX_PATH": os.environ["AMENT_PREFIX_PATH"]}
    options = [f"-DCMAKE_INSTALL_PREFIX={install}", f"-DPython3_EXECUTABLE={sys.executable}"]
    options += ["-DPYTHON_INSTALL_DIR=python", "-DBUILD_TESTING=OFF"]
    for command in (
        ["cmake", "-S", source, "-B", build, *options],
        ["cmake", "--build", build, "--target", "install", "--parallel"],
    ):
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)

    nodes = install / "lib/unscene_ros"
    assert sorted(node.name for node in nodes.iterdir()) == NODES
    assert all(os.access(node, os.X_OK) for node in nodes.iterdir())
    share = install / "share/unscene_ros"
    for folder in ("config", "launch"):
        expected = {file.name for file in (REPOSITORY / folder).iterdir()}
        assert {file.name for file in (share / folder).iterdir()} == expected
    code = (
        "import unscene_ros.scene, unscene_ros.msg, unscene_ros.srv\n"
        "print(unscene_ros.scene, unscene_ros.msg, unscene_ros.srv)\n"
        "from unscene_ros.models.backends import native_backend\n"
        "print(native_backend.NativeBackend('cpu')._library)"
    )
    env = os.environ | {"PYTHONPATH": str(install / "python")}
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.stdout.count(str(install / "python")) == 4, result.stderr


# --- dependencies ---


@pytest.mark.parametrize("path", ["requirements.txt", "requirements-ros.txt"])
def test_every_requirement_is_pinned(path):
    versions = requirements(path)
    assert versions
    free = {name for name, pin in versions.items() if not re.fullmatch(r"==[\w.]+", pin)}
    assert free <= {"triton"}  # a torch with CUDA brings its own


def test_setup_py_names_the_pinned_packages():
    groups = [setup_argument("install_requires"), *setup_argument("extras_require").values()]
    named = {name.partition(";")[0] for group in groups for name in group}
    assert named == set(requirements("requirements.txt")) - {"setuptools"}


def test_ros_stays_in_the_nodes():
    ros = package_xml("depend", "exec_depend", "test_depend")
    ros |= {"unscene_ros.msg", "unscene_ros.srv", "unscene_ros.nodes"}
    for path in REPOSITORY.glob("unscene_ros/**/*.py"):
        if "nodes" not in path.parts:
            wrong = {name for name in imported(path) if name in ros or name.split(".")[0] in ros}
            assert not wrong, f"{path} imports {wrong}"


def test_the_package_runs_without_the_training():
    for path in REPOSITORY.glob("unscene_ros/**/*.py"):
        assert "training" not in {name.split(".")[0] for name in imported(path)}, path


def test_every_ros_package_that_a_node_imports_is_declared():
    python = {MODULES.get(name, name) for name in requirements("requirements.txt")}
    known = python | set(sys.stdlib_module_names) | {"unscene_ros", "test"}
    declared = package_xml("depend", "exec_depend", "test_depend")
    files = [*REPOSITORY.glob("unscene_ros/nodes/**/*.py"), *REPOSITORY.glob("launch/*.py")]
    for path in files:
        undeclared = {name.split(".")[0] for name in imported(path)} - known - declared
        assert not undeclared, f"{path} imports {undeclared}, which package.xml does not name"


def test_no_package_is_declared_that_nothing_imports():
    used = {
        name.split(".")[0]
        for folder in ("unscene_ros", "launch")
        for path in (REPOSITORY / folder).rglob("*.py")
        for name in imported(path)
    }
    python = {name.partition(";")[0] for name in setup_argument("install_requires")}
    assert {MODULES.get(name, name) for name in python} <= used
    run_or_built_with = {
        "ros2launch",
        "rosbag2",
        "rosbag2_storage_mcap",
        "rosidl_default_runtime",
        "rviz2",
    }
    assert package_xml("exec_depend") - used == run_or_built_with


# --- commands ---


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):(?!.*export)", read("Makefile"), re.MULTILINE))


def test_every_make_target_is_listed_by_make_help():
    result = subprocess.run(
        ["make", "--no-print-directory"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert {line.split()[0] for line in result.stdout.splitlines()} == make_targets()


def test_ci_calls_make_targets_that_exist():
    workflows = list((REPOSITORY / ".github/workflows").glob("*.yml"))
    for path in [REPOSITORY / ".ci/run", *workflows]:
        called = set(re.findall(r"\bmake ([a-z-]+)", path.read_text()))
        assert "test" in called and called <= make_targets(), path
    assert os.access(REPOSITORY / ".ci/run", os.X_OK)


def test_commit_hooks_use_the_pinned_ruff():
    hooks = {
        repo["repo"]: repo for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    }
    revision = hooks["https://github.com/astral-sh/ruff-pre-commit"]["rev"]
    assert "==" + revision.removeprefix("v") == requirements("requirements.txt")["ruff"]


def test_no_file_names_a_folder_of_somebodys_machine():
    private = re.compile(r"(?<![\w.}])/(?:work|home|root|Users)/\w")
    suffixes = {
        ".py",
        ".sh",
        ".md",
        ".rst",
        ".txt",
        ".toml",
        ".yaml",
        ".yml",
        ".xml",
        ".msg",
        ".srv",
        ".rviz",
    }
    folders = ["unscene_ros", "training", "launch", "config", "msg", "srv", "test", ".github"]
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*")]
    for path in [*files, *REPOSITORY.iterdir()]:
        if path.is_file() and path.suffix in suffixes:
            assert not private.search(path.read_text()), path


# --- bootstrap.sh on machines that lack something ---


@pytest.fixture
def bootstrap(tmp_path):
    """bootstrap({tool: shell script}): runs bootstrap.sh with no other tools than a basic set."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bootstrap.sh"
    script.write_text(read("bootstrap.sh"))

    def run(tools: dict[str, str]) -> subprocess.CompletedProcess:
        basic = {tool: f'exec /usr/bin/env -i PATH=/usr/bin:/bin {tool} "$@"' for tool in BASIC}
        for name, source in (basic | tools).items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{source}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        env = {"PATH": str(tmp_path / "bin")}
        return subprocess.run(
            ["/bin/bash", str(script)], env=env, capture_output=True, text=True, timeout=60
        )

    return run


BASIC = ("cat", "dirname", "grep", "xargs")
PYTHON = f'exec {Path(sys.base_prefix).resolve()}/bin/python3 "$@"'


def test_machine_without_a_fitting_python_gets_one_line(bootstrap):
    result = bootstrap({"python3": 'test "$1" = --version && echo Python 3.9.2'})
    assert result.returncode == 1
    assert result.stderr == ("setup: needs Python 3.10, 3.11 or 3.12; python3 is Python 3.9.2\n")


def test_user_is_told_exactly_what_to_install(bootstrap):
    result = bootstrap({"python3": PYTHON, "gcc": "", "make": "", "id": "echo 1000"})
    assert result.returncode == 1
    assert re.fullmatch(
        r"setup: system packages are missing, please run: sudo apt-get install g\+\+.*\n",
        result.stderr,
    )


def test_root_gets_the_missing_packages_installed(bootstrap, tmp_path):
    log = tmp_path / "apt.log"
    result = bootstrap(
        {
            "python3": PYTHON,
            "gcc": "",
            "make": "",
            "id": "echo 0",
            "apt-get": f'echo "$DEBIAN_FRONTEND $@" >>{log}; test "$1" = update',
        }
    )
    update, install = log.read_text().splitlines()
    assert update == "noninteractive update -qq"
    assert install.startswith("noninteractive install -qq -y") and "g++" in install.split()
    assert result.returncode == 1 and "apt-get could not install g++" in result.stderr


# --- ROS 2 in .venv ---


def test_every_message_and_service_is_compiled():
    needs_ros()
    for kind in ("msg", "srv"):
        compiled = importlib.import_module(f"unscene_ros.{kind}")
        assert {path.stem for path in REPOSITORY.glob(f"{kind}/*.{kind}")} <= set(dir(compiled))


def test_messages_hold_arrays_that_copy_in_one_piece():
    needs_ros()
    from unscene_ros import msg

    mesh = msg.Mesh(vertices=array.array("f", [1.0, 2.0, 3.0]))
    for field, typecode in {"vertices": "f", "normals": "f", "colors": "B", "faces": "I"}.items():
        assert isinstance(getattr(mesh, field), array.array)
        assert getattr(mesh, field).typecode == typecode
    assert mesh.vertices.tolist() == [1.0, 2.0, 3.0]


# As the released package has them; a middleware like Zenoh delivers between equal ones only.
OFFICIAL_HASHES = {
    "Detection3DArray": "793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018",
    "LabelInfo": "3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783",
}


@pytest.mark.parametrize("message", OFFICIAL_HASHES)
def test_vision_msgs_is_the_official_one_or_cannot_be_told_from_it(message):
    needs_ros()
    from ament_index_python import get_package_share_directory

    file = Path(get_package_share_directory("vision_msgs"), "msg", f"{message}.json")
    if not file.exists():
        pytest.skip("this ROS 2 does not hash its types")
    hashes = {h["type_name"]: h["hash_string"] for h in json.loads(file.read_text())["type_hashes"]}
    assert hashes[f"vision_msgs/msg/{message}"] == f"RIHS01_{OFFICIAL_HASHES[message]}"


def test_environment_finds_sources_before_generated_code_and_sets_the_transport(tmp_path):
    needs_ros()
    old, new = (f"{name}_DEFAULT_PROFILES_FILE" for name in ("FASTRTPS", "FASTDDS"))
    code = (
        "import os, unscene_ros, unscene_ros.msg; print(unscene_ros.__file__);"
        f"print(os.environ.get('{old}'), os.environ.get('{new}'))"
    )
    profile, site = str(REPOSITORY / "config/fastdds.xml"), "/site/profile.xml"
    outside = {key: value for key, value in os.environ.items() if key not in (old, new)}
    for own, profiles in (
        ({"ROS_DISTRO": "jazzy"}, f"{profile} None"),
        ({"ROS_DISTRO": "jazzy", old: site}, f"{site} None"),
        ({"ROS_DISTRO": "kilted"}, f"None {profile}"),
        ({"ROS_DISTRO": "kilted", new: site}, f"None {site}"),
    ):
        run, env = [sys.executable, "-c", code], outside | own
        result = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
        source, found = result.stdout.splitlines()
        assert Path(source) == REPOSITORY / "unscene_ros/__init__.py"
        assert found == profiles
