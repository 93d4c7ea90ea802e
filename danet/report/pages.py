"""Markdown of the report: a page per table, a page per row, and the index."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import yaml

from danet.config.params import Params, Table
from danet.config.published import Classes, Published
from danet.config.row import Row
from danet.core.text import fact, number, signed
from danet.report.figures import METHODS, backbone_text, short_schedule
from danet.results.measured import Measurement, fact_name
from danet.results.schema import MeasuredNumbers, Provenance, Stage, TableFile, TableRow
from danet.results.verdict import ALPHA, summarise

METRIC_NAMES = {
    "miou": "mIoU",
    "miou_ms_flip": "mIoU, ms+flip",
    "aacc": "aAcc",
    "aacc_ms": "aAcc, ms+flip",
    "macc": "mAcc",
}
CHOSEN = "†"
"""Marks the retrained numbers of rows whose source chose its checkpoint on val."""
CHOSEN_NOTE = (
    f"{CHOSEN} The source kept the epoch with the best (pixAcc + mIoU) / 2 on centre crops of the validation images, "
    "so its checkpoint was probably chosen on the images it is tested on, which biases the published number upwards. "
    "Difference and verdict are of the *last iteration*, which nothing was chosen by; *best on val* is of the epoch "
    "chosen as the source did, in the same training."
)
SHORT_STATUS = {"not run": "not run", "stale": "stale: run again", "left out": "left out (below)"}


def group_by_dataset(measurements: Sequence[Measurement], params: Params) -> dict[str, list[Measurement]]:
    """Measurements by the title of their dataset, both in the order of ``params.yaml``'s rows."""
    groups: dict[str, list[Measurement]] = {}
    for item in measurements:
        groups.setdefault(params.datasets[item.row.dataset].title, []).append(item)
    return groups


def table_page(
    record: TableFile, params: Params, measurements: Sequence[Measurement], figures: Sequence[tuple[str, str]]
) -> str:
    """The page of a table.

    Args:
        record: of :func:`danet.report.records.table_record`.
        params: for titles and notes.
        measurements: in the order of the record's rows.
        figures: ``(caption, path relative to the page)``.
    """
    name = record.table
    table = params.tables[name]
    records = record.by_name
    marks = _protocol_marks([item.row for item in measurements])
    groups = group_by_dataset(measurements, params)
    only_danet = all(item.row.model.method == "danet" for item in measurements)
    page = _Page()
    page.comment(f"Made by `dvc repro -s report@{name}` from reports/metrics/{name}; do not edit.")
    page.banner(table.banner)
    page.heading(1, f"{table.title}: published and retrained" if table.published else table.title)
    page.text(_intro(table))
    page.text(_count(record, measurements) + (" The method is DANet in every row." if only_danet else ""))
    for title, items in groups.items():
        if len(groups) > 1:
            page.text(f"**{title}**")
        page.table(*_without_method(*_main_table(name, items, records, marks, table.published), only_danet))
    if table.published:
        lines = _further_lines(name, measurements, records)
        if lines:
            page.heading(2, "Multi-scale testing and pixel accuracy")
            page.table(_FURTHER, lines, "llrrrrl")
    edition = _first_edition_lines(name, record.rows)
    if edition:
        page.heading(2, "The first edition of this table")
        filled = sum(line[1] != "-" for line in edition)
        page.text(f"The source's first edition listed the same {len(edition)} rows and filled {filled} of them.")
        page.table(["Row", "First edition", "Now"], edition, "lrr")
    cost = _cost_lines(name, measurements, records, table.published)
    if cost:
        page.heading(2, "Memory and speed")
        page.table(*cost)
    if figures:
        page.heading(2, "Figures")
        for caption, path in figures:
            page.figure(caption, path)
    page.heading(2, "Notes")
    page.bullets(_notes(table, measurements, marks, records))
    if record.left_out:
        page.heading(2, "Left out")
        page.text("These files, or parts of files, were not used, and no number above rests on them.")
        page.bullets(f"`{item.file}`: {item.reason}" for item in record.left_out)
    page.heading(2, "Provenance")
    lines, environments = _provenance_lines(name, record.rows)
    if lines:
        page.table(["Row", "Seed", "Trained", "Evaluated", "Environment", "Row hash", "Data hash"], lines, "lrlllll")
        page.bullets(f"**{number}**: {text}" for text, number in environments.items())
    else:
        page.text("Nothing has been measured yet.")
    page.text(f"The same table as data: [{name}.csv](tables/{name}.csv), [{name}.json](tables/{name}.json).")
    return page.end()


