"""Directories that keep upper layers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capsule import Mount, Policy, PolicyError
from capsule.files.survey import survey
from tests.unit.files.lab import look, refusal

# --- upper layers that are kept -----------------------------------------------------------------


def overlay(lab: Path, keep: Path) -> Mount:
    """An overlay of a directory of its own."""
    (lab / "lower").mkdir(exist_ok=True)
    return Mount.overlay(lab / "lower", keep=keep)


def test_a_directory_to_keep_is_not_made_yet(lab: Path) -> None:
    """A survey makes nothing: a missing one is made at the launch. One that is there is taken."""
    (lab / "lower").mkdir()
    for _ in range(2):
        (one,) = look(overlay(lab / "lower", lab / "keep")).found
        assert one.keep == f"{lab}/keep"
        assert not (lab / "keep").exists()
    (lab / "keep").mkdir(mode=0o700)
    assert look(overlay(lab / "lower", lab / "keep")).found == (one,)


def test_refuses_a_bad_directory_to_keep(lab: Path) -> None:
    """A link, a file, one that others can write to, and one whose holder is missing."""
    (lab / "link").symlink_to("/")
    assert "it is a symbolic link" in refusal(overlay(lab, lab / "link"))
    (lab / "file").touch()
    assert "Not a directory" in refusal(overlay(lab, lab / "file"))
    (lab / "open").mkdir()
    (lab / "open").chmod(0o777)
    assert "can be written to by others" in refusal(overlay(lab, lab / "open"))
    assert "No such file" in refusal(overlay(lab, lab / "no/such"))


def test_refuses_a_directory_to_keep_of_somebody_else(lab: Path) -> None:
    """Who owns it could put another layer there."""
    policy = Policy(mounts=[overlay(lab, lab)])
    with pytest.raises(PolicyError, match="belongs to uid"):
        survey(policy, cwd_shown=None, shown=(), uid=os.geteuid() + 1)


def test_an_upper_layer_is_out_of_reach(lab: Path) -> None:
    """Neither in its lower layer, nor in what the command can write to, nor shared."""
    assert "overlaps" in refusal(overlay(lab, lab / "lower/keep"))
    (lab / "work").mkdir()
    writable = Mount.read_write(lab / "work")
    assert "overlaps" in refusal(overlay(lab, lab / "work/keep"), writable)
    other = Mount.overlay(lab / "work", keep=lab / "keep")
    assert "overlaps" in refusal(overlay(lab, lab / "keep"), other)


def test_an_overlay_is_of_a_directory(lab: Path) -> None:
    """A file has no layers; what is made up needs no source."""
    (lab / "file").touch()
    assert "is not a directory" in refusal(Mount.overlay(lab / "file"))
    found = look(Mount.tmpfs("/x"), Mount.symlink("/y", "/z"), Mount.directory("/d")).found
    assert [(one.path, one.is_directory) for one in found] == [("", True), ("", False), ("", True)]
