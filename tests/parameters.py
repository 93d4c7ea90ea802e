"""Parameters for tests: the repository's, as they are, or to be changed and used or written."""

import shutil
from pathlib import Path

from danet.config.params import load_params
from danet.config.yaml import BESIDE, read_raw

ROOT = Path(__file__).parents[1]
PARAMS = load_params(ROOT / "params.yaml")
"""Read once, for it takes most of a second; no test changes it."""


def altered(settings, **changes):
    """A copy of a row, or of any of its sections, with other values; a mapping alters single values of a section."""
    update = {
        name: altered(getattr(settings, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return settings.model_copy(update=update)


def copy_settings(folder, *more):
    """Copies ``params.yaml``, all that is read with it, and ``more`` files of the repository into a folder."""
    for name in ("params.yaml", *BESIDE, *more):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "recipes", folder / "recipes")


def raw_params(*, released=True, rows=()):
    """The repository's parameters as written, all files in one mapping; a fresh one at each call.

    Args:
        released: whether to keep the released weights.
        rows: the only rows to keep (then without submissions and released weights, which belong to other rows).
    """
    raw = read_raw(ROOT / "params.yaml")
    if rows:
        raw["rows"] = {name: raw["rows"][name] for name in rows}
        raw["submissions"] = {}
    if rows or not released:
        raw["released"] = {}
    return raw