def row_page(
    row: Row, record: TableRow, measurement: Measurement, params: Params, figures: Sequence[tuple[str, str]]
) -> str:
    """The page of a row: its numbers, how to get them again, per-class IoU and every setting.

    ``figures`` are ``(caption, path relative to the page)``.
    """
    table = params.tables[row.table]
    page = _Page()
    page.comment(f"Made by `dvc repro -s report@{row.table}`; do not edit.")
    page.banner(table.banner)
    page.heading(1, row.name)
    dataset = params.datasets[row.dataset].title
    page.text(
        f"{METHODS[row.model.method]}, {backbone_text(row)}, on {dataset}: trained on `{row.train_split}` for "
        f"{row.schedule.text} at {record.crop_size}, tested on `{row.val_split}`. "
        f"A row of [{table.title}](../{row.table}.md)."
    )
    page.text(f"Protocol: {row.protocol}.")
    page.bullets(row.notes)
    page.heading(2, "Result")
    if measurement.status == "measured":
        page.table(*_result_table(record, measurement, table.published))
        page.text(CHOSEN_NOTE if record.best_on_val is not None else "")
    else:
        page.text(f"**{SHORT_STATUS[measurement.status]}**")
    page.bullets(f"`{problem.file}`: {problem.reason}" for problem in measurement.problems)
    if record.released and record.released.status == "measured":
        page.heading(2, "Released weights")
        page.text(_released_text(record))
        page.table(*_released_table(record))
    page.heading(2, "Reproduce")
    page.code(_commands(row, record, table.command), "bash")
    for caption, path in figures:
        page.figure(caption, path)
    published = record.published.classes
    if measurement.status == "measured" or published:
        page.heading(2, "Per class")
        page.table(*_class_table(measurement, published))
        if published:
            page.text(f"Published classes: {published.of}, <{published.url}>. Measured here: `{row.val_split}`.")
    if measurement.status == "measured":
        confused = _confused_lines(measurement)
        if confused:
            page.text("Most often taken for another class, in percent of the pixels of the class:")
            page.table(["Is", "Predicted as", "%"], confused, "llr")
        page.heading(2, "Environment")
        page.table(["Fact", "Value"], _environment_lines(record.provenance), "ll")
    page.heading(2, "Settings")
    page.text(f"Row hash `{row.hash}`, training hash `{row.train_hash}`.")
    page.code(yaml.safe_dump(row.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100), "yaml")
    return page.end()


def _environment_lines(provenance: Sequence[Stage]) -> list[list[str]]:
    """One line per fact; where stages or seeds differ in it, each with its own value, said as briefly as can be."""
    lines = []
    facts = [(each, each.facts) for each in provenance]
    for key in dict.fromkeys(key for _, known in facts for key in known):
        stages = {each.stage for each, known in facts if known.get(key) is not None}
        ways: list[dict[str, set[str]]] = [{}, {}, {}, {}]
        for each, known in facts:
            if each.stage in stages:
                seed = f"seed {each.seed}"
                for found, who in zip(ways, ("", each.stage, seed, f"{each.stage}, {seed}"), strict=True):
                    found.setdefault(who, set()).add(_escape(fact(known.get(key))))
        clear = next(found for found in ways if all(len(values) == 1 for values in found.values()))
        shown = [f"{who}: {min(values)}" if who else min(values) for who, values in clear.items()]
        lines.append([_escape(fact_name(key)), "<br>".join(shown) or "-"])
    return lines


