"""Stage ``report@TABLE`` and ``index``: tables and figures from metrics files alone."""

from __future__ import annotations

from danet.report import write_index, write_table
from danet.workspace import Workspace
from pipelines import stage


def main(workspace: Workspace, table: str) -> None:
    """Writes one table, or with ``--index`` the page over all of them."""
    if table == "--index":
        write_index(workspace.params(), workspace)
    else:
        write_table(table, workspace.params(), workspace)


if __name__ == "__main__":
    stage(main)
