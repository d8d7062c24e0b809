"""A plan in two parts: nothing of it is lost, and each part is a plan by itself."""

from __future__ import annotations

import pytest

from capsule.files.found import Survey
from capsule.launcher import steps as s
from capsule.planner.base import Split, split
from capsule.planner.plan import Plan, make_plan
from capsule.policy.policy import Policy
from tests.unit.examples import CASES, COMMAND, HOST, OLD_HOST, ROOT_HOST, VENV_COMMAND
from tests.unit.wire import kinds

PHASES = ("LAUNCH", "INIT", "COMMAND")
JOINING = (s.JoinUser, s.Apart, s.JoinMounts)
# Of a base alone: its own ways and mount points.
OF_A_BASE = (s.Hold, s.Stop, s.Directory)


def parted(plan: Plan) -> Split:
    """The two parts of a plan that has some."""
    found = split(plan.steps)
    assert found is not None
    return found


def attached(steps: tuple[s.Step, ...]) -> dict[str, object]:
    """What each place gets of what was taken."""
    taken = [step for step in steps if isinstance(step, s.Tree | s.Device | s.Proc)]
    return {str(step[1]): taken[step[0]] for step in steps if isinstance(step, s.Attach)}


def in_order(steps: tuple[s.Step, ...]) -> bool:
    """Whether the launcher goes through its phases once."""
    allowed = {kind.word: kind.phases for kind in kinds()}
    now = 0
    for step in steps:
        while now < len(PHASES) and PHASES[now] not in allowed[step.word]:
            now += 1
    return now < len(PHASES)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_lost(name: str) -> None:
    """Each step of the whole is in the base or the rest; all that is attached is what it was."""
    plan = CASES[name].plan()
    found = split(plan.steps)
    if found is None:
        return
    assert in_order(found.base)
    assert in_order(found.steps)
    assert found.base[-1] == s.Stop()
    assert {**attached(found.base), **attached(found.steps)} == attached(plan.steps)
    kept = {index for index in found.origin if index >= 0}
    for index, step in enumerate(plan.steps):
        known = index in kept or step in found.base
        assert known or isinstance(step, s.Attach | s.Covers), (index, step)
    for step, index in zip(found.steps, found.origin, strict=True):
        assert isinstance(step, JOINING) == (index < 0)
        changed = isinstance(step, s.Attach | s.FindCovers)
        assert index < 0 or changed or step == plan.steps[index]
    # What confines the command is no part of a base.
    start = next(i for i, step in enumerate(plan.steps) if isinstance(step, s.Fork))
    assert set(range(start, len(plan.steps))) <= kept


def test_many_plans_can_be_parted() -> None:
    """The usual ones: the default, with limits, with directories of the caller's, of a tool chain."""
    parts = [name for name in CASES if split(CASES[name].plan().steps) is not None]
    assert len(parts) >= 5, parts
    assert split(make_plan(Policy(), HOST, VENV_COMMAND, Survey()).steps) is not None


def test_what_cannot_be_parted() -> None:
    """Root's capsules have other ids, and old kernels change each mount by itself."""
    for host in (ROOT_HOST, OLD_HOST):
        assert split(make_plan(Policy(), host, COMMAND, Survey()).steps) is None


def test_a_base_depends_on_nothing_of_a_run() -> None:
    """Another command, other words, limits, environment: the same base."""
    one = parted(make_plan(Policy(), HOST, COMMAND, Survey()))
    other = COMMAND.replace(args=("x",), paths=("/bin/x",), env=("A=b",))
    limited = Policy().replace(seccomp="strict")
    two = parted(make_plan(limited, HOST, other, Survey(), descriptors=((20, 5),)))
    assert one.base == two.base
    assert one.steps != two.steps


def test_the_caller_s_ids_are_themselves_in_a_base() -> None:
    """So that the map of a capsule reads as it does without."""
    found = parted(make_plan(Policy(uid=5, gid=6), HOST, COMMAND, Survey()))
    assert [step for step in found.base if isinstance(step, s.UidMap | s.GidMap)] == [
        s.GidMap("1000 1000 1"),
        s.UidMap("1000 1000 1"),
    ]
    assert s.UidMap("5 1000 1") in found.steps
    assert s.GidMap("6 1000 1") in found.steps


def test_the_rest_has_no_step_of_the_host_s_tree_but_the_caller_s() -> None:
    """It takes the working directory, in a copy of the host's mounts, before it joins the base's."""
    found = parted(make_plan(Policy(), HOST, COMMAND, Survey()))
    words = [step.word for step in found.steps]
    assert words.count("tree") == 1
    assert words.index("join-user") < words.index("apart") < words.index("tree")
    assert words.index("tree") < words.index("join-mounts") < words.index("namespaces")
    assert not {"pivot-root", "private", "device", "symlink"} & set(words)
    # Its place is in the private home, which each capsule makes.
    assert s.Directory("/home/ada", 0o755) in found.base
