"""Places that every host has, the homes among them, and which of them may be shown unasked.

One module: at each start both are needed, and a module costs a tenth of a millisecond.
"""

from __future__ import annotations

import os

from capsule.base.descriptors import read_file
from capsule.base.text import is_below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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

# Of /etc, what is shown where it is there: programs need it to start and to behave as usual.
ETC = frozenset((
    "OpenCL", "alternatives", "asound.conf", "bash.bashrc", "crypto-policies", "csh.cshrc",
    "csh.login", "debian_version", "fonts", "gitconfig", "inputrc", "java", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "locale.alias", "locale.conf", "localtime", "lsb-release",
    "mailcap", "mime.types", "odbcinst.ini", "os-release", "papersize", "pki", "profile",
    "protocols", "pulse", "redhat-release", "services", "ssl", "system-release",
    "timezone", "zshenv",
))  # fmt: skip
# Run-time systems that keep a part of themselves there, under a name with a version.
ETC_PREFIXES = ("java-",)
# Never, whatever has the same name in /usr: what may hold keys, passwords and what else gives access;
# what says who the host's users are, where this is and what its network is; what is about services and
# the boot, or is there on each host and none of its programs lacks.
ETC_SECRET = frozenset((
    "ansible", "apt", "asterisk", "aws", "azure", "borg", "borgmatic", "boto.cfg", "cloud", "conda",
    "condarc", "containers", "corosync", "credstore", "credstore.encrypted", "cryptsetup-keys.d",
    "crypttab", "cups", "davfs2", "dbconfig-common", "docker", "dovecot", "duply", "exim4",
    "fetchmailrc", "freeradius", "gcloud", "gdm3", "gitlab-runner", "grafana", "gshadow",
    "gshadow-", "haproxy", "helm", "ipsec.d", "ipsec.secrets", "iwd", "keepalived", "krb5.keytab",
    "krb5.keytab.d", "kubernetes", "letsencrypt", "luks", "mail", "msmtprc", "mysql", "nagios",
    "newrelic", "npmrc", "nut", "openldap", "openvpn", "pacemaker", "phpmyadmin", "pip.conf",
    "polkit-1", "postfix", "postgresql", "ppp", "prosody", "puppet", "puppetlabs", "rabbitmq",
    "rancher", "rclone", "rclone.conf", "redis", "restic", "roundcube", "rsnapshot.conf", "s3cfg",
    "s3cmd", "salt", "samba", "shadow", "shadow-", "snmp", "sops", "ssh", "sssd", "strongswan",
    "stunnel", "subversion", "sudo.conf", "sudoers", "sudoers.d", "supervisor", "swanctl",
    "terraform", "tor", "vault", "vault.d", "vpnc", "waagent.conf", "wireguard", "wordpress",
    "yarnrc", "zabbix",
))  # fmt: skip
ETC_IDENTITY = frozenset((
    "NetworkManager", "aliases", "auto.master", "cni", "ethers", "exports", "fstab", "group",
    "group-", "hostid", "hostname", "hosts", "iscsi", "krb5.conf", "ldap", "libvirt", "machine-id",
    "mtab", "netplan", "network", "networks", "nsswitch.conf", "nvme", "passwd", "passwd-",
    "resolv.conf", "subgid", "subgid-", "subuid", "subuid-", "wpa_supplicant",
))  # fmt: skip
ETC_SYSTEM = frozenset((
    ".pwd.lock", "PackageKit", "X11", "adduser.conf", "apparmor", "apparmor.d", "appstream.conf",
    "bash_completion.d", "bindresvport.blacklist", "binfmt.d", "ca-certificates",
    "ca-certificates.conf", "cron.d", "cron.daily", "cron.hourly", "cron.monthly", "cron.weekly",
    "crontab", "dbus-1", "dconf", "debconf.conf", "debuginfod", "default", "deluser.conf", "dhcp",
    "dkms", "e2scrub.conf", "environment", "environment.d", "ethertypes", "fuse.conf", "gai.conf",
    "gdb", "glvnd", "gprofng.rc", "grub.d", "gss", "gtk-2.0", "gtk-3.0", "host.conf", "init.d",
    "initramfs-tools", "iproute2", "issue", "issue.net", "kernel", "libaudit.conf", "libnl-3",
    "locale.gen", "logcheck", "login.defs", "logrotate.conf", "logrotate.d", "lvm", "magic",
    "magic.mime", "mdadm", "mke2fs.conf", "modprobe.d", "modules", "modules-load.d", "motd",
    "netconfig", "opt", "pam.conf", "pam.d", "postgresql-common", "profile.d", "python3",
    "python3.10", "python3.11", "python3.12", "python3.13", "python3.14", "python3.9", "rc0.d",
    "rc1.d", "rc2.d", "rc3.d", "rc4.d", "rc5.d", "rc6.d", "rcS.d", "rmt", "rpc", "security",
    "selinux", "sensors.d", "sensors3.conf", "shells", "skel", "sysctl.conf", "sysctl.d", "systemd",
    "sysusers.d", "terminfo", "tmpfiles.d", "ucf.conf", "udev", "ufw", "update-motd.d",
    "xattr.conf", "xdg",
))  # fmt: skip
ETC_CLOSED = ETC_SECRET | ETC_IDENTITY | ETC_SYSTEM
# Of directories that are shown: where the caller may open one of these, all else in them is instead.
ETC_PARTS = {
    "pki": ("consumer", "entitlement", "private", "tls/private"),
    "ssl": ("private",),
}
# What a configuration has in its name beside that of the program.
_SUFFIXES = (".d", ".conf", ".cfg", ".config", ".cnf", ".ini", "rc")
# What a service of that name has.
_UNITS = "/usr/lib/systemd/system/"
_SERVICES = (("/etc/init.d/", ""), ("/etc/systemd/system/", ".service"), (_UNITS, ".service"))
# Of /var, where services keep their state: what programs have there, root's and readable by everybody.
VAR = (
    "/var/cache/fontconfig", "/var/lib/aspell", "/var/lib/dictionaries-common", "/var/lib/dpkg",
    "/var/lib/gems", "/var/lib/ghc", "/var/lib/ghostscript", "/var/lib/ispell", "/var/lib/rpm",
    "/var/lib/texmf", "/var/lib/xkb",
)  # fmt: skip
# What is shown of these is data of programs.
DATA = ("/etc", "/opt", "/var/cache", "/var/lib")
# What programs ask for the number of processors, their caches and their memory:
# sysfs-devices-system-cpu and sysfs-devices-node of the kernel's ABI.
TOPOLOGY = ("/sys/devices/system/cpu", "/sys/devices/system/node")

