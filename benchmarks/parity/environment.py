"""The sources' packages, in an environment of their own that parity, speed and rehearsal share."""

from __future__ import annotations

import hashlib
import subprocess
import venv
from pathlib import Path

from danet.core.errors import ConfigError
from danet.core.provenance import PACKAGE_ROOT

ENVIRONMENT = PACKAGE_ROOT / "build" / "parity-env"
REQUIREMENTS = [Path(__file__).with_name(name) for name in ("requirements.txt", "requirements-peers.txt")]


def prepare_environment() -> Path:
    """Makes ``build/parity-env`` unless it is there with these requirements; returns its Python.

    Raises:
        ConfigError: if a package cannot be installed.
    """
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in REQUIREMENTS)).hexdigest()
    python = ENVIRONMENT / "bin" / "python"
    mark = ENVIRONMENT / "requirements.sha256"
    if python.exists() and mark.exists() and mark.read_text() == digest:
        return python
    print("making build/parity-env (a few minutes, once)", flush=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        subprocess.run([*pip, "-r", REQUIREMENTS[0]], check=True)
        # sssegmentation is a source package that imports torch when it is built
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-r", REQUIREMENTS[1]], check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"build/parity-env: the sources' packages could not be installed ({error}); see what pip says above (is "
            "there a network?), then run the same command again"
        ) from error
    mark.write_text(digest)
    return python
