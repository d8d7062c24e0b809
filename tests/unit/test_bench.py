"""The benchmarks: that what they compare is comparable, and that the figures mean what they say."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import bwrap
from bench.__main__ import render
from bench.measure import WARM_UP, Row, Sample, Verdict, interleave, quantile, summarise
from bench.plot import plot
from bench.timeline import parts
from capsule.files.found import Survey
from capsule.launcher import steps as s
from capsule.planner.plan import Plan, make_plan
from capsule.policy.policy import Policy
from tests.unit.examples import COMMAND, HOST

MOUNTINFO = """\
30 1 0:30 / / ro,nosuid shared:1 - tmpfs none rw
31 30 0:31 / /tmp rw,nosuid - tmpfs none rw
32 30 0:32 / /proc rw,nosuid - proc none rw
"""


def default_plan() -> Plan:
    """A plan of the default policy."""
    return make_plan(Policy(), HOST, COMMAND, Survey())


def places_of(step: s.Step) -> list[str | None]:
    """Where a step makes something visible, unless that is what bubblewrap's --dev makes."""
    if isinstance(step, s.Mask):
        return list(step[1])
    if not isinstance(step, s.Attach | s.File | s.Symlink | s.Tmpfs | s.Directory | s.Protect):
        return []
    return [] if step.path in bwrap.MADE_BY_DEV else [step.path]


def test_bubblewrap_gets_every_place_of_the_plan() -> None:
    """What Capsule shows of files, links and mounts, bubblewrap is told to show at the same place."""
    plan = default_plan()
    devices = {step.path for step in plan.steps if isinstance(step, s.Device)}
    with contextlib.closing(bwrap.same_view("bwrap", plan, Path("/empty"))) as same:
        wanted = {place for step in plan.steps for place in places_of(step)} - devices
        assert wanted <= set(same.options)
        assert {"--unshare-all", "--die-with-parent", "--remount-ro"} <= set(same.options)


def test_bubblewrap_gets_the_same_content() -> None:
    """The generated files are handed to bubblewrap with the content of the plan, at each run anew."""
    plan = default_plan()
    contents = [os.fsencode(step[2]) for step in plan.steps if isinstance(step, s.File)]
    with contextlib.closing(bwrap.same_view("bwrap", plan, Path("/empty"))) as same:
        for _ in range(2):
            same.rewind()
            assert [os.read(fd, 1 << 20) for fd in same.files] == contents


def test_steps_without_a_counterpart_are_named() -> None:
    """A step that bubblewrap has nothing for is reported, not passed over."""
    plan = Plan(steps=(s.Undumpable(), s.Hostname("h"), s.Rlimit(4, 0, 0, "core dumps")))
    same = bwrap.same_view("bwrap", plan, Path("/empty"))
    assert same.untranslated == ["undumpable", "rlimit"]
    assert same.options == ["--hostname", "h"]


def test_equal_views_do_not_differ() -> None:
    """Two identical tables of mounts have no difference."""
    mounts = bwrap.parse_mounts(MOUNTINFO)
    assert mounts.keys() == {"/", "/tmp", "/proc"}
    assert bwrap.differences(mounts, mounts) == []


def test_a_missing_or_writable_mount_is_reported() -> None:
    """A mount that only one has, or that only one made read-only, is a difference."""
    ours = bwrap.parse_mounts(MOUNTINFO)
    theirs = bwrap.parse_mounts(MOUNTINFO.replace(" ro,", " rw,").replace("/tmp", "/home"))
    assert bwrap.differences(ours, theirs) == ["/: flags", "/home: only bwrap", "/tmp: only Capsule"]


def test_every_subject_has_its_turn_in_every_round() -> None:
    """Subjects alternate, and each of them comes first as often as the others."""
    turns: list[str] = []

    def subject(name: str, seconds: float) -> float:
        turns.append(name)
        return seconds

    samples = interleave({"a": lambda: subject("a", 1.0), "b": lambda: subject("b", 3.0)}, 4)
    measured = turns[2 * WARM_UP :]
    assert measured == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert samples["a"] == Sample(4, 1.0, 1.0, 1.0)
    assert samples["b"].median == 3.0


def test_quantiles_lie_between_neighbours() -> None:
    """The median of an even number of values is the mean of the middle two."""
    assert quantile([1.0, 2.0, 4.0, 8.0], 0.5) == 3.0
    assert summarise([5.0]) == Sample(1, 5.0, 5.0, 5.0)


def test_the_table_says_pass_or_miss() -> None:
    """A budget is passed up to its very value; a row that was not measured says why."""
    verdicts = [Verdict("kept", 0.6, 0.6), Verdict("missed", 0.61, 0.6)]
    text = render(Row("run", "a title", {"x": Sample(1, 0.001, 0.002, 0.001)}, {}, verdicts))
    assert "PASS  kept: 0.60" in text
    assert "MISS  missed: 0.61" in text
    assert render(Row("run", "a title", skipped="no bwrap")) == "run: a title\n  skipped: no bwrap\n"


def test_the_plot_has_a_bar_for_each() -> None:
    """Lengths are to scale, the numbers stand beside them, and names cannot break the SVG."""
    row = Row(
        "run", "a & b", {"capsule": Sample(1, 0.002, 0.004, 0.001), "<x>": Sample(1, 0.001, 0.002, 0)}
    )
    about = dict.fromkeys(("kernel", "python", "uid", "date"), "0")
    drawn = plot(row, about)
    bars = [float(bar) for bar in re.findall(r'<rect x="\d+" y="\d+" width="([0-9.]+)"', drawn)]
    assert bars == [210.0, 105.0]
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert ">2.00<" in drawn
    assert "a &amp; b" in drawn
    with pytest.raises(ValueError, match="no bwrap"):
        plot(Row("run", "x", skipped="no bwrap"), about)


def test_a_timeline_gives_each_moment_its_part() -> None:
    """What lies between two moments belongs to the later; equal steps are one part."""
    moments = [(3.0, "tree"), (1.0, "spawn"), (5.0, "tree"), (5.5, "return")]
    assert parts(0.0, moments) == {
        "Python: policy to plan, pipes": 1.0,
        "tree x 2": 4.0,
        "init ends and is reaped; Python: the result": 0.5,
    }