def index_page(params: Params, records: Mapping[str, TableFile], costs: str | None = None) -> str:
    """The index: one line per table, and the figure ``costs`` (path relative to the page) of all of them."""
    page = _Page()
    page.comment("Made by the report stage; do not edit.")
    for banner in dict.fromkeys(table.banner for table in params.tables.values() if table.banner):
        page.banner(banner)
    page.heading(1, "Results")
    page.text("One page per source. mIoU in percent; *difference* is measured minus published, in points.")
    lines = []
    for name, record in records.items():
        rows = record.rows
        measured = [row for row in rows if row.status == "measured"]
        stale = sum(row.status in {"stale", "left out"} for row in rows)
        datasets = ", ".join(dict.fromkeys(params.datasets[row.dataset].title for row in rows))
        state = f"{len(measured)} of {len(rows)}" + (f", {stale} left out" if stale else "")
        lines.append([f"[{_escape(record.title)}]({name}.md)", state, _in_short(record, measured), datasets])
    page.table(["Table", "Rows measured", "mIoU in short", "Datasets"], lines, "llll")
    if costs:
        page.figure("mIoU of every measured row against the cost of one training, by data set and hardware", costs)
    else:
        page.text("No row measured yet: mIoU against cost will be shown here.")
    page.text(
        "Each table also as data: "
        + ", ".join(f"{name} ([csv](tables/{name}.csv), [json](tables/{name}.json))" for name in records)
        + ". Metrics files: `metrics/`."
    )
    return page.end()


def _in_short(record: TableFile, measured: Sequence[TableRow]) -> str:
    if not measured:
        return "not run"
    if record.has_published:
        verdicts = [str(row.verdict["miou"]).partition(":")[0] for row in measured if row.verdict["miou"]]
        counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
        return (
            ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "nothing published to compare with"
        )
    mious = [row.measured.miou for row in measured if row.measured]
    return f"mIoU {min(mious):.2f} to {max(mious):.2f}" if len(mious) > 1 else f"mIoU {mious[0]:.2f}"


def _intro(table: Table) -> str:
    source = f" Source: <{table.source_url}>." if table.source_url else ""
    return table.intro + source


def _count(record: TableFile, measurements: Sequence[Measurement]) -> str:
    done = sum(item.status == "measured" for item in measurements)
    text = f"**{done} of {len(measurements)} rows measured.** All accuracies in percent"
    if record.has_published:
        text += "; difference = retrained - published, in points"
    return text + ". The row's name leads to its settings, per-class IoU and the command that makes it."


def _link(table: str, name: str, marks: Mapping[str, str] | None = None) -> str:
    mark = (marks or {}).get(name, "")
    return f"[{name}]({table}/{name}.md)" + (f" <sup>{mark}</sup>" if mark else "")


def _settings_cells(row: Row) -> list[str]:
    return [
        METHODS[row.model.method],
        f"R-{row.model.backbone.removeprefix('resnet')}",
        str(row.model.output_stride),
        "{}x{}".format(*row.augment.crop_size),
        short_schedule(row).replace(" it", " iterations"),
    ]


def _main_table(
    table: str,
    items: Sequence[Measurement],
    records: Mapping[str, TableRow],
    marks: Mapping[str, str],
    has_published: bool,
) -> tuple[list[str], list[list[str]], str]:
    head, sides = ["Row", "Method", "Backbone", "Stride", "Crop", "Schedule"], "lllrrl"
    lines = []
    verified = any(records[item.row.name].released for item in items)
    for item in items:
        record = records[item.row.name]
        line = [_link(table, item.row.name, marks), *_settings_cells(item.row)]
        if has_published:
            line += [_published(record), _released(record, "miou"), _measured(record, "miou")]
            line += [signed(record.difference["miou"]), record.verdict["miou"] or "-"]
        else:
            made = record.measured
            baseline, above, *others = ["-"] * 4
            if made:
                baseline, above = number(made.baseline_miou), signed(made.miou - made.baseline_miou)
                others = [number(made.aacc), number(made.macc)]
            line += [_measured(record, "miou"), baseline, above, *others]
            line += [_released(record, "miou")] if verified else []
        lines.append(line)
    if has_published:
        titles = ["Published mIoU", "Released weights", "Retrained mIoU", "Difference", "Verdict"]
        return [*head, *titles], lines, sides + "rrrrl"
    titles = ["mIoU", "Best constant", "Above it", "aAcc", "mAcc", *(["Released weights"] if verified else [])]
    return [*head, *titles], lines, sides + "r" * len(titles)


