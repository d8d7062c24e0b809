"""The catalogue of attacks: each row is tried by some test, or it is said why it is not.

What broke other sandboxes has a row: B processes, secrets and privileges; C terminals; D the filter;
E the kernel that an unprivileged user reaches; F resources and ends. A test that tries one is marked
with ``row``; at the end of the tests stands how many were reached, denied, and reached by nobody here.
Rows A, of the set-up, have the row in their names.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from tests.attacks.walls import PROBES

ROWS = {
    "B-01": "secrets of the caller in the memory, environment and arguments of PID 1",
    "B-02": "ptrace(2), process_vm_readv(2) and pidfd_getfd(2) of PID 1",
    "B-03": "secrets in an environment that is inherited",
    "B-04": "descriptors that are inherited",
    "B-05": "an exit status that is forged",
    "B-06": "a file by another of its names",
    "B-07": "capabilities that are left over",
    "B-08": "programs with set-user-ID",
    "B-09": "helpers that write id maps",
    "B-10": "what /proc tells and lets be written",
    "B-11": "processes of the host",
    "B-12": "a handler of core dumps that root of the host runs",
    "B-13": "modules that asking for a socket loads",
    "B-14": "System V IPC, message queues, keyrings",
    "B-15": "abstract sockets",
    "B-16": "signals to the host",
    "B-18": "device nodes",
    "B-19": "files in memory that are executed",
    "C-01": "keys that are pushed into the user's terminal",
    "C-02": "the same, with the upper half of the word",
    "C-03": "pasting on a virtual console",
    "C-04": "line disciplines, which load modules",
    "C-06": "control sequences in output",
    "D-01": "the upper half of arguments that are words of 32 bits",
    "D-02": "other interfaces of the kernel: i386, x32",
    "D-03": "flags in memory: clone3(2)",
    "D-04": "io_uring",
    "D-06": "errnos that make a libc fall back",
    "D-07": "threads without the filter",
    "D-08": "the filter left behind at execve(2), or installed again",
    "D-09": "decisions by what can be rewritten meanwhile",
    "D-10": "rules that are left out without a word",
    "D-11": "a filter that differs from host to host",
    "E-01": "namespaces that are made or joined",
    "E-02": "the network of a namespace that is one's own",
    "E-03": "families of sockets",
    "E-04": "raw sockets of IPv6",
    "E-05": "mounts",
    "E-06": "Capsule's own use of overlays",
    "E-07": "io_uring, as part of the kernel",
    "E-08": "bpf(2), perf_event_open(2), userfaultfd(2), keyctl(2)",
    "E-09": "pages of files that are written where they may not be: vmsplice(2)",
    "E-10": "files by their handles",
    "E-11": "old and administrative calls",
    "E-12": "cgroups that are written to",
    "E-13": "what a version of Landlock does not know",
    "E-14": "where user namespaces are refused",
    "F-01": "forks and threads without end",
    "F-02": "processes that nobody waits for",
    "F-03": "memory",
    "F-04": "memory that is not a process's: tmpfs, shared memory, queues",
    "F-06": "caches of the kernel",
    "F-07": "a disk that is filled, or its inodes",
    "F-08": "output without end",
    "F-11": "who takes no signal",
    "F-12": "job control that stops the supervisor",
    "F-13": "daemons that are left behind",
    "F-14": "a supervisor that is killed",
    "F-15": "PID 1 that is killed from inside",
    "F-16": "being PID 1",
    "F-17": "CPU time by way of children",
    "F-19": "locks and leases on files of the host",
    "F-20": "who watches files that the host uses",
    "F-22": "errors in the middle of the set-up",
    "F-23": "the clock",
}

# Not tried, or not by a test of this suite.
REASONS = {
    "B-19": "not promised: who may write a file and map it may execute it",
    "D-09": "of a design: init answers with the filter's own errno, and never lets a call go on",
    "F-06": "they count as memory of the cgroup (F-03); who has none is told that nothing bounds it",
    "F-20": "known: what is shown can be watched with inotify(7)",
}


def tried() -> dict[str, set[str]]:
    """The tests that are marked with a row, by their sources."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.row":
                    for row in mark.args:
                        if isinstance(row, ast.Constant):
                            found[str(row.value)].add(node.name)
    for probe in PROBES:
        found[probe.row].add(probe.name)
    return found


def test_every_row_is_tried_or_has_a_reason() -> None:
    """No row is forgotten, none is tried that is not in the catalogue, and no reason is idle."""
    assert tried().keys() | REASONS.keys() == ROWS.keys()
    assert not tried().keys() & REASONS.keys()


def test_no_answer_lets_a_call_go_on() -> None:
    """D-09: SECCOMP_USER_NOTIF_FLAG_CONTINUE is nowhere in the launcher."""
    sources = Path(__file__).parents[2] / "launcher"
    texts = [path.read_text(encoding="utf-8") for path in sources.glob("*.[ch]")]
    assert any("SECCOMP_IOCTL_NOTIF_SEND" in text for text in texts)
    assert not [text for text in texts if "FLAG_CONTINUE" in text]
