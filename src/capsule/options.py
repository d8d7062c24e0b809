"""The flags of `capsule run`, `plan` and `policy show`, and the policy that they come to.

One table says what there is; parsing and help read it. The standard argparse would need 6 ms to import
and build, of the 15 ms that the whole command may add to a bare interpreter's start.
"""

from __future__ import annotations

import os

from .errors import PolicyError
from .mounts import Mount
from .policy import Limits, Policy
from .quantities import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .errors import CapsuleError
    from .toml_text import Document

# group -> flag -> (what it takes, or "" for a switch; help)
OPTIONS = {
    "files": {
        "--ro": ("PATH[:AT]", "show a file or directory of the host, read-only"),
        "--rw": ("PATH[:AT]", "show one writable"),
        "--overlay": ("PATH[:AT]", "show a directory whose changes stay private"),
        "--tmpfs": ("AT[:SIZE]", "an empty directory in memory (64M)"),
        "--hide": ("PATH", "cover a path, or all that match a pattern ('**/.env')"),
        "--symlink": ("TARGET:AT", "a symbolic link"),
        "--dir": ("AT", "an empty directory"),
        "--file": ("SRC:AT", "a private copy of a file of the host"),
        "--dev": ("NODE", "show a device node of the host"),
        "--root": ("DIR", "a directory as the whole root, read-only"),
        "--system": ("KIND", "of the host's programs: all, or only the needed"),
        "--no-cwd": ("", "do not show the working directory unasked"),
        "--chdir": ("DIR", "working directory inside"),
    },
    "of the file option right before": {
        "--noexec": ("", "nothing in it can be executed"),
        "--optional": ("", "leave it out if it is missing on the host"),
        "--size": ("SIZE", "of an overlay (512M) or a tmpfs"),
        "--keep": ("DIR", "where an overlay keeps its changes"),
    },
    "policy": {
        "--profile": ("NAME|FILE", "begin with this; `capsule policy list`"),
        "--protect": ("NAME", "read-only in every writable tree, besides the usual"),
        "--unprotect": ("NAME|all", "leave this one writable"),
    },
    "identity": {
        "--uid": ("N", "user id inside (0)"),
        "--gid": ("N", "group id inside (0)"),
        "--uid-map": ("KIND", "ids outside: caller, auto (all subuids), host-root"),
        "--hostname": ("NAME", "hostname inside (capsule)"),
        "--env": ("NAME[=VALUE]", "set a variable, or pass the caller's on; also -e"),
        "--inherit-env": ("", "pass the whole environment on"),
    },
    "limits and network": {
        "--timeout": ("TIME", "kill everything after this time"),
        "--output": ("SIZE", "kill everything after this much output"),
        "--net": ("KIND", "none (only a loopback) or host"),
    },
    "reports": {
        "--json": ("FILE", "write the whole result; - captures the output into it"),
        "--quiet": ("", "no message of Capsule's about the end; also -q"),
        "--verbose": ("", "print the steps and how it ended; also -v"),
        "--help": ("", "show this text; also -h"),
    },
}
SHORT = {"-e": "--env", "-q": "--quiet", "-v": "--verbose", "-h": "--help"}
FLAGS = {flag: takes for group in OPTIONS.values() for flag, (takes, _) in group.items()}

EXIT_STATUSES = """\
exit status: the command's own; 128+N if signal N ended it; 124 timed out;
125 Capsule failed, the command did not run; 126 found but cannot be executed;
127 not found; 2 usage. Sizes: 512K, 64M, 1G (1024-based), 10MB (1000-based).
Times: 10ms, 2.5s, 1m30s, plain seconds. File options can be repeated.
"""

# A file of this name in the working directory may only tighten; see `found`.
FOUND_FILE = "capsule.toml"


class Options:
    """The options of a verb and the command's words.

    Attributes:
        given: (flag, value) in their order; the value of a switch is "".
        command: the rest.
        documents: the files that were read for them, once that is done.
    """

    def __init__(self, given: list[tuple[str, str]], command: list[str]) -> None:
        self.given = given
        self.command = command
        self.documents: list[Document] = []

    def last(self, flag: str) -> str | None:
        """The value that counts of an option that was given, perhaps more than once."""
        return next((value for name, value in reversed(self.given) if name == flag), None)

    def all(self, flag: str) -> tuple[str, ...]:
        """The values of an option that adds up, in their order."""
        return tuple(value for name, value in self.given if name == flag)

    def has(self, flag: str) -> bool:
        """Whether a switch was given."""
        return self.last(flag) is not None


def help_text(verb: str) -> str:
    """One screen."""
    lines = [f"usage: capsule {verb} [OPTIONS] [--] COMMAND [ARG...]", "", *option_lines()]
    return "\n".join(lines) + "\n\n" + EXIT_STATUSES


def option_lines() -> list[str]:
    """All options in their groups, one a line."""
    lines = []
    for group, flags in OPTIONS.items():
        lines.append(f"{group}:")
        lines += [f"  {f'{flag} {takes}':21} {text}" for flag, (takes, text) in flags.items()]
    return lines


