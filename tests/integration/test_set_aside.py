"""What a command may do to keep a new protected name from being set aside."""

from __future__ import annotations

import errno
import os
import select
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import capsule
from capsule import Mount, Policy
from tests.integration.working_tree import aside, put, shell, working_tree, writable
from tests.support import HANG, PYTHON, ask, assert_denied, give, shared_directory


@pytest.fixture
def tree() -> Iterator[Path]:
    """A working tree with a repository in it."""
    with working_tree() as path:
        yield path


@pytest.mark.parametrize("closed", ["000", "311", "555"])
def test_closed_directories_keep_nothing(tree: Path, closed: str) -> None:
    """The command takes permissions away from the directories that are its own: they are lent."""
    script = f"""
mkdir -p .idea sub
touch .idea/workspace.xml sub/.envrc
chmod {closed} sub .
"""
    assert set(aside(shell(script, writable(tree)))) == {f"{tree}/.idea", f"{tree}/sub/.envrc"}
    modes = [stat.S_IMODE(tree.stat().st_mode)]
    tree.chmod(0o755)
    modes.append(stat.S_IMODE((tree / "sub").stat().st_mode))
    assert modes == [int(closed, 8)] * 2
    (tree / "sub").chmod(0o755)
    assert os.listdir(tree / "sub") == [".envrc.capsule-aside-1"]


def test_taken_names_keep_nothing(tree: Path) -> None:
    """After a few numbers the new name is one that nobody can foresee."""
    script = "for n in $(seq 1000); do mkdir -p .idea.capsule-aside-$n/full; done; mkdir .idea"
    ((moved, _),) = aside(shell(script, writable(tree))).values()
    assert len(moved) == len(f"{tree}/.idea.capsule-aside-") + 32
    assert not (tree / ".idea").exists()


def test_a_full_disk_keeps_nothing() -> None:
    """Where no file can be made any more, a rename still works: here on a file system so small."""
    code = """
sys.path.insert(0, given["packages"])
from capsule.changes.set_aside import set_aside
from capsule.files.found import Watch
os.mkdir("/full/.vscode")
open("/full/.envrc", "w").close()
number = 0
while True:
    try:
        open(f"/full/{number}", "w").close()
    except OSError as error:
        assert error.errno == errno.ENOSPC
        break
    number += 1
moved, notes = set_aside(Watch("/full", "/full", (".envrc", ".vscode")))
names = sorted(name for name in os.listdir("/full") if name.startswith("."))
tell([number > 0, [one.error for one in moved], list(notes), names])
"""
    package = os.path.dirname(capsule.__file__)
    mounts = (Mount.tmpfs("/full", size=1 << 20), Mount.read_only(package, at="/packages/capsule"))
    full, errors, notes, names = ask(code, Policy(mounts=mounts), {"packages": "/packages"})
    assert (full, errors, notes) == (True, ["", ""], [])
    assert [len(name) for name in names] == [
        len(".envrc.capsule-aside-") + 32,
        len(".vscode.capsule-aside-") + 32,
    ]


@pytest.mark.parametrize(
    ("link", "text", "target"),
    [
        (".mcp.json", "local.json", "local.json"),
        (".husky", "scripts/husky", "scripts/husky/pre-commit"),
        (".idea", "between", "ideas/workspace.xml"),
    ],
)
def test_what_is_made_where_a_protected_link_leads_is_not_obeyed(
    tree: Path, link: str, text: str, target: str
) -> None:
    """The link is set aside: it led to nothing in the tree. The file itself is the work."""
    (tree / link).symlink_to(text)
    (tree / "between").symlink_to("ideas")
    script = f"mkdir -p $(dirname {target}); echo evil > {target}"
    assert aside(shell(script, writable(tree))) == {
        f"{tree}/{link}": (f"{tree}/{link}.capsule-aside-1", link)
    }
    assert os.readlink(tree / f"{link}.capsule-aside-1") == text
    assert (tree / target).read_text() == "evil\n"


