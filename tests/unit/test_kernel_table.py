"""The table of kernels x suites counts what pytest printed, and fails where that is not the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels import table

LOG = """\
tests/unit/changes/test_layer.py::test_a PASSED                                      [ 20%]
tests/integration/test_run.py::test_b[a b - c] PASSED                                [ 40%]
tests/integration/test_run.py::test_c SKIPPED (no overlay (before 5.11))             [ 60%]
tests/limits/test_systemd.py::test_d PASSED                                          [ 80%]
tests/limits/test_cgroups.py::test_e {outcome}                                         [100%]
noise PASSED
=========== {summary} in 90.12s (0:01:30) ===========
"""
GOOD = LOG.format(outcome="PASSED", summary="4 passed, 1 skipped, 7 deselected")


def verdict(tmp_path: Path, text: str) -> int:
    (tmp_path / "log").write_text(text)
    return table.main([f"6.1={tmp_path / 'log'}"])


def test_all_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(tmp_path, GOOD) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert ["6.1", "unit", "1", "0", "0"] in rows
    assert ["6.1", "integration", "1", "0", "1"] in rows
    assert ["6.1", "systemd", "1", "0", "0"] in rows
    assert ["6.1", "limits", "1", "0", "0"] in rows
    assert "6.1     integration      1  no overlay (before 5.11)" in shown
    assert "failed:" not in shown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LOG.format(outcome="FAILED", summary="1 failed, 3 passed, 1 skipped"), "test_e FAILED"),
        (LOG.format(outcome="ERROR", summary="3 passed, 1 skipped, 1 error"), "test_e ERROR"),
        (GOOD.rpartition("====")[0].partition("====")[0], "did not come to their end"),
        (GOOD.replace("4 passed", "5 passed"), "pytest counted 6 tests, and 5 lines were read"),
        ("", "did not come to their end"),
    ],
)
def test_what_is_wrong_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    assert verdict(tmp_path, text) == 1
    assert told in capsys.readouterr().out
