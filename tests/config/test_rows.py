"""The schema: what is refused, what a hash depends on, and that every row of params.yaml says what its source says."""

import copy
import math
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, DistributedSampler

from danet.config.params import Params, load_params, merge
from danet.config.yaml import write_raw
from danet.core.errors import ConfigError
from tests.parameters import PARAMS, raw_params


@pytest.fixture(scope="module")
def raw():
    return raw_params()


def changed(raw, row, **over):
    data = {**copy.deepcopy(raw), "submissions": {}}
    data["rows"] = {row: merge(data["rows"][row], over)}
    data["released"] = {}
    return Params(data, Path("params.yaml"))


def test_every_table_has_the_rows_its_source_publishes():
    counts = {table: len(PARAMS.table_rows(table)) for table in PARAMS.tables}
    assert counts.pop("rehearsal") == 2
    assert counts == {"mmsegmentation": 16, "sssegmentation": 12, "official": 2, "clusterdanet": 1, "camvid": 8}


@pytest.mark.parametrize(
    ("row", "samples", "total"),
    [  # the sources' own arithmetic
        ("ssseg-r50-d8-voc2012", 10582, 661 * 60),
        ("ssseg-r50-d8-ade20k", 20210, 1263 * 130),
        ("ssseg-r50-d8-cityscapes", 2975, 372 * 220),
        ("official-danet-r101-d8-cityscapes", 2975, 371 * 240),
        ("mmseg-r50-d8-voc2012-20k", 10582, 20000),
    ],
)
def test_schedule_lengths(row, samples, total):
    assert PARAMS.row(row).schedule.total_iterations(samples) == total


