"""From what is asked for to the program that a run carries.

The programs of the built-in profiles are shipped as files, made from the table by
``pytest tests/unit/seccomp --update-golden``: such a run imports neither the table nor the compiler.
What differs from them is compiled here, in some 3 ms, once for each process.
"""

from __future__ import annotations

import os
import stat

from capsule.base.descriptors import read_file
from capsule.base.errors import HostError, InternalError, PolicyError
from capsule.base.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .rules import Rules
    from .spec import Seccomp

    Ids = tuple[int, int]

BUILT_IN = ("default", "strict", "debug", "nest")
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "built_in")
# What stands in a shipped program for the command's uid and gid.
UID, GID = 0xC0DE0001, 0xC0DE0002
_LARGEST_DOCUMENT = 1 << 20
# Of calls that a file or a list opens, so many are named.
_NAMED = 8

OFF = "off: every system call is allowed"
_NEST = "namespaces can be made inside, with about three times as much of the kernel within reach"
_NO_LISTENER = "the host gives no listener: a filter around Capsule has one, or the kernel has none"
_NO_SENDMSG = "the filter refuses sendmsg, which hands the listener over"


class Request(Value):
    """All that decides how a filter comes out.

    Attributes:
        spec: what was asked for.
        arch: the architecture, as uname(2) calls it.
        ids: the command's uid and gid if they are the only ones that there are, else None.
        pretend_chown: the chown family answers 0 and does nothing.
        document: the content of the file that the profile names, or None.
    """

    spec: Seccomp
    arch: str
    ids: Ids | None = (0, 0)
    pretend_chown: bool = False
    document: bytes | None = None

    def rules(self) -> Rules:
        """Return what it means.

        Raises:
            PolicyError: the specification or the file is wrong.
        """
        from .resolve import resolve

        return resolve(
            self.spec, self.arch, self.document, ids=self.ids, pretend_chown=self.pretend_chown
        )


class Filter(Value):
    """A filter that is in force in a run.

    Attributes:
        program: for the kernel, in hexadecimal digits.
        told: refusals that are worth telling are answered by PID 1, which counts them.
        summary: what it allows, for people.
        request: what it was made from.
    """

    program: str
    told: bool
    summary: str
    request: Request

    @property
    def refuses_leases(self) -> bool:
        """Whether it is sure that nobody under it takes a lease on a file: fcntl(2) F_SETLEASE.

        Who owns a file may have everybody else's open(2) of it wait, 45 seconds by default. The
        built-in profiles refuse it; of what the caller allows or wrote, nobody knows.
        """
        return self.request.spec.profile in BUILT_IN and not self.request.spec.allow

    def __repr__(self) -> str:
        return f"Filter({self.summary!r})"


# What was made last: whoever edits a file of rules makes a new one each time.
_KEPT = 64
_known: dict[tuple[object, ...], Filter] = {}


def load(
    spec: Seccomp,
    *,
    ids: Ids | None = (0, 0),
    pretend_chown: bool = False,
    listener: bool = True,
    document: bytes | None = None,
    arch: str | None = None,
) -> Filter | None:
    """The filter that a specification means, or None for the profile "off".

    Args:
        spec: what is asked for.
        ids: the command's uid and gid if they are the only ones that there are, else None.
        pretend_chown: the chown family answers 0 and does nothing.
        listener: the kernel lets PID 1 listen to what is refused.
        document: the content of the file that the profile names; see `read_document`.
        arch: the architecture, as uname(2) calls it; None is this machine's.

    Raises:
        PolicyError: the specification or the file that it names is wrong.
        HostError: there is no table for this architecture.
    """
    if spec.profile == "off":
        _refuse_changes_of_nothing(spec, pretend_chown)
        return None
    # Plain parts: every start comes by here, and a Value takes longer to hash than all of them.
    key = (spec.profile, spec.allow, spec.deny, ids, pretend_chown, listener, document, arch)
    if key not in _known:
        request = Request(spec, arch or os.uname().machine, ids, pretend_chown, document)
        made = _make(request, listener)
        if len(_known) >= _KEPT:
            _known.clear()
        _known[key] = made
        return made
    return _known[key]


def _refuse_changes_of_nothing(spec: Seccomp, pretend_chown: bool) -> None:
    if not spec.allow and not spec.deny and not pretend_chown:
        return
    what = "pretend_chown" if pretend_chown else "seccomp"
    message = (
        f"{what}: seccomp is off: without a filter no system call can be allowed, denied or answered"
    )
    hint = "choose another profile (--seccomp), or leave the other options out"
    raise PolicyError(message, field=what, value="off", hint=hint)


