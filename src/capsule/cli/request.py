"""From the flags of the command line to the policy that they ask for."""

from __future__ import annotations

import os

from capsule.base.errors import PolicyError
from capsule.confine.seccomp.spec import Seccomp
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount
from capsule.policy.policy import Network, Policy
from capsule.policy.units import parse_count, parse_size

from .options import FLAGS, OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from capsule.base.errors import CapsuleError

    from .options import Options

# A file of this name in the working directory may only tighten; see `policy.toml.tighten`.
FOUND_FILE = "capsule.toml"


def effective(options: Options, *, guarded: bool = True) -> tuple[Policy, str | None]:
    """Return what the options ask for, tightened by a capsule.toml that is found; and a note on that.

    Args:
        options: the options.
        guarded: whether the files that it is of are protected, as they are where something runs.

    Raises:
        PolicyError: a value cannot be meant, or that file would loosen something.
    """
    policy = to_policy(options)
    if guarded:
        policy = _guard_files(options, policy)
    try:
        # One call that fails is all that a run without the file pays.
        os.stat(FOUND_FILE, follow_symlinks=False)
    except (FileNotFoundError, PermissionError):
        return policy, None  # a directory that cannot be searched has nothing to say
    except OSError as error:
        hint = "remove it, or make it a regular file that you may read"
        message = f"{FOUND_FILE}: cannot be read: {error.strerror}"
        raise PolicyError(message, field="profile", value=FOUND_FILE, hint=hint) from None
    from capsule.policy.toml import tighten

    named = options.last("--profile") or ""
    document = tighten.read(FOUND_FILE, named if is_file_name(named) else None)
    if document is None:
        return policy, None
    options.documents.append(document)
    return tighten.tighten_by(policy, document), tighten.note_on(document)


def place_error(options: Options, error: CapsuleError) -> None:
    """Say in the error where a value of a profile stands, if it is about one."""
    if options.documents:
        from capsule.policy.toml import read

        fields = {**_FIELDS, **dict.fromkeys(OPTIONS["system calls"], "seccomp")}
        overridden = {field for flag, field in fields.items() if options.has(flag)}
        read.place_error(error, options.documents, overridden)


def to_policy(options: Options) -> Policy:
    """Return what the options ask for, on top of the profile.

    Raises:
        PolicyError: a value cannot be meant.
    """
    base, output = _profile(options)
    changes: dict[str, Any] = {
        field: value for flag, field in _FIELDS.items() if (value := options.last(flag)) is not None
    }
    for field in ("uid", "gid"):
        if field in changes:
            changes[field] = _id(str(changes[field]), field)
    changes |= {field: value for flag, field, value in _SWITCHES if options.has(flag)}
    if not {"uid", "gid", "id_map"}.isdisjoint(changes):
        changes.setdefault("keep_id", False)  # a profile's, which these take the place of
    for flag, field in _PORTS.items():
        if options.has(flag):
            ports = (parse_count(word, field, 65535) for word in options.all(flag))
            changes[field] = (*(getattr(base, field) or ()), *ports)
    for flag, field in _LISTS.items():
        changes[field] = (*getattr(base, field), *options.all(flag))
    if options.has("--allow-net"):
        changes["network"] = _hosts(options, base)
    variables = dict(base.extra_env) | dict(map(_variable, options.all("--env")))
    return base.replace(
        mounts=(*base.mounts, *_mounts(options)),
        extra_env=variables,
        limits=_limits(options, base.limits, output),
        seccomp=_seccomp(options, base.seccomp),
        **changes,
    )


def _hosts(options: Options, base: Policy) -> tuple[str, ...]:
    """Those that the profile names, and those of the options."""
    if options.has("--net"):
        message = f"--allow-net: --net {options.last('--net')} says otherwise"
        raise PolicyError(message, field="network", value=options.last("--net"), hint="leave --net out")
    named = () if isinstance(base.network, Network) else base.network.rules
    return (*named, *options.all("--allow-net"))


def _profile(options: Options) -> tuple[Policy, bool]:
    """(What to begin with, whether it says itself how much output there may be)."""
    names = options.all("--profile")
    if not names:
        return Policy(), False
    if len(names) > 1:
        message = f"--profile was given twice: {names[0]}, {names[1]}"
        hint = "give one; the other options come on top of it"
        raise PolicyError(message, field="profile", value=names[1], hint=hint)
    if not is_file_name(names[0]):
        from capsule.policy import builtin

        return builtin.builtin(names[0]), False

    from capsule.policy.toml import read

    document = read.open_document(names[0])
    options.documents.append(document)
    policy = read.policy_of(document)
    return policy, "output" in document.data.get("limits", ())


def is_file_name(word: str) -> bool:
    """Return whether a --profile is a file, and not a built-in one's name."""
    return "/" in word or word.endswith(".toml")


def _guard_files(options: Options, policy: Policy) -> Policy:
    """The command must not write the policy of the next run, nor its rules for system calls."""
    named = options.last("--profile") or ""
    for name in (named if is_file_name(named) else None, policy.seccomp.path):
        if name is not None:
            from capsule.policy.toml import read

            policy = read.guarded(policy, name)
    return policy


def _limits(options: Options, base: Limits, output_is_said: bool) -> Limits:
    """Output that goes straight through is counted only where a limit was asked for."""
    output: int | str | None = options.last("--output")
    if output is None:
        counted = output_is_said or options.last("--json") == "-"
        output = base.output if counted else None
    given: dict[str, Any] = {
        field: value for flag, field in _LIMITS.items() if (value := options.last(flag)) is not None
    }
    return base.replace(output=output, ulimits=(*base.ulimits, *options.all("--ulimit")), **given)


