"""Markdown of the page of a table, and of the index over all tables.

A line for each row: what tells it from the others of its data set, then its numbers. The name is a link to its page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from danet.config.params import Params, Table
from danet.config.row import Row
from danet.core.text import duration, number, signed
from danet.report.labels import in_common, label_head, short_labels, unbroken
from danet.report.markdown import Grid, Page, escape
from danet.results.measured import Measurement, hardware
from danet.results.schema import Accuracy
from danet.results.verdict import ALPHA, summarise

SECTIONS = {
    "miou": "mIoU, single scale",
    "miou_ms_flip": "mIoU, multi-scale and flipped",
    "aacc": "Pixel accuracy, single scale",
    "aacc_ms": "Pixel accuracy, multi-scale and flipped",
}
"""A section of the page for each published accuracy."""
CHOSEN = "†"
"""Marks the retrained numbers of rows whose source chose its checkpoint on val."""
CHOSEN_NOTE = (
    f"{CHOSEN} The source kept the epoch with the best (pixAcc + mIoU) / 2 on centre crops of the validation images, "
    "so its checkpoint was probably chosen on the images it is tested on, which biases the published number upwards. "
    "Difference and verdict are of the *last iteration*, which nothing was chosen by; *best on val* is of the epoch "
    "chosen as the source did, in the same training."
)
SHORT_STATUS = {"not run": "not run", "left out": "left out (below)"}
SPEED_NOTE = (
    "Memory is that of training, per GPU (on a CPU: of the process), in brackets the images on it at each step{held}. "
    "*fps*, as published: one image at a time, its windows and mirror images one by one, 5 images skipped and 200 "
    "timed; network, resize, argmax and copy to the host, in the row's precision (mmsegmentation: fp32). It cannot be "
    "compared across hardware: `python -m benchmarks.speed time ROW` times mmsegmentation, our explicit map and our "
    "fastest path on one machine."
)
HELD = "; the published one is that of an explicit attention map, which ours never holds"


def table_page(name: str, params: Params, items: Sequence[Measurement], figures: Sequence[tuple[str, str]]) -> str:
    """The page of a table; ``figures`` are ``(caption, path relative to the page)``."""
    table = params.tables[name]
    whole = _Table(name, items, params)
    page = Page(f"Made by `dvc repro -s report@{name}` from reports/metrics/{name}; do not edit.", table.banner)
    page.heading(1, f"{table.title}: published and retrained" if table.published else table.title)
    page.text(table.intro + (f" Source: <{table.source_url}>." if table.source_url else ""))
    gap = "; difference = retrained - published, in points" if table.published else ""
    page.text(
        f"**{sum(item.measured for item in items)} of {len(items)} rows measured.** All accuracies in percent{gap}. A "
        "row's name leads to its settings, IoU by class, provenance and the command that makes it."
    )
    if table.published:
        for metric, title in SECTIONS.items():
            whole.grids(page, title, lambda rows, metric=metric: whole.accuracies(rows, metric))  # type: ignore[misc]
        page.text(_first_edition(items, whole))
    else:
        whole.grids(page, "Results", whole.results)
    whole.grids(page, "Memory and speed", lambda rows: whole.costs(rows, published=table.published))
    if figures:
        page.heading(2, "Figures")
        for caption, path in figures:
            page.figure(caption, path)
    page.heading(2, "Notes")
    page.bullets(_notes(table, params, items, whole))
    if problems := [problem for item in items for problem in item.problems]:
        page.heading(2, "Left out")
        page.text("These files, or parts of files, were not used, and no number above rests on them.")
        page.bullets(f"`{problem.file}`: {problem.reason}" for problem in problems)
    page.text(f"The same table as data: [{name}.csv](tables/{name}.csv), [{name}.json](tables/{name}.json).")
    return page.end()


class _Table:
    """The lines of a table, by data set."""

    def __init__(self, name: str, items: Sequence[Measurement], params: Params) -> None:
        self._name = name
        self._datasets = {item.name: params.datasets[item.row.dataset].title for item in items}
        self._groups: dict[str, list[Measurement]] = {}
        for item in items:
            self._groups.setdefault(self._datasets[item.name], []).append(item)
        self._labels = {k: v for group in self._groups.values() for k, v in short_labels(_rows(group)).items()}
        protocols = list(dict.fromkeys(item.row.protocol for item in items))
        letters = dict(zip(protocols, "abcdefghijklmnop" if len(protocols) > 1 else [""], strict=False))
        self._marks = {item.name: letters[item.row.protocol] for item in items}
        self.protocols = {protocol: f"<sup>{letter}</sup> " if letter else "" for protocol, letter in letters.items()}

    def link(self, name: str, mark: bool = False, dataset: bool = False) -> str:
        """To the row's page; with the letter of its protocol, or with its data set where the table has several."""
        letter = f"&nbsp;<sup>{self._marks[name]}</sup>" if mark and self._marks[name] else ""
        title = f"{self._datasets[name]} " if dataset and len(self._groups) > 1 else ""
        return f"[{title}{unbroken(self._labels[name])}]({self._name}/{name}.md){letter}"

    def grids(self, page: Page, section: str, grid: Callable[[Sequence[Measurement]], Grid]) -> None:
        """A section with a grid for each data set that has lines for it; the first column is of links."""
        found = {title: grid(group) for title, group in self._groups.items()}
        found = {title: each for title, each in found.items() if each[1]}
        if found:
            page.heading(2, section)
        for title, (head, lines, align) in found.items():
            rows = _rows(self._groups[title])
            page.text(", ".join([f"**{title}**", *(part for part in in_common(rows) if part != "DANet")]))
            page.table(([label_head(rows), *head], lines, "l" + align))

    def accuracies(self, rows: Sequence[Measurement], metric: str) -> Grid:
        """Published and retrained."""
        if metric != "miou":
            rows = [row for row in rows if (found := row.accuracies.get(metric))
                    and (found.published is not None or metric == "miou_ms_flip")]  # fmt: skip
        best = any(row.row.checkpoint == "best-on-val" for row in rows)
        lines = []
        for row in rows:
            found = row.accuracy(metric)
            lines.append([
                self.link(row.name, mark=metric.startswith("miou")), given(row, metric), retrained(row, metric),
                *([number(row.best_on_val.get(metric))] if best else []),
                signed(found.difference), found.verdict or "-", released(row, metric),
            ])  # fmt: skip
        head = ["Published", "Retrained", *(["Best on val"] if best else []), "Difference", "Verdict", "Released"]
        return head, lines, "r" * (len(head) - 2) + "ll"

    def results(self, rows: Sequence[Measurement]) -> Grid:
        """Of a table without published numbers, beside the best constant prediction."""
        verified = any(row.released for row in rows)
        lines = []
        for row in rows:
            line = [self.link(row.name, mark=True), retrained(row, "miou")]
            if row.measured:
                constant = row.baseline[0]
                line += [number(constant), signed((row.mean("miou") or 0.0) - constant)]
                line += [number(row.mean("aacc")), number(row.mean("macc"))]
            else:
                line += ["-"] * 4
            lines.append(line + ([released(row, "miou")] if verified else []))
        head = ["mIoU", "Best constant", "Above it", "aAcc", "mAcc", *(["Released"] if verified else [])]
        return head, lines, "r" * len(head)

    def costs(self, rows: Sequence[Measurement], *, published: bool) -> Grid:
        """Memory, frames per second and time, of what is published or measured."""
        lines = []
        for row in rows:
            source, cost = row.published, row.costs
            if not row.measured and source.memory_gb is None and source.fps is None:
                continue
            line = [self.link(row.name)]
            if published:
                line += [_memory(source.memory_gb, source.images_per_gpu), number(source.fps), source.device or "-"]
            if row.measured:
                gpus = row.trained[0].devices if row.trained else 1
                line.append(_memory(cost.get("peak_memory_gib"), row.row.schedule.batch_size // gpus))
                line += [number(cost.get("fps")), duration(3600 * cost["hours"]) if "hours" in cost else "-"]
                line += [row.row.profile, hardware([*row.trained, *row.runs]) or "-"]
            else:
                line += [SHORT_STATUS[row.status], *["-"] * 4]
            lines.append(line)
        head = ["Published: GB", "fps", "on"] if published else []
        head += ["Here: GiB", "fps", "trained in", "numerics", "on"]
        return head, lines, "rrl" * published + "rrrll"


def _rows(items: Sequence[Measurement]) -> list[Row]:
    return [item.row for item in items]


def given(item: Measurement, metric: str) -> str:
    """The cell of a published number; with the spread of the source's seeds, where it gives them."""
    found = summarise(item.published.seeds or ()) if metric == "miou" else None
    if found is None or found.sd is None:
        return number(getattr(item.published, metric, None))
    return f"{spread(found.mean, found.sd)} ({found.n})"


def spread(mean: float | None, sd: float | None) -> str:
    """``79.75 ± 0.15``, on one line."""
    return number(mean) + ("" if sd is None else f"&nbsp;±&nbsp;{number(sd)}")


def retrained(item: Measurement, metric: str) -> str:
    """The cell of a number measured here: ``79.75 ± 0.15 (3)``, with a mark where the source chose on val."""
    chosen = f" {CHOSEN}" if item.row.checkpoint == "best-on-val" else ""
    if not item.measured:
        return SHORT_STATUS[item.status] + chosen
    found = item.accuracy(metric)
    if found.mean is None:
        return "-" if found.published is None else "not run"
    n, planned = len(found.values), len(item.row.seeds)
    count = f" ({n} of {planned})" if n < planned else f" ({n})" if planned > 1 else ""
    return spread(found.mean, found.sd) + count + chosen


def released(item: Measurement, metric: str) -> str:
    """The cell of the released weights: ``80.52, agrees``; a dash where the source released none."""
    if item.released is None:
        return "-"
    if item.released.status != "measured":
        return SHORT_STATUS[item.released.status]
    found = item.released.accuracies.get(metric, Accuracy())
    return number(found.mean) + (f", {found.verdict}" if found.verdict else "")


def index_page(params: Params, tables: Mapping[str, Sequence[Measurement]], costs: str) -> str:
    """The index: one line per table, and the figure ``costs`` (path relative to the page) of all of them."""
    banners = dict.fromkeys(table.banner for table in params.tables.values() if table.banner)
    page = Page("Made by the report stage; do not edit.", " ".join(banners))
    page.heading(1, "Results")
    page.text("One page per source. mIoU in percent; *difference* is measured minus published, in points.")
    lines = []
    for name, items in tables.items():
        left_out = sum(item.status == "left out" for item in items)
        datasets = ", ".join(dict.fromkeys(params.datasets[item.row.dataset].title for item in items))
        state = f"{sum(item.measured for item in items)} of {len(items)}" + (
            f", {left_out} left out" if left_out else ""
        )
        data = f"[csv](tables/{name}.csv), [json](tables/{name}.json)"
        short = _in_short([item for item in items if item.measured], params.tables[name].published)
        lines.append([f"[{escape(params.tables[name].title)}]({name}.md)", state, short, datasets, data])
    page.table((["Table", "Measured", "mIoU in short", "Data sets", "As data"], lines, "lllll"))
    page.figure(
        "mIoU of every measured row against the cost of one training, by data set and hardware; open: ResNet-50, "
        "small: output stride 16, bars: 95 % interval of the mean over seeds",
        costs,
    )
    page.text("The tables are made of the metrics files in `metrics/`.")
    return page.end()


def _in_short(measured: Sequence[Measurement], published: bool) -> str:
    if not measured:
        return "not run"
    if published:
        found = [item.accuracies["miou"].verdict for item in measured]
        verdicts = [verdict.partition(":")[0] for verdict in found if verdict]
        counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
        return ", ".join(counts) or "nothing published to compare with"
    mious = [item.mean("miou") or 0.0 for item in measured]
    return f"mIoU {min(mious):.2f} to {max(mious):.2f}" if len(mious) > 1 else f"mIoU {mious[0]:.2f}"


def _memory(amount: float | None, images: int | None) -> str:
    """``7.4 (2)``: gigabytes, and the images on a GPU that took them."""
    return number(amount, 1) + (f" ({images})" if images is not None and amount is not None else "")


def _first_edition(items: Sequence[Measurement], whole: _Table) -> str:
    """Which numbers the source's first edition had, and what they are today."""
    early = [(item, edition.miou) for item in items if (edition := item.published.first_edition) is not None]
    known = []
    for item, was in early:
        if was is not None:
            now = "the same" if was == item.published.miou else number(item.published.miou)
            known.append(f"{whole.link(item.name, dataset=True)} {was:.2f} ({now} now)")
    if not early:
        return ""
    return f"The source's first edition listed {len(early)} of these rows and filled {len(known)}: {', '.join(known)}."


def _notes(table: Table, params: Params, items: Sequence[Measurement], whole: _Table) -> list[str]:
    notes = list(table.notes)
    notes += [f"{mark}Protocol: {protocol}." for protocol, mark in whole.protocols.items()]
    notes += [f"{whole.link(item.name, dataset=True)}: {note}" for item in items for note in item.row.notes]
    if any(item.row.checkpoint == "best-on-val" for item in items):
        notes.append(CHOSEN_NOTE)
    if table.published:
        bands = sorted({f"{params.bands.of(item.row.dataset):g}" for item in items})
        seeds = any(item.published.seeds for item in items)
        if any(item.released for item in items):
            notes.append(
                "*Released*: the source's own checkpoint, evaluated here by the row's protocol; it *agrees* "
                f"within ± {params.bands.released:g} points of the published number."
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
