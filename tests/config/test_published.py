"""Published numbers against the sources' own tables, typed in here by hand from the source's pages."""

import pytest
import yaml

from danet.config.published import check_published, load_published, published
from danet.core.errors import ConfigError
from tests.parameters import PARAMS, ROOT

NUMBERS = ("miou", "miou_ms_flip", "aacc", "aacc_ms", "memory_gb", "fps")


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        # configs/danet/README.md of mmsegmentation
        ("mmseg-r50-d8-cityscapes-512x1024-40k", (78.74, None, None, None, 7.4, 2.66)),
        ("mmseg-r101-d8-cityscapes-769x769-80k", (80.47, 82.02, None, None, None, None)),
        ("mmseg-r101-d8-ade20k-80k", (43.64, 45.19, None, None, 15.0, 14.18)),
        ("mmseg-r50-d8-voc2012-20k", (74.45, 75.69, None, None, 6.5, 20.94)),
        # docs/ModelZoo of sssegmentation
        ("ssseg-r50-d16-voc2012", (75.04, None, None, None, None, None)),
        ("ssseg-r101-d8-cityscapes", (80.55, None, None, None, None, None)),
        # README of junfu1115/DANet
        ("official-danet-r101-d8-cityscapes", (79.93, 81.49, 95.97, 96.41, None, None)),
        ("official-dranet-r101-d8-cityscapes", (81.63, None, 96.62, None, None, None)),
        ("clusterdanet-r101-d8-voc2012", (None,) * 6),
        ("camvid-r50-d8", (None,) * 6),
    ],
)
def test_hand_checked_numbers(row, numbers):
    entry = published(row)
    assert tuple(getattr(entry, name) for name in NUMBERS) == numbers


def test_every_number_belongs_to_a_row_and_every_row_has_an_entry():
    raw = yaml.safe_load((ROOT / "benchmarks" / "published.yaml").read_text())
    read = {name: entry.model_dump(mode="json", exclude_unset=True) for name, entry in load_published().items()}
    assert read == raw
    assert set(raw) <= set(PARAMS.rows)
    assert len(raw) == 16 + 12 + 2 + 1 + 2  # the last two are the rehearsal's


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camvid-r50-d8: {miou: 101}", "camvid-r50-d8.miou"),
        ("camvid-r50-d8: {mIoU: 70}", "camvid-r50-d8.mIoU"),
        ("camvid-r50-d8: {miou: 20.0, seeds: [20.0, 20.1]}", "not the mean of the seeds"),
        ("a: [", "not valid YAML"),
    ],
)
def test_wrong_entries_are_named(tmp_path, text, message):
    path = tmp_path / "published.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_published(path)


def test_renamed_rows_cannot_lose_their_numbers(tmp_path):
    path = tmp_path / "published.yaml"
    raw = yaml.safe_load((ROOT / "benchmarks" / "published.yaml").read_text())
    del raw["ssseg-r50-d16-voc2012"]
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match="ssseg-r50-d16-voc2012"):
        check_published("sssegmentation", PARAMS, path)
    check_published("official", PARAMS, path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_published(tmp_path / "missing.yaml")
