"""What each numeric setting does to mIoU on real images: every setting against fp32 on the same trained weights.

    python -m benchmarks.precision camvid-r50-d8-short ...     # needs data/prepared/ and models/ of these rows

Writes ``reports/benchmarks/precision.csv`` and ``.md``; exit status 1 if a setting moves mIoU by more than 0.05 points.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import torch

from danet.config.row import Numerics, Row
from danet.config.workspace import Workspace
from danet.core import provenance
from danet.core.console import report_errors
from danet.core.files import sha256, write_text
from danet.data.prepared import PreparedDataset
from danet.evaluation.evaluate import evaluate_model
from danet.models import build_model
from danet.weights.ours import load_model

BOUND = 0.05
SETTINGS = {
    "bf16": {"precision": "bf16"},
    "channels_last": {"channels_last": True},
    "fold_bn": {"fold_bn": True},
    "fold_bn, channels_last": {"fold_bn": True, "channels_last": True},
    "bf16, fold_bn, channels_last": {"precision": "bf16", "fold_bn": True, "channels_last": True},
}
ON_CUDA = {"fp16": {"precision": "fp16"}, "tf32": {"tf32": True}, "compile": {"compile": True}}
COLUMNS = ("row", "setting", "miou", "difference", "labels_changed_percent", "images", "device", "weights_sha256")


def measure(row: Row, workspace: Workspace, device: str, limit: int | None) -> list[dict[str, object]]:
    """mIoU in percent of a row's trained weights under each setting, and how many pixels get another label."""
    dataset = PreparedDataset(workspace.prepared(row.dataset), row.val_split)
    path = workspace.model(row) / f"seed{row.seeds[0]}.safetensors"
    lines: list[dict[str, object]] = []
    baseline, first = 0.0, {}
    settings = {"fp32": {}, **SETTINGS, **(ON_CUDA if device != "cpu" else {})}
    for name, update in settings.items():
        chosen = row.model_copy(update={"numerics": Numerics.model_validate(update)})
        model = build_model(row.model, dataset.num_classes)
        load_model(path, model)
        model.to(device)
        if chosen.numerics.channels_last:
            model.to(memory_format=torch.channels_last)
        result = evaluate_model(model, chosen, dataset, device, limit=limit, keep=range(len(dataset)))
        miou = 100 * result.scores.miou
        if name == "fp32":
            baseline, first = miou, result.predictions
        changed = sum(int((result.predictions[i] != one).sum()) for i, one in first.items())
        share = 100 * changed / sum(one.size for one in first.values())
        lines.append(
            {
                "row": row.name, "setting": name, "miou": f"{miou:.4f}", "difference": f"{miou - baseline:+.4f}",
                "labels_changed_percent": f"{share:.4f}", "images": result.images, "device": device,
                "weights_sha256": sha256(path)[:12],
            }
        )  # fmt: skip
        print(lines[-1], flush=True)
    return lines


def page(lines: list[dict[str, object]], facts: dict[str, object]) -> str:
    """The Markdown table."""
    worst = max(abs(float(str(line["difference"]))) for line in lines)
    head = [
        "# Numeric settings and mIoU",
        "",
        f"Written by `{facts['command']}`; do not edit. Trained weights on real validation images, every setting",
        f"against fp32. Bound: {BOUND} points of mIoU; largest difference: **{worst:.4f}**.",
        "",
        f"{facts['gpu'] or facts['cpu']}, torch {facts['torch']}, commit {str(facts['commit'])[:12]}, {facts['date']}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|-|-|-:|-:|-:|-:|-|-|",
    ]
    table = ["| " + " | ".join(str(line[name]) for name in COLUMNS) + " |" for line in lines]
    gpu = [] if any(line["device"] != "cpu" for line in lines) else ["", "On a GPU (fp16, TF32, compile too): not run."]
    return "\n".join([*head, *table, *gpu]) + "\n"


def main() -> int:
    """0 if no setting breaks the bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("rows", nargs="+", help="rows with trained weights and prepared data")
    parser.add_argument("--limit", type=int, help="so many validation images instead of all")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    workspace = Workspace()
    params = workspace.params()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = [line for name in arguments.rows for line in measure(params.row(name), workspace, device, arguments.limit)]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(arguments.out / "precision.csv", text.getvalue())
    write_text(arguments.out / "precision.md", page(lines, provenance.collect()))
    return int(any(abs(float(str(line["difference"]))) > BOUND for line in lines))


if __name__ == "__main__":
    with report_errors():
        raise SystemExit(main())