def _without_method(
    head: list[str], lines: list[list[str]], align: str, drop: bool
) -> tuple[list[str], list[list[str]], str]:
    """The main table without the column of methods, if ``drop``: it is the widest that says the same everywhere."""
    if not drop:
        return head, lines, align
    place = head.index("Method")

    def cut(cells: list[str]) -> list[str]:
        return cells[:place] + cells[place + 1 :]

    return cut(head), [cut(line) for line in lines], align[:place] + align[place + 1 :]


_FURTHER = ["Row", "Metric", "Published", "Released weights", "Retrained", "Difference", "Verdict"]


def _further_lines(table: str, measurements: Sequence[Measurement], records: Mapping[str, TableRow]) -> list[list[str]]:
    lines = []
    for item in measurements:
        record = records[item.row.name]
        for metric in ("miou_ms_flip", "aacc", "aacc_ms"):
            against = getattr(record.published, metric)
            if against is None and (metric != "miou_ms_flip" or not getattr(record.measured, metric, None)):
                continue
            verdict = record.verdict.get(metric) or ("not run" if record.measured is None else "-")
            line = [_link(table, item.row.name), METRIC_NAMES[metric], number(against), _released(record, metric)]
            lines.append([*line, _measured(record, metric), signed(record.difference[metric]), verdict])
    return lines


def _cost_lines(
    table: str, measurements: Sequence[Measurement], records: Mapping[str, TableRow], has_published: bool
) -> tuple[list[str], list[list[str]], str] | None:
    lines = []
    for item in measurements:
        record = records[item.row.name]
        against, made = record.published, record.measured
        if made is None and against.memory_gb is None and against.fps is None:
            continue
        if made is None:
            numbers, speed, hours, devices = [SHORT_STATUS[record.status], "", ""], "", "-", None
        else:
            numbers, hours = [_memory(made), number(made.fps), number(made.fps_batched)], _hours(made.hours)
            speed = number(made.images_per_second, 1)
            devices = "; ".join(dict.fromkeys(name for name in (made.device, made.fps_device) if name))
        published = [_memory(against), number(against.fps), against.device or "-"] if has_published else []
        speeds = [] if has_published else [speed]
        lines.append([_link(table, item.row.name), *published, *numbers, *speeds, hours, devices or "-"])
    if not lines:
        return None
    fps = ["fps, one by one", "fps, batched"]
    if has_published:
        return ["Row", "Published: GB", "fps", "on", "Measured: GiB", *fps, "hours", "on"], lines, "lrrlrrrrl"
    return ["Row", "Memory, GiB", *fps, "Training, images/s", "Training, hours", "on"], lines, "lrrrrrl"


def _memory(numbers: Published | MeasuredNumbers) -> str:
    """``7.4 (2)``: gigabytes, and the images on a GPU that took them."""
    known = numbers.images_per_gpu is not None and numbers.memory_gb is not None
    return number(numbers.memory_gb, 1) + (f" ({numbers.images_per_gpu})" if known else "")


def _first_edition_lines(table: str, rows: Iterable[TableRow]) -> list[list[str]]:
    """Published mIoU then and now, of the rows that the source's first edition had."""
    return [
        [_link(table, row.row), number(row.published.first_edition.miou), number(row.published.miou)]
        for row in rows
        if row.published.first_edition is not None
    ]


def _hours(hours: float | None) -> str:
    if hours is None:
        return "-"
    return f"{hours:.2g}" if hours < 0.1 else f"{hours:.2f}" if hours < 10 else f"{hours:.1f}"


