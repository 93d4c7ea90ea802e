"""``params.yaml`` and the files beside it, validated, with every row resolved to the complete :class:`Row`.

``params.yaml`` holds ``rows`` (what one line of a table adds), ``tables`` and ``released`` weights; ``recipes/`` holds
what each source does everywhere and per dataset; ``datasets.yaml`` and ``numerics.yaml`` hold what their names say.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from danet.config.row import Name, Numerics, Positive, Row, RowRevisions, Runtime, Strict
from danet.config.yaml import BESIDE, RECIPES, read_raw
from danet.core.errors import ConfigError
from danet.core.text import explain

PROTOCOL = ("table", "recipe", "settings", "dataset")
"""Fields of a row that ``dvc.yaml`` makes paths and parameters of, also for released weights and submissions."""


class Archive(Strict):
    """One file to download."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
    url: str | None = Field(default=None, pattern=r"^https?://")
    """Null where only a login or a local folder can provide it."""
    checksum: str | None = Field(default=None, pattern=r"^(md5|sha1|sha256):[0-9a-f]{32,64}$")
    package: int | None = None
    """Cityscapes: the number of the package behind the login."""


class Dataset(Strict):
    """Where a dataset comes from and how large it must be."""

    adapter: Name
    """A key of ``danet.data.registry.ADAPTERS``."""
    title: str = ""
    """For the reader, from ``titles`` in ``params.yaml``."""
    archives: tuple[Archive, ...]
    counts: dict[Name, Annotated[int, Field(gt=0)]]
    """Images per split; conversion stops when they differ."""
    storage: Literal["source", "raw"] = "source"
    """``source``: images as they came (small); ``raw``: decoded pixels (large; crops are read without decoding)."""


class Weights(Strict):
    """An ImageNet initialisation."""

    url: str | None = Field(pattern=r"^https?://")
    file: str | None = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
    checksum: str | None = Field(default=None, pattern=r"^(md5|sha1|sha256):[0-9a-f]{6,64}$")
    """``sha1:``/``sha256:`` and the digits known; a prefix is allowed where only that is published."""
    backbone: Literal["resnet50", "resnet101"] | None
    stem: Literal["7x7", "deep-32-32-64", "deep-64-64-128"] | None
    title: str


class Released(Strict):
    """Weights that a source released for a row."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
    """Name of the file, by default the last part of ``url``; a copy placed by hand is looked for under it."""
    url: str | None = Field(default=None, pattern=r"^https?://")
    """Null where it can only be placed by hand."""
    checksum: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{8,64}$")
    """The digits that are published, often only the first; null where none are."""
    command: str | None = None
    """What makes the file on this machine, where nobody serves it."""

    @model_validator(mode="before")
    @classmethod
    def _file_of_url(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "file" not in data and isinstance(data.get("url"), str):
            return {**data, "file": data["url"].rpartition("/")[2]}
        return data


class Settings(Strict):
    """What a source does, by the names of :class:`Row`. ``train`` and ``test`` are parameters of a stage each."""

    train: dict[str, Any]
    test: dict[str, Any]
    val_split: Name | None = None


class Recipe(Settings):
    """A file of ``recipes/``: what a source does everywhere, and its settings by data set laid over that."""

    source: Name
    protocol: str
    """One sentence for the reader of a table."""
    protocols: dict[str, str] = Field(default_factory=dict)
    """Of single settings, instead."""
    settings: dict[Name, Settings]

    @model_validator(mode="after")
    def _protocols_of_settings(self) -> Recipe:
        if strangers := sorted(set(self.protocols) - set(self.settings)):
            raise ValueError(f"protocols.{strangers[0]}: no such settings; allowed: {', '.join(self.settings)}")
        return self


class Table(Strict):
    """A results table of the report."""

    title: str
    source_url: str | None = None
    intro: str = ""
    notes: tuple[str, ...] = ()
    row_notes: dict[Name, tuple[str, ...]] = Field(default_factory=dict)
    """Footnotes of single rows; not with the rows, for text must never train them again."""
    published: bool = True
    """False where the source gives no numbers (demo, CamVid): the table then has no such columns."""
    banner: str = ""
    pictures: bool = False
    """Whether pages may show the dataset's images; most datasets must not be redistributed."""
    command: str = ""
    """What makes the table, where that is more than its stages; by default ``dvc repro evaluate@ROW`` makes a row."""


