"""Loads txAWS 0.5.0, which was written for Python 2, on Python 3, unmodified.

Its modules *parse* as Python 3; what they lack are names: ``urlparse``, ``ConfigParser``, ``unicode`` and so on.
CPython looks builtins up in the ``__builtins__`` of a module's globals (documented with :func:`exec`), so a finder for
``txaws`` alone gives those modules a private copy of the builtins that has the missing names, and an ``__import__``
that knows where modules have moved. Nothing global changes: no other module sees ``unicode``, and ``sys.modules`` gets
no ``urlparse``.

A txAWS that was ported to Python 3 needs none of this: then the finder steps aside.
"""

from __future__ import annotations

import ast
import builtins
import configparser
import importlib.abc
import importlib.machinery
import importlib.util
import io
import sys
import types
import urllib.parse
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from typing import Any

import attr

PACKAGE = "txaws"


class _RenamingTreeBuilder(xml.etree.ElementTree.TreeBuilder):
    """Builds the tree with each tag and attribute renamed on its way in."""

    def __init__(self, rename: Callable[[str], str]) -> None:
        super().__init__()
        self._rename = rename

    def start(self, tag: str, attributes: dict[str, str]) -> Any:
        return super().start(self._rename(tag), {self._rename(key): value for key, value in attributes.items()})

    def end(self, tag: str) -> Any:
        return super().end(self._rename(tag))


class _XMLTreeBuilder:
    """Python 2's ``ElementTree.XMLTreeBuilder``: subclasses override ``_fixname`` to rename elements and attributes."""

    def __init__(self) -> None:
        self._parser = xml.etree.ElementTree.XMLParser(target=_RenamingTreeBuilder(self._fixname))

    def _fixname(self, key: str) -> str:
        return key

    def feed(self, data: str | bytes) -> None:
        self._parser.feed(data)

    def close(self) -> Any:
        return self._parser.close()


def _module(name: str, **names: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(names)
    return module


def _attr_ib(*args: Any, convert: Any = None, **kwargs: Any) -> Any:
    """``attr.ib`` with the argument that is called ``converter`` since attrs 19."""
    if convert is not None:
        kwargs["converter"] = convert
    return attr.ib(*args, **kwargs)


def _provides(interface: Any) -> Any:
    """The validator that attrs dropped in 23.1: the value provides a zope interface."""

    def validate(instance: Any, attribute: Any, value: Any) -> None:
        if not interface.providedBy(value):
            raise TypeError(f"{attribute.name!r} must provide {interface!r}; got {value!r}")

    return validate


_VALIDATORS = _module("attr.validators", **{**vars(attr.validators), "provides": _provides})

#: What txAWS imports under a name that Python 3 or attrs no longer has, and what it gets.
MOVED: dict[str, types.ModuleType] = {
    "urlparse": urllib.parse,
    "urllib": urllib.parse,
    "StringIO": _module("StringIO", StringIO=io.BytesIO),
    "ConfigParser": _module("ConfigParser", **{**vars(configparser), "SafeConfigParser": configparser.ConfigParser}),
    "elementtree.ElementTree": _module("elementtree.ElementTree", XMLTreeBuilder=_XMLTreeBuilder),
    "attr": _module("attr", **{**vars(attr), "ib": _attr_ib, "validators": _VALIDATORS}),
    "attr.validators": _VALIDATORS,
}


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] = (), level: int = 0) -> Any:
    if level == 0 and name in MOVED:
        return MOVED[name]
    return builtins.__import__(name, globals, locals, fromlist, level)


def _python2_builtins() -> dict[str, Any]:
    def cmp(a: Any, b: Any) -> int:
        return (a > b) - (a < b)

    return {**vars(builtins), "unicode": str, "basestring": str, "long": int, "cmp": cmp, "__import__": _import}


class Loader(importlib.machinery.SourceFileLoader):
    """Runs a module with the builtins it was written for."""

    builtins = _python2_builtins()

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__builtins__"] = self.builtins
        super().exec_module(module)


class Finder(importlib.abc.MetaPathFinder):
    """Finds ``txaws`` and what is inside it; everything else is left to the finders after this one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != PACKAGE and not fullname.startswith(PACKAGE + "."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def is_python2(package: importlib.machinery.ModuleSpec) -> bool:
    """Tell whether the txAWS found at *package* still needs Python 2's names.

    Its ``util`` module is asked: 0.5.0 imports ``urlparse`` there, at the top and without an alternative.
    """
    loader = importlib.machinery.PathFinder.find_spec(f"{PACKAGE}.util", package.submodule_search_locations)
    if loader is None or not isinstance(loader.loader, importlib.abc.InspectLoader):
        return False
    source = loader.loader.get_source(loader.name)
    return any(
        isinstance(statement, ast.ImportFrom) and statement.module == "urlparse"
        for statement in ast.parse(source or "").body
    )


def install() -> None:
    """Make ``import txaws`` work. Calling it again does nothing.

    :raises ImportError: txAWS is not installed.
    """
    if PACKAGE in sys.modules or any(isinstance(finder, Finder) for finder in sys.meta_path):
        return
    package = importlib.machinery.PathFinder.find_spec(PACKAGE)
    if package is None:
        raise ImportError("txAWS is not installed (pip install txaws)", name=PACKAGE)
    if is_python2(package):
        sys.meta_path.insert(0, Finder())