def _notes(
    table: Table,
    measurements: Sequence[Measurement],
    marks: Mapping[str, str],
    records: Mapping[str, TableRow],
) -> list[str]:
    notes = list(table.notes)
    protocols: dict[str, str] = {}
    for item in measurements:
        protocols.setdefault(item.row.protocol, marks.get(item.row.name, ""))
    for protocol, mark in protocols.items():
        prefix = f"<sup>{mark}</sup> " if mark else ""
        notes.append(f"{prefix}Protocol: {protocol}.")
    notes += [f"{_link(item.row.table, item.row.name)}: {note}" for item in measurements for note in item.row.notes]
    if any(record.best_on_val is not None for record in records.values()):
        notes.append(CHOSEN_NOTE)
    if table.published:
        bands = sorted({f"{records[item.row.name].band:g}" for item in measurements})
        seeds = any(record.published.seeds for record in records.values())
        if any(record.released for record in records.values()):
            band = next(record.released.band for record in records.values() if record.released)
            notes.append(
                f"Released weights: the source's own checkpoint, evaluated here by the row's protocol; it *agrees* "
                f"within ± {band:g} points of the published number."
            )
        notes.append(
            "Verdict: *reproduced* where an equivalence test (TOST) shows that the mean of the seeds is within "
            f"± {' or '.join(bands)} points of the published number, *lower* or *higher* where a t-test shows that it "
            f"is outside, else *undecided*; at most {ALPHA:.0%} of such verdicts are false. "
            + ("Here both are means of seeds, and the tests are Welch's. " if seeds else "")
            + "One seed has no spread: it is *consistent* (inside the band) or *inconsistent*, which shows nothing. "
            "Method, bands and error rates: `docs/verdicts.md`."
        )
        notes.append("Several seeds: mean ± standard deviation (n, or n of those planned).")
    else:
        notes.append(
            "*Best constant* is the highest mIoU that any single class predicted everywhere reaches on this split; "
            "several seeds are given as mean ± standard deviation (n, or n of those planned)."
        )
    held = "; the published one is that of an explicit attention map, which ours never holds" if table.published else ""
    notes.append(
        "Memory is that of training, per GPU (on a CPU: of the process), in brackets the images on it at each step"
        f"{held}. *fps, one by one*, as published: one image at a time, its windows and mirror images one by one, "
        "5 images skipped and 200 timed; network, resize, argmax and copy to the host, in the row's precision "
        "(mmsegmentation: fp32). *fps, batched*: the same with windows and mirror images batched; a dash where there "
        "are none, and on CPUs. Neither can be compared across hardware: `python -m benchmarks.speed time ROW` times "
        "mmsegmentation, our explicit map and our fastest path on one machine."
    )
    notes.append("A dash: the source gives no number, or it does not apply.")
    return notes


def _protocol_marks(rows: Sequence[Row]) -> dict[str, str]:
    """A letter per protocol, where a table has several."""
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    if len(protocols) < 2:
        return {}
    return {row.name: chr(ord("a") + protocols.index(row.protocol)) for row in rows}


def _provenance_lines(table: str, rows: Iterable[TableRow]) -> tuple[list[list[str]], dict[str, str]]:
    """A line per row and seed, and the environments that the lines name by number."""
    lines = []
    environments: dict[str, str] = {}
    for row in rows:
        for seed in dict.fromkeys(each.seed for each in row.provenance):
            stages = {each.stage: each for each in row.provenance if each.seed == seed}
            used = [
                environments.setdefault(_environment(each.provenance), str(len(environments) + 1))
                for each in stages.values()
            ]
            data = ", ".join(dict.fromkeys(f"`{each.data[:12]}`" for each in stages.values()))
            trained, evaluated = stages.get("train"), stages.get("evaluate")
            when = [_when(each.provenance) if each else "-" for each in (trained, evaluated)]
            used = list(dict.fromkeys(used))
            lines.append([_link(table, row.row), str(seed), *when, ", ".join(used), f"`{row.row_hash}`", data])
    return lines, environments


def _when(facts: Provenance) -> str:
    """Commit and date of a stage."""
    commit = f"`{facts.known_commit[:10]}`" if facts.known_commit else "commit unknown"
    return f"{commit}{' + changes' if facts.dirty else ''}, {(facts.date or 'undated')[:10]}"


