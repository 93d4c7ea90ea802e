"""`predict_files` on real image files, with a small model in the place of DANet."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from danet.config.row import MultiScale, Test
from danet.core.errors import ConfigError, DanetError, DataError
from danet.data.registry import ADAPTERS
from danet.evaluation import predict
from tests.parameters import PARAMS, altered


class Brightness(nn.Module):
    """Class 1 where the image is light, else class 0; as many classes as asked for."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x):
        light = x.mean(dim=1, keepdim=True)
        rest = torch.full_like(light, -50.0).expand(-1, self.num_classes - 2, -1, -1)
        return {"main": torch.cat([-light, light, rest], dim=1)}


@pytest.fixture
def row():
    return altered(PARAMS.row("camvid-r50-d8"), test=Test())


@pytest.fixture
def small_model(monkeypatch):
    loaded = []
    monkeypatch.setattr(predict, "build_model", lambda config, classes, attention: Brightness(classes))
    monkeypatch.setattr(predict, "load_any", lambda path, model: loaded.append(path))
    return loaded


def half_light(height=32, width=48):
    image = np.full((height, width, 3), 20, np.uint8)
    image[:, width // 2 :] = 235
    return image


def run(row, tmp_path, images, **arguments):
    arguments = {"weights": tmp_path / "w.safetensors", "out": tmp_path / "out", "adapter": "camvid"} | arguments
    return predict.predict_files(row, images=images, device="cpu", **arguments)


def test_masks_and_overlays(row, tmp_path, small_model):
    images = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for path in images:
        cv2.imwrite(str(path), half_light())
    written = run(row, tmp_path, images)
    names = ["a.png", "a-overlay.png", "b.png", "b-overlay.png"]
    assert [p.name for p in written] == names
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(names)
    assert set(small_model) == {tmp_path / "w.safetensors"}
    spec = ADAPTERS["camvid"]
    for stem in "ab":
        with Image.open(tmp_path / "out" / f"{stem}.png") as mask:
            assert mask.mode == "P"
            assert mask.size == (48, 32)
            assert mask.convert("RGB").getpixel((40, 5)) == spec.palette[1]
            ids = np.asarray(mask)
        np.testing.assert_array_equal(ids[:, :22], 0)
        np.testing.assert_array_equal(ids[:, 26:], 1)


def test_multi_scale(row, tmp_path, small_model):
    cv2.imwrite(str(tmp_path / "a.png"), half_light())
    with pytest.raises(ConfigError, match="no multi-scale"):
        run(row, tmp_path, [tmp_path / "a.png"], mode="ms")
    multi = altered(row, test=Test(multi_scale=MultiScale(scales=(0.5, 1.0))))
    mask, _ = run(multi, tmp_path, [tmp_path / "a.png"], mode="ms")
    with Image.open(mask) as found:
        assert (found.getpixel((5, 5)), found.getpixel((40, 5))) == (0, 1)


def test_exif_orientation_is_applied(row, tmp_path, small_model):
    picture = Image.fromarray(half_light())
    exif = picture.getexif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees to the right: the light half is then below
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    run(row, tmp_path, [tmp_path / "turned.jpg"])
    with Image.open(tmp_path / "out" / "turned.png") as mask:
        assert mask.size == (32, 48)
        assert mask.getpixel((5, 5)) == 0
        assert mask.getpixel((5, 44)) == 1


def test_grey_images(row, tmp_path, small_model):
    Image.fromarray(half_light()[..., 0]).save(tmp_path / "a.png")
    run(row, tmp_path, [tmp_path / "a.png"])
    with Image.open(tmp_path / "out" / "a.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), (half_light()[..., 0] > 100).astype(np.uint8))


DEEP = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint16))[1].tobytes()
WITH_ALPHA = cv2.imencode(".png", np.dstack([half_light(), half_light()[..., :1]]))[1].tobytes()


@pytest.mark.parametrize(
    "content", [None, b"", cv2.imencode(".jpg", half_light())[1].tobytes()[:300], WITH_ALPHA, DEEP]
)
def test_bad_images_are_named_and_nothing_is_written(row, tmp_path, small_model, content):
    cv2.imwrite(str(tmp_path / "good.png"), half_light())
    if content is not None:
        (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.jpg"):
        run(row, tmp_path, [tmp_path / "good.png", tmp_path / "bad.jpg"])
    assert not (tmp_path / "out").exists()
    assert small_model == []


def test_results_that_would_overwrite_are_refused(row, tmp_path, small_model):
    for name in ("a.png", "a.jpg", "A.bmp", "a-overlay.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), half_light())
    for images in (["a.jpg", "a-overlay.png"], ["a.png", "a.png"]):
        with pytest.raises(DataError, match="would overwrite"):
            run(row, tmp_path, [tmp_path / name for name in images])
    with pytest.raises(DataError, match="would overwrite"):
        run(row, tmp_path, [tmp_path / "b.png"], out=tmp_path)
    with pytest.raises(DataError, match="no image"):
        run(row, tmp_path, [])
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "b.png")), half_light())


def test_images_of_one_stem_and_folders(row, tmp_path, small_model):
    """A phone's a.jpg beside a screenshot a.png: both are segmented."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "a.jpg", "b.jpeg"):
        cv2.imwrite(str(folder / name), half_light())
    (folder / "notes.txt").write_text("no image")
    written = [path.name for path in run(row, tmp_path, [folder]) if "overlay" not in path.name]
    assert written == ["a.jpg.png", "a.png.png", "b.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: has no image"):
        run(row, tmp_path, [tmp_path / "empty"])


def test_files_that_are_there_are_kept(row, tmp_path, small_model):
    """A photograph and its label often lie side by side: x.jpg and x.png."""
    cv2.imwrite(str(tmp_path / "x.jpg"), half_light())
    (tmp_path / "x.png").write_bytes(b"a label")
    with pytest.raises(DanetError, match=r"x\.png: is there already.*--force"):
        run(row, tmp_path, [tmp_path / "x.jpg"], out=tmp_path)
    assert (tmp_path / "x.png").read_bytes() == b"a label"
    assert not (tmp_path / "x-overlay.png").exists()
    written = run(row, tmp_path, [tmp_path / "x.jpg"], out=tmp_path, force=True)
    with Image.open(written[0]) as mask:
        assert mask.size == (48, 32)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_out_of_memory_names_the_image(row, tmp_path, small_model, monkeypatch, error):
    class Huge(Brightness):
        def forward(self, x):
            raise error

    monkeypatch.setattr(predict, "build_model", lambda config, classes, attention: Huge(classes))
    cv2.imwrite(str(tmp_path / "a.png"), half_light())
    message = r"a\.png: the memory of cpu is too small for 32x48 pixels \(height x width\); make the image smaller$"
    with pytest.raises(DanetError, match=message):
        run(row, tmp_path, [tmp_path / "a.png"])
