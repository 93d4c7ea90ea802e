"""What a sweep has to do: the rows chosen, the stages they share, and what DVC says is not done yet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo

from danet.config.rows import Params, Row
from danet.config.workspace import Workspace
from danet.core.console import console
from danet.core.errors import ConfigError, DanetError
from pipelines.sweep.processes import free_stale_locks


def repro_command(*targets: str, single: bool = True, pull: bool = False) -> list[str]:
    """``dvc repro`` of some stages, beside others that run at the same time.

    Args:
        targets: stages.
        single: these alone (``-s``), not what they need.
        pull: take from the DVC remote what another machine has made.
    """
    options = ["--single-item"] if single else ["--keep-going"]
    if pull:
        options += ["--pull", "--allow-missing"]
    return [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *options, *targets]


@dataclass(frozen=True)
class Plan:
    """The rows of a sweep and what of them remains."""

    params: Params
    rows: tuple[Row, ...]
    verify: bool
    """Whether the weights that the sources released are evaluated too, where there are any."""
    changed: frozenset[str]
    """Stages that DVC would run."""
    busy: frozenset[str] = frozenset()
    """Those of them that some ``dvc`` is at now."""
    elsewhere: frozenset[str] = frozenset()
    """Those of them that have been run, and whose files are just not here (``dvc pull`` brings them)."""

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """Data sets of the rows."""
        return tuple(dict.fromkeys(row.dataset for row in self.rows))

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """ImageNet weights of the rows."""
        return tuple(dict.fromkeys(row.weights for row in self.rows))

    @cached_property
    def tables(self) -> tuple[str, ...]:
        """Tables that show the rows."""
        return tuple(dict.fromkeys(row.table for row in self.rows))

    @cached_property
    def experiments(self) -> tuple[str, ...]:
        """MLflow's experiments, one for each table (:mod:`danet.results.tracking`)."""
        return tuple(f"danet / {self.params.tables[table].title}" for table in self.tables)

    @cached_property
    def verified(self) -> tuple[Row, ...]:
        """The rows whose released weights are evaluated."""
        return tuple(row for row in self.rows if self.verify and row.name in self.params.released)

    def shared(self) -> list[str]:
        """Stages that several rows need, which come first: those that are not done."""
        stages = [f"{stage}@{name}" for name in self.datasets for stage in ("download", "convert")]
        return [stage for stage in (*stages, *(f"weights@{name}" for name in self.weights)) if stage in self.changed]

    def chains(self, row: Row) -> list[list[str]]:
        """A row's stages that are not done, as lists whose later stages need the earlier ones."""
        inputs = {f"download@{row.dataset}", f"convert@{row.dataset}"}
        found = []
        train, evaluate = f"train@{row.name}", f"evaluate@{row.name}"
        if self.changed & (inputs | {f"weights@{row.weights}", train}):
            found.append([train, evaluate])
        elif evaluate in self.changed:
            found.append([evaluate])
        released, verify = f"released@{row.name}", f"verify@{row.name}"
        if row in self.verified and self.changed & (inputs | {released, verify}):
            found.append([released, verify])
        return found

    def remaining(self) -> list[Row]:
        """Rows with something to do."""
        return [row for row in self.rows if self.chains(row)]


def choose_rows(params: Params, tables: Sequence[str] = (), rows: Sequence[str] = ()) -> tuple[Row, ...]:
    """Rows by table and by name (names may be joined by commas), each once; all if neither is given.

    Raises:
        ConfigError: for an unknown name, with the closest ones.
    """
    names = [name for given in rows for name in given.split(",") if name]
    chosen = {row.name: row for table in tables for row in params.table_rows(table)}
    chosen |= {row.name: row for row in map(params.row, names)}
    if not tables and not names:
        chosen = dict(params.rows)
    if not chosen:
        raise ConfigError(f"{params.path}: no row is chosen; `danet rows` lists them")
    return tuple(chosen.values())


def make_plan(workspace: Workspace, rows: Sequence[Row], *, verify: bool = False, pull: bool = False) -> Plan:
    """Asks DVC once about all stages of the rows; with ``pull``, what was run elsewhere is not left to do.

    Raises:
        DanetError: in DVC's words, if it cannot say.
    """
    params = workspace.params()
    plan = Plan(params, tuple(rows), verify, frozenset())
    targets = [f"{stage}@{name}" for name in plan.datasets for stage in ("download", "convert")]
    targets += [f"weights@{name}" for name in plan.weights]
    targets += [f"{stage}@{row.name}" for row in plan.rows for stage in ("train", "evaluate")]
    targets += [f"{stage}@{row.name}" for row in plan.verified for stage in ("released", "verify")]
    changed, busy, elsewhere = survey_stages(workspace, targets)
    return replace(plan, changed=(changed | busy) - (elsewhere if pull else set()), busy=busy, elsewhere=elsewhere)


def survey_stages(workspace: Workspace, names: Sequence[str]) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """One look at some stages, whatever their number: ``dvc status``, which itself refuses when a single one is busy.

    Returns:
        Those that DVC would run, those it cannot judge as another ``dvc`` is at their files now, and those of the first
        that it would not run if missing files were allowed.

    Raises:
        DanetError: in DVC's words, if it cannot say; also for a stage that is not in ``dvc.yaml``.
    """
    changed, busy, elsewhere = set(), set(), set()
    try:
        for note in free_stale_locks(workspace.root):
            console.print(note, markup=False)
        with Repo(str(workspace.root.resolve()), _wait_for_lock=True) as repo, lock_repo(repo):
            stages = {stage.name: stage for stage in repo.index.stages if stage.path_in_repo == "dvc.yaml"}
            for name in names:
                try:
                    if stages[name].status():
                        changed.add(name)
                        ran = all(out.hash_info for out in stages[name].outs)
                        if ran and not stages[name].changed(allow_missing=True):
                            elsewhere.add(name)
                except LockError:
                    busy.add(name)
    except (DvcException, KeyError) as error:
        raise DanetError(f"{workspace.root.resolve()}: DVC cannot tell what is done: {error}") from error
    return frozenset(changed), frozenset(busy), frozenset(elsewhere)


def check_divisible(rows: Sequence[Row], processes: int) -> None:
    """Refuses rows whose batch cannot be shared out evenly.

    Raises:
        ConfigError: naming them all, before anything is started.
    """
    bad = [f"{row.name} ({row.schedule.batch_size})" for row in rows if row.schedule.batch_size % processes]
    if bad:
        raise ConfigError(
            f"schedule.batch_size does not divide over {processes} processes: {', '.join(bad)}; "
            "give a number of GPUs that divides it, or leave these rows to a sweep of their own"
        )
