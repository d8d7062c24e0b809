"""Fixed hosts and commands, and the plans that are compared with golden files."""

from __future__ import annotations

from typing import Any, NamedTuple

from capsule.files.found import Found, Guarded, Shown, Survey, Watch
from capsule.host.host import Host
from capsule.host.ids import Range
from capsule.planner.plan import Plan, Terminal, make_plan
from capsule.policy import builtin
from capsule.policy.limits import Limits
from capsule.policy.mounts import FROM_HOST, Mount, MountKind
from capsule.policy.policy import IdMap, Network, Policy, System
from capsule.program.command import Command

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
    sysctls=("kernel/shmall", "kernel/msgmni"),
    groups=(4, 1000),
)
OLD_HOST = HOST.replace(kernel="5.10.0", mount_setattr=False, landlock_abi=0)
ROOT_HOST = HOST.replace(uid=0, gid=0, mount_admin=True)
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
USER_COMMAND = COMMAND.replace(user="user", group="user")
# Outside of the system's places: it and what it needs have to be shown.
VENV_COMMAND = COMMAND.replace(
    args=("/opt/venv/bin/tool",),
    paths=("/opt/venv/bin/tool",),
    found="/opt/venv/bin/tool",
    cwd="/home/ada",
    working_directory=None,
    shown=(
        Shown("/opt/venv", "its toolchain", "/opt/venv"),
        Shown("/opt/python", "its Python", "/opt/python-3.12"),
        Shown("/opt/venv/bin/tool", "the command", "/opt/venv/bin/tool", is_directory=False),
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


# What is there under a name, on the host of the examples.
FILES = ("notes.txt", "secret", "passwd", "sda")
OWNERS = {"/home/ada/out": (1000, 1000), "/home/ada/project": (1000, 1000), "/srv/ada": (1000, 0)}


def surveyed(policy: Policy, **more: Any) -> Survey:
    """What a survey of the host of the examples finds for a policy."""
    found = []
    for mount in policy.mounts:
        if mount.is_pattern:
            continue
        path = mount.source if mount.kind in FROM_HOST else ""
        found.append(
            Found(
                mount,
                path,
                is_directory=not (path or mount.at).endswith(FILES),
                owner=OWNERS.get(path, (0, 0)),
                device=(8, 0) if mount.kind is MountKind.DEVICE and path.endswith(FILES) else None,
                data=b"\0copied\n" if mount.kind is MountKind.FILE else mount.data,
                keep=mount.keep,
            )
        )
    return Survey(tuple(found), **more)


class Case(NamedTuple):
    """What a plan is made of."""

    policy: Policy = Policy()
    host: Host = HOST
    command: Command = COMMAND
    survey: Survey | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it

    def plan(self) -> Plan:
        """Compile it."""
        survey = surveyed(self.policy) if self.survey is None else self.survey
        return make_plan(self.policy, self.host, self.command, survey, **self.options)


MOUNTS = (
    Mount.read_only("/data"),
    Mount.read_write("/home/ada/out", at="/out"),
    Mount.tmpfs("/scratch", size="16M"),
    Mount.read_write("/var/cache/ada", at="/data/cache"),
)

KINDS = (
    Mount.read_only("/data", noexec=True),
    Mount.read_write("/srv/ada", at="/out", noexec=True),
    Mount.overlay("/home/ada/project", size="1M"),
    Mount.overlay("/home/ada/kept", at="/kept", keep="/home/ada/layer"),
    Mount.tmpfs("/scratch", size="16M", noexec=True),
    Mount.hide("/home/ada/project/secret"),
    Mount.hide("/etc/passwd"),
    Mount.hide("/etc/ssl"),
    Mount.hide("/data/private"),
    Mount.read_only("/public", at="/data/private/public"),
    Mount.symlink("../data", "/opt/data"),
    Mount.directory("/opt/empty", 0o750),
    Mount.file("/home/ada/notes.txt", "/tmp/notes.txt"),
    Mount.content(b"\x00\xff\n", "/opt/raw", mode=0o600),
    Mount.device("/dev/sda"),
    Mount.device("/dev/dri"),
)
GUARDS: dict[str, Any] = {
    "hidden": (("/home/ada/project/key.pem", False),),
    "guarded": (
        Guarded("/home/ada/project/.git", read_only=False),
        Guarded("/home/ada/project/.git/hooks"),
        Guarded("/home/ada/project/.git/config"),
    ),
    "watched": (Watch("/home/ada/project", "/home/ada/project", (".git/hooks",)),),
    "notes": ("a note of the survey",),
}
NEEDED = (
    ("/lib64", "usr/lib64", "its dynamic loader"),
    ("/usr/bin/make", None, "the command"),
    ("/usr/lib64/libc.so.6", None, "a library"),
)

CASES: dict[str, Case] = {
    "default": Case(),
    "network-host": Case(Policy(network=Network.HOST)),
    "ids": Case(Policy(uid=1234, gid=2345, hostname="box"), command=USER_COMMAND),
    "keep-id": Case(Policy(keep_id=True), command=COMMAND.replace(user="ada", group="staff")),
    "id-map-auto": Case(Policy(id_map=IdMap.AUTO, uid=1000, gid=1000), RANGE_HOST, USER_COMMAND),
    "id-map-auto-root": Case(
        Policy(id_map=IdMap.AUTO, uid=1000, gid=1000), ROOT_HOST.replace(**RANGES), USER_COMMAND
    ),
    "id-map-host-root": Case(Policy(id_map=IdMap.HOST_ROOT), ROOT_HOST),
    "kernel-5.10": Case(Policy(mounts=MOUNTS), OLD_HOST),
    "real-root": Case(host=ROOT_HOST),
    "container-root": Case(host=ROOT_HOST.replace(initial_ids=False)),
    "root-directory": Case(Policy(root="/srv/image"), command=IMAGE_COMMAND),
    "mounts": Case(Policy(mounts=MOUNTS)),
    "every-kind-of-mount": Case(Policy(mounts=KINDS)),
    "every-kind-5.10": Case(Policy(mounts=KINDS), OLD_HOST),
    "every-kind-root": Case(Policy(mounts=KINDS), ROOT_HOST),
    "guards": Case(
        Policy(mounts=[Mount.read_write("/home/ada/project"), Mount.hide("*.pem")]),
        command=COMMAND.replace(working_directory=None),
        survey=surveyed(Policy(mounts=[Mount.read_write("/home/ada/project")]), **GUARDS),
    ),
    "needed-only": Case(
        Policy(system=System.NEEDED, show_cwd=False),
        command=COMMAND.replace(working_directory=None, cwd="/", needed=NEEDED),
    ),
    "profile-strict": Case(
        builtin.strict("/home/ada"),
        command=COMMAND.replace(working_directory=None, cwd="/", needed=NEEDED),
    ),
    "profile-dev": Case(
        builtin.dev("/home/ada/project"), command=COMMAND.replace(working_directory=None)
    ),
    "profile-offline-build": Case(
        builtin.offline_build("/home/ada", "/home/ada/project"),
        command=COMMAND.replace(working_directory=None),
    ),
    "terminal": Case(options={"terminal": Terminal((0, 1, 2), 50, 132)}),
    "timeout": Case(Policy(limits=Limits(timeout="1m30s"))),
    "pass-fds": Case(options={"descriptors": ((11, 3), (12, 7))}),
    "venv": Case(command=VENV_COMMAND),
    **{
        f"landlock-{abi}": Case(Policy(mounts=KINDS), HOST.replace(landlock_abi=abi))
        for abi in (1, 3, 4, 5, 6, 7)
    },
    "landlock-tcp": Case(
        Policy(network=Network.HOST, tcp_connect=[80, 443], tcp_bind=[]),
        HOST.replace(landlock_abi=4),
    ),
    "nest": Case(Policy(seccomp="nest")),
    "kernel-6.12": Case(host=HOST.replace(kernel="6.12.0", landlock_abi=6, groups=())),
    "ulimits": Case(Policy(limits=Limits(ulimits=["stack=8M:unlimited", "nofile=99"]))),
}
