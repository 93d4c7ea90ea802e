"""Markdown of the page of a table, and of the index over all tables.

A line for each row: what tells it from the others of its data set, then its numbers. The name is a link to its page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from danet.config.params import Params, Table
from danet.core.text import duration, number, signed
from danet.report.labels import in_common, label_head, short_labels
from danet.report.markdown import Grid, Page, escape
from danet.results.schema import Provenance, TableFile, TableRow
from danet.results.verdict import ALPHA, summarise

SECTIONS = {
    "miou": "mIoU, single scale",
    "miou_ms_flip": "mIoU, multi-scale and flipped",
    "aacc": "Pixel accuracy, single scale",
    "aacc_ms": "Pixel accuracy, multi-scale and flipped",
}
"""A section of the page for each published metric."""
CHOSEN = "†"
"""Marks the retrained numbers of rows whose source chose its checkpoint on val."""
CHOSEN_NOTE = (
    f"{CHOSEN} The source kept the epoch with the best (pixAcc + mIoU) / 2 on centre crops of the validation images, "
    "so its checkpoint was probably chosen on the images it is tested on, which biases the published number upwards. "
    "Difference and verdict are of the *last iteration*, which nothing was chosen by; *best on val* is of the epoch "
    "chosen as the source did, in the same training."
)
SHORT_STATUS = {"not run": "not run", "stale": "stale: run again", "left out": "left out (below)"}
SPEED_NOTE = (
    "Memory is that of training, per GPU (on a CPU: of the process), in brackets the images on it at each step{held}. "
    "*fps*, as published: one image at a time, its windows and mirror images one by one, 5 images skipped and 200 "
    "timed; network, resize, argmax and copy to the host, in the row's precision (mmsegmentation: fp32). *fps, "
    "batched*: the same with windows and mirror images batched; a dash where there are none, and on CPUs. Neither can "
    "be compared across hardware: `python -m benchmarks.speed time ROW` times mmsegmentation, our explicit map and our "
    "fastest path on one machine."
)
HELD = "; the published one is that of an explicit attention map, which ours never holds"


def table_page(record: TableFile, params: Params, figures: Sequence[tuple[str, str]]) -> str:
    """The page of a table; ``figures`` are ``(caption, path relative to the page)``."""
    name, table = record.table, params.tables[record.table]
    whole = _Table(record, params)
    page = Page(f"Made by `dvc repro -s report@{name}` from reports/metrics/{name}; do not edit.", table.banner)
    page.heading(1, f"{table.title}: published and retrained" if table.published else table.title)
    page.text(table.intro + (f" Source: <{table.source_url}>." if table.source_url else ""))
    done = sum(row.status == "measured" for row in record.rows)
    gap = "; difference = retrained - published, in points" if table.published else ""
    page.text(
        f"**{done} of {len(record.rows)} rows measured.** All accuracies in percent{gap}. A row's name leads to its "
        "settings, IoU by class and the command that makes it."
    )
    if table.published:
        for metric, title in SECTIONS.items():
            whole.grids(page, title, lambda rows, metric=metric: whole.accuracies(rows, metric))  # type: ignore[misc]
        page.text(_first_edition(record.rows, whole))
    else:
        whole.grids(page, "Results", whole.results)
    whole.grids(page, "Memory and speed", whole.costs)
    if figures:
        page.heading(2, "Figures")
        for caption, path in figures:
            page.figure(caption, path)
    page.heading(2, "Notes")
    page.bullets(_notes(table, record, whole))
    if record.left_out:
        page.heading(2, "Left out")
        page.text("These files, or parts of files, were not used, and no number above rests on them.")
        page.bullets(f"`{item.file}`: {item.reason}" for item in record.left_out)
    environments: dict[str, str] = {}
    whole.grids(page, "Provenance", lambda rows: whole.provenance(rows, environments))
    page.bullets(f"**{place}**: {text}" for text, place in environments.items())
    page.text(f"The same table as data: [{name}.csv](tables/{name}.csv), [{name}.json](tables/{name}.json).")
    return page.end()


class _Table:
    """The lines of a table, by data set."""

    def __init__(self, record: TableFile, params: Params) -> None:
        self.rows = [params.row(row.row) for row in record.rows]
        self.numerics = {row.name: row.profile for row in self.rows}
        self.record = record
        self.by_dataset: dict[str, list[TableRow]] = {}
        self.labels: dict[str, str] = {}
        self.titles: dict[str, str] = {}
        """By data set, with what its rows have in common."""
        self._heads: dict[str, str] = {}
        self._datasets: dict[str, str] = {}
        for row in record.rows:
            self._datasets[row.row] = params.datasets[row.dataset].title
            self.by_dataset.setdefault(self._datasets[row.row], []).append(row)
        for title, lines in self.by_dataset.items():
            mine = [params.row(line.row) for line in lines]
            self.labels |= short_labels(mine)
            self._heads |= dict.fromkeys((line.row for line in lines), label_head(mine))
            self.titles[title] = ", ".join([f"**{title}**", *(part for part in in_common(mine) if part != "DANet")])
        protocols = list(dict.fromkeys(row.protocol for row in self.rows))
        letters = dict(zip(protocols, "abcdefghijklmnop" if len(protocols) > 1 else [""], strict=False))
        self.protocols = {protocol: f"<sup>{letter}</sup> " if letter else "" for protocol, letter in letters.items()}
        self._marks = {row.name: letters[row.protocol] for row in self.rows}

    def link(self, name: str, mark: bool = False, dataset: bool = False) -> str:
        """To the row's page; with the letter of its protocol, or with its data set where the table has several."""
        letter = f" <sup>{self._marks[name]}</sup>" if mark and self._marks[name] else ""
        title = f"{self._datasets[name]} " if dataset and len(self.by_dataset) > 1 else ""
        return f"[{title}{self.labels[name]}]({self.record.table}/{name}.md){letter}"

    def grids(self, page: Page, section: str, grid: Callable[[Sequence[TableRow]], Grid]) -> None:
        """A section with a grid for each data set that has lines for it."""
        found = {title: grid(rows) for title, rows in zip(self.titles.values(), self.by_dataset.values(), strict=True)}
        found = {title: each for title, each in found.items() if each[1]}
        if found:
            page.heading(2, section)
        for title, each in found.items():
            page.text(title)
            page.table(each)

    def head(self, rows: Sequence[TableRow]) -> str:
        """Of the column with the links."""
        return self._heads[rows[0].row] if rows else ""

    def accuracies(self, rows: Sequence[TableRow], metric: str) -> Grid:
        """Published and retrained."""
        if metric != "miou":
            rows = [row for row in rows if getattr(row.published, metric) is not None or
                    (metric == "miou_ms_flip" and row.measured and row.measured.miou_ms_flip)]  # fmt: skip
        best = any(row.best_on_val is not None for row in rows)
        lines = []
        for row in rows:
            lines.append([
                self.link(row.row, mark=metric.startswith("miou")), given(row, metric), retrained(row, metric),
                *([number((row.best_on_val or {}).get(metric))] if best else []), signed(row.difference[metric]),
                row.verdict.get(metric) or "-", released(row, metric),
            ])  # fmt: skip
        head = [self.head(rows), "Published", "Retrained", *(["Best on val"] if best else []), "Difference", "Verdict"]
        return [*head, "Released"], lines, "l" + "r" * (len(head) - 2) + "ll"

    def results(self, rows: Sequence[TableRow]) -> Grid:
        """Of a table without published numbers, beside the best constant prediction."""
        verified = any(row.released for row in rows)
        lines = []
        for row in rows:
            made, others = row.measured, ["-"] * 4
            if made:
                others = [number(made.baseline_miou), signed(made.miou - made.baseline_miou), number(made.aacc)]
                others.append(number(made.macc))
            line = [self.link(row.row, mark=True), retrained(row, "miou"), *others]
            lines.append(line + ([released(row, "miou")] if verified else []))
        head = [
            self.head(rows),
            "mIoU",
            "Best constant",
            "Above it",
            "aAcc",
            "mAcc",
            *(["Released"] if verified else []),
        ]
        return head, lines, "l" + "r" * (len(head) - 1)

    def costs(self, rows: Sequence[TableRow]) -> Grid:
        """Memory, frames per second and time, of what is published or measured."""
        beside = self.record.has_published
        lines = []
        for row in rows:
            against, made = row.published, row.measured
            if made is None and against.memory_gb is None and against.fps is None:
                continue
            line = [self.link(row.row)]
            line += [_memory(against), number(against.fps), against.device or "-"] if beside else []
            if made is None:
                line += [SHORT_STATUS[row.status], *["-"] * 5]
            else:
                line += [_memory(made), number(made.fps), number(made.fps_batched)]
                line += [duration(3600 * made.hours) if made.hours is not None else "-", self.numerics[row.row]]
                line += ["; ".join(dict.fromkeys(name for name in (made.device, made.fps_device) if name)) or "-"]
            lines.append(line)
        published = ["Published: GB", "fps", "on"] if beside else []
        head = [self.head(rows), *published, "Here: GiB", "fps", "fps, batched", "trained in", "numerics", "on"]
        return head, lines, "l" + "rrl" * beside + "rrrrll"

    def provenance(self, rows: Sequence[TableRow], environments: dict[str, str]) -> Grid:
        """A line per row and seed; fills the environments that the lines name by number."""
        lines = []
        for row in rows:
            for seed in dict.fromkeys(each.seed for each in row.provenance):
                stages = {each.stage: each.provenance for each in row.provenance if each.seed == seed}
                used = dict.fromkeys(
                    environments.setdefault(environment(facts), str(len(environments) + 1)) for facts in stages.values()
                )
                trained, evaluated = (when(stages[name]) if name in stages else "-" for name in ("train", "evaluate"))
                lines.append([self.link(row.row), str(seed), trained, evaluated, ", ".join(used)])
        return [self.head(rows), "Seed", "Trained", "Evaluated", "On"], lines, "lrlll"


