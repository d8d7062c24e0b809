"""Compiled filters are kept, and what is found is used only if nobody else can have written it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capsule.errors import HostError, PolicyError
from capsule.seccomp import Compiled, Spec, cache

HANG = 20
SOURCE = str(Path(cache.__file__).parents[2])
ONE = Compiled(b"\1" * 16, b"\2" * 8, ((0xC000003E, 101, 1, -1), (0xC000003E, 41, 97, 0)))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's filters are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_known", {})
    return tmp_path / "cache" / "capsule"


def load(spec: Spec = Spec(), *, notify: bool = True) -> Compiled:  # noqa: B008 (a frozen value)
    """Load as another process would."""
    cache._known.clear()
    made = cache.load(spec, notify=notify)
    assert made is not None
    return made


def test_a_filter_is_kept(folder: Path) -> None:
    """The second time it is read: the file is the only one, and nobody else may see it."""
    first = load()
    (kept,) = folder.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    before = kept.stat()
    assert load() == first
    assert kept.stat().st_ino == before.st_ino
    assert first.note == ""
    assert len(first.answers) > 40


def test_a_hit_imports_little(folder: Path) -> None:
    """Another process that finds its filter imports neither the table nor ctypes."""
    load()
    script = (
        f"import sys; sys.path.insert(0, {SOURCE!r}); import capsule; before = set(sys.modules)\n"
        "from capsule import seccomp; assert seccomp.load(seccomp.Spec(), notify=True)\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=HANG
    )
    expected = {"capsule.seccomp", "capsule.seccomp.cache", "capsule.seccomp.spec", "_blake2"}
    assert set(done.stdout.split()) <= expected
    assert len(list(folder.iterdir())) == 1


def test_other_questions_have_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that decides how a program comes out is in its name."""
    specs = [Spec(), Spec("strict"), Spec(allow=("ptrace",)), Spec(deny=("ptrace",))]
    names = [cache.key(s, arch, d, notify=n) for s in specs for arch in ("x86_64", "aarch64")
             for d in (None, b"", b"{}") for n in (False, True)]  # fmt: skip
    monkeypatch.setattr(cache, "_library", lambda _arch: "libseccomp.so.2.9.9")
    names.append(cache.key(Spec(), "x86_64", None, notify=False))
    monkeypatch.setattr(cache, "_sources", lambda: [("table.py", 1, 1)])
    names.append(cache.key(Spec(), "x86_64", None, notify=False))
    assert len(set(names)) == len(names)


def test_encoded_values_come_back() -> None:
    """What is written is what is read, and only under its own name."""
    data = cache.encode("name", ONE)
    assert cache.decode("name", data) == ONE
    assert cache.decode("other", data) is None
    assert cache.decode("name", cache.encode("name", Compiled(b"\1" * 8))) == Compiled(b"\1" * 8)


@pytest.mark.parametrize("cut", range(0, len(cache.encode("name", ONE)), 7))
def test_damaged_files_are_not_used(cut: int) -> None:
    """A file that ends early, has a byte changed or one too many is none."""
    data = cache.encode("name", ONE)
    changed = data[:cut] + bytes([data[cut] ^ 1]) + data[cut + 1 :]
    for damaged in (data[:cut], changed, data + b"\0"):
        assert cache.decode("name", damaged) is None


@pytest.mark.parametrize(
    "made",
    [Compiled(b""), Compiled(b"\1" * 12), Compiled(b"\1" * 8 * 4097), Compiled(b"\1" * 8, b"\1" * 9)],
    ids=["empty", "odd", "long", "odd tail"],
)
def test_impossible_programs_are_not_used(made: Compiled) -> None:
    """A program that the kernel would not take is none, whatever its hash."""
    assert cache.decode("name", cache.encode("name", made)) is None


def planted() -> tuple[str, bytes]:
    """A well-formed file with another program, as one might wish to plant it."""
    name = cache.key(Spec(), os.uname().machine, None, notify=True)
    return name, cache.encode(name, ONE)


def as_link(folder: Path, name: str, data: bytes) -> None:
    (folder.parent / "elsewhere").write_bytes(data)
    (folder / name).symlink_to(folder.parent / "elsewhere")


