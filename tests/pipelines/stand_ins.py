"""A workspace in which every stage of params.yaml has run, on stand-ins: nobody has the sweep's outputs at hand."""

from __future__ import annotations

import configparser
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from dvc.repo import Repo
from dvc.stage import PipelineStage

from danet.config.yaml import BESIDE, RECIPES


def stand_ins(repository: Path, folder: Path) -> None:
    """Each stage's command is one that writes a small file for each of its outputs.

    Args:
        repository: whose pipeline and parameters are taken.
        folder: empty; becomes the workspace.
    """
    for file in ("dvc.yaml", "params.yaml", *BESIDE):
        shutil.copy(repository / file, folder)
    shutil.copytree(repository / RECIPES, folder / RECIPES)
    (folder / "benchmarks").mkdir()
    shutil.copy(repository / "benchmarks" / "published.yaml", folder / "benchmarks")
    dvc(folder, "init", "--quiet", "--no-scm")
    # the repository's own settings of DVC: without them it also sends analytics, which takes a tenth of the time
    settings = configparser.ConfigParser()
    settings.read([repository / ".dvc" / "config", folder / ".dvc" / "config"])
    with (folder / ".dvc" / "config").open("w", encoding="utf-8") as config:
        settings.write(config)
    write = folder / "write.py"
    outputs: dict[str, list[str]] = {}
    for stage in Repo(str(folder)).index.stages:
        if isinstance(stage, PipelineStage):
            # arguments of the real command, by which the stand-in finds its outputs
            outputs[stage.cmd.removeprefix("python -m pipelines.")] = [str(out.def_path) for out in stage.outs]
    write.write_text(
        "import json, pathlib, sys\n"
        "root = pathlib.Path(__file__).parent\n"
        "for out in json.loads((root / 'outputs.json').read_text())[' '.join(sys.argv[1:])]:\n"
        "    path = pathlib.Path(out)\n"
        "    file = path if path.suffix in {'.json', '.csv', '.md', '.zip'} else path / 'stand-in'\n"
        "    file.parent.mkdir(parents=True, exist_ok=True)\n"
        "    file.write_text('{}' if file.suffix == '.json' else 'a,b\\n1,2\\n')\n",
        encoding="utf-8",
    )
    (folder / "outputs.json").write_text(json.dumps(outputs), encoding="utf-8")
    text = (folder / "dvc.yaml").read_text(encoding="utf-8")
    (folder / "dvc.yaml").write_text(
        text.replace("cmd: python -m pipelines.", f"cmd: {shlex.quote(sys.executable)} write.py "), encoding="utf-8"
    )
    dvc(folder, "repro", "--quiet")


def dvc(folder: Path, *arguments: str) -> str:
    """Runs DVC in a folder; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"`dvc {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout + done.stderr
