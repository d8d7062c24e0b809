"""Knock-out: which walls stop each attack, each alone. ``python -m tests.attacks.walls`` tells.

A plan is a list of steps, so a wall is taken away by leaving its steps out. Each probe is tried with
everything on, without the filter, without Landlock, without both, without any wall that can be taken
away, and with each one alone. What is denied even without any is denied by what a capsule consists of:
its namespaces, its ids, its view. Nothing is exploited: a probe makes a call, and looks how it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import capsule
from capsule import api
from capsule.confine.landlock import OF_SCOPES
from capsule.launcher import steps as s
from capsule.planner.plan import Plan
from capsule.process import base
from tests.attacks.calls import _LIBC, NUMBERS
from tests.support import REAL_ROOT, ask_outside, probe_args, shared_directory, sleeper

# --- walls --------------------------------------------------------------------------------------

FILTER, LANDLOCK = "filter", "Landlock"
# The steps that are a wall.
STEPS: dict[str, tuple[type[s.Step], ...]] = {
    FILTER: (s.Filter, s.Seccomp),
    LANDLOCK: (s.LandlockRestrict,),
    "capabilities": (s.BoundingSet, s.Capabilities),
    "sysctls": (s.Sysctl,),
    "undumpable init": (s.Undumpable,),
    "own keyring": (s.Keyring,),
    "no_new_privs": (s.NoNewPrivs,),
    "nosuid": (),  # an attribute of other steps
}
# An errno that the kernel gives for nothing that is tried here: the filter's, in these plans.
SENTINEL = 133  # EHWPOISON


def without(plan: Plan, off: frozenset[str], more: tuple[type[s.Step], ...] = ()) -> Plan:
    """The plan with some walls, and some other steps, left out."""
    gone = (*more, *(kind for name in off for kind in STEPS[name]))
    kept = [_told_apart(step) for step in plan.steps if not isinstance(step, gone)]
    if "nosuid" in off:
        kept = [_suid(step) if isinstance(step, s.Tree) else step for step in kept]
    return plan.replace(steps=tuple(kept), filter=None)


def _suid(step: s.Step) -> s.Step:
    return s.Tree(step[0], step[1] & ~s.NO_SUID, step[2])


def _told_apart(step: s.Step) -> s.Step:
    """The filter with one errno for all that it refuses, whether init would be told or not."""
    if not isinstance(step, s.Filter):
        return step
    program = bytearray.fromhex(step[0])
    for at in range(0, len(program), 8):
        action = int.from_bytes(program[at + 4 : at + 8], "little") & 0x7FFF0000
        # BPF_RET | BPF_K of SECCOMP_RET_ERRNO, SECCOMP_RET_USER_NOTIF
        if program[at] == 6 and action in (0x00050000, 0x7FC00000):
            program[at + 4 : at + 8] = (0x00050000 | SENTINEL).to_bytes(4, "little")
    return s.Filter(program.hex(), 0)


# --- probes -------------------------------------------------------------------------------------


class Probe(NamedTuple):
    """One act, and what is known of it.

    Attributes:
        row: of the catalogue of attacks.
        name: for people.
        act: Python source, which fails by OSError.
        reached: errnos that the kernel gives to who was let in.
        group: the kind of capsule in which it is tried.
        basis: what of the capsule itself stops it, if something does.
        must: whether two walls are promised.
        reason: why there is only one, if so.
        outside: whether it can be tried outside, too, and changes nothing there.
        abi: of Landlock, without which nothing stops it.
    """

    row: str
    name: str
    act: str
    reached: tuple[str, ...] = ()
    group: str = "plain"
    basis: str = ""
    must: bool = False
    reason: str = ""
    outside: bool = False
    abi: int = 0


_NO_OTHER = "the kernel has no other switch for it that a process can turn"
_RING = f"{_NO_OTHER}; what a ring opens, the view and Landlock still hold"
_NO_WAY_BACK = "who has no capability gets none: no user namespace can be made, by two walls"
_SOCKETS = ("EBADF", "EFAULT", "EINVAL", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT")
# Families that this kernel has loaded: asking for another might load one on the host.
FAMILIES = {"AF_ALG": (38, "ALG"), "AF_VSOCK": (40, "AF_VSOCK"), "AF_PACKET": (17, "PACKET")}

PROBES = (
    Probe("B-01", "environment of PID 1", "if not open('/proc/1/environ', 'rb').read(): no(2)",
          basis="init is executed anew, with no environment", group="init", must=True, outside=True),
    Probe("B-01", "memory of PID 1", "open('/proc/1/mem', 'rb')", group="init", must=True),
    Probe("B-01", "root of PID 1", "os.listdir('/proc/1/root')", group="init"),
    Probe("B-02", "ptrace(2) of PID 1", "call('ptrace', 0x4206, 1, 0, 0)", group="init", must=True),
    Probe("B-02", "process_vm_readv(2) of PID 1",
          "call('process_vm_readv', 1, iov(buffer(8)), 1, iov(4096), 1, 0)", ("EFAULT",), "init",
          must=True),
    Probe("B-02", "pidfd_getfd(2) of PID 1", "call('pidfd_getfd', call('pidfd_open', 1, 0), 5, 0)",
          group="init", must=True),
    Probe("B-04", "descriptors of the caller", "os.fstat(given['leaked'])",
          basis="the launcher closes all that the plan does not name", must=True,
          reason="the caller's are close-on-exec besides; a directory that leaks: next line",
          outside=True),
    Probe("B-04", "files by a directory that leaked",
          "os.open('canary', os.O_RDONLY, dir_fd=given['passed'])", group="leak", abi=1, outside=True),
    Probe("B-08", "a set-uid program", "set_uid()", group="ids", must=True),
    Probe("B-14", "keys of the caller's session",
          "call('keyctl', 10, -3, text('user'), text(given['key']), 0)", outside=True),
    Probe("B-14", "System V memory of the host", "call('shmget', given['segment'], 0, 0)",
          basis="IPC namespace", outside=True),
    Probe("B-15", "abstract sockets of the host", "connect(given['abstract'])",
          basis="network namespace", outside=True),
    Probe("B-15", "the same, with --net host",
          "connect(given['abstract'])", group="network", abi=OF_SCOPES, outside=True),
    Probe("B-16", "signals to the host", "os.kill(given['victim'], 0)", basis="PID namespace",
          must=True, reason="there is no pid to name; Landlock: next line", outside=True),
    Probe("B-16", "signals to who is not in the ruleset", "os.kill(1, 0)", abi=OF_SCOPES),
    Probe("B-18", "make a device node",
          "os.mknod(given['scratch'] + '/null', 0o20666, os.makedev(1, 3))",
          basis="user namespace", outside=True),
    Probe("D-03", "clone3(2) with CLONE_NEWUSER", "clone3(0x10000000)", must=True),
    Probe("D-04", "io_uring_setup(2)", "call('io_uring_setup', 1, 8)", ("EFAULT",), must=True,
          reason=_RING, outside=True),
    *(
        Probe("E-01", f"unshare(2) of {name}", f"call('unshare', {flag:#x})", must=True)
        for name, flag in (
            ("CLONE_NEWUSER", 0x10000000), ("CLONE_NEWNS", 0x20000), ("CLONE_NEWPID", 0x20000000),
            ("CLONE_NEWNET", 0x40000000), ("CLONE_NEWIPC", 0x8000000), ("CLONE_NEWUTS", 0x4000000),
            ("CLONE_NEWCGROUP", 0x2000000), ("CLONE_NEWTIME", 0x80),
        )
    ),
    Probe("E-01", "setns(2)", "call('setns', os.open('/proc/self/ns/net', 0), 0)", must=True),
    Probe("E-02", "configure an interface", "flags_of('lo', 0x8914)", must=True, reason=_NO_WAY_BACK),
    Probe("E-02", "netlink of netfilter", "netlink(12, 0xA10)", ("EINVAL", "EOPNOTSUPP"), must=True),
    Probe("E-02", "netlink of xfrm", "netlink(6, 0x12)", ("EINVAL", "EOPNOTSUPP", "ESRCH"), must=True),
    *(
        Probe("E-03", f"socket(2) of {name}", f"family({number}, {listed!r})", _SOCKETS, must=True,
              reason="" if name == "AF_PACKET" else _NO_OTHER)
        for name, (number, listed) in FAMILIES.items()
    ),
    Probe("E-03", "raw sockets", "os.close(call('socket', 2, 3, 255))", must=True),
    Probe("E-05", "mount(2) of a tmpfs", "mount('/tmp/a', 'tmpfs')", must=True),
    Probe("E-05", "mount(2) of a proc", "mount('/tmp/b', 'proc')", must=True),
    Probe("E-05", "remount /usr writable",
          "call('mount', 0, text('/usr'), 0, 4096 | 32, 0)", must=True),
    Probe("E-05", "umount2(2)", "call('umount2', text('/dev/shm'), 2)", must=True),
    Probe("E-05", "pivot_root(2)", "call('pivot_root', text('/tmp'), text('/dev/shm'))",
          ("EINVAL", "EBUSY"), must=True),
    Probe("E-05", "fsopen(2)", "call('fsopen', text('tmpfs'), 0)", must=True),
    Probe("E-05", "open_tree(2) of a copy", "call('open_tree', -100, text('/usr'), 1)", must=True),
    Probe("E-05", "move_mount(2)", "move('/tmp/c')", must=True),
    Probe("E-05", "mount_setattr(2) of /usr, writable",
          "call('mount_setattr', -100, text('/usr'), 0, attributes(0, 1), 32)", must=True),
    Probe("E-08", "bpf(2)",
          "call('bpf', 0xFFFF, 8, 8)", ("EFAULT", "EINVAL"), basis="user namespace", outside=True),
    Probe("E-08", "perf_event_open(2)",
          "call('perf_event_open', 8, 0, 0, -1, 0)", ("EFAULT",), outside=True),
    Probe("E-08", "userfaultfd(2)", "call('userfaultfd', 0xFF)", ("EINVAL",), outside=True),
    Probe("E-08", "keyctl(2)", "call('keyctl', 0xFFFF)", ("EOPNOTSUPP", "ENOTSUP"), outside=True),
    Probe("E-09", "vmsplice(2)", "call('vmsplice', 0xFFFFFFF, 0, 0, 0)", ("EBADF",), outside=True),
    Probe("E-10", "open_by_handle_at(2)", "call('open_by_handle_at', -1, 8, 0)", ("EFAULT", "EBADF"),
          basis="user namespace", outside=True),
    Probe("E-11", "swapon(2)",
          "call('swapon', 8, 0)", ("EFAULT",), basis="user namespace", outside=True),
    Probe("E-11", "syslog(2)", "call('syslog', 10, 0, 0)", basis="user namespace", outside=True),
)  # fmt: skip

# Rows of which two walls are promised, and that no probe here can tell.
REASONS = {
    "B-12": "a limit of core files of 1 byte, with which the kernel starts no handler: its only switch",
    "D-01": "about the filter itself: what it refuses by argument has its other walls in its own row",
    "D-02": f"the filter ends who uses another interface of the kernel; {_NO_OTHER}",
}

_DRIVER = (
    f"{_LIBC}"
    """
