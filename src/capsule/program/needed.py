"""What of the host a command needs to start, and no more: for ``System.NEEDED``.

That is the program, the interpreters of a script, the loader, the libraries that their files name, and
of languages the trees in which their modules lie. Nothing is executed to find it. Not found is what a
program asks for only when it runs: other programs, plug-ins (NSS and gconv modules among them), time
zones, locales but C.UTF-8, terminfo, data.

The program may be hostile, and what it names is shown to it: by a library's name only ELF files for the
same processor, by an interpreter's only what is executable, by a place near it only what really lies
there.
"""

from __future__ import annotations

import os

from capsule.base.signals import breathe
from capsule.base.text import above, is_below
from capsule.host.places import KERNEL

from . import elf
from .loader import Loader
from .scripts import ITSELF, programs
from .toolchains import extensions, trees

_LINKS = 40

# The one locale that programs take for granted. Where glibc has it built in, there is no such place.
_LOCALE = "/usr/lib/locale/C.utf8"


def needed(found: str, search: str) -> tuple[tuple[str, str | None, str], ...]:
    """Find out what a command needs of the host.

    Args:
        found: the command's absolute path.
        search: the value of PATH, for scripts that name their interpreter through env(1).

    Returns:
        For each thing (path, None, reason): a file or directory, whose path has no symbolic link in it;
        or (path, target, reason): a symbolic link that leads to one. None lies in another.
    """
    places = _Places()
    reason = ITSELF
    for program in programs(found, search):
        breathe()
        places.add(program, reason)
        reason = "the interpreter of a script"
        _add_loaded(places, program)
    return places.all()


def _add_loaded(places: _Places, program: str) -> None:
    """Of a program: the loader, the libraries, the language's modules and the libraries of those."""
    real = os.path.realpath(program)
    image = elf.read(real)
    loader = Loader(real, image) if image is not None and image.interpreter else None
    if loader is not None:
        for path in loader.files:
            places.add(path, "the loader")
        if loader.files and os.path.isdir(_LOCALE):
            places.add(_LOCALE, "the locale C.UTF-8")
        for path in loader.libraries():
            places.add(path, "a library")
    for tree in trees(program, real):
        places.add(tree, "modules of the interpreter")
        for module in extensions(tree) if loader is not None else ():
            breathe()
            for path in loader.of_module(module) if loader is not None else ():
                places.add(path, "a library of a module")


# --- places ---------------------------------------------------------------------------------


class _Places:
    """What is to be shown, with every symbolic link on the way to it."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str | None, str]] = {}
        self._links: dict[str, str | None] = {}

    def add(self, path: str, reason: str) -> None:
        """Note a path as the host resolves it: each link on the way, and where they lead."""
        way = path.split("/")[::-1]
        here, links = "", 0
        while way:
            part = way.pop()
            above = here
            if part in ("", "."):
                continue
            if part == "..":
                here = here.rpartition("/")[0]
                continue
            here = f"{here}/{part}"
            if _is_own(here):
                return
            target = self._link(here)
            if target is not None:
                links += 1
                if links > _LINKS:
                    return
                self._found.setdefault(here, (target, reason))
                here = "" if target.startswith("/") else above
                way += target.split("/")[::-1]
        if here:
            self._found.setdefault(here, (None, reason))

    def _link(self, path: str) -> str | None:
        if path not in self._links:
            try:
                self._links[path] = os.readlink(path)
            except (OSError, ValueError):
                self._links[path] = None
        return self._links[path]

    def all(self) -> tuple[tuple[str, str | None, str], ...]:
        """All of it, but for what lies in a directory that is shown as a whole."""
        real = {path for path, (target, _) in self._found.items() if target is None}
        return tuple(
            (path, target, reason)
            for path, (target, reason) in self._found.items()
            if real.isdisjoint(above(os.path.dirname(path)))
        )


def _is_own(path: str) -> bool:
    return any(is_below(path, own) for own in KERNEL)
