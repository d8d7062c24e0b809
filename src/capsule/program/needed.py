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
import re
from fnmatch import fnmatchcase
from itertools import islice

from capsule.base.paths import is_below

from . import elf
from .loader import Loader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_SCRIPT_DEPTH = 5
_LINKS = 40
# Of a tree: entries and levels that are looked at, extension modules that are found in it.
_ENTRIES, _DEPTH, _MODULES = 20_000, 8, 1024

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# The one locale that programs take for granted. Where glibc has it built in, there is no such place.
_LOCALE = "/usr/lib/locale/C.utf8"
# Capsule's own inside: what the host has there is another thing.
_OWN = ("/proc", "/dev", "/sys")


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
    for program, reason in _programs(found, search):
        places.add(program, reason)
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
    for tree in _trees(program, real):
        places.add(tree, "modules of the interpreter")
        for module in _extensions(tree) if loader is not None else ():
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
            if real.isdisjoint(_above(path))
        )


def _above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _is_own(path: str) -> bool:
    return any(is_below(path, own) for own in _OWN)


# --- programs -------------------------------------------------------------------------------


def _programs(found: str, search: str) -> Iterator[tuple[str, str]]:
    """The command, and whatever executes it if it is a script; execve(2)."""
    program, reason = found, "the command"
    for _ in range(_SCRIPT_DEPTH):
        yield program, reason
        reason = "the interpreter of a script"
        words = _first_line(program)
        if not words or not _is_program(words[0]):
            return
        program = words[0]
        if os.path.basename(program) == "env":
            yield program, reason
            through = _through_env(words[1:], search)
            if through is None:
                return
            program = through


def _first_line(path: str) -> list[str]:
    """The words of a script's first line, of which the first is an absolute path."""
    first = _start(path).partition(b"\n")[0]
    words = re.split("[ \t]+", os.fsdecode(first[2:]).strip(" \t"))
    return words if first.startswith(b"#!") and words[0].startswith("/") else []


def _start(path: str) -> bytes:
    """As much of a file as the kernel looks at to find out how it is executed."""
    try:
        if not os.path.isfile(path):
            return b""
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return os.read(fd, 256)
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return b""


def _is_program(path: str) -> bool:
    """Whether an untrusted first line may name it: it is one, and not just any file."""
    try:
        there = os.path.isfile(path) and os.access(path, os.X_OK)
    except ValueError:
        return False
    return there and _start(path).startswith((b"\x7fELF", b"#!"))


def _through_env(words: list[str], search: str) -> str | None:
    """What env(1) executes: the first word that is neither an option nor a variable."""
    names = [word for word in words if not word.startswith("-") and "=" not in word]
    if not names:
        return None
    if "/" in names[0]:
        paths = [names[0]] if names[0].startswith("/") else []
    else:
        paths = [f"{folder}/{names[0]}" for folder in search.split(":") if folder.startswith("/")]
    return next(filter(_is_program, paths), None)


# --- trees of modules -----------------------------------------------------------------------

# For interpreters, by the name of the file that the program really is: where their modules lie, below
# the prefix they are installed in. {} is the version in the name, * any part of a name.
_TREES = (
    (r"(?:python|pypy)(\d(?:\.\d+t?)?)?",
     ("lib*/python{}*", "lib*/pypy{}*", "lib/python3")),
    (r"perl(?:5[\d.]*)?(?:-.*)?",
     ("share/perl", "share/perl5", "lib*/perl5", "lib/perl", "lib/site_perl", "lib/*-*-*/perl",
      "lib/*-*-*/perl5", "lib/*-*-*/perl-base")),
    (r"j?ruby[\d.]*",
     ("lib*/ruby", "share/ruby", "lib/*-*-*/ruby", "share/rubygems*", "share/gems", "lib*/gems")),
    (r"node(?:js)?[\d.]*",
     ("lib/node_modules", "share/nodejs", "share/node_modules", "lib/nodejs", "lib/*-*-*/nodejs")),
    (r"php(?:-cgi)?[\d.]*",
     ("lib*/php*", "share/php*")),
    (r"(?:tclsh|wish|expect)[\d.]*",
     ("lib*/tcl[0-9]*", "lib*/tk[0-9]*", "lib/tcltk", "share/tcltk", "share/tcl[0-9]*",
      "share/tk[0-9]*", "lib/*-*-*/tcl[0-9]*", "lib/*-*-*/tk[0-9]*")),
    (r"guile[\d.-]*",
     ("share/guile", "lib*/guile", "lib/*-*-*/guile")),
    (r"lua(?:jit|tex)?[\d.-]*",
     ("share/lua", "lib*/lua", "lib/*-*-*/lua", "share/luajit-*")),
)  # fmt: skip

