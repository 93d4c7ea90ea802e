"""ImageNet checkpoints of each naming, to our names and into a model."""

import hashlib
import json
import re
import zipfile

import pytest
import torch

from danet.acquire import http
from danet.cli import doctor
from danet.config.params import Weights
from danet.config.workspace import Workspace
from danet.config.yaml import write_raw
from danet.core.errors import CheckpointError, DownloadError
from danet.core.files import sha256
from danet.models.resnet import ResNet
from danet.weights.fetch import fetch_weights
from danet.weights.imagenet import backbone_sha256, convert, load_backbone, prepare_weights
from tests.parameters import raw_params
from tests.weights.test_ours import empty
from tests.weights.test_released import numbered, written

STEMS = ["7x7", "deep-32-32-64", "deep-64-64-128"]


def ours(backbone, stem):
    with torch.device("meta"):
        shapes = ResNet(backbone, stem, 8).state_dict()
    return numbered(shapes)


def as_torchvision(state):
    renamed = {re.sub(r"^stem\.0\.", "conv1.", re.sub(r"^stem\.1\.", "bn1.", key)): v for key, v in state.items()}
    return {**renamed, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


def as_encoding(state):
    renamed = {re.sub(r"^stem\.", "conv1.", re.sub(r"^stem\.7\.", "bn1.", key)): v for key, v in state.items()}
    return {**renamed, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


def as_mmsegmentation(state):
    return {"state_dict": state, "meta": {"epoch": 100}}


def assert_same(state, expected):
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize(
    ("stem", "rename", "backbone"),
    [
        ("7x7", as_torchvision, "resnet101"),
        ("deep-64-64-128", as_encoding, "resnet101"),
        ("deep-32-32-64", as_mmsegmentation, "resnet101"),
        ("deep-32-32-64", lambda s: {f"module.{k}": v for k, v in s.items()}, "resnet50"),
        (
            "deep-32-32-64",
            lambda s: {**{f"backbone.{k}": v for k, v in s.items()}, "head.fc.bias": torch.zeros(9)},
            "resnet50",
        ),
        *[(stem, lambda s: s, "resnet50") for stem in STEMS],
    ],
)
def test_every_naming_arrives_at_ours(tmp_path, stem, rename, backbone):
    state = ours(backbone, stem)
    assert_same(convert(written(tmp_path / "w.pth", rename(state)), backbone, stem), state)


def test_old_files_without_counters_and_in_half_precision(tmp_path):
    state = ours("resnet50", "7x7")
    old = {k: v.half() for k, v in as_torchvision(state).items() if not k.endswith("num_batches_tracked")}
    result = convert(written(tmp_path / "w.pth", old), "resnet50", "7x7")
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            assert torch.equal(result[key], torch.zeros((), dtype=torch.int64))
        else:
            assert result[key].dtype == torch.float32
            assert torch.equal(result[key], value.half().float())


def test_wrong_depth_and_stem_are_said(tmp_path):
    file = written(tmp_path / "w.pth", as_torchvision(ours("resnet101", "7x7")))
    with pytest.raises(CheckpointError, match=r"w\.pth: is not an ImageNet resnet50 .* unexpected \(layer3\.6"):
        convert(file, "resnet50", "7x7")
    with pytest.raises(CheckpointError, match=r"the deep-32-32-64 stem: .* missing \(conv1\.0\.weight"):
        convert(file, "resnet101", "deep-32-32-64")
    file = written(tmp_path / "w.pth", as_encoding(ours("resnet50", "deep-64-64-128")))
    with pytest.raises(CheckpointError, match=r"the deep-32-32-64 stem: .* another shape \(conv1\.0\.weight"):
        convert(file, "resnet50", "deep-32-32-64")


# ----------------------------------------------------------------------------------------------- prepare and load


def spec(stem="7x7", **settings):
    entry = {"title": "Test", "url": "https://example.org/w.pth", "file": "w.pth", "backbone": "resnet50", "stem": stem}
    return Weights.model_validate({**entry, **settings})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared 7x7 ResNet-50 weights; the source lies beside them."""
    base = tmp_path_factory.mktemp("weights")
    file = written(base / "w.pth", as_torchvision(ours("resnet50", "7x7")))
    prepare_weights("test", spec(), file, base / "out")
    return base


def test_prepared_weights_load_exactly(folder):
    model = empty()
    load_backbone(model, folder / "out")
    assert_same(dict(model.backbone.state_dict()), ours("resnet50", "7x7"))
    assert not any(bool(value.any()) for value in model.head.state_dict().values())
    source = json.loads((folder / "out/source.json").read_text())
    assert source["sha256"] == hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
    assert source["url"] == "https://example.org/w.pth"
    assert source["weights_sha256"] == backbone_sha256(folder / "out")


@pytest.mark.usefixtures("no_environment")
def test_the_checksum_of_a_zip_is_that_of_its_member(folder, tmp_path):
    """As PyTorch-Encoding's model store verifies it: after unpacking."""
    digest = hashlib.sha1((folder / "w.pth").read_bytes()).hexdigest()
    raw = raw_params(released=False)
    entry = {"title": "Test", "file": "w.zip", "backbone": "resnet50", "stem": "7x7", "url": None}
    for name, checksum in (("right", f"sha1:{digest}"), ("wrong", f"sha1:{digest[::-1]}")):
        raw["weights"][name] = entry | {"checksum": checksum}
    write_raw(raw, tmp_path)
    space = Workspace(tmp_path)
    space.archives().mkdir(parents=True)
    with zipfile.ZipFile(space.archives() / "w.zip", "w") as archive:
        archive.write(folder / "w.pth", "folder/w.pth")
        archive.writestr("__MACOSX/folder/._w.pth", b"resource fork")
    fetch_weights(space, "right")
    assert backbone_sha256(space.weights("right")) == backbone_sha256(folder / "out")
    with pytest.raises(CheckpointError, match=r"w\.zip: holds no \.pth file of checksum sha1"):
        fetch_weights(space, "wrong")
    assert not space.weights("wrong").exists()
    fetch_weights(space, "none")
    assert [path.name for path in space.weights("none").iterdir()] == ["source.json"]
    assert backbone_sha256(space.weights("none")) is None


def test_folders_that_must_not_be_loaded(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: does not exist"):
        load_backbone(empty(), tmp_path)
    with pytest.raises(CheckpointError, match="is not our resnet50 with the deep-32-32-64 stem"):
        load_backbone(empty(stem="deep-32-32-64"), folder / "out")
    with pytest.raises(CheckpointError, match="is not our resnet101 with the 7x7 stem"):
        load_backbone(empty(backbone="resnet101"), folder / "out")
    content = (folder / "out/weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(content[:-9])
    with pytest.raises(CheckpointError, match=r"cut off.*dvc repro -f -s weights@"):
        load_backbone(empty(), tmp_path)


@pytest.mark.usefixtures("no_environment")
def test_weights_come_through_the_same_sources_as_archives(folder, site, tmp_path, monkeypatch):
    """A wrong file in data/archives and a mirror without it are passed over; the URL is resumed; doctor agrees."""
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
    raw = raw_params(released=False)
    entry = {"title": "Test", "file": "w.pth", "backbone": "resnet50", "stem": "7x7", "url": f"{site.url}/w.pth"}
    raw["weights"]["test"] = entry | {"checksum": f"sha256:{digest[:8]}"}
    write_raw(raw, tmp_path)
    space, spec = Workspace(tmp_path), Workspace(tmp_path).params().imagenet("test")
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("DANET_MIRROR", f"{site.url}/mirror")
    site.files["/w.pth"] = (folder / "w.pth").read_bytes()
    site.cut = [1000, *[0] * 20]
    space.archives().mkdir(parents=True)
    (space.archives() / "w.pth").write_bytes(b"another file")
    with pytest.raises(DownloadError, match=r"data/archives/w\.pth: is not the expected file.*1,000 bytes so far"):
        fetch_weights(space, "test")
    assert doctor.weights_state("test", spec, space).state == "local"
    (space.archives() / "w.pth").unlink()
    assert doctor.weights_state("test", spec, space).how == f"mirror: {site.url}/mirror/w.pth"
    site.cut = []
    fetch_weights(space, "test")
    assert site.ranges_asked()[-1] == "bytes=1000-"
    assert sha256(space.weights("test") / "weights.safetensors") == sha256(folder / "out/weights.safetensors")
    assert doctor.weights_state("test", spec, space).state == "ready"
    assert [path.name for path in space.weights("test").parent.iterdir()] == ["test"]
