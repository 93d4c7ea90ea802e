"""Released weights end to end on generated Cityscapes: fetched or given, evaluated as trained ones, in the table."""

import json
import zipfile

import cv2
import numpy as np
import pytest
import torch

from danet.config import published
from danet.config.params import PROTOCOL, Dataset, merge
from danet.config.workspace import Workspace
from danet.config.yaml import read_raw, write_raw
from danet.core.errors import CheckpointError, ConfigError, DownloadError
from danet.core.files import sha256
from danet.data.convert import convert_dataset
from danet.data.prepared import PreparedDataset
from danet.data.raw import download_dataset
from danet.evaluation.evaluate import evaluate_row
from danet.evaluation.submission import label_ids, write_submission
from danet.evaluation.verify import verify_all, verify_row
from danet.models import build_model
from danet.report import write_table
from danet.results.schema import EvaluationFile, load
from danet.results.verdict import agreement
from danet.weights.exchange import export_weights, import_weights
from danet.weights.fetch import fetch_released, stored
from danet.weights.ours import metadata_of, save_model
from pipelines.demo.scenes import Sizes, make_archives
from tests.parameters import PARAMS, ROOT, raw_params
from tests.seeds import keep_seed

WHOLE = {"resize": "none", "mode": "whole", "window": None, "stride": None, "multi_scale": None}
SLIDE = {"resize": "none", "window": [48, 48], "stride": [32, 32], "multi_scale": None}
CROP = {"crop_size": [48, 48]}
ROWS = {
    "mmseg-r50": ("mmseg-r50-d8-cityscapes-512x1024-40k", {"test": WHOLE | {"multi_scale": {"scales": [0.5, 1.0]}}}),
    "ssseg-r50": ("ssseg-r50-d16-cityscapes", {"test": WHOLE}),
    "official-r50": ("official-danet-r101-d8-cityscapes", {"test": SLIDE, "augment": CROP}),
    "dranet-r50": ("official-dranet-r101-d8-cityscapes", {"test": SLIDE, "augment": CROP}),
    "cluster-r50": ("clusterdanet-r101-d8-voc2012", {"test": SLIDE, "augment": CROP}),
}
TARGETS = {
    "mmseg-r50": "mmsegmentation",
    "ssseg-r50": "sssegmentation",
    "official-r50": "official",
    "dranet-r50": "official-dranet",
    "cluster-r50": "clusterdanet",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Generated Cityscapes images of 48x64, and a row of ResNet-50 for each source."""
    folder = tmp_path_factory.mktemp("verify")
    made = make_archives(folder / "archives", sizes=Sizes(train=2, val=2, test=2, size=(16, 16), cityscapes=(48, 64)))
    raw = raw_params(released=False)
    rows = {}
    for name, (base, own) in ROWS.items():
        row = {"dataset": "cityscapes", "weights": "none", "train_split": "train", "model": {"backbone": "resnet50"}}
        rows[name] = merge(raw["rows"][base], row)
        rows[name] |= own
    cityscapes = merge(raw["datasets"]["cityscapes"], made["cityscapes"])
    raw |= {"rows": rows, "datasets": {"cityscapes": cityscapes}}
    raw["runtime"] |= {"workers": 0, "overlays": 0, "benchmark_images": 1}
    raw["submissions"] = {}
    write_raw(raw, folder)
    space = Workspace(folder)
    spec = Dataset.model_validate(cityscapes)
    download_dataset("cityscapes", spec, space.raw("cityscapes"), folder / "archives")
    convert_dataset("cityscapes", spec, space.raw("cityscapes"), space.prepared("cityscapes"))
    return space


def train(workspace, name):
    """Weights that look trained: random, with attention that counts and statistics of the data."""
    row = workspace.params().row(name)
    path = workspace.model(row) / "seed0.safetensors"
    if path.exists():
        return path
    torch.manual_seed(0)
    model = build_model(row.model, 19)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith((".gamma", ".scale")):
                value.fill_(0.5)
    dataset = PreparedDataset(workspace.prepared("cityscapes"), "train")
    batch = np.stack([dataset.image(i)[..., ::-1] for i in range(2)]).transpose(0, 3, 1, 2)
    model.train()
    with torch.no_grad():
        model((torch.from_numpy(batch.astype(np.float32)) - 120) / 58)
    metadata = {"row": row.name, "source": row.source, "train_hash": row.train_hash, "seed": "0"}
    return keep_seed(workspace, row, 0, lambda path: save_model(path, model, metadata))


def add_released(workspace, name, **entry):
    raw = read_raw(workspace.root / "params.yaml")
    row = {key: raw["rows"][name][key] for key in PROTOCOL}
    write_raw(raw | {"released": {name: row | {"file": f"{name}.pth", **entry}}}, workspace.root)


@pytest.fixture(autouse=True)
def clean(workspace, monkeypatch):
    for name in ("DANET_ARCHIVES", "DANET_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    write_raw(read_raw(workspace.root / "params.yaml") | {"released": {}}, workspace.root)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("mmseg-r50", "official-r50") else [pytest.mark.slow]) for n in ROWS]
)
def test_exported_imported_and_verified_is_what_was_evaluated(workspace, tmp_path, name):
    row = workspace.params().row(name)
    trained = train(workspace, name)
    evaluated = evaluate_row(row, workspace, device="cpu")
    raw, imported = tmp_path / "released.pth", tmp_path / "imported.safetensors"
    export_weights(trained, raw, target=TARGETS[name])
    import_weights(raw, imported, workspace.params(), row=name)
    before = workspace.scores(row).read_bytes()
    for file in (imported, raw) if name == "official-r50" else (imported,):
        verified = verify_row(row, workspace, weights=file, device="cpu")
        (wanted,), (found,) = evaluated.runs, verified.runs
        assert found.seed is None
        assert [mode for mode, _ in found.modes.items()] == list(row.modes)
        for (_, mine), (_, theirs) in zip(wanted.modes.items(), found.modes.items(), strict=True):
            np.testing.assert_array_equal(mine.matrix, theirs.matrix)
            assert (mine.matrix.sum(axis=0) > 0).sum() > 1, "all pixels of one class would show nothing"
        assert verified.means == evaluated.means.model_copy(update={"fps": verified.means.fps, "seeds": None})
        assert verified.weights.sha256 == sha256(raw)
    summary = json.loads(workspace.scores(row, released=True).read_text())
    assert summary == verified.means.model_dump(exclude={"seeds"})
    assert load(workspace.metrics(row) / "verification.json", EvaluationFile, "") == verified
    assert workspace.scores(row).read_bytes() == before
    assert (workspace.verification(row) / "released-ss-confusion.png").is_file()


def test_what_is_not_the_released_file_is_refused(workspace, tmp_path):
    name = "mmseg-r50"
    row, trained = workspace.params().row(name), train(workspace, name)
    with pytest.raises(CheckpointError, match=r"was trained here .*use `danet evaluate mmseg-r50"):
        verify_row(row, workspace, weights=trained, device="cpu")
    with pytest.raises(CheckpointError, match="does not exist"):
        verify_row(row, workspace, weights=tmp_path / "none.pth", device="cpu")
    with pytest.raises(ConfigError, match=r"mmseg-r50 has no released weights"):
        verify_row(row.model_copy(update={"dataset": "not-prepared"}), workspace, device="cpu")
    raw, imported = tmp_path / "w.pth", tmp_path / "w.safetensors"
    export_weights(trained, raw)
    import_weights(raw, imported, workspace.params(), row=name)
    add_released(workspace, name, checksum="sha256:0123456789")
    for file in (raw, imported):
        with pytest.raises(CheckpointError, match="the released file's begins with sha256:0123456789"):
            verify_row(row, workspace, weights=file, device="cpu")


def test_released_weights_are_taken_from_a_folder_and_verified(workspace, tmp_path, monkeypatch):
    name = "mmseg-r50"
    row = workspace.params().row(name)
    raw = tmp_path / "released" / f"{name}.pth"
    raw.parent.mkdir()
    export_weights(train(workspace, name), raw)
    digest = sha256(raw)
    add_released(workspace, name, file="other.pth", checksum=f"sha256:{digest[:8]}")
    out = workspace.released(row)
    with pytest.raises(DownloadError, match=r"no URL: save it as .*data/archives/other\.pth"):
        fetch_released(workspace, name)
    (skipped,) = [each for each in verify_all(workspace, device="cpu") if each.row == name]
    assert (skipped.state, "no URL" in skipped.reason) == ("skipped", True)
    assert not out.exists()
    monkeypatch.setenv("DANET_ARCHIVES", str(tmp_path))
    fetch_released(workspace, name)
    facts = metadata_of(out / "weights.safetensors")
    assert (facts["source_sha256"], facts["checksum"], facts["source"]) == (digest, "matches", "mmsegmentation")
    spec = workspace.params().released[name]
    assert stored(workspace, row, spec) == out / "weights.safetensors"
    assert stored(workspace, row, spec.model_copy(update={"checksum": "sha256:00000000"})) is None

    results = {each.row: each for each in verify_all(workspace, device="cpu")}
    assert results[name].state == "measured"
    assert {each.reason for each in results.values() if each.state == "skipped"} == {"its source released no weights"}

    monkeypatch.setattr(published, "load_published", lambda *_: {name: published.Published()})
    report = write_table("mmsegmentation", workspace.params(), workspace)
    record = json.loads((workspace.reports() / "tables" / "mmsegmentation.json").read_text())["rows"][0]
    assert record["released"]["status"] == "measured"
    assert record["released"]["accuracies"]["miou"]["mean"] == pytest.approx(results[name].metrics.miou, abs=1e-4)
    assert record["released"]["weights"]["sha256"] == digest
    cell = f"{results[name].metrics.miou:.2f}"
    assert cell in report.page.read_text()
    (out / "weights.safetensors").write_bytes(b"damaged")
    assert stored(workspace, row, spec) is None

    raw.write_bytes(raw.read_bytes()[:1000])
    with pytest.raises(DownloadError, match=rf"{raw}: is not the expected file \(sha256:{digest[:8]}\)"):
        fetch_released(workspace, name)


def test_agreement_is_within_the_band():
    assert agreement(80.52, 80.52, 0.05) == "agrees"
    assert agreement(80.57, 80.52, 0.05) == "agrees"  # binary fractions make the gap 0.0500000000000078
    assert agreement(80.47, 80.52, 0.05) == "agrees"
    assert agreement(80.5701, 80.52, 0.05) == "differs by +0.05"
    assert agreement(80.40, 80.52, 0.05) == "differs by -0.12"
    assert agreement(None, 80.52, 0.05) == agreement(80.52, None, 0.05) == ""


def test_submission_is_what_the_official_script_finds_and_reads(workspace, tmp_path):
    name = "ssseg-r50"
    row, weights = workspace.params().row(name), train(workspace, name)
    out = tmp_path / "submission.zip"
    assert write_submission(row, workspace, weights=weights, out=out, device="cpu") == 2
    dataset = PreparedDataset(workspace.prepared("cityscapes"), "test")
    evaluated = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    with zipfile.ZipFile(out) as archive:
        names = archive.namelist()
        assert len(names) == 2
        for identity in dataset.ids:
            (match,) = [each for each in names if each.startswith(identity) and each.endswith(".png")]
            image = cv2.imdecode(np.frombuffer(archive.read(match), np.uint8), cv2.IMREAD_UNCHANGED)
            assert image.shape == (48, 64)
            assert set(np.unique(image)) <= evaluated
    first = out.read_bytes()
    write_submission(row, workspace, weights=weights, out=out, device="cpu")
    assert out.read_bytes() == first
    assert label_ids(np.array([[0, 18]], np.uint8)).tolist() == [[7, 33]]
    with pytest.raises(ConfigError, match="defines no multi-scale test"):
        write_submission(row, workspace, weights=weights, out=tmp_path / "no.zip", mode="ms")
    assert not (tmp_path / "no.zip").exists()


def test_submission_is_for_cityscapes(workspace, tmp_path):
    voc = PARAMS.row("ssseg-r50-d8-voc2012")
    with pytest.raises(ConfigError, match="the test server is for Cityscapes rows"):
        write_submission(voc, Workspace(ROOT), weights=tmp_path / "w.pth", out=tmp_path / "s.zip")
