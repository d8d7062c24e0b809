"""What a failed step means and what to do: one table, from the step and the errno to a sentence."""

from __future__ import annotations

import errno
import os

from capsule.base.errors import HostError
from capsule.base.text import printable
from capsule.confine.cgroup import read_text
from capsule.host.host import version
from capsule.launcher import network
from capsule.launcher import steps as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from capsule.files.found import Survey
    from capsule.host.host import Host
    from capsule.launcher.steps import Step
    from capsule.program.command import Command

    Hint = str | Callable[["Step"], str]

_NO_IPV6 = "a rule has an address of IPv6, which this host is without: leave it out"
_NO_USERNS = (
    "this host does not let you make user namespaces; `capsule doctor` says which setting it is"
)
_PROC = (
    "the /proc of this container is covered in places or read-only, so the kernel gives out no new "
    "one; run it with an unmasked /proc (docker: --security-opt systempaths=unconfined, podman: "
    "--security-opt unmask=ALL); or a seccomp filter around Capsule forbids fsopen(2): `capsule doctor`"
)
_CAPABILITIES = (
    "root without CAP_SETUID or CAP_SETGID (a container that drops them) cannot do this: start Capsule "
    "as an ordinary user, or give root both"
)
_PRIVATE = (
    "the user namespace came without capabilities, which AppArmor does, or a seccomp filter or a "
    "Landlock ruleset around Capsule forbids it: `capsule doctor` says more, and prints an AppArmor "
    "profile for the launcher"
)


_SWAPPED = (
    "a symbolic link has come into the path since it was looked at, or its links lead in a circle: "
    "look who else writes there, and try again"
)
_KIND = "a file can only be put over a file, a directory over a directory"


def _missing(step: Step) -> str:
    hint = f"{step.path} does not exist on this host: create it, or correct the path"
    before, colon, after = (step.path or "").rpartition(":")
    if colon and "/" not in after:
        # PATH:AT with an AT that is relative: all of it is taken for the path.
        hint += f"; a place inside is written from the root: {before}:/{after}"
    return hint


def _unreadable(step: Step) -> str:
    return f"you may not open {step.path}, or search a directory above it: check its permissions"


def _no_place(step: Step) -> str:
    return (
        f"the place {step.path} would have to be made inside a directory of the host, which Capsule "
        "does not do: create it there first, or choose another place"
    )


def _nothing_to_hide(step: Step) -> str:
    return f"there is no {step.path} inside: correct the path, or mark it as optional"