class Bands(Strict):
    """Points of mIoU within which a result counts as equal to the published one (``docs/verdicts.md`` says why)."""

    trained: Positive = 0.5
    """Of rows trained here, where their dataset has no band of its own."""
    released: Positive = 0.05
    """Of released weights, where only the arithmetic can differ."""
    datasets: dict[Name, Positive] = Field(default_factory=dict)
    """Of rows trained on these datasets."""

    def of(self, dataset: str) -> float:
        """The band of rows trained on a dataset."""
        return self.datasets.get(dataset, self.trained)


class Revisions(RowRevisions):
    """As :class:`RowRevisions`, with that of ``convert``; DVC runs a stage again when its revision changes."""

    convert: int = Field(gt=0)


class _Sections(Strict):
    """``params.yaml`` and the files beside it, as they are written."""

    revisions: Revisions
    bands: Bands = Bands()
    groups: Any = None
    """YAML anchors for rows that share a protocol."""
    recipes: dict[Name, Recipe] = Field(default_factory=dict)
    datasets: dict[Name, Dataset] = Field(default_factory=dict)
    weights: dict[Name, Weights] = Field(default_factory=dict)
    titles: dict[Name, str] = Field(default_factory=dict)
    """Of data sets; apart from these because text must never convert them again."""
    tables: dict[Name, Table] = Field(default_factory=dict)
    rows: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    released: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    submissions: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    numerics: str
    """The profile of every row that names no other."""
    profiles: dict[Name, Numerics]
    runtime: Runtime = Runtime()


T = TypeVar("T", bound=Strict)


