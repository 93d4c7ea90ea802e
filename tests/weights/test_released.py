"""Released checkpoints of every source: exact both ways, and every change to a file named."""

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from danet.config.row import Model
from danet.core.errors import CheckpointError
from danet.models import build_model
from danet.weights.released import export_released, import_released

DEEP32 = {"method": "danet", "output_stride": 8, "stem": "deep-32-32-64"}
CASES = {
    "mmsegmentation": (
        "mmsegmentation",
        {**DEEP32, "backbone": "resnet50", "aux_channels": 256},
        19,
        (
            "backbone.stem.7.running_var",
            "decode_head.pam_in_conv.conv.weight",
            "decode_head.cam_out_conv.bn.bias",
            "decode_head.pam.query_project.bias",
            "decode_head.cam.gamma.scale",
            "decode_head.pam_conv_seg.weight",
            "auxiliary_head.convs.0.bn.weight",
            "auxiliary_head.conv_seg.bias",
        ),
    ),
    "sssegmentation": (
        "sssegmentation",
        {**DEEP32, "backbone": "resnet101", "aux_channels": 512, "pam_bias": False},
        19,
        (
            "backbone_net.layer3.22.conv3.weight",
            "pam_in_conv.1.weight",
            "pam_net.value_project.weight",
            "pam_net.gamma.scale",
            "decoder_pamcam.1.bias",
            "auxiliary_decoder.0.weight",
            "auxiliary_decoder.4.weight",
        ),
    ),
    "official": (
        "official",
        {"method": "danet", "backbone": "resnet101", "output_stride": 8, "stem": "7x7", "multi_grid": (4, 8, 16)},
        19,
        (
            "pretrained.conv1.weight",
            "pretrained.bn1.bias",
            "head.conv5c.0.weight",
            "head.sa.gamma",
            "head.conv8.1.bias",
        ),
    ),
    "official-deep": (
        "official",
        {"method": "danet", "backbone": "resnet50", "output_stride": 8, "stem": "deep-64-64-128"},
        19,
        ("pretrained.conv1.6.weight", "pretrained.conv1.4.running_mean", "pretrained.bn1.bias", "head.conv52.1.weight"),
    ),
    "official-dranet": (
        "official-dranet",
        {
            "method": "dranet",
            "backbone": "resnet101",
            "output_stride": 8,
            "stem": "deep-64-64-128",
            "aux_channels": 256,
        },
        19,
        ("head.cpam_enc.conv4.0.weight", "head.clgd.conv_att.0.bias", "cls_aux.4.weight", "cls_seg.1.weight"),
    ),
    "clusterdanet": (
        "clusterdanet",
        {"method": "clusterdanet", "backbone": "resnet101", "output_stride": 8, "stem": "deep-64-64-128"},
        21,
        ("head.ca.V_buffer", "head.cc.V_count_buffer", "head.conv7.1.weight"),
    ),
}


def numbered(shapes):
    """A state dict in which every tensor holds its own number (stored once, so files are small)."""
    return {
        key: torch.tensor(index if value.dtype == torch.int64 else 0.01 * index, dtype=value.dtype).expand(value.shape)
        for index, (key, value) in enumerate(shapes.items())
    }


@cache
def synthetic(case, **changes):
    config = Model.model_validate({**CASES[case][1], **changes})
    with torch.device("meta"):
        shapes = build_model(config, CASES[case][2]).state_dict()
    return numbered(shapes), config


