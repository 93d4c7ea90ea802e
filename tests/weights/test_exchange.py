"""Released files in and out: every source's key list, every way a file can be wrong, exact round trips."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from danet.config.params import Params
from danet.core.errors import CheckpointError, ConfigError
from danet.core.files import sha256
from danet.models import build_model
from danet.weights.exchange import classes_of, export_weights, import_weights, load_any
from danet.weights.ours import metadata_of, save_model
from danet.weights.released import import_released
from tests.parameters import PARAMS, ROOT, raw_params
from tests.weights.test_released import written

KEYS = {
    "mmseg_r50d8_cityscapes_512x1024": "mmseg-r50-d8-cityscapes-512x1024-40k",
    "mmseg_r50d8_cityscapes_769x769": "mmseg-r50-d8-cityscapes-769x769-80k",
    "mmseg_r101d8_cityscapes_512x1024": "mmseg-r101-d8-cityscapes-512x1024-80k",
    "mmseg_r101d8_cityscapes_769x769": "mmseg-r101-d8-cityscapes-769x769-40k",
    "mmseg_r50d8_ade20k_512x512": "mmseg-r50-d8-ade20k-160k",
    "mmseg_r50d8_voc12aug_512x512": "mmseg-r50-d8-voc2012-20k",
    "ssseg_resnet50os8_cityscapes": "ssseg-r50-d8-cityscapes",
    "ssseg_resnet50os8_cityscapes_aligncorners": "ssseg-r50-d8-cityscapes",
    "ssseg_resnet50os16_cityscapes": "ssseg-r50-d16-cityscapes",
    "ssseg_resnet101os8_cityscapes": "ssseg-r101-d8-cityscapes",
    "ssseg_resnet101os16_cityscapes": "ssseg-r101-d16-cityscapes",
    "ssseg_resnet50os8_ade20k": "ssseg-r50-d8-ade20k",
    "ssseg_resnet50os8_voc": "ssseg-r50-d8-voc2012",
    "official_danet_r101_citys": "official-danet-r101-d8-cityscapes",
    "official_dran_r101_citys": "official-dranet-r101-d8-cityscapes",
    "fork_clusterdanet_r101_voc": "clusterdanet-r101-d8-voc2012",
}
SMALL = "mmseg-r50-d8-cityscapes-512x1024-40k"


@pytest.fixture(scope="module")
def unpublished():
    """The rows without released weights, where no checksum can be wrong."""
    return Params(raw_params(released=False), ROOT / "params.yaml")


def of_list(file):
    """A checkpoint with a key list's names and shapes, every tensor its own number."""
    lines = [line.split("\t") for line in file.read_text().splitlines() if line and line[0] != "#"]
    return {
        key: torch.tensor(index, dtype=getattr(torch, dtype)).expand(
            tuple(int(n) for n in shape.strip("()").split(",") if n.strip())
        )
        for index, (key, shape, dtype) in enumerate(lines)
    }


