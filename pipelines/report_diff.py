"""``make report-diff BASE=main``: what a branch changes in the metrics, as markdown that CI can post on a pull request.

The numbers are DVC's (``dvc metrics diff``): every metrics file of ``dvc.yaml`` here against the same one in BASE.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import PurePosixPath
from typing import Any

from danet.core.console import report_errors
from danet.core.errors import ConfigError

SHOWN = ("miou", "miou_ms_flip", "aacc", "macc", "baseline_miou", "fps", "seeds")
"""Of an evaluation, in this order; of a training: its final loss and cost."""
TRAINING = ("final_loss", "images_per_second", "hours")


def main() -> None:
    """Prints the markdown; fails with one line if BASE is unknown."""
    base = sys.argv[1] if len(sys.argv) > 1 else "main"
    with report_errors():
        sys.stdout.write(markdown(base, metrics_diff(base)))


def metrics_diff(base: str) -> dict[str, dict[str, dict[str, Any]]]:
    """``{path: {metric: {old, new, diff}}}`` of the workspace against a Git revision.

    Raises:
        ConfigError: if DVC cannot compare with it, with DVC's reason.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "metrics", "diff", "--json", base, "--"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no reason given")
        raise ConfigError(
            f"cannot compare with {base!r}: {reason.removeprefix('ERROR: ')} (give BASE=a branch or commit)"
        )
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(done.stdout or "{}")
    return found


def markdown(base: str, changes: dict[str, dict[str, dict[str, Any]]]) -> str:
    """One table of the results, and one of the training cost, folded away; a sentence if nothing changed."""
    lines: dict[bool, list[str]] = {True: [], False: []}
    for path, metrics in sorted(changes.items()):
        row = PurePosixPath(path).parent.name
        of_training = PurePosixPath(path).name == "train.json"
        order = TRAINING if of_training else SHOWN
        for metric in [*(name for name in order if name in metrics), *(name for name in metrics if name not in order)]:
            values = metrics[metric]
            if not {"old", "new"} & set(values) or metric.startswith("runs") or metric in {"format", "row"}:
                continue
            old, new, change = values.get("old"), values.get("new"), values.get("diff")
            cells = [row, metric, _number(old), _number(new), _number(change, sign=True)]
            lines[of_training].append("| " + " | ".join(cells) + " |")
    if not lines[True] and not lines[False]:
        return f"No metric differs from `{base}`.\n"
    head = f"| Row | Metric | {base} | here | Change |\n| --- | --- | ---: | ---: | ---: |\n"
    text = f"### Metrics that differ from `{base}`\n\n"
    if lines[False]:
        text += head + "\n".join(lines[False]) + "\n"
    if lines[True]:
        text += f"\n<details><summary>Training: {len(lines[True])} numbers</summary>\n\n"
        text += head + "\n".join(lines[True]) + "\n\n</details>\n"
    return text


def _number(value: Any, sign: bool = False) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-" if value is None else str(value)
    if isinstance(value, int):
        text = str(value)
    else:
        text = f"{value:.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.4g}"
    return f"+{text}" if sign and value > 0 else text


if __name__ == "__main__":
    main()
