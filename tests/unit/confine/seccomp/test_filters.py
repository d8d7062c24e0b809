"""From what is asked for to what a run carries: shipped programs, changed ones, files of rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capsule.base.errors import HostError, PolicyError
from capsule.confine.seccomp import filters
from capsule.confine.seccomp.filters import Filter
from capsule.confine.seccomp.spec import Seccomp

HANG = 20
SOURCE = str(Path(filters.__file__).parents[3])


def load(*words: Any, **more: Any) -> Filter:
    made = filters.load(Seccomp(*words), arch="x86_64", **more)
    assert made is not None
    return made


def test_a_built_in_profile_imports_little() -> None:
    """A run with one, whatever the ids are, imports neither the table nor the compiler."""
    script = (
        f"import sys; sys.path.insert(0, {SOURCE!r})\n"
        "from capsule.confine.seccomp.filters import load\n"
        "from capsule.confine.seccomp.spec import Seccomp\n"
        "assert load(Seccomp(), ids=(5, 6), arch='x86_64')\n"
        "print(*sorted(m for m in sys.modules if m.startswith('capsule.confine.seccomp.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=HANG, check=True
    )
    assert done.stdout.split() == [
        "capsule.confine.seccomp.filters",
        "capsule.confine.seccomp.spec",
    ]


@pytest.mark.parametrize(
    ("words", "more", "parts"),
    [
        ((), {}, ["default: 301 of 385 system calls allowed, 13 of them", "refusals are told"]),
        (("nest",), {}, ["nest: ", "namespaces can be made inside"]),
        (("strict",), {"listener": False}, ["strict: ", "refusals are not told: the host gives no"]),
        (
            ("default", ("unshare", "@aio"), ("flock",)),
            {},
            ["also allowed: @aio unshare; denied: flock"],
        ),
        (("default",), {"pretend_chown": True}, ["the chown family answers 0 and does nothing"]),
        (("@system-service @debug",), {}, ["more than the default: cachestat ", "and 4 more"]),
        (("@basic-io",), {}, ["not told: the filter refuses sendmsg"]),
    ],
)
def test_what_is_said_of_it(words: Any, more: Any, parts: list[str]) -> None:
    """The profile, how many calls, what was changed, and whether refusals are told."""
    found = load(*words, **more)
    assert all(part in found.summary for part in parts), found.summary
    assert found.told is found.summary.endswith("refusals are told")


def test_off_is_no_filter() -> None:
    """The profile off is nothing, and changing something of it cannot be meant."""
    assert filters.load(Seccomp("off")) is None
    for spec, pretend in ((Seccomp("off", deny=("ptrace",)), False), (Seccomp("off"), True)):
        with pytest.raises(PolicyError, match="off"):
            filters.load(spec, pretend_chown=pretend)


@pytest.mark.parametrize("words", [("default",), ("default", ("ptrace",))])
def test_unknown_machines(words: Any) -> None:
    """Where there is no table, that is said."""
    with pytest.raises(HostError, match="riscv64"):
        filters.load(Seccomp(*words), arch="riscv64")


@pytest.mark.parametrize(
    "words", [(7,), ("",), (" ",), ("a\0b",), ("default", "ptrace"), ("default", (), (1,))], ids=repr
)
def test_values_that_cannot_be_meant(words: Any) -> None:
    """A profile is text, and what is allowed or denied a list of names."""
    with pytest.raises(PolicyError) as caught:
        Seccomp(*words)
    assert caught.value.field == "seccomp"


def test_lists_compare_as_sets() -> None:
    """The order of names means nothing, nor does a name that comes twice."""
    assert Seccomp(allow=("b", "a", "a")) == Seccomp(allow=("a", "b"))


def read(spec: Seccomp) -> Filter:
    """As a run does: what is made depends on the content, not on the name."""
    made = filters.load(spec, document=filters.read_document(spec), arch="x86_64")
    assert made is not None
    return made


def test_a_file_s_path_is_whole() -> None:
    """A relative path counts from where the policy is made, as a mount's does."""
    assert Seccomp("rules.json").profile == os.path.abspath("rules.json")
    assert Seccomp("strict").path is None
    assert filters.read_document(Seccomp("@basic-io")) is None


def test_a_file_of_rules(tmp_path: Path) -> None:
    """A file is read at each start: its change is seen, its errors name it."""
    path = tmp_path / "rules.json"
    rules: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
    path.write_text(json.dumps(rules))
    spec = Seccomp(str(path))
    first = read(spec)
    assert "more than the default: " in first.summary
    rules["syscalls"] = [{"names": ["ptrace"], "action": "SCMP_ACT_ERRNO"}]
    path.write_text(json.dumps(rules))
    assert read(spec).program != first.program
    path.write_text("nonsense")
    with pytest.raises(PolicyError, match=f"{path}: "):
        read(spec)


def test_files_of_rules_that_are_none(tmp_path: Path) -> None:
    """A FIFO does not make it wait; a directory and a missing file are errors."""
    os.mkfifo(tmp_path / "fifo.json")
    for name, why in (("fifo.json", "regular"), ("", "regular"), ("missing.json", "No such file")):
        with pytest.raises(PolicyError, match=why):
            read(Seccomp(f"{tmp_path}/{name}"))
