"""A capsule.toml that the command line finds in the working directory: it may only tighten.

Whoever may write there could have put it there, an earlier program, too. So it can take away, and
nothing else; the profile that a caller names with --profile is another matter.
"""

from __future__ import annotations

import os

from .errors import PolicyError
from .mounts import MountKind
from .policy import Network
from .profile import open_document, policy_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .policy import Limits, Policy
    from .toml_text import Document, Path


def tighten(policy: Policy, name: str, trusted: str | None = None) -> tuple[Policy, str | None]:
    """(The policy with what the file *name* takes away, a note on that).

    Args:
        policy: what was asked for.
        name: the file, of the working directory.
        trusted: the profile that the caller named, if it is a file: it may be the same one.

    Raises:
        PolicyError: it is no regular file of at most 1 MiB, or holds something that may loosen.
    """
    if trusted is not None and os.path.samefile(trusted, name):
        return policy, None
    document = open_document(name, found=True)
    note = f"{name} of the working directory applies: {', '.join(document.data) or 'it is empty'}"
    return tighten_by(policy, document), note


def tighten_by(policy: Policy, document: Document) -> Policy:
    """The policy with what a document takes away; a PolicyError if that is not all that it does."""
    found = policy_of(document)
    for key, value in document.data.items():
        _check(document, key, value, policy.limits, found.limits)
    limits = {key: getattr(found.limits, key) for key in document.data.get("limits", {})}
    try:
        return policy.replace(
            mounts=(*policy.mounts, *found.mounts),
            protect=(*policy.protect, *found.protect),
            network=found.network if "network" in document.data else policy.network,
            limits=policy.limits.replace(**limits),
        )
    except PolicyError as error:
        # Each part is good: together with the others a hide would cover a mount that was asked for.
        raise document.error(("mounts",), error.message.removeprefix("mounts: ")) from None


def _check(document: Document, key: str, value: object, before: Limits, asked: Limits) -> None:
    """Refuse what does not only take away. That the values make sense is known by now."""
    if key == "mounts":
        assert isinstance(value, list)
        for number, mount in enumerate(value):
            if mount["kind"] != MountKind.HIDE.value:
                raise _looser(document, ("mounts", number, "kind"))
    elif key == "limits":
        assert isinstance(value, dict)
        for name in value:
            allowed = name in ("timeout", "output")
            if not allowed or _is_higher(getattr(asked, name), getattr(before, name)):
                raise _looser(document, ("limits", name))
    elif key == "network":
        if value != Network.NONE.value:
            raise _looser(document, (key,))
    elif key != "protect":
        raise _looser(document, (key,))


def _is_higher(asked: float | None, before: float | None) -> bool:
    return before is not None and (asked is None or asked > before)


def _looser(document: Document, path: Path) -> PolicyError:
    message = f"a {document.name} that is found in the working directory may only tighten"
    hint = f"remove the line, or trust the file with --profile ./{document.name}"
    return document.error(path, message, hint=hint)
