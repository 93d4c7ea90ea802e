"""Stage ``report@TABLE`` and ``index``: tables and figures from metrics files alone; the figures go to MLflow too."""

from __future__ import annotations

from rich.markup import escape

from danet.console import console
from danet.report import write_index, write_table
from danet.tracking import log_report
from danet.workspace import Workspace
from pipelines import stage


def main(workspace: Workspace, table: str) -> None:
    """Writes one table, or with ``--index`` the page over all of them."""
    if table == "--index":
        write_index(workspace.params(), workspace)
    else:
        report = write_table(table, workspace.params(), workspace)
        reason = log_report(table, workspace, report.files) if report.measured else None
        if reason:
            console.print(f"[yellow]MLflow:[/] the pictures of {table} were not logged: {escape(reason)}")


if __name__ == "__main__":
    stage(main)
