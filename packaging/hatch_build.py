"""Build hook: compiles the launcher, and modules into one file, and places both inside the package.

There is one static executable for each CPU architecture and nothing that needs a certain version of
Python (bytecode of another one is not used), so the wheel is `py3-none-linux_<cpu>`. Building it writes
nothing into the source tree; an editable install, which runs from the tree, has its launcher there.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "capsule-launch"
CPUS = ("x86_64", "aarch64")

# CFLAGS and LDFLAGS are not read: what hardens the launcher is not left to the environment. There is no
# C library in it (launcher/sys.h), whose start is half a millisecond; launcher/start.c relocates, and
# knows one kind of relocation. -static-pie: no loader and no library of the host takes part, and
# addresses are random.
FLAGS = shlex.split(
    "-std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-asynchronous-unwind-tables"
    " -fstack-protector-strong -mstack-protector-guard=global"
    " -fPIE -static-pie -nostdlib -Wl,-z,relro,-z,now,-z,noexecstack,-z,nopack-relative-relocs"
)
REMEDY = (
    "install gcc and the kernel's headers"
    " (Debian and Ubuntu: gcc linux-libc-dev; Fedora: gcc kernel-headers)"
    " and run the same command again"
)


class LauncherBuildHook(BuildHookInterface[BuilderConfig]):
    """Compiles launcher/*.c for the wheel at hand."""

    scratch: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tell hatchling where the executable goes and which CPU the wheel is for."""
        forget_bytecode()
        if sys.platform != "linux":
            raise not_installed(f"it runs on Linux only, and this is {sys.platform}")
        root = Path(self.root)
        compiler = find_compiler()
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{target_cpu(compiler)}"
        if version == "editable":
            compile_launcher(compiler, root, root / "src" / "capsule" / "launcher" / NAME)
        else:
            self.scratch = tempfile.TemporaryDirectory(prefix="capsule-build-")
            executable = Path(self.scratch.name) / NAME
            compile_launcher(compiler, root, executable)
            build_data["force_include"][str(executable)] = f"capsule/launcher/{NAME}"
            bundle = Path(self.scratch.name) / "bundle.bin"
            bundle.write_bytes(make_bundle(root))
            build_data["force_include"][str(bundle)] = "capsule/bundle.bin"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove the scratch directory, now that the wheel holds the executable."""
        if self.scratch:
            self.scratch.cleanup()


def make_bundle(root: Path) -> bytes:
    """Compile what a run imports into one file, for this very Python; base/bundle.py reads it."""
    tag = f"{sys.implementation.cache_tag} {sys.version} {sys.flags.optimize}"
    modules: dict[str, tuple[str, int, int]] = {}
    groups = b""
    # What is imported at once stands together: of the rest nothing is unmarshalled until it is needed.
    for group in (root / "packaging" / "bundled").read_text(encoding="ascii").split("\n\n"):
        codes, place = {}, len(groups)
        for name in group.split():
            path = root / "src" / Path(*name.split("."))
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            below, source = str(path.relative_to(root / "src" / "capsule")), path.read_bytes()
            codes[name] = compile(source, below, "exec", dont_inherit=True)
            modules[name] = (below, len(source), place)
        groups += marshal.dumps(codes)
    return tag.encode() + b"\0" + len(groups).to_bytes(8, "little") + groups + marshal.dumps(modules)


def find_compiler() -> list[str]:
    """Return the command of the C compiler: $CC, or the first of the usual names."""
    if named := shlex.split(os.environ.get("CC", "")):
        if shutil.which(named[0]):
            return named
        raise not_installed(f"CC names {named[0]}, which was not found; unset CC, or {REMEDY}")
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise not_installed(f"no C compiler was found (cc, gcc or clang); {REMEDY}")


def target_cpu(compiler: list[str]) -> str:
    """Return the CPU that the compiler compiles for, which need not be the one it runs on."""
    machine = run([*compiler, "-dumpmachine"]).stdout.strip()
    cpu = machine.partition("-")[0]
    if cpu not in CPUS:
        raise not_installed(
            f"it runs on {' and '.join(CPUS)} only,"
            f" and {compiler[0]} compiles for {machine or 'an unknown machine'}"
        )
    return cpu


def compile_launcher(compiler: list[str], root: Path, executable: Path) -> None:
    """Compile the launcher into `executable`, replacing in one step one that may be running."""
    # Relative names and a fixed order: the same sources give the same bytes wherever the tree lies.
    sources = sorted(str(path.relative_to(root)) for path in (root / "launcher").glob("*.c"))
    unfinished = executable.with_name(f".{NAME}.new")
    build = run([*compiler, *FLAGS, "-o", str(unfinished), *sources], cwd=root)
    if build.returncode != 0:
        unfinished.unlink(missing_ok=True)
        if not has_headers(compiler):
            raise not_installed(f"{compiler[0]} finds no headers of the kernel; {REMEDY}")
        raise not_installed(
            f"its launcher does not compile with {compiler[0]}:\n{build.stderr.rstrip()}"
        )
    unfinished.chmod(0o755)
    unfinished.replace(executable)


def has_headers(compiler: list[str]) -> bool:
    """Tell whether the compiler finds the youngest header of the kernel that the launcher needs."""
    return run([*compiler, "-E", "-x", "c", "-"], stdin="#include <linux/openat2.h>\n").returncode == 0


def run(
    command: list[str], *, cwd: Path | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a compiler with untranslated messages."""
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, cwd=cwd, input=stdin, env=environment, text=True, capture_output=True, check=False
    )


def forget_bytecode() -> None:
    """Remove the bytecode that Python wrote beside this file on loading it."""
    if __spec__.cached:
        with contextlib.suppress(OSError):
            Path(__spec__.cached).unlink()
            Path(__spec__.cached).parent.rmdir()


def not_installed(reason: str) -> SystemExit:
    """Make the end of the build: one sentence, where an exception would bring a page of frames."""
    return SystemExit(f"Capsule was not installed: {reason}.")
