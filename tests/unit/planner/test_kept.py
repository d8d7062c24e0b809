"""What is kept of the last plan: other words, and policies that differ in one thing alone."""

from __future__ import annotations

from typing import Any

import pytest

from capsule.files.found import Shown, Survey
from capsule.launcher import steps as s
from capsule.planner import kept
from capsule.planner.plan import make_plan
from capsule.policy.limits import Limits
from capsule.policy.policy import Network, Policy
from tests.unit.examples import CASES, COMMAND, HOST

# Another value for each field that is the planner's to obey; of the rest `resolve` and `survey` tell.
CHANGES: dict[str, dict[str, Any]] = {
    "network": {"network": Network.HOST},
    "hostname": {"hostname": "other"},
    "uid": {"uid": 7},
    "gid": {"gid": 8},
    "limits": {"limits": Limits(timeout=3)},
    "ulimits": {"limits": Limits(ulimits=("core=0",))},
    "seccomp": {"seccomp": "strict"},
    "pretend_chown": {"pretend_chown": True},
    "landlock": {"landlock": "off"},
    "tcp_connect": {"network": Network.HOST, "tcp_connect": (80,)},
}


def forget() -> None:
    """As in a process that has planned nothing."""
    kept._plan, kept._view = None, None
    kept._view_text = kept._head = ((), kept._NOTHING)


@pytest.mark.parametrize("name", CASES)
def test_other_words_change_the_last_step_alone(name: str) -> None:
    """The plan is what it would be for these words in the first place, and so is its encoding."""
    case = CASES[name]
    reworded = case._replace(command=case.command.replace(args=("other", "words")))
    forget()
    expected = reworded.plan()
    forget()
    before = case.plan()
    found = reworded.plan()
    assert found == expected
    assert found.steps[:-1] == before.steps[:-1]
    assert found.encode() == s.encode(expected.steps)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_field_counts(name: str) -> None:
    """A policy that differs in one field from the last one is planned as if it were the first."""
    changed, host = Policy(**CHANGES[name]), HOST.replace(landlock_abi=6)
    forget()
    expected = make_plan(changed, host, COMMAND, Survey())
    plain = make_plan(Policy(), host, COMMAND, Survey())
    found = make_plan(changed, host, COMMAND, Survey())
    assert found == expected
    assert found.encode() == s.encode(expected.steps)
    assert found.steps != plain.steps


def test_another_limit_of_memory_counts() -> None:
    """/dev/shm is no larger; without a cgroup no step before the view tells."""
    less, more = (
        Policy(limits=Limits(memory=size), allow_degraded=("memory",)) for size in ("8M", "16M")
    )
    forget()
    expected = make_plan(less, HOST, COMMAND, Survey())
    forget()
    before = make_plan(more, HOST, COMMAND, Survey())
    assert make_plan(less, HOST, COMMAND, Survey()) == expected
    assert expected.steps != before.steps


# Of what was found out about the command, what the view depends on.
FOUND: dict[str, dict[str, Any]] = {
    "user": {"user": "ada"},
    "group": {"group": "staff"},
    "home": {"home": "/home/other"},
    "home_elsewhere": {"home_elsewhere": "/data/ada"},
    "cwd": {"cwd": "/tmp"},
    "working_directory": {"working_directory": None},
    "left_out": {"left_out": "/home/ada"},
    "hosts": {"hosts": "10.0.0.1 build\n"},
    "shown": {"shown": (Shown("/opt/x", "its toolchain", "/opt/x-1"),)},
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_counts(name: str) -> None:
    """So does a command of which something else was found out."""
    policy = Policy(uid=7, gid=7)
    plain = COMMAND.replace(user="user", group="user")
    changed = plain.replace(**FOUND[name])
    forget()
    expected = make_plan(policy, HOST, changed, Survey())
    before = make_plan(policy, HOST, plain, Survey())
    found = make_plan(policy, HOST, changed, Survey())
    assert found == expected
    assert (found.steps, found.notes) != (before.steps, before.notes)
