"""Runs of the command line, for the tests of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.support import (
    CAPSULE,
    HANG,
)

Done = subprocess.CompletedProcess[bytes]
# Moves the cursor, breaks the line, sets the window's title, is not UTF-8.
HOSTILE = "a\nb\x1b[31m\x1b]0;x\x07\udcff\x9b"


def cli(*words: str, **options: Any) -> Done:
    """Run the command. Whatever it is asked, it shows no traceback."""
    settings: dict[str, Any] = {
        "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
        "cwd": "/", "timeout": HANG, **options,
    }  # fmt: skip
    done = subprocess.run([CAPSULE, *words], **settings)
    assert b"Traceback" not in (done.stderr or b""), done.stderr.decode()
    return done


def in_shell(script: str, *words: str, **options: Any) -> Done:
    """Run a shell script in which $capsule is the command."""
    settings: dict[str, Any] = {"capture_output": True, "cwd": "/", "timeout": HANG, **options}
    env = {**os.environ, "capsule": CAPSULE}
    done = subprocess.run(["sh", "-c", script, "sh", *words], env=env, **settings)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def shown(*words: str, **options: Any) -> str:
    """What a run prints that ends with 0 and says nothing on standard error."""
    done = cli(*words, **options)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def refused(status: int, *words: str, **options: Any) -> str:
    """The message of a run that does not start: three parts, each on a line, nothing on stdout."""
    done = cli(*words, **options)
    assert (done.returncode, done.stdout) == (status, b"")
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("capsule: ")
    assert lines[1].startswith("  ")
    assert lines[1].endswith("The command was not run.")
    assert all(line.startswith("  hint: ") for line in lines[2:])
    assert len(lines) <= 3
    return done.stderr.decode()


def host_variable(**variables: str) -> dict[str, str]:
    """The environment with these variables."""
    return {**os.environ, **variables}


def executable(path: Path, text: str | bytes, mode: int = 0o755) -> str:
    """A file to be executed."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return str(path)


def script(path: Path, *lines: str) -> Path:
    """A file to be executed, of these lines, in directories that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    executable(path, "\n".join(lines) + "\n")
    return path


def both(flag: str, value: str) -> tuple[list[str], list[str]]:
    """An option in its two spellings."""
    return [flag, value], [f"{flag}={value}"]
