"""What lies around a program that it cannot do without: its prefix, its Python, trees of modules.

Of what the program itself may have made up (links, pyvenv.cfg), only programs and libraries are taken.
"""

from __future__ import annotations

import os
import sys
from itertools import islice

from capsule.base.errors import PolicyError
from capsule.base.text import is_below
from capsule.files.found import Shown
from capsule.files.lookup import follow, trusts_root
from capsule.host.places import SYSTEM, is_of_system, made_of_opt, may_show, real_path

from .managers import STORES, VENVS, is_managed, managers_of, parts
from .scripts import ITSELF, hops, is_executable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# What one of these lies in beside a bin is a prefix.
_PREFIX = ("pyvenv.cfg", "lib", "lib64", "libexec")
# As many as the kernel follows; path_resolution(7).
_ALIASES = 40
# Of the tools with a virtual environment each, so many are looked at.
_TOOLS = 256
# Of a tree: entries and levels that are looked at, extension modules that are found in it.
_ENTRIES, _DEPTH, _MODULES = 20_000, 8, 1024


def _past_aliases(path: str) -> str:
    """The path with each link that leads to a neighbour of it followed."""
    here = ""
    for name in path.split("/")[1:]:
        here = f"{here}/{name}"
        for _ in range(_ALIASES):
            try:
                target = os.readlink(here)
            except (OSError, ValueError):
                break
            if "/" in target or target in ("", ".", ".."):
                break
            here = f"{os.path.dirname(here)}/{target}"
    return here


class Around:
    """What is shown around the programs of a run.

    Its source has no link in it, and is opened as such: one that comes later shows nothing.

    Args:
        homes: home directories, the caller's first.
        host_root: whether the command is the host's root, whose links are then not trusted.
    """

    def __init__(self, homes: list[str], *, host_root: bool) -> None:
        self._homes = homes
        self._host_root = host_root

    def program(self, path: str, *, whole: bool) -> Iterator[Shown]:
        """The file itself and, with *whole* or if it is an installed one, what it is made of."""
        real = real_path(path)
        if whole or is_managed(real, self._homes[0]):
            yield from self.folder(os.path.dirname(path))
        for store in _loaders_stores(real):
            yield Shown(store, "its store", real_path(store))
        if is_executable(real):
            yield Shown(path, ITSELF, real, is_directory=False)

    def opt(self, path: str) -> Iterator[Shown]:
        """Yield what of /opt a program there is made of, where it was root who led there."""
        if top := made_of_opt(real_path(path)):
            yield Shown(top, "its directory", top, os.path.isdir(top))

    def folder(self, folder: str, *, others: bool = False) -> Iterator[Shown]:
        """Yield what the programs in a directory are made of: that of its manager, or the prefix.

        A prefix behind a link would show whatever a program made that link lead to. Of a project that
        is one only parts are shown to *others* than its own programs.
        """
        real, prefix = real_path(folder), os.path.dirname(folder)
        for store in STORES:
            if is_below(real, store):
                yield Shown(store, "its store", real_path(store))
        if is_managed(real, self._homes[0]):
            yield Shown(folder, "its toolchain", real)
        both = (next(managers_of(path), None) for path in dict.fromkeys((real, folder)))
        found = [one for one in dict.fromkeys(both) if one is not None]
        for one in found:
            yield from self._present(parts(*one))
        if found:
            for venv in (prefix, *_venvs(found)):
                yield from self._base_python(venv)
        elif os.path.basename(folder) in ("bin", "sbin", "shims"):
            yield from self._prefix(prefix, others=others)

    def _prefix(self, prefix: str, *, others: bool) -> Iterator[Shown]:
        if not (may_show(prefix, self._homes) and _is_prefix(prefix)):
            return
        is_project = others and os.path.lexists(f"{prefix}/.git")
        made_of = [f"{prefix}/{part}" for part in (*_PREFIX, "share")] if is_project else [prefix]
        found = tuple(self._present(made_of))
        yield from found
        if found:
            yield from self._base_python(prefix)

    def on_path(self, folder: str) -> Iterator[Shown]:
        """Likewise of a directory of PATH, from which the command may start others: at least itself."""
        if not os.path.isdir(folder):
            return
        yield from self.folder(folder, others=True)
        if may_show(folder, self._homes):
            yield from self._present([folder], "a directory of PATH")

    def named(self, path: str, reason: str) -> Iterator[Shown]:
        """Likewise of a file, or a directory that is no home, that the caller's environment names."""
        if os.path.isfile(path) or may_show(path, self._homes):
            yield from self._present([path], reason)

    def _present(self, paths: Iterable[str], reason: str = "its toolchain") -> Iterator[Shown]:
        for path in paths:
            if os.path.lexists(path) and (source := self._source(path)):
                yield Shown(path, reason, source, os.path.isdir(source))

    def _source(self, path: str) -> str:
        """Where a path leads; "" if that may be where an untrusted program wants it.

        A link is none of root's only if it leads to its neighbour, as an alias of a version does: who
        can make it can write there, too. What holds nothing but programs may be shown in any case.
        """
        real = real_path(path)
        if real == path or is_managed(real, self._homes[0]):
            return real
        trusted = trusts_root(os.geteuid(), host_root=self._host_root)
        try:
            place = follow(_past_aliases(path), "", trusted=trusted)
        except (PolicyError, OSError):
            return ""
        return place.path if place.stat is not None else ""

    def _base_python(self, prefix: str) -> Iterator[Shown]:
        """The installation that a virtual environment was made from; PEP 405.

        pyvenv.cfg may have come with the untrusted program. What it names is shown only where a Python
        lies, and of that only what programs are made of.
        """
        for folder in _venv_homes(f"{prefix}/pyvenv.cfg"):
            base = os.path.dirname(folder)
            if base == prefix or is_of_system(base):
                continue
            if is_executable(f"{folder}/python3") and may_show(base, self._homes):
                made_of = (folder, f"{base}/lib", f"{base}/lib64")
                yield from self._present(filter(os.path.isdir, made_of), "its Python")
        if prefix == sys.prefix != sys.base_prefix and not is_below(sys.base_prefix, "/usr"):
            yield Shown(sys.base_prefix, "its Python", real_path(sys.base_prefix))