# (class of step, errno) -> what to do. Step itself stands for any step that has no row of its own.
HINTS: dict[tuple[type[Step], int], Hint] = {
    (s.Namespaces, errno.EPERM): _NO_USERNS,
    (s.Namespaces, errno.EACCES): _NO_USERNS,
    (s.Namespaces, errno.ENOSPC): (
        "the limit of user namespaces or their nesting is reached: raise the sysctls "
        "user.max_user_namespaces and user.max_*_namespaces"
    ),
    (s.Namespaces, errno.EUSERS): "user namespaces are nested too deeply (32 levels)",
    (s.Namespaces, errno.EINVAL): "the kernel was built without one of these namespaces",
    (s.Namespaces, errno.EAGAIN): "too many processes of this user: raise ulimit -u",
    (s.Namespaces, errno.ENOMEM): "the host is out of memory",
    (s.Namespaces, errno.ENOSYS): (
        "a seccomp filter around Capsule takes clone(2) away, or clone3(2), which limits in a cgroup "
        "need: run it without one (docker: --security-opt seccomp=unconfined)"
    ),
    (s.DropGroups, errno.EPERM): _CAPABILITIES,
    (s.UidMap, errno.EPERM): _CAPABILITIES,
    (s.GidMap, errno.EPERM): _CAPABILITIES,
    (s.UidMap, errno.EROFS): _PROC,
    (s.GidMap, errno.EROFS): _PROC,
    (s.DenySetgroups, errno.EROFS): _PROC,
    (s.DenySetgroups, errno.EPERM): _NO_USERNS,
    (s.DenySetgroups, errno.EACCES): _NO_USERNS,
    (s.DenySetgroups, errno.ENOENT): "/proc has to be mounted on the host",
    (s.MapHelper, errno.EPERM): (
        "newuidmap or newgidmap refused the map: check the caller's lines in /etc/subuid and "
        "/etc/subgid, and that the helpers are set-uid root"
    ),
    (s.Private, errno.EPERM): _PRIVATE,
    (s.Private, errno.EACCES): _PRIVATE,
    (s.Tree, errno.ENOENT): _missing,
    (s.Tree, errno.ENOTDIR): _missing,
    (s.Tree, errno.EACCES): _unreadable,
    (s.Tree, errno.ELOOP): _SWAPPED,
    (s.Tree, errno.ENAMETOOLONG): "the path is longer than the kernel takes (4095 bytes)",
    (s.Tree, errno.ENOSPC): (
        "the host's limit of mounts (the sysctl fs.mount-max) is reached, or the launcher's of 1,024 "
        "trees in one capsule, of which each entry of --root is one: show a directory above several, "
        "or, of a root directory, move some entries into a directory of it"
    ),
    (s.Tree, errno.EINVAL): "a mount below it cannot be copied (for instance a namespace file)",
    (
        s.Tree,
        errno.EPERM,
    ): "the kernel refuses to restrict this mount, or a seccomp filter forbids it: `capsule doctor`",
    (
        s.Device,
        errno.ENOENT,
    ): "the host's /dev lacks this device; mount a devtmpfs or create the node",
    (s.Device, errno.ENODEV): "the host's /dev holds something else under this name: repair it",
    (s.Proc, errno.EPERM): _PROC,
    (s.Identity, errno.EINVAL): "the id is not in the map: choose another --uid or --gid",
    (s.PivotRoot, errno.EINVAL): (
        "the current root is no mount point of its own (a chroot): start Capsule outside of it"
    ),
    (s.Attach, errno.ENOENT): _no_place,
    (s.Attach, errno.ENOTDIR): _KIND,
    (s.Attach, errno.EISDIR): _KIND,
    (s.Attach, errno.EINVAL): _KIND,
    (s.Attach, errno.ELOOP): "the symbolic links at the place lead in a circle",
    (s.Attach, errno.EXDEV): "the place leads through a link of /proc: choose another",
    (s.Attach, errno.ENOSPC): (
        "the host's limit of mounts is reached, not the disk's: raise the sysctl fs.mount-max"
    ),
    (s.Tmpfs, errno.ENOENT): _no_place,
    (s.Tmpfs, errno.ENOTDIR): "a file stands where the tmpfs is to be: choose another place",
    (s.Tmpfs, errno.EINVAL): "the size is more than the kernel takes",
    (s.Directory, errno.ENOENT): _no_place,
    (s.Symlink, errno.ENOENT): _no_place,
    (s.Symlink, errno.EEXIST): "something else stands there already: choose another place",
    (s.File, errno.ENOENT): _no_place,
    (s.File, errno.EEXIST): "something else stands there already: choose another place",
    (s.Content, errno.ENOENT): _no_place,
    (s.Content, errno.EEXIST): "something else stands there already: choose another place",
    (s.Content, errno.ENOSPC): "the tmpfs that holds it is too small: choose another place",
    (s.Hide, errno.ENOENT): _nothing_to_hide,
    (s.Hide, errno.ENOTDIR): _nothing_to_hide,
    (s.Overlay, errno.ENOENT): _no_place,
    (s.Overlay, errno.EEXIST): (
        "the directory that is the root holds .layers, a name that Capsule needs there to make an "
        "overlay: rename it"
    ),
    (s.Overlay, errno.ENOTDIR): "only a directory can be overlaid, and only a directory stands for it",
    (s.Overlay, errno.ELOOP): "the directory that keeps the layer holds a symbolic link: take another",
    (s.Overlay, errno.EPERM): (
        "the directory that keeps the layer cannot be used, or the kernel is older than 5.11 and lets "
        "no ordinary user make an overlay"
    ),
    (s.Overlay, errno.EBUSY): "another capsule uses the directory that keeps the layer: take another",
    (s.Overlay, errno.EINVAL): (
        "other file systems are mounted below the directory, or its file system or that of the layer "
        "that is kept cannot be part of an overlay: overlay the directories below, each by itself, or "
        "keep the layer elsewhere"
    ),
    (s.Overlay, errno.ESTALE): "the layer that is kept was made over another directory: take another",
    (network.AnyAddress, errno.EPROTONOSUPPORT): "the kernel has no NETLINK_ROUTE",
    (network.Listen, errno.EADDRNOTAVAIL): _NO_IPV6,
    (network.Listen, errno.EAFNOSUPPORT): _NO_IPV6,
    (s.Terminal, errno.ENOSPC): "the host has no pty left: raise the sysctl kernel.pty.max",
    (s.Terminal, errno.ENOMEM): "the host is out of memory",
    (s.Descriptor, errno.EBADF): "the descriptor is above this process's limit of open files",
    (
        s.Chdir,
        errno.ENOENT,
    ): "the directory is not in the capsule's view: show it with --ro or --rw",
    (s.Chdir, errno.ENOTDIR): "this is not a directory: choose another with --chdir",
    (s.Chdir, errno.EACCES): "the command may not enter the directory with its ids",
    (s.Chdir, errno.EXDEV): "the directory is not inside the capsule",
    (s.Keyring, errno.EDQUOT): (
        "this user has as many keys as the kernel allows, and its capsules need one: revoke some "
        "(`keyctl show`), or raise the sysctl kernel.keys.maxkeys"
    ),
    (s.Keyring, errno.EACCES): (
        "this user has a keyring called capsule that is not one of Capsule's: revoke or rename it"
    ),
    (s.Setrlimit, errno.EPERM): (
        "the caller's own hard limit is lower (`ulimit -H`), and only root can raise that one"
    ),
    (s.LandlockRestrict, errno.E2BIG): (
        "there are as many Landlock rulesets around Capsule as the kernel stacks (16): start it "
        "outside of some of them"
    ),
    (s.Seccomp, errno.EBUSY): (
        "a seccomp filter around Capsule has got a listener, and there can be one: start Capsule "
        "outside of that filter"
    ),
    (s.Seccomp, errno.EINVAL): (
        "the kernel does not take the filter, or was built without them: `capsule doctor`"
    ),
    (s.Seccomp, errno.ENOMEM): (
        "together with the filters around Capsule it is longer than the kernel takes, or the host is "
        "out of memory"
    ),
    (s.Exec, errno.E2BIG): "arguments and environment together are longer than execve(2) takes",
    (
        s.Exec,
        errno.ENOEXEC,
    ): "the file is neither a program of this CPU nor a script with a #! line",
    (s.Exec, errno.ELOOP): "it is a script whose interpreter is a script again, too many times over",
    (s.Exec, errno.EISDIR): "this is a directory, not a program",
    (s.Exec, errno.ETXTBSY): "the program is being written at this moment",
    (s.Exec, errno.ENOMEM): "the host is out of memory",
    (s.Step, errno.ENOMEM): "the host is out of memory",
    (s.Step, errno.EMFILE): "too many open files: raise ulimit -n, or --open-files",
    (s.Step, errno.ENFILE): "too many open files on this host: raise the sysctl fs.file-max",
    (s.Step, errno.EAGAIN): "too many processes of this user: raise ulimit -u",
    (s.Step, errno.ENOSPC): (
        "a limit of the kernel is reached, not the disk's: look at the sysctls fs.mount-max and "
        "user.max_mnt_namespaces"
    ),
    (s.Step, errno.ENOSYS): (
        "the kernel, or a seccomp filter around Capsule, does not offer this call: `capsule doctor`"
    ),
    (s.Step, errno.EPERM): (
        "the kernel, AppArmor or a seccomp filter around Capsule forbids it: `capsule doctor`"
    ),
    (s.Step, errno.EACCES): (
        "the kernel, AppArmor or a seccomp filter around Capsule forbids it: `capsule doctor`"
    ),
}