def test_a_link_that_a_protected_one_leads_on_to_counts(tree: Path) -> None:
    """It can be replaced, and then the protected one stands for something else."""
    put(tree / "real", "old")
    (tree / "between").symlink_to("real")
    (tree / ".mcp.json").symlink_to("between")
    with shared_directory() as copy:
        shutil.copytree(tree, copy / "tree", symlinks=True)
        act = "open(given['tree'] + '/.mcp.json', 'a')"
        outside = {"tree": f"{copy}/tree"}
        assert_denied(
            act, errno.EROFS, outside=outside, inside={"tree": str(tree)}, policy=writable(tree)
        )
    result = shell("rm between; echo evil > between", writable(tree))
    assert set(aside(result)) == {f"{tree}/.mcp.json"}


def test_a_link_out_of_the_tree_stays(tree: Path) -> None:
    """Whatever lies there: the command had no part in it."""
    with shared_directory() as outside:
        (tree / ".mcp.json").symlink_to(outside / "missing")
        (tree / ".idea").symlink_to("still/missing")
        assert aside(shell("echo work > work", writable(tree))) == {}


def test_what_lies_too_deep_is_noted_once(tree: Path) -> None:
    """At the start, of a tree that was too deep then; of one that became so, at the end."""
    note = f"{tree} is deeper: only its first 5 levels looked through for protected names"
    result = shell("mkdir -p x/b/c/d/e; echo evil > x/b/c/d/e/.envrc", writable(tree))
    assert (result.notes, result.set_aside) == ((note,), ())
    (tree / "a/b/c/d/e").mkdir(parents=True)
    give(tree / "a/b/c/d/e")
    assert note in capsule.plan(["true"], writable(tree)).notes
    result = shell("echo evil > a/b/c/d/e/.envrc", writable(tree))
    assert (result.notes, result.set_aside) == ((), ())


def test_a_hostile_tree_ends_the_run_all_the_same(tree: Path) -> None:
    """Closed directories, 2,000 levels, names of any bytes, FIFOs: what can be found is set aside."""
    code = r"""
os.mkdir(b"new\nline\xff")
os.mkdir(b"new\nline\xff/.idea")
os.mkfifo(".mcp.json", 0o777)
os.mkdir(".fleet")
os.chmod(".fleet", 0)
os.mkdir("closed")
os.mkdir("closed/.idea")
os.chmod("closed", 0)
top = os.open(".", os.O_RDONLY)
for _ in range(2000):
    os.mkdir("d" * 100)
    os.chdir("d" * 100)
os.fchdir(top)
os.chmod(".", 0o311)
tell("made")
"""
    args = [PYTHON, "-c", "import os\ndef tell(_): pass\n" + code]
    result = capsule.run(args, writable(tree), timeout=HANG)
    assert result.ok, result.stderr
    moved = {os.fsencode(os.path.relpath(path, tree)) for path in aside(result)}
    assert {b"new\nline\xff/.idea", b".mcp.json", b".fleet", b"closed/.idea"} <= moved
    assert (stat.S_IMODE(tree.stat().st_mode), stat.S_IMODE((tree / "closed").stat().st_mode)) == (
        0o311,
        0,
    )
    assert [note for note in result.notes if "is deeper" in note] == list(result.notes)
    # Deeper than shutil.rmtree can go.
    tree.chmod(0o755)
    (tree / "closed").chmod(0o700)
    subprocess.run(["rm", "-rf", tree / ("d" * 100)], check=True, timeout=HANG)


def test_a_run_that_is_left_early_says_what_was_set_aside(tree: Path) -> None:
    """Leaving the block kills, and the result says so, and what was done to files of the host."""
    script = "mkdir .idea; echo ready; exec sleep 1000"
    with capsule.start(["sh", "-c", script], writable(tree)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert process.poll() is None
    result = process.poll()
    assert result is not None
    assert result is process.wait()
    assert (result.outcome, result.returncode) == (capsule.Outcome.KILLED, -9)
    assert result.detail == "killed by the caller"
    assert set(aside(result)) == {f"{tree}/.idea"}
    assert not (tree / ".idea").exists()


def test_a_run_that_had_ended_when_it_was_left(tree: Path) -> None:
    """What the command came to counts, though nobody waited for it."""
    with capsule.start(["sh", "-c", "mkdir .idea; exit 3"], writable(tree)) as process:
        assert select.select([process], [], [], HANG)[0]
    result = process.poll()
    assert result is not None
    assert (result.outcome, result.returncode) == (capsule.Outcome.EXITED, 3)
    assert set(aside(result)) == {f"{tree}/.idea"}
