"""How the kernel gets from a path to the program that it executes: links, and first lines of scripts.

What a first line names, the program itself may have made up; execve(2).
"""

from __future__ import annotations

import os

from capsule.files.found import Shown
from capsule.host.places import real_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Why a program itself is shown.
ITSELF = "the command"
# As many as the kernel follows: scripts whose interpreter is one, and symbolic links.
_SCRIPTS, _LINKS = 5, 40


def programs(found: str, search: str) -> Iterator[str]:
    """The program, and whatever executes it if it is a script: the interpreter, and through env(1).

    Args:
        found: the program's absolute path.
        search: the value of PATH, for env(1).
    """
    for _ in range(_SCRIPTS):
        yield found
        words = first_line(found)
        if not words or not _is_program(words[0]):
            return
        found = words[0]
        if os.path.basename(found) == "env":
            yield found
            through = _through_env(words[1:], search)
            if through is None:
                return
            found = through


def first_line(path: str) -> list[str]:
    """The words of a script's first line, of which the first is an absolute path; [] of all else."""
    first = _start(path).partition(b"\n")[0]
    if not first.startswith(b"#!"):
        return []
    # Blanks alone part words: a carriage return is a part of one, and then nothing is found.
    parts = os.fsdecode(first[2:]).replace("\t", " ").split(" ")
    words = [part for part in parts if part]
    return words if words and words[0].startswith("/") else []


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
    """Return whether an untrusted first line may name it: it is one, and not just any file."""
    return is_executable(path) and _start(path).startswith((b"\x7fELF", b"#!"))


def is_executable(path: str) -> bool:
    """Return whether the caller may execute it."""
    return os.path.isfile(path) and os.access(path, os.X_OK)


def candidates(name: str, search: str, cwd: str) -> tuple[str, ...]:
    """The paths that execvp(3) would try, in its order. Relative parts of PATH are not searched."""
    if "/" in name:
        path = os.path.join(cwd, name)
        # What lies beside ".." may not be there inside.
        return (os.path.realpath(path) if ".." in path.split("/") else path,)
    folders = [folder for folder in search.split(":") if folder.startswith("/")]
    return tuple(os.path.join(folder, name) for folder in folders) or (f"/usr/bin/{name}",)


def _through_env(words: list[str], search: str) -> str | None:
    """Return what env(1) executes: the first word that is neither an option nor a variable."""
    names = [word for word in words if not word.startswith("-") and "=" not in word]
    if not names or ("/" in names[0] and not names[0].startswith("/")):
        return None
    return next(filter(_is_program, candidates(names[0], search, "/")), None)


def hops(path: str) -> Iterator[str]:
    """A path, and each that the links on its way and at its end lead to."""
    for _ in range(_LINKS):
        yield path
        above, name = os.path.split(os.path.normpath(path))
        real = os.path.join(real_path(above), name)
        if real != path:
            yield real
        try:
            target = os.readlink(real)
        except (OSError, ValueError):
            return
        path = os.path.normpath(os.path.join(os.path.dirname(real), target))


# --- Python ------------------------------------------------------------------------------------


def is_isolated(words: tuple[str, ...]) -> bool:
    """Return whether words make Python do without its user site: -s or -I, alone or with others."""
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-") or word.startswith("--"):
            return False
        for letter in word[1:]:
            if letter in "sI":
                return True
            if letter in "cm":
                return False
            if letter in "WX":
                # Its value is what is left of the word, or else the next one.
                if word.endswith(letter):
                    next(rest, None)
                break
    return False


def user_site(steps: Iterable[str], home: str) -> Iterator[Shown]:
    """Yield where pip installs for one user, if a Python runs that has that on its path; PEP 370."""
    for program in steps:
        name = os.path.basename(real_path(program))
        version = name.removeprefix("python")
        if name != version and version.replace(".", "").isdigit():
            in_venv = os.path.isfile(f"{os.path.dirname(os.path.dirname(program))}/pyvenv.cfg")
            path = f"{home}/.local/lib/{name}/site-packages"
            real = real_path(path)
            if os.path.isdir(path) and not in_venv and real == real_path(home) + path[len(home) :]:
                yield Shown(path, "its user site", real)
