"""A capsule.toml that the command line finds in the working directory: it may only tighten.

Whoever may write there could have put it there, an earlier program, too. So it can take away, and
nothing else; the profile that a caller names with --profile is another matter.
"""

from __future__ import annotations

import os

from capsule.base.errors import PolicyError
from capsule.policy.mounts import MountKind
from capsule.policy.policy import Network

from .read import open_document, policy_of
from .write import NO_LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from capsule.confine.seccomp.spec import Seccomp
    from capsule.policy.policy import Policy

    from .document import Document, Path


def read(name: str, trusted: str | None = None) -> Document | None:
    """Return what the file *name* holds; None if the caller named it.

    Args:
        name: the file, of the working directory.
        trusted: the profile that the caller named, if it is a file: it may be the same one.

    Raises:
        PolicyError: it is no regular file of at most 1 MiB, or no TOML.
    """
    if trusted is not None and os.path.samefile(trusted, name):
        return None
    return open_document(name, found=True)


def note_on(document: Document) -> str:
    """That it applies, for who wants to know."""
    keys = ", ".join(document.data) or "it is empty"
    return f"{document.name} of the working directory applies: {keys}"


def tighten_by(policy: Policy, document: Document) -> Policy:
    """The policy with what a document takes away; a PolicyError if that is not all that it does."""
    found = policy_of(document)
    for key, value in document.data.items():
        _check(document, key, value)
    limits: Any = {
        key: _stricter(getattr(policy.limits, key), getattr(found.limits, key))
        for key in document.data.get("limits", {})
    }
    try:
        return policy.replace(
            mounts=(*policy.mounts, *found.mounts),
            protect=(*policy.protect, *found.protect),
            network=found.network if "network" in document.data else policy.network,
            limits=policy.limits.replace(**limits),
            seccomp=_more_denied(policy.seccomp, found.seccomp),
        )
    except PolicyError as error:
        # Each part is good: together with the others a hide would cover a mount that was asked for.
        message, hint = error.message.removeprefix("mounts: "), f"correct {document.name}, or remove it"
        raise document.error(("mounts",), message, hint=hint) from None


def _check(document: Document, key: str, value: object) -> None:
    """Refuse what does not only take away. That the values make sense is known by now."""
    if key == "mounts":
        assert isinstance(value, list)
        for number, mount in enumerate(value):
            if mount["kind"] != MountKind.HIDE.value:
                raise _looser(document, ("mounts", number, "kind"))
    elif key == "limits":
        assert isinstance(value, dict)
        for name, limit in value.items():
            # No limit at all takes nothing away, whatever else is in force; of others, who knows.
            if limit == NO_LIMIT or name == "ulimits":
                raise _looser(document, ("limits", name))
    elif key == "network":
        if value not in (Network.NONE.value, []):
            raise _looser(document, (key,))
    elif key == "seccomp":
        # A profile cannot be said to be the stricter one of two.
        if not isinstance(value, dict):
            raise _looser(document, (key,))
        for name in value:
            if name != "deny":
                raise _looser(document, (key, name))
    elif key != "protect":
        raise _looser(document, (key,))


def _more_denied(before: Seccomp, found: Seccomp) -> Seccomp:
    """Return what it denies is refused even where the caller allows it: by name, as names say most."""
    if not found.deny:
        return before
    from capsule.confine.seccomp import groups  # only where it is asked for

    denied = {*found.deny}
    for word in denied & groups.GROUPS.keys():
        denied |= groups.members(word)
    allow = tuple(name for name in before.allow if name not in denied)
    return before.replace(allow=allow, deny=(*before.deny, *denied))


def _stricter(before: float | None, asked: float) -> float:
    """The lower of two limits: a file for everyone may name a higher one than this run has."""
    return asked if before is None else min(before, asked)


def _looser(document: Document, path: Path) -> PolicyError:
    message = f"a {document.name} that is found in the working directory may only tighten"
    hint = f"remove the line, or trust the file with --profile ./{document.name}"
    return document.error(path, message, hint=hint)
