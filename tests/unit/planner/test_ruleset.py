"""Landlock rules from a view: what each version is asked for, and that no more is given than shown."""

from __future__ import annotations

import pytest

from capsule.base.errors import HostError, PolicyError
from capsule.base.text import is_below
from capsule.confine import landlock as ll
from capsule.launcher import steps as s
from capsule.planner.plan import Plan
from capsule.planner.ruleset import abi_of, describe
from capsule.policy.mounts import Mount
from capsule.policy.policy import Policy
from tests.unit.examples import CASES, HOST, KINDS, Case

NEW_HOST = HOST.replace(landlock_abi=ll.NEWEST)


def rules(plan: Plan) -> dict[str, int]:
    """The rights that a plan gives, by place."""
    return {step[0]: step[1] for step in plan.steps if isinstance(step, s.LandlockBeneath)}


def rights_to(plan: Plan, path: str) -> int:
    """What the rules of a plan add up to at a path."""
    found = 0
    for top, rights in rules(plan).items():
        found |= rights if is_below(path, top) else 0
    return found


def ruleset(plan: Plan) -> s.LandlockRuleset | None:
    """The step that makes the ruleset."""
    found = [step for step in plan.steps if isinstance(step, s.LandlockRuleset)]
    return found[0] if found else None


# handled_access_fs of each version as the kernel's documentation has it: 13 rights, then one more
# with ABI 2, 3 and 5.
HANDLED = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF, 6: 0xFFFF, 7: 0xFFFF}


@pytest.mark.parametrize("abi", HANDLED)
def test_what_a_version_is_asked_for(abi: int) -> None:
    """Every right that it knows is handled, none that it does not; scopes from ABI 6."""
    plan = Case(host=HOST.replace(landlock_abi=abi)).plan()
    step = ruleset(plan)
    assert step is not None
    assert step[:3] == (HANDLED[abi], 0, 3 if abi >= 6 else 0)
    given = list(rules(plan).values())
    given += [r for step in plan.steps if isinstance(step, s.LandlockInherited) for r in step]
    assert all(rights and not rights & ~HANDLED[abi] for rights in given)


def test_a_newer_version_has_what_is_known_here() -> None:
    """A kernel of the future is asked for no right that nobody here knows."""
    new, newer = Case(host=NEW_HOST).plan(), Case(host=HOST.replace(landlock_abi=99)).plan()
    assert new.steps == newer.steps
    assert "ABI 7:" in newer.protections["landlock"]


@pytest.mark.parametrize("name", CASES)
def test_no_device_node_can_be_made(name: str) -> None:
    """That right is handled and given nowhere."""
    plan = CASES[name].plan()
    assert not any(rights & (ll.MAKE_CHAR | ll.MAKE_BLOCK) for rights in rules(plan).values())


def test_what_is_shown_read_only() -> None:
    """The system, the working directory and generated files can be read and executed, no more."""
    plan = Case(host=NEW_HOST).plan()
    for path in ("/usr", "/etc/ssl", "/etc/passwd"):
        assert rights_to(plan, path) == ll.READ | ll.EXECUTE
    # This lies in the private home, and rules add up: only its mount keeps it from being changed.
    assert rights_to(plan, "/home/ada/project") == ll.EVERYTHING


def test_what_is_writable() -> None:
    """Private directories and writable trees have every right; a file has those of a file."""
    policy = Policy(mounts=[Mount.read_write("/srv/ada"), Mount.read_write("/srv/notes.txt")])
    plan = Case(policy, NEW_HOST).plan()
    for path in ("/tmp", "/home/ada", "/dev/shm", "/srv/ada"):
        assert rights_to(plan, path) == ll.EVERYTHING
    assert rules(plan)["/srv/notes.txt"] == ll.WRITE | ll.IOCTL_DEV


def test_devices() -> None:
    """They can be read, written and controlled; below /dev nothing can be made."""
    plan = Case(Policy(mounts=[Mount.device("/dev/sda", "/x/sda")]), NEW_HOST).plan()
    for path in ("/dev/null", "/dev/pts", "/x/sda"):
        assert rights_to(plan, path) == ll.READ | ll.EXECUTE | ll.WRITE_FILE | ll.IOCTL_DEV


