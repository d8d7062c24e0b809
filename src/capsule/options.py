"""The flags of `capsule run` and `capsule plan`, and the policy that they come to."""

from __future__ import annotations

import argparse
import functools

from .errors import PolicyError
from .policy import IdMap, Limits, Mount, Network, Policy, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

RUN_USAGE = "capsule {verb} [OPTIONS] [--] COMMAND [ARG...]"
EXIT_STATUSES = """\
exit status: the command's own; 128+N if signal N ended it; 124 timed out;
125 Capsule failed, the command did not run; 126 found but cannot be executed;
127 not found; 2 usage. Sizes: 512K, 64M, 1G (1024-based), 10MB (1000-based).
Times: 10ms, 2.5s, 1m30s, plain seconds."""


class _Parser(argparse.ArgumentParser):
    """Errors in one message, like all others."""

    def error(self, message: str) -> NoReturn:
        raise PolicyError(message, hint=f"`{self.prog} --help` lists the options")


def _parser(verb: str) -> _Parser:
    parser = _Parser(
        prog=f"capsule {verb}",
        usage=RUN_USAGE.format(verb=verb),
        epilog=EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    _add_files(parser.add_argument_group("files"))
    _add_identity(parser.add_argument_group("identity"))
    _add_limits(parser.add_argument_group("limits and network"))
    _add_reports(parser.add_argument_group("reports"))
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _add_files(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    for flag, (metavar, text, _) in MOUNTS.items():
        # One list for all of them: their order counts.
        add(
            flag,
            metavar=metavar,
            help=text,
            dest="mounts",
            action="append",
            default=[],
            type=functools.partial(_keep_kind, flag),
        )
    add("--root", metavar="DIR", help="a directory as the whole root")
    add("--chdir", metavar="DIR", help="working directory inside")


def _add_identity(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--uid", metavar="N", default="0", help="user id inside (0)")
    add("--gid", metavar="N", default="0", help="group id inside (0)")
    add(
        "--uid-map",
        metavar="KIND",
        default="caller",
        choices=[kind.value for kind in IdMap],
        help="ids outside: caller, auto (all of /etc/subuid), host-root",
    )
    add("--hostname", metavar="NAME", default="capsule", help="hostname inside (capsule)")
    add(
        "-e",
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="set a variable, or pass the caller's on",
    )
    add("--inherit-env", action="store_true", help="pass the whole environment on")


def _add_limits(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--timeout", metavar="TIME", help="kill everything after this time")
    add("--output", metavar="SIZE", help="kill everything after this much output")
    add(
        "--net",
        metavar="KIND",
        default="none",
        choices=[kind.value for kind in Network],
        help="none (loopback only) or host",
    )


def _add_reports(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--json", metavar="FILE", help="write the whole result; - captures the output into it")
    add("-q", "--quiet", action="store_true", help="no message of Capsule's about the end")
    add("-v", "--verbose", action="store_true", help="print the steps and how it ended")
    add("-h", "--help", action="help", help="show this text")


def parse(verb: str, words: list[str]) -> argparse.Namespace:
    """The options of a verb and, under ``command``, the command's words."""
    options = _parser(verb).parse_args(words)
    if options.command[:1] == ["--"]:
        del options.command[0]
    if not options.command:
        raise PolicyError("no command given", hint=f"`capsule {verb} --help` shows the usage")
    return options


def to_policy(options: argparse.Namespace) -> Policy:
    """What the options ask for."""
    return Policy(
        mounts=tuple(MOUNTS[flag][2](word) for flag, word in options.mounts),
        root=options.root,
        network=options.net,
        hostname=options.hostname,
        uid=_id(options.uid, "uid"),
        gid=_id(options.gid, "gid"),
        id_map=options.uid_map,
        extra_env=dict(map(_variable, options.env)),
        inherit_env=options.inherit_env,
        cwd=options.chdir,
        limits=_limits(options),
    )


def _limits(options: argparse.Namespace) -> Limits:
    """Output that goes straight through is counted only where a limit was asked for."""
    captured = Limits().output if options.json == "-" else None
    return Limits(options.timeout, captured if options.output is None else options.output)


def _split(word: str) -> tuple[str, str | None]:
    """PATH[:AT], where AT is absolute: a colon before anything else belongs to the path."""
    path, colon, at = word.rpartition(":/")
    return (path, f"/{at}") if colon and path else (word, None)


def _ro(word: str) -> Mount:
    return Mount.read_only(*_split(word))


def _rw(word: str) -> Mount:
    return Mount.read_write(*_split(word))


def _tmpfs(word: str) -> Mount:
    at, colon, size = word.rpartition(":")
    if not colon or "/" in size:
        return Mount.tmpfs(word)
    return Mount.tmpfs(at, parse_size(size, "--tmpfs"))


def _keep_kind(flag: str, word: str) -> tuple[str, str]:
    return flag, word


# flag -> (what it takes, help, the mount it makes)
MOUNTS: dict[str, tuple[str, str, Callable[[str], Mount]]] = {
    "--ro": ("PATH[:AT]", "show a file or directory read-only", _ro),
    "--rw": ("PATH[:AT]", "show one writable", _rw),
    "--tmpfs": ("AT[:SIZE]", "an empty directory in memory (64M)", _tmpfs),
}


def _id(word: str, field: str) -> int:
    if not word.isascii() or not word.isdigit():
        hint = "write a number from 0 to 4294967294"
        raise PolicyError(f"{field}: not an id: {word!r}", field=field, value=word, hint=hint)
    return int(word)


def _variable(word: str) -> tuple[str, str | None]:
    name, equals, value = word.partition("=")
    return name, value if equals else None
