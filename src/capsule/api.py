"""`run`, `start`, `plan`: who reads this has read the way of a run through the rooms."""

from __future__ import annotations

import errno
import os

from capsule.base.descriptors import Descriptors
from capsule.base.errors import CapsuleError, HostError, PolicyError
from capsule.files.survey import survey
from capsule.host.host import forget, is_presumed, presume, probe
from capsule.host.ids import in_capsule
from capsule.launcher.spawn import cannot_start
from capsule.planner.plan import Plan, Terminal, make_plan
from capsule.policy.limits import Limits
from capsule.policy.policy import Policy
from capsule.process.launch import end, launch
from capsule.process.stdio import DEVNULL, PIPE, check_input, given, open_stdio, pairs_of
from capsule.program.command import resolve

from .base import signals

_NESTED = (
    "this is inside of a capsule, and none can be made in another, which gives out no new /proc: start "
    "it outside; `unshare -r` and bubblewrap work inside with --seccomp nest --keep-id on the outer one"
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, TypeVar, Unpack

    from capsule.changes.closing import Closing
    from capsule.confine.cgroup import Leaf
    from capsule.files.found import Survey
    from capsule.host.host import Host
    from capsule.policy.policy import Overrides
    from capsule.process.handle import Process
    from capsule.process.launch import Running
    from capsule.process.network.proxy import Proxy
    from capsule.process.result import Result
    from capsule.process.stdio import File, Given, Stdio, Words
    from capsule.program.command import Command

    Args = Sequence[str | bytes | os.PathLike[str]]
    Begun = TypeVar("Begun")
    Compiled = tuple[Plan, Host, Command, Survey]

    class Options(Words, Overrides, total=False):
        """What `start` takes besides command and policy, but for a terminal."""

    Begin = Callable[[Policy, Compiled, Given, signals.Held], Process | None]


def run(
    args: Args,
    policy: Policy | None = None,
    *,
    input: bytes | str | None = None,
    stdin: Stdio = None,
    stdout: Stdio = PIPE,
    stderr: Stdio = PIPE,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    check: bool = False,
    pass_fds: Iterable[int] = (),
    net_log: File = None,
    **overrides: Unpack[Overrides],
) -> Result:
    """Run a command in a capsule and return how it ended.

    The words are those of `subprocess.run`; docs/python.md lists the differences. Output is
    captured up to ``Limits.output``, standard input is empty, the environment is the default one.

    Args:
        args: the command and its arguments; never a shell string.
        policy: what it may see and do; None is ``Policy()``.
        input: what it reads from standard input.
        stdin: DEVNULL (which None means), INHERIT, a descriptor or a file.
        stdout: PIPE, DEVNULL, INHERIT, a descriptor or a file.
        stderr: likewise, or STDOUT.
        text: give and take str instead of bytes.
        encoding: of that text, UTF-8 unless given; implies *text*.
        errors: how to decode, "replace" unless given; implies *text*.
        check: raise CommandFailed unless the command ended with status 0.
        pass_fds: further descriptors that the command keeps, under their own numbers.
        net_log: a descriptor or a file for lines of JSON about what is reached and refused, where the
            network is a list of hosts or something is published; docs/network.md.
        overrides: fields of the policy or of its limits to change: ``timeout=5``, ``cwd="/data"``.

    Raises:
        PolicyError: the request is wrong; nothing was started.
        HostError: this host cannot give what is required.
        SetupError: a step failed; the command did not run.
        CommandFailed: only with *check*.
    """
    check_input(input, stdin)
    words = given(input, stdin, stdout, stderr, text, encoding, errors, pass_fds, net_log)
    with begin(args, override(policy, overrides), words) as process:
        result = process.wait()
    return result.check() if check else result


def start(
    args: Args,
    policy: Policy | None = None,
    *,
    input: bytes | str | None = None,
    stdin: Stdio = None,
    stdout: Stdio = PIPE,
    stderr: Stdio = PIPE,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    pass_fds: Iterable[int] = (),
    net_log: File = None,
    terminal: Terminal | None = None,
    **overrides: Unpack[Overrides],
) -> Process:
    """Start a command in a capsule and return once it runs.

    As `run`, but ``stdin=PIPE`` gives a writer, and `Process.stdout` and `Process.stderr` read while
    the command runs. Use it in a ``with`` block: leaving it kills and reaps everything.

    Args:
        args: as `run`, and so are those that are not named here.
        policy: as `run`.
        input: as `run`.
        stdin: as `run`, or PIPE.
        stdout: as `run`.
        stderr: as `run`.
        text: as `run`.
        encoding: as `run`.
        errors: as `run`.
        pass_fds: as `run`.
        net_log: as `run`.
        terminal: give the command a terminal of its own; `Process.terminal` is its other side.
        overrides: as `run`.

    Raises:
        PolicyError, HostError, SetupError: as `run`.
    """
    words = given(input, stdin, stdout, stderr, text, encoding, errors, pass_fds, net_log)
    process = begin(args, override(policy, overrides), words, terminal)
    from capsule.process.handle import open_network  # was imported while the launcher was at work

    return open_network(process)  # nobody may wait for it, as `run` does


def begin(
    args: Args,
    policy: Policy,
    given: Given,
    terminal: Terminal | None = None,
    elsewhere: Begin | None = None,
    supposed: Survey | None = None,
) -> Process:
    """Start a command; *elsewhere*, in a capsule that was made ahead, if that has one for it.

    There what was *supposed* to be found where the policy points is looked at again.
    """

    def once() -> Process:
        with signals.Held(breathing=True) as held:
            about = presume, args, policy, given.passed, terminal
            compiled = compiled_for(*about, supposed=supposed)
            process = elsewhere and elsewhere(policy, compiled, given, held)
            if process is not None:
                return process
            if supposed is not None:
                compiled = compiled_for(*about)
            held.stop_breathing()
            return _start(policy, compiled, given, terminal, held)

    try:
        return presuming(once)
    except CapsuleError as error:
        if not isinstance(error, PolicyError) and in_capsule():
            error.advise(_NESTED)
        raise
    except OSError as error:
        raise cannot_start(error) from None


def presuming(begin: Callable[[], Begun]) -> Begun:
    """Begin a run; once more, if the kernel may be another than its release says, with it asked.

    Likewise if what the host had for its programs is gone, as when a package is removed or replaced.
    """
    try:
        return begin()
    except HostError:
        if not is_presumed():
            raise
        probe()
    except OSError as error:
        if error.errno != errno.ENOENT or not forget(str(error.filename)):
            raise
    # Nothing has run so far.
    return begin()


def compiled_for(
    find: Callable[..., Host],
    args: Args,
    policy: Policy,
    passed: Sequence[int] = (),
    terminal: Terminal | None = None,
    *,
    supposed: Survey | None = None,
) -> Compiled:
    """The plan, and what it was made of."""
    host = find(cgroups=bool(policy.limits.of_tree()))
    command = resolve(args, policy)
    found = look(policy, command) if supposed is None else supposed
    pairs = pairs_of(passed)
    plan = make_plan(policy, host, command, found, descriptors=pairs, terminal=terminal)
    return plan, host, command, found


def _start(
    policy: Policy,
    compiled: Compiled,
    given: Given,
    terminal: Terminal | None,
    held: signals.Held,
) -> Process:
    plan = compiled[0]
    with given.streams() as streams, Descriptors(plan.owner) as theirs:
        stdio = open_stdio(given.stdio, streams, theirs)
        closing = closing_of(plan, policy)
        leaf = proxy = None
        try:
            proxy = _proxy_of(plan, given.net_log)
            host = in_scope(compiled[1], plan)
            leaf = leaf_of(plan, host)
            running = launch(
                *(plan, host, *compiled[2:], stdio),
                passed=dict(pairs_of(given.passed)),
                held=held,
                leaf=leaf,
                meanwhile=_import_process,
                bases=True,
            )
            master = receive(running, plan, closing, terminal, proxy)
        except BaseException:
            if proxy is not None:
                proxy.close()
            if leaf is not None:
                leaf.remove()
            if closing is not None:
                closing.close()
            raise
        from capsule.process.handle import Process

        about = plan, policy.limits, streams.move()
        return Process(running, *about, master, closing, leaf, proxy=proxy)


def look(policy: Policy, command: Command) -> Survey:
    """Look at what lies where the policy points; see `files.survey`."""
    return survey(
        policy,
        cwd_shown=command.working_directory,
        shown=command.shown,
        uid=os.geteuid(),
        cwd_inside=command.cwd,
    )


def _import_process() -> None:
    """Import what is needed next, 2 ms of a first start, while the launcher is at work."""
    import capsule.process.handle  # noqa: F401


def in_scope(host: Host, plan: Plan) -> Host:
    """The host with a scope to make the capsule's cgroup in, where that is the way to have one."""
    if plan.cgroup is None or host.cgroup is None:
        return host
    from capsule.host import delegation  # was imported to find it

    if host.cgroup.way != delegation.SCOPE:
        return host
    from .confine import scope  # once in a process

    scope.enter(host.cgroup.directory)
    return host.replace(cgroup=delegation.find())


def leaf_of(plan: Plan, host: Host) -> Leaf | None:
    """Make the capsule's cgroup, if its plan has one."""
    if plan.cgroup is None or host.cgroup is None:
        return None
    from .confine import cgroup  # only with limits that need one

    at = host.cgroup
    return cgroup.make(at.directory, at.controllers, dict(plan.cgroup), callers=at.callers)


def closing_of(plan: Plan, policy: Policy) -> Closing | None:
    """Prepare what is to be done when the capsule has ended, if there is something."""
    if not plan.overlays and not plan.watched:
        return None
    from capsule.changes.closing import Closing  # only where there is something to look at in the end

    return Closing(plan, policy)


def receive(
    running: Running,
    plan: Plan,
    closing: Closing | None,
    terminal: Terminal | None,
    proxy: Proxy | None = None,
) -> int | None:
    """Hand out what init has sent: the layers, sockets for the proxy, and the master of a pty."""
    count = len(running.gifts) - (terminal is not None)
    others, master = running.gifts[:count], running.gifts[count] if terminal is not None else None
    layers = count - (0 if plan.way is None else plan.way.gifts)
    if proxy is not None:
        proxy.take(others[layers:], running.channel)
    if closing is not None:
        try:
            closing.receive(others[:layers])
        except BaseException:
            end(running.replace(gifts=() if master is None else (master,), channel=-1))
            raise
    return master


def _proxy_of(plan: Plan, log: int) -> Proxy | None:
    """Prepare the way in and out of a capsule, if it has one."""
    if plan.way is None:
        if log >= 0:
            message = "net_log: there is no list of hosts, and nothing is published"
            raise PolicyError(
                message, field="net_log", hint="leave it out, or name hosts (--allow-net)"
            )
        return None
    from capsule.process.network.proxy import Proxy  # only with a list of hosts, or what is published

    return Proxy(plan.way, log, _start_proxy)


def _start_proxy(args: Args, policy: Policy, fds: Sequence[int]) -> Process:
    return begin(args, policy, given(stdin=PIPE, stderr=DEVNULL, pass_fds=fds))


def plan(
    args: Args,
    policy: Policy | None = None,
    *,
    terminal: Terminal | None = None,
    **overrides: Unpack[Overrides],
) -> Plan:
    """Return every step that `run` would take, in order; nothing is executed.

    ``print(capsule.plan(["make"]))`` shows the text of ``capsule plan make``.

    Raises:
        PolicyError, HostError: as `run`.
    """
    return compiled_for(probe, args, override(policy, overrides), (), terminal)[0]


_DEFAULT = Policy()
_overridden: tuple[Policy, object, Policy] = (_DEFAULT, None, _DEFAULT)


def override(policy: Policy | None, overrides: Mapping[str, Any]) -> Policy:
    """The policy with some of its fields, or of its limits', changed. None leaves a field as it is.

    The last one is kept: what is planned is kept by policy.
    """
    global _overridden  # noqa: PLW0603
    policy = _DEFAULT if policy is None else policy
    given = {name: value for name, value in overrides.items() if value is not None}
    if not given:
        return policy
    # Of what can be changed in place, nobody could tell that it was.
    plain = all(type(value) in (str, int, float, bool) for value in given.values())
    key = plain and {name: (type(value), value) for name, value in given.items()}
    last = _overridden
    if plain and last[0] is policy and last[1] == key:
        return last[2]
    made = _override(policy, given)
    if plain:
        _overridden = (policy, key, made)
    return made


def _override(policy: Policy, given: Mapping[str, Any]) -> Policy:
    limits = {name: given[name] for name in Limits.__value_fields__ if name in given}
    fields = {name: value for name, value in given.items() if name not in limits}
    if limits:
        fields["limits"] = fields.get("limits", policy.limits).replace(**limits)
    return policy.replace(**fields)
