"""Docker's and OCI's seccomp files as a source of rules.

Where the format leaves something open, or its reference implementation has a hole, the reading here is
the stricter one: comparisons of 32-bit arguments see 32 bits; a number that is not in the table answers
ENOSYS whatever the default is; killing a thread kills the process; no capability is held.
"""

from __future__ import annotations

import errno
import os

from capsule.base.errors import PolicyError

from . import compare, numbers
from .rules import ALLOW, ERRNO, KILL, LOG, TRAP, Call, Case, Rules, errno_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

_ACTIONS = {
    "SCMP_ACT_ALLOW": ALLOW,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_KILL": KILL,
    "SCMP_ACT_KILL_PROCESS": KILL,
    "SCMP_ACT_KILL_THREAD": KILL,
    "SCMP_ACT_LOG": LOG,
    "SCMP_ACT_TRAP": TRAP,
}
_TOP = (
    "defaultAction defaultErrnoRet defaultErrno architectures archMap flags syscalls listenerPath "
    "listenerMetadata"
)
_RULE = "name names action errnoRet errno args comment includes excludes"
_ARGUMENT = "index value valueTwo op"
_CONDITION = "caps arches minKernel"
_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_GO = {"x86_64": ("amd64", "x86_64"), "aarch64": ("arm64", "aarch64")}
_LARGEST = 2**64 - 1


