"""Runs mmsegmentation 1.2.2 on the shared weights and inputs. Started in build/parity-env, never in ours.

build/parity-env/bin/python -m benchmarks.parity.peers.mmseg_peer FOLDER
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parity import common
from benchmarks.parity.peers import shared, stubs

stubs.install(stubs.MMSEGMENTATION)
warnings.simplefilter("ignore")

import mmcv  # noqa: E402
import mmengine  # noqa: E402
import mmseg  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmcv.transforms import Compose, RandomFlip, Resize  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.model import revert_sync_batchnorm  # noqa: E402
from mmengine.optim import OptimWrapper, PolyLR  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402
from mmseg.datasets.transforms import PackSegInputs  # noqa: E402
from mmseg.evaluation import IoUMetric  # noqa: E402
from mmseg.models import SegTTAModel  # noqa: E402
from mmseg.registry import MODELS, TRANSFORMS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402

torch.set_num_threads(1)
register_all_modules()
MMLogger.get_instance("mmengine", log_level="ERROR")
CONFIGS = Path(mmseg.__file__).parent / ".mim" / "configs" / "danet"
VERSIONS = {
    "mmsegmentation": mmseg.__version__,
    "mmcv": mmcv.__version__,
    "mmengine": mmengine.__version__,
    "torch": torch.__version__,
    "numpy": np.__version__,
}


def config(name: str) -> Any:
    """The package's own config, without the ImageNet weights."""
    settings = Config.fromfile(CONFIGS / f"{name}.py")
    settings.model.pretrained = None
    return settings


def build(settings: Any, case: str | None, dropout: bool = False) -> Any:
    """The peer's network for one process (BN for SyncBN).

    With the shared weights if ``case`` is given, else as its own initialisation leaves it.
    """
    model = MODELS.build(copy.deepcopy(settings.model))
    if case is None:
        model.init_weights()
    return shared.prepared(revert_sync_batchnorm(model), case, dropout)


def described(model: Any) -> dict[str, Any]:
    """What our side needs to make the same network."""
    return {
        "keys": shared.keys(model),
        "depth": model.backbone.depth,
        "output_stride": 8,
        "classes": model.num_classes,
        "align_corners": model.align_corners,
        "versions": VERSIONS,
    }


def sample(size: Sequence[int], label: Any = None, original: Sequence[int] | None = None) -> Any:
    """What the peer knows of an image besides its pixels: its size, that of the result, and the label, H x W, int64."""
    shapes = {"img_shape": size, "ori_shape": original or size, "pad_shape": size, "padding_size": [0] * 4}
    result = SegDataSample(metainfo=shapes)
    if label is not None:
        result.gt_sem_seg = PixelData(data=torch.as_tensor(label)[None])
    return result


def samples(label: np.ndarray) -> list[Any]:
    """Labels N x H x W as the peer's data samples."""
    return [sample(one.shape, one) for one in label]


MODEL_CASES = {
    # name: (config, batch, height, width)
    "small": ("danet_r50-d8_4xb2-40k_cityscapes-512x1024", 2, 33, 41),
    "r50-cityscapes": ("danet_r50-d8_4xb2-80k_cityscapes-512x1024", 2, 128, 160),
    "r50-cityscapes-769": ("danet_r50-d8_4xb2-80k_cityscapes-769x769", 2, 97, 129),
    "r101-cityscapes-769": ("danet_r101-d8_4xb2-80k_cityscapes-769x769", 2, 97, 97),
    "r50-ade20k": ("danet_r50-d8_4xb4-160k_ade20k-512x512", 2, 96, 128),
    "r101-voc": ("danet_r101-d8_4xb4-40k_voc12aug-512x512", 2, 96, 96),
}


def models(folder: Path) -> None:
    """In float64: logits of all heads in both modes, loss, gradients and the batch-norm statistics after one step."""
    for name, (file, batch, height, width) in MODEL_CASES.items():
        case = f"mmseg-{name}"
        model = build(config(file), case).double()
        image = torch.from_numpy(common.network_input(case, batch, height, width)).double()
        label = samples(common.network_label(case, batch, height, width, model.num_classes))
        found: dict[str, Any] = {}
        for mode in ("eval", "train"):
            model.train(mode == "train")
            with torch.set_grad_enabled(mode == "train"):
                features = model.extract_feat(image)
                logits, aux = model.decode_head(features), model.auxiliary_head(features)
            found |= zip((f"{mode}_{head}" for head in ("main", "pam", "cam", "aux")), (*logits, aux), strict=True)
        losses = {
            **model.decode_head.loss_by_feat(logits, label),
            **{f"aux_{key}": value for key, value in model.auxiliary_head.loss_by_feat(aux, label).items()},
        }
        loss = sum(value for key, value in losses.items() if "loss" in key)
        shared.save_step(folder, case, model, found, loss, [batch, height, width], described(model))


def initialisation(folder: Path) -> None:
    """As the peer's own init leaves the network."""
    settings = config("danet_r50-d8_4xb2-40k_cityscapes-512x1024")
    shared.save_starts(folder, "mmseg", lambda: build(settings, None), VERSIONS)


