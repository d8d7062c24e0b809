"""Builds of the launcher's sources for tests, and programs that link with parts of them."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "launcher"
ALL = sorted(SOURCES.glob("*.c"))
FUZZ = [HERE / "fuzz_plan.c", *(SOURCES / f"{name}.c" for name in ("plan", "start", "text"))]
WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wconversion")
# As packaging/hatch_build.py builds it, without a C library; the other builds here have one.
SHIPPED = (
    "-ffreestanding",
    "-fno-asynchronous-unwind-tables",
    "-fstack-protector-strong",
    "-mstack-protector-guard=global",
    "-fPIE",
    "-static-pie",
    "-nostdlib",
    "-Wl,-z,relro,-z,now,-z,noexecstack,-z,nopack-relative-relocs",
)
SANITIZE = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@functools.cache
def compiler() -> str | None:
    """A C compiler, gcc before clang."""
    return next(filter(shutil.which, ("gcc", "clang", "cc")), None)


def build(output: Path, sources: Sequence[Path], *options: str, cc: str | None = None) -> Path:
    """Compile and link. A compiler that is missing skips the test; warnings are errors."""
    chosen = cc or compiler()
    if chosen is None or shutil.which(chosen) is None:
        pytest.skip(f"{chosen or 'gcc'} is not installed")
    command = [chosen, f"-I{SOURCES}", *options, *map(str, sources), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return output


@functools.cache
def links_with(cc: str, *options: str) -> bool:
    """Whether the compiler has the run-time libraries that options such as -fsanitize need."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "probe.c")
        source.write_text(
            "int LLVMFuzzerTestOneInput(void) { return 0; }\n"
            "#ifndef NO_MAIN\nint main(void) { return 0; }\n#endif\n"
        )
        command = [cc, *options, str(source), "-o", f"{place}/probe"]
        return subprocess.run(command, capture_output=True).returncode == 0


@functools.cache
def system_calls() -> dict[int, str]:
    """The names of the system calls of this CPU, from the C library's headers."""
    cc = compiler()
    if cc is None:
        pytest.skip("gcc is not installed")
    source = "#include <sys/syscall.h>\n"
    command = [cc, "-E", "-dM", "-xc", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    found = re.findall(r"^#define __NR_(\w+) (\d+)$", done.stdout, flags=re.MULTILINE)
    return {int(number): name for name, number in found}
