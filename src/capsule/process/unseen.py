"""What of the host a command's words name and its view lacks: looked for once it has failed.

What is said is what is shown, and never that the command failed for it.
"""

from __future__ import annotations

import errno
import os
from itertools import islice

from capsule.base.text import above, is_below, listed, printable
from capsule.host.places import ETC_SYSTEM, is_there
from capsule.launcher import steps as s

from .outcome import says_read_only

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from capsule.planner.plan import Plan

    Places = dict[str, s.Step]

# How many words are looked at, and how many are told.
WORDS, TOLD = 1000, 3
LINKS = 40  # as many as the kernel follows; path_resolution(7)
# Between the words of a script that is one word, as sh -c has it.
_BETWEEN = dict.fromkeys(map(ord, "\"'`;|&()<>{}=:,\n\t"), " ")
# Which argument of a step is where something is put.
_PLACE: dict[type[s.Step], int] = {
    **dict.fromkeys((s.Attach, s.Symlink), 1),
    **dict.fromkeys((s.Tmpfs, s.Directory, s.Devpts, s.File, s.Content, s.Overlay, s.Hide), 0),
}
# Of notes that begin so: the programs that they are about, and what these write where it matters.
_SUBJECTS = {
    "git": (("git",), b"not a git repository"),
    "node": (("node", "npm", "npx", "pnpm", "yarn", "tsc", "bun"), b"Cannot find module"),
}
# Where a program keeps what it does not have in /usr.
_KEPT_AT = (
    "/etc/{}",
    "/etc/{}.conf",
    "/etc/{}.d",
    "/etc/{}rc",
    "/etc/{}.cfg",
    "/opt/{}",
    "/var/lib/{}",
)
_NEEDLESS = {f"/etc/{name}" for name in ETC_SYSTEM}
_FOLDERS = ("/usr/local/bin", "/usr/bin", "/usr/sbin")
# In which a package has a directory of its name.
_PACKAGES = ("/usr/share/", "/usr/lib/")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@%,:~=")


def hints(plan: Plan, stderr: Any) -> tuple[str, ...]:
    """Return what may be of use to who ran a command that failed, in whole or in part.

    Args:
        plan: of the run.
        stderr: what the command wrote there, bytes or str; the end of what it wrote to a terminal;
            empty or None if nobody has seen it.
    """
    refused = says_read_only(stderr)
    about = (*_noted(plan, stderr), *(_protected(plan) if refused else ()))
    cwd = next((str(step[0]) for step in reversed(plan.steps) if isinstance(step, s.Chdir)), "/")
    named = _named(plan.args[1:], cwd) | _named_like(plan)
    if not (named or refused):
        return about
    places = _places(plan)
    told = _not_shown({path: name for path, name in named.items() if _lacks(path, places)})
    return (*about, *told, *(_read_only(plan, cwd, places) if refused else ()))


def _noted(plan: Plan, stderr: Any) -> Iterator[str]:
    """Yield the notes that are about the program, or about what it says that it has not found."""
    program = os.path.basename(plan.args[0]) if plan.args else ""
    said = os.fsencode(stderr) if isinstance(stderr, str) else stderr or b""
    for subject, (programs, words) in _SUBJECTS.items():
        if program in programs or words in said:
            yield from (note for note in plan.notes if note.startswith(f"{subject}: "))


def _named(words: tuple[str, ...], cwd: str) -> dict[str, str]:
    """Paths of the host that words name, and how; /proc is about processes, which are others inside."""
    found: dict[str, str] = {}
    for word in words[:WORDS]:
        for name in _names(word):
            path = os.path.normpath(os.path.join(cwd, _expand(name)))
            if path not in found and not is_below(path, "/proc") and os.path.lexists(path):
                found[path] = name
    return found


def _named_like(plan: Plan) -> dict[str, str]:
    """Find what the host has in /etc, /var/lib and /opt under the names of programs that words name."""
    found: dict[str, str] = {}
    if any(isinstance(step, s.Attach) and step[1] == "/usr" != step[2] for step in plan.steps):
        # The programs of another root have what belongs to them there.
        return found
    for program in islice(_programs(plan.args[:WORDS]), WORDS):
        # pip3 has a pip.conf, apt-get a directory apt.
        names = (program, program.rstrip("0123456789."), program.partition("-")[0])
        for name in filter(None, dict.fromkeys(names)):
            paths = [path.format(name) for path in _KEPT_AT]
            there = [path for path in paths if path not in _NEEDLESS and os.path.lexists(path)]
            # State alone is rather that of a service.
            if there != [f"/var/lib/{name}"]:
                found.update((path, path) for path in there)
    return found


