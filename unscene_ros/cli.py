"""The command `unscene`: replay a recording, segment a mesh, evaluate predictions.

A user's mistake is one line on stderr and exit code 2. Stages are imported by the command that
needs them, so that `unscene --help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unscene_ros import DEFAULT_SEGMENTER
from unscene_ros.scene import InputError

if TYPE_CHECKING:
    from unscene_ros.pipeline import PipelineConfig
    from unscene_ros.replay import ReplayConfig

USER_MISTAKE, INTERRUPTED = 2, 130

REPLAY_EXAMPLES = """\
examples:
  unscene replay kitchen.mcap -o output/kitchen
  unscene replay my_bag/ -o out --set replay.topics.depth=/camera/depth/image_rect_raw
  unscene replay scan_folder/ -o out --set fusion.voxel_size_m=0.02 --set fusion.depth_max_m=4
  unscene replay house.mcap -o out --ground-truth gt.npz --segment-every 50

writes mesh.ply, instances.npz, metrics.json and report.html (open it in a browser)"""

SEGMENT_EXAMPLES = """\
examples:
  unscene segment room.ply -o output/room
  unscene segment scan.glb -o output/scan --device cpu

reads ply, obj, glb, stl and pcd in metres; without colours the shape alone decides;
writes mesh.ply, instances.npz and report.html"""

EVALUATE_EXAMPLES = """\
examples:
  unscene evaluate output/house gt.npz
  unscene evaluate out/a a.npz out/b b.npz --protocol compat --grid full --json scores.json

a prediction is a folder with mesh.ply and instances.npz; several pairs are pooled.
protocol clean ignores stuff and void; compat asks for the walls as one object more, as the
published evaluation of UnScene3D does"""


IMPORT_EXAMPLES = """\
examples:
  unscene import-weights csc.pth -o csc.safetensors --network SparseUNet \\
      --set stem_kernel_size=3 --allow final
  unscene import-weights mask3d.ckpt -o mask3d.safetensors --network InstanceNetwork \\
      --set backbone.stem_kernel_size=5 --set decoder.classes=18 \\
      --share voxels.voxel_size_m=0.02 --share oversegmentation.rule=scannet \\
      --share oversegmentation.k=0.01

lists what matched; what does not fit is an error unless --allow names it. No code of the file is
run. Read by name: Contrastive Scene Contexts, PointContrast, Mask3D, UnScene3D, GrowSP, PointDC"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="unscene: %(message)s", level=logging.WARNING)
    logging.getLogger("unscene_ros").setLevel(logging.INFO)
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"unscene: {error}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print("unscene: interrupted; what was finished is kept", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unscene", description="Label-free 3D instance mapping of RGB-D recordings."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help_text: str, examples: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=help_text,
            description=help_text[0].upper() + help_text[1:] + ".",
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

    replay = command("replay", _replay, "find the instances in a recording", REPLAY_EXAMPLES)
    replay.add_argument("recording", type=Path, help="ROS 2 bag (mcap, sqlite3) or scan folder")
    replay.add_argument("--ground-truth", type=Path, metavar="GT.npz", help="labelled points")
    replay.add_argument(
        "--segment-every",
        type=int,
        metavar="N",
        help="segment the map so far after every N frames, 0 only at the end "
        "(setting replay.segment_every_frames)",
    )
    _add_common(replay)
    segment = command(
        "segment", _segment, "find the instances in a mesh or point cloud", SEGMENT_EXAMPLES
    )
    segment.add_argument("mesh", type=Path, help="file with the mesh or point cloud, in metres")
    _add_common(segment)
    score = command("evaluate", _evaluate, "compare predictions with the truth", EVALUATE_EXAMPLES)
    score.add_argument("pairs", type=Path, nargs="+", metavar="PREDICTION GT", help="see below")
    score.add_argument("--protocol", choices=("clean", "compat"), default="clean")
    score.add_argument(
        "--grid",
        choices=("scannet", "full"),
        default="scannet",
        help="overlaps that AP is the mean of: scannet 50 to 90 %% as the benchmark's program does "
        "(default), full 50 to 95 %%",
    )
    score.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    weights = command(
        "import-weights",
        _import_weights,
        "turn weights written with MinkowskiEngine into a checkpoint",
        IMPORT_EXAMPLES,
    )
    weights.add_argument("weights", type=Path, help="file .pth, .pt, .ckpt or .safetensors")
    weights.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.safetensors")
    weights.add_argument("--network", required=True, metavar="NAME", help="as SparseUNet")
    _add_assignments(weights, "KEY=VALUE", "one setting of the network; may be repeated")
    weights.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="what a robot must do as the training did: voxels.* and oversegmentation.* beside "
        "their defaults; may be repeated; needed to use it as a segmenter",
    )
    weights.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PART",
        help="a part that may be left over, as final; may be repeated",
    )
    weights.add_argument("--prefix", help="where in the file the network is, if it is there twice")
    return parser


