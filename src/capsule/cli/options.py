"""The flags of `capsule run`, `plan` and `policy show`.

One table says what there is; parsing and help read it. The standard argparse would need 6 ms to import
and build, of the 15 ms that the whole command may add to a bare interpreter's start.
"""

from __future__ import annotations

from capsule.base.errors import PolicyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.policy.toml.document import Document

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
        "--git": ("", "let it write to the working tree's git repository"),
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
        "--show-secret": ("NAME|all", "do not hide this one in a home that is shown"),
    },
    "identity": {
        "--keep-id": ("", "your own ids and names inside, instead of root's"),
        "--uid": ("N", "user id inside (0)"),
        "--gid": ("N", "group id inside (0)"),
        "--uid-map": ("KIND", "ids outside: caller, auto (all subuids), host-root"),
        "--hostname": ("NAME", "hostname inside (capsule)"),
        "--env": ("NAME[=VALUE]", "set a variable, or pass the caller's on; also -e"),
        "--inherit-env": ("", "pass the whole environment on"),
    },
    "limits and network": {
        "--timeout": ("TIME", "kill everything after this time"),
        "--cpu-time": ("TIME", "kill everything after this much CPU time"),
        "--idle": ("TIME", "kill everything that did nothing for this long"),
        "--output": ("SIZE", "kill everything after this much output"),
        "--memory": ("SIZE", "memory of all processes together; also -m"),
        "--swap": ("SIZE", "swap on top of that (0)"),
        "--cpus": ("N", "CPUs' worth of time, for instance 0.5"),
        "--cpu-weight": ("N", "share of contended CPUs; others have 100"),
        "--pids": ("N", "processes and threads at once (2048)"),
        "--file-size": ("SIZE", "of any one file"),
        "--open-files": ("N", "descriptors of each process"),
        "--ulimit": ("NAME=N[:HARD]", "another limit of setrlimit(2), of each process"),
        "--allow-degraded": ("LIMIT", "without cgroups: memory, pids, cpus, cpu-time"),
        "--net": ("KIND", "none (only a loopback) or host"),
        "--allow-net": ("HOST[:PORT]", "only this host: a name, *.name, address, CIDR"),
        "--publish": ("PORT:PORT", "of this host's loopback: of the capsule; also -p"),
        "--tcp-connect": ("PORT", "of the host's network, TCP to this port only"),
        "--tcp-bind": ("PORT", "TCP sockets bound to this port only"),
    },
    "system calls": {
        "--seccomp": ("PROFILE", "default, strict, debug, nest, off, FILE.json, groups"),
        "--allow-syscall": ("NAME", "allow this one, or a @group, too"),
        "--deny-syscall": ("NAME", "refuse this one, or a @group"),
        "--pretend-chown": ("", "chown answers 0 and does nothing"),
        "--landlock": ("ABI|off", "require this version of Landlock, or do without"),
    },
    "reports": {
        "--json": ("FILE", "write the whole result; - captures the output into it"),
        "--stats": ("", "memory, CPUs, processes: live on a terminal; in the end"),
        "--net-log": ("FILE", "lines of JSON about what was reached and refused"),
        "--raw": ("", "let output control the terminal, also where nobody types"),
        "--quiet": ("", "no message of Capsule's about the end; also -q"),
        "--verbose": ("", "say what is shown and how it ended; -v; -vv: each step"),
        "--help": ("", "show this text; also -h"),
    },
}
SHORT = {
    "-e": "--env",
    "-m": "--memory",
    "-p": "--publish",
    "-q": "--quiet",
    "-v": "--verbose",
    "-h": "--help",
}
FLAGS = {flag: takes for group in OPTIONS.values() for flag, (takes, _) in group.items()}

EXIT_STATUSES = """\
exit status: the command's own; 128+N: signal N; 124 timed out; 125 Capsule
failed; 126 cannot be executed; 127 not found; 2 usage. Sizes: 512K, 1G (1024),
10MB (of 1000). Times: 10ms, 1m30s, seconds. File options can be repeated.
"""


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
        """Return whether a switch was given."""
        return self.last(flag) is not None


def help_text(verb: str) -> str:
    """One screen."""
    lines = [f"usage: capsule {verb} [OPTIONS] [--] COMMAND [ARG...]", *option_lines()]
    return "\n".join(lines) + "\n" + EXIT_STATUSES


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
        if word == "-vv":
            rest[:0] = ["-v", "-v"]
            continue
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
