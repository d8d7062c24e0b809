"""What the capsules of a pool are made of, and whether the same would come of it now."""

from __future__ import annotations

import os

from capsule.api import closing_of, in_scope, leaf_of, receive
from capsule.api import look as survey_of
from capsule.base.descriptors import Descriptors, Kept, identity
from capsule.base.errors import PolicyError
from capsule.base.text import is_below
from capsule.launcher import steps as s
from capsule.planner.ahead import part
from capsule.process.base import look, places_of, poll_table
from capsule.process.handle import Process
from capsule.process.stdio import open_stdio, pairs_of
from capsule.process.warm import hand_over, prepare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from capsule.api import Compiled
    from capsule.base import signals
    from capsule.changes.closing import Closing
    from capsule.files.found import Survey
    from capsule.policy.policy import Policy
    from capsule.process.stdio import Given
    from capsule.process.warm import Warm

    from .caller import Caller

_TREES = (s.Tree, s.MappedTree)
_TAKEN = (*_TREES, s.Device, s.Proc)
_OTHERS = "name the command when the pool is made (command=...), or run this one with capsule.run"


class Template:
    """The first part of a plan, which is the same for all capsules of a pool.

    Args:
        compiled: the plan of any command that is to run in one of them, and what it was made of.
        caller: who makes and uses them.

    Raises:
        PolicyError: it has a list of hosts, or publishes something.
    """

    def __init__(self, compiled: Compiled, caller: Caller) -> None:
        self._caller = caller
        plan = compiled[0]
        if plan.way is not None:
            message = "network: a pool's capsules have none, or the host's, and publish nothing"
            raise PolicyError(message, field="network", hint="use capsule.run, or capsule.run_async")
        self.compiled = compiled
        self._steps = part(plan).first
        self._places = places_of(tuple(str(step.path) for step in self._steps if _is_tree(step)))
        self._covered = tuple(_covered(self._steps))

    def make(self) -> Spare:
        """Make a capsule.

        Raises:
            SetupError, HostError, InternalError: as `capsule.start`.
            OSError: something that is shown is gone.
        """
        # Before it is made: what changes meanwhile is noticed.
        seen = self.look()
        plan, host, command, found = self.compiled
        host = in_scope(host, plan)
        leaf = leaf_of(plan, host)
        try:
            return Spare(prepare(plan, host, command, found, leaf), self, seen)
        except BaseException:
            if leaf is not None:
                leaf.remove()
            raise

    def look(self) -> tuple[object, ...]:
        """Return what the capsule takes over of its maker and of the host at this moment.

        Raises:
            OSError: something that is shown is gone.
        """
        covered = [identity(path, follow=False) for path in self._covered]
        return (*self._caller.snapshot(), *look(self._places), *covered)

    def fits(self, compiled: Compiled) -> bool:
        """Return whether a capsule of it is what this plan would make first."""
        plan = compiled[0]
        return plan.cgroup == self.compiled[0].cgroup and part(plan).first == self._steps

    def supposed(self, policy: Policy) -> Survey | None:
        """Return what is supposed to be found for a run: what was, where that is quickly looked at."""
        return None if policy.mounts or policy.root is not None else self.compiled[3]

    def refusal(self, compiled: Compiled) -> PolicyError:
        """Say what a plan would have been made with, or without, that its capsules are not."""
        plan, ours = compiled[0], self.compiled[0]
        if plan.cgroup != ours.cgroup:
            message = "pool: the limits that a cgroup keeps are those that the pool was made with"
            return PolicyError(message, field="limits", hint="pass them to Pool, or use capsule.run")
        head = part(plan).first
        word, steps, others = "without what this command needs", head, self._steps
        if all(step in others for step in steps):
            word, steps, others = "with what this command is not to have", self._steps, head
        # What is shown says more than the numbers that follow from it.
        differing = sorted((step for step in steps if step not in others), key=_is_tree)
        message = f"pool: its capsules are made {word}"
        if differing:
            message += f": {differing[-1].describe()}"
        return PolicyError(message, field="pool", value=plan.args, hint=_OTHERS)


class Spare:
    """A capsule that waits, and what was so when it was made."""

    def __init__(self, warm: Warm, template: Template, seen: tuple[object, ...]) -> None:
        self.template, self.seen = template, seen
        self._warm = warm
        # Called where there is nothing more to be done for it.
        self.end, self.forget = warm.end, warm.forget

    def is_same(self, policy: Policy, compiled: Compiled) -> bool:
        """Return whether all is as it was when it was made, and as it was supposed for this run."""
        _, _, command, found = compiled
        try:
            return found == survey_of(policy, command) and self.template.look() == self.seen
        except OSError:
            return False

    def start(
        self,
        policy: Policy,
        compiled: Compiled,
        given: Given,
        held: signals.Held,
        still: Callable[[], bool],
        reaper: Callable[[int, int], None],
    ) -> Process | None:
        """Give it a command; None if it is not what it was, or has ended, as when somebody killed it.

        Args:
            policy: of the run.
            compiled: its plan, and what that was made of.
            given: its descriptors.
            held: the block of signals that this is in.
            still: as `hand_over`.
            reaper: is given an init that is about to end, and a pidfd of it.
        """
        plan, warm, plain = compiled[0], self._warm, given.is_plain()
        closing = running = None
        with warm.streams if plain else given.streams() as streams, Descriptors(plan.owner) as theirs:
            try:
                stdio = () if plain else open_stdio(given.stdio, streams, theirs)
                closing = closing_of(plan, policy)
                passed = dict(pairs_of(given.passed))
                running = hand_over(*(warm, *compiled, stdio), passed=passed, still=still, held=held)
                if running is not None:
                    receive(running, plan, closing, None)
            except BrokenPipeError:
                running = None
            except BaseException:
                self._give_up(closing, ended=running is not None)
                raise
            if running is None:
                self._give_up(closing)
                return None
            if not plain:
                warm.streams.close()
            streams.encoding = given.encoding
            about = plan, policy.limits, streams.move()
            return Process(running, *about, None, closing, warm.leaf, reaper)

    def _give_up(self, closing: Closing | None, *, ended: bool = False) -> None:
        if not ended:
            self.end()
        elif self._warm.leaf is not None:
            self._warm.leaf.remove()
        if closing is not None:
            closing.close()


class Table(Kept):
    """The host's mounts, and whether they have changed."""

    def __init__(self) -> None:
        fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        super().__init__((fd,))
        self._waiting = poll_table(fd)

    def has_changed(self) -> bool:
        """Return whether mounts came or went since this was last asked."""
        return bool(self._waiting.poll(0))


def _is_tree(step: s.Step) -> bool:
    return isinstance(step, _TREES)


def _covered(steps: Sequence[s.Step]) -> Iterator[str]:
    """Yield paths of the host over which something is mounted, to hide or to protect them.

    Who replaces such a file on the host uncovers its name in every capsule that there is by then.
    """
    taken = [step for step in steps if isinstance(step, _TAKEN)]
    shown = {str(step[1]): taken[step[0]] for step in steps if isinstance(step, s.Attach)}
    places = sorted((at for at, step in shown.items() if _is_tree(step)), key=len, reverse=True)
    for step in steps:
        if isinstance(step, s.Hide | s.Protect):
            path = str(step.path)
            top = next((at for at in places if is_below(path, at)), None)
            if top is not None:
                yield f"{shown[top].path}{path[len(top) :]}"
