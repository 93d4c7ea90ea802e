"""docs/adding-a-dataset.md and docs/adding-a-source.md, followed word for word in a copy of the repository."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.parameters import ROOT, copy_settings
from tests.pipelines.programs import NO_MLFLOW, dvc, environment

BLOCK = re.compile(
    r"(?P<told>(?:^(?!```)[^\n]+\n)+)\n```(?P<language>\w+)\n(?P<text>.*?)```\n(?:\nby\n\n```\w+\n(?P<by>.*?)```\n)?",
    re.M | re.S,
)
WRITE = re.compile(r"Write `([^`]+)`:")
UNDER = re.compile(r"[Uu]nder `([^`]+)` in `([^`]+)`,\s+add")
END = re.compile(r"At the end of `([^`]+)`, add")
REPLACE = re.compile(r"In `([^`]+)`, replace")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What the guides touch, as in the repository, and the archive of the example."""
    folder = tmp_path_factory.mktemp("clone")
    copy_settings(folder, "dvc.yaml", "benchmarks/published.yaml")
    for name in ("danet", "pipelines"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert dvc(folder, "init", "--quiet", "--no-scm") == 0
    make_shapes(folder / "data" / "archives" / "shapes.zip")
    return folder


def make_shapes(path):
    """Twelve pictures of 64x64 with a disc or a box."""
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(12):
            distance = np.stack([rows - rng.integers(20, 44), columns - rng.integers(20, 44)])
            inside = np.hypot(*distance) < 15 if index % 2 else np.abs(distance).max(0) < 15
            mask = np.where(inside, 1 if index % 2 else 2, 0).astype(np.uint8)
            mask[:2] = 255
            image = np.array([[90, 90, 90], [220, 60, 60], [60, 90, 220]], np.uint8)[mask % 253]
            place = f"{'train' if index < 8 else 'val'}/{index:02}.png"
            for folder, pixels in (("images", image), ("masks", mask)):
                with archive.open(f"shapes/{folder}/{place}", "w") as file:
                    Image.fromarray(pixels).save(file, "PNG")


def follow(guide, clone, capfd):
    """Does what each block of a guide says; returns what the commands printed."""
    printed = ""
    for step in BLOCK.finditer((ROOT / "docs" / guide).read_text()):
        told, text = step["told"], step["text"]
        if step["language"] == "sh":
            printed += "".join(run(clone, line, capfd) for line in text.splitlines())
        elif found := WRITE.search(told):
            (clone / found[1]).write_text(text)
        elif found := UNDER.search(told):
            edit(clone / found[2], f"\n{found[1]}\n", f"\n{found[1]}\n{text}")
        elif found := END.search(told):
            (clone / found[1]).write_text((clone / found[1]).read_text() + text)
        elif found := REPLACE.search(told):
            edit(clone / found[1], text.strip(), step["by"].strip())
        else:
            raise AssertionError(f"{guide}: what to do with this block?\n{told}{text}")
    return printed


def edit(path, old, new):
    text = "\n" + path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new).lstrip("\n"))


def run(clone, line, capfd):
    program, *arguments = shlex.split(line)
    capfd.readouterr()
    if program == "dvc":
        code = dvc(clone, *arguments, code=clone, MLFLOW_TRACKING_URI=NO_MLFLOW)
    else:
        assert program == "danet"
        command = [sys.executable, "-m", "danet.cli", *arguments]
        code = subprocess.run(command, cwd=clone, env=environment(clone, clone), check=False).returncode
    out, err = capfd.readouterr()
    assert code == 0, f"{line}\n{out[-2000:]}\n{err[-4000:]}"
    return out


def test_a_data_set_and_a_source_by_the_guides(clone, capfd):
    follow("adding-a-dataset.md", clone, capfd)
    described = json.loads((clone / "data" / "prepared" / "shapes" / "dataset.json").read_text())
    assert described["classes"] == ["background", "disc", "box"]
    assert "acme-r50-d16-shapes" in follow("adding-a-source.md", clone, capfd)
    page = (clone / "reports" / "acme.md").read_text()
    assert "71.25" in page
    table = json.loads((clone / "reports" / "tables" / "acme.json").read_text())
    (row,) = table["rows"]
    assert row["name"] == "acme-r50-d16-shapes"
    assert row["published"]["miou"] == 71.25
    assert row["accuracies"]["miou"]["mean"] is not None
