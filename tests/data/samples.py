"""Small files and folders that several of these tests need."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

from danet.config.params import Archive, Dataset
from danet.data.convert import convert_dataset
from danet.data.raw import download_dataset
from pipelines.demo.scenes import Sizes, make_archives

SMALL = Sizes(train=8, val=4, test=2, size=(32, 48), cityscapes=(24, 64))


def dataset(adapter, counts, files=("archive.zip",), storage="source"):
    archives = tuple(Archive(file=file) for file in files)
    return Dataset.model_validate(
        {"adapter": adapter, "title": adapter, "archives": archives, "counts": counts, "storage": storage}
    )


def generated(folder, sizes=SMALL):
    """Small generated archives in ``folder`` and their datasets."""
    made = make_archives(folder, sizes=sizes)
    return {name: Dataset.model_validate({"adapter": name, "title": name, **entry}) for name, entry in made.items()}


def prepare(tree, spec, work):
    """Downloads (from a folder, or archives in ``work``) and converts; the prepared folder."""
    raw, out = work / "raw" / spec.adapter, work / "prepared" / spec.adapter
    download_dataset(spec.adapter, spec, raw, work, tree=tree)
    convert_dataset(spec.adapter, spec, raw, out)
    return out


def camvid_tree(root, count=3, size=(12, 16), suffix=".png"):
    """A CamVid folder with random pictures: splits train, val and test of ``count`` images."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = rng.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(image).save(root / split / f"{split}_{index}{suffix}")
            Image.fromarray(rng.integers(0, 12, size, np.uint8)).save(root / f"{split}annot" / f"{split}_{index}.png")
    return root


def camvid_spec(count=3, storage="source"):
    return dataset("camvid", {"train": count, "val": count, "test": count}, storage=storage)


def contents(folder):
    """The bytes of each file in a folder and below, by its path there."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def zip_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def tar_of(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
