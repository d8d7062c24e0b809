"""Fixed hosts and commands, and the plans that are compared with golden files."""

from __future__ import annotations

from typing import Any, NamedTuple

from capsule.command import Command
from capsule.host import Host, Range
from capsule.plan import Plan, Terminal, make_plan
from capsule.policy import IdMap, Limits, Mount, Network, Policy

HOST = Host(
    kernel="6.1.0",
    uid=1000,
    gid=1000,
    system=(("/usr", None), ("/bin", "usr/bin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64")),
    etc=(
        ("/etc/alternatives", None),
        ("/etc/localtime", "/usr/share/zoneinfo/Etc/UTC"),
        ("/etc/ssl", None),
    ),
    etc_files=(("/etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n"), ("/etc/timezone", "UTC\n")),
    masked=("/proc/kcore", "/proc/keys"),
    masked_for_all=("/proc/keys",),
    read_only=("/proc/bus", "/proc/sys"),
    resolv_conf="/run/resolver/resolv.conf",
    landlock_abi=2,
)
OLD_HOST = HOST.replace(kernel="5.10.0", mount_setattr=False, landlock_abi=0)
ROOT_HOST = HOST.replace(uid=0, gid=0)
RANGES = {"subuids": Range(100000, 65536), "subgids": Range(200000, 65536)}
RANGE_HOST = HOST.replace(newuidmap="/usr/bin/newuidmap", newgidmap="/usr/bin/newgidmap", **RANGES)

COMMAND = Command(
    args=("make", "-j2"),
    paths=("/usr/local/bin/make", "/usr/bin/make"),
    found="/usr/bin/make",
    cwd="/home/ada/project",
    env=("PATH=/usr/local/bin:/usr/bin", "HOME=/home/ada", "USER=root"),
    home="/home/ada",
    working_directory="/home/ada/project",
)
# Outside of the system's places: it and what it needs have to be shown.
VENV_COMMAND = COMMAND.replace(
    args=("/opt/venv/bin/tool",),
    paths=("/opt/venv/bin/tool",),
    found="/opt/venv/bin/tool",
    cwd="/home/ada",
    working_directory=None,
    shown=(
        ("/opt/venv", "its toolchain"),
        ("/opt/python", "its Python"),
        ("/opt/venv/bin/tool", "the command"),
    ),
)
IMAGE_COMMAND = COMMAND.replace(
    found=None,
    cwd="/",
    home="/root",
    working_directory=None,
    root_entries=(
        ("/bin", "usr/bin"),
        ("/etc", None),
        ("/home", None),
        ("/usr", None),
        ("/var", None),
    ),
)


class Case(NamedTuple):
    """What a plan is made of."""

    policy: Policy = Policy()
    host: Host = HOST
    command: Command = COMMAND
    options: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it

    def plan(self) -> Plan:
        """Compile it."""
        return make_plan(self.policy, self.host, self.command, **self.options)


MOUNTS = (
    Mount.read_only("/data"),
    Mount.read_write("/home/ada/out", at="/out"),
    Mount.tmpfs("/scratch", size="16M"),
    Mount.read_write("/var/cache/ada", at="/data/cache"),
)

CASES: dict[str, Case] = {
    "default": Case(),
    "network-host": Case(Policy(network=Network.HOST)),
    "ids": Case(Policy(uid=1234, gid=2345, hostname="box")),
    "id-map-auto": Case(Policy(id_map=IdMap.AUTO, uid=1000, gid=1000), RANGE_HOST),
    "id-map-auto-root": Case(
        Policy(id_map=IdMap.AUTO, uid=1000, gid=1000), ROOT_HOST.replace(**RANGES)
    ),
    "id-map-host-root": Case(Policy(id_map=IdMap.HOST_ROOT), ROOT_HOST),
    "kernel-5.10": Case(Policy(mounts=MOUNTS), OLD_HOST),
    "real-root": Case(host=ROOT_HOST),
    "container-root": Case(host=ROOT_HOST.replace(initial_ids=False)),
    "root-directory": Case(Policy(root="/srv/image"), command=IMAGE_COMMAND),
    "mounts": Case(Policy(mounts=MOUNTS)),
    "terminal": Case(options={"terminal": Terminal((0, 1, 2), 50, 132)}),
    "timeout": Case(Policy(limits=Limits(timeout="1m30s"))),
    "pass-fds": Case(options={"descriptors": ((11, 3), (12, 7))}),
    "venv": Case(command=VENV_COMMAND),
}
