from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from danet.core.errors import ConfigError, DataError
from danet.data.registry import ADAPTERS


@pytest.mark.parametrize(("name", "classes"), [("voc2012", 21), ("ade20k", 150), ("cityscapes", 19), ("camvid", 11)])
def test_classes_and_palette(name, classes):
    spec = ADAPTERS[name]
    assert spec.name == name
    assert spec.num_classes == len(spec.classes) == len(set(spec.classes)) == len(spec.palette) == classes
    assert all(len(colour) == 3 and all(0 <= value <= 255 for value in colour) for colour in spec.palette)
    assert set(spec.labels.values()) <= {*range(classes), 255}
    assert set(range(classes)) <= set(spec.labels.values())


def test_an_unknown_adapter_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match=r"datasets\.yaml: adapter 'coco' is unknown; allowed: ade20k, camvid"):
        ADAPTERS["coco"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.integers(0, 255), st.integers(0, 255), min_size=1, max_size=40),
    arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6))),
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