import signal, socket, struct
by_number = call
held = []
def no(error):
    raise OSError(error, "")
def call(name, *args):
    done, error = by_number(given["numbers"][name], args)
    return no(error) if error else done
def buffer(size):
    held.append(ctypes.create_string_buffer(size))
    return ctypes.addressof(held[-1])
def data(content):
    held.append(ctypes.create_string_buffer(content))
    return ctypes.addressof(held[-1])
def text(word):
    return data(word.encode())
def iov(address):
    return data(struct.pack("LL", address, 8))
def attributes(add, remove):
    return data(struct.pack("QQQQ", add, remove, 0, 0))
def clone3(flags):
    pid = call("clone3", data(struct.pack("11Q", flags, 0, 0, 0, 17, *[0] * 6)), 88)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
def mount(at, kind):
    os.makedirs(at, exist_ok=True)
    call("mount", text("x"), text(at), text(kind), 0, 0)
def move(at):
    os.makedirs(at, exist_ok=True)
    call("move_mount", call("open_tree", -100, text("/tmp"), 1), text(""), -100, text(at), 4)
def connect(name):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\\0" + name)
def flags_of(interface, command):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        call("ioctl", one.fileno(), command, data(struct.pack("16sh14x", interface.encode(), 1)))
def netlink(protocol, kind):
    with socket.socket(16, 3, protocol) as one:
        one.send(struct.pack("IHHII16x", 32, kind, 5, 1, 0))
        one.settimeout(2)
        answer = one.recv(4096)
        # Anything but an error is an answer.
        kind, error = struct.unpack("H", answer[4:6])[0], struct.unpack("i", answer[16:20])[0]
        if kind == 2 and error:
            no(-error)
