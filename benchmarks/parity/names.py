"""From the parameter names of each source to ours, for the parity check only (plain string rules, checked by shape)."""

from __future__ import annotations

HEAD_MMSEG = {
    "conv_seg": "head.classifier",
    "pam_conv_seg": "head.pam_classifier",
    "cam_conv_seg": "head.cam_classifier",
    "pam_in_conv.conv": "head.pam_in.0",
    "pam_in_conv.bn": "head.pam_in.1",
    "pam_out_conv.conv": "head.pam_out.0",
    "pam_out_conv.bn": "head.pam_out.1",
    "cam_in_conv.conv": "head.cam_in.0",
    "cam_in_conv.bn": "head.cam_in.1",
    "cam_out_conv.conv": "head.cam_out.0",
    "cam_out_conv.bn": "head.cam_out.1",
    "pam.query_project": "head.pam.query",
    "pam.key_project": "head.pam.key",
    "pam.value_project": "head.pam.value",
    "pam.gamma": "head.pam",
    "cam.gamma": "head.cam",
}
MMSEG = {
    **{f"decode_head.{theirs}": ours for theirs, ours in HEAD_MMSEG.items()},
    "auxiliary_head.convs.0.conv": "aux_head.conv.0",
    "auxiliary_head.convs.0.bn": "aux_head.conv.1",
    "auxiliary_head.conv_seg": "aux_head.classifier",
}
SSSEG = {
    **{f"{p}_{end}_conv.{i}": f"head.{p}_{end}.{i}" for p in ("pam", "cam") for end in ("in", "out") for i in (0, 1)},
    **{f"pam_net.{name}_project": f"head.pam.{name}" for name in ("query", "key", "value")},
    "pam_net.gamma": "head.pam",
    "cam_net.gamma": "head.cam",
    "decoder_pamcam.1": "head.classifier",
    "decoder_pam.1": "head.pam_classifier",
    "decoder_cam.1": "head.cam_classifier",
    "auxiliary_decoder.0": "aux_head.conv.0",
    "auxiliary_decoder.1": "aux_head.conv.1",
    "auxiliary_decoder.4": "aux_head.classifier",
}
OFFICIAL = {
    **{f"head.conv5{a}.{i}": f"head.{b}_in.{i}" for a, b in (("a", "pam"), ("c", "cam")) for i in (0, 1)},
    **{f"head.conv5{a}.{i}": f"head.{b}_out.{i}" for a, b in (("1", "pam"), ("2", "cam")) for i in (0, 1)},
    **{f"head.sa.{name}_conv": f"head.pam.{name}" for name in ("query", "key", "value")},
    "head.sa": "head.pam",
    "head.sc": "head.cam",
    "head.ca": "head.pam_clusters",
    "head.cc": "head.cam_clusters",
    "head.conv8.1": "head.classifier",
    "head.conv6.1": "head.pam_classifier",
    "head.conv7.1": "head.cam_classifier",
    **{
        f"head.conv_{a}.{i}": f"head.{b}.{i}"
        for a, b in (
            ("cpam_b", "cpam_in"),
            ("cpam_e", "cpam_out"),
            ("ccam_b", "ccam_in"),
            ("ccam_e", "ccam_out"),
            ("cat", "cat"),
        )
        for i in (0, 1)
    },
    **{f"head.cpam_enc.conv{n}.{i}": f"head.cpam_encoder.convs.{n - 1}.{i}" for n in range(1, 5) for i in (0, 1)},
    **{f"head.cpam_dec.conv_{name}": f"head.cpam_decoder.{name}" for name in ("query", "key", "value")},
    "head.cpam_dec": "head.cpam_decoder",
    "head.ccam_dec": "head.ccam_decoder",
    **{f"head.ccam_enc.{i}": f"head.ccam_encoder.{i}" for i in (0, 1)},
    **{f"head.clgd.conv_{a}.{i}": f"head.gate.{a}.{i}" for a in ("low", "cat", "out") for i in (0, 1)},
    "head.clgd.conv_att.0": "head.gate.gate",
    "head.clgd": "head.gate",
    "cls_seg.1": "head.classifier",
    "cls_aux.0": "aux_head.conv.0",
    "cls_aux.1": "aux_head.conv.1",
    "cls_aux.4": "aux_head.classifier",
}
TABLES = {"mmseg": MMSEG, "ssseg": SSSEG, "official": OFFICIAL}


def ours(source: str, name: str) -> str:
    """Our name of an entry of a source's state dict.

    Raises:
        KeyError: if the rules do not know it.
    """
    prefix, leaf = name.rsplit(".", 1)
    if leaf == "scale" and prefix.endswith(".gamma"):  # their Scale layer holds what we hold directly
        leaf = "gamma"
    if source == "mmseg" and prefix.startswith("backbone."):
        return name
    if source == "ssseg" and prefix.startswith("backbone_net."):
        return f"backbone.{name.removeprefix('backbone_net.')}"
    if source == "official" and prefix.startswith("pretrained."):
        rest = prefix.removeprefix("pretrained.")
        if rest == "conv1":
            rest = "stem.0"
        elif rest.startswith("conv1."):
            rest = f"stem.{rest.removeprefix('conv1.')}"
        elif rest == "bn1":
            rest = "stem.bn"  # its index depends on the stem: resolved by the caller
        return f"backbone.{rest}.{leaf}"
    return f"{TABLES[source][prefix]}.{leaf}"
