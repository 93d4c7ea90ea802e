"""Commands that are told where to write keep what is there."""

import pytest
from typer.testing import CliRunner

from danet.cli.app import app
from danet.config.yaml import write_raw
from danet.core.errors import DanetError
from tests.parameters import raw_params


@pytest.mark.parametrize(
    "command",
    [
        ("import-weights", "iter_20000.pth"),
        ("export-weights", "seed0.safetensors"),
        ("browse", "camvid"),
        ("submit", "mmseg-r50-d8-cityscapes-512x1024-40k", "--weights", "seed0.safetensors"),
    ],
)
def test_a_users_file_is_kept(tmp_path, monkeypatch, command):
    write_raw(raw_params(), tmp_path)
    monkeypatch.chdir(tmp_path)  # a workspace without data
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    refused = CliRunner().invoke(app, [*command, "--out", str(mine)])
    assert isinstance(refused.exception, DanetError)
    assert str(refused.exception).startswith(f"{mine}: is there already")
    assert "--force" in str(refused.exception)
    forced = CliRunner().invoke(app, [*command, "--out", str(mine), "--force"])
    assert "is there already" not in str(forced.exception)
    assert mine.read_bytes() == b"mine"  # as there is no input, nothing is written
