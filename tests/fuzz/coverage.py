"""Which lines of the launcher the tests and the fuzzer reach: ``python -m tests.fuzz.coverage``.

The launcher that ships has no C library, and where it runs nothing can be written; so gcov(1) does not
fit. Here it is built without optimization, with a call at the beginning of each block, which marks the
block in memory that is shared with a file (trace.c). objdump(1) says which lines a block has.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.launcher.build import ALL, SHIPPED, SOURCES

LEAST = 95.0  # percent, by root: mapped trees and ranges of ids are not for others
# What ships is built so, too, but for the optimization.
FLAGS = ("-std=gnu11", "-O0", "-g", *SHIPPED)
_MARK = "__sanitizer_cov_trace_pc"
# What cannot run under a launcher that is not the one that ships.
_NOT_WITH_IT = (
    "--ignore=tests/attacks/test_packaging.py",
    "--ignore=tests/attacks/test_environment.py",
    "--ignore=tests/launcher/test_build.py",
    "--deselect=tests/integration/test_tail.py::test_a_capsule_inside_says_what_is_in_its_way",
)
TESTS = ("tests/integration", "tests/attacks", "tests/launcher", "tests/limits")


def build(place: Path) -> Path:
    """A launcher that marks the blocks that it has run in ``place/blocks``."""
    blocks = place / "blocks"
    blocks.write_bytes(bytes(1 << 20))
    blocks.chmod(0o666)
    include = f"-I{SOURCES}"
    objects = []
    for source in (*ALL, Path(__file__).with_name("trace.c")):
        marks = ["-fsanitize-coverage=trace-pc"] if source in ALL else [f'-DBLOCKS="{blocks}"']
        objects.append(str(place / f"{source.stem}.o"))
        subprocess.run(
            ["gcc", *FLAGS, *marks, include, "-c", str(source), "-o", objects[-1]], check=True
        )
    launcher = place / "capsule-launch"
    subprocess.run(["gcc", *FLAGS, *objects, "-o", str(launcher)], check=True)
    return launcher


def install(launcher: Path, place: Path) -> Path:
    """A copy of the package with this launcher; return the directory that it is imported from."""
    spec = importlib.util.find_spec("capsule")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    packages = place / "usr" / package.parent.relative_to(package.parents[3])
    shutil.copytree(package, packages / "capsule")
    scripts = place / "usr" / "bin"
    scripts.mkdir()
    for name in ("capsule", "capsule-python"):
        shutil.copy(package.parents[3] / "bin" / name, scripts)
    (packages / "capsule" / "launcher" / "capsule-launch").write_bytes(launcher.read_bytes())
    return packages


def lines_of(launcher: Path) -> dict[int, set[tuple[str, int]]]:
    """The lines of each block, by the address to which its mark returns."""
    command = ["objdump", "-dl", "--no-show-raw-insn", str(launcher)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[int, set[tuple[str, int]]] = defaultdict(set)
    line: tuple[str, int] | None = None
    # Those of a function's beginning belong to its first block.
    waiting: set[tuple[str, int]] = set()
    block, marked = 0, False
    for row in text.splitlines():
        if re.match(r"[0-9a-f]+ <", row):
            block, line, waiting = 0, None, set()
        elif at := re.match(r"(/.*\.[ch]):(\d+)", row):
            line = (at[1], int(at[2])) if Path(at[1]).parent == SOURCES else None
        elif at := re.match(r" +([0-9a-f]+):\t(.*)", row):
            if marked:
                block, marked = int(at[1], 16), False
                found[block] |= waiting
                waiting = set()
            marked = at[2].startswith(("call", "bl")) and _MARK in at[2]
            if line is not None:
                (found[block] if block else waiting).add(line)
    return found


def report(launcher: Path, blocks: bytes) -> tuple[str, float]:
    """A table by file with the lines that nothing reached, and how many percent were."""
    reached: dict[str, set[int]] = defaultdict(set)
    every: dict[str, set[int]] = defaultdict(set)
    for address, lines in lines_of(launcher).items():
        for path, number in lines:
            name = Path(path).name
            every[name].add(number)
            if blocks[address]:
                reached[name].add(number)
    rows = []
    for name in sorted(every):
        missing = sorted(every[name] - reached[name])
        share = 100 * len(reached[name]) / len(every[name])
        rows.append(f"{name:14} {share:5.1f} % of {len(every[name]):3}  {' '.join(map(str, missing))}")
    lines_reached, lines_known = (sum(map(len, one.values())) for one in (reached, every))
    percent = 100 * lines_reached / lines_known
    rows.append(f"launcher       {percent:5.1f} % of {lines_known} lines")
    return "\n".join(rows), percent


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory that another user may enter, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="capsule-coverage-") as place:
        os.chmod(place, 0o755)
        yield Path(place)


def main(tests: list[str]) -> int:
    """Run tests with such a launcher, print the table; 1 if too little is reached or a test fails."""
    with scratch() as place:
        launcher = build(place)
        packages = install(launcher, place)
        python = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        environment = {**os.environ, "PYTHONPATH": str(packages)}
        status = subprocess.run([*python, *(tests or TESTS), *_NOT_WITH_IT], env=environment).returncode
        text, percent = report(launcher, (place / "blocks").read_bytes())
    print(text)
    return 0 if status == 0 and (percent >= LEAST or os.geteuid() != 0) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
