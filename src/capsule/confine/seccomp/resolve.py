"""Specifications to rules: the built-in profiles, what is allowed and denied beside them."""

from __future__ import annotations

import errno

from capsule.base.errors import PolicyError

from . import groups, numbers, table
from .rules import ALLOW, ERRNO, LOG, Call, Case, Rules, changed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .rules import Test
    from .spec import Seccomp

    Ids = tuple[int, int]
    # (calls, rule, the argument that matters, profile or option that allows more, reason)
    Row = tuple[str, str, int | None, str, str]

_WORD_MASK = 0xFFFFFFFF

# The launcher itself makes these after the filter is in.
NEEDED = ("execve", "exit_group", "write")


def resolve(
    spec: Seccomp,
    arch: str,
    document: bytes | None = None,
    *,
    ids: Ids | None = (0, 0),
    pretend_chown: bool = False,
) -> Rules:
    """The rules that a specification means on an architecture.

    Args:
        spec: what is asked for.
        arch: the architecture, as uname(2) calls it.
        document: the content of the file that `spec.profile` names, if it names one.
        ids: the command's uid and gid if they are the only ones that there are, else None.
        pretend_chown: the chown family answers 0 and does nothing.

    Raises:
        PolicyError: a name is unknown, or what is asked for cannot be meant.
    """
    default = Rules("default", default_calls(ids))
    rules = _base(spec, arch, document, default)
    _refuse_both(spec)
    if pretend_chown:
        rules = changed(rules, _pretended, groups.members("@chown"))
    # The name of a call says more than that of a group.
    rules = _allow_groups(rules, filter(_is_group, spec.allow), default)
    rules = _deny(rules, _expanded(filter(_is_group, spec.deny)))
    rules = _lift(rules, (word for word in spec.allow if not _is_group(word)))
    rules = _deny(rules, _expanded(w for w in spec.deny if not _is_group(w)))
    _require(rules)
    return rules


def profile(name: str, ids: Ids | None = (0, 0)) -> Rules:
    """A built-in profile, as it is.

    Raises:
        PolicyError: there is none of this name.
    """
    return _profile(name, Rules("default", default_calls(ids)))


def _profile(name: str, default: Rules) -> Rules:
    """The default with what a profile changes of it."""
    if name not in table.PROFILES or name == "off":
        known = ", ".join(table.PROFILES)
        hint = f"there are {known}; or name a file (with a slash in it, or ending in .json), or groups"
        raise PolicyError(f"seccomp: no such profile: {name}", field="seccomp", value=name, hint=hint)
    calls = {call.name: call for call in default.calls}
    calls |= {call.name: call for call in _checked(table.CHANGED.get(name, ()))}
    return Rules(name, tuple(calls[call] for call in sorted(calls)))


def default_calls(ids: Ids | None = (0, 0)) -> tuple[Call, ...]:
    """The table, row by row, sorted by name."""
    words = table.DECIDING.split()
    deciding = dict(zip(words[::2], words[1::2], strict=True))
    calls = [Call(name, (Case(ALLOW),), why) for why, names in table.ALLOWED for name in names.split()]
    for number, report, remedy, reason, names in table.REFUSED:
        for name in names.split():
            argument = int(deciding[name]) if name in deciding else None
            case = Case(_refusal(number), (), report, argument)
            calls.append(Call(name, (case,), reason, _remedy(name, remedy)))
    calls += _checked(table.CHECKED, ids)
    return tuple(sorted(calls, key=lambda call: call.name))


def _checked(rows: Iterable[Row], ids: Ids | None = None) -> Iterator[Call]:
    """The calls of rows with a rule."""
    for names, rule, deciding, remedy, reason in rows:
        for name in names.split():
            yield _call(name, rule, deciding, remedy, reason, ids)


def _call(
    name: str, rule: str, deciding: int | None, remedy: str, reason: str, ids: Ids | None
) -> Call:
    if ids is None and "UID" in rule:
        return Call(name, (Case(ALLOW),), "any of the mapped ids")
    uid, gid = ids or (0, 0)
    call = Call(
        name, parse_rule(rule.replace("UID", str(uid)).replace("GID", str(gid)), deciding), reason
    )
    return call if call.allowed else call.replace(remedy=_remedy(name, remedy))


def _remedy(name: str, by: str) -> str:
    """The options that allow a call: its own, and a profile; or an option that stands for it."""
    if by.startswith("--"):
        return by
    option = f"--allow-syscall {name}"
    return f"{option} or --seccomp {by}" if by else option


def _pretended(call: Call) -> Call:
    return Call(call.name, (Case(ERRNO),), "answers 0 and does nothing, as was asked for")


# --- the text of a rule ---------------------------------------------------------------------


def parse_rule(text: str, deciding: int | None = None) -> tuple[Case, ...]:
    """The cases that a rule of the table means; argument `deciding` tells refusals apart."""
    return tuple(_case(words.split(), deciding) for words in text.split(";"))