def _environment(facts: Provenance) -> str:
    count = facts.gpus or 0
    hardware = facts.gpu or f"CPU, {facts.cpu_cores} cores: {facts.cpu}"
    parts = [f"{count} x {hardware}" if count > 1 else hardware]
    parts += [f"{label} {value}" for key, label in _VERSIONS.items() if (value := getattr(facts, key))]
    return _escape(", ".join([*parts, str(facts.precision)]))


_VERSIONS = {
    "driver": "driver",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "torch": "torch",
    "torchvision": "torchvision",
    "python": "Python",
    "os": "",
}


def _result_table(
    record: TableRow, measurement: Measurement, has_published: bool
) -> tuple[list[str], list[list[str]], str]:
    lines = []
    for metric, name in METRIC_NAMES.items():
        summary = summarise(measurement.values(metric))
        against = getattr(record.published, metric, None)
        if summary is None and against is None:
            continue
        interval = f"{summary.low:.2f} to {summary.high:.2f}" if summary and summary.low is not None else "-"
        seeds = ", ".join(f"{value:.2f}" for value in measurement.values(metric)) or "-"
        line = [name, _measured(record, metric), seeds, interval]
        if has_published:
            shown = _published(record) if metric == "miou" else number(against)
            line += [shown, signed(record.difference.get(metric)), record.verdict.get(metric) or "-"]
        lines.append(line)
    head = ["Metric", "Measured", "Seeds", "95 % interval"]
    if has_published:
        return [*head, "Published", "Difference", "Verdict"], lines, "lrrlrrl"
    if record.measured:
        where = f"best constant mIoU (`{record.measured.baseline_class}` everywhere)"
        lines.append([where, number(record.measured.baseline_miou), "", ""])
    return head, lines, "lrrl"


def _class_table(measurement: Measurement, published: Classes | None) -> tuple[list[str], list[list[str]], str]:
    """IoU by class of what was measured, beside what is published."""
    modes = [mode for mode in ("ss", "ms") if any(run.modes.get(mode) for run in measurement.runs)]
    seeds = [run.seed for run in measurement.runs]
    head = ["Class"]
    columns: list[list[float | None]] = []
    for mode in modes:
        name = "IoU" if mode == "ss" else "IoU, ms+flip"
        head.append(name if len(seeds) == 1 else f"{name}, mean of {len(seeds)}")
        columns.append(measurement.class_iou(mode))
    if len(seeds) > 1:
        head += [f"seed {seed}" for seed in seeds]
        columns += [run.modes.ss.iou for run in measurement.runs]
    elif seeds:
        head.append("accuracy")
        columns.append(measurement.runs[0].modes.ss.acc)
    classes = measurement.classes if seeds else tuple(published.iou if published else ())
    if published:
        head.append(f"published, {published.of}")
        columns.append([published.iou.get(name) for name in classes])
    lines = [[_escape(name), *(number(column[place]) for column in columns)] for place, name in enumerate(classes)]
    return head, lines, "l" + "r" * len(columns)


def _confused_lines(measurement: Measurement) -> list[list[str]]:
    """The ten largest shares off the diagonal of the confusion matrix."""
    names, matrix = measurement.classes, measurement.confusion().tolist()
    shares = [
        (100 * count / sum(line), truth, predicted)
        for truth, line in enumerate(matrix)
        for predicted, count in enumerate(line)
        if count and truth != predicted
    ]
    largest = sorted(shares, key=lambda item: (-item[0], *item[1:]))[:10]
    return [[_escape(names[truth]), _escape(names[predicted]), f"{share:.1f}"] for share, truth, predicted in largest]


def _commands(row: Row, record: TableRow, table_command: str) -> str:
    lines = []
    commits = {stage.provenance.known_commit for stage in record.provenance} - {None}
    if len(commits) == 1:
        lines.append(f"git checkout {commits.pop()}")
    if table_command:
        lines.append(f"{table_command}   # this row and the others of its table")
    else:
        lines.append(f"dvc repro evaluate@{row.name}   # with all that it needs: download, convert, weights, train")
    if record.released:
        lines.append(f"dvc repro verify@{row.name}     # the source's released weights, without training")
    return "\n".join(lines)


