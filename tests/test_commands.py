"""Every command that a message, docstring or comment names exists, with its options, arguments and stages."""

import ast
import re

import pytest
import typer
import yaml
from dvc.cli.parser import get_main_parser

from danet.cli.app import app
from pipelines.sweep.__main__ import app as sweep
from tests.parameters import ROOT

SOURCES = sorted([*(ROOT / "danet").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")])
TEXTS = sorted(
    [
        *ROOT.glob("*.yaml"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "recipes").glob("*"),
        *(ROOT / "docs").glob("*.md"),
    ]
)
CLI = typer.main.get_command(app).commands
WORD = "DANET-PLACEHOLDER"
"""Stands for what an f-string fills in."""


def literals(path):
    """The string literals of a module, with a placeholder for what is filled in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(v.value) if isinstance(v, ast.Constant) else WORD for v in node.values]
            inside |= {id(value) for value in node.values}
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def quoted(text):
    """The commands in backticks."""
    for found in re.findall(r"`([^`]+)`", text.replace("```", "").replace("``", "`")):
        command = " ".join(found.split())
        if re.match(r"(danet|dvc|make) [a-z-]", command):
            yield command


def loose(text):
    """The beginnings of commands outside of backticks: what runs, its options and stages."""
    plain = re.sub(r"\[/?bold\]", "", re.sub(r"``?[^`]+``?", "", text))
    yield from re.findall(r"(?<![\w./-])((?:danet|dvc) [a-z-]+(?: -{1,2}[a-z-]+)*(?: [\w-]+@[\w-]+)*)", plain)


def commands():
    found = [(path, c) for path in SOURCES for text in literals(path) for c in (*quoted(text), *loose(text))]
    found += [(path, command) for path in TEXTS for command in quoted(path.read_text(encoding="utf-8"))]
    return sorted({(str(path.relative_to(ROOT)), command) for path, command in found})


def problem(command, stages, targets):
    """What is wrong with a command line, if anything is."""
    words = [word for word in re.split(r" [|>&#]|[;,]", command)[0].split() if word not in {"...", "…"}]
    if len(words) == 1:
        return None
    if words[0] == "make":
        wrong = [word for word in words[1:] if "=" not in word and word not in targets and word != WORD]
        return f"no target {wrong[0]}" if wrong else None
    if words[0] == "dvc":
        return problem_of_dvc(words[1:], stages)
    if words[1].startswith("-"):
        return None if words[1] in {"--version", "--help", "-h"} else f"no option {words[1]}"
    chosen = CLI.get(words[1])
    if chosen is None:
        return f"no command danet {words[1]}"
    parameters = typer.main.get_command(sweep).params if words[1] == "sweep" else chosen.params
    options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    wrong = [word for word in words[2:] if word.startswith("-") and word.partition("=")[0] not in {*options, "--help"}]
    return f"danet {words[1]} has no option {wrong[0]}" if wrong else None


def problem_of_dvc(words, stages):
    try:
        get_main_parser().parse_args(words)
    except SystemExit as error:
        return "DVC does not take it" if error.code else None
    except Exception as error:  # DVC's parser raises its own
        return f"DVC does not take it ({type(error).__name__})"
    if words[:1] == ["repro"]:
        names = [word.partition("@")[0] for word in words[1:] if not word.startswith("-")]
        wrong = [name for name in names if WORD not in name and name not in stages]
        return f"no stage {wrong[0]}" if wrong else None
    return None


@pytest.fixture(scope="module")
def stages():
    return set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])


@pytest.fixture(scope="module")
def targets():
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_command_that_is_named_exists(stages, targets):
    found = commands()
    assert len(found) > 50, "the commands are no longer found"
    wrong = [f"{path}: `{command}`: {text}" for path, command in found if (text := problem(command, stages, targets))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "command",
    ["danet weights", "danet demo", "danet rows --row X", "dvc repro trian@ROW", "dvc repro --no-such", "make nothing"],
)
def test_a_wrong_command_is_found(stages, targets, command):
    assert problem(command, stages, targets) is not None
