"""Runs sssegmentation 1.7.0 on the shared weights and inputs. Started in build/parity-env, never in ours.

build/parity-env/bin/python -m benchmarks.parity.peers.ssseg_peer FOLDER
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from benchmarks.parity import common
from benchmarks.parity.peers import shared, stubs
from benchmarks.parity.peers.ssseg_danet import settings, test_pipeline, train_pipeline

stubs.install(stubs.SSSEGMENTATION)
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import ssseg  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from ssseg.modules.datasets.pipelines import DataTransformBuilder, Evaluation  # noqa: E402
from ssseg.modules.models.optimizers import BuildOptimizer  # noqa: E402
from ssseg.modules.models.schedulers import BuildScheduler  # noqa: E402
from ssseg.modules.models.segmentors import BuildSegmentor  # noqa: E402
from ssseg.modules.utils import SSSegInputStructure  # noqa: E402

torch.set_num_threads(1)
VERSIONS = {"sssegmentation": ssseg.__version__, "torch": torch.__version__, "numpy": np.__version__}
HEADS = {"main": "decoder_pamcam", "pam": "decoder_pam", "cam": "decoder_cam", "aux": "auxiliary_decoder"}


def build(config: dict[str, Any], case: str | None) -> Any:
    """The peer's network, with the shared weights if ``case`` is given; dropout off."""
    return shared.prepared(BuildSegmentor(segmentor_cfg=config, mode="TRAIN"), case)


def described(model: Any, depth: int, stride: int, classes: int) -> dict[str, Any]:
    """What our side needs to make the same network."""
    return {
        "keys": shared.keys(model),
        "depth": depth,
        "output_stride": stride,
        "classes": classes,
        "align_corners": False,
        "versions": VERSIONS,
    }


def structure(image: np.ndarray, label: np.ndarray | None, mode: str) -> Any:
    """The peer's input, with its ignored label -100."""
    targets = None
    if label is not None:
        targets = torch.from_numpy(np.ascontiguousarray(np.where(label == 255, -100, label)))
    return SSSegInputStructure(mode=mode, images=torch.from_numpy(image), seg_targets=targets)


MODEL_CASES = {
    # name: (depth, output stride, classes, batch, height, width)
    "small": (50, 16, 21, 2, 49, 65),
    "r50-os8-voc": (50, 8, 21, 2, 96, 128),
    "r50-os16-ade20k": (50, 16, 150, 2, 129, 161),
    "r101-os8-cityscapes": (101, 8, 19, 2, 97, 129),
    "r101-os16-cityscapes": (101, 16, 19, 2, 129, 161),
}


def models(folder: Path) -> None:
    """In float64: logits of all heads in both modes, loss, gradients and the batch-norm statistics after one step."""
    for name, (depth, stride, classes, batch, height, width) in MODEL_CASES.items():
        case = f"ssseg-{name}"
        model = build(settings(depth, stride, classes), case).double()
        image = common.network_input(case, batch, height, width).astype(np.float64)
        label = common.network_label(case, batch, height, width, classes)
        seen: dict[str, torch.Tensor] = {}
        for head, attribute in HEADS.items():
            getattr(model, attribute).register_forward_hook(
                lambda _module, _inputs, output, head=head, seen=seen: seen.__setitem__(head, output.detach().clone())
            )
        model.eval()
        with torch.no_grad():
            model(structure(image, None, "TEST"))
        found = {"eval_main": seen["main"]}
        seen.clear()  # it computes the other heads in training only
        model.train()
        output = model(structure(image, label, "TRAIN"))
        found |= {f"train_{head}": value for head, value in seen.items()}
        facts = described(model, depth, stride, classes)
        shared.save_step(folder, case, model, found, output.loss, [batch, height, width], facts)


def initialisation(folder: Path) -> None:
    """As the peer's own init leaves the network."""
    shared.save_starts(folder, "ssseg", lambda: build(settings(50, 8, 19), None), VERSIONS)


LENGTHS = {"voc2012": (60, 661), "ade20k": (130, 1263), "cityscapes": (220, 372)}
"""Epochs and iterations per epoch with the default 8 GPUs."""


def schedule(folder: Path) -> None:
    """PolyScheduler at every iteration of each of the rows' lengths."""
    arrays = {}
    for name, (epochs, iterations) in LENGTHS.items():
        config = settings(50, 8, 19)["scheduler"] | {"max_epochs": epochs}
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
        scheduler = BuildScheduler(
            optimizer=optimizer, scheduler_cfg=config | {"lr": 0.01, "iters_per_epoch": iterations, "params_rules": {}}
        )
        values = np.empty(epochs * iterations)
        for iteration in range(values.size):
            scheduler.updatelr()
            values[iteration] = optimizer.param_groups[0]["lr"]
            scheduler.step()
        arrays[name] = values
    common.save(folder, "schedule-ssseg", arrays, {"lengths": LENGTHS, "versions": VERSIONS})


