"""Masks and lists from elsewhere: label ids, or our error that names the file."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.io import savemat

from danet.core.errors import DataError
from danet.data.layout import check_image, read_index_png, read_list, read_mat
from danet.data.registry import ADAPTERS
from danet.data.voc2012 import colour_map

IN_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def file(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def palette_png(path, ids, colours, order):
    """A palette PNG in which the colour of id ``order[i]`` has the index ``i``."""
    image = Image.fromarray(np.argsort(order).astype(np.uint8)[ids], mode="P")
    image.putpalette(colours[order].ravel().tolist())
    image.save(path)
    return path


def mat(array, compressed):
    stream = io.BytesIO()
    savemat(stream, {"GTcls": {"Segmentation": array}}, do_compression=compressed)
    return stream.getvalue()


SMALL = arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6)))


@IN_FOLDER
@given(SMALL, st.permutations(range(256)))
def test_ids_are_grey_values_whatever_the_order_of_the_palette(tmp_path, ids, order):
    assert (read_index_png(file(tmp_path, "m.png", png(ids))) == ids).all()
    ramp = np.repeat(np.arange(256), 3).reshape(256, 3)
    assert (read_index_png(palette_png(tmp_path / "p.png", ids, ramp, np.array(order))) == ids).all()


@IN_FOLDER
@given(SMALL, st.permutations(range(256)))
def test_the_ids_of_a_voc_mask_are_its_colours(tmp_path, raw, order):
    """A program that shrinks files may write the same colours with other indices."""
    ids = np.where(raw % 22 == 21, 255, raw % 22).astype(np.uint8)
    path = palette_png(tmp_path / "m.png", ids, np.array(colour_map(256)), np.array(order))
    assert (ADAPTERS["voc2012"].read_mask(path) == ids).all()


def test_colours_that_stand_for_no_label_are_refused(tmp_path):
    ids = np.array([[0, 1, 2]], np.uint8)
    colours = np.array(colour_map(256))
    for name in ("camvid", "ade20k", "cityscapes"):
        with pytest.raises(DataError, match=r"m\.png: its palette has the colour \(128, 0, 0\)"):
            ADAPTERS[name].read_mask(palette_png(tmp_path / "m.png", ids, colours, np.arange(256)))
    colours[2] = (1, 2, 3)
    with pytest.raises(DataError, match=r"m\.png: its palette has the colour \(1, 2, 3\).*8-bit grey PNG"):
        ADAPTERS["voc2012"].read_mask(palette_png(tmp_path / "m.png", ids, colours, np.arange(256)))


@IN_FOLDER
@given(SMALL, st.booleans())
def test_annotations_are_read_as_written(tmp_path, ids, compressed):
    assert (read_mat(file(tmp_path, "m.mat", mat(ids, compressed))) == ids).all()


@IN_FOLDER
@given(st.binary(max_size=300))
@example(b"II*\0" + bytes(200))
@example(b"BM" + bytes(100))
def test_any_bytes_are_refused_in_words(tmp_path, data):
    path = file(tmp_path, "a.jpg", data)
    with pytest.raises(DataError, match=r"^train/a\.jpg: cannot be decoded"):
        check_image(data, "train/a.jpg", grey=False)
    for read in (read_index_png, read_mat):
        with pytest.raises(DataError, match=rf"^{path}: "):
            read(path)


def test_a_list_is_the_first_words_of_its_lines(tmp_path):
    assert read_list(file(tmp_path, "list.txt", b"a 1\n\n b\nc/d.png c/d.txt\n")) == ["a", "b", "c/d.png"]
    for path in (file(tmp_path, "list.txt", b"\xff\xfe"), tmp_path / "none.txt"):
        with pytest.raises(DataError, match=f"{path}: list cannot be read"):
            read_list(path)


@IN_FOLDER
@given(
    st.dictionaries(st.integers(0, 255), st.integers(0, 255), min_size=1, max_size=40),
    SMALL,
)
def test_label_ids_against_a_loop(tmp_path, mapping, raw):
    spec, path = replace(ADAPTERS["camvid"], labels=mapping), tmp_path / "here.png"
    Image.fromarray(raw).save(path)
    unknown = sorted({int(value) for value in raw.flat if int(value) not in mapping})
    if unknown:
        with pytest.raises(DataError, match=r"here\.png: label id " + str(unknown[0])):
            spec.read_mask(path)
        return
    result = spec.read_mask(path)
    assert result.dtype == np.uint8
    assert result.tolist() == [[mapping[int(value)] for value in row] for row in raw]


def test_a_palette_of_few_bits_a_pixel(tmp_path):
    ids = np.random.default_rng(0).integers(0, 3, (9, 7), np.uint8)
    few = Image.frombytes("P", (7, 9), ids.tobytes())
    few.putpalette([value for colour in ADAPTERS["voc2012"].palette[:3] for value in colour])
    few.save(tmp_path / "few.png", bits=2)
    assert (ADAPTERS["voc2012"].read_mask(tmp_path / "few.png") == ids).all()
