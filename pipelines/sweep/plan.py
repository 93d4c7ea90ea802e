"""What a sweep has to do: the rows chosen, the stages they share, and what DVC says is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.scm import SCMError

from danet.config.params import Params
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import ConfigError, DanetError
from pipelines import NO_GIT


@dataclass(frozen=True)
class Plan:
    """The rows of a sweep and the stages that are left."""

    params: Params
    rows: tuple[Row, ...]
    stale: frozenset[str] = frozenset()
    """Stages whose results are not those of today's parameters and data."""
    missing: frozenset[str] = frozenset()
    """These, and those whose files are not here (another machine has made them)."""

    def chains(self, row: Row) -> list[str]:
        """A row's stages that are left: lists, joined by commas, whose later stages need the earlier ones."""
        inputs = {f"download@{row.dataset}", f"convert@{row.dataset}", f"weights@{row.weights}"}
        train, evaluate = f"train@{row.name}", f"evaluate@{row.name}"
        if (inputs | {train}) & self.stale:
            return [f"{train},{evaluate}"]
        return [evaluate] if evaluate in self.stale else []

    def shared(self, rows: Sequence[Row]) -> list[str]:
        """Chains that several of these rows need, which come first: data sets and ImageNet weights."""
        found = []
        for name in dict.fromkeys(row.dataset for row in rows):
            download, convert = f"download@{name}", f"convert@{name}"
            if convert in self.missing or download in self.stale:  # else the archives may well be gone
                found.append(f"{download},{convert}" if download in self.missing else convert)
        weights = dict.fromkeys(f"weights@{row.weights}" for row in rows)
        return found + [stage for stage in weights if stage in self.missing]

    def reports(self) -> list[str]:
        """Chains of the tables that show the rows, and of the index."""
        return [*dict.fromkeys(f"report@{row.table}" for row in self.rows), "index"]


def stages(chains: Sequence[str]) -> list[str]:
    """The stages of some chains."""
    return [stage for chain in chains for stage in chain.split(",")]


def choose_rows(params: Params, tables: Sequence[str] = (), rows: Sequence[str] = ()) -> tuple[Row, ...]:
    """Rows by table and by name (names may be joined by commas), each once; all if neither is given.

    Raises:
        ConfigError: for an unknown name, with the closest ones.
    """
    names = [name for given in rows for name in given.split(",") if name]
    chosen = {row.name: row for table in tables for row in params.table_rows(table)}
    chosen |= {row.name: row for row in map(params.row, names)}
    return tuple((chosen if tables or names else params.rows).values())


def make_plan(workspace: Workspace, rows: Sequence[Row]) -> Plan:
    """Asks DVC about all stages of the rows, in one look (``dvc status`` refuses when a single one is busy).

    Raises:
        DanetError: in DVC's words, if it cannot say.
    """
    params = workspace.params()
    names = {f"{stage}@{row.dataset}" for row in rows for stage in ("download", "convert")}
    names |= {f"weights@{row.weights}" for row in rows}
    names |= {f"{stage}@{row.name}" for row in rows for stage in ("train", "evaluate")}
    stale, missing = set(), set()
    try:
        with Repo(str(workspace.root.resolve()), _wait_for_lock=True) as repo, lock_repo(repo):
            every = {stage.name: stage for stage in repo.index.stages if stage.path_in_repo == "dvc.yaml"}
            for name in sorted(names):
                try:
                    stage = every[name]
                    if not stage.status():
                        continue
                    missing.add(name)
                    ran = all(out.hash_info and (out.use_cache or out.exists) for out in stage.outs)
                    if not ran or stage.changed(allow_missing=True):
                        stale.add(name)
                except LockError:  # some ``dvc`` runs it now
                    stale.add(name)
                    missing.add(name)
    except SCMError as error:
        raise ConfigError(f"{error}; {NO_GIT}") from error
    except (DvcException, KeyError) as error:
        raise DanetError(f"{workspace.root.resolve()}: DVC cannot tell what is done: {error}") from error
    return Plan(params, tuple(rows), frozenset(stale), frozenset(missing))


def check_divisible(rows: Sequence[Row], processes: int) -> None:
    """Refuses rows whose batch cannot be shared out evenly.

    Raises:
        ConfigError: naming them all, before anything is started.
    """
    bad = [f"{row.name} ({row.schedule.batch_size})" for row in rows if row.schedule.batch_size % processes]
    if bad:
        raise ConfigError(
            f"schedule.batch_size does not divide over {processes} GPUs: {', '.join(bad)}; "
            "choose another --gpus-per-row, or other rows with --rows"
        )
