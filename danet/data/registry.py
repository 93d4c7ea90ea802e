"""All datasets by the name of their adapter (``datasets.<name>.adapter`` in datasets.yaml)."""

from __future__ import annotations

from danet.core.errors import ConfigError
from danet.data import ade20k, camvid, cityscapes, voc2012
from danet.data.layout import DatasetSpec


class _Adapters(dict[str, DatasetSpec]):
    def __missing__(self, name: str) -> DatasetSpec:
        raise ConfigError(f"datasets.yaml: adapter {name!r} is unknown; allowed: {', '.join(sorted(self))}")


ADAPTERS = _Adapters({spec.name: spec for spec in (voc2012.SPEC, ade20k.SPEC, cityscapes.SPEC, camvid.SPEC)})