def _venvs(found: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the virtual environments of installed tools, whose Pythons may lie anywhere."""
    for home, root in found:
        for place in VENVS.get(root, ()):
            yield from (entry.path for entry in _scan(f"{home}/{place}")[:_TOOLS])


def _loaders_stores(program: str) -> Iterator[str]:
    """Yield the store in which the loader of a program lies, wherever that itself is."""
    if not any(map(os.path.isdir, STORES)):
        return
    from .elf import read  # rarely: most systems have no store

    image = read(program)
    for store in STORES:
        if image is not None and image.interpreter and is_below(image.interpreter, store):
            yield store


def _is_prefix(prefix: str) -> bool:
    return any(os.path.exists(f"{prefix}/{part}") for part in _PREFIX)


def _venv_homes(configuration: str) -> Iterator[str]:
    """Where the Python lies from which a virtual environment was made, as it says; PEP 405."""
    try:
        with open(configuration, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(65536).split("\n")
    except (OSError, ValueError):
        return
    for line in lines:
        name, _, value = line.partition("=")
        folder = value.strip()
        if name.strip().lower() == "home" and folder.startswith("/") and "\0" not in folder:
            yield os.path.normpath(folder)


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


def trees(program: str, real: str) -> Iterator[str]:
    """The trees of modules that an interpreter needs, of what is on disk."""
    patterns = _patterns(os.path.basename(real))
    if not patterns:
        return
    for prefix in _prefixes(real):
        yield from _matches(prefix, patterns)
    # A virtual environment is known by the place of the link through which Python is started; PEP 405.
    for prefix in dict.fromkeys(os.path.dirname(os.path.dirname(hop)) for hop in hops(program)):
        if os.path.isfile(f"{prefix}/pyvenv.cfg"):
            yield from _matches(prefix, ("pyvenv.cfg", *patterns))
            for folder in _venv_homes(f"{prefix}/pyvenv.cfg"):
                yield from _matches(os.path.dirname(folder), patterns)


def _patterns(name: str) -> tuple[str, ...]:
    import re  # 6 ms, and only here

    for form, patterns in _TREES:
        if match := re.fullmatch(form, name):
            version = match[1] if match.re.groups and match[1] else ""
            return tuple(pattern.replace("{}", version) for pattern in patterns)
    return ()


def _prefixes(real: str) -> tuple[str, ...]:
    prefix = os.path.dirname(os.path.dirname(real))
    # The system's own interpreters look in both.
    return ("/usr", "/usr/local") if prefix in ("/", "/usr") else (prefix,)


def _matches(prefix: str, patterns: tuple[str, ...]) -> Iterator[str]:
    """Yield what matches below a prefix, unless a link leads out of it, but not into the system."""
    top = os.path.realpath(prefix)
    for pattern in patterns:
        for path in _glob(prefix, pattern.split("/")):
            real = os.path.realpath(path)
            if real != top and any(is_below(real, place) for place in (top, *SYSTEM)):
                yield path


def _glob(top: str, parts: list[str]) -> Iterator[str]:
    from fnmatch import fnmatchcase  # imports re

    if not parts:
        yield top
        return
    if "*" not in parts[0]:
        names = [parts[0]] if os.path.lexists(f"{top}/{parts[0]}") else []
    else:
        names = [entry.name for entry in _scan(top) if fnmatchcase(entry.name, parts[0])]
    for name in names:
        yield from _glob(f"{top}/{name}", parts[1:])


def extensions(tree: str) -> Iterator[str]:
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