def family(number, listed):
    loaded = [line.split()[0] for line in open("/proc/net/protocols")]
    if listed not in loaded:
        no(97)
    os.close(call("socket", number, 5 if listed == "ALG" else 3 if number == 17 else 1, 0))
def set_uid():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        os.execv("/set-uid/id", ["id", "-u"])
    os.close(write)
    os.waitpid(pid, 0)
    if os.read(read, 99) != b"1\\n":
        no(1)

def attempt(act):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            exec(act, globals())
            ended = "reached"
        except OSError as error:
            ended = errno.errorcode.get(error.errno, str(error.errno))
        except BaseException as error:
            ended = f"broken: {error!r}"
        os.write(write, ended.encode())
        os._exit(0)
    os.close(write)
    ended = os.read(read, 999).decode()
    os.close(read)
    status = os.waitpid(pid, 0)[1]
    return ended or f"signal {status & 127}"
tell([attempt(act) for act in given["acts"]])
"""
)

# What each kind of capsule differs in. A change of ids, as of root's capsules, makes init undumpable by
# itself; so init is looked at in one without.
GROUPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "init": {"id_map": "host-root"} if REAL_ROOT else {},
    "leak": {},
    "network": {"network": "host"},
    "ids": {},
}
# As whom on the host a set-uid program would run that is owned by the second of two ids.
SECOND_ID = 1000000


class Scene(NamedTuple):
    """What there is on the host to be reached."""

    given: dict[str, Any]
    passed: int
    set_uid: Path


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    """A victim, a key, a shared segment, an abstract socket and a directory, until the block ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    name, key = secrets.token_hex(8), secrets.randbelow(2**30) + 1
    number = NUMBERS["keyctl"], NUMBERS["add_key"]
    # A session keyring of this process's own holds the key: what was joined before is left alone.
    keyed = libc.syscall(number[0], 1, None) >= 0
    keyed = keyed and libc.syscall(number[1], b"user", name.encode(), b"secret", 6, -3) >= 0
    segment = libc.shmget(key, 4096, 0o1000 | 0o666)
    with (
        sleeper() as victim,
        socket.socket(socket.AF_UNIX) as server,
        shared_directory() as directory,
        shared_directory() as set_uid,
    ):
        server.bind("\0" + name)
        server.listen(512)
        (directory / "canary").write_text(name)
        if REAL_ROOT:
            shutil.copy("/usr/bin/id", set_uid)
            os.chown(set_uid / "id", SECOND_ID, SECOND_ID)
            (set_uid / "id").chmod(0o6755)
        passed = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        # Not close-on-exec, and not named to Capsule: what leaks.
        leaked = os.dup(passed)
        os.set_inheritable(leaked, True)
        given = {
            "numbers": NUMBERS, "victim": victim.pid, "segment": key, "abstract": name, "key": name,
            "leaked": leaked, "passed": passed, "scratch": str(directory),
        }  # fmt: skip
        try:
            yield Scene(given if keyed else {**given, "key": "none"}, passed, set_uid)
        finally:
            os.close(passed)
            os.close(leaked)
            libc.shmctl(segment, 0, None)


