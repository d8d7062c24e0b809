"""The filter in force (D-01 to D-11, E-01): what it refuses, with control, errno and account."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import capsule
from capsule import Denial, Mount, Outcome, Seccomp
from capsule.confine.seccomp import resolve
from capsule.confine.seccomp.rules import ALLOW, errno_of
from tests.attacks.calls import (
    _CALL,
    _CLONE,
    _LIBC,
    ALLOW_ALL,
    BAD_FD,
    BAD_POINTER,
    HIGH,
    MACHINE,
    NEW,
    NEWTIME,
    NEWUSER,
    NUMBERS,
    refused,
    x86_64,
)
from tests.support import (
    CAPSULE,
    HANG,
    PYTHON,
    ROOM,
    ask,
    ask_outside,
    assert_denied,
    needs,
    probe_args,
    shared_directory,
)
from tests.unit.confine.seccomp import samples

# --- where it is --------------------------------------------------------------------------------

_FILTERS = """
import re, threading
def under():
    found = []
    for task in sorted(os.listdir("/proc/self/task")):
        text = open(f"/proc/self/task/{task}/status").read()
        found.append([int(n) for n in re.findall(r"^Seccomp(?:_filters)?:\\t(\\d+)", text, re.M)])
    return found
ready = threading.Event()
threads = [threading.Thread(target=ready.wait) for _ in range(3)]
[thread.start() for thread in threads]
found = under()
ready.set()
tell(found)
"""


@pytest.mark.row("D-07")
def test_every_thread_is_under_one_filter_more() -> None:
    """Seccomp: 2 for each thread, and one filter more than outside; with off none more."""
    outside = ask_outside(_FILTERS)[0]
    inside = ask(_FILTERS)
    assert len(inside) == 4
    before = outside[1] if len(outside) > 1 else None
    assert inside == [[2] if before is None else [2, before + 1]] * 4
    assert ask(_FILTERS, seccomp="off") == [outside] * 4


@pytest.mark.row("D-08")
def test_what_it_executes_is_under_it_too() -> None:
    """A child of a child has the same filter; nothing takes it off."""
    result = capsule.run(
        ["sh", "-c", "sh -c 'grep ^Seccomp: /proc/self/status; exit 0'; exit 0"], text=True
    )
    assert result.stdout == "Seccomp:\t2\n"


# --- namespaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [*NEW.values(), NEWTIME], ids=hex)
@pytest.mark.row("E-01")
def test_no_namespace_by_unshare(flag: int) -> None:
    """unshare(2) of each of the eight kinds: EPERM."""
    outside = {"number": NUMBERS["unshare"], "args": [flag | NEWUSER], "reached": [0]}
    assert_denied(_CALL, errno.EPERM, outside=outside, inside={**outside, "args": [flag]})


@pytest.mark.parametrize("name", NEW)
@pytest.mark.row("D-03", "E-01")
def test_no_namespace_by_clone(name: str) -> None:
    """clone(2) with each of the seven bits: EPERM, in the lower half and with an upper one."""
    outside = {"number": NUMBERS["clone"], "flags": NEW[name] | NEWUSER}
    for flags in (NEW[name], HIGH | NEW[name]):
        assert_denied(_CLONE, errno.EPERM, outside=outside, inside={**outside, "flags": flags})


@pytest.mark.row("D-03")
def test_no_flags_in_memory() -> None:
    """clone3(2), whose flags no filter can read, is not there; libc falls back."""
    refused("clone3", (BAD_POINTER, 88), errno.ENOSYS, errno.EFAULT)


def test_nest_opens_the_door() -> None:
    """With nest, a namespace can be made and says so; the sockets stay as they are."""
    result = capsule.run(["unshare", "--user", "--net", "true"], seccomp="nest")
    assert result.ok
    assert "namespaces can be made inside" in result.protections["seccomp"]
    refused("socket", (17, 3, 0), errno.EAFNOSUPPORT, 0, errno.EPERM, seccomp="nest")


# --- other doors --------------------------------------------------------------------------------

REACHED: list[tuple[str, tuple[int, ...], int, tuple[int, ...]]] = [
    ("mount", (BAD_POINTER, BAD_POINTER), errno.EPERM, (errno.EFAULT,)),
    ("umount2", (BAD_POINTER, 0), errno.EPERM, (errno.EFAULT, errno.EINVAL)),
    ("chroot", (BAD_POINTER,), errno.EPERM, (errno.EFAULT,)),
    ("open_tree", (BAD_FD, BAD_POINTER, 0), errno.ENOSYS, (errno.EFAULT,)),
    ("fspick", (BAD_FD, BAD_POINTER, 0), errno.ENOSYS, (errno.EFAULT, errno.EPERM)),
    ("fsopen", (BAD_POINTER, 0), errno.ENOSYS, (errno.EFAULT, errno.EPERM)),
    ("move_mount", (BAD_FD, 0, 0, 0, 0), errno.ENOSYS, (errno.EFAULT, errno.EPERM)),
    ("io_uring_setup", (1, BAD_POINTER), errno.ENOSYS, (errno.EFAULT,)),
    ("io_uring_enter", (BAD_FD, 0, 0, 0), errno.ENOSYS, (errno.EBADF,)),
    ("keyctl", (0xFFFF,), errno.ENOSYS, (errno.EOPNOTSUPP,)),
    ("add_key", (BAD_POINTER, 0, 0, 0, 0), errno.EPERM, (errno.EFAULT,)),
    ("userfaultfd", (0xFF,), errno.EPERM, (errno.EINVAL,)),
    ("perf_event_open", (BAD_POINTER, 0, 0, BAD_FD, 0), errno.EPERM, (errno.EFAULT,)),
    ("ptrace", (0,), errno.EPERM, (0,)),
    ("process_vm_readv", (1, 0, 0, 0, 0, 1), errno.EPERM, (errno.EINVAL,)),
    ("pidfd_getfd", (BAD_FD, 0, 0), errno.EPERM, (errno.EBADF,)),
    ("vmsplice", (BAD_FD, 0, 0, 0), errno.EPERM, (errno.EBADF, 0)),
    ("personality", (0x40000,), errno.EPERM, (0,)),
    ("prctl", (35, 6, 0, 0, 1), errno.EPERM, (errno.EINVAL,)),
    ("ioctl", (BAD_FD, 0x5412), errno.EPERM, (errno.EBADF,)),
    ("ioctl", (BAD_FD, HIGH | 0x5412), errno.EPERM, (errno.EBADF,)),
    ("fcntl", (BAD_FD, HIGH | 1024), errno.EPERM, (errno.EBADF,)),
    ("socketpair", (2, 1, 0, BAD_POINTER), errno.EAFNOSUPPORT, (errno.EFAULT, errno.EOPNOTSUPP)),
    ("socket", (16, 3, 12), errno.EPROTONOSUPPORT, (0,)),
    ("mknodat", (BAD_FD, BAD_POINTER, 0x2000), errno.EPERM, (errno.EFAULT,)),
    ("clock_settime", (0, BAD_POINTER), errno.EPERM, (errno.EFAULT,)),
    ("settimeofday", (BAD_POINTER, 0), errno.EPERM, (errno.EFAULT,)),
    ("adjtimex", (BAD_POINTER,), errno.EPERM, (errno.EFAULT,)),
    ("clock_adjtime", (0, BAD_POINTER), errno.EPERM, (errno.EFAULT,)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "error", "reached"), REACHED, ids=str)
@pytest.mark.row("D-01", "E-05", "E-07", "E-08", "E-09", "F-19", "F-23")
def test_refused_calls(name: str, args: tuple[int, ...], error: int, reached: tuple[int, ...]) -> None:
    """Each is reached outside, and has the errno of the table inside."""
    refused(name, args, error, *reached)


# What the kernel itself refuses, in some settings or before some version, to who is not root.
OF_ROOT: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
    ("socket", (2, 3, 255), (0,)),
    ("socket", (10, 3, 255), (0, errno.EAFNOSUPPORT)),
    ("syslog", (10,), (0,)),
    ("bpf", (0xFFFF, BAD_POINTER, 8), (errno.EFAULT, errno.EINVAL)),
    ("open_by_handle_at", (BAD_FD, BAD_POINTER, 0), (errno.EFAULT, errno.EBADF)),
]


@needs("real root")
@pytest.mark.parametrize(("name", "args", "reached"), OF_ROOT, ids=str)
@pytest.mark.row("E-04", "E-10", "E-11")
def test_calls_that_only_root_reaches(
    name: str, args: tuple[int, ...], reached: tuple[int, ...]
) -> None:
    """Raw sockets, the log, programs in the kernel, files by their handles."""
    refused(name, args, errno.EPERM, *reached)


@needs("mount_setattr")
@pytest.mark.row("E-05")
def test_a_young_call_of_the_mounts() -> None:
    """mount_setattr(2) is not there, as the others of its interface."""
    args = (BAD_FD, BAD_POINTER, 0, 0, 0)
    refused("mount_setattr", args, errno.ENOSYS, errno.EINVAL)


def _waits_killable() -> bool:
    """Since 5.19 who waits for an answer that is on its way is woken by fatal signals alone."""
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (5, 19)


def _modules() -> list[str]:
    """The modules of the kernel, if it has any."""
    path = Path("/proc/modules")
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.row("B-13", "D-01", "E-03")
def test_families_of_sockets() -> None:
    """Of all that the kernel has, UNIX, INET, INET6 and NETLINK are left."""
    code = f"{_LIBC}\ntell([call(given['number'], [given['high'] | n, 3, 0])[1] for n in range(46)])"
    before = _modules()
    # Outside only one, which every kernel has: for each of the others it may load a module.
    outside = code.replace("range(46)", "(17,)")
    (error,) = ask_outside(outside, {"number": NUMBERS["socket"], "high": 0})
    assert error in (0, errno.EPERM)
    left = {1, 2, 10, 16}
    for high in (0, HIGH):
        inside = ask(code, given={"number": NUMBERS["socket"], "high": high})
        assert {n for n, error in enumerate(inside) if error != errno.EAFNOSUPPORT} <= left
    assert _modules() == before
    code = f"{_LIBC}\ntell([call({NUMBERS['socket']}, [n, 2, 0])[1] for n in (1, 2, 16)])"
    assert ask(code) == [0, 0, 0]


@pytest.mark.parametrize("profile", ["default", "strict", "debug", "nest"])
@pytest.mark.row("D-06", "E-11")
def test_every_refusal_of_the_table(profile: str) -> None:
    """In one capsule, each case that refuses, with arguments for it: the errno is that of the table."""
    rules = resolve.resolve(Seccomp(profile), MACHINE)
    calls, told = [], 0
    for each in rules.calls:
        for args in samples.plain(each) if each.name in NUMBERS else []:
            case = next(c for c in each.cases if all(args[n] & m == v for n, m, v in c.tests))
            if case.action != ALLOW:
                calls.append((NUMBERS[each.name], args, errno_of(case.action)))
                told += case.report
    code = f"{_LIBC}\ntell([call(number, args)[1] for number, args, _ in given['calls']])"
    result = capsule.run(probe_args(code, {"calls": calls}), seccomp=profile)
    assert json.loads(result.stdout) == [error for _, _, error in calls]
    assert len(calls) > 150
    assert len(result.denials) == 64
    assert sum(d.count for d in result.denials) + result.denials_omitted == told
    assert not result.denials_complete


# --- other interfaces of the kernel -------------------------------------------------------------


def _elf32(code: bytes) -> bytes:
    """A whole program for i386: elf(5)."""
    base, size = 0x8048000, 52 + 32
    header = struct.pack(
        "<16sHHIIIIIHHHHHH",
        b"\x7fELF\1\1\1", 2, 3, 1, base + size, 52, 0, 0, 52, 32, 1, 0, 0, 0,
    )  # fmt: skip
    whole = size + len(code)
    return header + struct.pack("<IIIIIIII", 1, 0, base, base, whole, whole, 5, 0x1000) + code


# exit(7) of i386
_EXIT = bytes.fromhex("b801000000bb07000000cd80")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that is shown, with a program for i386 in it."""
    with shared_directory() as path:
        program = path / "i386"
        program.write_bytes(_elf32(_EXIT))
        program.chmod(0o755)
        yield path