def given(row: TableRow, metric: str) -> str:
    """The cell of a published number; with the spread of the source's seeds, where it gives them."""
    found = summarise(row.published.seeds or ()) if metric == "miou" else None
    if found is None or found.sd is None:
        return number(getattr(row.published, metric, None))
    return f"{found.mean:.2f} ± {found.sd:.2f} ({found.n})"


def retrained(record: TableRow, metric: str) -> str:
    """The cell of a number measured here: ``79.75 ± 0.15 (3)``, with a mark where the source chose on val."""
    chosen = f" {CHOSEN}" if record.best_on_val is not None and metric in record.best_on_val else ""
    if record.measured is None:
        return SHORT_STATUS[record.status] + chosen
    spread = record.spread.get(metric)
    if spread is None:
        return "not run" if getattr(record.published, metric, None) is not None else "-"
    mean, planned = sum(spread.values) / spread.n, len(record.seeds)
    count = f" ({spread.n} of {planned})" if spread.n < planned else f" ({spread.n})" if planned > 1 else ""
    return f"{mean:.2f}" + (f" ± {spread.sd:.2f}" if spread.sd is not None else "") + count + chosen


def released(record: TableRow, metric: str) -> str:
    """The cell of the released weights: ``80.52, agrees``; a dash where the source released none."""
    if record.released is None:
        return "-"
    if record.released.status != "measured":
        return SHORT_STATUS[record.released.status]
    text = record.released.agreement.get(metric)
    return number(getattr(record.released, metric)) + (f", {text}" if text else "")


