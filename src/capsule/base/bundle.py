"""The modules that a run imports from one file of bytecode: two thirds of the time of an import.

The build makes that file (packaging/hatch_build.py) for the Python that it runs on. Without it, or with
another Python, modules are imported as any others are; so is one whose source has changed since.
"""

from __future__ import annotations

import _imp
import marshal
import os
import sys
from _frozen_importlib import ModuleSpec

from .descriptors import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FILE = os.path.join(PACKAGE, "bundle.bin")
# Seconds that an installer may take to write all files. A change of the size is noticed at once.
INSTALLING = 60


def tag() -> bytes:
    """Return what bytecode depends on besides the source; packaging/hatch_build.py says the same."""
    return f"{sys.implementation.cache_tag} {sys.version} {sys.flags.optimize}".encode()


class Bundle:
    """Finder and loader of the modules in a file; importlib.abc.

    Args:
        modules: of each module the source's path below the package, its size, and its group's place.
        groups: all groups, each of them its modules' code, marshalled.
        until: when the file was written.
    """

    def __init__(
        self, modules: dict[str, tuple[str, int, int]], groups: memoryview, until: float
    ) -> None:
        self._modules = modules
        self._groups = groups
        self._codes: dict[int, dict[str, CodeType]] = {}
        self._until = until

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """Return where a module is, None if it is not here or not what its source is now."""
        if name not in self._modules:
            return None
        below, size, _ = self._modules[name]
        path = f"{PACKAGE}/{below}"
        try:
            source = os.stat(path)
        except OSError:
            return None
        if source.st_size != size or source.st_mtime > self._until + INSTALLING:
            return None
        folder, _, file = path.rpartition("/")
        loader: Any = self
        spec = ModuleSpec(name, loader, origin=path)
        spec.has_location = True
        # Unset, it would be found in ten times as long: a third of a millisecond for all of them.
        spec.cached = f"{folder}/__pycache__/{file[:-3]}.{sys.implementation.cache_tag}.pyc"
        if file == "__init__.py":
            spec.submodule_search_locations = [folder]
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """Leave it to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the code of a module, once."""
        exec(self.get_code(module.__name__), module.__dict__)  # noqa: S102

    def get_code(self, name: str) -> CodeType:
        """Return the code of a module, with the path that its tracebacks show."""
        below, _, place = self._modules[name]
        if place not in self._codes:
            self._codes[place] = marshal.loads(self._groups[place:])  # noqa: S302
        code = self._codes[place][name]
        _imp._fix_co_filename(code, f"{PACKAGE}/{below}")  # type: ignore[attr-defined]
        return code


def install() -> None:
    """Have the package's modules imported from the file, if there is one for this Python."""
    try:
        file, wanted = memoryview(read_file(FILE)), tag() + b"\0"
        # What another Python has marshalled is not even looked at.
        if file[: len(wanted)] == wanted:
            size, groups = file[len(wanted) :][:8], file[len(wanted) + 8 :]
            modules = marshal.loads(groups[int.from_bytes(size, "little") :])  # noqa: S302
            sys.meta_path.insert(0, Bundle(modules, groups, os.stat(FILE).st_mtime))
    except (OSError, EOFError, ValueError, TypeError):
        return  # it is not there, or cut off
