"""The hashes of rows: they follow the complete resolved settings, whatever a default becomes."""

import json
from pathlib import Path

import pytest

from danet.config.row import NEUTRAL, Row
from danet.results.identity import flat
from tests.parameters import PARAMS, altered

GOLDEN = Path(__file__).with_name("golden_rows.json")


def current():
    return {
        name: {"hash": row.hash, "train_hash": row.train_hash, "settings": row.settings}
        for name, row in PARAMS.rows.items()
    }


def test_settings_and_hashes_are_those_on_record():
    """A hash names runs that took GPU-days. Where this fails on purpose: `python -m tests.config.test_identity_of_rows`
    writes the file anew, and the commit says which rows changed and why.
    """
    golden = json.loads(GOLDEN.read_text())
    found = json.loads(json.dumps(current()))
    assert list(found) == list(golden)
    for name, row in found.items():
        before, now = flat(golden[name]["settings"]), flat(row["settings"])
        changed = {key for key in {*before, *now} if before.get(key) != now.get(key)}
        neutral = {key for key in changed if key not in before and now[key] == NEUTRAL.get(key, ...)}
        if row["hash"] == golden[name]["hash"]:
            assert changed == neutral, f"{name}: {sorted(changed)} changed, and the hash did not"
        assert (row["train_hash"], row["hash"]) == (golden[name]["train_hash"], golden[name]["hash"]), (
            f"{name}: {sorted(changed)} changed the hash; is that meant?"
        )


def _other(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, 7] if isinstance(value, list) else f"{value}x"


@pytest.mark.parametrize("name", ["mmseg-r50-d8-cityscapes-769x769-40k", "official-danet-r101-d8-cityscapes"])
def test_every_setting_moves_a_hash(name):
    """Altered one by one, defaults too: testing settings move the row's hash, all others both."""
    row = PARAMS.row(name)

    class Altered(Row):
        place: str = ""

        @property
        def settings(self):
            settings = super().settings
            settings.pop("place", None)
            *parents, key = self.place.split(".")
            inner = settings
            for parent in parents:
                inner = inner[parent]
            inner[key] = _other(inner[key])
            return settings

    data = row.model_dump()
    for place in flat(row.settings):
        section = place.split(".")[0]
        if section in {"name", "source", "val_split", "test", "revisions"} or place == "numerics.fold_bn":
            continue
        altered = Altered(**data, place=place)
        assert altered.train_hash != row.train_hash, place
        assert altered.hash != row.hash, place


def test_every_testing_setting_moves_the_hash_alone():
    row = PARAMS.row("mmseg-r50-d8-ade20k-80k")
    changes = [
        {"val_split": "train"},
        {"test": {"flip": True}},
        {"test": {"multi_scale": None}},
        {"numerics": {"fold_bn": True}},
        {"revisions": {"evaluate": 2}},
    ]
    hashes = {row.hash}
    for change in changes:
        other = altered(row, **change)
        assert other.train_hash == row.train_hash, change
        hashes.add(other.hash)
    assert len(hashes) == len(changes) + 1


def test_text_for_the_reader_moves_nothing():
    row = PARAMS.row("camvid-r50-d8")
    for change in ({"protocol": "other words"}, {"notes": ("a note",)}, {"seeds": (0, 1)}, {"val_interval": 50}):
        other = altered(row, **change)
        assert (other.train_hash, other.hash) == (row.train_hash, row.hash), change


if __name__ == "__main__":
    lines = [f" {json.dumps(name)}: {json.dumps(row)}" for name, row in current().items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