def parse(verb: str, words: list[str]) -> Options:
    """Take the options from the front of the words; the first other word begins the command.

    Raises:
        PolicyError: an option is unknown, or lacks its value or has one too many.
    """
    options = parse_flags(verb, words, FLAGS)
    if not options.command and not options.has("--help"):
        raise usage_error(verb, "no command given")
    return options


def parse_flags(verb: str, words: list[str], flags: dict[str, str]) -> Options:
    """The same of any table of flags, where a command may be missing."""
    given: list[tuple[str, str]] = []
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        flag, value = _split_flag(verb, word, flags)
        if flags[flag] and value is None:
            if not rest:
                raise usage_error(verb, f"{flag} needs a value: {flags[flag]}")
            value = rest.pop(0)
        given.append((flag, value or ""))
    return Options(given, rest)


def _split_flag(verb: str, word: str, flags: dict[str, str]) -> tuple[str, str | None]:
    """(Long flag, value in the same word or None): --ro=/x, -eNAME=value."""
    if word.startswith("--"):
        name, equals, text = word.partition("=")
        flag, value = name, text if equals else None
    else:
        flag, value = SHORT.get(word[:2], word), word[2:] or None
    if flag not in flags:
        raise usage_error(verb, f"unknown option {word}")
    if value is not None and not flags[flag]:
        raise usage_error(verb, f"{flag} takes no value")
    return flag, value


def usage_error(verb: str, message: str) -> PolicyError:
    """A command line that makes no sense, and where it says what would."""
    return PolicyError(message, hint=f"`capsule {verb} --help` lists the options")


# --- the policy ---------------------------------------------------------------------------------


def effective(options: Options, *, guarded: bool = True) -> tuple[Policy, str | None]:
    """What the options ask for, tightened by the working directory's capsule.toml; and a note on that.

    Args:
        options: the options.
        guarded: whether the profile's own file is protected, as it is where something runs.

    Raises:
        PolicyError: a value cannot be meant, or that file would loosen something.
    """
    policy = to_policy(options)
    if guarded and options.last("--profile") is not None:
        policy = _guard_profile(options, policy)
    try:
        # One call that fails is all that a run without the file pays.
        os.stat(FOUND_FILE, follow_symlinks=False)
    except (FileNotFoundError, PermissionError):
        return policy, None  # a directory that cannot be searched has nothing to say
    except OSError as error:
        hint = "remove it, or make it a regular file that you may read"
        message = f"{FOUND_FILE}: cannot be read: {error.strerror}"
        raise PolicyError(message, field="profile", value=FOUND_FILE, hint=hint) from None
    from . import found

    named = options.last("--profile") or ""
    document = found.read(FOUND_FILE, named if is_file_name(named) else None)
    if document is None:
        return policy, None
    options.documents.append(document)
    return found.tighten_by(policy, document), found.note_on(document)


def place_error(options: Options, error: CapsuleError) -> None:
    """Say in the error where a value of a profile stands, if it is about one."""
    if options.documents:
        from . import profile

        overridden = {field for flag, field in _FIELDS.items() if options.has(flag)}
        profile.place_error(error, options.documents, overridden)


def to_policy(options: Options) -> Policy:
    """What the options ask for, on top of the profile.

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
    for flag, field in _LISTS.items():
        changes[field] = (*getattr(base, field), *options.all(flag))
    variables = dict(base.extra_env) | dict(map(_variable, options.all("--env")))
    return base.replace(
        mounts=(*base.mounts, *_mounts(options)),
        extra_env=variables,
        limits=_limits(options, base.limits, output),
        **changes,
    )


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
        from . import profiles

        return profiles.builtin(names[0]), False
    from . import profile

    document = profile.open_document(names[0])
    options.documents.append(document)
    policy = profile.policy_of(document)
    return policy, "output" in document.data.get("limits", ())


def is_file_name(word: str) -> bool:
    """Whether a --profile is a file, and not a built-in one's name."""
    return "/" in word or word.endswith(".toml")


def _guard_profile(options: Options, policy: Policy) -> Policy:
    """The command must not write the policy of the next run."""
    name = options.last("--profile") or ""
    if not is_file_name(name):
        return policy
    from . import profile

    return profile.guarded(policy, name)


def _limits(options: Options, base: Limits, output_is_said: bool) -> Limits:
    """Output that goes straight through is counted only where a limit was asked for."""
    output: int | str | None = options.last("--output")
    if output is None:
        counted = output_is_said or options.last("--json") == "-"
        output = base.output if counted else None
    timeout = options.last("--timeout")
    return base.replace(timeout=base.timeout if timeout is None else timeout, output=output)


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
}
_SWITCHES = (("--inherit-env", "inherit_env", True), ("--no-cwd", "show_cwd", False))
_LISTS = {"--protect": "protect", "--unprotect": "unprotect"}


def _id(word: str, field: str) -> int:
    if not word.isascii() or not word.isdigit() or len(word) > 10:
        hint = "write a number from 0 to 4294967294"
        raise PolicyError(f"{field}: not an id: {word!r}", field=field, value=word, hint=hint)
    return int(word)


def _variable(word: str) -> tuple[str, str | None]:
    name, equals, value = word.partition("=")
    return name, value if equals else None
