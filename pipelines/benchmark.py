"""Stage ``benchmark@ROW`` (``benchmarks/dvc.yaml``): a row's speed on this machine, beside mmsegmentation's."""

from __future__ import annotations

from benchmarks.speed.cases import SUBJECTS, row_cases
from benchmarks.speed.run import benchmark
from danet.config.workspace import Workspace
from danet.core.console import console
from pipelines import stage


def main(workspace: Workspace, name: str) -> None:
    """Writes tables and plots to ``reports/benchmarks/rows/ROW``."""
    params = workspace.params()
    row = params.row(name)
    benchmark(
        row_cases(row, params, SUBJECTS),
        workspace.reports() / "benchmarks" / "rows" / name,
        repeat=3,
        own=row.numerics,
        prefix=name,
        say=lambda text: console.print(text, markup=False),
    )


if __name__ == "__main__":
    stage(main)