def _inside(group: str, off: frozenset[str], at: Scene) -> dict[Probe, str]:
    """How each probe of a group ends in a capsule without these walls."""
    probes = [probe for probe in PROBES if probe.group == group]
    more: tuple[type[s.Step], ...] = (s.LandlockInherited,) if group == "leak" else ()
    real = vars(api)["make_plan"]
    vars(api)["make_plan"] = _planned(real, group, off, more)
    given = {**at.given, "acts": [probe.act for probe in probes], "scratch": "/tmp"}
    policy = capsule.Policy(**GROUPS[group])
    if group == "ids":
        policy = policy.replace(mounts=[capsule.Mount.read_only(at.set_uid, "/set-uid")])
    passed = (at.passed,) if group == "leak" else ()
    # In a base, whose mounts are locked, one wall more stands, which no step is.
    often, base.OFTEN = base.OFTEN, sys.maxsize
    base.drop_all()
    try:
        result = capsule.run(probe_args(_DRIVER, given), policy, pass_fds=passed)
    finally:
        vars(api)["make_plan"] = real
        base.OFTEN = often
    assert result.ok, (group, off, result.describe(), result.stderr)
    return dict(zip(probes, json.loads(result.stdout), strict=True))


def _planned(
    real: Callable[..., Plan], group: str, off: frozenset[str], more: tuple[type[s.Step], ...]
) -> Callable[..., Plan]:
    """As `make_plan`, with the walls taken away."""

    def make(*args: Any, **named: Any) -> Plan:
        plan = without(real(*args, **named), off, more)
        return _two_ids(plan) if group == "ids" else plan

    return make


