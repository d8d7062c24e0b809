"""What is kept of the last plan: from run to run most of it is the same.

All that a part depends on is in its key, so that `make_plan` stays a pure function. Two threads at once
may each do the work, no more.
"""

from __future__ import annotations

from capsule.launcher import steps as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from capsule.files.found import Survey
    from capsule.host.host import Host
    from capsule.policy.policy import Policy
    from capsule.program.command import Command

    from .identity import Ids
    from .limits import Bounds

    Plan = TypeVar("Plan")
    Steps = tuple[s.Step, ...]
    View = tuple[Steps, tuple[str, ...]]

_plan: tuple[tuple[object, ...], Policy, Host, Command, Any] | None = None
_view: tuple[tuple[object, ...], Host, View] | None = None
# First steps of a plan, and what the launcher reads of them.
_NOTHING = s.encode(())
_view_text: tuple[Steps, bytes] = ((), _NOTHING)
_head: tuple[Steps, bytes] = ((), _NOTHING)


def whole(
    make: Callable[[], Plan],
    reword: Callable[[Plan], Plan],
    policy: Policy,
    host: Host,
    command: Command,
    *more: object,
) -> Plan:
    """Return what *make* does of these; *reword* changes what the command's words change."""
    global _plan  # noqa: PLW0603
    last = _plan
    if last is None or last[1] is not policy or last[2] is not host or last[0] != more:
        same = False
    else:
        same = last[3] is command or last[3] == command.replace(args=last[3].args)
    if last is None or not same:
        plan = make()
        _plan = (more, policy, host, command, plan)
        return plan
    kept: Plan = last[4]
    return kept if last[3].args == command.args else reword(kept)


def view(
    make: Callable[[], View],
    policy: Policy,
    host: Host,
    command: Command,
    survey: Survey,
    ids: Ids,
    bounds: Bounds,
    abi: int,
) -> View:
    """Return what *make* does of these: the steps to the last mount, and notes."""
    global _view, _view_text  # noqa: PLW0603
    key = (
        *(policy.root, policy.system, policy.network, policy.hostname, policy.limits.memory, ids),
        *(policy.id_map, command.user, command.group, command.home, command.home_elsewhere),
        *(command.cwd, command.working_directory, command.left_out, command.hosts),
        *(abi, policy.tcp_connect, policy.tcp_bind),
        *(bounds.launcher_steps, bounds.sysctls),
        *(command.shown, command.needed, command.root_entries, survey),
    )
    last = _view
    if last is None or last[1] is not host or last[0] != key:
        last = _view = (key, host, make())
        _view_text = last[2][0], s.encode(last[2][0])
    return last[2]


def encode(steps: Steps) -> bytes:
    """As `steps.encode`. All but the command's words is the last plan's, too, and encoded already."""
    global _head  # noqa: PLW0603
    first = steps[:-1]
    head = _head
    if head[0] != first:
        known, text = _view_text
        if first[: len(known)] != known:
            known, text = (), _NOTHING
        head = _head = (first, text + s.encode_more(first[len(known) :]))
    return head[1] + s.encode_more(steps[-1:])