def _case(words: Sequence[str], deciding: int | None) -> Case:
    quiet = words[0] == "quiet"
    action, _, argument = words[quiet].partition("@")
    tests = tuple(map(_test, words[1 + quiet :]))
    if action == "allow":
        return Case(ALLOW, tests)
    return Case(_refusal(action), tests, not quiet, int(argument) if argument else deciding)


def _test(text: str) -> Test:
    left, _, right = text.partition("=")
    argument, _, mask = left.partition("&")
    bits = int(mask.lstrip("~") or "-1", 0)
    if mask.startswith("~"):
        bits = ~bits
    return int(argument), bits & _WORD_MASK, int(right, 0)


def _refusal(name: str) -> int:
    return ERRNO | int(getattr(errno, name))


# --- what is allowed and denied beside ------------------------------------------------------


def _base(spec: Seccomp, arch: str, document: bytes | None, default: Rules) -> Rules:
    if document is not None:
        from . import oci

        return oci.parse(document, spec.profile, arch)
    first = spec.profile.split()[:1]
    if first and (first[0].startswith(("@", "~")) or len(spec.profile.split()) > 1):
        return _from_groups(spec.profile.split(), default)
    return _profile(spec.profile, default)


def _from_groups(words: Sequence[str], default: Rules) -> Rules:
    """A list as systemd's: the first word says whether it begins with nothing or with the default."""
    rules = default
    if not words[0].startswith("~"):
        # As there, what every program needs is in it.
        listed = _expanded(["@default", *(w for w in words if w[0] != "~")])
        rules = _only(rules, frozenset(listed))
    for word in words:
        if word.startswith("~"):
            rules = _deny(rules, _names(word[1:]))
        else:
            rules = _allow_groups(rules, [word], default) if _is_group(word) else _lift(rules, [word])
    return rules.replace(source=" ".join(words))


def _allow_groups(rules: Rules, words: Iterable[str], default: Rules) -> Rules:
    """Allow the calls of these groups, as far as the table's rule for each goes."""
    as_ever = {call.name: call for call in default.calls}
    checked = {name for names, *_ in table.CHECKED for name in names.split()}

    def allow(call: Call) -> Call:
        if call.name not in checked:
            return _plain(call)
        return as_ever[call.name] if _refused(call) else call

    return changed(rules, allow, _expanded(words))


def _lift(rules: Rules, names: Iterable[str]) -> Rules:
    return changed(rules, _plain, _expanded(names))


def _plain(call: Call) -> Call:
    return Call(call.name, (Case(ALLOW),), "asked for")


def _deny(rules: Rules, names: Iterable[str]) -> Rules:
    """Refuse what is not refused yet; what is keeps its errno, which programs may rely on."""

    def refuse(call: Call) -> Call:
        if _refused(call):
            return call
        return _denied(call.name, "denied by request", "leaving out --deny-syscall")

    return changed(rules, refuse, names)


def _denied(name: str, reason: str, remedy: str) -> Call:
    return Call(name, (Case(ERRNO | errno.EPERM, (), True),), reason, f"{remedy} {name}")


def _refused(call: Call) -> bool:
    return all(case.action not in (ALLOW, LOG, ERRNO) for case in call.cases)


def _only(rules: Rules, listed: frozenset[str]) -> Rules:
    def keep(call: Call) -> Call:
        if call.name in listed or _refused(call):
            return call
        return _denied(call.name, "not in the list", "--allow-syscall")

    return rules.replace(calls=tuple(map(keep, rules.calls)))


def _expanded(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for word in words for name in _names(word))


def _is_group(word: str) -> bool:
    return word.startswith("@")


def _names(word: str) -> frozenset[str]:
    """The calls that a word names: one, or those of a group."""
    if _is_group(word) and word in groups.GROUPS:
        return groups.members(word)
    if word in numbers.every_name():
        return frozenset((word,))
    raise _unknown(word)


def _unknown(word: str) -> PolicyError:
    import difflib

    what = "group of system calls" if _is_group(word) else "system call"
    known = groups.GROUPS if _is_group(word) else sorted(numbers.every_name())
    near = difflib.get_close_matches(word, known, 3)
    hint = f"did you mean {', '.join(near)}?" if near else "docs/seccomp.md lists calls and groups"
    return PolicyError(f"seccomp: no such {what}: {word}", field="seccomp", value=word, hint=hint)


def _refuse_both(spec: Seccomp) -> None:
    for word in spec.allow:
        if word in spec.deny:
            message = f"seccomp: {word} is both allowed and denied"
            hint = "leave one of the two out"
            raise PolicyError(message, field="seccomp", value=word, hint=hint)


def _require(rules: Rules) -> None:
    for name in NEEDED:
        if not rules.call(name).allowed:
            hint = f"allow {name}: nothing can be started without it"
            message = f"seccomp: {rules.source} refuses {name}, which starts the command"
            raise PolicyError(message, field="seccomp", value=name, hint=hint)