def _two_ids(plan: Plan) -> Plan:
    """The plan with a second id inside, as whom a set-uid program could run. Only root may map two."""
    steps = [
        type(step)(f"{step[0]}\n1 {SECOND_ID} 1") if isinstance(step, (s.UidMap, s.GidMap)) else step
        for step in plan.steps
        if not isinstance(step, s.DenySetgroups)
    ]
    return plan.replace(steps=tuple(steps))


# --- verdicts -----------------------------------------------------------------------------------


class Finding(NamedTuple):
    """How a probe went: by configuration, and what follows."""

    probe: Probe
    ended: Mapping[str, str]
    control: bool
    walls: tuple[str, ...]

    @property
    def vacuous(self) -> bool:
        """Whether nobody reaches it here, so that nothing is shown."""
        return not self.control

    def verdict(self, configuration: str) -> str:
        """One of the three, in a configuration."""
        if _reached(self.probe, self.ended[configuration]):
            return "REACHED"
        return "denied by Capsule" if self.control else "denied by the kernel"


CONFIGURATIONS: dict[str, frozenset[str]] = {
    "all": frozenset(),
    "no filter": frozenset([FILTER]),
    "no Landlock": frozenset([LANDLOCK]),
    "neither": frozenset([FILTER, LANDLOCK]),
    "none": frozenset(STEPS),
    **{f"only {name}": frozenset(STEPS) - {name} for name in STEPS},
}


def _reached(probe: Probe, ended: str) -> bool:
    return ended == "reached" or ended in probe.reached