@pytest.mark.parametrize("name", KEYS)
def test_every_model_of_every_source_is_read(tmp_path, name):
    folder = os.environ.get("DANET_TEST_KEYS")
    if not folder:
        pytest.skip("DANET_TEST_KEYS (folder with the sources' key lists) is not set")
    row = PARAMS.row(KEYS[name])
    theirs = of_list(Path(folder) / f"{name}.txt")
    wrapper = "model" if name.startswith("ssseg") else "state_dict"
    prefix = "module." if name.startswith("official") else ""
    file = written(tmp_path / "w.pth", {wrapper: {prefix + key: value for key, value in theirs.items()}, "epoch": 1})
    state, _ = import_released(file, row.model, classes_of(row, PARAMS))
    with torch.device("meta"):
        wanted = build_model(row.model, classes_of(row, PARAMS)).state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in wanted.items()}
    # each of their tensors, known by its number, is in exactly one place of ours
    assert sorted(float(value.flatten()[0]) for value in state.values()) == [float(i) for i in range(len(theirs))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file as training writes it."""
    row = PARAMS.row(SMALL)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trained") / "seed0.safetensors"
    save_model(path, build_model(row.model, 19), {"row": row.name, "source": row.source, "train_hash": row.train_hash})
    return path


@pytest.fixture(scope="module")
def exported(trained):
    out = trained.with_name("exported.pth")
    export_weights(trained, out)
    return out


def test_to_mmsegmentation_and_back_is_exact(tmp_path, trained, exported, unpublished):
    content = torch.load(exported, weights_only=True)
    assert set(content) == {"state_dict", "meta"}
    assert "decode_head.pam_in_conv.conv.weight" in content["state_dict"]
    assert content["meta"]["CLASSES"][0] == content["meta"]["dataset_meta"]["classes"][0] == "road"
    assert content["meta"]["PALETTE"][0] == [128, 64, 128]
    result = import_weights(exported, tmp_path / "back.safetensors", unpublished, row=SMALL)
    before, after = load_file(trained), load_file(tmp_path / "back.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    metadata = metadata_of(tmp_path / "back.safetensors")
    assert result == {
        "row": SMALL,
        "source": "mmsegmentation",
        "source_file": "exported.pth",
        "source_sha256": sha256(exported),
        "checksum": "none",
    }
    assert result.items() <= metadata.items()
    with pytest.raises(CheckpointError, match="in our format already"):
        import_weights(trained, tmp_path / "x.safetensors", unpublished)
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        import_weights(exported, tmp_path / "x.pth", unpublished)
    with pytest.raises(CheckpointError, match=r"ends in \.pth"):
        export_weights(trained, tmp_path / "x.safetensors")


def test_projections_without_biases_get_zeros_in_mmsegmentation(tmp_path, unpublished):
    row = PARAMS.row("ssseg-r50-d8-voc2012")
    model = build_model(row.model, 21)
    save_model(tmp_path / "w.safetensors", model, {"row": row.name})
    export_weights(tmp_path / "w.safetensors", tmp_path / "w.pth")
    theirs = torch.load(tmp_path / "w.pth", weights_only=True)["state_dict"]
    biases = [theirs[f"decode_head.pam.{part}_project.bias"] for part in ("query", "key", "value")]
    assert [tuple(bias.shape) for bias in biases] == [(64,), (64,), (512,)]
    assert not any(bool(bias.any()) for bias in biases)
    import_weights(tmp_path / "w.pth", tmp_path / "back.safetensors", unpublished, row=row.name)
    before, after = load_file(tmp_path / "w.safetensors"), load_file(tmp_path / "back.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(CheckpointError, match="export: official-dranet has no danet"):
        export_weights(tmp_path / "w.safetensors", tmp_path / "w.pth", target="official-dranet")


def test_the_row_is_found_by_the_name_of_the_file(tmp_path, exported):
    named = tmp_path / PARAMS.released[SMALL].file
    named.symlink_to(exported)
    result = import_weights(named, tmp_path / "x.safetensors", PARAMS)
    assert (result["row"], result["checksum"]) == (SMALL, "differs")
    with pytest.raises(ConfigError, match="say whose weights it holds with --row"):
        import_weights(exported, tmp_path / "y.safetensors", PARAMS)


def test_any_kind_of_file_is_loaded(tmp_path, trained, exported, unpublished):
    row = PARAMS.row(SMALL)
    import_weights(exported, tmp_path / "imported.safetensors", unpublished, row=SMALL)
    raw = torch.load(exported, weights_only=True)["state_dict"]
    save_file(raw, tmp_path / "raw.safetensors")  # what a refused pickle's message proposes
    wanted = None
    for file in (trained, exported, tmp_path / "imported.safetensors", tmp_path / "raw.safetensors"):
        torch.manual_seed(1)
        model = build_model(row.model, 19)
        load_any(file, model)
        state = model.state_dict()
        wanted = wanted or state
        assert all(torch.equal(state[key], value) for key, value in wanted.items())


def test_a_refused_file_leaves_nothing(tmp_path, exported, unpublished):
    out = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match=r"21 classes\): .*\(19, 512, 1, 1\) instead of \(21"):
        import_weights(exported, out, unpublished, row="mmseg-r50-d8-voc2012-20k")
    with pytest.raises(ConfigError, match="unknown row"):
        import_weights(exported, out, unpublished, row="mmseg-r51")
    assert not out.exists()
