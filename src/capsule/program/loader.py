"""Which libraries a program is loaded with: found as ld.so(8) finds them, without executing anything.

LD_LIBRARY_PATH does not count. Where the loader's choice depends on the processor, all that it may
choose is found. What a program opens by itself when it runs, NSS and gconv modules among it, is not.
"""

from __future__ import annotations

import os
import re
from itertools import islice

from . import elf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .elf import Elf

# Of one program and its modules: names and files that are looked for. Of one file: what is loaded with
# it, directories of a search path, kinds of processors.
_LOOK_UPS, _LIBRARIES, _FOLDERS, _VARIANTS = 50_000, 512, 64, 16

# glibc opens this one itself, when a thread is cancelled or ends itself.
_LATER = "libgcc_s.so.1"
# The loader of musl is all of these.
_OF_MUSL = tuple(f"lib{name}." for name in ("c", "pthread", "rt", "m", "dl", "util", "xnet"))
_MUSL_PATH = ("/lib", "/usr/local/lib", "/usr/lib")
# What $PLATFORM is, where it is not the machine's name
_PLATFORMS = {3: "i686", 40: "v7l"}
_TOKEN = re.compile(r"\$(?:(ORIGIN|LIB|PLATFORM)\b|\{(ORIGIN|LIB|PLATFORM)\})")


class _Object:
    """A file that is loaded.

    Attributes:
        named: the libraries that it names.
        inherited: directories in which they are looked for, and whatever those name, too: DT_RPATH.
        first: directories in which they are looked for. DT_RUNPATH counts instead, and for it alone.
    """

    __slots__ = ("first", "inherited", "named")

    def __init__(self, named: tuple[str, ...], inherited: list[str], own: list[str] | None) -> None:
        self.named = named
        self.inherited = inherited
        self.first = inherited if own is None else own


class Loader:
    """The loader of one program, as far as it looks for libraries.

    Attributes:
        files: what it consists of: itself, and the file in which it looks where libraries lie. None
            if it is not there or cannot load the program.
    """

    def __init__(self, program: str, image: Elf) -> None:
        self._image = image
        self._look_ups = _LOOK_UPS
        self._variants_of: dict[str, list[str]] = {}
        path = image.interpreter
        folder = os.path.dirname(os.path.realpath(path))
        # Its own place tells how the system names its directories of libraries.
        self._lib = folder.removeprefix("/usr").strip("/")
        name = os.path.basename(path)
        self._musl = name.removeprefix("ld-musl-").partition(".")[0] if "ld-musl-" in name else ""
        self._default = self._defaults(folder)
        own = elf.read(path)
        there = own is not None and own.fits(image)
        configuration = f"/etc/ld-musl-{self._musl}.path" if self._musl else elf.CACHE
        self.files = (path, *filter(os.path.isfile, [configuration])) if there else ()
        self._main = self._object(program, image, None)
        self._main.named += () if self._musl else (_LATER,)
        self._loaded = {name, own.soname if own else ""}

    def libraries(self) -> Iterator[str]:
        """The paths of all that is loaded with the program."""
        if self.files:
            yield from self._closure(self._main, self._loaded)

    def of_module(self, path: str) -> Iterator[str]:
        """The paths of what an extension module is loaded with besides; after `libraries`."""
        image = elf.read(path) if self.files and self._look_ups > 0 else None
        if image is not None and image.fits(self._image):
            # Each module on its own: two may bring different libraries of one name.
            yield from self._closure(self._object(path, image, self._main), set(self._loaded))

    def _defaults(self, folder: str) -> tuple[str, ...]:
        """Where the loader looks last."""
        if self._musl:
            return _musl_path(f"/etc/ld-musl-{self._musl}.path") or _MUSL_PATH
        names = dict.fromkeys((self._lib, "lib64" if self._image.bits == 64 else "lib32", "lib"))
        return (*(f"{top}/{name}" for name in names if name for top in ("", "/usr")), folder)

    def _object(self, path: str, image: Elf, above: _Object | None) -> _Object:
        rpath, runpath = image.rpath, image.runpath
        if self._musl:  # which knows no difference
            rpath, runpath = runpath or rpath, None
        origin = os.path.dirname(path)
        inherited = self._expand(rpath or "", origin) + (above.inherited if above else [])
        own = None if runpath is None else self._expand(runpath, origin)
        return _Object(image.needed, inherited[:_FOLDERS], own)

    def _expand(self, text: str, origin: str) -> list[str]:
        """The directories of a search path. Relative ones are left out: nobody means them."""
        if "$" in text:
            machine = _PLATFORMS.get(self._image.machine) or os.uname().machine
            values = {"ORIGIN": origin, "LIB": self._lib or "lib", "PLATFORM": machine}
            text = _TOKEN.sub(lambda match: values[match[1] or match[2]], text)
        parts = text.split(":", _FOLDERS)[:_FOLDERS]
        return [part for part in parts if part.startswith("/") and len(part) < elf.LONGEST]

    def _closure(self, top: _Object, loaded: set[str]) -> Iterator[str]:
        """Yield what an object names and what that names, breadth first as the loader goes."""
        objects = [top]
        for owner in objects:
            self._look_ups -= len(owner.named)
            for name in owner.named:
                if name in loaded or (self._musl and name.startswith(_OF_MUSL)):
                    continue
                for path, image in self._find(name, owner):
                    loaded |= {name, image.soname}
                    yield path
                    if len(objects) < _LIBRARIES:
                        objects.append(self._object(path, image, owner))

    def _find(self, name: str, owner: _Object) -> list[tuple[str, Elf]]:
        """The library of a name, and those for some processors only that may be taken instead."""
        found = []
        for path, always in self._candidates(name, owner):
            self._look_ups -= 1
            if self._look_ups < 0:
                break
            image = elf.read(path)
            if image is not None and image.fits(self._image):
                found.append((path, image))
                if always:
                    break
        return found

    def _candidates(self, name: str, owner: _Object) -> Iterator[tuple[str, bool]]:
        """(Path, whether any processor takes it), in the loader's order."""
        if "/" in name:
            yield from ((path, True) for path in self._expand(name, ""))
            return
        yield from self._in(owner.first, name)
        cache = {} if self._musl else elf.read_cache()
        yield from ((path, not special) for path, special in (cache or {}).get(name, ()))
        yield from self._in(self._default, name)
        if cache is None:
            yield from self._in(elf.configured(), name)

    def _in(self, folders: Iterable[str], name: str) -> Iterator[tuple[str, bool]]:
        for folder in folders:
            for variant in self._variants(folder):
                yield f"{variant}/{name}", False
            yield f"{folder}/{name}", True

    def _variants(self, folder: str) -> list[str]:
        """The directories for some processors in a directory of libraries."""
        if folder not in self._variants_of:
            try:
                with os.scandir(f"{folder}/glibc-hwcaps") as entries:
                    found = sorted(entry.path for entry in islice(entries, _VARIANTS))
            except (OSError, ValueError):
                found = []
            self._variants_of[folder] = found
        return self._variants_of[folder]


def _musl_path(path: str) -> tuple[str, ...]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            words = file.read(elf.LONGEST).replace("\n", ":").split(":")
    except OSError:
        return ()
    return tuple(word for word in words if word.startswith("/"))
