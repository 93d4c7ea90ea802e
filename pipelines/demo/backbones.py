"""Random backbones in the layout of the v1c ImageNet files, for the demo.

Nothing was learned by them. Their residual branches start at zero (the last normalisation of each block has weight
0), so that a deep network behaves like a shallow one at first and learns the demo's scenes in a few dozen iterations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from danet.core.files import atomic_write, sha256
from danet.models.resnet import ResNet


def make_backbones(folder: Path, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Writes ``resnet50_v1c-demo.pth`` and ``resnet101_v1c-demo.pth``.

    Returns:
        For each of the two entries of ``weights`` in ``datasets.yaml``, what the demo replaces in it.
    """
    made: dict[str, dict[str, Any]] = {}
    for backbone in ("resnet50", "resnet101"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = ResNet(backbone, "deep-32-32-64", 8).state_dict()
        for name in state:
            if name.endswith("bn3.weight"):
                state[name].zero_()
        state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 2048), torch.zeros(1000)
        path = folder / f"{backbone}_v1c-demo.pth"
        with atomic_write(path) as temporary:
            torch.save({"state_dict": state, "meta": {}}, temporary)
        made[f"{backbone}_v1c"] = {
            "title": f"random values in the layout of {backbone}_v1c, residual branches at zero",
            "url": f"http://localhost/{path.name}",
            "file": path.name,
            "checksum": f"sha256:{sha256(path)}",
        }
    return made
