"""The schema: what is refused, what a hash depends on, and that every row of params.yaml says what its source says."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from danet.errors import ConfigError
from danet.rows import NAME, Params, load_params, merge

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    files = ("params.yaml", "released.yaml")
    return {key: value for name in files for key, value in yaml.safe_load((ROOT / name).read_text()).items()}


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


SOURCES_WITH_WEIGHTS = {"mmsegmentation", "sssegmentation", "official"}


def changed(raw: dict[str, Any], row: str, **over: Any) -> Params:
    data = {**copy.deepcopy(raw), "submissions": []}
    data["rows"] = {row: merge(data["rows"][row], over)}
    data["released"] = {}
    return Params(data, Path("params.yaml"))


def test_every_table_has_the_rows_its_source_publishes(params: Params) -> None:
    counts = {table: len(params.table_rows(table)) for table in params.tables}
    assert counts == {"mmsegmentation": 16, "sssegmentation": 12, "official": 2, "clusterdanet": 1, "camvid": 8}


@pytest.mark.parametrize(
    ("row", "samples", "total"),
    [  # the sources' own arithmetic (RECIPES sections 2 and 3)
        ("ssseg-r50-d8-voc2012", 10582, 661 * 60),
        ("ssseg-r50-d8-ade20k", 20210, 1263 * 130),
        ("ssseg-r50-d8-cityscapes", 2975, 372 * 220),
        ("official-danet-r101-d8-cityscapes", 2975, 371 * 240),
        ("mmseg-r50-d8-voc2012-20k", 10582, 20000),
    ],
)
def test_schedule_lengths(params: Params, row: str, samples: int, total: int) -> None:
    assert params.row(row).schedule.total_iterations(samples) == total


def test_protocols_differ_where_the_sources_do(params: Params) -> None:
    mmseg, ssseg = params.row("mmseg-r50-d8-voc2012-20k"), params.row("ssseg-r50-d8-voc2012")
    official = params.row("official-danet-r101-d8-cityscapes")
    assert (mmseg.loss.average, ssseg.loss.average, official.loss.average) == ("all", "valid", "valid")
    assert (mmseg.model.pam_bias, ssseg.model.pam_bias) == (True, False)
    assert (mmseg.model.aux_channels, ssseg.model.aux_channels, official.model.aux_channels) == (256, 512, None)
    assert (mmseg.test.absent_class, official.test.absent_class) == ("skip", "zero")
    assert official.test.flip
    assert not mmseg.test.flip
    assert official.optimizer.head_lr_multiplier == 10
    assert official.model.multi_grid == (4, 8, 16)
    assert params.row("mmseg-r50-d8-cityscapes-769x769-40k").model.align_corners
    assert not params.row("mmseg-r50-d8-cityscapes-512x1024-40k").model.align_corners
    assert params.row("clusterdanet-r101-d8-voc2012").train_split == "trainval"


def test_the_1x_variant_differs_from_0x_in_three_ways(raw: dict[str, Any]) -> None:
    name = "mmseg-r50-d8-voc2012-20k"
    data = {**copy.deepcopy(raw), "submissions": [], "released": {}, "rows": {name: raw["rows"][name]}}
    old = Params(data, Path("params.yaml")).row(name)
    data["rows"] = {
        name: {**raw["rows"][name], "recipe": "mmsegmentation-1x", "settings": raw["settings"]["mmseg-1x-voc2012"]}
    }
    new = Params(data, Path("params.yaml")).row(name)
    assert (old.schedule.denominator, new.schedule.denominator) == ("T", "T-1")
    assert (old.augment.pad.image, new.augment.pad.image) == ("mean", "black")
    assert old.test.multi_scale is not None
    assert new.test.multi_scale is not None
    assert (old.test.multi_scale.relative_to, new.test.multi_scale.relative_to) == ("test-scale", "image")
    same = {"schedule": {"denominator"}, "augment": {"pad": {"image"}}, "test": {"multi_scale": {"relative_to"}}}
    exclude: dict[str, Any] = {**same, "protocol": True}
    assert old.model_dump(exclude=exclude) == new.model_dump(exclude=exclude)


REFUSED = [
    ({"output_stride": 16, "settings": {"model": {"multi_grid": [4, 8, 16]}}}, "multi_grid"),
    ({"iterations": 0}, "schedule.iterations"),
    ({"iterations": None}, "exactly one of iterations and epochs"),
    ({"epochs": 3}, "exactly one of iterations and epochs"),
    ({"recipe": "mmdetection"}, "allowed: .*mmsegmentation"),
    ({"dataset": "coco"}, "allowed: .*cityscapes"),
    ({"weights": "resnet101_v1c"}, "backbone resnet101"),
    ({"train_split": "trainaug"}, "allowed: test, train, val"),
    ({"seeds": [1, 1]}, "share a seed"),
    ({"seeds": []}, "seeds"),
    ({"settings": {"optimizer": {"lr": math.nan}}}, "optimizer.lr"),
    ({"settings": {"optimizer": {"lr": -1}}}, "optimizer.lr"),
    ({"settings": {"optimizer": {"learning_rate": 1}}}, "optimizer.learning_rate"),
    ({"settings": {"augment": {"crop_size": [770, 769]}}}, "crop_size"),
    ({"settings": {"test": {"stride": [900, 900]}}}, "gaps"),
    ({"settings": {"test": {"window": None}}}, "window"),
    ({"settings": {"model": {"aux_channels": None}}}, "aux_channels"),
    ({"settings": {"augment": {"resize": {"base": 512}}}}, "rule 'ratio'"),
    ({"settings": {"schedule": {"batch_size": 0}}}, "batch_size"),
    ({"numerics": {"precision": "int8"}}, "fp32"),
]


@pytest.mark.parametrize(("over", "message"), REFUSED)
def test_contradictions_are_refused_by_name(raw: dict[str, Any], over: dict[str, Any], message: str) -> None:
    row = "mmseg-r50-d8-cityscapes-769x769-40k"
    with pytest.raises(ConfigError, match=message) as caught:
        changed(raw, row, **over)
    assert row in str(caught.value)


@pytest.mark.parametrize("section", ["numerics", "revisions"])
def test_a_recipe_repeats_what_dvc_must_see_change(raw: dict[str, Any], section: str) -> None:
    data = copy.deepcopy(raw)
    del data["recipes"]["mmsegmentation"][section]
    with pytest.raises(ConfigError, match=rf"recipes\.mmsegmentation\.{section}"):
        Params(data, Path("params.yaml"))


def test_submissions_are_rows_on_cityscapes(raw: dict[str, Any]) -> None:
    for name in ("ssseg-r50-d8-voc2012", "nobody", ["list"]):
        with pytest.raises(ConfigError, match="submissions"):
            Params({**raw, "submissions": [name]}, Path("params.yaml"))


@pytest.mark.parametrize("name", ["a b", "../x", "x;rm", "$(x)", "X", "", "a/b", "-x"])
def test_names_that_could_reach_a_shell_are_refused(raw: dict[str, Any], name: str) -> None:
    data = copy.deepcopy(raw)
    data["rows"] = {name: next(iter(raw["rows"].values()))}
    with pytest.raises(ConfigError, match="names reach file paths"):
        Params(data, Path("params.yaml"))


@given(st.text(max_size=12))
def test_accepted_names_are_safe_in_a_path_and_a_shell(name: str) -> None:
    if NAME.fullmatch(name):
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
        assert name[0] not in "-_"


def test_unknown_names_suggest_the_closest(params: Params) -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*ssseg-r50-d8-voc2012"):
        params.row("ssseg-r50-d8-voc2021")


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"table": "official"}, r"released\.mmseg-r50-d8-voc2012-20k\.table: is 'official', rows\."),
        ({"dataset": "ade20k"}, r"released\.mmseg-r50-d8-voc2012-20k\.dataset"),
        ({"checksum": "sha256:xyz"}, r"released\.mmseg-r50-d8-voc2012-20k\.checksum"),
        ({"file": "../x.pth"}, r"released\.mmseg-r50-d8-voc2012-20k\.file"),
        ({"url": "file:///etc/passwd"}, r"released\.mmseg-r50-d8-voc2012-20k\.url"),
    ],
)
def test_wrong_released_entries_are_named(raw: dict[str, Any], over: dict[str, Any], message: str) -> None:
    data = copy.deepcopy(raw)
    data["released"]["mmseg-r50-d8-voc2012-20k"].update(over)
    with pytest.raises(ConfigError, match=message):
        Params(data, Path("params.yaml"))


def test_released_weights_belong_to_rows(raw: dict[str, Any], params: Params) -> None:
    assert set(params.released) == {row.name for row in params.rows.values() if row.source in SOURCES_WITH_WEIGHTS}
    for name, entry in params.released.items():
        digits = entry.file.rpartition("-")[2].removesuffix(".pth")
        assert entry.checksum == (f"sha256:{digits}" if params.row(name).source == "mmsegmentation" else None)
    data = copy.deepcopy(raw)
    data["released"]["no-such-row"] = data["released"]["ssseg-r50-d8-voc2012"]
    with pytest.raises(ConfigError, match=r"released\.no-such-row: no such row"):
        Params(data, Path("params.yaml"))


def test_unreadable_files_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="repository root"):
        load_params(tmp_path / "params.yaml")
    file = tmp_path / "params.yaml"
    for text, message in [
        ("a: [", "not valid YAML"),
        ("- 1", "mapping"),
        ("!!python/object/apply:os.system [x]", "YAML"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_params(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_params(file)


def test_hash_follows_what_moves_results_and_nothing_else(raw: dict[str, Any]) -> None:
    row = "mmseg-r50-d8-cityscapes-769x769-40k"
    base = changed(raw, row).row(row)

    def hashes(**over: Any) -> tuple[bool, bool]:
        other = changed(raw, row, **over).row(row)
        return other.train_hash != base.train_hash, other.hash != base.hash

    assert hashes(settings={"optimizer": {"lr": 0.02}}) == (True, True)
    assert hashes(numerics={"precision": "bf16"}) == (True, True)
    assert hashes(settings={"test": {"stride": [500, 500]}}) == (False, True)
    assert hashes(runtime={"workers": 7}) == (False, False)
    assert hashes(seeds=[0, 1]) == (False, False)
    assert hashes(notes=["x"]) == (False, False)


def test_hashes_are_unique_over_all_rows(params: Params) -> None:
    hashes = [row.hash for row in params.rows.values()]
    assert len(set(hashes)) == len(hashes)


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.one_of(st.integers(), st.dictionaries(st.sampled_from("xy"), st.integers()))
    )
)
def test_merge_with_itself_or_nothing_changes_nothing(data: dict[str, Any]) -> None:
    assert merge(data, {}) == data == merge({}, data) == merge(data, data)