def _published(record: TableRow) -> str:
    """The cell of a published mIoU; with the spread of the source's seeds, where it gives them."""
    found = summarise(record.published.seeds or ())
    if found is None or found.sd is None:
        return number(record.published.miou)
    return f"{found.mean:.2f} ± {found.sd:.2f} ({found.n})"


def _measured(record: TableRow, metric: str) -> str:
    """The cell of a retrained number; with a mark and the number chosen so, where the source chose on val."""
    if record.best_on_val is None or metric not in record.best_on_val:
        return _last(record, metric)
    best = record.best_on_val[metric]
    return _last(record, metric) + (f", best on val {best:.2f}" if best is not None else "") + f" {CHOSEN}"


def _last(record: TableRow, metric: str) -> str:
    if record.measured is None:
        return SHORT_STATUS[record.status]
    spread = record.spread.get(metric)
    if spread is None:
        return "not run" if getattr(record.published, metric, None) is not None else "-"
    mean = getattr(record.measured, metric, None)
    if mean is None:
        mean = sum(spread.values) / spread.n
    planned = len(record.seeds)
    count = f"{spread.n} of {planned}" if spread.n < planned else str(spread.n)
    if spread.sd is None:
        return f"{mean:.2f}" if planned == 1 else f"{mean:.2f} ({count})"
    return f"{mean:.2f} ± {spread.sd:.2f} ({count})"


def _released(record: TableRow, metric: str) -> str:
    """The cell of the released weights: ``80.52, agrees``; a dash where the source released none."""
    released = record.released
    if released is None:
        return "-"
    if released.status != "measured":
        return SHORT_STATUS[released.status]
    text = released.agreement.get(metric)
    return number(getattr(released, metric)) + (f", {text}" if text else "")


def _released_table(record: TableRow) -> tuple[list[str], list[list[str]], str]:
    released = record.released
    lines = [
        [name, number(getattr(record.published, metric, None)), _released(record, metric)]
        for metric, name in METRIC_NAMES.items()
        if getattr(released, metric) is not None
    ]
    return ["Metric", "Published", "Released weights"], lines, "lrr"


def _released_text(record: TableRow) -> str:
    assert record.released is not None
    weights, facts = record.released.weights, record.released.provenance
    assert weights is not None
    assert facts is not None
    known = {"matches": "its published digits", "none": "none is published"}[weights.checksum]
    parts = [f"`{weights.file}`, SHA-256 `{weights.sha256[:12]}` ({known})"]
    parts.append(f"evaluated by the row's protocol: {_when(facts)}, {_environment(facts)}")
    return "; ".join(parts) + "."


def _escape(text: str) -> str:
    return re.sub(r"([|<>*_`\[\]])", r"\\\1", " ".join(text.split()))


class _Page:
    """Blocks of markdown with a blank line between them."""

    def __init__(self) -> None:
        self._blocks: list[str] = []

    def comment(self, text: str) -> None:
        self._blocks.append(f"<!-- {text} -->")

    def banner(self, text: str) -> None:
        if text:
            self._blocks.append(f"**{text}**")

    def heading(self, level: int, text: str) -> None:
        self._blocks.append(f"{'#' * level} {text}")

    def text(self, text: str) -> None:
        if text:
            self._blocks.append(text)

    def bullets(self, items: Iterable[str]) -> None:
        lines = [f"- {' '.join(item.split())}" for item in items]
        if lines:
            self._blocks.append("\n".join(lines))

    def code(self, text: str, language: str) -> None:
        self._blocks.append(f"```{language}\n{text.rstrip()}\n```")

    def figure(self, caption: str, path: str) -> None:
        self._blocks.append(f"![{caption}]({path})\n\n*{caption}*")

    def table(self, head: Sequence[str], lines: Sequence[Sequence[str]], align: str) -> None:
        rule = ["---:" if side == "r" else "---" for side in align]
        self._blocks.append("\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines)))

    def end(self) -> str:
        return "\n\n".join(self._blocks) + "\n"