class Params:
    """A validated ``params.yaml``."""

    def __init__(self, raw: Mapping[str, Any], path: Path) -> None:
        self.path = path
        self._raw = {name: section for name, section in raw.items() if section is not None}
        self._sections = sections = _validate(_Sections, self._raw, path)
        self.revisions, self.bands, self.recipes = sections.revisions, sections.bands, sections.recipes
        self.weights, self.tables, self.profiles = sections.weights, sections.tables, sections.profiles
        self.profile = self._one_of(f"{_file(path, 'numerics')}: numerics", sections.numerics, self.profiles)
        self.datasets = {
            key: dataset.model_copy(update={"title": sections.titles.get(key, key)})
            for key, dataset in sections.datasets.items()
        }
        self.rows = {key: self._resolve(key, entry) for key, entry in sections.rows.items()}
        self.released = {
            key: _validate(Released, self._beside_row("released", key, entry), path, f"released.{key}")
            for key, entry in sections.released.items()
        }
        for name, entry in sections.submissions.items():
            self._beside_row("submissions", name, entry)
        self.submissions = tuple(sections.submissions)

    def _resolve(self, name: str, row: Mapping[str, Any]) -> Row:
        """The whole row: its recipe, the recipe's settings and its own fields, laid over each other."""
        where = f"{self.path}: rows.{name}"
        recipe = self.recipes[self._one_of(f"{where}.recipe", row.get("recipe"), self.recipes)]
        file = _file(self.path, f"recipes.{row['recipe']}")
        settings = self._one_of(f"{where}.settings", row.get("settings"), recipe.settings, f"{file} has")
        data: dict[str, Any] = {"source": recipe.source, "protocol": recipe.protocols.get(settings, recipe.protocol)}
        for part in (recipe, recipe.settings[settings]):
            data = merge(data, part.train | {"test": part.test})
            data |= {"val_split": part.val_split} if part.val_split is not None else {}
        data = merge(data, {key: value for key, value in row.items() if key not in {"recipe", "settings"}})
        data["runtime"] = merge(self._raw.get("runtime", {}), data.get("runtime") or {})
        given = data.get("numerics") or {}
        if isinstance(given, str):
            data["profile"] = profile = self._one_of(f"{where}.numerics", given, self.profiles)
            data["numerics"] = self.profiles[profile].model_dump()
        else:
            data["profile"] = ", ".join([self.profile, *(f"{key} {value}" for key, value in given.items())])
            data["numerics"] = merge(self.profiles[self.profile].model_dump(), given)
        data |= {"name": name, "revisions": self.revisions.model_dump(include={"train", "evaluate"})}
        if "notes" in data:
            raise ConfigError(f"{where}.notes: belongs in tables.{data.get('table')}.row_notes.{name}")
        resolved = _validate(Row, data, self.path, f"rows.{name}")
        for field, known in (("dataset", self.datasets), ("weights", self.weights), ("table", self.tables)):
            self._one_of(f"{where}.{field}", getattr(resolved, field), known)
        for field in ("train_split", "val_split"):
            self._one_of(f"{where}.{field}", getattr(resolved, field), self.datasets[resolved.dataset].counts)
        return resolved.model_copy(update={"notes": self.tables[resolved.table].row_notes.get(name, ())})

    @staticmethod
    def _one_of(where: str, value: Any, known: Mapping[str, Any], allowed: str = "allowed") -> str:
        if value not in known:
            raise ConfigError(f"{where}: {value!r} is unknown; {allowed}: {', '.join(sorted(known))}")
        return str(value)

    def _beside_row(self, section: str, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """An entry of a section whose stages need a row's protocol, without that protocol (:data:`PROTOCOL`)."""
        where = f"{self.path}: {section}.{name}"
        if name not in self.rows:
            raise ConfigError(f"{where}: no such row; rename or remove the entry")
        row = self._sections.rows[name]
        if any(entry.get(field) != row.get(field) for field in PROTOCOL):
            wanted = ", ".join(f"{field}: {row.get(field)}" for field in PROTOCOL)
            raise ConfigError(f"{where}: must begin with its row's group (`<<: *NAME`), which has {wanted}")
        return {key: value for key, value in entry.items() if key not in PROTOCOL}

    def row(self, name: str) -> Row:
        """The row called ``name``.

        Raises:
            ConfigError: with the closest names, if there is none.
        """
        return self.rows[self._known("row", name, self.rows)]

    def dataset(self, name: str) -> Dataset:
        """The dataset called ``name``; raises ``ConfigError`` like :meth:`row`."""
        return self.datasets[self._known("dataset", name, self.datasets)]

    def imagenet(self, name: str) -> Weights:
        """The ImageNet weights called ``name``; raises ``ConfigError`` like :meth:`row`."""
        return self.weights[self._known("weights", name, self.weights)]

    def table_rows(self, table: str) -> list[Row]:
        """The rows of a table, in the order of ``params.yaml``."""
        self._known("table", table, self.tables)
        return [row for row in self.rows.values() if row.table == table]

    def published_rows(self) -> list[Row]:
        """The rows that a source published; not the rehearsal's, whose numbers are made here."""
        tables = {name for name, table in self.tables.items() if table.published and not table.command}
        return [row for row in self.rows.values() if row.table in tables]

    def _known(self, kind: str, name: str, known: Mapping[str, Any]) -> str:
        if name in known:
            return name
        demo = self.path.parent / "build" / "demo"
        if kind == "row" and name.startswith("demo-") and demo.is_dir():
            raise ConfigError(f"unknown row {name!r} ({self.path}); the demo's rows are in {demo}: add -C {demo}")
        nearest = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0))
        raise ConfigError(f"unknown {kind} {name!r} ({self.path}); did you mean {nearest}?")


def load_params(path: Path | str = "params.yaml") -> Params:
    """Reads and validates ``params.yaml``, with the recipes and the files beside it.

    Raises:
        ConfigError: naming the row, the field and the allowed values.
    """
    path = Path(path)
    return Params(read_raw(path), path)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid on it, mappings merged at every depth, anything else replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _validate(kind: type[T], data: Any, path: Path, where: str = "") -> T:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        text = explain(error, where)
        raise ConfigError(f"{_file(path, text.partition(': ')[0])}: {text}") from None


def _file(path: Path, where: str) -> Path:
    """The file at ``params.yaml`` or beside it that holds the place ``where``."""
    section, _, rest = where.partition(".")
    if section == "recipes" and rest:
        return path.parent / RECIPES / f"{rest.split('.')[0]}.yaml"
    return next((path.with_name(name) for name, sections in BESIDE.items() if section in sections), path)