def written(path, state):
    torch.save(state, path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_round_trip_is_exact(tmp_path, case):
    source, _, num_classes, some = CASES[case]
    state, config = synthetic(case)
    theirs = export_released(state, config, source)
    assert set(some) <= set(theirs)
    assert len(theirs) == len(state)
    wrapped = {"state_dict": theirs, "meta": {"CLASSES": ("road",)}, "epoch": 1}
    result, found = import_released(written(tmp_path / "w.pth", wrapped), config, num_classes)
    assert found == source
    assert list(result) == list(state)
    for key, value in state.items():
        assert result[key].dtype == value.dtype
        assert result[key].shape == value.shape
        assert torch.equal(result[key], value), key


def test_tensors_go_where_they_belong(tmp_path):
    """Pairs that are alike in shape, so that only the table keeps them apart."""
    state, config = synthetic("official-deep")
    theirs = export_released(state, config, "official")
    for ours, name in (
        ("head.pam_in.0.weight", "head.conv5a.0.weight"),
        ("head.cam_in.0.weight", "head.conv5c.0.weight"),
        ("head.pam_out.0.weight", "head.conv51.0.weight"),
        ("head.cam_out.0.weight", "head.conv52.0.weight"),
        ("head.pam_classifier.weight", "head.conv6.1.weight"),
        ("head.cam_classifier.weight", "head.conv7.1.weight"),
        ("head.classifier.weight", "head.conv8.1.weight"),
        ("head.pam.query.weight", "head.sa.query_conv.weight"),
        ("head.pam.key.weight", "head.sa.key_conv.weight"),
        ("head.cam.gamma", "head.sc.gamma"),
        ("backbone.stem.3.weight", "pretrained.conv1.3.weight"),
    ):
        assert torch.equal(theirs[name].reshape(state[ours].shape), state[ours])


def test_what_the_official_code_leaves_in_its_files(tmp_path):
    state, config = synthetic("official")
    theirs = export_released(state, config, "official")
    theirs |= {"pretrained.fc.weight": torch.zeros(1000, 2048), "pretrained.fc.bias": torch.zeros(1000)}
    theirs = {f"module.{k}": v for k, v in theirs.items() if not k.endswith("num_batches_tracked")}
    result, _ = import_released(written(tmp_path / "w.pth", theirs), config, 19)
    for key, value in state.items():
        assert torch.equal(result[key], torch.zeros_like(value) if key.endswith("num_batches_tracked") else value)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), case=st.sampled_from(["mmsegmentation", "official-dranet", "clusterdanet"]))
def test_any_change_to_any_tensor_is_named(tmp_path, data, case):
    source, _, num_classes, _ = CASES[case]
    state, config = synthetic(case, backbone="resnet50")
    theirs = export_released(state, config, source)
    key = data.draw(st.sampled_from(sorted(theirs)))
    change = data.draw(st.sampled_from(["drop", "rename", "reshape", "kind", "add"]))
    value = theirs[key]
    assume(change != "reshape" or value.numel() > 1)  # one number is the same in () and in (1,), as sources write it
    if change in ("drop", "rename"):
        del theirs[key]
    if change == "rename":
        theirs[f"{key}_2"] = value
    if change == "reshape":
        theirs[key] = value.unsqueeze(0)
    if change == "kind":
        theirs[key] = value.float() if value.dtype == torch.int64 else value.long()
    if change == "add":
        theirs[f"{key}.more"] = value
    with pytest.raises(CheckpointError) as caught:
        import_released(written(tmp_path / "w.pth", theirs), config, num_classes)
    assert key in str(caught.value)
    assert "w.pth" in str(caught.value)


@pytest.mark.parametrize(
    ("case", "change", "num_classes", "reason"),
    [
        ("mmsegmentation", {}, 21, r"21 classes\): .*decode_head\.conv_seg\.weight \(19, 512, 1, 1\) instead of \(21"),
        ("mmsegmentation", {"backbone": "resnet101"}, 19, r"\(resnet101, .* missing \(backbone\.layer3\.6"),
        ("mmsegmentation", {"stem": "7x7"}, 19, "mmsegmentation has no danet with the stem 7x7"),
        ("mmsegmentation", {"method": "clusterdanet"}, 19, "mmsegmentation has no clusterdanet"),
        ("mmsegmentation", {"pam_bias": False}, 19, r"3 tensors unexpected \(decode_head\.pam"),
        ("mmsegmentation", {"aux_channels": None}, 19, r"tensors unexpected \(auxiliary_head"),
        ("mmsegmentation", {"aux_channels": 512}, 19, r"conv\.weight \(256, 1024, 3, 3\) instead of \(512"),
        ("official-deep", {"stem": "7x7"}, 19, r"missing \(pretrained\.conv1\.weight"),
        ("official-deep", {"aux_channels": 256}, 19, "official has no danet .* aux_channels 256"),
    ],
)
def test_other_networks_are_told(tmp_path, case, change, num_classes, reason):
    state, config = synthetic(case)
    file = written(tmp_path / "w.pth", export_released(state, config, CASES[case][0]))
    with pytest.raises(CheckpointError, match=rf"w\.pth: .*{reason}"):
        import_released(file, Model.model_validate({**config.model_dump(), **change}), num_classes)


def test_unknown_sources(tmp_path):
    _, config = synthetic("mmsegmentation")
    file = written(tmp_path / "w.pth", {"classifier.0.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"comes from an unknown source \(classifier\.0\.weight, \.\.\.\)"):
        import_released(file, config, 19)
    with pytest.raises(CheckpointError, match="source 'keras' is unknown"):
        export_released({}, config, "keras")