def when(facts: Provenance) -> str:
    """Commit and date of a stage."""
    commit = f"`{facts.known_commit[:8]}`" if facts.known_commit else "commit unknown"
    return f"{commit}{' + changes' if facts.dirty else ''}, {(facts.date or 'undated')[:10]}"


_VERSIONS = {
    "driver": "driver", "cuda": "CUDA", "cudnn": "cuDNN", "torch": "torch", "torchvision": "torchvision",
    "python": "Python", "os": "",
}  # fmt: skip


def environment(facts: Provenance) -> str:
    """Hardware, versions and precision."""
    count = facts.gpus or 0
    hardware = facts.gpu or f"CPU, {facts.cpu_cores} cores: {facts.cpu}"
    parts = [f"{count} x {hardware}" if count > 1 else hardware]
    parts += [f"{label} {value}" for key, label in _VERSIONS.items() if (value := getattr(facts, key))]
    return escape(", ".join([*parts, str(facts.precision)]))


def index_page(params: Params, records: Mapping[str, TableFile], costs: str | None = None) -> str:
    """The index: one line per table, and the figure ``costs`` (path relative to the page) of all of them."""
    banners = dict.fromkeys(table.banner for table in params.tables.values() if table.banner)
    page = Page("Made by the report stage; do not edit.", " ".join(banners))
    page.heading(1, "Results")
    page.text("One page per source. mIoU in percent; *difference* is measured minus published, in points.")
    lines = []
    for name, record in records.items():
        measured = [row for row in record.rows if row.status == "measured"]
        stale = sum(row.status in {"stale", "left out"} for row in record.rows)
        datasets = ", ".join(dict.fromkeys(params.datasets[row.dataset].title for row in record.rows))
        state = f"{len(measured)} of {len(record.rows)}" + (f", {stale} left out" if stale else "")
        data = f"[csv](tables/{name}.csv), [json](tables/{name}.json)"
        lines.append([f"[{escape(record.title)}]({name}.md)", state, _in_short(record, measured), datasets, data])
    page.table((["Table", "Measured", "mIoU in short", "Data sets", "As data"], lines, "lllll"))
    if costs:
        page.figure("mIoU of every measured row against the cost of one training, by data set and hardware", costs)
    else:
        page.text("No row measured yet: mIoU against cost will be shown here.")
    page.text("The tables are made of the metrics files in `metrics/`.")
    return page.end()


