"""requirements.lock: what pyproject.toml asks for, each version with its hashes, and where it comes from left open."""

import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.parameters import ROOT

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_every_version_has_hashes_and_no_address():
    entries = re.split(r"\n(?=[a-z])", LOCK)[1:]
    assert len(entries) > 100
    assert [
        e for e in entries if not re.match(r"[a-z0-9.-]+==\S+( ; [^\n]*)? \\\n    --hash=sha256:[0-9a-f]{64}", e)
    ] == []
    assert "://" not in LOCK


def test_it_has_what_pyproject_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = dict(re.findall(r"^([a-z0-9.-]+)==([^ ]+)", LOCK, re.MULTILINE))
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), f"{text}: run `make lock`"
