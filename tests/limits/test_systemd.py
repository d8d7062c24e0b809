"""Limits in a session of systemd's, with nothing prepared: in a scope that Capsule asks for.

`./check --kernels` runs this in a guest that has one, as a service of the user's manager, which is how
a desktop starts programs, and from a login, as by ssh.
"""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

from capsule.host import delegation
from tests.support import CAPSULE, HANG, await_end, needs

# A scope is for the life of a process: each of these has one of its own.
pytestmark = needs("systemd session")

HUNGRY = "[sys.executable, '-I', '-S', '-c', 'x = bytearray(256 << 20)']"
LIMIT = 64 << 20


def scopes() -> list[str]:
    """The scopes of the user's manager that are ours."""
    words = ["systemctl", "--user", "list-units", "--all", "--type=scope", "--no-legend", "--plain"]
    done = subprocess.run(words, capture_output=True, check=True, text=True)
    names = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    return [name for name in names if name.startswith("capsule-")]


def await_no_scopes() -> None:
    until = time.monotonic() + HANG
    while found := scopes():
        assert time.monotonic() < until, found
        time.sleep(0.1)
    assert not list(Path("/sys/fs/cgroup/user.slice").rglob("*capsule-*"))


def python(code: str) -> subprocess.CompletedProcess[str]:
    """A supervisor of its own."""
    prelude = "import capsule, os, sys\n"
    words = [sys.executable, "-c", prelude + code]
    return subprocess.run(words, capture_output=True, text=True, timeout=10 * HANG)


def test_nothing_is_delegated() -> None:
    """Else this would not be about a scope."""
    found = delegation.find()
    assert found.way == delegation.SCOPE
    assert found.controllers == delegation.CONTROLLERS


def test_four_times_the_limit() -> None:
    words = [CAPSULE, "run", "--memory", "64M", "--", "python3", "-c", "x = bytearray(256 << 20)"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stdout) == (137, "")
    assert done.stderr == "capsule: out of memory: limit 64M, peak 64M; raise it with --memory\n"
    await_no_scopes()


def test_fifty_in_a_row_share_one_scope() -> None:
    code = f"""
import subprocess
for _ in range(50):
    result = capsule.run(["true"], memory={LIMIT}, pids=16, cpus=1)
    assert result.ok and "degraded" not in str(result.protections), result
assert capsule.run({HUNGRY}, memory={LIMIT}).outcome is capsule.Outcome.OUT_OF_MEMORY
print(open("/proc/self/cgroup").read().strip().rpartition("/")[2])
print(subprocess.run(["systemctl", "--user", "list-units", "--type=scope", "--no-legend", "--plain"],
                     capture_output=True, text=True).stdout.count("capsule-"))
"""
    done = python(code)
    assert (done.stdout.split(), done.stderr) == (["supervisor", "1"], "")
    await_no_scopes()


def test_threads_and_children_share_it() -> None:
    code = f"""
import threading
results = []
def one():
    results.append(capsule.run(["true"], memory={LIMIT}))
threads = [threading.Thread(target=one) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
assert len(results) == 8 and all(result.ok for result in results), results
own = open("/proc/self/cgroup").read()
pid = os.fork()
if pid == 0:
    ok = capsule.run(["true"], memory={LIMIT}).ok and open("/proc/self/cgroup").read() == own
    os._exit(0 if ok else 1)
print(os.waitpid(pid, 0)[1])
"""
    done = python(code)
    assert (done.stdout, done.stderr) == ("0\n", "")
    await_no_scopes()


def test_a_killed_supervisor_leaves_nothing() -> None:
    code = f"""
process = capsule.start(["sleep", "1000"], memory={LIMIT})
print(process.pid, flush=True)
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    done = python(code)
    assert done.returncode == -signal.SIGKILL
    await_no_scopes()
    # It is an orphan, and whoever adopted it may not have reaped it yet.
    assert await_end(int(done.stdout))


def test_a_manager_that_refuses_is_an_error() -> None:
    """Not a run without limits."""
    code = f"""
from capsule.confine import scope
scope._MANAGER = (*scope._MANAGER[:2], "org.example.Nobody")
try:
    capsule.run(["true"], memory={LIMIT})
except capsule.HostError as error:
    print(error)
"""
    done = python(code)
    assert done.stdout.startswith("the user's service manager gives no scope for limits: ")
    assert "org.example.Nobody" in done.stdout or "interface" in done.stdout
    await_no_scopes()


def test_doctor_says_it() -> None:
    done = subprocess.run([CAPSULE, "doctor"], capture_output=True, text=True, timeout=2 * HANG)
    line = next(line for line in done.stdout.splitlines() if " cgroup v2 " in line)
    assert line.startswith("ok ")
    assert line.endswith(delegation.SCOPE)


def test_the_line_that_errors_print_works() -> None:
    """As printed, where a scope cannot be asked for otherwise."""
    refused = delegation.Delegation("/sys/fs/cgroup/x", delegation.CONTROLLERS, error=errno.EACCES)
    _, remedy = delegation.conclude(refused)
    line = remedy.splitlines()[0].removeprefix("one command: ")
    command = line.replace("COMMAND", f"{CAPSULE} run --memory 64M -v -- true")
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=2 * HANG)
    assert done.returncode == 0, done.stderr
    assert f"({delegation.DELEGATED}): memory.max 64M" in done.stderr