def test_noexec_is_a_rule_too() -> None:
    """Where something must not be executed, each place that may has a rule of its own."""
    plan = Case(Policy(mounts=[Mount.read_only("/data", noexec=True)]), NEW_HOST).plan()
    assert rights_to(plan, "/data") == ll.READ
    assert rights_to(plan, "/etc/passwd") == ll.READ
    for path in ("/usr", "/etc/ssl", "/home/ada/project"):
        assert rights_to(plan, path) & ll.EXECUTE
    strict = CASES["profile-strict"].plan()
    assert not rights_to(strict, "/tmp") & ll.EXECUTE
    assert rights_to(strict, "/usr/bin/make") & ll.EXECUTE


def test_what_is_hidden_has_no_rule() -> None:
    """A cover gives no right to what it covers."""
    plan = Case(Policy(mounts=KINDS), NEW_HOST).plan()
    assert not {"/data/private", "/etc/ssl", "/etc/passwd"} & rules(plan).keys()


def test_a_rule_says_nothing_twice() -> None:
    """No rule gives what one above it gives already; so there are few."""
    for case in CASES.values():
        found = rules(case.plan())
        for path, rights in found.items():
            above = [r for top, r in found.items() if top != path and is_below(path, top)]
            assert not any(rights & r for r in above)
    assert len(rules(Case(host=NEW_HOST).plan())) == 6


def test_ports() -> None:
    """With ports named, all others are refused; without, TCP is left alone."""
    plan = CASES["landlock-tcp"].plan()
    step = ruleset(plan)
    assert step is not None
    assert step[1] == ll.BIND_TCP | ll.CONNECT_TCP
    ports = [tuple(step[:2]) for step in plan.steps if isinstance(step, s.LandlockPort)]
    assert ports == [(80, ll.CONNECT_TCP), (443, ll.CONNECT_TCP)]
    assert "TCP: connect 80 443, no bind; lacks ioctl of devices" in plan.protections["landlock"]


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Policy(landlock="off"), "off: asked for"),
        (Policy(seccomp="nest"), "none: mounts can be made inside"),
        (Policy(), "none: the kernel has no Landlock"),
    ],
)
def test_without(policy: Policy, says: str) -> None:
    """Where there is no ruleset, no step speaks of one, and `protections` says why."""
    plan = Case(policy, HOST.replace(landlock_abi=0)).plan()
    assert not any("landlock" in step.word for step in plan.steps)
    assert plan.protections["landlock"].startswith(says)


def test_what_a_version_lacks_is_told() -> None:
    """By name, with the version that has it; the newest lacks nothing."""
    said = {abi: describe(Policy(), abi) for abi in HANDLED}
    assert "linking from one directory to another, which fails (EXDEV, before ABI 2)" in said[1]
    assert [text.count("ABI ") - 1 for text in said.values()] == [4, 3, 2, 2, 1, 0, 0]
    assert "lacks" not in said[7]


@pytest.mark.parametrize(
    ("policy", "abi", "field"),
    [
        (Policy(landlock=6), 5, "landlock"),
        (Policy(landlock=1), 0, "landlock"),
        (Policy(network="host", tcp_connect=[443]), 3, "tcp_connect"),
        (Policy(network="host", tcp_bind=[443]), 3, "tcp_bind"),
    ],
)
def test_what_is_asked_for_by_name_is_required(policy: Policy, abi: int, field: str) -> None:
    """A version or ports that the kernel cannot give end the start, with the release that can."""
    with pytest.raises(HostError, match=f"{field}: Landlock of ABI") as caught:
        abi_of(policy, HOST.replace(landlock_abi=abi))
    assert "run Linux" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (Policy(landlock=6, seccomp="nest"), "landlock"),
        (Policy(network="host", tcp_connect=[443], landlock="off"), "tcp_connect"),
        (Policy(network="host", tcp_bind=[443], seccomp="nest"), "tcp_bind"),
        (Policy(tcp_connect=[443]), "tcp_connect"),
    ],
)
def test_contradictions(policy: Policy, field: str) -> None:
    """What excludes the wall that was asked for is refused, whatever the kernel has."""
    with pytest.raises(PolicyError, match=field) as caught:
        abi_of(policy, NEW_HOST)
    assert caught.value.field == field