class _Reader:
    """The file, for the messages."""

    def __init__(self, path: str, arch: str) -> None:
        self.path = path
        self.arch = arch

    def error(self, key: str, what: str) -> PolicyError:
        message = f"{self.path}: {key}: {what}"
        hint = "correct the file; docs/seccomp.md says what of Docker's format is understood"
        return PolicyError(message, field="seccomp", value=self.path, hint=hint)

    def mapping(self, value: Any, key: str, known: str) -> dict[str, Any]:
        """An object without unknown keys."""
        if not isinstance(value, dict):
            raise self.error(key or "the file", "is not an object")
        for name in value:
            if name not in known.split():
                raise self.error(f"{key}.{name}" if key else name, "unknown key")
        return value

    def items(self, table: dict[str, Any], name: str, key: str) -> list[tuple[str, Any]]:
        """(Key, item) of a list that may be missing or null."""
        value = table.get(name)
        if value is None:
            return []
        where = f"{key}.{name}" if key else name
        if not isinstance(value, list):
            raise self.error(where, "is not a list")
        return [(f"{where}[{n}]", item) for n, item in enumerate(value)]

    def text(self, value: Any, key: str) -> str:
        if not isinstance(value, str):
            raise self.error(key, "is not text")
        return value

    def number(self, value: Any, key: str, most: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise self.error(key, f"is not a number from 0 to {most}")
        return value


def parse(document: bytes, path: str, arch: str) -> Rules:
    """The rules that a file means.

    Raises:
        PolicyError: it is none, or has a key or a value that is unknown: with the file and the key.
    """
    import json

    reader = _Reader(path, arch)
    try:
        content = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise reader.error("the file", f"is not JSON: {error}") from None
    top = reader.mapping(content, "", _TOP)
    _check_head(reader, top)
    default = _action(reader, top, "defaultAction", "defaultErrnoRet", "defaultErrno", "")
    found: dict[str, list[Case]] = {name: [] for name in numbers.every_name()}
    for key, item in reader.items(top, "syscalls", ""):
        _read_rule(reader, reader.mapping(item, key, _RULE), key, default, found)
    calls = [
        Call(name, (*cases, _last(default, cases)), f"refused by {path}", f"--allow-syscall {name}")
        for name, cases in sorted(found.items())
    ]
    return Rules(path, tuple(map(_tidy, calls)))


def _last(default: int, cases: Sequence[Case]) -> Case:
    """Return what holds where no rule fits; what they looked at tells such refusals from each other."""
    looked_at = (case.argument for case in cases if case.argument is not None)
    return Case(default, (), _is_told(default), next(looked_at, None))


def _tidy(call: Call) -> Call:
    """Without cases that come after one that always fits."""
    end = next(at for at, case in enumerate(call.cases) if not case.tests)
    call = call.replace(cases=call.cases[: end + 1])
    return Call(call.name, call.cases, "allowed by the file") if call.allowed else call


def _check_head(reader: _Reader, top: dict[str, Any]) -> None:
    for name in ("listenerPath", "listenerMetadata"):
        if top.get(name):
            raise reader.error(name, "nothing is told to another program")
    for key, flag in reader.items(top, "flags", ""):
        if not reader.text(flag, key).startswith("SECCOMP_FILTER_FLAG_"):
            raise reader.error(key, "unknown flag")
    names = [reader.text(item, key) for key, item in reader.items(top, "architectures", "")]
    for key, item in reader.items(top, "archMap", ""):
        table = reader.mapping(item, key, "architecture subArchitectures")
        names.append(reader.text(table.get("architecture"), f"{key}.architecture"))
    if names and _ARCHITECTURES[reader.arch] not in names:
        raise reader.error("architectures", f"the file is not for {reader.arch}")


def _action(reader: _Reader, table: dict[str, Any], name: str, number: str, word: str, key: str) -> int:
    prefix = f"{key}." if key else ""
    text = reader.text(table.get(name), prefix + name)
    if text in ("SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE"):
        raise reader.error(prefix + name, f"{text}: there is no other program to ask")
    if text not in _ACTIONS:
        raise reader.error(prefix + name, f"unknown action {text}")
    action = _ACTIONS[text]
    if action != ERRNO:
        return action
    if table.get(number) is not None:
        return ERRNO | reader.number(table[number], prefix + number, 4095)
    named = getattr(errno, reader.text(table.get(word) or "EPERM", prefix + word), None)
    if not isinstance(named, int):
        raise reader.error(prefix + word, "unknown error")
    return ERRNO | named


def _is_told(action: int) -> bool:
    """An absent call has a way around; whatever else is refused is worth telling."""
    return errno_of(action) not in (None, 0, errno.ENOSYS)


# --- rules ----------------------------------------------------------------------------------


def _read_rule(
    reader: _Reader,
    rule: dict[str, Any],
    key: str,
    default: int,
    found: dict[str, list[Case]],
) -> None:
    """Add the cases of one rule to those of its calls."""
    action = _action(reader, rule, "action", "errnoRet", "errno", key)
    names = _rule_names(reader, rule, key)
    arguments = _arguments(reader, rule, key)
    if not _applies(reader, rule, key):
        return
    for name in names:
        if name in found:
            first = arguments[0][0] if arguments else None
            cases = compare.cases(name, arguments)
            found[name] += [Case(action, tests, _is_told(action), first) for tests in cases]
        elif name not in numbers.foreign_names() and default in (ALLOW, LOG) and action != default:
            # Elsewhere it stays refused, whatever it is.
            raise reader.error(key, f"unknown system call {name}")


def _rule_names(reader: _Reader, rule: dict[str, Any], key: str) -> list[str]:
    names = [reader.text(item, where) for where, item in reader.items(rule, "names", key)]
    if rule.get("name") is not None:
        names.append(reader.text(rule["name"], f"{key}.name"))
    if not names:
        raise reader.error(key, "names no system call")
    return names


def _arguments(reader: _Reader, rule: dict[str, Any], key: str) -> list[compare.Comparison]:
    found: list[compare.Comparison] = []
    for where, item in reader.items(rule, "args", key):
        table = reader.mapping(item, where, _ARGUMENT)
        op = reader.text(table.get("op"), f"{where}.op")
        if op not in compare.OPERATORS:
            raise reader.error(f"{where}.op", f"unknown operator {op}")
        index = reader.number(table.get("index"), f"{where}.index", 5)
        values = [
            reader.number(table.get(n, 0), f"{where}.{n}", _LARGEST) for n in ("value", "valueTwo")
        ]
        found.append((index, op, values[0], values[1]))
    return found


def _applies(reader: _Reader, rule: dict[str, Any], key: str) -> bool:
    conditions: dict[str, list[bool]] = {}
    for name in ("includes", "excludes"):
        where = f"{key}.{name}"
        table = reader.mapping(rule.get(name) or {}, where, _CONDITION)
        conditions[name] = list(_conditions(reader, table, where))
    return all(conditions["includes"]) and not any(conditions["excludes"])


def _conditions(reader: _Reader, table: dict[str, Any], key: str) -> Iterator[bool]:
    """Yield whether each condition that is there holds."""
    if [reader.text(item, where) for where, item in reader.items(table, "caps", key)]:
        yield False
    arches = [reader.text(item, where) for where, item in reader.items(table, "arches", key)]
    if arches:
        yield any(name in arches for name in _GO[reader.arch])
    if table.get("minKernel"):
        where = f"{key}.minKernel"
        wanted = _version(reader.text(table["minKernel"], where))
        if len(wanted) < 2:
            raise reader.error(where, "is not a version such as 4.8")
        yield _version(os.uname().release) >= wanted


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version; nothing of what is none."""
    words = text.replace("-", ".").split(".")[:2]
    fits = all(word.isdecimal() and len(word) < 10 for word in words)
    return tuple(map(int, words)) if fits else ()
