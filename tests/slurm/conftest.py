"""Tests on real Slurm are run by `make test-slurm` alone."""

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "slurm: runs jobs on an emulated Slurm cluster; run with -m slurm")


def pytest_collection_modifyitems(config, items):
    if "slurm" in str(config.option.markexpr).replace("not slurm", ""):
        return
    for item in items:
        if item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.skip(reason="needs a Slurm cluster of its own: make test-slurm"))
