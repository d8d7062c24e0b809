"""What lies around a program that it cannot do without: its prefix, its Python, trees of modules.

Of what the program itself may have made up (links, pyvenv.cfg), only programs and libraries are taken.
"""

from __future__ import annotations

import os
import sys
from itertools import islice

from capsule.base.errors import PolicyError
from capsule.base.text import is_below
from capsule.files.lookup import follow, trusts_root
from capsule.host.places import SYSTEM, may_show, real_path

from .scripts import hops, is_executable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Of a tree: entries and levels that are looked at, extension modules that are found in it.
_ENTRIES, _DEPTH, _MODULES = 20_000, 8, 1024


class Clear:
    """Whether no symbolic link that an earlier program may have planted is on the way to a path.

    Args:
        host_root: whether the command is the host's root, whose links are then not trusted.
    """

    def __init__(self, *, host_root: bool) -> None:
        self._host_root = host_root

    def __call__(self, path: str) -> bool:
        """Return whether it is so of a path."""
        if real_path(path) == path:
            return True
        try:
            place = follow(path, "", trusted=trusts_root(os.geteuid(), host_root=self._host_root))
        except (PolicyError, OSError):
            return False
        return place.stat is not None


def around(path: str, homes: list[str], clear: Clear, *, whole: bool) -> Iterator[tuple[str, str]]:
    """The file itself and, with *whole*, the prefix in which its libraries lie.

    A prefix behind a link would show whatever a program made that link lead to.
    """
    folder = os.path.dirname(path)
    prefix = os.path.dirname(folder)
    in_prefix = os.path.basename(folder) in ("bin", "sbin", "shims")
    if whole and in_prefix and may_show(prefix, homes) and clear(prefix):
        yield from _prefix(prefix, folder, homes, clear)
    yield path, "the command"


def _prefix(prefix: str, folder: str, homes: list[str], clear: Clear) -> Iterator[tuple[str, str]]:
    name = os.path.basename(real_path(prefix))
    if name == ".cargo":
        # Its other files hold the registry's token. What rustup starts lies elsewhere.
        rustup = os.environ.get("RUSTUP_HOME", os.path.join(os.path.dirname(prefix), ".rustup"))
        for part in (folder, rustup):
            if os.path.isdir(part) and clear(part):
                yield part, "its toolchain"
    elif name == ".local":
        # Beside the programs of one user lie the data of all: only what programs are made of.
        for part in ("bin", "lib", "lib64"):
            if os.path.isdir(f"{prefix}/{part}") and clear(f"{prefix}/{part}"):
                yield f"{prefix}/{part}", "its toolchain"
    elif any(os.path.exists(f"{prefix}/{part}") for part in ("pyvenv.cfg", "lib", "lib64", "libexec")):
        yield prefix, "its toolchain"
        yield from _base_python(prefix, homes, clear)


def _base_python(prefix: str, homes: list[str], clear: Clear) -> Iterator[tuple[str, str]]:
    """The installation that a virtual environment was made from; PEP 405.

    pyvenv.cfg may have come with the untrusted program. What it names is shown only where a Python
    lies, and of that only what programs are made of.
    """
    for folder in _venv_homes(f"{prefix}/pyvenv.cfg"):
        base = os.path.dirname(folder)
        if base == prefix or any(is_below(base, place) for place in SYSTEM):
            continue
        if is_executable(f"{folder}/python3") and may_show(base, homes):
            for part in (folder, f"{base}/lib", f"{base}/lib64"):
                if os.path.isdir(part) and clear(part):
                    yield part, "its Python"
    if prefix == sys.prefix != sys.base_prefix and not is_below(sys.base_prefix, "/usr"):
        yield sys.base_prefix, "its Python"


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
