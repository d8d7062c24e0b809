"""Rows B, D and E of the catalogue: nothing is reached, and what is marked has two walls at least."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import capsule
from capsule.confine import landlock
from tests.attacks.walls import PAGE, PROBES, REASONS, Finding, counts, documented, findings, table
from tests.support import REAL_ROOT, needs


@pytest.fixture(scope="module")
def found() -> list[Finding]:
    """Every probe in every configuration, once."""
    return findings()


@pytest.mark.row(*sorted({probe.row for probe in PROBES}))
def test_nothing_is_reached(
    found: list[Finding], record_property: Callable[[str, object], None]
) -> None:
    """With everything on, each probe that gets through elsewhere is denied."""
    record_property("probes", counts(found))
    abi = capsule.probe().landlock_abi
    assert [one.probe.name for one in found if one.verdict("all") == "REACHED"] == [
        one.probe.name for one in found if one.probe.abi > abi
    ]
    assert sum(one.control for one in found) > 40


def test_every_probe_works(found: list[Finding]) -> None:
    """None ends by a mistake of its own, which would pass for a denial."""
    ends = {end for one in found for end in one.ended.values()}
    assert not [end for end in ends if end.startswith(("broken", "signal"))]


def test_two_walls(found: list[Finding]) -> None:
    """What is marked is stopped by two walls, each alone, or has the reason why not."""
    marked = [one for one in found if one.probe.must and not one.vacuous]
    assert [o.probe.name for o in marked if len(o.walls) < 2 and not o.probe.reason] == []
    assert {one.probe.row for one in found if one.probe.must} | REASONS.keys() == {
        *("B-01", "B-02", "B-04", "B-08", "B-12", "B-16", "D-01", "D-02", "D-03", "D-04"),
        *("E-01", "E-02", "E-03", "E-05"),
    }


def test_few_are_vacuous(found: list[Finding]) -> None:
    """Root has a control for all but what this kernel lacks: of sockets, netlink and BPF."""
    vacuous = {one.probe.row for one in found if one.vacuous}
    lacking = set() if capsule.probe().mount_setattr else {"E-05"}
    for_root = set() if REAL_ROOT else {"B-08", "B-18", "E-10", "E-11"}
    assert vacuous <= {"E-02", "E-03", "E-08"} | for_root | lacking


@needs("landlock scopes")
def test_the_table_is_documented(found: list[Finding]) -> None:
    """The page has what was found, but for what this kernel lacks."""
    rows = {row[:2]: row for row in documented(PAGE.read_text(encoding="utf-8"))[1]}
    vacuous = {one.probe.name for one in found if one.vacuous}
    said = table(found)
    assert rows.keys() == {row[:2] for row in said}
    assert [row for row in said if row[1] not in vacuous and rows[row[:2]] != row] == []


def test_mount_setattr_is_not_asked_of_landlock(found: list[Finding]) -> None:
    """The documentation says so; a kernel where it is makes this fail, which is good news."""
    (one,) = (one for one in found if one.probe.name.startswith("mount_setattr"))
    if capsule.probe().landlock_abi >= landlock.OF_SCOPES:
        assert one.walls == ("filter", "capabilities")
