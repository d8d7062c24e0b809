"""The flags of `capsule run` and `capsule plan`, and the policy that they come to.

One table says what there is; parsing and help read it. The standard argparse would need 6 ms to import
and build, of the 15 ms that the whole command may add to a bare interpreter's start.
"""

from __future__ import annotations

from .errors import PolicyError
from .policy import Limits, Mount, Policy, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# group -> flag -> (what it takes, or "" for a switch; help)
OPTIONS = {
    "files": {
        "--ro": ("PATH[:AT]", "show a file or directory of the host, read-only"),
        "--rw": ("PATH[:AT]", "show one writable"),
        "--tmpfs": ("AT[:SIZE]", "an empty directory in memory (64M)"),
        "--root": ("DIR", "a directory as the whole root, read-only"),
        "--chdir": ("DIR", "working directory inside"),
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
Times: 10ms, 2.5s, 1m30s, plain seconds. --ro, --rw and --tmpfs can be repeated.
"""


class Options:
    """The options of a verb and the command's words.

    Attributes:
        given: (flag, value) in their order; the value of a switch is "".
        command: the rest.
    """

    def __init__(self, given: list[tuple[str, str]], command: list[str]) -> None:
        self.given = given
        self.command = command

    def last(self, flag: str) -> str | None:
        """The value that counts of an option that was given, perhaps more than once."""
        return next((value for name, value in reversed(self.given) if name == flag), None)

    def has(self, flag: str) -> bool:
        """Whether a switch was given."""
        return self.last(flag) is not None


def help_text(verb: str) -> str:
    """One screen."""
    lines = [f"usage: capsule {verb} [OPTIONS] [--] COMMAND [ARG...]"]
    for group, flags in OPTIONS.items():
        lines.append(f"\n{group}:")
        lines += [f"  {f'{flag} {takes}':21} {text}" for flag, (takes, text) in flags.items()]
    return "\n".join(lines) + "\n\n" + EXIT_STATUSES


def parse(verb: str, words: list[str]) -> Options:
    """Take the options from the front of the words; the first other word begins the command.

    Raises:
        PolicyError: an option is unknown, or lacks its value or has one too many.
    """
    given: list[tuple[str, str]] = []
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        flag, value = _split_flag(verb, word)
        if FLAGS[flag] and value is None:
            if not rest:
                raise _usage(verb, f"{flag} needs a value: {FLAGS[flag]}")
            value = rest.pop(0)
        given.append((flag, value or ""))
    options = Options(given, rest)
    if not rest and not options.has("--help"):
        raise _usage(verb, "no command given")
    return options


def _split_flag(verb: str, word: str) -> tuple[str, str | None]:
    """(Long flag, value in the same word or None): --ro=/x, -eNAME=value."""
    if word.startswith("--"):
        name, equals, text = word.partition("=")
        flag, value = name, text if equals else None
    else:
        flag, value = SHORT.get(word[:2], word), word[2:] or None
    if flag not in FLAGS:
        raise _usage(verb, f"unknown option {word}")
    if value is not None and not FLAGS[flag]:
        raise _usage(verb, f"{flag} takes no value")
    return flag, value


def _usage(verb: str, message: str) -> PolicyError:
    return PolicyError(message, hint=f"`capsule {verb} --help` lists the options")


def to_policy(options: Options) -> Policy:
    """What the options ask for.

    Raises:
        PolicyError: a value cannot be meant.
    """
    fields: dict[str, object] = {
        field: value for flag, field in _FIELDS.items() if (value := options.last(flag)) is not None
    }
    for field in ("uid", "gid"):
        if field in fields:
            fields[field] = _id(str(fields[field]), field)
    return Policy(
        mounts=tuple(_MOUNTS[flag](word) for flag, word in options.given if flag in _MOUNTS),
        extra_env=dict(_variable(word) for flag, word in options.given if flag == "--env"),
        inherit_env=options.has("--inherit-env"),
        limits=_limits(options),
        **fields,
    )


def _limits(options: Options) -> Limits:
    """Output that goes straight through is counted only where a limit was asked for."""
    unasked = Limits().output if options.last("--json") == "-" else None
    output = options.last("--output")
    return Limits(options.last("--timeout"), unasked if output is None else output)


def _split_at(word: str) -> tuple[str, str | None]:
    """PATH[:AT], where AT is absolute: a colon before anything else belongs to the path."""
    path, colon, at = word.rpartition(":/")
    return (path, f"/{at}") if colon and path else (word, None)


def _tmpfs(word: str) -> Mount:
    at, colon, size = word.rpartition(":")
    if not colon or "/" in size:
        return Mount.tmpfs(word)
    return Mount.tmpfs(at, parse_size(size, "--tmpfs"))


_MOUNTS: dict[str, Callable[[str], Mount]] = {
    "--ro": lambda word: Mount.read_only(*_split_at(word)),
    "--rw": lambda word: Mount.read_write(*_split_at(word)),
    "--tmpfs": _tmpfs,
}
_FIELDS = {
    "--root": "root",
    "--chdir": "cwd",
    "--uid": "uid",
    "--gid": "gid",
    "--uid-map": "id_map",
    "--hostname": "hostname",
    "--net": "network",
}


def _id(word: str, field: str) -> int:
    if not word.isascii() or not word.isdigit() or len(word) > 10:
        hint = "write a number from 0 to 4294967294"
        raise PolicyError(f"{field}: not an id: {word!r}", field=field, value=word, hint=hint)
    return int(word)


def _variable(word: str) -> tuple[str, str | None]:
    name, equals, value = word.partition("=")
    return name, value if equals else None
