"""Places that every host has, the homes among them, and which of them may be shown unasked.

One module: at each start both are needed, and a module costs a tenth of a millisecond.
"""

from __future__ import annotations

import os

from capsule.base.descriptors import read_file
from capsule.base.text import is_below

# The programs of the host. On most systems all but the first are links into it.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# The kernel's, or Capsule's own, in every view: what the host has there is another thing.
KERNEL = ("/proc", "/dev", "/sys")
# Likewise of a directory that is shown as the root.
ROOT_OWN = (*KERNEL, "/tmp")
# What Capsule makes itself in every view, besides the home.
MADE = ("/tmp", "/var", "/run", "/etc", "/dev", "/proc")
# Nothing in these is shown unasked, and no home is put there.
CLOSED = ("/etc", "/run", *KERNEL)
# These themselves are not, whatever may lie in them.
SHARED = ("/tmp", "/var/tmp", "/var", "/home", "/mnt", "/media", "/opt", "/srv", "/boot")

# What programs need of /etc to start and to behave as usual; nothing that names users or services.
ETC = (
    "alternatives", "bash.bashrc", "crypto-policies", "debian_version", "fonts", "gitconfig",
    "inputrc", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias", "locale.conf", "localtime",
    "lsb-release", "mime.types", "os-release", "pki", "profile", "protocols", "redhat-release",
    "services", "ssl", "system-release", "terminfo", "timezone",
)  # fmt: skip

# Run-time systems that keep a part of themselves in /etc, under a name with a version.
ETC_PREFIXES = ("java-",)

# Parts of /proc that tell of the host or change it. Covered where the kernel has them.
PROC_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys",
    "/proc/key-users", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags",
    "/proc/latency_stats", "/proc/mtd", "/proc/sched_debug", "/proc/scsi", "/proc/sysrq-trigger",
    "/proc/timer_list", "/proc/timer_stats",
)  # fmt: skip
PROC_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/pressure", "/proc/sys")
# Below /proc/sys: of IPC namespaces, where the kernel has them; proc(5).
SYSCTLS = (
    "kernel/shmmax", "kernel/shmall", "kernel/msgmni", "kernel/sem", "fs/mqueue/queues_max",
)  # fmt: skip


# --- homes --------------------------------------------------------------------------------------


def real_path(path: str) -> str:
    """The path with its links followed, as far as the caller may read them."""
    try:
        return os.path.realpath(path)
    except OSError:
        return path


_homes_cache: dict[tuple[str, int, int], list[str]] = {}


def known_homes() -> list[str]:
    """Home directories, the caller's first: none of them is shown unasked."""
    try:
        changed = os.stat("/etc/passwd").st_mtime_ns
    except OSError:
        changed = 0
    key = (os.environ.get("HOME", ""), os.geteuid(), changed)
    if key not in _homes_cache:
        _homes_cache.clear()
        _homes_cache[key] = _find_homes(key[0])
    return _homes_cache[key]


def _find_homes(own: str) -> list[str]:
    homes = [os.path.normpath(own)] if own.startswith("/") and own != "/" else ["/root"]
    uid = str(os.geteuid())
    try:
        lines = os.fsdecode(read_file("/etc/passwd")).split("\n")
        rows = [line.split(":") for line in lines]
    except OSError:
        rows = []
    homes += [
        os.path.normpath(row[5])
        for row in rows
        if len(row) == 7 and (row[2] in (uid, "0") or (row[2].isdigit() and int(row[2]) >= 1000))
    ]
    homes += [real for home in homes if (real := real_path(home)) != home]
    return [home for home in homes if home.startswith("/") and home != "/"]


def home_inside(own: str, *, whole_root: bool) -> str:
    """Where the private home is: at the caller's own path, unless that is part of the system."""
    places = (*SYSTEM, *CLOSED)
    if whole_root or any(is_below(own, place) for place in places) or own in SHARED:
        return "/root"
    return own


def may_show(path: str, homes: list[str]) -> bool:
    """Return whether a directory may be shown without being asked for."""
    for name in {path, real_path(path)}:
        if name == "/" or name in SHARED or any(is_below(home, name) for home in homes):
            return False
        if any(is_below(name, place) for place in CLOSED):
            return False
    return True
