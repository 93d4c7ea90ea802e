"""The page over all benchmark files of a folder, and their plots."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.speed.cases import PEER
from danet.core.files import write_text
from danet.report.figures import STYLE, WIDTH, save
from danet.report.markdown import Page, escape
from danet.results.speed import read

TITLES: Final = {
    "infer": "Inference, batch 1: from the 8-bit image to the label map on the host",
    "train": "Training step: forward, losses of all heads, backward, SGD",
    "attention": "Position attention alone, 512 channels",
    "confusion": "Confusion matrix of one image, one core",
    "loading": "Training images, one core: raw pixels (mmsegmentation: arrays in memory) to a batch of grey levels",
}


def report(folder: Path) -> str:
    """The Markdown page over all benchmark files of a folder."""
    runs = read(folder)
    page = Page("Written by `python -m benchmarks.speed time`; do not edit.")
    page.heading(1, "Speed")
    page.text(
        "How it is measured: [benchmarks/speed/](../../benchmarks/speed); what made the difference: "
        "[benchmarks/NOTES.md](../../benchmarks/NOTES.md)."
    )
    page.text(
        "*published* and *fast* are the profiles of numerics.yaml; *reference* is *published* with the explicit "
        "attention map, and windows one after another. mmsegmentation computes as it does by itself: in float32, its "
        "convolutions in TF32 where the GPU has it (*published* has none, like the GPUs of 2020), or with its AMP: on "
        "a GPU float16 (AmpOptimWrapper in training), on a CPU bfloat16. Of a row, a training step has the images of a "
        "GPU in the published training (2 on Cityscapes, else 4), and prediction is of a whole image by the row's "
        "protocol. *x mmseg* and *x AMP*: median over rounds of mmsegmentation's time over ours. *images/s*: from the "
        "median time, ± half the interquartile range (all times, TFLOP/s and precisions are in the CSV files). "
        "*Roofline*: the least time for the counted operations and bytes at the device's measured peaks, as a share of "
        "the time taken. Operations count as the plain network does them, so what fuses more may pass 100 %."
    )
    for name, command in (("CPU", "make benchmark"), ("GPU", "make gpu")):
        page.heading(2, name)
        mine = [(document, lines) for document, lines in runs if (document["kind"] == "cpu") == (name == "CPU")]
        page.text("" if mine else f"Not run: `{command}` fills these tables.")
        for document, lines in mine:
            _section(page, document, lines)
    return page.end()


def _section(page: Page, document: Mapping[str, Any], lines: Sequence[Mapping[str, str]]) -> None:
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
    page.heading(3, TITLES.get(subject, subject))
    page.text(
        f"{'; '.join(said)}. Measured peaks: {rates}, memory {document['peak_bytes_per_s'] / 1e9:.1f} GB/s. "
        f"Command: `{facts['command']}`. Data: [{document['file']}]({document['file']})."
    )
    page.table(
        (
            ["case", "implementation", "x mmseg", "x AMP", "images/s", "peak GiB", "roofline"],
            list(map(_cells, lines)),
            "llrrrrr",
        )
    )
    page.figure("Speed as a multiple of mmsegmentation's", document["file"].removesuffix(".csv") + ".png")
    for case, kernels in document.get("kernels", {}).items():
        page.text(f"The longest kernels of *fast*, {case}:")
        cells = [[escape(name), f"{ms:g}", f"{calls:g}"] for name, ms, calls in kernels]
        page.table((["kernel", "ms", "calls"], cells, "lrr"))


def _cells(line: Mapping[str, str]) -> list[str]:
    head = [_label(line), _implementation(line)]
    if line["error"]:
        return [*head, f"failed: {escape(line['error'])}", *["-"] * 4]
    ratios = [f"{float(line[name]):.2f}" if line[name] else "-" for name in ("against_mmsegmentation", "against_amp")]
    rate = f"{line['images_per_second']} ± {50 * float(line['iqr_s']) / float(line['median_s']):.0f} %"
    share = f"{100 * float(line['roofline_share']):.0f} %" if line["roofline_share"] else "-"
    return [*head, *ratios, rate, line["peak_gb"] or "-", share]


def draw(path: Path, lines: Sequence[Mapping[str, str]], title: str) -> None:
    """Bars by case and implementation, from the lines of a CSV file: times mmsegmentation, or images/s."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    good = [line for line in lines if line["images_per_second"]]
    beside = any(line["against_mmsegmentation"] for line in good)
    if beside:
        good = [line for line in good if line["against_mmsegmentation"] and line["implementation"] != PEER]
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        groups = list(dict.fromkeys(_label(line) for line in good))
        figure = Figure(figsize=(WIDTH, 1.3 + 0.23 * len(good) + 0.32 * len(groups)), layout="constrained")
        axes = figure.subplots()
        at, ticks = 0.0, []
        for group in groups:
            axes.text(0, at, f" {group}", va="center", fontsize=9.5, fontweight="bold")
            at += 1
            for line in (line for line in good if _label(line) == group):
                name, rate = _implementation(line), float(line["images_per_second"])
                value = float(line["against_mmsegmentation"]) if beside else rate
                axes.barh(at, value, 0.85, color="#d98c2b" if name.startswith(PEER) else "#1f5fa8")
                axes.text(
                    value, at, f" {value:.2f} x ({rate:.3g}/s)" if beside else f" {rate:.3g}", va="center", fontsize=9
                )
                ticks.append((at, name))
                at += 1
            at += 0.4
        axes.set_yticks([place for place, _ in ticks], labels=[name for _, name in ticks], fontsize=9.5)
        axes.set_ylim(at - 0.6, -0.8)
        axes.margins(x=0.32)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"x {PEER} (images per second)" if beside else "images per second")
        if beside:
            axes.axvline(1, color="black", linewidth=1, zorder=0.5)
        figure.suptitle("\n".join(textwrap.fill(part, 58) for part in title.split("\n")), fontsize=10)
        save(figure, path)


def _label(line: Mapping[str, str]) -> str:
    both = " fwd+bwd" if "backward" in line["what"] else ""
    batch = f", batch {line['batch']}" if line["batch"] != "1" else ""
    return f"{line['network']}{both} {line['height']}x{line['width']}{batch}"


def _implementation(line: Mapping[str, str]) -> str:
    """With its precision, if the name does not say it."""
    name, precision = line["implementation"], line["precision"]
    return name if precision in name or "AMP" in name else f"{name} {precision}"


def finish(folder: Path) -> None:
    """Plots of all the benchmark files of a folder, and its page."""
    for document, lines in read(folder):
        if lines:
            subject = lines[0]["what"].split(" ")[0]
            name = document["file"].removesuffix(".csv")
            draw(folder / f"{name}.png", lines, f"{TITLES.get(subject, subject)}\n{document['device']}")
    write_text(folder / "README.md", report(folder))