def _programs(words: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of the program, of the package it lies in, and of those in a script of sh -c."""
    for program in words[:1]:
        yield os.path.basename(program)
        real = os.path.realpath(next((f"{top}/{program}" for top in _of_system(program)), program))
        yield from (real[len(top) :].split("/")[0] for top in _PACKAGES if real.startswith(top))
    scripts = (word for word in words[1:] if " " in word or "\n" in word)
    for script in scripts:
        yield from filter(_of_system, dict.fromkeys(script.translate(_BETWEEN).split()[:WORDS]))


def _of_system(program: str) -> list[str]:
    """The directories of the system that have a program of this name."""
    if "/" in program or program in ("", ".", ".."):
        return []
    return [top for top in _FOLDERS if is_there(f"{top}/{program}")]


def _not_shown(missing: dict[str, str]) -> Iterator[str]:
    for path, name in list(missing.items())[:TOLD]:
        option = "--dev" if is_below(path, "/dev") else "--ro"
        yield f"not shown inside: {printable(name)}; show it with {option} {_quoted(name)}"
    if len(missing) > TOLD:
        yield f"not shown inside: {len(missing) - TOLD} more of the paths that the command names"


def _names(word: str) -> Iterator[str]:
    """Yield what may be a path: the word, what stands behind its =, and the paths of a script."""
    if not word.startswith("-"):
        yield word
    name, equals, value = word.partition("=")
    if equals and name:
        yield value
    if (" " in word or "\n" in word) and not os.path.lexists(word):
        parts = word.translate(_BETWEEN).split()
        yield from (part for part in parts if part.startswith(("/", "~/")))


def _expand(name: str) -> str:
    return os.path.expanduser(name) if name.startswith("~/") else name


def _quoted(name: str) -> str:
    """A word as a shell takes it."""
    if _PLAIN.issuperset(name):
        return name
    return "'" + printable(name).replace("'", "'\\''") + "'"


def _places(plan: Plan) -> Places:
    """Return by which step there is something at a place, the last one counts."""
    found: Places = {}
    for step in plan.steps:
        if isinstance(step, s.Mask):
            found.update(dict.fromkeys(step[1], step))
        elif (argument := _PLACE.get(type(step))) is not None:
            found[step[argument]] = step
    # What lies behind a link of Capsule's own, such as one to the home, is there by both names.
    for step in plan.steps:
        if isinstance(step, s.Symlink) and step[0].startswith("/"):
            below = {at: one for at, one in found.items() if at != step[1] and is_below(at, step[1])}
            found |= {step[0] + at[len(step[1]) :]: one for at, one in below.items()}
    return found


def _lacks(path: str, places: Places) -> bool:
    """Return whether the view does not have a path of the host; what the policy hides is to be so."""
    for _ in range(LINKS):
        at = next((place for place in above(path) if place in places), None)
        if at is None:
            return not _holds_one(path, places)
        step, below = places[at], path[len(at) :]
        if isinstance(step, s.Symlink):
            path = _joined(os.path.dirname(at), step[0], below)
        elif isinstance(step, s.Attach) and str(step[2]).startswith("/"):
            link = _first_link(str(step[2]), below)
            if link is None:
                return not os.path.lexists(f"{step[2]}{below}")
            length, target = link
            path = _joined(os.path.dirname(at + below[:length]), target, below[length:])
        else:
            covered = isinstance(step, s.Hide | s.Mask | s.Overlay | s.Devpts) or path == at
            return not covered and not _holds_one(path, places)
    return True


def _holds_one(path: str, places: Places) -> bool:
    """Return whether something is shown below: then the directories above it are there."""
    return any(is_below(place, path) for place in places)


def _joined(folder: str, target: str, below: str) -> str:
    return os.path.normpath(os.path.join(folder, target) + below)


def _first_link(top: str, below: str) -> tuple[int, str] | None:
    """(Length up to the first link, its target) on the way from a directory of the host down a path."""
    end = 0
    while end < len(below):
        end = below.find("/", end + 1)
        end = len(below) if end < 0 else end
        try:
            return end, os.readlink(top + below[:end])
        except OSError as error:
            if error.errno != errno.EINVAL:
                return None
    return None


def _read_only(plan: Plan, cwd: str, places: Places) -> Iterator[str]:
    step = places.get(next((place for place in above(cwd) if place in places), "/"))
    if isinstance(step, s.Attach) and step[1] == step[2] and _is_read_only(plan, step):
        yield f"{printable(cwd)} is shown read-only; --rw . or --overlay . lets the program write"


def _protected(plan: Plan) -> Iterator[str]:
    """Yield which paths of writable trees are read-only, for trusted tools would obey what is there."""
    closed = {step[0] for step in plan.steps if isinstance(step, s.Remount) and step[1] & s.READ_ONLY}
    places = [
        step[0]
        for step in plan.steps
        if isinstance(step, s.Protect) and not is_below(step[0], "/proc")
        if step[1] & s.READ_ONLY or step[0] in closed
    ]
    if places:
        verb = "is" if len(places) == 1 else "are"
        yield (
            f"{printable(listed(places, 'paths'))} {verb} protected, and read-only; --unprotect NAME "
            "(`capsule policy protected`) lets the program write there"
        )


def _is_read_only(plan: Plan, attached: s.Attach) -> bool:
    """Return whether a tree is attached read-only, or is made so afterwards (before Linux 5.12)."""
    _, at, source = attached
    return any(
        step[0] == (at if isinstance(step, s.Remount) else source) and step[1] & s.READ_ONLY
        for step in plan.steps
        if isinstance(step, s.Tree | s.Remount)
    )
