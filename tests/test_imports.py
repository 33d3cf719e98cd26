"""Imports point one way: scripts -> src -> pipeline; inside src as the house rules say; no circle anywhere."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("pipeline", "src")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
# package of src -> packages of src that it may import
ALLOWED = {
    "utils": set(),
    "transforms": {"utils"},
    "model": {"utils"},
    "metrics": {"utils"},
    "logger": {"utils"},
    "datasets": {"utils"},
    "loss": {"utils", "metrics"},
    "trainer": {"utils", "transforms", "model", "metrics", "logger", "datasets", "loss"},
}
MAY_USE_PIPELINE = {"datasets", "model", "trainer", "metrics", "transforms", "utils", "logger"}


def imported(path: Path) -> set[str]:
    """Project modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name in MODULES}


GRAPH = {name: imported(path) - {name} for name, path in MODULES.items()}


def test_the_walk_sees_the_project():
    assert len(MODULES) > 50
    assert "src.metrics.functional" in GRAPH["src.loss.si_snr"]


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("pipeline")])
def test_pipeline_knows_nothing_of_src(module):
    assert not [name for name in GRAPH[module] if name.startswith("src")]


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name.count(".") >= 2 and name.startswith("src.")]
)
def test_src_imports_point_one_way(module):
    package = module.split(".")[1]
    used = {name.split(".")[1] for name in GRAPH[module] if name.startswith("src.")} - {package}
    assert used <= ALLOWED[package], f"{module} imports src.{', src.'.join(used - ALLOWED[package])}"
    if any(name.startswith("pipeline") for name in GRAPH[module]):
        assert package in MAY_USE_PIPELINE


def test_no_circles():
    # A package's __init__ that re-exports its modules is not a circle: only module-to-module arrows count.
    graph = {
        name: {used for used in uses if not name.startswith(f"{used}.")}
        for name, uses in GRAPH.items()
    }  # fmt: skip
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    "script",
    ["precompute_visual.py", "train.py", "inference.py", "calc_metrics.py", "profile_model.py"],
)
def test_scripts_are_wiring(script):
    source = (ROOT / script).read_text()
    assert len(source.splitlines()) < 90
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
