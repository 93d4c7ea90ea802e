"""The rooms of CONTRIBUTING.md: imports point one way, and `danet/` fits on a screen."""

import ast
import re
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.parameters import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "danet").rglob("*.py")
}


def imports(path):
    """Modules that a file imports, without those for annotations alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


GRAPH = {
    name: {other for other in imports(path) if other in MODULES and other != name} for name, path in MODULES.items()
}


def room(module):
    return module.split(".")[1] if "." in module else ""


ROOMS = {}
for _name, _others in GRAPH.items():
    if room(_name):
        ROOMS.setdefault(room(_name), set()).update({room(other) for other in _others} - {"", room(_name)})


@pytest.mark.parametrize("graph", [GRAPH, ROOMS], ids=["modules", "rooms"])
def test_no_cycle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import each other: {' -> '.join(error.args[1])}")


def test_the_lower_rooms_know_nothing_of_the_upper_ones():
    assert ROOMS["core"] == set()
    assert ROOMS["config"] == ROOMS["acquire"] == {"core"}
    assert ROOMS["models"] <= {"core", "config"}
    assert ROOMS["data"] <= {"core", "config", "acquire"}


def test_the_library_imports_neither_stages_nor_measuring():
    outside = {"pipelines", "benchmarks", "tests", "dvc"}
    for path in MODULES.values():
        assert not {name.split(".")[0] for name in imports(path)} & outside, path


def test_the_map_lists_the_rooms():
    entries = {path.name for path in (ROOT / "danet").iterdir() if path.name not in {"__init__.py", "__pycache__"}}
    rooms = {name for name in entries if any((ROOT / "danet" / name).rglob("*.py")) or name.endswith(".py")}
    assert len(rooms) <= 12
    listed = re.findall(r"^\| `danet/([a-z_.]+)/?` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
    assert len(listed) == len(set(listed))
    assert set(listed) == rooms
