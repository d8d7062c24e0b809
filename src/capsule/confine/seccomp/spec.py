"""What a filter is asked to be: small, since every run makes one."""

from __future__ import annotations

import os

from capsule.base.errors import PolicyError
from capsule.base.text import shown
from capsule.base.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# Who allows one of these by name is to use it, and walls that stand behind the filter give way, too.
_NESTING = frozenset(
    ("clone", "fsmount", "fsopen", "mount", "@mount", "mount_setattr", "move_mount", "open_tree",
     "pivot_root", "setns", "umount2", "unshare")
)  # fmt: skip


class Seccomp(Value):
    """Which system calls the command may make: a source of rules, and what differs from it; seccomp(2).

    Attributes:
        profile: ``default``, ``strict``, ``debug``, ``nest`` or ``off``; or the path of a file in the
            format of Docker and OCI, which has a slash in it or ends in .json; or calls and groups as
            in systemd's SystemCallFilter=. See docs/seccomp.md.
        allow: calls and @groups that are allowed beside; the name of a call lifts its rule wholly.
        deny: calls and @groups that are refused.

    Raises:
        PolicyError: a field has a value that cannot be meant. Whether a name is one of a system call
            or a profile turns out when a plan is made.
    """

    profile: str = "default"
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_profile(self.profile)
        if self.path is not None:
            self._set("profile", os.path.abspath(self.profile))
        for field in ("allow", "deny"):
            self._set(field, _names(self.__dict__[field], field))

    @property
    def nests(self) -> bool:
        """Whether the command is to make namespaces and mounts of its own."""
        return self.profile == "nest" or not _NESTING.isdisjoint(self.allow)

    @property
    def path(self) -> str | None:
        """The file that the profile is in, or None."""
        named = "/" in self.profile or self.profile.endswith(".json")
        return self.profile if named else None


def _check_profile(value: Any) -> None:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise _refused("profile", value, "a profile: default, strict, debug, nest, off, a file")


def _names(value: Any, field: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise _refused(field, value, 'a list of system calls, such as ["ptrace", "@debug"]')
    return tuple(sorted(set(value)))


def _refused(field: str, value: object, wanted: str) -> PolicyError:
    hint = "`capsule run --help` lists the options; docs/seccomp.md has profiles, groups and calls"
    message = f"seccomp: {field}: not {wanted}: {shown(value)}"
    return PolicyError(message, field="seccomp", value=value, hint=hint)