def schedule(folder: Path) -> None:
    """mmengine's PolyLR at every iteration of each of the rows' lengths."""
    arrays = {}
    for total in (20000, 40000, 80000, 160000):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=0.01)
        scheduler = PolyLR(optimizer, power=0.9, eta_min=1e-4, begin=0, end=total, by_epoch=False)
        values = np.empty(total)
        for iteration in range(total):
            values[iteration] = optimizer.param_groups[0]["lr"]
            optimizer.step()
            scheduler.step()
        arrays[str(total)] = values
    common.save(folder, "schedule-mmseg", arrays, {"versions": VERSIONS})


def loaded(image: np.ndarray) -> dict[str, Any]:
    """What the pipelines begin with once an image is read."""
    size = image.shape[:2]
    paths = {"img_path": "", "seg_map_path": "", "reduce_zero_label": False}
    return {"img": image.copy(), "img_shape": size, "ori_shape": size, **paths}


AUGMENT_CASES = {
    # name: (config, row whose augmentation it is, image sizes, classes, seeds)
    "cityscapes-512x1024": ("danet_r50-d8_4xb2-40k_cityscapes-512x1024", [(1024, 2048)], 19, range(4)),
    "cityscapes-769x769": ("danet_r50-d8_4xb2-40k_cityscapes-769x769", [(1024, 2048)], 19, range(10, 14)),
    "ade20k": ("danet_r50-d8_4xb4-80k_ade20k-512x512", [(256, 341), (683, 512), (512, 683)], 150, range(20, 26)),
    "voc2012": ("danet_r50-d8_4xb4-20k_voc12aug-512x512", [(375, 500), (500, 333), (281, 500)], 21, range(30, 38)),
    "small": ("danet_r50-d8_4xb2-40k_cityscapes-512x1024", [(60, 90), (90, 61)], 19, range(40, 48)),
}
SMALL = {"scale": (120, 64), "crop": (48, 80)}


def augmentation(folder: Path) -> None:
    """The training pipeline of the package's configs (loading left out) and the data preprocessor, with its draws."""
    for name, (file, sizes, classes, seeds) in AUGMENT_CASES.items():
        settings = config(file)
        dataset = settings.train_dataloader.dataset
        while "pipeline" not in dataset:
            dataset = dataset["datasets"][0]
        steps = [copy.deepcopy(s) for s in dataset.pipeline if not s["type"].startswith("Load")]
        preprocessor_settings = copy.deepcopy(settings.model.data_preprocessor)
        if name == "small":
            for step in steps:
                if step["type"] == "RandomResize":
                    step["scale"] = SMALL["scale"]
                if step["type"] == "RandomCrop":
                    step["crop_size"] = SMALL["crop"]
            preprocessor_settings["size"] = SMALL["crop"]
        crop = next(s["crop_size"] for s in steps if s["type"] == "RandomCrop")
        pipeline = Compose([TRANSFORMS.build(step) for step in steps])
        preprocessor = MODELS.build(preprocessor_settings)
        arrays: dict[str, Any] = {}
        cases = []
        for index, seed in enumerate(seeds):
            height, width = sizes[index % len(sizes)]
            key = f"mmseg-augment-{name}-{seed}"
            image, label = common.photograph(key, height, width), common.annotation(key, height, width, classes)
            with shared.recorded(seed) as log:
                result = pipeline(loaded(image) | {"gt_seg_map": label.copy(), "seg_fields": ["gt_seg_map"]})
            batch = preprocessor({"inputs": [result["inputs"]], "data_samples": [result["data_samples"]]}, True)
            arrays |= shared.sample_arrays(
                seed,
                result["inputs"].numpy(),  # BGR, 3 x h x w, before padding (VOC: padded)
                batch["data_samples"][0].gt_sem_seg.data[0].numpy(),
                batch["inputs"][0].numpy(),
            )
            drawn = shared.drawn(log, "choice", lambda direction: direction == "horizontal")
            cases.append({"seed": seed, "size": [height, width], "draws": drawn})
        meta = {
            "cases": cases,
            "classes": classes,
            "config": file,
            "crop": list(crop),
            "scale": list(next(s["scale"] for s in steps if s["type"] == "RandomResize")),
            "pads_before_normalising": any(s["type"] == "Pad" for s in steps),
            "versions": VERSIONS,
        }
        common.save(folder, f"augment-mmseg-{name}", arrays, meta)


def _predict(model: Any, image: np.ndarray, transforms: list[Any]) -> Any:
    packed = Compose([*transforms, PackSegInputs()])(loaded(image))
    batch = model.data_preprocessor({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}, False)
    with torch.no_grad():
        return model.predict(batch["inputs"].double(), batch["data_samples"])[0]