def hint_for(step: Step, error: int, host: Host, command: Command | None, survey: Survey) -> str | None:
    """Return what to do about a failed step, or None if nothing better than its errno is known."""
    if isinstance(step, s.Exec) and command is not None and error in (errno.ENOENT, errno.EACCES):
        from .exec_hint import exec_hint

        return exec_hint(error, host, command, survey)
    if isinstance(step, s.Overlay) and step[2] != step.NONE:
        return _kept_hint(step, error, survey)
    hint = _row(step, error)
    switch = _switch(error, host) if isinstance(step, s.Namespaces) else ""
    return f"{switch}: {hint}" if switch and hint else hint


# Neither binds the host's root.
UNPRIVILEGED = "kernel.unprivileged_userns_clone"
APPARMOR = "kernel.apparmor_restrict_unprivileged_userns"
# (Setting of the host, value with which it forbids user namespaces, with which errors)
_SWITCHES = (
    (UNPRIVILEGED, "0", (errno.EPERM,)),
    (APPARMOR, "1", (errno.EPERM, errno.EACCES)),
    ("user.max_user_namespaces", "0", (errno.ENOSPC,)),
)


def _switch(error: int, host: Host) -> str:
    """Return which of them may have given this error here, "" if none."""
    root = host.uid == 0 and host.initial_ids
    for name, value, errors in _SWITCHES:
        if error not in errors or (root and name in (UNPRIVILEGED, APPARMOR)):
            continue
        if read_text(f"/proc/sys/{name.replace('.', '/')}").strip() == value:
            return f"{name} is {value}"
    return ""


