"""What the documents for people say is so: paths, commands, settings, topics, the tree, figures."""

import ast
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import unscene_ros
from unscene_ros import cli
from unscene_ros.models.checkpoint import make_network
from unscene_ros.scene import Instances, Mesh, Segments
from unscene_ros.settings import from_assignments
from unscene_ros.storage import Prediction, save_prediction, write_mesh

REPOSITORY = Path(__file__).parents[1]
BENCHMARKS = REPOSITORY / "test" / "benchmarks"
README = (REPOSITORY / "README.md").read_text()
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()
DOCUMENTS = pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])

# Programs of ROS, git and the shell, which are not ours to check.
FOREIGN = ("git", "cd", "source", "rosdep", "colcon")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(*programs: str) -> list[list[str]]:
    """The words of each shell command of README and CONTRIBUTING that starts with a program."""
    words = [
        shlex.split(command, comments=True)
        for text in (README, CONTRIBUTING)
        for block in blocks(text, "bash")
        for line in block.splitlines()
        for command in line.split(" && ")
    ]
    return [each for each in words if each and (not programs or each[0] in programs)]


def between(mark: str) -> str:
    """What stands in README between two equal marks."""
    _, inside, _ = README.split(f"<!-- {mark} -->")
    return inside


def section(heading: str) -> str:
    """What stands in README under a heading, down to the next one."""
    found = re.search(rf"^#+ {heading}$(.*?)(?=^#|\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def table(text: str) -> list[list[str]]:
    """The cells of a table's rows; a cell left empty in the first column repeats the one above."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    above = ""
    for row in rows[2:]:
        above = row[0] = row[0] or above
    return rows[2:]


def code(text: str) -> list[str]:
    """What stands in backticks outside code blocks."""
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", outside)


def defined(path: Path) -> set[str]:
    """Functions of a module, methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return names


# --- paths, links and the tree ---


@DOCUMENTS
def test_files_that_are_named_exist(text):
    known = ("unscene_ros/", "training/", "test/", "launch/", "config/", "msg/")
    named = [name for name in code(text) if name.startswith(known) and "<" not in name]
    assert named
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


@DOCUMENTS
def test_links_lead_somewhere(text):
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    words = [re.sub(r"[^\w -]", "", heading.lower()) for heading in headings]
    anchors = {"#" + heading.replace(" ", "-") for heading in words}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [x for x in links if x not in anchors and not (REPOSITORY / x).exists()] == []


def tree_paths() -> list[str]:
    """The paths in README's tree; an indented name is inside the folder above it."""
    paths: list[str] = []
    folders: list[str] = []
    for line in blocks(between("tree"), "text")[0].splitlines():
        if not line:
            continue
        name = line.split()[0]
        folders = folders[: (len(line) - len(line.lstrip())) // 2]
        paths.append("".join(folders) + name)
        folders.append(name)
    return paths


def test_tree_names_every_module_and_nothing_else():
    paths = tree_paths()
    modules = {
        str(path.relative_to(REPOSITORY))
        for package in ("unscene_ros", "training")
        for path in (REPOSITORY / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(modules - set(paths)) == []
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    assert len(set(paths)) == len(paths)


def test_functions_on_the_way_of_a_frame_exist():
    way = blocks(section("One RGB-D frame, from topic to marker"), "text")[0]
    steps = re.split(r"(unscene_ros/\S+\.py)", way)[1:]
    assert len(steps) == 2 * 5
    for path, text in zip(steps[::2], steps[1::2], strict=True):
        named = set(re.findall(r"([\w.]+)\(\)", text))
        assert named, path
        assert named - defined(REPOSITORY / path) == set()


# --- commands ---


def test_commands_belong_to_known_programs():
    ours = ("make", "unscene", "python", "ros2", *FOREIGN)
    others = [words[0] for words in commands() if words[0] not in ours]
    assert [program for program in others if not os.access(REPOSITORY / program, os.X_OK)] == []


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    asked = [words[1] for words in commands("make")]
    asked += [
        name.split()[1] for t in (README, CONTRIBUTING) for name in code(t) if "make " in name
    ]
    assert {"demo", "test"} <= set(asked)
    assert set(asked) - targets == set()


def test_the_demo_writes_where_the_readme_says():
    makefile = (REPOSITORY / "Makefile").read_text()
    recipe = makefile.partition("\ndemo: setup")[2].partition("\n\n")[0]
    assert recipe.endswith("test/data/office_kitchen -o output/demo")
    assert "output/demo/report.html" in blocks(section("Two commands"), "bash")[0]


@pytest.mark.parametrize("words", commands("unscene"), ids=" ".join)
def test_unscene_takes_the_arguments(words):
    arguments = cli._parser().parse_args(words[1:])  # exits where one is unknown
    # These raise where a setting is unknown.
    if words[1] == "import-weights":
        make_network(arguments.network, from_assignments(arguments.assignments))
    elif words[1] != "evaluate":
        cli._settings(arguments)


def test_python_in_the_readme_runs(tmp_path, monkeypatch):
    (program,) = blocks(README, "python")
    monkeypatch.chdir(tmp_path)
    corners = np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]], np.float32)
    up = np.tile(np.float32([0, 0, 1]), (3, 1))
    write_mesh(
        Path("room.ply"), Mesh(corners, np.int32([[0, 1, 2]]), np.zeros((3, 3), np.uint8), up)
    )
    known: dict = {}
    exec(program, known)
    assert known["scores"].shape == (3, 20)


@pytest.mark.parametrize(
    "command", [[], ["replay"], ["segment"], ["evaluate"], ["import-weights"]], ids=" ".join
)
def test_unscene_explains_itself(command):
    shown = run_python("-m", "unscene_ros.cli", *command, "--help")
    assert shown.startswith("usage: unscene")


def python_commands() -> dict[str, list[str]]:
    """Module -> all words that are given to it."""
    given: dict[str, list[str]] = {}
    for words in commands("python"):
        assert words[1] == "-m"
        given.setdefault(words[2], []).extend(words[3:])
    return given


@pytest.mark.parametrize("module", python_commands())
@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
def test_python_commands_know_their_options(module, monkeypatch, capsys):
    if module.startswith("unscene_ros.nodes"):
        needs_ros()
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:  # in this process, which has all libraries already
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code in (0, None)
    shown = capsys.readouterr().out
    options = {word for word in python_commands()[module] if word.startswith("-")}
    assert {option for option in options if not re.search(rf"{option}\b", shown)} == set()


def test_launch_arguments_exist():
    tree = ast.parse((REPOSITORY / "launch" / "unscene.launch.py").read_text())
    (listed,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "ARGUMENTS"
    )
    known = {row.elts[0].value for row in listed.elts}
    launches = [words for words in commands("ros2") if words[1] == "launch"]
    given = {word.partition(":=")[0] for words in launches for word in words[4:]}
    assert given and given <= known
    assert {tuple(words[2:4]) for words in launches} == {("unscene_ros", "unscene.launch.py")}


def run_python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- topics and parameters, against the nodes themselves ---


def needs_ros():
    """Skips where ROS cannot be had; where it must be there, its absence fails the test."""
    if os.environ.get("UNSCENE_REQUIRE_ROS") != "1":
        pytest.importorskip("unscene_ros.msg")


def connections(node_class, *parameters: str) -> set[tuple[str, ...]]:
    """(node, direction, topic, type, delivery) of a running node, ROS's own topics left out."""
    import rclpy

    words = [word for parameter in parameters for word in ("-p", parameter)]
    rclpy.init(args=["--ros-args", *words])
    node = node_class()
    try:
        ends = [("in", end) for end in node.subscriptions]
        ends += [("out", end) for end in node.publishers]
        rows = {
            (node.get_name(), direction, end.topic_name, type_of(end), delivery_of(end))
            for direction, end in ends
        }
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return {row for row in rows if not row[3].startswith(("rcl_interfaces", "rosgraph_msgs"))}


def type_of(end) -> str:
    return f"{end.msg_type.__module__.split('.')[0]}/{end.msg_type.__name__}"


def delivery_of(end) -> str:
    from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

    quality = end.qos_profile
    if quality.reliability == ReliabilityPolicy.BEST_EFFORT:
        return f"best effort, {quality.depth}"
    latched = quality.durability == DurabilityPolicy.TRANSIENT_LOCAL
    return f"{'latched' if latched else 'reliable'}, {quality.depth}"


def test_topics_are_those_of_the_nodes(monkeypatch):
    needs_ros()
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF")  # nobody need hear of these nodes
    from unscene_ros.nodes.fusion_node import FusionNode
    from unscene_ros.nodes.segmentation_node import SegmentationNode

    listed = {
        (node, direction, "/" + topic.strip("`/"), kind, delivery)
        for node, direction, topic, kind, delivery in table(section("Topics"))
        if node != "player_node"
    }
    raw, compressed = (connections(FusionNode, f"transport:={t}") for t in ("raw", "compressed"))
    assert listed == raw | compressed | connections(SegmentationNode)


def test_parameters_exist():
    needs_ros()
    from unscene_ros.nodes.fusion_node import FusionNodeConfig
    from unscene_ros.nodes.parameters import _parameters
    from unscene_ros.nodes.player_node import PlayerNodeConfig
    from unscene_ros.nodes.segmentation_node import SegmentationNodeConfig

    known = {
        "fusion_node": FusionNodeConfig,
        "segmentation_node": SegmentationNodeConfig,
        "player_node": PlayerNodeConfig,
    }
    rows = table(section("Parameters"))
    assert {row[0] for row in rows} == set(known)
    for node, names, _ in rows:
        declared = {name for name, _, _ in _parameters(known[node](), "")}
        assert names and set(re.findall(r"`([\w.]+)`", names)) <= declared


def test_settings_that_the_text_names_exist():
    from unscene_ros.pipeline import PipelineConfig
    from unscene_ros.settings import to_dict

    settings = to_dict(PipelineConfig())
    named = [name for name in code(README) if name.startswith("segmentation.")]
    assert named
    for name in named:
        value = settings
        for key in name.split("."):
            value = value[key]


def test_arrays_of_a_prediction_are_those_that_are_written(tmp_path):
    empty = Prediction(
        Mesh.empty(),
        Segments(np.zeros(0, np.int32), np.zeros((0, 2), np.int32), 0),
        Instances.empty(0),
        np.zeros(0, np.int32),
    )
    save_prediction(tmp_path, empty)
    paragraph = section("Files").partition("**Prediction**")[2]
    named = {name for name in code(paragraph) if re.fullmatch(r"[a-z_]+", name)}
    assert named == set(np.load(tmp_path / "instances.npz").files)
    assert {name for name in code(paragraph) if "." in name and "(" not in name} == {
        path.name for path in tmp_path.iterdir()
    }


# --- figures and versions ---


def test_results_are_those_that_were_measured():
    """The tables are what results.py makes of results.json; without it they are empty."""
    kept = BENCHMARKS / "results.json"
    rendered = runpy.run_path(str(BENCHMARKS / "results.py"))["rendered"]
    assert between("results") == rendered(json.loads(kept.read_text()) if kept.exists() else None)


def test_measured_values_are_shown_beside_their_peers():
    rendered = runpy.run_path(str(BENCHMARKS / "results.py"))["rendered"]
    none = {"area": "quality", "peer": None, "peer_value": None, "commit": "abc"}
    peer = {"area": "fusion", "peer": "Open3D", "peer_value": 20, "commit": "def"}
    rows = [
        {"name": "fusion_4cm_ms", "value": 12.34, "unit": "ms", **peer},
        {"name": "live_drop_share", "value": 0.015, "unit": "share", **none},
        {"name": "ap50_hdbscan_rooms", "value": 0.1234, "unit": "0..1", **none},
    ]
    shown = rendered({"machine": "a machine", "rows": rows})
    assert "| one frame into the map, 4 cm | 12.3 ms | 20 ms (Open3D) |" in shown
    assert "| frames dropped | 1.5 % |  |" in shown
    assert "| HDBSCAN | – | 12.3 | – | – | – | – |" in shown
    assert "a machine, at commit `abc`, fusion at `def`." in shown


def test_faults_are_shown_with_the_beginning_of_their_message_and_what_was_lost():
    rendered = runpy.run_path(str(BENCHMARKS / "results.py"))["rendered"]
    fault = {"area": "faults", "value": 1.234, "unit": "s", "peer": None, "commit": "abc"}
    rows = [
        {**fault, "name": "fault_no_tf", "seen": "a `tick` | " + 150 * "x", "lost": "3 frames"},
        {**fault, "name": "fault_qos", "seen": "no <frame>", "lost": ""},
    ]
    shown = rendered({"machine": "a machine", "rows": rows})
    assert "| TF stops | a &#96;tick&#96; &#124; " + 109 * "x" + "… | 1.23 s | 3 frames |" in shown
    assert "| TF with another QoS | no &#60;frame&#62; | 1.23 s | nothing |" in shown
    assert "| disk full while a map is saved | – | – | – |" in shown


def test_changelog_tells_of_this_version():
    assert f"\n{unscene_ros.__version__}" in (REPOSITORY / "CHANGELOG.rst").read_text()


def test_pictures_are_small():
    sizes = [path.stat().st_size for path in (REPOSITORY / "test" / "data").rglob("*.jpg")]
    assert sizes and sum(sizes) <= 400_000
