"""Who makes a survey, and whether there is anything to look at at all."""

from __future__ import annotations

from capsule.policy.policy import IdMap

from .found import Survey, unasked_sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from capsule.policy.policy import Policy

_NOTHING = Survey()


def survey(
    policy: Policy, *, cwd_shown: str | None, shown: Sequence[tuple[str, str]], uid: int
) -> Survey:
    """Look at all that a policy's mounts point to. Makes what ``keep`` of an overlay names.

    A non-optional source that is missing or cannot be looked at is found all the same, as a file: the
    step that opens it says why it cannot.

    Args:
        policy: the policy.
        cwd_shown: the working directory, if it is shown unasked.
        shown: (path, reason) of what else of the host is shown unasked.
        uid: the caller.

    Raises:
        PolicyError: a source would give away more than its name says, or is not what its mount is for.
    """
    cwd = _cwd(policy, cwd_shown, uid)
    if policy.mounts or policy.root is not None or policy.protect or policy.unprotect:
        from .survey_mounts import examine  # only where there is something to look at

        return examine(policy, cwd_shown=cwd_shown, shown=shown, uid=uid).replace(cwd=cwd)
    hidden, notes = unasked_sockets(cwd_shown)
    return Survey(hidden=hidden, notes=notes, cwd=cwd) if hidden or notes or cwd else _NOTHING


def _cwd(policy: Policy, shown: str | None, uid: int) -> str:
    """The way to a working directory that was named; that of the caller itself is without links."""
    if shown is None or policy.cwd is None:
        return ""
    from .lookup import follow, trusts_root

    trusted = trusts_root(uid, host_root=policy.id_map is IdMap.HOST_ROOT)
    return follow(shown, f"cwd: {shown}", trusted=trusted).path