@x86_64
@pytest.mark.row("D-02")
def test_a_program_for_i386(folder: Path) -> None:
    """It is killed, and the verdict says why in words; without a filter it runs."""
    command = [str(folder / "i386")]
    if subprocess.run(command).returncode != 7:
        pytest.skip("the kernel runs no programs for i386")
    shown = [Mount.read_only(folder)]
    result = capsule.run(command, mounts=shown)
    assert (result.outcome, result.signal) == (Outcome.FILTERED, signal.SIGSYS)
    assert "another interface of the kernel (32-bit, x32)" in result.detail
    assert capsule.run(command, mounts=shown, seccomp="off").returncode == 7
    done = subprocess.run([CAPSULE, "--ro", folder, *command], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGSYS
    assert re.search(r"^capsule: .*killed by the filter: .*32-bit", done.stderr)
    assert subprocess.run([CAPSULE, "-q", "--ro", folder, *command], capture_output=True).stderr == b""


@x86_64
@pytest.mark.parametrize("profile", ["default", "strict", "debug", "nest"])
@pytest.mark.row("D-02")
def test_numbers_of_x32(profile: str) -> None:
    """A number of x32 ends the process in every profile; its parent goes on."""
    code = f"""{_LIBC}
pid = os.fork()
if pid == 0:
    os._exit(call(0x40000000 | 39, [])[1])
tell(os.waitpid(pid, 0)[1])
"""
    without = [0, errno.ENOSYS << 8]
    assert ask_outside(code) in without
    assert ask(code, seccomp="off") in without
    assert ask(code, seccomp=profile) & 0x7F == signal.SIGSYS


# --- the account --------------------------------------------------------------------------------

_PTRACE = f"{_LIBC}\nfor _ in range(3): call({NUMBERS['ptrace']}, [0])\n"
_TELLING = f"{_PTRACE}call({NUMBERS['socket']}, [38, 5, 0])\ncall({NUMBERS['socket']}, [2, 3, 1])\n"


def test_what_was_refused_is_told() -> None:
    """Calls, what tells them apart, how often, the errno and the remedy, in the order of the first."""
    result = capsule.run(probe_args(_TELLING))
    assert result.denials == (
        Denial("ptrace", "PTRACE_TRACEME", 3, errno.EPERM, "--allow-syscall ptrace or --seccomp debug"),
        Denial("socket", "AF_ALG", 1, errno.EAFNOSUPPORT, "--allow-syscall socket"),
        Denial("socket", "SOCK_RAW", 1, errno.EPERM, "--allow-syscall socket"),
    )
    assert (result.denials_complete, result.denials_omitted) == (True, 0)


def test_nothing_refused_is_nothing_told() -> None:
    """A program that does nothing special is refused nothing; nor is one without a filter."""
    for profile in ("default", "off"):
        result = capsule.run(["ls", "/"], seccomp=profile)
        assert (result.ok, result.denials, result.denials_complete) == (True, (), True)
    assert result.protections["seccomp"].startswith("off")


def test_the_remedy_helps() -> None:
    """What the account names as a remedy allows what was refused, from Python and from a shell."""
    command = probe_args(f"{_LIBC}\nsys.exit(call({NUMBERS['ptrace']}, [0])[1])")
    assert capsule.run(command).returncode == errno.EPERM
    for options in ({"seccomp": "debug"}, {"seccomp": Seccomp(allow=("ptrace",))}):
        result = capsule.run(command, **options)
        assert (result.returncode, result.denials) == (0, ())
    for words in (["--seccomp", "debug"], ["--allow-syscall", "ptrace"]):
        done = subprocess.run([CAPSULE, *words, *command], capture_output=True, cwd="/")
        assert (done.returncode, done.stderr) == (0, b"")


_ALL = (
    "refused: ptrace(PTRACE_TRACEME) 3 times; --allow-syscall ptrace or --seccomp debug would allow it",
    "refused: socket(AF_ALG) 1 time; --allow-syscall socket would allow it",
    "refused: socket(SOCK_RAW) 1 time; --allow-syscall socket would allow it",
)


@pytest.mark.parametrize(
    ("status", "options", "expected"),
    [
        (1, [], [f"{_ALL[2]} (2 more kinds: -v)"]),
        (1, ["-q"], []),
        (0, [], []),
        (0, ["-v"], [*_ALL]),
    ],
)
def test_the_command_line_tells(status: int, options: list[str], expected: list[str]) -> None:
    """Where the command failed the kind that was new last; all with -v and in JSON; none with -q."""
    words = [CAPSULE, *options, "--json", "-", *probe_args(f"{_TELLING}sys.exit({status})")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=HANG, cwd="/")
    assert re.findall(r"^capsule: (refused: .*)$", done.stderr, re.MULTILINE) == expected
    told = json.loads(done.stdout)["denials"]
    assert [d["count"] for d in told] == [3, 1, 1]
    assert told[1] == {
        "call": "socket", "argument": "AF_ALG", "count": 1, "errno": errno.EAFNOSUPPORT,
        "remedy": "--allow-syscall socket",
    }  # fmt: skip


_MANY = f"""{_LIBC}
for number in range(200):
    for _ in range(number + 1):
        call({NUMBERS["socket"]}, [100 + number, 5, 0])
"""


def test_kinds_without_end() -> None:
    """The program chooses the argument: 64 kinds are told, and how many refusals are not."""
    result = capsule.run(probe_args(_MANY))
    assert result.ok
    assert [d.argument for d in result.denials] == [hex(100 + n) for n in range(64)]
    assert [d.count for d in result.denials] == list(range(1, 65))
    assert result.denials_omitted == sum(range(65, 201))
    assert not result.denials_complete


_FLOOD = f"""{_LIBC}
import threading
def flood(first):
    while True:
        call({NUMBERS["socket"]}, [100 + first, 5, 0])
        first += 8
for first in range(8):
    threading.Thread(target=flood, args=(first,)).start()
"""


def test_a_flood_moves_no_deadline() -> None:
    """Threads that do nothing but be refused, under a deadline: it ends then; the account is small."""
    result = capsule.run(probe_args(_FLOOD), timeout=1 + ROOM)
    assert result.outcome is Outcome.TIMED_OUT
    assert len(result.denials) == 64
    assert result.denials_omitted > 1000
    # Not a measure of speed: a deadline that waited for the flood to end would wait for ever.
    assert result.usage.wall < HANG


def test_a_flood_does_not_keep_the_supervisor_from_its_limits() -> None:
    """Output, signals and kill() work beside it."""
    with capsule.start(probe_args("print('up', flush=True)\n" + _FLOOD)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        result = process.wait(HANG)
    assert (result.outcome, result.signal) == (Outcome.SIGNALED, signal.SIGTERM)
    with capsule.start(probe_args(_FLOOD)) as process:
        process.kill()
        result = process.wait(HANG)
    assert (result.outcome, result.denials_complete) == (Outcome.KILLED, False)


_INTERRUPTED = f"""{_LIBC}
import signal
hits = []
signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
signal.siginterrupt(signal.SIGALRM, given["interrupt"])
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
errors = {{call({NUMBERS["ptrace"]}, [0])[1] for _ in range(20000)}}
signal.setitimer(signal.ITIMER_REAL, 0)
tell([sorted(errors), len(hits) > 0])
"""


def test_signals_while_it_is_answered() -> None:
    """A call that is interrupted and made again has the table's errno, counted once; or EINTR."""
    for interrupt, allowed in ((False, {errno.EPERM}), (True, {errno.EPERM, errno.EINTR})):
        result = capsule.run(probe_args(_INTERRUPTED, {"interrupt": interrupt}))
        errors, interrupted = json.loads(result.stdout)
        assert interrupted
        assert errno.EPERM in errors
        assert set(errors) <= allowed
        (denial,) = result.denials
        # Before 5.19 an answer can come too late: the call is made again, and counted again.
        exact = not interrupt and _waits_killable()
        assert denial.count == 20000 if exact else denial.count > 0


_LISTENING = f"""
import json, os, sys
import capsule
given = json.loads(sys.argv[1])
{_LIBC}
{ALLOW_ALL}
listener, error = call({NUMBERS["seccomp"]}, [1, 8, ctypes.addressof(program)])
assert listener >= 0, error
result = capsule.run(given["command"], cwd="/")
told = [result.returncode, result.denials, result.denials_complete, result.protections["seccomp"]]
print(json.dumps(told))
"""


def test_where_an_outer_filter_listens() -> None:
    """The errno is the same, nothing is told, and that is said."""
    command = probe_args(f"{_LIBC}\nsys.exit(call({NUMBERS['ptrace']}, [0])[1])")
    words = [PYTHON, "-c", _LISTENING, json.dumps({"command": command})]
    done = subprocess.run(words, capture_output=True, timeout=HANG, cwd="/")
    assert done.returncode == 0, done.stderr
    code, denials, complete, how = json.loads(done.stdout)
    assert (code, denials, complete) == (errno.EPERM, [], False)
    assert "refusals are not told: the host gives no listener" in how


def test_where_the_filter_refuses_to_hand_it_over() -> None:
    """A list without sendmsg: refused is refused, and untold."""
    result = capsule.run(["unshare", "--user", "true"], seccomp=Seccomp(deny=("sendmsg",)))
    assert (result.ok, result.denials, result.denials_complete) == (False, (), False)
    assert b"Operation not permitted" in result.stderr
    assert "the filter refuses sendmsg" in result.protections["seccomp"]


def test_the_command_does_not_hold_the_listener() -> None:
    """Neither descriptor of the hand-over is the command's."""
    assert ask("tell(sorted(os.listdir('/proc/self/fd')))") == ["0", "1", "2", "3"]
