"""Where a caller can make control groups, and what to do where that is nowhere; cgroups(7), version 2.

A cgroup is the caller's to divide if it was delegated, or if the caller is root and it is the top. The
caller's own service manager gives one that is, for the asking. Nothing is written here.
"""

from __future__ import annotations

import errno
import os
import stat

from capsule.base.values import Value
from capsule.confine import scope
from capsule.confine.cgroup import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Those that a capsule can make use of.
CONTROLLERS = ("memory", "pids", "cpu")
OWN, DELEGATED = "a subtree of root's own", "a delegated subtree"
SCOPE = "the user's systemd makes a scope there when it is needed"
_SYSTEMCTL = "/usr/bin/systemctl"
_BOOTED = "/run/systemd/system"  # sd_booted(3)


class Delegation(Value):
    """Where leaves can be made.

    Attributes:
        directory: of the caller's own cgroup, or of the one where leaves can be made; "" if the former
            cannot be seen.
        controllers: those of CONTROLLERS that it has.
        way: how it comes that leaves can be made, OWN, DELEGATED or SCOPE; "" if they cannot.
        top: it is the root of the whole tree.
        error: errno of writing to it, 0 if that can be done.
        callers: processes of the caller's are in it, which have to be moved into a leaf of their own.
        no_scope: why the user's service manager cannot be asked for one, one of those that have a
            remedy; "" where it can, or where there is no systemd.
    """

    directory: str = ""
    controllers: tuple[str, ...] = ()
    way: str = ""
    top: bool = False
    error: int = 0
    callers: bool = False
    no_scope: str = ""


_found: tuple[tuple[str, int], Delegation] | None = None


def find() -> Delegation:
    """Where the caller can make leaves; looked up again when it is in another cgroup than before."""
    global _found  # noqa: PLW0603
    key = (read_text("/proc/self/cgroup"), os.geteuid())
    if _found is None or _found[0] != key:
        found = _find(key[0])
        if not found.way:
            return found  # until somebody does what the remedy says
        _found = key, found
    return _found[1]


def _find(own: str) -> Delegation:
    mount, directory = next(_visible(own), ("", ""))
    if not directory:
        return Delegation()
    top = _look(mount, mount)
    if top.top and not top.controllers:
        return top  # they are those of version 1
    first = look = _look(directory, mount)
    if not look.way and directory != mount:
        look = _look(os.path.dirname(directory), mount)
    if not look.way and os.geteuid() == 0:
        look = top
    if not look.way and os.path.isdir(_BOOTED):
        look = _ask_for(f"{mount}/user.slice", first)
    return look if look.way else look.replace(directory=first.directory)


def _ask_for(slice_: str, first: Delegation) -> Delegation:
    """Return what a scope of the user's service manager would have, or why there can be none."""
    uid = os.geteuid()
    manager = f"{slice_}/user-{uid}.slice/user@{uid}.service"
    why = _no_scope(manager)
    if why:
        return first.replace(no_scope=why)
    has = read_text(f"{manager}/cgroup.controllers").split()
    controllers = tuple(each for each in CONTROLLERS if each in has)
    return Delegation(manager, controllers, SCOPE)


def _no_scope(manager: str) -> str:
    """Return why the service manager in that cgroup cannot be asked; "" if it can."""
    # It shows processes of other PID namespaces as 0. To that one our process id would be another's.
    pids = read_text(f"{manager}/init.scope/cgroup.procs").split()
    if not pids:
        return NO_MANAGER
    if pids[0] == "0":
        return FOREIGN_MANAGER
    if not os.access(scope.BUSCTL, os.X_OK):
        return NO_BUSCTL
    try:
        is_socket = stat.S_ISSOCK(os.stat(scope.bus()).st_mode)
    except OSError:
        is_socket = False
    return "" if is_socket else NO_BUS


def _look(directory: str, mount: str) -> Delegation:
    """Return what can be done in a directory."""
    # The root alone has no events.
    top = not os.path.exists(f"{directory}/cgroup.events")
    error = _writing_error(directory)
    callers = not top and bool(read_text(f"{directory}/cgroup.procs"))
    has = read_text(f"{directory}/cgroup.controllers").split()
    controllers = tuple(each for each in CONTROLLERS if each in has)
    usable = not error and controllers and _may_use(directory, mount, callers=callers, top=top)
    way = "" if not usable else OWN if os.geteuid() == 0 and directory == mount else DELEGATED
    return Delegation(directory, controllers, way, top, error, callers)


