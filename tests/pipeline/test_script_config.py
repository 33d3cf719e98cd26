"""Options of the wrong kind end a script in one line, whichever they are."""

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from pipeline.script_config import check_options, usage_errors

CONFIG = """
defaults: [{model: tiny}, _self_]
root: ???
rate: 1e-3
steps: 3
quick: false
name: a
window: null
half: ${steps}
"""


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """Runs a script with options; returns its exit code and what it says."""
    (tmp_path / "model").mkdir()
    (tmp_path / "main.yaml").write_text(CONFIG)
    (tmp_path / "model/tiny.yaml").write_text("channels: 8\n")
    (tmp_path / "model/wide.yaml").write_text("channels: auto\n")

    @hydra.main(version_base=None, config_path=str(tmp_path), config_name="main")
    def main(config: DictConfig) -> None:
        with usage_errors("script.py"):
            check_options(config)

    def run(*options):
        monkeypatch.setattr("sys.argv", ["script.py", "hydra.run.dir=.", "hydra/job_logging=none", *options])
        try:
            main()
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize(
    "options",
    [
        ["rate=1e-2", "steps=2.5", "quick=true", "name=3", "window=8"],
        ["model=wide", "model.channels=all"],
        ["steps=null", "+new=text", "half=4"],
    ],
)
def test_what_may_be_given(script, options):
    assert script("root=x", *options) == (0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["steps=many"], "steps=many: take a number, such as 3"),
        (["half=most"], "half=most: take a number, such as 3"),
        (["model.channels=all"], "model.channels=all: take a number, such as 8"),
        (["quick=yes"], "quick=yes: take true or false, such as false"),
    ],
)
def test_text_in_place_of_a_number(script, options, message):
    code, said = script("root=x", *options)
    assert code == 2 and said.startswith(f"script.py: {message}\n")


def test_what_is_missing_is_named(script):
    code, said = script("steps=2")
    assert code == 2 and said.startswith("script.py: root not given: add root=...\n")


class Built:
    """What a configuration may name; size 0 shows a defect within."""

    def __init__(self, size: int) -> None:
        if size == 0:
            Built(weight=1)


def build(**options):
    config = OmegaConf.create({"model": {"_target_": f"{__name__}.Built", **options}})
    with usage_errors("script.py"):
        hydra.utils.instantiate(config.model)


def test_an_option_of_another_choice_is_named(capsys):
    build(size=1)
    with pytest.raises(SystemExit):
        build(size=1, weight=2)
    assert "script.py: model has no option weight" in (said := capsys.readouterr().err)
    assert "~model.weight" in said


def test_a_defect_in_what_is_built_is_no_usage_error():
    with pytest.raises(HydraException, match="weight"):
        build(size=0)