AUGMENT_CASES = {
    # name: (scale (w, h), crop (h, w), image sizes, classes, seeds)
    "cityscapes": ((2048, 1024), (512, 1024), [(1024, 2048)], 19, range(100, 104)),
    "ade20k": ((2048, 512), (512, 512), [(256, 341), (683, 512), (512, 683)], 150, range(110, 116)),
    "voc2012": ((2048, 512), (512, 512), [(375, 500), (500, 333), (281, 500)], 21, range(120, 128)),
    "small": ((120, 64), (48, 80), [(60, 90), (90, 61)], 19, range(130, 138)),
}


def augmentation(folder: Path) -> None:
    """The training pipeline with its draws."""
    for name, (scale, crop, sizes, classes, seeds) in AUGMENT_CASES.items():
        kinds = train_pipeline(scale, crop)
        steps = [DataTransformBuilder.REGISTERED_MODULES[kind](**arguments) for kind, arguments in kinds]
        arrays: dict[str, Any] = {}
        cases = []
        for index, seed in enumerate(seeds):
            height, width = sizes[index % len(sizes)]
            key = f"ssseg-augment-{name}-{seed}"
            image, label = common.photograph(key, height, width), common.annotation(key, height, width, classes)
            values = label.astype(np.float32)  # as its datasets read them
            values[label == 255] = -100
            sample = {"image": image.copy(), "seg_target": values}
            distorted = None
            with shared.recorded(seed) as log:
                for step in steps:
                    sample = step(sample)
                    if type(step).__name__ == "PhotoMetricDistortion":
                        distorted = sample["image"].copy()
            assert distorted is not None
            target = sample["seg_target"].numpy()
            arrays |= shared.sample_arrays(
                seed,
                np.ascontiguousarray(distorted.transpose(2, 0, 1)),
                np.where(target == -100, 255, target),
                sample["image"].numpy(),
            )
            drawn = shared.drawn(log, "rand", lambda value: value <= 0.5)
            cases.append({"seed": seed, "size": [height, width], "draws": drawn})
        meta = {"cases": cases, "classes": classes, "scale": scale, "crop": crop, "versions": VERSIONS}
        common.save(folder, f"augment-ssseg-{name}", arrays, meta)


def inference(folder: Path) -> None:
    """Single scale: resize, whole image, logits straight to the image's size (its test.py)."""
    for name, stride, size, scale in (("whole", 8, (60, 80), (256, 80)), ("small", 16, (20, 30), (96, 64))):
        case = f"ssseg-inference-{name}"
        config = settings(50, stride, 21)
        model = build(config, case).double()
        model.eval()
        image = common.photograph(case, *size)
        sample = {"image": image.copy()}
        for kind, arguments in test_pipeline(scale):
            sample = DataTransformBuilder.REGISTERED_MODULES[kind](**arguments)(sample)
        with torch.no_grad():
            outputs = model.auginference(sample["image"][None].double())
            resized = [F.interpolate(one, size=size, mode="bilinear", align_corners=False) for one in outputs]
            logits = (sum(resized) / len(resized))[0]
        arrays = {"single": logits.numpy(), "single_class": logits.argmax(0).numpy()}
        meta = {"size": size, "scale": scale, "window": None, "stride": None}
        shared.save_scores(folder, case, arrays, meta | described(model, 50, stride, 21))


def metrics(folder: Path) -> None:
    """Its own evaluation."""
    pairs = [(prediction.astype(np.int32), label.astype(np.int32)) for prediction, label in common.metric_pairs()]
    predictions, labels = [p for p, _ in pairs], [np.where(label == 255, -1, label) for _, label in pairs]
    classes = common.METRIC_CLASSES
    result = Evaluation(
        seg_preds=predictions, seg_targets=labels, num_classes=classes, ignore_index=-1
    ).all_metric_results
    arrays = {"miou": np.array(result["miou"]), "iou": result["iou"], "aacc": np.array(result["all_accuracy"])}
    common.save(folder, "metrics-ssseg", arrays, {"versions": VERSIONS})


def training(folder: Path) -> None:
    """Its optimiser, scheduler and loss as its train.py drives them, on given batches, at the configs' rate."""
    case = "ssseg-training"
    for name, run in common.TRAININGS.items():
        config = settings(50, 8, 19)
        config["scheduler"]["max_epochs"] = 1
        config["scheduler"]["min_lr"] = 1e-4
        model = build(config, case).double()
        model.train()
        optimizer = BuildOptimizer(model, config["scheduler"]["optimizer"])
        more = {"lr": 0.01, "iters_per_epoch": run["iterations"], "params_rules": {}}
        scheduler = BuildScheduler(optimizer=optimizer, scheduler_cfg=config["scheduler"] | more)
        losses, rates = [], []
        for iteration in range(run["iterations"]):
            image, label = common.training_batch(case, iteration, run)
            rates.append(scheduler.updatelr())
            optimizer.zero_grad()
            output = model(structure(image, label, "TRAIN"))
            output.loss.backward()
            losses.append(output.loss.item())
            scheduler.step()
        arrays = common.training_arrays(losses, rates, model.state_dict())
        common.save(folder, f"training-ssseg-{name}", arrays, described(model, 50, 8, 19))


STEPS = (models, initialisation, schedule, augmentation, inference, metrics, training)


if __name__ == "__main__":
    shared.main(f"sssegmentation {ssseg.__version__}", STEPS)