# Parts of /proc that tell of the host or change it. Covered where the kernel has them.
PROC_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys",
    "/proc/key-users", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags",
    "/proc/latency_stats", "/proc/mtd", "/proc/sched_debug", "/proc/scsi", "/proc/sysrq-trigger",
    "/proc/timer_list", "/proc/timer_stats",
)  # fmt: skip
PROC_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/pressure", "/proc/sys")
# Below /proc/sys, where the kernel has them: of IPC namespaces, proc(5), and network ones, ip(7).
SYSCTLS = (
    "kernel/shmmax", "kernel/shmall", "kernel/msgmni", "kernel/sem", "fs/mqueue/queues_max",
    "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range",
)  # fmt: skip


def is_there(path: str) -> bool:
    """Return whether there is anything at a path; os.path.exists makes an exception if there is not."""
    return os.access(path, os.F_OK)


def kind_of(path: str) -> int:
    """The file type of stat(2), or 0."""
    try:
        return os.lstat(path).st_mode & _KIND
    except (OSError, ValueError):
        return 0


def is_of_system(path: str) -> bool:
    """Return whether a path is in one of the directories of the host's programs."""
    return any(is_below(path, place) for place in SYSTEM)


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


# --- what installed programs have beside /usr ----------------------------------------------------

# Up to this size a file is copied: cheaper than a mount.
COPIED_SIZE = 32 << 10
# inode(7): the kind of a file, of it a directory and a regular file; who may read, and change.
_KIND, _DIRECTORY, _REGULAR = 0o170000, 0o040000, 0o100000
_READ, _ENTER, _CHANGE, _GROUP_CHANGES = 0o004, 0o001, 0o002, 0o020
# Where links to programs of /opt are; to look through /usr/bin would take as long as all else.
_LINKS = ("/usr/local/bin", "/usr/local/sbin")


def system() -> tuple[tuple[str, str | None], ...]:
    """Each of SYSTEM that is there, with its target if it is a link into /usr."""
    return tuple((path, _into_usr(path)) for path in SYSTEM if is_there(path))


def of_etc() -> tuple[tuple[tuple[str, str | None], ...], tuple[tuple[str, str], ...]]:
    """(What is linked or mounted, what is copied) of /etc."""
    shown: list[tuple[str, str | None]] = []
    copied: list[tuple[str, str]] = []
    for path, entry in sorted((entry.path, entry) for entry in _of_etc()):
        if entry.is_dir(follow_symlinks=False):
            shown.append((path, None))
        elif entry.is_symlink() and (target := _into_usr(path)):
            shown.append((path, target))
        elif (content := _small_text(path)) is not None:
            copied.append((path, content))
        elif is_there(path):
            shown.append((path, None))
    return tuple(shown), tuple(copied)