def _make(request: Request, listener: bool) -> Filter:
    spec = request.spec
    why = "" if listener else _NO_LISTENER
    changed = spec.allow or spec.deny or request.pretend_chown or request.ids is None
    if spec.profile in BUILT_IN and not changed:
        program, counts = _shipped(request)
    else:
        rules = _rules(request)
        from .emit import emit

        program, counts = emit(rules, request.arch), _counts(rules, request)
        if not rules.call("sendmsg").allowed:
            why = _NO_SENDMSG
    if why:
        from .emit import untold

        program = untold(program)
    summary = f"{counts}; refusals are {f'not told: {why}' if why else 'told'}"
    return Filter(program, not why, summary, request)


def _rules(request: Request) -> Rules:
    from . import numbers

    if request.arch not in numbers.ARCHITECTURES:
        raise _no_table(request.arch)
    return request.rules()


def _no_table(arch: str) -> HostError:
    hint = "there it runs with --seccomp off, and no system call is refused"
    return HostError(f"seccomp: there is no table of system calls for {arch}", hint=hint)


# --- the shipped ones -----------------------------------------------------------------------


def _shipped(request: Request) -> tuple[str, str]:
    """(Program, what it allows): two lines of a file."""
    path = f"{FOLDER}/{request.spec.profile}.{request.arch}"
    try:
        counts, program, _ = read_file(path).decode().split("\n")
    except FileNotFoundError:
        if not os.path.isdir(FOLDER):
            raise InternalError(f"the shipped filters are missing: {FOLDER}") from None
        raise _no_table(request.arch) from None
    for place, number in zip((UID, GID), request.ids or (), strict=True):
        program = program.replace(_digits(place), _digits(number))
    return program, counts


def _digits(number: int) -> str:
    return number.to_bytes(4, "little").hex()


def shipped_text(profile: str, arch: str) -> str:
    """The content of a shipped file, as the table has it today."""
    from .emit import emit
    from .spec import Seccomp

    request = Request(Seccomp(profile), arch, (UID, GID))
    rules = request.rules()
    return f"{_counts(rules, request)}\n{emit(rules, arch)}\n"


# --- what it allows, in words ---------------------------------------------------------------


def _counts(rules: Rules, request: Request) -> str:
    from . import numbers

    spec = request.spec
    here = numbers.numbers(request.arch)
    calls = [call for call in rules.calls if call.name in here]
    checked = sum(call.checked for call in calls)
    allowed = sum(call.allowed for call in calls) + checked
    of_them = f", {checked} of them depending on their arguments" if checked else ""
    parts = [f"{spec.profile}: {allowed} of {len(calls)} system calls allowed{of_them}"]
    if spec.profile == "nest":
        parts.append(_NEST)
    elif spec.profile not in BUILT_IN:
        parts += _opened(rules, request)
    parts += [f"also allowed: {' '.join(spec.allow)}"] if spec.allow else []
    parts += [f"denied: {' '.join(spec.deny)}"] if spec.deny else []
    parts += ["the chown family answers 0 and does nothing"] if request.pretend_chown else []
    return "; ".join(parts)


def _opened(rules: Rules, request: Request) -> list[str]:
    """Return what is allowed and would not be by default."""
    from .resolve import profile
    from .rules import opened

    names = opened(rules, profile("default", request.ids))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"more than the default: {' '.join(names[:_NAMED])}{more}"] if names else []


# --- files ----------------------------------------------------------------------------------


def read_document(spec: Seccomp) -> bytes | None:
    """The content of the file of rules that a specification names, or None if it names none.

    Raises:
        PolicyError: it cannot be read, is no file, or too large.
    """
    path = spec.path
    if path is None:
        return None
    try:
        content = _read_regular(path)
    except OSError as error:
        why = str(error.strerror)
    else:
        if content is not None:
            return content
        why = "is not a regular file of at most 1M"
    hint = "name a JSON file in the format of Docker and OCI; a name without a slash is a profile's"
    raise PolicyError(f"seccomp: {path}: {why}", field="seccomp", value=path, hint=hint)


def _read_regular(path: str) -> bytes | None:
    """The content, or None if it is no regular file or too large. Nothing makes this wait."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        content = os.read(fd, _LARGEST_DOCUMENT + 1)
    finally:
        os.close(fd)
    return content if len(content) <= _LARGEST_DOCUMENT else None
