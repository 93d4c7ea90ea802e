"""What a message tells to run fixes what it is about: with DVC itself, in the state in which the message appears."""

import re
import shutil
import subprocess

import numpy as np
import pytest
import yaml
from PIL import Image

from danet.config.yaml import write_raw
from danet.data.prepared import PreparedDataset
from tests.data.samples import camvid_tree, zip_of
from tests.parameters import ROOT, raw_params
from tests.pipelines.programs import environment


@pytest.fixture
def run(tmp_path):
    """Runs a shell command in a workspace of CamVid's two stages, with three images a split and no network."""
    folder = tmp_path / "w"
    folder.mkdir()
    raw = raw_params()
    raw["datasets"] = {"camvid": raw["datasets"]["camvid"]}
    raw["datasets"]["camvid"] |= {"counts": {"train": 3, "val": 3, "test": 3}, "archives": [{"file": "CamVid.zip"}]}
    raw |= {"rows": {}, "tables": {}, "released": {}, "submissions": {}}
    write_raw(raw, folder)
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    own = {"vars": ["datasets.yaml"], "stages": {name: stages[name] for name in ("download", "convert")}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(own))
    (types,) = re.findall(r"type = (\S+)", (ROOT / ".dvc" / "config").read_text())

    def command(text, **more):
        env = environment(folder, **{key: str(value) for key, value in more.items()})
        return subprocess.run(text, shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False)

    assert command("dvc init --quiet --no-scm").returncode == 0
    assert command("dvc config cache.type " + types.strip('"')).returncode == 0
    return command


def told(done):
    """The commands of the message of a stage that failed."""
    assert done.returncode != 0
    message = done.stderr[done.stderr.index("error:") :]
    return re.findall(r"`([^`]+)`", message.partition("ERROR:")[0])


def masks(folder):
    """Sums of the prepared training masks."""
    samples = PreparedDataset(folder / "w/data/prepared/camvid", "train")
    return [int(samples.mask(index).sum()) for index in range(len(samples))]


@pytest.mark.slow
def test_a_folder_that_was_corrected_is_taken_again(run, tmp_path):
    """A mask too many is refused; the folder is corrected; the commands that the message gives bring it in."""
    tree = camvid_tree(tmp_path / "tree")
    extra = tree / "trainannot" / "stray.png"
    shutil.copy(tree / "trainannot" / "train_0.png", extra)
    commands = told(run("dvc repro convert@camvid", DANET_CAMVID=tree))
    assert commands == ["dvc repro -f -s download@camvid", "dvc repro convert@camvid"]
    extra.unlink()
    for command in commands:
        done = run(command, DANET_CAMVID=tree)
        assert done.returncode == 0, done.stderr
    assert len(masks(tmp_path)) == 3
    pack = tmp_path / "w/data/prepared/camvid/train.zip"
    assert pack.stat().st_nlink == 2, "a link to DVC's cache, and no copy"


@pytest.mark.slow
def test_a_folder_that_changes_later_is_noticed_and_taken(run, tmp_path):
    tree = camvid_tree(tmp_path / "tree")
    assert run("dvc repro convert@camvid", DANET_CAMVID=tree).returncode == 0
    before = masks(tmp_path)
    mask = tree / "trainannot" / "train_0.png"
    Image.fromarray(np.full((12, 16), 3, np.uint8)).save(mask)
    commands = told(run("dvc repro -f -s convert@camvid", DANET_CAMVID=tree))
    assert commands == ["dvc repro -f -s download@camvid"]
    for command in (*commands, "dvc repro convert@camvid"):
        assert run(command, DANET_CAMVID=tree).returncode == 0
    assert masks(tmp_path) == [3 * 12 * 16, *before[1:]]


@pytest.mark.slow
def test_a_cut_archive_is_named_and_the_right_one_taken(run, tmp_path):
    tree = camvid_tree(tmp_path / "tree")
    members = {f"CamVid/{path.relative_to(tree)}": path.read_bytes() for path in tree.rglob("*.png")}
    archives = tmp_path / "w/data/archives"
    archives.mkdir(parents=True)
    whole = zip_of(archives / "CamVid.zip", members).read_bytes()
    (archives / "CamVid.zip").write_bytes(whole[:-100])
    done = run("dvc repro convert@camvid")
    assert done.returncode != 0
    assert "data/archives/CamVid.zip: is damaged" in done.stderr
    assert "replace or delete it" in done.stderr
    (archives / "CamVid.zip").write_bytes(whole)
    assert run("dvc repro convert@camvid").returncode == 0
    # Without archives and network: by force, everything is made again from what data/raw holds, and nothing is lost.
    (archives / "CamVid.zip").unlink()
    before = masks(tmp_path)
    assert run("dvc repro -f convert@camvid").returncode == 0
    assert run("dvc repro -f -s convert@camvid").returncode == 0
    assert masks(tmp_path) == before
    # A damaged copy in data/raw: the message leads to the archive.
    (archives / "CamVid.zip").write_bytes(whole)
    copy = tmp_path / "w/data/raw/camvid/CamVid.zip"
    copy.unlink()
    copy.write_bytes(whole[:-100])
    commands = told(run("dvc repro -f -s convert@camvid"))
    assert commands == ["dvc repro -f -s download@camvid"]
    for command in (*commands, "dvc repro convert@camvid"):
        assert run(command).returncode == 0
    assert masks(tmp_path) == before


@pytest.mark.slow
def test_data_on_another_disk(run, tmp_path):
    """A link is refused before the work; what the message says puts the data there."""
    tree, disk = camvid_tree(tmp_path / "tree"), tmp_path / "disk"
    disk.mkdir()
    assert run("rm -r .dvc && git init -q && dvc init -q && echo /data >> .gitignore").returncode == 0
    (tmp_path / "w/data").symlink_to(disk)
    commands = told(run("dvc repro convert@camvid", DANET_CAMVID=tree))
    assert list(disk.iterdir()) == [], "nothing was downloaded"
    for command in commands[:3]:
        assert run(command).returncode == 0, command
    assert run("dvc repro convert@camvid", DANET_CAMVID=tree).returncode == 0
    pack = tmp_path / "w/data/prepared/camvid/train.zip"
    assert pack.resolve().is_relative_to(disk)
    assert len(masks(tmp_path)) == 3
