"""docs/what-runs-again.md: each edit, and the stages that DVC then finds changed."""

import re
import shutil

import pytest
from dvc.repo import Repo

from danet.config.yaml import write_raw
from tests.parameters import ROOT, raw_params
from tests.pipelines.programs import dvc

ROW, OTHER = "mmseg-r50-d8-cityscapes-769x769-40k", "ssseg-r50-d16-voc2012"
REPORTS = {"report@mmsegmentation", "report@sssegmentation"}
VERIFIED = {f"verify@{ROW}"}

EDITS = [
    (
        "a footnote of a row", "params.yaml", r"(row_notes:\n\s+\S+\n\s+- )", r"\1More. ",
        {"report@mmsegmentation", "index"},
    ),
    ("a title", "params.yaml", r"title: mmsegmentation", "title: MMSeg", {"report@mmsegmentation", "index"}),
    ("a data set's title", "params.yaml", "cityscapes: Cityscapes", "cityscapes: City", REPORTS | {"index"}),
    ("a band", "params.yaml", r"trained: 0.5", "trained: 0.6", REPORTS),
    ("a published number", "benchmarks/published.yaml", "miou: 78.88", "miou: 78.87", REPORTS),
    (
        "a protocol in words", "recipes/mmsegmentation.yaml", "cityscapes-769x769: slide", "cityscapes-769x769: Slide",
        REPORTS,
    ),
    ("the runtime", "params.yaml", "workers: 4", "workers: 3", set()),
    (
        "a training setting", "recipes/mmsegmentation.yaml", r"(train:(?:\n.*)*?\n\s+lr: )0.01", r"\g<1>0.02",
        REPORTS | {f"train@{ROW}"},
    ),
    (
        "a testing setting", "recipes/mmsegmentation.yaml", r"(window:\s*\n\s*- )769", r"\g<1>770",
        REPORTS | VERIFIED | {f"evaluate@{ROW}"},
    ),
    (
        "a seed", "params.yaml", rf"({ROW}:\n(?:    .*\n)*?    seeds:\n    - 0\n)", r"\g<1>    - 1\n",
        REPORTS | VERIFIED | {f"train@{ROW}", f"evaluate@{ROW}"},
    ),
    (
        "a row's schedule", "params.yaml", "iterations: 40000", "iterations: 40001",
        REPORTS | VERIFIED | {f"train@{ROW}", f"evaluate@{ROW}"},
    ),
    ("an archive's checksum", "datasets.yaml", "sha1:99f5", "sha1:88f5", {"download@cityscapes"}),
    ("a released file's checksum", "params.yaml", "sha256:76681c60", "sha256:86681c60", REPORTS | {f"released@{ROW}"}),
    ("an ImageNet checksum", "datasets.yaml", "sha256:2cccc1ad", "sha256:3cccc1ad", {"weights@resnet50_v1c"}),
    ("a number of images", "datasets.yaml", "train: 2975", "train: 2974", {"convert@cityscapes"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Two rows of two tables, every stage of them done: each output is a small file, and DVC is told to take it."""
    folder = tmp_path_factory.mktemp("edits")
    raw = raw_params(rows=(ROW, OTHER))
    everything = raw_params()
    raw["released"] = {ROW: everything["released"][ROW]}
    raw["rows"] = {name: row | {"seeds": [0]} for name, row in raw["rows"].items()}
    raw["tables"] = {name: raw["tables"][name] for name in ("mmsegmentation", "sssegmentation")}
    raw["tables"]["mmsegmentation"]["row_notes"] = {ROW: ["A note."]}
    raw["datasets"] = {name: raw["datasets"][name] for name in ("cityscapes", "voc2012")}
    raw["weights"] = {"resnet50_v1c": raw["weights"]["resnet50_v1c"]}
    write_raw(raw, folder)
    (folder / "benchmarks").mkdir()
    for file in ("dvc.yaml", "benchmarks/published.yaml"):
        shutil.copy(ROOT / file, folder / file)
    assert dvc(folder, "init", "--quiet", "--no-scm") == 0
    for out in Repo(str(folder)).index.outs:
        path = folder / out.def_path
        path = path if path.suffix else path / "file"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert dvc(folder, "commit", "--quiet", "--force") == 0
    assert Repo(str(folder)).status() == {}
    return folder


@pytest.mark.parametrize(
    ("file", "pattern", "replacement", "stages"), [edit[1:] for edit in EDITS], ids=[e[0] for e in EDITS]
)
def test_exactly_what_changed_runs_again(workspace, file, pattern, replacement, stages):
    path = workspace / file
    before = path.read_text()
    after, count = re.subn(pattern, replacement, before, count=1)
    assert count == 1
    path.write_text(after)
    try:
        status = Repo(str(workspace)).status()
    finally:
        path.write_text(before)
    assert {name.partition(":")[2] or name for name in status} == stages


def test_the_document_has_these_edits():
    text = (ROOT / "docs" / "what-runs-again.md").read_text()
    for name, *_ in EDITS:
        assert f"| {name} |" in text
