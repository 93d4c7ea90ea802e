"""Stand-ins for packages that the peers import but that nothing compared here passes through.

mmsegmentation imports mmcv's compiled operations (PointRend, CCNet, ...) which mmcv-lite does not have; sssegmentation
imports torchvision, pycocotools and others at its top. Calling one of them raises, so no result can come from here.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import ClassVar

MMSEGMENTATION = frozenset({"mmcv._ext"})
SSSEGMENTATION = frozenset({"torchvision", "pycocotools", "sklearn", "fvcore", "cityscapesscripts"})


class _Absent(types.ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: object, **__: object) -> None:
            raise NotImplementedError(f"{self.__name__}.{name} is not installed in the parity environment")

        return type(name, (), {"__init__": missing})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in self.names or fullname.split(".", maxsplit=1)[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install(names: frozenset[str]) -> None:
    """Makes every later import of one of ``names`` give a stand-in."""
    sys.meta_path.insert(0, _Finder(names))
