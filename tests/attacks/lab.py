"""A lab: a machine of the test's own as far as namespaces go, where nobody else changes anything.

In it /tmp, /var/tmp, /run, /dev/shm and the home are fresh, the process table and the network are
empty, and the test may mount. Who is not root outside is root in it for the mounts, then himself again.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import capsule
from tests.attacks.hostdiff import PLACES
from tests.support import HANG, PYTHON, REAL_ROOT

ROOT = Path(__file__).parents[2]
HOME = "/mnt/home"

# What Python needs may lie in a place that is covered: it is put back, at its own path.
_MAKE = """
set -e
mount -t tmpfs lab /mnt
number=0
for kept; do
    number=$((number + 1))
    mkdir "/mnt/$number"
    mount --rbind "$kept" "/mnt/$number"
done
for place in {places}; do
    [ ! -d "$place" ] || [ -L "$place" ] || mount -t tmpfs -o mode=1777 lab "$place"
done
number=0
for kept; do
    number=$((number + 1))
    mkdir -p "$kept"
    mount --rbind "/mnt/$number" "$kept"
done
mkdir -m 755 {home}
"""


def _kept() -> list[str]:
    """What must stay in sight: this Python, the tests and the package."""
    package = os.path.dirname(capsule.__file__)
    tops = {sys.prefix, sys.base_prefix, str(ROOT), package, os.path.realpath(package)}
    return sorted(top for top in tops if any(top.startswith(f"{place}/") for place in PLACES))


def in_lab(body: Callable[..., Any], *arguments: str, mounts: str = "", user: bool = True) -> Any:
    """What a function of a test module returns that is called in a lab, if JSON can say it.

    Args:
        body: a function of a module's top level.
        arguments: its arguments.
        mounts: shell commands that mount, done as root of the lab with the lab's places in force.
        user: whether the function is called as who runs the tests, and not as root of the lab.
    """
    make = _MAKE.format(places=" ".join(PLACES), home=HOME) + mounts
    call = [PYTHON, "-m", "tests.attacks.lab", body.__module__, body.__qualname__, *arguments]
    back = f"unshare -U --map-user={os.getuid()} --map-group={os.getgid()} " if user else ""
    again = "" if REAL_ROOT else back
    script = f"call() {{ exec {again}{_quoted(call)}; }}\n{make}\ncall"
    flags = ["-mnuip"] if REAL_ROOT else ["-rUmnuip"]
    done = subprocess.run(
        [
            "unshare",
            *flags,
            "--fork",
            "--mount-proc",
            "--kill-child",
            "sh",
            "-c",
            script,
            "sh",
            *_kept(),
        ],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "HOME": HOME, "TMPDIR": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=3 * HANG,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return json.loads(done.stdout)


def _quoted(words: list[str]) -> str:
    import shlex

    return shlex.join(words)


def _main() -> None:
    module, name, *arguments = sys.argv[1:]
    out = os.dup(1)
    os.dup2(2, 1)
    told = getattr(importlib.import_module(module), name)(*arguments)
    os.write(out, json.dumps(told).encode())


if __name__ == "__main__":
    _main()