def _may_use(directory: str, mount: str, *, callers: bool, top: bool) -> bool:
    """Return whether it is the caller's to divide. What a service manager divides, it alone may."""
    if top:
        return os.geteuid() == 0
    if not callers:
        return not directory.endswith(".slice")
    # Limits of children need a cgroup without processes, so those in it have to move. In a container
    # that sees no more than its own cgroup, and may write to it, nobody else moves them.
    if directory == mount:
        return True
    # Else only where systemd says that it leaves alone what is in there.
    try:
        return os.getxattr(directory, "user.delegate") == b"1"  # of the system's, since 251
    except OSError:
        return os.geteuid() != 0 and _user_manager_says_so(os.path.basename(directory))


def _user_manager_says_so(unit: str) -> bool:
    """Return whether it is a unit of the caller's service manager that has Delegate=yes.

    That one leaves no mark. Asking takes some milliseconds: once for a unit, since what was divided
    then looks like any delegated cgroup.
    """
    if not unit.endswith((".scope", ".service")) or not os.access(_SYSTEMCTL, os.X_OK):
        return False
    import subprocess

    words = (_SYSTEMCTL, "--user", "show", "--property=Delegate", "--value", "--", unit)
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == b"yes"


def _writing_error(directory: str) -> int:
    """0, or why nothing can be changed there. Tried on the files: the directory's mode says less."""
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        try:
            os.close(os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CLOEXEC))
        except OSError as refusal:
            return refusal.errno or errno.EACCES
    return 0 if os.access(directory, os.W_OK | os.X_OK, effective_ids=True) else errno.EACCES


def _visible(own: str) -> Iterator[tuple[str, str]]:
    """(Mount point, the caller's cgroup) of each place where it is seen; proc_pid_mountinfo(5)."""
    path = next((line[3:] for line in own.splitlines() if line.startswith("0::/")), None)
    for line in read_text("/proc/self/mountinfo").splitlines():
        fields, _, kind = line.partition(" - ")
        root, mount = fields.split()[3:5]
        above = root.rstrip("/")
        if path is not None and kind.startswith("cgroup2 ") and f"{path}/".startswith(f"{above}/"):
            directory = f"{mount}{path[len(above) :]}".rstrip("/")
            if os.path.isdir(directory):
                yield mount, directory


_UNIFIED = "boot with: systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all"
_CONTAINERS = (
    "docker: --cgroupns=private --security-opt writable-cgroups=true\n"
    "podman: --security-opt unmask=/sys/fs/cgroup"
)
_DELEGATE = f"one command: systemd-run --user --scope -p Delegate=yes COMMAND\n{_CONTAINERS}"
# Why no scope can be asked for, and what to do.
NO_MANAGER = "this user has no service manager that runs"
FOREIGN_MANAGER = "the user's service manager is in another PID namespace"
NO_BUSCTL = f"there is no {scope.BUSCTL}"
NO_BUS = "the user has no message bus of systemd's"
_REMEDIES = {
    # su(1), sudo(8), cron(8) start none; neither does systemd-run without one.
    NO_MANAGER: "log in at a console or by ssh\nor, once, as root: loginctl enable-linger {uid}",
    FOREIGN_MANAGER: f"start Capsule outside of that namespace\n{_CONTAINERS}",
    NO_BUSCTL: "as root: install what has busctl, a part of systemd",
    NO_BUS: "as root: apt install dbus-user-session (or what gives a user bus), then log in again",
}
_DELEGATE_MORE = (
    "as root: systemctl edit user@.service, write\n"
    "  [Service]\n"
    "  Delegate=cpu cpuset io memory pids\n"
    "then log in again"
)


def conclude(own: Delegation | None) -> tuple[str, str]:
    """(What was seen, what to do in lines or "" where nothing is missing)."""
    if own is None or not own.directory:
        return "the caller's own cgroup of version 2 cannot be seen", f"{_UNIFIED}\n{_CONTAINERS}"
    lacks = [each for each in CONTROLLERS if each not in own.controllers]
    if own.top and not own.controllers:
        return "version 1 has the controllers memory, pids and cpu", _UNIFIED
    if not own.way:
        return _not_delegated(own)
    if lacks:
        return f"{own.directory} is delegated without {', '.join(lacks)}", _DELEGATE_MORE
    return f"{own.directory}, with {', '.join(CONTROLLERS)}", ""


def _not_delegated(own: Delegation) -> tuple[str, str]:
    why = os.strerror(own.error) if own.error else "its service manager divides it"
    seen = f"{own.directory} is not delegated: {why}"
    if own.no_scope:
        return f"{seen}; {own.no_scope}", _REMEDIES[own.no_scope].format(uid=os.geteuid())
    if not own.error and not own.controllers:
        return f"{own.directory} is delegated without {', '.join(CONTROLLERS)}", _DELEGATE_MORE
    return seen, _DELEGATE
