"""The documentation: its examples run, its tables are complete, its links lead somewhere.

A fenced block of ``python`` is executed statement by statement; the blocks of a page share their
names. An expression that ends in a comment ``# → TEXT`` has that value (by repr), or prints that, or
raises that (``Class: first line``).

A fenced block of ``console`` is one shell session: after ``$ `` a command, then what it prints, both
streams together.

In either, ``...`` stands for anything, and on a line of its own in a session for any lines. Other
blocks are not executed.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import capsule
from capsule.files.secrets import SECRETS
from capsule.launcher import spawn
from capsule.program.managers import MANAGERS
from tests.support import CAPSULE, HANG, give, shared_directory

ROOT = Path(__file__).resolve().parents[2]
EXECUTED = (
    "README.md",
    *(
        f"docs/{n}.md"
        for n in (
            "python",
            "cli",
            "errors",
            "files",
            "many",
            "network",
            "recipes",
            "security",
            "architecture",
        )
    ),
)
PAGES = sorted(str(page.relative_to(ROOT)) for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))


class Block(NamedTuple):
    """A fenced block: where it is, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[Block]:
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)
    before = read(page)
    return [
        Block(page, before.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in found
        if match[1] == language
    ]


def matches(wanted: str, shown: str) -> bool:
    """Whether a text is the one in the page, where ``...`` stands for anything."""
    lines = []
    for line in wanted.splitlines():
        parts = map(re.escape, line.rstrip().split("..."))
        lines.append(r"(?:.*\n)*?" if line == "..." else "[^\n]*?".join(parts) + "\n")
    tidy = "".join(f"{line.rstrip()}\n" for line in shown.splitlines())
    return re.fullmatch("".join(lines), tidy) is not None


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project in a home, as the pages suppose it, to be in; capsule is on PATH."""
    with shared_directory() as place:
        home, project = place / "home", place / "home" / "project"
        (project / "data").mkdir(parents=True)
        (project / "out").mkdir()
        give(project / "out")
        (project / "data" / "sales.csv").write_text("north,7\nsouth,5\n")
        (project / "notes.txt").write_text("just text\n")
        (home / ".ssh").mkdir()
        (home / ".ssh" / "id_ed25519").write_text("made up\n")
        bin_ = place / "bin"
        bin_.mkdir()
        (bin_ / "capsule").write_text(f'#!/bin/sh\nexec {command_line()} "$@"\n')
        (bin_ / "capsule").chmod(0o755)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("PATH", f"{bin_}:/usr/local/bin:/usr/bin:/bin")
        monkeypatch.setenv("LC_ALL", "C.UTF-8")
        monkeypatch.setenv("API_TOKEN", "made-up")
        monkeypatch.chdir(project)
        yield project


def command_line() -> str:
    """The installed command; from a source tree that is not installed, the module."""
    return CAPSULE if os.path.exists(CAPSULE) else f"{sys.executable} -m capsule"


# --- python ---------------------------------------------------------------------------------


def outcome(statement: ast.stmt, block: Block, names: dict[str, Any]) -> str:
    """What a statement comes to: what it printed, the value's repr, or the exception."""
    where = f"{ROOT}/{block.page}"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), where, "exec"), names)
            return printed.getvalue()
        try:
            value = eval(compile(ast.Expression(statement.value), where, "eval"), names)
        except (capsule.CapsuleError, OSError, ValueError) as error:
            first = str(error).splitlines()[0] if str(error) else ""
            return f"{type(error).__name__}: {first}"
    return printed.getvalue() or repr(value)


def run_python(block: Block, names: dict[str, Any]) -> None:
    # The blank lines give the statements the line numbers of the page.
    source = "\n" * block.line + block.text
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        assert statement.end_lineno is not None
        _, arrow, wanted = lines[statement.end_lineno - 1].partition("# → ")
        shown = outcome(statement, block, names)
        if arrow or not isinstance(statement, ast.Expr):
            where = f"{block.page}:{statement.end_lineno}"
            assert matches(wanted, shown), f"{where}: shown {shown!r}, wanted {wanted!r}"


@pytest.mark.parametrize("page", [page for page in EXECUTED if blocks(page, "python")])
@pytest.mark.usefixtures("scratch")
def test_python_examples(page: str) -> None:
    """Every example of Python runs and comes to what the page says."""
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks(page, "python"):
        run_python(block, names)


# --- console --------------------------------------------------------------------------------

_MARK = "=== next ==="


def session(block: Block) -> tuple[list[str], list[str]]:
    """(Commands, what each is to print) of a console block."""
    commands: list[str] = []
    wanted: list[str] = []
    for line in block.text.splitlines(keepends=True):
        if line.startswith("$ "):
            commands.append(line[2:])
            wanted.append("")
        elif line.startswith("> "):
            commands[-1] += line[2:]
        else:
            wanted[-1] += line
    return commands, wanted


