"""What holds for every test: nothing is left behind, and nothing is skipped without a reason."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest

from capsule.process import base, launch
from tests.support import HANG, await_end, descendants, may_skip, open_descriptors

IN_CI = bool(os.environ.get("CAPSULE_CI"))
PR_SET_CHILD_SUBREAPER = 36


# While inputs are tried for an hour (./check --fuzz), by tests that start nothing, others may mount.
COUNTED = "CAPSULE_EXAMPLES" not in os.environ
# No database: a run leaves nothing behind and does not depend on the run before.
EXAMPLES = int(os.environ.get("CAPSULE_EXAMPLES", "50"))
hypothesis.settings.register_profile("few", database=None, deadline=None, max_examples=EXAMPLES)
hypothesis.settings.load_profile("few")

# A base that a test's first run makes is a base that the whole suite is run with, where there is one;
# the command line, which runs once, has none.
base.OFTEN, launch.FIRST_RUNS = 1, 0


# Numpy would start a thread for each CPU in the process of the tests.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# What of PATH does not lie with the system would be shown to each capsule.
os.environ["PATH"] = ":".join(
    folder for folder in os.environ["PATH"].split(":") if folder.startswith(("/usr/", "/bin", "/sbin"))
)


def pytest_configure() -> None:
    """Become the parent of every orphan below: so none escapes the census.

    And take back what nohup(1), or a shell that started this in the background, has had ignored:
    that is inherited, and tests are about signals.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


# --- leftovers ------------------------------------------------------------------------------


class Census(NamedTuple):
    """What a capsule could leave behind."""

    processes: frozenset[str]
    descriptors: frozenset[str]
    mounts: frozenset[str]
    entries: frozenset[str]
    cgroups: frozenset[str]


def census() -> Census:
    """Count, once what is about to end has ended and what nobody refers to is collected."""
    gc.collect()
    processes = {s for s in descendants(os.getpid()) if s.alive}
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return Census(
        frozenset(f"{s.pid} ({s.name}) {s.started}" for s in processes),
        frozenset(f"{fd} {what}" for fd, what in open_descriptors().items()),
        # The directory of a user's session comes and goes with it, by the system's doing.
        frozenset(line for line in mounts.splitlines() if " /run/user/" not in line),
        frozenset(_entries()) if IN_CI else frozenset(),
        frozenset(_cgroups()) if IN_CI else frozenset(),
    )


def _entries() -> Iterator[str]:
    """Entries of the places that programs litter. Elsewhere than in CI others litter them too."""
    places = {tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", os.path.expanduser("~")}
    places |= {place for place in [os.environ.get("XDG_RUNTIME_DIR", "")] if place}
    for place in places:
        if os.access(place, os.R_OK):
            yield from (f"{place}/{name}" for name in os.listdir(place) if not _is_pytest(name))


def _is_pytest(name: str) -> bool:
    return name.startswith(("pytest-of-", ".hypothesis", ".pytest_cache"))


def _cgroups() -> Iterator[str]:
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for top in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
                yield from (folder for folder, _, _ in os.walk(top + path))


def _settle(before: Census) -> Census:
    """Count again after those that are not meant to be there had time to end; reap the orphans."""
    started = {line.split()[0] for line in before.processes}
    for found in descendants(os.getpid()):
        if str(found.pid) not in started and not await_end(found.pid):
            break
    for found in descendants(os.getpid()):
        if not found.alive and found.parent == os.getpid():
            os.waitpid(found.pid, 0)
    # Other programs use these places, too; what they put there goes again, a leftover never does.
    until = time.monotonic() + HANG
    while not (after := census()).entries <= before.entries and time.monotonic() < until:
        time.sleep(0.1)
    return after


def _assert_unchanged(before: Census, after: Census) -> None:
    if not COUNTED:
        return
    for name, old, new in zip(Census._fields, before, after, strict=True):
        assert new <= old, f"left behind, {name}: {sorted(new - old)}"
    assert after.mounts == before.mounts, f"unmounted: {sorted(before.mounts - after.mounts)}"


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_by_the_session() -> Iterator[None]:
    before = census()
    yield
    _assert_unchanged(before, _settle(before))


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_by_a_module(_nothing_is_left_by_the_session: None) -> Iterator[None]:
    before = census()
    yield
    _assert_unchanged(before, _settle(before))


# --- skips ----------------------------------------------------------------------------------


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI a skip is a failure, unless its reason is listed and holds."""
    if not IN_CI or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not may_skip(reason.removeprefix("Skipped: ")):
        report.outcome = "failed"
        report.longrepr = f"a skip that CI does not accept: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Look at every skip of a test, and note which attacks it tries."""
    report = yield
    _refuse_skip(report)
    report.user_properties += [("row", row) for mark in item.iter_markers("row") for row in mark.args]
    if report.when == "teardown" and hasattr(report, "wasxfail"):
        # A test that is expected to fail is not expected to leave something behind.
        del report.wasxfail
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Look at every skip of a whole file."""
    report = yield
    _refuse_skip(report)
    return report


# --- attacks --------------------------------------------------------------------------------

# What a test that tries an attack says by how it ends. walls.py, one test for many, tells its counts.
VERDICTS = {"failed": "reached", "error": "reached", "passed": "denied", "skipped": "vacuous"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Sum up the attacks of the catalogue (tests/attacks/test_rows.py) that were tried."""
    counts, rows = Counter[str](), set()
    for stat, verdict in VERDICTS.items():
        for report in terminalreporter.stats.get(stat, ()):
            found = {value for name, value in getattr(report, "user_properties", ()) if name == "row"}
            rows |= found
            counts[verdict] += bool(found)
            for name, value in getattr(report, "user_properties", ()):
                if name == "probes":
                    counts.update(value)
    if rows:
        said = ", ".join(f"{verdict} {counts[verdict]}" for verdict in ("reached", "denied", "vacuous"))
        terminalreporter.write_line(f"attacks: {said} of {len(rows)} rows")