def _seccomp(options: Options, base: Seccomp) -> Seccomp:
    """Return what the options name wins over what the profile names."""
    allow, deny = options.all("--allow-syscall"), options.all("--deny-syscall")
    read = options.last("--seccomp")
    return base.replace(
        profile=base.profile if read is None else read,
        allow=(*(name for name in base.allow if name not in deny), *allow),
        deny=(*(name for name in base.deny if name not in allow), *deny),
    )


def _mounts(options: Options) -> list[Mount]:
    """The file options in their order, each with what was said of it after it."""
    asked: list[tuple[str, str, dict[str, Any]]] = []
    for flag, value in options.given:
        if flag in _MOUNTS:
            asked.append((flag, value, {}))
        elif flag in _MODIFIERS:
            _modify(asked[-1] if asked else None, flag, value)
    return [_MOUNTS[flag][0](value, changes) for flag, value, changes in asked]


def _modify(before: tuple[str, str, dict[str, Any]] | None, flag: str, value: str) -> None:
    name, takers = flag[2:], [other for other, (_, fits) in _MOUNTS.items() if flag in fits.split()]
    hint = f"write it right after the option that it is about: {', '.join(takers)}"
    if before is None:
        raise PolicyError(f"{flag}: no file option before it", field=name, value=value, hint=hint)
    if before[0] not in takers:
        raise PolicyError(f"{flag} does not go with {before[0]}", field=name, value=value, hint=hint)
    before[2][name] = value if FLAGS[flag] else True
    if {"size", "keep"} <= before[2].keys():
        message = "--keep has no limit of size: leave one of --size and --keep out"
        hint = "a layer that is kept has the size of its file system"
        raise PolicyError(message, field=name, value=value, hint=hint)


def _split_at(word: str) -> tuple[str, str | None]:
    """PATH[:AT], where AT is absolute: a colon before anything else belongs to the path."""
    path, colon, at = word.rpartition(":/")
    return (path, f"/{at}") if colon and path else (word, None)


def _split_both(word: str, flag: str, wanted: str) -> tuple[str, str]:
    path, at = _split_at(word)
    if at is None:
        hint = "AT is the place inside, beginning with /"
        message = f"{flag}: not {wanted}: {word}"
        raise PolicyError(message, field="mounts", value=word, hint=hint)
    return path, at


def _tmpfs(word: str, changes: dict[str, Any]) -> Mount:
    at, colon, size = word.rpartition(":")
    if colon and "/" not in size:
        return Mount.tmpfs(at, **{"size": parse_size(size, "--tmpfs"), **changes})
    return Mount.tmpfs(word, **changes)


# flag -> (what makes the mount, the modifiers that fit)
_MOUNTS: dict[str, tuple[Callable[[str, dict[str, Any]], Mount], str]] = {
    "--ro": (lambda word, more: Mount.read_only(*_split_at(word), **more), "--noexec --optional"),
    "--rw": (lambda word, more: Mount.read_write(*_split_at(word), **more), "--noexec --optional"),
    "--overlay": (
        lambda word, more: Mount.overlay(*_split_at(word), **more),
        "--noexec --optional --size --keep",
    ),
    "--tmpfs": (_tmpfs, "--noexec --size"),
    "--hide": (lambda word, more: Mount.hide(word, **more), "--optional"),
    "--symlink": (lambda word, _: Mount.symlink(*_split_both(word, "--symlink", "TARGET:AT")), ""),
    "--dir": (lambda word, _: Mount.directory(word), ""),
    "--file": (
        lambda word, more: Mount.file(*_split_both(word, "--file", "SRC:AT"), **more),
        "--optional",
    ),
    "--dev": (lambda word, more: Mount.device(word, **more), "--optional"),
}
_MODIFIERS = tuple(OPTIONS["of the file option right before"])
_FIELDS = {
    "--root": "root",
    "--system": "system",
    "--chdir": "cwd",
    "--uid": "uid",
    "--gid": "gid",
    "--uid-map": "id_map",
    "--hostname": "hostname",
    "--net": "network",
    "--landlock": "landlock",
}
_SWITCHES = (
    ("--inherit-env", "inherit_env", True),
    ("--no-cwd", "show_cwd", False),
    ("--git", "git", "write"),
    ("--keep-id", "keep_id", True),
    ("--pretend-chown", "pretend_chown", True),
)
_LISTS = {
    "--protect": "protect",
    "--unprotect": "unprotect",
    "--show-secret": "show_secrets",
    "--allow-degraded": "allow_degraded",
    "--publish": "publish",
}
_PORTS = {"--tcp-connect": "tcp_connect", "--tcp-bind": "tcp_bind"}
# Those of the output have a function of their own.
_LIMITS = {
    f"--{field.replace('_', '-')}": field
    for field in Limits.__value_fields__
    if field not in ("output", "ulimits")
}


def _id(word: str, field: str) -> int:
    if not word.isascii() or not word.isdigit() or len(word) > 10:
        hint = "write a number from 0 to 4294967294"
        raise PolicyError(f"{field}: not an id: {word!r}", field=field, value=word, hint=hint)
    return int(word)


def _variable(word: str) -> tuple[str, str | None]:
    name, equals, value = word.partition("=")
    return name, value if equals else None
