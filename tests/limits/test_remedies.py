"""The remedies of limits that only root can take: done as they are printed, in a guest of their own.

They change the settings of the machine's systemd: `./check --kernels` starts one for it.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import CAPSULE, HANG, needs

pytestmark = needs("root of a guest")

UID = 1000
MANAGER = f"user@{UID}.service"
DROP_INS = Path("/etc/systemd/system/user@.service.d")
FEW = "[Service]\nDelegate=no\nDelegate=pids memory\n"


def root(command: str) -> None:
    """What a person does as root in a shell."""
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, timeout=2 * HANG)
    assert done.returncode == 0, (command, done.stderr)


def user(*options: str) -> subprocess.CompletedProcess[str]:
    """A run by a user as su(1) starts it: no session, nothing in the environment."""
    words = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--init-groups"]
    words += [
        "env",
        "-i",
        "HOME=/home/user",
        "PATH=/usr/bin:/bin",
        CAPSULE,
        "run",
        *options,
        "--",
        "true",
    ]
    return subprocess.run(words, capture_output=True, text=True, timeout=2 * HANG, cwd="/")


def log_in_again() -> None:
    root(f"systemctl restart {MANAGER}")
    until = time.monotonic() + HANG
    while not Path(f"/run/user/{UID}/bus").is_socket():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    root(f"rm -rf {DROP_INS}; systemctl daemon-reload; loginctl enable-linger {UID}")
    log_in_again()


def test_a_controller_that_is_missing() -> None:
    """As older releases of systemd have it: memory and pids, and no cpu."""
    DROP_INS.mkdir(exist_ok=True)
    (DROP_INS / "10-few.conf").write_text(FEW)
    root("systemctl daemon-reload")
    log_in_again()
    assert user("--memory", "64M").returncode == 0
    refused = user("--cpus", "1")
    assert refused.returncode == 125
    assert "delegated without cpu" in refused.stderr
    # What the person is told to write in the editor that `systemctl edit` opens.
    assert "as root: systemctl edit user@.service, write" in refused.stderr
    told = refused.stderr.partition("write;")[2].partition("; then log in again")[0]
    lines = [line.strip() for line in told.split(";")]
    assert lines == ["[Service]", "Delegate=cpu cpuset io memory pids"]
    (DROP_INS / "override.conf").write_text("\n".join(lines) + "\n")
    root("systemctl daemon-reload")
    log_in_again()
    done = user("--cpus", "1")
    assert done.returncode == 0, done.stderr


def test_a_user_without_a_session() -> None:
    """Nobody is logged in, nobody lingers: so there is nobody to ask."""
    root(f"loginctl disable-linger {UID}; systemctl stop {MANAGER}")
    refused = user("--memory", "64M")
    assert refused.returncode == 125
    assert "this user has no service manager that runs" in refused.stderr
    _, _, command = refused.stderr.partition("or, once, as root: ")
    words = shlex.split(command.partition(";")[0])
    assert words == ["loginctl", "enable-linger", str(UID)]
    subprocess.run(words, check=True, timeout=HANG)
    until = time.monotonic() + HANG
    while (done := user("--memory", "64M")).returncode != 0:
        assert time.monotonic() < until, done.stderr
        time.sleep(0.2)