def _in_short(record: TableFile, measured: Sequence[TableRow]) -> str:
    if not measured:
        return "not run"
    if record.has_published:
        verdicts = [str(row.verdict["miou"]).partition(":")[0] for row in measured if row.verdict["miou"]]
        counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
        return ", ".join(counts) or "nothing published to compare with"
    mious = [row.measured.miou for row in measured if row.measured]
    return f"mIoU {min(mious):.2f} to {max(mious):.2f}" if len(mious) > 1 else f"mIoU {mious[0]:.2f}"


def _memory(numbers: object) -> str:
    """``7.4 (2)``: gigabytes, and the images on a GPU that took them."""
    memory, images = getattr(numbers, "memory_gb", None), getattr(numbers, "images_per_gpu", None)
    return number(memory, 1) + (f" ({images})" if images is not None and memory is not None else "")


def _first_edition(rows: Sequence[TableRow], whole: _Table) -> str:
    """Which numbers the source's first edition had, and what they are today."""
    early = [(row, row.published.first_edition.miou) for row in rows if row.published.first_edition is not None]
    known = []
    for row, was in early:
        if was is not None:
            now = "the same" if was == row.published.miou else number(row.published.miou)
            known.append(f"{whole.link(row.row, dataset=True)} {was:.2f} ({now} now)")
    if not early:
        return ""
    return f"The source's first edition listed {len(early)} of these rows and filled {len(known)}: {', '.join(known)}."


def _notes(table: Table, record: TableFile, whole: _Table) -> list[str]:
    notes = list(table.notes)
    notes += [f"{mark}Protocol: {protocol}." for protocol, mark in whole.protocols.items()]
    notes += [f"{whole.link(row.name, dataset=True)}: {note}" for row in whole.rows for note in row.notes]
    if any(row.best_on_val is not None for row in record.rows):
        notes.append(CHOSEN_NOTE)
    if table.published:
        bands = sorted({f"{row.band:g}" for row in record.rows})
        seeds = any(row.published.seeds for row in record.rows)
        if found := next((row.released for row in record.rows if row.released), None):
            notes.append(
                "*Released*: the source's own checkpoint, evaluated here by the row's protocol; it *agrees* "
                f"within ± {found.band:g} points of the published number."
            )
        notes.append(
            "Verdict: *reproduced* where an equivalence test (TOST) shows that the mean of the seeds is within "
            f"± {' or '.join(bands)} points of the published number, *lower* or *higher* where a t-test shows that it "
            f"is outside, else *undecided*; at most {ALPHA:.0%} of such verdicts are false. "
            + ("Here both are means of seeds, and the tests are Welch's. " if seeds else "")
            + "One seed has no spread: it is *consistent* (inside the band) or *inconsistent*, which shows nothing. "
            "Method, bands and error rates: `docs/verdicts.md`."
        )
    else:
        notes.append(
            "*Best constant* is the highest mIoU that any single class predicted everywhere reaches on this split."
        )
    notes.append("Several seeds: mean ± standard deviation (n, or n of those planned).")
    notes.append(SPEED_NOTE.format(held=HELD if table.published else ""))
    notes.append("A dash: the source gives no number, or it does not apply.")
    return notes