_EXTENSIONS = (".so", ".node")
_SKIPPED = ("__pycache__", "test", "tests")


def _trees(program: str, real: str) -> Iterator[str]:
    """The trees of modules that an interpreter needs, of what is on disk."""
    patterns = _patterns(os.path.basename(real))
    if not patterns:
        return
    for prefix in _prefixes(real):
        yield from _matches(prefix, patterns)
    # A virtual environment is known by the place of the link through which Python is started; PEP 405.
    for prefix in dict.fromkeys(os.path.dirname(os.path.dirname(hop)) for hop in _hops(program)):
        if os.path.isfile(f"{prefix}/pyvenv.cfg"):
            yield from _matches(prefix, ("pyvenv.cfg", *patterns))
            for base in _bases(f"{prefix}/pyvenv.cfg"):
                yield from _matches(base, patterns)


def _patterns(name: str) -> tuple[str, ...]:
    for form, patterns in _TREES:
        if match := re.fullmatch(form, name):
            version = match[1] if match.re.groups and match[1] else ""
            return tuple(pattern.replace("{}", version) for pattern in patterns)
    return ()


def _prefixes(real: str) -> tuple[str, ...]:
    prefix = os.path.dirname(os.path.dirname(real))
    # The system's own interpreters look in both.
    return ("/usr", "/usr/local") if prefix in ("/", "/usr") else (prefix,)


def _hops(path: str) -> Iterator[str]:
    """The path, and each path that its links lead to."""
    for _ in range(_LINKS):
        yield path
        try:
            target = os.readlink(path)
        except (OSError, ValueError):
            return
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))


def _bases(configuration: str) -> Iterator[str]:
    """The prefix of the Python from which a virtual environment was made, as it names it."""
    try:
        with open(configuration, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(65536).split("\n")
    except (OSError, ValueError):
        return
    for line in lines:
        name, _, value = line.partition("=")
        folder = value.strip()
        if name.strip().lower() == "home" and folder.startswith("/") and "\0" not in folder:
            yield os.path.dirname(os.path.normpath(folder))


def _matches(prefix: str, patterns: tuple[str, ...]) -> Iterator[str]:
    """What matches below a prefix, unless a link leads out of it; the system's places excepted."""
    top = os.path.realpath(prefix)
    for pattern in patterns:
        for path in _glob(prefix, pattern.split("/")):
            real = os.path.realpath(path)
            if real != top and any(is_below(real, place) for place in (top, *_SYSTEM)):
                yield path


def _glob(top: str, parts: list[str]) -> Iterator[str]:
    if not parts:
        yield top
        return
    if "*" not in parts[0]:
        names = [parts[0]] if os.path.lexists(f"{top}/{parts[0]}") else []
    else:
        names = [entry.name for entry in _scan(top) if fnmatchcase(entry.name, parts[0])]
    for name in names:
        yield from _glob(f"{top}/{name}", parts[1:])


def _extensions(tree: str) -> Iterator[str]:
    """The extension modules in a tree, what is near its top first, as far as it is looked through."""
    entries = modules = 0
    folders = [(os.path.realpath(tree), 0)]
    for folder, depth in folders:
        for entry in _scan(folder):
            entries += 1
            if entries > _ENTRIES or modules > _MODULES:
                return
            if entry.name.endswith(_EXTENSIONS):
                modules += 1
                yield entry.path
            elif depth < _DEPTH and entry.name not in _SKIPPED and _is_directory(entry):
                folders.append((entry.path, depth + 1))


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(islice(entries, _ENTRIES), key=lambda entry: entry.name)
    except (OSError, ValueError):
        return []


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