@pytest.mark.parametrize("gpus", [4, 8])
@pytest.mark.parametrize(("dataset", "per_epoch"), [("voc2012", 661), ("ade20k", 1263), ("cityscapes", 372)])
def test_sssegmentation_s_gpus_move_the_loss_and_not_the_length(raw, gpus, dataset, per_epoch):
    """Counted by PyTorch's own sampler and loader, as each of the source's processes has them."""
    name = f"ssseg-r50-d8-{dataset}"
    row = changed(raw, name, loss={"replicas": gpus}, schedule={"replicas": gpus}).row(name)
    samples = range(PARAMS.dataset(dataset).counts[row.train_split])
    sampler = DistributedSampler(samples, num_replicas=gpus, rank=gpus - 1)
    loader = DataLoader(samples, row.schedule.batch_size // gpus, sampler=sampler, drop_last=True)
    assert row.schedule.iterations_per_epoch(len(samples)) == len(loader) == per_epoch
    published = PARAMS.row(name)
    assert (published.loss.replicas, published.schedule.replicas) == (4, 4)


def test_imagenet_files_carry_the_digits_of_their_checksum():
    named = {name: entry for name, entry in PARAMS.weights.items() if entry.file is not None}
    assert len(named) == 4
    for entry in named.values():
        digits = str(entry.file).rpartition("-")[2].partition(".")[0]
        assert str(entry.checksum).partition(":")[2].startswith(digits)
        assert str(entry.url).endswith(f"/{entry.file}")
    # model_store.py of the commit that still holds DRANet's network calls the deep-stem ResNet-101 so
    dranet = PARAMS.imagenet(PARAMS.row("official-dranet-r101-d8-cityscapes").weights)
    assert dranet.checksum == "sha1:2a57e44de9c853fa015b172309a1ee7e2d0e4e2a"


def test_clusterdanet_is_tested_at_six_scales_with_flip():
    test = PARAMS.row("clusterdanet-r101-d8-voc2012").test
    assert test.multi_scale.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert (test.flip, test.multi_scale.flip, test.score, test.absent_class) == (True, True, "exp", "zero")
    assert (test.window, test.stride, test.multi_scale.window) == ((480, 480), (320, 320), None)


def test_protocols_differ_where_the_sources_do():
    mmseg, ssseg = PARAMS.row("mmseg-r50-d8-voc2012-20k"), PARAMS.row("ssseg-r50-d8-voc2012")
    official = PARAMS.row("official-danet-r101-d8-cityscapes")
    assert (mmseg.loss.average, ssseg.loss.average, official.loss.average) == ("all", "valid", "valid")
    assert (mmseg.model.pam_bias, ssseg.model.pam_bias) == (True, False)
    assert (mmseg.model.aux_channels, ssseg.model.aux_channels, official.model.aux_channels) == (256, 512, None)
    assert (mmseg.test.absent_class, official.test.absent_class) == ("skip", "zero")
    assert official.test.flip
    assert not mmseg.test.flip
    wide = {row.name for row in PARAMS.rows.values() if row.test.placement == "shift-padded"}
    assert wide == {row.name for row in PARAMS.table_rows("mmsegmentation") if row.augment.crop_size == (769, 769)}
    assert len(wide) == 4
    assert official.optimizer.head_lr_multiplier == 10
    assert official.model.multi_grid == (4, 8, 16)
    assert PARAMS.row("mmseg-r50-d8-cityscapes-769x769-40k").model.align_corners
    assert not PARAMS.row("mmseg-r50-d8-cityscapes-512x1024-40k").model.align_corners
    assert PARAMS.row("clusterdanet-r101-d8-voc2012").train_split == "trainval"


def test_the_1x_variant_differs_from_0x_in_three_ways(raw):
    name = "mmseg-r50-d8-voc2012-20k"
    old, new = PARAMS.row(name), changed(raw, name, settings="1x-voc2012").row(name)
    assert (old.schedule.denominator, new.schedule.denominator) == ("T", "T-1")
    assert (old.augment.pad.image, new.augment.pad.image) == ("mean", "black")
    assert (old.test.multi_scale.relative_to, new.test.multi_scale.relative_to) == ("test-scale", "image")
    same = {"schedule": {"denominator"}, "augment": {"pad": {"image"}}, "test": {"multi_scale": {"relative_to"}}}
    exclude = {**same, "protocol": True}
    assert old.model_dump(exclude=exclude) == new.model_dump(exclude=exclude)


REFUSED_IN_A_ROW = [
    ({"schedule": {"iterations": None}}, "exactly one of iterations and epochs"),
    ({"schedule": {"epochs": 3}}, "exactly one of iterations and epochs"),
    ({"backbone": "resnet50"}, "backbone: is not a setting"),
    ({"recipe": "mmdetection"}, "allowed: .*mmsegmentation"),
    ({"settings": "ade"}, "settings: 'ade' is unknown; recipes/mmsegmentation.yaml has: .*ade20k"),
    ({"dataset": "coco"}, "allowed: .*cityscapes"),
    ({"train_split": "trainaug"}, "allowed: test, train, val"),
    ({"table": "../../x"}, "table"),
    ({"seeds": [1, 1]}, "share a seed"),
    ({"optimizer": {"lr": math.nan}}, "optimizer.lr"),
    ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate"),
    ({"test": {"stride": [900, 900]}}, "gaps"),
    ({"test": {"window": None}}, "window"),
    ({"model": {"aux_channels": None}}, "aux_channels"),
    ({"augment": {"resize": {"base": 512}}}, "rule 'ratio'"),
    ({"numerics": {"precision": "int8"}}, "fp32"),
    ({"numerics": "slow"}, "allowed: fast, published"),
]


@pytest.mark.parametrize(("over", "message"), REFUSED_IN_A_ROW)
def test_contradictions_are_refused_by_name(raw, over, message):
    row = "mmseg-r50-d8-cityscapes-769x769-40k"
    with pytest.raises(ConfigError, match=message) as caught:
        changed(raw, row, **over)
    assert row in str(caught.value)


RELEASED, SUBMITTED = "mmseg-r50-d8-voc2012-20k", "official-danet-r101-d8-cityscapes"
GONE = "gone"
REFUSED = [
    ("recipes.mmsegmentation.settings", GONE, r"mmsegmentation.yaml: recipes.mmsegmentation.settings: field required"),
    ("recipes.mmsegmentation.train", GONE, r"mmsegmentation.yaml: recipes.mmsegmentation.train: field required"),
    ("recipes.mmsegmentation.settings.ade20k.test", GONE, r"settings\.ade20k\.test: field required"),
    ("recipes.mmsegmentation.settings.ade20k", 3, r"settings\.ade20k: .*given: 3"),
    ("recipes.mmsegmentation.loss", {}, r"mmsegmentation\.loss: is not a setting"),
    ("profiles.fast.precision", "fp8", r"^numerics\.yaml: profiles\.fast\.precision: input should be"),
    ("numerics", "slow", r"^numerics\.yaml: numerics: 'slow' is unknown; allowed: fast, published"),
    ("runtime.workers", -1, r"^params\.yaml: runtime\.workers"),
    ("datasets.A B", {}, r"^datasets\.yaml: datasets\.A B"),
    ("datasets.camvid.archives", [{"file": "a/../../b.zip"}], "archives"),
    ("datasets.camvid.counts", {"../train": 1}, "camvid"),
    ("weights.resnet50_v1c.file", "../../.ssh/id.pth", "resnet50_v1c"),
    ("weights.resnet50_v1c.url", "file:///etc/passwd", "resnet50_v1c"),
    ("weights.resnet50_v1c.checksum", "crc32:12345678", "resnet50_v1c"),
    ("bands.trained", math.nan, "bands"),
    ("submissions.nobody", {}, r"submissions\.nobody: no such row"),
    (f"submissions.{SUBMITTED}", {}, "its row's group .* recipe: official-2018, settings: cityscapes"),
    (f"submissions.{SUBMITTED}", None, rf"submissions\.{SUBMITTED}: input should be"),
    (f"released.{RELEASED}.settings", "ade20k", rf"released\.{RELEASED}: must begin .* settings: voc2012"),
    (f"released.{RELEASED}.chekcsum", "sha256:12345678", rf"released\.{RELEASED}\.chekcsum: is not a setting"),
    (f"released.{RELEASED}.checksum", "sha256:xyz", rf"released\.{RELEASED}\.checksum"),
    (f"released.{RELEASED}.file", "../x.pth", rf"released\.{RELEASED}\.file"),
    (f"released.{RELEASED}.url", "file:///etc/passwd", rf"released\.{RELEASED}\.url"),
]


@pytest.mark.parametrize(("place", "value", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_wrong_settings_are_blamed_in_their_own_file(raw, place, value, message):
    data = inner = copy.deepcopy(raw)
    *parents, key = place.split(".")
    for parent in parents:
        inner = inner[parent]
    if value is GONE:
        del inner[key]
    else:
        inner[key] = value
    with pytest.raises(ConfigError, match=message):
        Params(data, Path("params.yaml"))


def test_parameters_survive_being_written(raw, tmp_path):
    write_raw(raw, tmp_path, note="for a test")
    again = load_params(tmp_path / "params.yaml")
    assert {row.name: row.hash for row in again.rows.values()} == {row.name: row.hash for row in PARAMS.rows.values()}
    assert again.released == PARAMS.released
    (tmp_path / "params.yaml").write_text("recipes: {}\nrows: {}\n")
    with pytest.raises(ConfigError, match="'recipes' belongs in recipes/"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("section", ["rows", "datasets", "weights", "tables", "recipes", "released", "submissions"])
def test_names_that_could_reach_a_shell_are_refused(raw, section):
    for name in ("../x", "$(x)", "X", "", "a/b", "-x", "a\n", "a" * 81):
        data = {**raw, section: {**raw[section], name: next(iter(raw[section].values()))}}
        with pytest.raises(ConfigError, match=rf"(?s){section}.*string should match pattern") as error:
            Params(data, Path("params.yaml"))
        assert len(str(error.value)) < 500


def test_released_weights_belong_to_rows(raw):
    sources = {"mmsegmentation", "sssegmentation", "official"}
    assert set(PARAMS.released) == {row.name for row in PARAMS.rows.values() if row.source in sources}
    for name, entry in PARAMS.released.items():
        if entry.command:  # made on this machine: the rehearsal's
            assert (entry.url, entry.checksum) == (None, None)
            continue
        digits = entry.file.rpartition("-")[2].removesuffix(".pth")
        assert entry.checksum == (f"sha256:{digits}" if PARAMS.row(name).source == "mmsegmentation" else None)
    data = copy.deepcopy(raw)
    data["released"]["no-such-row"] = data["released"]["ssseg-r50-d8-voc2012"]
    with pytest.raises(ConfigError, match=r"released\.no-such-row: no such row"):
        Params(data, Path("params.yaml"))


def test_a_profile_is_chosen_for_all_rows_or_for_one(raw):
    row = "mmseg-r50-d8-cityscapes-769x769-40k"
    published, whole = PARAMS.row(row), changed(raw | {"numerics": "fast"}, row).row(row)
    own = changed(raw, row, numerics="fast").row(row)
    assert own.numerics == whole.numerics != published.numerics
    assert (published.profile, own.profile, own.hash) == ("published", "fast", whole.hash)
    assert own.train_hash != published.train_hash
    divided = changed(raw | {"numerics": "fast"}, row, numerics={"accumulate": 2}).row(row)
    assert (divided.profile, divided.numerics.precision) == ("fast, accumulate 2", "bf16")


def test_a_stage_s_revision_moves_the_hash_of_what_it_computes(raw):
    row = "mmseg-r50-d8-cityscapes-769x769-40k"
    base = PARAMS.row(row)
    assert changed(raw, row, runtime={"workers": 7}).row(row).hash == base.hash
    for stage, expected in (("train", (True, True)), ("evaluate", (False, True)), ("convert", (False, False))):
        other = copy.deepcopy(raw)
        other["revisions"][stage] += 1
        bumped = changed(other, row).row(row)
        assert (bumped.train_hash != base.train_hash, bumped.hash != base.hash) == expected