def findings() -> list[Finding]:
    """Try every probe in every configuration, and outside."""
    ended: dict[Probe, dict[str, str]] = {probe: {} for probe in PROBES}
    with scene() as at:
        for probe, how in zip(PROBES, _outside(at), strict=True):
            ended[probe]["outside"] = how
        for group in GROUPS:
            if group == "ids" and not REAL_ROOT:
                for probe in PROBES:
                    if probe.group == group:
                        ended[probe] |= dict.fromkeys(CONFIGURATIONS, "not root")
                continue
            for name, off in CONFIGURATIONS.items():
                for probe, how in _inside(group, off, at).items():
                    ended[probe][name] = how
    return [_finding(probe, how) for probe, how in ended.items()]


def _outside(at: Scene) -> list[str]:
    """The control, where it changes nothing; for PID 1 stands the process itself."""
    acts = [
        probe.act.replace("/proc/1/", "/proc/self/") if probe.outside else "no(38)" for probe in PROBES
    ]
    given = {**at.given, "acts": acts}
    told: list[str] = ask_outside(_DRIVER, given, pass_fds=(at.passed, at.given["leaked"]))
    return told


def _finding(probe: Probe, ended: dict[str, str]) -> Finding:
    base = _reached(probe, ended["none"])
    control = base or _reached(probe, ended["outside"])
    walls = [probe.basis] if probe.basis and not base and control else []
    for name in STEPS:
        alone = ended[f"only {name}"]
        # Where the capsule denies it by itself, another answer is another wall's.
        if not _reached(probe, alone) and (base or alone != ended["none"]) and control:
            walls.append(name)
    return Finding(probe, ended, control, tuple(walls))


def table(found: list[Finding]) -> list[tuple[str, ...]]:
    """Rows for people: what, how it ends without the filter, Landlock, both; the walls; a reason."""
    rows = []
    for one in found:
        probe = one.probe
        mark = " ◆" if probe.must else ""
        ends = [
            "reached" if one.verdict(name) == "REACHED" else "denied"
            for name in ("no filter", "no Landlock", "neither")
        ]
        walls = ", ".join(one.walls) or "vacuous: this kernel has it not, or keeps it from everybody"
        if len(one.walls) < 2 and probe.reason:
            walls += f"; {probe.reason}"
        rows.append((probe.row + mark, probe.name, *ends, walls))
    rows += [(f"{row} ◆", "", "", "", "", reason) for row, reason in REASONS.items()]
    return sorted(rows, key=lambda row: row[0][:4])


HEAD = ("row", "what is tried", "no filter", "no Landlock", "neither", "walls that stop it, each alone")


def counts(found: list[Finding]) -> dict[str, int]:
    """How many probes were reached, denied, and reached by nobody here; what CI keeps."""
    denied = sum(one.verdict("all") == "denied by Capsule" for one in found)
    reached = sum(one.verdict("all") == "REACHED" for one in found)
    return {"reached": reached, "denied": denied, "vacuous": sum(one.vacuous for one in found)}


PAGE = Path(__file__).parents[2] / "docs" / "security.md"
_BEGIN = f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}\n"


def documented(text: str) -> tuple[str, list[tuple[str, ...]], str]:
    """What comes before the rows of the table in the documentation, the rows, and what comes after."""
    before, _, rest = text.partition(_BEGIN)
    lines = rest.split("\n")
    end = next(number for number, line in enumerate(lines) if not line.startswith("|"))
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[:end]]
    return before + _BEGIN, rows, "\n".join(lines[end:])


def main() -> int:
    """Print the table, with --raw how everything ended, with --write into the documentation."""
    found = findings()
    if "--raw" in sys.argv:
        for one in found:
            print(one.probe.row, one.probe.name, dict(one.ended), one.walls)
    lines = "".join(f"| {' | '.join(row)} |\n" for row in table(found))
    if "--write" in sys.argv:
        before, _, after = documented(PAGE.read_text(encoding="utf-8"))
        PAGE.write_text(f"{before}{lines}{after}", encoding="utf-8")
    else:
        print(_BEGIN + lines, end="")
    print(f"\n{counts(found)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
