"""Why a program that is there on the host was not executed: looked for where it failed."""

from __future__ import annotations

import errno
import os

from capsule.base.text import is_below
from capsule.policy.mounts import TREES
from capsule.program.elf import read
from capsule.program.scripts import hops, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from capsule.files.found import Survey
    from capsule.host.host import Host
    from capsule.policy.mounts import Mount
    from capsule.program.command import Command


def exec_hint(error: int, host: Host, command: Command, survey: Survey) -> str:
    """Return what to do about an ``execve`` that failed with ENOENT or EACCES."""
    name = command.args[0]
    if command.found is None and error == errno.ENOENT:
        if "/" in name:
            return _no_program(name, command)
        return f"no directory of PATH has {name}: install it, or correct the name"
    covered = _covered(command, survey)
    if covered is not None:
        return covered
    if error == errno.ENOENT:
        return (
            f"{command.found} is there, but the interpreter that it names (its #! line or its dynamic "
            "loader) is not in the view: show it with --ro"
        )
    if command.found is None:
        return f"{name} is there but is not executable: chmod +x"
    if host.uid == 0:
        return (
            f"started by root, the command runs as an unprivileged user of the host, who may not "
            f"execute {command.found}: check the permissions of it and of the directories above it"
        )
    return f"{command.found} may not be executed: check its permissions"


def _no_program(name: str, command: Command) -> str:
    """Say what a path is that was to be executed and is not there inside."""
    path = command.paths[0]
    # Another root has files of its own.
    if command.root_entries or not os.path.exists(path):
        return f"there is no {name}; inside, only what is shown exists: see `capsule plan`"
    if os.path.isdir(path):
        return f"{name} is a directory: name a program in it"
    return (
        f"{name} is there but is not executable: chmod +x it, or name what runs it: "
        f"`capsule run --ro {name} -- INTERPRETER {name}`"
    )


def _covered(command: Command, survey: Survey) -> str | None:
    """That the policy itself covers the program, or what the kernel loads it with; None if not so."""
    if command.found is None or not (survey.found or survey.hidden):
        return None
    for path, what in _loaded(command):
        for place in hops(path):
            mount = _mount_over(place, survey)
            if mount is not None:
                return f"{mount} covers {what} {path}: leave it out, or show {place} with --ro after it"
    return None


def _loaded(command: Command) -> Iterator[tuple[str, str]]:
    """(Path, what it is) of the program and of all that the kernel opens to execute it."""
    what, last = "the program", ""
    for last in programs(str(command.found), ""):
        yield last, what
        what = "the interpreter"
    image = read(last)
    if image is not None and image.interpreter:
        yield image.interpreter, "the dynamic loader"


def _mount_over(place: str, survey: Survey) -> str | None:
    """Return what of the policy covers a place: the innermost mount that holds it, if it hides."""
    patterns = [at for at, _ in survey.hidden if is_below(place, at)]
    if patterns:
        return f"the policy's hide of {patterns[0]}"
    over = [one.mount for one in survey.found if is_below(place, one.mount.at)]
    mount = max(over, key=lambda mount: len(mount.at), default=None)
    if mount is None:
        return None
    name = f"the policy's {mount.kind.value.replace('_', '-')} at {mount.at}"
    if mount.noexec:
        return f"{name}, which is noexec,"
    return None if mount.kind in TREES and _shows(mount, place) else name


def _shows(mount: Mount, place: str) -> bool:
    """Return whether the source of a mount has what stands on the host at a place."""
    return os.path.lexists(mount.source + place.removeprefix(mount.at))