def as_writable(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    (folder / name).chmod(0o622)


def as_fifo(folder: Path, name: str, _data: bytes) -> None:
    os.mkfifo(folder / name, 0o600)


def as_directory(folder: Path, name: str, _data: bytes) -> None:
    (folder / name).mkdir()


def as_damaged(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data[:-1])
    (folder / name).chmod(0o600)


def in_writable_folder(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    (folder / name).chmod(0o600)
    folder.chmod(0o777)


def in_linked_folder(folder: Path, name: str, data: bytes) -> None:
    in_writable_folder(folder, name, data)
    folder.chmod(0o700)
    folder.rename(folder.with_name("moved"))
    folder.symlink_to("moved")


PLANTED = [
    as_link,
    as_writable,
    as_fifo,
    as_directory,
    as_damaged,
    in_writable_folder,
    in_linked_folder,
]


def test_a_planted_file_would_be_used(folder: Path) -> None:
    """The control of those below: what the caller's own file says is believed."""
    folder.mkdir(0o700, parents=True)
    name, data = planted()
    (folder / name).write_bytes(data)
    (folder / name).chmod(0o600)
    assert load() == ONE


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_planted_files_are_not_used(folder: Path, plant: Callable[[Path, str, bytes], None]) -> None:
    """What others may have written is compiled anew, and replaced where the place is the caller's."""
    folder.mkdir(0o700, parents=True)
    name, data = planted()
    plant(folder, name, data)
    made = load()
    assert len(made.program) > 8 * 1000
    if plant in (as_link, as_writable, as_fifo, as_damaged):
        assert made.note == ""
        assert cache.decode(name, (folder / name).read_bytes()) == made
        assert not (folder / name).is_symlink()
    else:
        assert "compiled at every start" in made.note
    assert not [entry for entry in os.listdir(folder) if entry.startswith(".")]


def test_another_s_folder_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the home of another user nothing that is kept there is read, and nothing is left."""
    folder.mkdir(0o700, parents=True)
    name, data = planted()
    (folder / name).write_bytes(data)
    (folder / name).chmod(0o600)
    assert load() == ONE
    # As if another user asked: giving files away takes root.
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert "not the caller's alone" in load().note
    folder.rename(folder.with_name("moved"))
    assert "another user's" in load().note
    assert not folder.exists()


def test_no_place_to_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a home nothing is kept, and the note says what that costs; a relative one is none."""
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv("HOME")
    assert load().note.startswith("the seccomp filter is compiled at every start")
    assert not os.path.exists("relative")


def test_old_files_go(folder: Path) -> None:
    """Not more than a number of filters is kept, and the newest is among them."""
    folder.mkdir(0o700, parents=True)
    for number in range(40):
        (folder / f"old{number}").write_bytes(b"")
        os.utime(folder / f"old{number}", (number, number))
    load()
    left = os.listdir(folder)
    assert len(left) == 32
    assert "old39" in left
    assert cache.key(Spec(), os.uname().machine, None, notify=True) in left


def test_off_is_no_filter() -> None:
    """The profile off is nothing, and allowing or denying beside it cannot be meant."""
    assert cache.load(Spec("off"), notify=False) is None
    with pytest.raises(PolicyError, match="off"):
        cache.load(Spec("off", deny=("ptrace",)), notify=False)


def test_unknown_machines() -> None:
    """Where there is no table, that is said."""
    with pytest.raises(HostError, match="riscv64"):
        cache.load(Spec(), notify=False, arch="riscv64")


def test_a_file_of_rules(tmp_path: Path) -> None:
    """A file is read at each start: its change is seen, its errors name it."""
    path = tmp_path / "rules.json"
    spec = Spec(str(path))
    rules: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
    path.write_text(json.dumps(rules))
    first = load(spec)
    rules["syscalls"] = [{"names": ["ptrace"], "action": "SCMP_ACT_ERRNO"}]
    path.write_text(json.dumps(rules))
    assert load(spec).program != first.program
    path.write_text("nonsense")
    with pytest.raises(PolicyError, match=f"{path}: "):
        load(spec)


def test_files_of_rules_that_are_none(tmp_path: Path) -> None:
    """A FIFO does not make it wait; a directory and a missing file are errors."""
    os.mkfifo(tmp_path / "fifo.json")
    for name, why in (("fifo.json", "regular"), ("", "regular"), ("missing.json", "No such file")):
        with pytest.raises(PolicyError, match=why):
            load(Spec(f"{tmp_path}/{name}"))
