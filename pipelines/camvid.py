"""``make camvid``: the CamVid rows through DVC, with the full schedule on a GPU and the short one on a CPU.

``CAMVID`` names a local folder with the images (it becomes ``DANET_CAMVID`` for the download stage); without it they
are downloaded. The table then shows the rows that were run, and "not run" for the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from dvc.repo import Repo
from dvc.scm import SCMError

from danet.config.workspace import Workspace
from danet.core.console import console, report_errors
from danet.core.errors import ConfigError, DataError
from pipelines import NO_GIT, dvc_environment


def main() -> None:
    """Runs the rows, then the table and the index."""
    with report_errors():
        folder = os.environ.get("CAMVID")
        if folder:
            if not Path(folder).expanduser().is_dir():
                raise DataError(f"CAMVID={folder} is not a folder; give the one that holds train, trainannot, val, ...")
            os.environ["DANET_CAMVID"] = str(Path(folder).expanduser().resolve())
        try:
            Repo().close()
        except SCMError as error:
            raise ConfigError(f"{error}; {NO_GIT}") from error
        environment = dvc_environment()
        short = not torch.cuda.is_available()
        names = [row.name for row in Workspace().params().table_rows("camvid") if row.name.endswith("-short") == short]
        console.print(f"[bold]CamVid:[/] {'no GPU, short schedule' if short else 'full schedule'}: {', '.join(names)}")
        again = [["-f", "-s", "download@camvid"]] if folder else []
        for arguments in (*again, [f"evaluate@{name}" for name in names], ["-s", "report@camvid"], ["-s", "index"]):
            code = subprocess.run(
                [sys.executable, "-m", "dvc", "repro", *arguments], env=environment, check=False
            ).returncode
            if code:
                sys.exit(code)


if __name__ == "__main__":
    main()