INFERENCE_CASES = {
    # name: (config, image size, test scale (w, h), window or None, stride)
    "whole": ("danet_r50-d8_4xb4-20k_voc12aug-512x512", (60, 80), (256, 80), None, None),
    "slide": ("danet_r50-d8_4xb2-40k_cityscapes-769x769", (70, 140), (161, 81), (65, 65), (43, 43)),
    "small": ("danet_r50-d8_4xb2-40k_cityscapes-769x769", (20, 30), (73, 49), (33, 33), (22, 22)),
}
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def inference(folder: Path) -> None:
    """Single scale, multi-scale + flip by 1.x's rule (image size) and 0.x's (test scale), of the peer's parts."""
    for name, (file, size, scale, window, stride) in INFERENCE_CASES.items():
        case = f"mmseg-inference-{name}"
        settings = config(file)
        if window:
            settings.model.test_cfg = {"mode": "slide", "crop_size": window, "stride": stride}
        model = build(settings, case).double().eval()
        merger = SegTTAModel.__new__(SegTTAModel)
        torch.nn.Module.__init__(merger)
        merger.module = model
        image = common.photograph(case, *size)
        single = _predict(model, image, [Resize(scale=scale, keep_ratio=True)])
        arrays = {"single": single.seg_logits.data.numpy(), "single_class": single.pred_sem_seg.data[0].numpy()}
        ratios = (0.5, 1.25) if name == "small" else RATIOS
        for rule in ("image", "test-scale"):
            parts = []
            for ratio in ratios:
                if rule == "image":
                    resize = Resize(scale_factor=ratio, keep_ratio=True)
                else:
                    resize = Resize(scale=(int(scale[0] * ratio), int(scale[1] * ratio)), keep_ratio=True)
                parts += [
                    _predict(model, image, [resize, RandomFlip(prob=flip, direction="horizontal")])
                    for flip in (0.0, 1.0)
                ]
            mean = sum(part.seg_logits.data.softmax(0) for part in parts) / len(parts)
            merged = merger.merge_preds([copy.deepcopy(parts)])[0]
            arrays[f"multi_{rule}"] = mean.numpy()
            arrays[f"multi_{rule}_class"] = merged.pred_sem_seg.data.numpy().reshape(size)
        meta = {"size": size, "scale": scale, "window": window, "stride": stride, "ratios": ratios}
        shared.save_scores(folder, case, arrays, meta | described(model))


def metrics(folder: Path) -> None:
    """IoUMetric with absent classes, ignored pixels and an empty image, in both conventions."""
    import torchmetrics  # needed here alone: `make gpu` gets by without
    from torchmetrics.classification import MulticlassJaccardIndex

    arrays: dict[str, Any] = {}
    classes, pairs = common.METRIC_CLASSES, common.metric_pairs()
    for convention, value in (("skip", None), ("zero", 0)):
        metric = IoUMetric(iou_metrics=["mIoU"], nan_to_num=value)
        metric.dataset_meta = {"classes": [str(c) for c in range(classes)]}
        results = [
            metric.intersect_and_union(torch.from_numpy(p).long(), torch.from_numpy(t).long(), classes, 255)
            for p, t in pairs
        ]
        columns = [sum(column) for column in zip(*results, strict=True)]
        raw = metric.total_area_to_metrics(*columns, ["mIoU"], value)
        arrays[f"{convention}_iou"], arrays[f"{convention}_acc"] = np.array(raw["IoU"]), np.array(raw["Acc"])
        arrays[f"{convention}_aacc"] = np.array(raw["aAcc"])
        rounded = metric.compute_metrics(results)
        arrays[f"{convention}_rounded"] = np.array([rounded["mIoU"], rounded["aAcc"], rounded["mAcc"]])
    index_metric = MulticlassJaccardIndex(classes, ignore_index=255, average="none")
    for prediction, label in pairs:
        index_metric.update(torch.from_numpy(prediction).long(), torch.from_numpy(label).long())
    arrays["torchmetrics_iou"] = index_metric.compute().numpy()
    common.save(folder, "metrics-mmseg", arrays, {"versions": VERSIONS | {"torchmetrics": torchmetrics.__version__}})


def training(folder: Path) -> None:
    """mmengine's optimiser wrapper and PolyLR on given batches, at the rate of the config."""
    settings = config("danet_r50-d8_4xb2-40k_cityscapes-512x1024")
    case = "mmseg-training"
    for name, run in common.TRAININGS.items():
        model = build(settings, case).double().train()
        arguments = {key: value for key, value in settings.optim_wrapper.optimizer.items() if key != "type"}
        optimizer = torch.optim.SGD(model.parameters(), **arguments)
        wrapper = OptimWrapper(optimizer)
        scheduler = PolyLR(optimizer, by_epoch=False, begin=0, end=run["iterations"], power=0.9, eta_min=1e-4)
        losses, rates = [], []
        for iteration in range(run["iterations"]):
            image, label = common.training_batch(case, iteration, run)
            total, log = model.parse_losses(model.loss(torch.from_numpy(image), samples(label)))
            rates.append(optimizer.param_groups[0]["lr"])
            losses.append(log["loss"].item())
            wrapper.update_params(total)
            scheduler.step()
        arrays = common.training_arrays(losses, rates, model.state_dict())
        common.save(folder, f"training-mmseg-{name}", arrays, described(model))


STEPS = (models, initialisation, schedule, augmentation, inference, metrics, training)


if __name__ == "__main__":
    shared.main(f"mmsegmentation {mmseg.__version__}", STEPS)