def _add_assignments(parser: argparse.ArgumentParser, metavar: str, help_text: str) -> None:
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar=metavar,
        help=help_text,
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--segmenter",
        metavar="NAME",
        help="training-free, default (the network in the package and training-free together), a "
        "network's FILE, or consensus:FILE for it and training-free together",
    )
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="settings to start from")
    _add_assignments(parser, "SECTION.KEY=VALUE", "change one setting; may be repeated")
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), help="of all stages that can choose one"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")


def _replay(arguments: argparse.Namespace) -> None:
    from unscene_ros.replay import replay

    config, options = _settings(arguments)
    metrics = replay(
        arguments.recording,
        arguments.output,
        config,
        arguments.segmenter or DEFAULT_SEGMENTER,
        arguments.ground_truth,
        options,
        arguments.seed,
    )
    frames = metrics["frames"]
    print(f"{metrics['instances']} instances from {frames['used']} of {frames['read']} frames")
    if metrics["evaluation"]:
        _print_figures(metrics["evaluation"])
    print(f"report: {arguments.output / 'report.html'}")


def _segment(arguments: argparse.Namespace) -> None:
    from unscene_ros.replay import segment_file

    config, _ = _settings(arguments)
    metrics = segment_file(
        arguments.mesh,
        arguments.output,
        config,
        arguments.segmenter or DEFAULT_SEGMENTER,
        arguments.seed,
    )
    print(f"{metrics['instances']} instances on {metrics['map']['vertices']} vertices")
    print(f"report: {arguments.output / 'report.html'}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from unscene_ros.evaluation import evaluate, read_ground_truth
    from unscene_ros.storage import load_prediction, whole_file

    paths = arguments.pairs
    if len(paths) % 2:
        raise InputError(f"evaluate: expected PREDICTION GT pairs, got {len(paths)} paths")
    pairs = [
        (load_prediction(prediction), read_ground_truth(truth))
        for prediction, truth in zip(paths[::2], paths[1::2], strict=True)
    ]
    figures = evaluate(pairs, arguments.protocol, arguments.grid)
    _print_figures(figures)
    if arguments.json:
        with whole_file(arguments.json) as file:
            file.write(json.dumps(figures, indent=2).encode())


def _import_weights(arguments: argparse.Namespace) -> None:
    from unscene_ros.models.checkpoint import make_network, save_checkpoint
    from unscene_ros.models.minkowski import import_weights
    from unscene_ros.segmentation import SharedConfig
    from unscene_ros.settings import from_assignments, from_dict, to_dict

    shared = from_dict(SharedConfig, from_assignments(arguments.share))
    network = make_network(arguments.network, from_assignments(arguments.assignments))
    report = import_weights(arguments.weights, network, arguments.allow, arguments.prefix)
    settings = to_dict(shared) if arguments.share else {}
    origin = {"imported_from": arguments.weights.name}
    save_checkpoint(arguments.output, network, settings, origin)
    print(f"{report}\ncheckpoint: {arguments.output}")


def _settings(arguments: argparse.Namespace) -> tuple[PipelineConfig, ReplayConfig]:
    """Settings from the file, over it --device, over that --set."""
    from unscene_ros.pipeline import PipelineConfig
    from unscene_ros.settings import from_assignments, merged, read_yaml

    values: dict[str, Any] = {}
    if arguments.config:
        values = read_yaml(arguments.config)
        try:
            _configs(values)
        except InputError as error:
            raise InputError(f"settings file {arguments.config}: {error}") from error
    if arguments.device:
        values = merged(values, _with_device(PipelineConfig, arguments.device))
    values = merged(values, from_assignments(arguments.assignments))
    if getattr(arguments, "segment_every", None) is not None:
        values = merged(values, {"replay": {"segment_every_frames": arguments.segment_every}})
    return _configs(values)


def _configs(values: dict[str, Any]) -> tuple[PipelineConfig, ReplayConfig]:
    """Section `replay` on its own, all others together."""
    from unscene_ros.pipeline import PipelineConfig
    from unscene_ros.replay import ReplayConfig
    from unscene_ros.settings import from_dict

    stages = {section: value for section, value in values.items() if section != "replay"}
    options = from_dict(ReplayConfig, values.get("replay", {}), "replay")
    return from_dict(PipelineConfig, stages), options


def _with_device(config_class: type, device: str) -> dict[str, Any]:
    """`device` in every section of a config that has such a setting."""
    sections: dict[str, Any] = {}
    for name, wanted in typing.get_type_hints(config_class).items():
        if dataclasses.is_dataclass(wanted):
            sections[name] = _with_device(wanted, device)  # type: ignore[arg-type]
        elif name == "device":
            sections[name] = device
    return sections


def _print_figures(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("%", title=f"protocol {figures['protocol']}, {figures['objects']} objects")
    for heading in ("AP", "AP50", "AP25"):
        table.add_column(heading, justify="right")
    for name, row in (("class-agnostic", figures), ("mean over classes", figures["classes"])):
        if row:
            table.add_row(name, *(_percent(row[key]) for key in ("ap", "ap50", "ap25")))
    console = Console()
    console.print(table)
    console.print(
        f"{figures['predictions']} predictions, {_percent(figures['mask_precision'])} % of them on "
        "an object by more than half"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


if __name__ == "__main__":
    sys.exit(main())
