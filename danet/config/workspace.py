"""Where everything lies. One place for every path, so that stages, commands and tests agree.

A workspace is a folder with a ``params.yaml``: the repository root for the full sweep, or the folder that
``make demo`` makes. All paths are relative to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from danet.config.params import Params, load_params
from danet.config.row import Row
from danet.core.errors import ConfigError
from danet.core.files import sha256

_PARENTS = (
    *("data", "data/raw", "data/prepared", "data/weights", "data/released"),
    *("models", "evaluations", "verifications", "submissions"),
)


@dataclass(frozen=True)
class Workspace:
    """Paths below ``root``."""

    root: Path = Path()

    def params(self) -> Params:
        """The validated ``params.yaml``; raises ``ConfigError``."""
        return load_params(self.root / "params.yaml")

    def refuse_links(self) -> None:
        """Stops where a folder of DVC's outputs is a symbolic link.

        In a Git repository DVC refuses what lies behind one, but only when the stage has done its work.

        Raises:
            ConfigError: naming the link and the two ways to use another disk.
        """
        for name in _PARENTS:
            link = self.root / name
            if link.is_symlink() and (self.root / ".git").exists():
                target = link.resolve()
                raise ConfigError(
                    f"{link}: is a symbolic link to {target}, and DVC keeps no outputs behind one; to use that disk, "
                    f"run `rm {link}`, `dvc cache dir --local {target}/dvc-cache` and "
                    "`dvc config --local cache.type symlink` (what is finished then lies there), or mount it: "
                    f"`mkdir {link}` and `mount --bind {target} {link}`"
                )

    def archives(self) -> Path:
        """Files that were placed by hand: archives of datasets and weights (folder)."""
        return self.root / "data" / "archives"

    def raw(self, dataset: str) -> Path:
        """Downloaded archives of a dataset (folder)."""
        return self.root / "data" / "raw" / dataset

    def prepared(self, dataset: str) -> Path:
        """The prepared form of a dataset (folder; :mod:`danet.data.prepared`)."""
        return self.root / "data" / "prepared" / dataset

    def weights(self, name: str) -> Path:
        """ImageNet weights in our names (folder with ``weights.safetensors`` and ``source.json``)."""
        return self.root / "data" / "weights" / name

    def released(self, row: Row) -> Path:
        """Weights that the source released for a row, in our names (folder as :meth:`weights`)."""
        return self.root / "data" / "released" / row.name

    def verification(self, row: Row) -> Path:
        """Pictures and arrays of the evaluation of the released weights, cached by DVC (folder)."""
        return self.root / "verifications" / row.name

    def model(self, row: Row) -> Path:
        """Trained weights of a row (folder with ``seed<k>.safetensors``)."""
        return self.root / "models" / row.name

    def checkpoints(self, row: Row, seed: int) -> Path:
        """Resume checkpoints: outside every DVC output, which DVC would delete when a stage starts."""
        return self.root / "checkpoints" / f"{row.name}-{row.train_hash}" / f"seed{seed}"

    def metrics(self, row: Row) -> Path:
        """Metrics files of a row, kept in Git (folder)."""
        return self.root / "reports" / "metrics" / row.table / row.name

    def scores(self, row: Row, *, released: bool = False) -> Path:
        """What ``dvc metrics show`` and ``diff`` compare of a row, or of its released weights; kept in Git."""
        return self.root / "reports" / "scores" / f"{row.name}{'-released' if released else ''}.json"

    def evaluation(self, row: Row) -> Path:
        """Pictures and arrays of an evaluation, cached by DVC (folder)."""
        return self.root / "evaluations" / row.name

    def evaluation_of(self, row: Row, weights: Path) -> Path:
        """Evaluation of any weights by a row's protocol (folder): files of one name, ``latest.pth``, stay apart."""
        return self.root / "evaluations" / f"{row.name}@{weights.stem}-{sha256(weights)[:8]}"

    def evaluation_examples(self, table: str) -> Path:
        """Pictures of fixed images across a table's rows (folder); no row's name has an ``@``."""
        return self.root / "evaluations" / f"examples@{table}"

    def reports(self) -> Path:
        """Tables and figures (folder)."""
        return self.root / "reports"

    def submission(self, row: Row) -> Path:
        """Zip for the Cityscapes test server."""
        return self.root / "submissions" / f"{row.name}.zip"