@pytest.mark.parametrize("block", [b for page in EXECUTED for b in blocks(page, "console")], ids=str)
@pytest.mark.usefixtures("scratch")
def test_console_examples(block: Block) -> None:
    """Every example of the shell prints what the page says."""
    commands, wanted = session(block)
    # The mark must not change $? for the next command.
    script = "".join(f"{c}s=$?; printf '\\n{_MARK}\\n'; (exit $s)\n" for c in commands)
    done = subprocess.run(
        ["sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=5 * HANG,
    )
    shown = done.stdout.split(f"\n{_MARK}\n")
    for command, expected, printed in zip(commands, wanted, shown, strict=False):
        assert matches(expected, printed), f"$ {command}shown:\n{printed}\nwanted:\n{expected}"
    assert len(shown) == len(commands) + 1


# --- completeness -----------------------------------------------------------------------------


def table_rows(page: str, heading: str) -> list[tuple[str, ...]]:
    """The cells of the table under a heading of a page, without its head."""
    section = read(page).split(f"\n{heading}\n", 1)[1]
    section = re.split(r"^#{1,3} ", section, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines[2:]]


def test_the_tree_of_errors_is_the_code_s() -> None:
    """docs/errors.md draws the tree as the module that defines it does."""
    text = (ROOT / "src/capsule/base/errors.py").read_text(encoding="utf-8")
    tree = re.search(r"^CapsuleError .*?(?=^$)", text, re.MULTILINE | re.DOTALL)
    assert tree is not None
    assert tree[0].rstrip() in read("docs/errors.md")


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.usefixtures("scratch")
def test_every_option_is_documented(verb: str) -> None:
    """docs/cli.md names each option that --help names, and no other."""
    shown = subprocess.run(["capsule", verb, "--help"], capture_output=True, text=True, timeout=HANG)
    offered = set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", shown.stdout, re.MULTILINE)) - {"--help"}
    documented = {
        option
        for cells in table_rows("docs/cli.md", "## Options")
        for option in re.findall(r"--[a-z-]+", cells[0])
    } - {"--help"}
    assert offered == documented


def test_every_step_is_documented() -> None:
    """docs/architecture.md lists the vocabulary of the launcher in the order of steps.def."""
    text = (ROOT / "launcher/steps.def").read_text(encoding="utf-8")
    words = re.findall(r'^STEP\(\w+, "([a-z-]+)"', text, re.MULTILINE)
    rows = table_rows("docs/architecture.md", "### The steps")
    assert [word for cells in rows for word in re.findall(r"`([a-z-]+)`", cells[0])] == words


def test_every_module_is_documented() -> None:
    """docs/architecture.md names each module in its room, and each file of the launcher."""
    package = ROOT / "src/capsule"
    rooms = {
        f"{folder.relative_to(package)}/": sorted(
            path.stem for path in folder.glob("*.py") if path.stem != "__init__"
        )
        for folder in package.rglob("*")
        if (folder / "__init__.py").exists()
    }
    rooms["api.py"] = []
    rooms["launcher/ (C)"] = sorted(path.name for path in ROOT.glob("launcher/*.*"))
    rows = table_rows("docs/architecture.md", "### Every file")
    documented = {cells[0].strip("`"): sorted(re.findall(r"`([\w.]+)`", cells[1])) for cells in rows}
    assert documented == rooms


def test_the_numbers_of_records_are_the_launcher_s() -> None:
    """docs/architecture.md has a row for each kind of record, with its number in C and Python."""
    text = (ROOT / "launcher/util.h").read_text(encoding="utf-8")
    kinds = re.findall(r"^\tRECORD_(\w+)", text, re.MULTILINE)
    assert [getattr(spawn, kind) for kind in kinds] == list(range(1, len(kinds) + 1))
    rows = table_rows("docs/architecture.md", "### The two pipes")
    assert [cells[0] for cells in rows] == [
        f"{number} {kind.lower()}" for number, kind in enumerate(kinds, 1)
    ]
    (size,) = re.findall(r"int64_t value\[(\d+)\]", text)
    assert 8 * (1 + int(size)) == spawn.RECORD_SIZE
    assert f"records of {spawn.RECORD_SIZE} bytes" in read("docs/architecture.md")


def test_the_cap_of_a_plan_is_the_launcher_s() -> None:
    """docs/architecture.md says from which size on a plan is refused."""
    text = (ROOT / "launcher/plan.h").read_text(encoding="utf-8")
    (megabytes,) = re.findall(r"^#define PLAN_MAX \((\d+)u << 20\)$", text, re.MULTILINE)
    assert f"More than {megabytes} MiB is `E2BIG`." in read("docs/architecture.md")


def test_the_descriptors_are_the_launcher_s() -> None:
    """Python puts the launcher's descriptors where it looks for them."""
    text = (ROOT / "launcher/util.h").read_text(encoding="utf-8")
    found = {
        name: int(number) for name, number in re.findall(r"^\t(\w+_FD) = (\d+),", text, re.MULTILINE)
    }
    assert found
    assert found == {name: getattr(spawn, name) for name in found}


def test_every_protection_is_documented() -> None:
    """docs/security.md has a row for each name that Result.protections holds."""
    names = capsule.plan(["true"]).protections
    documented = [
        cells[0].strip("`") for cells in table_rows("docs/security.md", "### What enforces it")
    ]
    assert documented == list(names)


def test_every_outcome_is_documented() -> None:
    """docs/python.md has a row for each outcome."""
    documented = [cells[0] for cells in table_rows("docs/python.md", "### Outcomes")]
    assert documented == [f"`{outcome.name}`" for outcome in capsule.Outcome]


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """A relative link names a file of the repository and, after #, a heading in it."""
    for link in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", read(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_manager_is_documented() -> None:
    """docs/files.md has the table of where managers of versions keep programs, and no other."""
    rows = table_rows("docs/files.md", "## Programs of a home")
    documented = {}
    for root, shown in rows:
        rest = ("",) if "all of" in shown else ()
        documented[root.strip("`")] = (*rest, *re.findall(r"`([^`]+)`", shown))
    assert documented == MANAGERS


def test_every_secret_is_documented() -> None:
    """docs/files.md has the table of what is hidden in a home, and no other."""
    rows = table_rows("docs/files.md", "### Secrets in a home")
    assert {cells[0]: tuple(re.findall(r"`([^`]+)`", cells[1])) for cells in rows} == SECRETS
