"""Our own weights files: exact round trip, and every file that must not be loaded."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from danet.config.row import Model
from danet.core.errors import CheckpointError
from danet.core.files import sha256
from danet.models import build_model
from danet.weights.ours import load_model, metadata_of, read_model, save_model


def network(num_classes=5, seed=0, **settings):
    torch.manual_seed(seed)
    base = {"method": "danet", "backbone": "resnet50", "output_stride": 16, "stem": "7x7", "aux_channels": 8}
    return build_model(Model.model_validate({**base, **settings}), num_classes)


def empty(**settings):
    """The same with every tensor zero, made quickly."""
    with torch.device("meta"):
        model = network(**settings)
    model.to_empty(device="cpu")
    for value in model.state_dict().values():
        value.zero_()
    return model


@pytest.fixture(scope="module")
def original():
    return network(method="clusterdanet", aux_channels=None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, original):
    path = tmp_path_factory.mktemp("models") / "seed0.safetensors"
    save_model(path, original, {"row": "test-row", "seed": "0"})
    return path


def cluster(**settings):
    with torch.device("meta"):
        return network(**{"method": "clusterdanet", "aux_channels": None, **settings})


def test_round_trip_is_exact(saved, original):
    other = empty(method="clusterdanet", aux_channels=None).to(memory_format=torch.channels_last)
    load_model(saved, other)
    metadata = metadata_of(saved)
    for key, value in original.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
        assert other.state_dict()[key].dtype == value.dtype  # the float64 counts too
    assert metadata["row"] == "test-row"
    assert metadata["num_classes"] == "5"
    assert metadata["method"] == "clusterdanet"


def test_bytes_depend_on_the_weights_only(saved, original, tmp_path):
    """Not on the memory format, or the order of the metadata."""
    model = copy.deepcopy(original).to(memory_format=torch.channels_last)
    save_model(tmp_path / "a.safetensors", model, {"seed": "0", "row": "test-row"})
    assert sha256(tmp_path / "a.safetensors") == sha256(saved)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_classes": 19}, "has 5 classes, the row has 19 classes"),
        ({"method": "danet"}, "has method clusterdanet, the row has method danet"),
        ({"backbone": "resnet101"}, "has backbone resnet50, the row has backbone resnet101"),
        ({"stem": "deep-32-32-64"}, "has stem 7x7, the row has stem deep-32-32-64"),
        ({"pam_bias": False}, "has pam_bias true, the row has pam_bias false"),
        ({"aux_channels": 256}, "has aux_channels none, the row has aux_channels 256"),
        ({"output_stride": 8}, "has output_stride 16, the row has output_stride 8"),
        ({"align_corners": True}, "has align_corners false, the row has align_corners true"),
    ],
)
def test_another_model_is_named(saved, settings, reason):
    with pytest.raises(CheckpointError, match=rf"seed0\.safetensors: {reason}"):
        load_model(saved, cluster(**settings))


def test_damaged_and_foreign_files(saved, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(saved.read_bytes()[:-1])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    save_file({"a": torch.ones(1)}, tmp_path / "foreign.safetensors")
    for path in tmp_path.iterdir():
        with pytest.raises(CheckpointError, match=rf"{path}: is no weights file of ours \(format danet-1\) or is cut"):
            read_model(path)
    with pytest.raises(CheckpointError, match="does not exist; train the row first"):
        read_model(tmp_path / "none.safetensors")
