"""Stage ``report@TABLE`` and ``index``: tables and figures from metrics files alone; the figures go to MLflow too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from danet.config.workspace import Workspace
from danet.core.console import console
from danet.report import ALL_COSTS, measured_tables, write_index, write_table
from danet.results.tracking import log_report
from pipelines import stage


def main(workspace: Workspace, table: str) -> None:
    """Writes one table, or with ``--index`` the page over all of them."""
    params = workspace.params()
    if table == "--index":
        page = write_index(params, workspace)
        for each in measured_tables(params, workspace):
            _log(each, workspace, [page.with_name(ALL_COSTS)])
    else:
        report = write_table(table, params, workspace)
        if report.measured:
            _log(table, workspace, report.files)


def _log(table: str, workspace: Workspace, files: Sequence[Path]) -> None:
    reason = log_report(table, workspace, files)
    if reason:
        console.print(f"[yellow]MLflow:[/] the pictures of {table} were not logged: {escape(reason)}")


if __name__ == "__main__":
    stage(main)