def _row(step: Step, error: int) -> str | None:
    """Return what the table says."""
    kind = s.Tree if isinstance(step, s.MappedTree) else type(step)
    hint = HINTS.get((kind, error)) or HINTS.get((s.Step, error))
    return hint(step) if callable(hint) else hint


def _kept_hint(step: s.Overlay, error: int, survey: Survey) -> str | None:
    """Of an overlay whose layer is kept: what lies in that directory may be at fault."""
    found = next((one for one in survey.found if one.mount.at == step[0]), None)
    hint = _row(step, error)
    if found is None or not found.keep:
        return hint
    from capsule.files.kept import obstacle

    part = obstacle(found.keep)
    if part is not None:
        return f"{part} is no directory: remove it, or keep the layer in another directory"
    return f"{hint or 'look at what lies there'}; its layer is kept in {found.keep}"


def host_error_for(step: Step, error: int, host: Host) -> HostError | None:
    """Return what the host as such cannot give, whatever the policy says; None if that is not it."""
    # With a layer that is kept, EPERM may come from the directory that keeps it; but before 5.11 it
    # cannot come to that.
    kept = isinstance(step, s.Overlay) and step[2] != step.NONE and version(host.kernel) >= (5, 11)
    unsure = (errno.EPERM,) if kept else ()
    refused = (errno.EPERM, errno.ENODEV, errno.ENOSYS)
    if not isinstance(step, s.Overlay) or error not in refused or error in unsure:
        return None
    hint = "use a kernel from 5.11 on with overlayfs; or copy the directory and show the copy with --rw"
    message = (
        f"overlay at {printable(step[0])}: Linux {host.kernel} does not let an ordinary user make one "
        f"({os.strerror(error)}); the command was not run"
    )
    return HostError(message, hint=hint)


def exit_code_for(step: Step, error: int, command: Command | None) -> int:
    """127: the command was not found. 126: it is there but cannot be executed. 125: all else."""
    if not isinstance(step, s.Exec):
        return 125
    return 127 if error == errno.ENOENT and (command is None or command.found is None) else 126
