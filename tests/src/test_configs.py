"""Every choice of every group composes, and every `_target_` exists."""

import inspect
from pathlib import Path

import hydra
import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from pipeline.script_config import register_resolvers

CONFIGS = Path(__file__).resolve().parents[2] / "src/configs"
GROUPS = (
    "model",
    "writer",
    "metrics",
    "datasets",
    "dataloader",
    "transforms",
    "loss",
    "optimizer",
    "scheduler",
)
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))]
FOR_INFERENCE = {("datasets", "custom_dir")}


def targets(node):
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = node.values()
    elif not isinstance(node, list):
        return
    for child in node:
        yield from targets(child)


def compose(name: str, *overrides: str) -> dict:
    register_resolvers()
    with hydra.initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
        return OmegaConf.to_container(hydra.compose(name, overrides=list(overrides)), resolve=True)


def test_the_count_of_choices():
    """A new file must be seen by the tests below."""
    experiments = len(list((CONFIGS / "experiment").glob("*.yaml")))
    assert len(CHOICES) + experiments == len(list(CONFIGS.glob("*/*.yaml"))) >= 20
    assert {group for group, _ in CHOICES} == set(GROUPS)


def test_the_recipe_of_the_weights_that_ship_composes():
    config = compose("train", "+experiment=shipped", "root=data", "rooms=rooms")
    assert config["transforms"]["noise_folder"] == "rooms/noise"
    for target in targets(config):
        get_object(target)


def test_the_recipe_for_the_course_composes():
    config = compose("train", "+experiment=course", "root=data")
    assert config["datasets"]["root"] == config["datasets"]["train"]["root"] == "data"
    assert config["trainer"]["n_epochs"] * config["trainer"]["epoch_len"] > 50_000
    for target in targets(config):
        get_object(target)


@pytest.mark.parametrize("model", [choice for group, choice in CHOICES if group == "model"])
def test_the_recipe_for_the_course_takes_any_model(model):
    config = compose("train", "+experiment=course", "root=data", "visual_dim=8", f"model={model}")
    built = hydra.utils.instantiate(config["model"])
    assert sum(parameter.numel() for parameter in built.parameters()) > 0
    assert config["model"].get("as_unseen") in (False, None)


@pytest.mark.parametrize("datasets", ["course", "dynamic_mixing", "avss"])
def test_what_messages_of_datasets_offer_reaches_every_part(datasets):
    options = ("datasets.strict=false", "datasets.missing_lips=mask")
    config = compose("train", "+experiment=course", "root=data", f"datasets={datasets}", *options)["datasets"]
    for part in ("train", "val"):
        assert (config[part]["strict"], config[part]["missing_lips"]) == (False, "mask")
        taken = inspect.signature(get_object(config[part]["_target_"])).parameters
        assert config[part].keys() - {"_target_"} <= taken.keys()


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_its_targets_exist(group, choice):
    if (group, choice) in FOR_INFERENCE or group == "metrics":
        config = compose("inference", "root=data", "save_path=out", f"{group}={choice}")
    else:
        config = compose("train", f"{group}={choice}")
    found = list(targets(config))
    assert found
    for target in found:
        get_object(target)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("train", []),
        ("inference", ["root=a", "save_path=b"]),
        ("calc_metrics", ["pred=a", "truth=b"]),
        ("profile", []),
    ],
)
def test_scripts_leave_no_litter(name, overrides):
    """Hydra neither changes the working directory nor writes folders of its own."""
    register_resolvers()
    with hydra.initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
        config = hydra.compose(name, overrides=overrides, return_hydra_config=True)
    assert config.hydra.run.dir == "." and config.hydra.output_subdir is None and not config.hydra.job.chdir
