"""The page over all benchmark files of a folder, and their plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.speed.cases import PEER, shapes
from danet.core.files import atomic_write, write_text
from danet.evaluation import flops
from danet.results.speed import read

TITLES: Final = {
    "infer": "Inference, batch 1: from the 8-bit image to the label map on the host",
    "train": "Training step: forward, losses of all heads, backward, SGD",
    "attention": "Position attention alone, 512 channels",
    "confusion": "Confusion matrix of one image, one core",
}


def report(folder: Path) -> str:
    """The Markdown page over all benchmark files of a folder."""
    runs = read(folder)
    out = [
        "# Speed",
        "",
        "Written by `python -m benchmarks.speed time`; do not edit. How it is measured: "
        "[benchmarks/speed/](../../benchmarks/speed/run.py); what made the difference: "
        "[benchmarks/NOTES.md](../../benchmarks/NOTES.md).",
        "",
        "*published* and *fast* are the profiles of numerics.yaml; *reference* is *published* with the explicit",
        "attention map, and windows one after another. mmsegmentation computes as it does by itself: in float32, its",
        "convolutions in TF32 where the GPU has it (*published* has none, like the GPUs of 2020), or with its AMP: on",
        "a GPU float16 (AmpOptimWrapper in training), on a CPU bfloat16. Of a row, a training step has the images of a",
        "GPU in the published training (2 on Cityscapes, else 4), and prediction is of a whole image by the row's",
        "protocol. *x mmseg* and *x AMP*: median over rounds of mmsegmentation's time over ours;",
        "roofline is the least time for the counted operations and bytes at the device's measured peaks, as a share of",
        "the time taken. Operations count as the plain network does them, so what fuses more may pass",
        "100%.",
        "",
    ]
    for kind, name in (("cpu", "CPU"), ("cuda", "GPU")):
        mine = [(document, lines) for document, lines in runs if (document["kind"] == "cpu") == (kind == "cpu")]
        out += [f"## {name}", ""]
        if not mine:
            out += [
                "Not run: `make benchmark` on a machine with a GPU fills these tables.",
                "",
            ]
            for subject in ("infer", "train"):
                cases = [c for c in shapes("cuda", [subject])]
                out += [f"### {TITLES[subject]}", "", "| network | size | batch | all implementations |", "|-|-|-:|-|"]
                out += [f"| {c.network} | {flops.size_text(c.size)} | {c.batch} | not run |" for c in cases]
                out.append("")
        for document, lines in mine:
            out += _section(document, lines)
    return "\n".join(out).rstrip() + "\n"


STYLES: Final = {
    "reference": ("#9aa5b1", ""),
    "fast": ("#1f5fa8", ""),
    "published": ("#66a3d9", "\\\\"),
    "fast fp32": ("#66a3d9", "//"),
    "fast, not compiled": ("#66a3d9", ".."),
    PEER: ("#d98c2b", ".."),
    f"{PEER} AMP": ("#e8b878", "oo"),
    "row's numerics": ("#7a5195", "xx"),
}
"""Colour and hatch of an implementation, the same in all plots."""


def _section(document: Mapping[str, Any], lines: Sequence[Mapping[str, str]]) -> list[str]:
    facts = document["facts"]
    subject = lines[0]["what"].split(" ")[0] if lines else ""
    rates = ", ".join(f"{key} {value / 1e12:.2f} TFLOP/s" for key, value in document["peak_flop_per_s"].items())
    peer = facts.get("peer") or {}
    said = [
        f"{document['device']}, {facts['threads']} threads",
        f"torch {facts['torch']}",
        f"{peer['name']} on torch {peer['torch']}" if peer else "without mmsegmentation",
        f"commit {str(facts['commit'])[:12]}{' with uncommitted changes' if facts.get('dirty') else ''}",
        str(facts["date"]),
        f"load average at the start {facts.get('load', '-')}",
    ]
    out = [
        f"### {TITLES.get(subject, subject)}",
        "",
        f"{'; '.join(said)}. Measured peaks: {rates}, memory {document['peak_bytes_per_s'] / 1e9:.1f} GB/s. "
        f"Command: `{facts['command']}`. Data: [{document['file']}]({document['file']}).",
        "",
        "| network | size | batch | implementation | precision | images/s | median s | IQR s | runs | x mmseg | x AMP "
        "| peak GiB | TFLOP/s | roofline |",
        "|-|-|-:|-|-|-:|-:|-:|-:|-:|-:|-:|-:|-:|",
    ]
    for line in lines:
        share = f"{100 * float(line['roofline_share']):.0f}%" if line["roofline_share"] else "-"
        what = line["network"] + (" fwd+bwd" if "backward" in line["what"] else "")
        cells = [what, f"{line['height']}x{line['width']}", line["batch"], line["implementation"], line["precision"]]
        if line["error"]:
            out.append("| " + " | ".join([*cells, "failed: " + line["error"].replace("|", "/"), *["-"] * 8]) + " |")
            continue
        names = "against_mmsegmentation", "against_amp"
        ratios = [f"{float(line[name]):.2f}" if line[name] else "-" for name in names]
        numbers = [
            line["images_per_second"], line["median_s"], line["iqr_s"], line["repeat"], *ratios, line["peak_gb"] or "-",
            line["tflop_per_s"] or "-", share,
        ]  # fmt: skip
        out.append("| " + " | ".join([*cells, *numbers]) + " |")
    figure = document["file"].removesuffix(".csv") + ".png"
    return [*out, "", f"![images per second]({figure})", ""]


def draw(path: Path, lines: Sequence[Mapping[str, str]], title: str) -> None:
    """Bars of images/s by case and implementation, from the lines of a CSV file; logarithmic, with values."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    good = [line for line in lines if line["images_per_second"]]
    groups = list(dict.fromkeys(_label(line) for line in good))
    figure = Figure(figsize=(7.2, 0.9 + 0.24 * len(good) + 0.2 * len(groups)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places: list[tuple[float, str]] = []
    at = 0.0
    for group in groups:
        members = [line for line in good if _label(line) == group]
        places.append((at + (len(members) - 1) / 2, group))
        for line in members:
            name, value = line["implementation"], float(line["images_per_second"])
            colour, hatch = STYLES.get(name, ("#2f7d4f", "--"))
            known = name in axes.get_legend_handles_labels()[1]
            axes.barh(
                at, value, 0.85, color=colour, hatch=hatch, edgecolor="white", label=None if known else name
            )  # fmt: skip
            axes.text(value, at, f" {value:.3g}", va="center", fontsize=7)
            at += 1
        at += 0.8
    axes.set_yticks([place for place, _ in places], labels=[name for _, name in places], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    values = [float(line["images_per_second"]) for line in good] or [1.0]
    # Bars on a logarithmic axis have no zero: begin a power of ten below the slowest, not just beside it.
    axes.set_xlim(10 ** math.floor(math.log10(min(values) / 2)), 2.5 * max(values))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("images per second")
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.legend(fontsize=7, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _label(line: Mapping[str, str]) -> str:
    both = " fwd+bwd" if "backward" in line["what"] else ""
    return f"{line['network']}{both}\n{line['height']}x{line['width']}, batch {line['batch']}"


def finish(folder: Path) -> None:
    """Plots of all the benchmark files of a folder, and its page."""
    for document, lines in read(folder):
        if lines:
            subject = lines[0]["what"].split(" ")[0]
            name = document["file"].removesuffix(".csv")
            draw(folder / f"{name}.png", lines, f"{TITLES.get(subject, subject)}\n{document['device']}")
    write_text(folder / "README.md", report(folder))
