"""mmsegmentation's own training pipeline, timed. Started in build/parity-env, never in ours.

build/parity-env/bin/python -m benchmarks.loading.peer PAIRS OUT IMAGES REPETITIONS WARM_UP
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.loading import timing
from benchmarks.parity.peers import mmseg_peer

CONFIG = "danet_r50-d8_4xb2-40k_cityscapes-512x1024"


def main() -> None:
    """Writes the rates and versions as JSON."""
    pairs, out = (Path(argument) for argument in sys.argv[1:3])
    images, repetitions, warm_up = (int(argument) for argument in sys.argv[3:])
    timing.one_core()
    cv2.setNumThreads(0)  # torch has one thread already, by mmseg_peer
    settings = mmseg_peer.config(CONFIG)
    steps = settings.train_dataloader.dataset.pipeline
    load = mmseg_peer.Compose([mmseg_peer.TRANSFORMS.build(s) for s in steps if s["type"].startswith("Load")])
    change = mmseg_peer.Compose([mmseg_peer.TRANSFORMS.build(s) for s in steps if not s["type"].startswith("Load")])
    preprocess = mmseg_peer.MODELS.build(copy.deepcopy(settings.model.data_preprocessor))
    files = [
        {"img_path": str(path), "seg_map_path": str(path.with_name(path.name.replace("_image.", "_labels.")))}
        for path in sorted(pairs.glob("*_image.png"))
    ]
    loaded = [load(fresh(file)) for file in files]

    def in_memory(index: int) -> Any:
        return {**loaded[index], "seg_fields": ["gt_seg_map"]}

    def from_files(index: int) -> Any:
        return load(fresh(files[index]))

    def case(source: Callable[[int], Any], normalise: bool) -> Callable[[int], None]:
        def run(count: int) -> None:
            np.random.seed(0)
            for first in range(0, count, 8):
                batch = [change(source((first + k) % len(files))) for k in range(8)]
                if normalise:
                    inputs, labels = ([sample[key] for sample in batch] for key in ("inputs", "data_samples"))
                    preprocess({"inputs": inputs, "data_samples": labels}, True)

        return run

    cases = {
        f"{where}/{output}": case(source, output == "float32")
        for where, source in (("memory", in_memory), ("png", from_files))
        for output in ("uint8", "float32")
    }
    rates = timing.rates(cases, images, repetitions, warm_up)
    found = {"rates": {name: rate.values for name, rate in rates.items()}, "versions": mmseg_peer.VERSIONS}
    found["versions"]["opencv"] = cv2.__version__
    out.write_text(json.dumps(found), encoding="utf-8")


def fresh(file: dict[str, str]) -> dict[str, Any]:
    """What a dataset of mmsegmentation gives its pipeline."""
    return {**file, "label_map": None, "reduce_zero_label": False, "seg_fields": []}


if __name__ == "__main__":
    main()
