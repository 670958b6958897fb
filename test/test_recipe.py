"""The recipes: valid, consistent, changed from a file or the command line, told apart by a hash."""

import argparse
import dataclasses
import typing
from collections.abc import Iterator

import pytest

from training.learner import WHERE_IT_RUNS, deciding_settings
from training.unscene3d.recipe import (
    RECIPES,
    UnScene3DConfig,
    add_recipe_options,
    chosen_recipe,
    recipe_hash,
)
from training.unscene3d.recipe import recipe as recipe_of
from unscene_ros.models.checkpoint import load_checkpoint
from unscene_ros.models.instance_network import InstanceNetwork
from unscene_ros.scene import InputError
from unscene_ros.segmentation import SHIPPED_CHECKPOINT
from unscene_ros.settings import from_dict, to_dict

NAMES = sorted(RECIPES)


def chosen(*words: str) -> UnScene3DConfig:
    parser = argparse.ArgumentParser()
    add_recipe_options(parser)
    return chosen_recipe(parser.parse_args(words))


def settings_of(config: typing.Any, path: tuple[str, ...] = ()) -> Iterator[tuple]:
    """(path, type, value) of each setting in all sections."""
    types = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, (*path, field.name))
        else:
            yield (*path, field.name), types[field.name], value


def other_value(kind: typing.Any, value: typing.Any) -> typing.Any:
    """Another value of the setting's type, whether or not it makes sense."""
    if typing.get_origin(kind) is typing.Literal:
        return next(choice for choice in typing.get_args(kind) if choice != value)
    if isinstance(value, tuple):
        return (*value[:-1], other_value(type(value[-1]), value[-1])) if value else ("x",)
    if isinstance(value, bool):
        return not value
    return f"{value}x" if isinstance(value, str) else value + 1


def changed(settings: dict, path: tuple[str, ...], value: typing.Any) -> dict:
    name, *deeper = path
    return settings | {name: changed(settings[name], tuple(deeper), value) if deeper else value}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_the_way_to_plain_values_and_back(name):
    recipe = RECIPES[name]
    assert from_dict(UnScene3DConfig, to_dict(recipe)) == recipe
    assert recipe_hash(from_dict(UnScene3DConfig, to_dict(recipe))) == recipe_hash(recipe)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_that_decides_changes_the_hash(name):
    settings = to_dict(RECIPES[name])
    hashes = {recipe_hash(RECIPES[name])}
    paths = list(settings_of(RECIPES[name]))
    deciding = [path for path, *_ in paths if path[-1] not in WHERE_IT_RUNS]
    for path, kind, value in paths:
        # As plain values: not every combination can be made.
        text = changed(settings, path, other_value(kind, value))
        hashes.add(recipe_hash(dataclasses.make_dataclass("Settings", text)(**text)))
    assert len(hashes) == 1 + len(deciding) > 100


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_of_a_recipe_fit_together(name):
    recipe = RECIPES[name]
    assert recipe.network.backbone.input_channels == 3 * len(recipe.voxels.channels)
    pretrain = recipe.pretrain
    assert pretrain.network.input_channels == 3 * len(pretrain.voxels.channels)
    assert recipe.loss.object_class < recipe.network.decoder.classes
    if recipe.loss.start_weight or recipe.loss.start_cost or recipe.loss.quality_weight:
        assert recipe.network.decoder.start == "segments"
    # Pre-trained weights can serve as the first ones.
    if recipe.network.backbone.architecture == pretrain.network.architecture:
        network = InstanceNetwork(recipe.network)
        assert network.backbone.input_channels == pretrain.network.input_channels


def test_the_default_of_every_setting_is_the_recipe_default():
    assert RECIPES["default"] == UnScene3DConfig() == chosen()
    assert len({recipe_hash(recipe) for recipe in RECIPES.values()}) == len(RECIPES)


def test_the_network_in_the_package_was_made_by_the_recipe_small():
    checkpoint = load_checkpoint(SHIPPED_CHECKPOINT)
    assert checkpoint.settings["recipe_hash"] == recipe_hash(RECIPES["small"])
    assert checkpoint.provenance["rounds"] == RECIPES["small"].rounds
    assert SHIPPED_CHECKPOINT.stat().st_size <= 20_000_000


def test_the_paper_has_no_limits_of_its_own_on_area_and_length():
    paper = RECIPES["paper"]
    assert paper.export.inference.min_area_m2 == 0
    for method in (paper.pseudo_masks.cuts, paper.pseudo_masks.freemask):
        assert method.limits.min_area_m2 == 0
        assert min(method.limits.max_length_m, method.limits.max_scene_share) >= 1000


def test_a_file_changes_the_recipe_and_the_command_line_changes_both(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rounds: 2\nfirst_round: {steps: 70, batch_size: 3}\n")
    config = chosen("--recipe", "small", "--config", str(path), "--set", "first_round.steps=9")
    small = RECIPES["small"]
    expected = dataclasses.replace(small.first_round, steps=9, batch_size=3)
    assert config == dataclasses.replace(small, rounds=2, first_round=expected)
    config = chosen("--recipe", "paper", "--set", "loss.kind=projection", "--set", "seed=5")
    assert (config.loss.kind, config.seed) == ("projection", 5)
    assert config.loss.object_class == RECIPES["paper"].loss.object_class
    assert config.pseudo_masks == RECIPES["paper"].pseudo_masks


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "papre"], "recipe: expected one of paper, default, small, got 'papre'"),
        (["--set", "loss.knid=drop"], "unknown setting 'loss.knid', did you mean 'loss.kind'"),
        (["--set", "loss.kind=drpo"], "'loss.kind': expected one of baseline, drop, projection"),
        (["--set", "rounds=many"], "'rounds': expected int, got 'many'"),
        (["--set", "rounds"], "expected section.key=value"),
        (["--set", "loss=drop"], "'loss': expected a section"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--set", "export.max_new=-1"], "export.max_new: expected 0 or more"),
    ],
)
def test_what_is_not_known_is_an_error(words, message):
    with pytest.raises(InputError) as error:
        chosen(*words)
    assert message in str(error.value)


def test_differences_that_are_no_settings_are_an_error():
    with pytest.raises(InputError, match="unknown setting 'round', did you mean 'rounds'"):
        recipe_of("small", {"round": 3})


def test_where_it_runs_is_all_that_does_not_decide():
    small = to_dict(RECIPES["small"])
    left_out = set()

    def compare(settings, deciding, path=""):
        for name, value in settings.items():
            if name not in deciding:
                left_out.add(f"{path}{name}")
            elif isinstance(value, dict):
                compare(value, deciding[name], f"{path}{name}.")

    compare(small, deciding_settings(small))
    learners = ("pretrain.learner", "first_round", "later_rounds")
    expected = {f"{learner}.{name}" for learner in learners for name in WHERE_IT_RUNS}
    expected |= {
        "export.inference.device",
        "export.inference.threads",
        "features.geometry.device",
        "features.images.features.device",
        "pseudo_masks.training_free.image_features.device",
    }
    assert left_out == expected
