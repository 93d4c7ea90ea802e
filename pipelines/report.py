"""Stage ``report@TABLE`` and ``index``: tables and figures from metrics files alone; rows' pages go to MLflow too."""

from __future__ import annotations

from danet.config.workspace import Workspace
from danet.report import write_index, write_table
from danet.results.tracking import log
from pipelines import stage


def main(workspace: Workspace, table: str) -> None:
    """Writes one table, or with ``--index`` the page over all of them."""
    params = workspace.params()
    if table == "--index":
        write_index(params, workspace)
    else:
        write_table(table, params, workspace)
        log(params.table_rows(table), workspace)


if __name__ == "__main__":
    stage(main)