def _into_usr(link: str) -> str | None:
    """The target of a link, if that is in /usr: what it leads to elsewhere need not be shown itself."""
    target = _target(link)
    leads_to = os.path.normpath(os.path.join(os.path.dirname(link), target)) if target else ""
    return target if leads_to.startswith("/usr/") and is_there(link) else None


def _target(link: str) -> str:
    """Read a link; "" if it is none, or none any more."""
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _of_etc() -> Iterator[os.DirEntry[str]]:
    """Yield what is shown of /etc."""
    for item in _entries("/etc"):
        name = item.name
        if name in ETC_CLOSED:
            continue
        if name in ETC_PARTS:
            yield from _without(item, ETC_PARTS[name])
        elif name in ETC or name.startswith(ETC_PREFIXES) or _is_for_programs(name):
            yield item


def _without(item: os.DirEntry[str], closed: Sequence[str]) -> Iterator[os.DirEntry[str]]:
    """Yield an entry, or those in it instead if closed ones are among them."""
    if not any(_is_open(f"{item.path}/{path}") for path in closed):
        yield item
        return
    for inner in _entries(item.path):
        if inner.name not in closed:
            below = f"{inner.name}/"
            yield from _without(
                inner, [path[len(below) :] for path in closed if path.startswith(below)]
            )


def _is_open(path: str) -> bool:
    return os.access(path, os.R_OK) or os.access(path, os.X_OK)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return list(items)
    except OSError:
        return []


def _is_for_programs(name: str) -> bool:
    """Return whether an entry of /etc is the configuration of an installed program.

    Not of a service: what that reads is the machine's, and may hold what lets it log in elsewhere.
    """
    program = name
    if name.endswith(_SUFFIXES):
        suffix = next(filter(name.endswith, _SUFFIXES))
        program = name[: len(name) - len(suffix)] or name
    if not _has_evidence(program) and (program == name or not _has_evidence(name)):
        return False
    if not _is_roots_own(f"/etc/{name}"):
        return False
    return not any(is_there(f"{before}{program}{after}") for before, after in _SERVICES)


def _has_evidence(name: str) -> bool:
    """Return whether there is a program of that name, or data of one."""
    return (
        is_there(f"/usr/share/{name}") or is_there(f"/usr/lib/{name}") or is_there(f"/usr/bin/{name}")
    )


def _is_roots_own(path: str) -> bool:
    """Likewise of a link of root's that leads to a file of /etc, or into /usr."""
    if is_roots(path):
        return True
    real = real_path(path)
    name = real.removeprefix("/etc/")
    if real == path or not is_roots(real):
        return False
    return is_below(real, "/usr") or ("/" not in name and name not in ETC_CLOSED)


def is_roots(path: str) -> bool:
    """Return whether everybody may read a file or directory that only root can have made so."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    needed = {_DIRECTORY: _READ | _ENTER, _REGULAR: _READ}.get(found.st_mode & _KIND)
    if needed is None or found.st_uid != 0 or found.st_mode & _CHANGE:
        return False
    if found.st_mode & _GROUP_CHANGES and found.st_gid != 0:
        return False
    return found.st_mode & needed == needed


def _small_text(path: str) -> str | None:
    """The content of a file that is small, readable and without NUL bytes, else None."""
    try:
        data = read_file(path, COPIED_SIZE + 1)
    except OSError:
        return None
    return None if len(data) > COPIED_SIZE or b"\0" in data else os.fsdecode(data)


def installed() -> tuple[str, ...]:
    """Find what else of the host programs need, each to be shown at its own path."""
    topology = filter(os.path.isdir, TOPOLOGY)
    return (*filter(is_roots, filter(is_there, VAR)), *_of_opt(), *topology)


def _of_opt() -> tuple[str, ...]:
    """The directories of /opt that root's links from the system's programs lead into."""
    found: dict[str, None] = {}
    folders = _LINKS if _entries("/opt") else ()
    for link in (item for folder in folders for item in _entries(folder)):
        target = _target(link.path) if link.is_symlink() else ""
        if "/opt/" in target or "/alternatives/" in target:
            found[made_of_opt(real_path(link.path))] = None
    found.pop("", None)
    return tuple(path for path in found if not any(is_below(path, o) for o in found if o != path))


def made_of_opt(program: str) -> str:
    """Find what of /opt a program there is made of, as far as that is root's; "" if it is not.

    That is the directory beside it, or the one above where that is called bin; or it alone.
    """
    if not is_below(program, "/opt/"):
        return ""
    folder = os.path.dirname(program)
    if os.path.basename(folder) in ("bin", "sbin") and os.path.dirname(folder) != "/opt":
        folder = os.path.dirname(folder)
    top = program if folder == "/opt" else folder
    while is_roots(folder) and folder != "/opt":
        folder = os.path.dirname(folder)
    return top if folder == "/opt" and is_roots(folder) and is_roots(top) else ""
