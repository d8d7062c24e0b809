"""Places that every host has, and what a capsule makes of them: each list of them stands here."""

from __future__ import annotations

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
    "alternatives", "bash.bashrc", "crypto-policies", "debian_version", "fonts", "inputrc",
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias", "locale.conf", "localtime",
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
