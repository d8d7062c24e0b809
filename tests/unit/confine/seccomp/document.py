"""Writes docs/seccomp.md from the table; a test holds the page to it."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from capsule.confine.seccomp import groups, numbers, resolve, table
from capsule.confine.seccomp.rules import Call, errno_of

HEAD = """\
# System calls

<!-- Made from src/capsule/confine/seccomp/table.py: pytest tests/unit/confine --update-golden -->

What runs in a capsule may make the system calls of a list; the kernel refuses all others. The list
knows every call of Linux {version} on x86_64 and aarch64: {known} calls, of which the default allows
{allowed} as they are and {checked} with a look at their arguments.

- A call that is refused to programs answers `EPERM`. One that programs have a way around answers
  `ENOSYS`, as if the kernel was older, and so does any number that the list does not know.
- A call through another interface of the kernel (32-bit programs, x32) ends the process with SIGSYS.
- An argument is looked at as the kernel takes it: where that is 32 bits, the upper half means
  nothing.
- *Told* means that a refusal is worth telling; the others are fallbacks by design. Init answers told
  refusals and counts them, by call and deciding argument, in at most 64 kinds: `Result.denials`, `-v`,
  `--json`, and the one that was new last where a command fails. A refusal that is told takes some 6 µs
  of the command's time (40 before Linux 6.6), and may be EINTR where a handler without SA_RESTART runs
  meanwhile. A program that is refused nothing pays nothing.
- A program may install filters of its own, but none with a listener (EBUSY): a process has one at most,
  and that is Capsule's.
- What would allow a call: `--allow-syscall NAME`, which also lifts the look at its arguments; the
  table names the profile, where one allows it, too.

## Profiles

| profile | what it is for |
|---|---|
| `default` | compilers, interpreters, databases, servers: what needs no rights over the machine |
| `strict` | pure computing: no sockets, no System V IPC, no locks on shared files |
| `debug` | also debuggers: gdb, strace, rr, the leak sanitizer |
| `nest` | also sandboxes inside, browsers' own among them: weaker, three times as much kernel |
| `off` | no filter |

Instead of a profile there may be a file in the format of Docker and OCI runtimes, whose name has a
slash in it or ends in `.json`; or words as in systemd's `SystemCallFilter=`: `@basic-io @file-system`
allows what these groups and `@default` have and nothing else, `~@privileged @timer` is the default
without the first group.

Of a file, each reading is the stricter one where the format leaves it open: comparisons of 32-bit
arguments see 32 bits; a number that is in no table answers `ENOSYS` even if the default is to allow;
no capability is held; killing a thread kills the process; of several rules that fit, the first
decides; several comparisons of one argument in one rule are alternatives, as in runc. Unknown keys,
actions and operators are errors with the file and the key. Actions that ask another program
(`SCMP_ACT_NOTIFY`, `SCMP_ACT_TRACE`) are refused.

The filter is one wall of several. Without it (`off`, a file, groups) namespaces still cannot be made,
which is `ENOSPC` then, nor mounts, which is `EPERM`: see
[the second wall](security.md#the-second-wall). `nest` opens those, too, and so does an
`--allow-syscall` that names `unshare`, `clone`, `setns` or a call that mounts.

`execve`, `write` and `exit_group` cannot be denied: they start the command. Where `sendmsg` is, or
where a filter around Capsule has a listener already, refusals are not told, and `Result.protections`
says so.

## Options

| | |
|---|---|
| `--seccomp PROFILE`, `Policy(seccomp=...)` | the profile, file or list |
| `--allow-syscall NAME`, `Seccomp(allow=...)` | a call or a `@group` more; repeatable |
| `--deny-syscall NAME`, `Seccomp(deny=...)` | one less; repeatable |
| `--pretend-chown`, `Policy(pretend_chown=...)` | the `chown` family answers 0 and does nothing |

```toml
[seccomp]
profile = "debug"
allow = ["@aio"]
deny = ["flock"]
```

Where one id is mapped, as it is unless `--uid-map auto` says otherwise, no file can be given to another
one: the kernel says `EINVAL`. So does the filter, before it, so that this is told.
"""


def page() -> str:
    """The whole page."""
    calls = resolve.default_calls()
    checked = [call for call in calls if call.checked]
    allowed = [call for call in calls if call.allowed]
    head = HEAD.format(
        version=numbers.VERSION, known=len(calls), allowed=len(allowed), checked=len(checked)
    )
    return "\n".join([head, *_refused(), *_checked(), *_allowed(), *_changed(), *_groups()])


def _refused() -> Iterable[str]:
    yield "## Refused\n"
    yield "| calls | errno | told | why | allowed by profile |"
    yield "|---|---|---|---|---|"
    for number, told, profile, reason, names in table.REFUSED:
        by = f"`{profile}`" if profile else ""
        yield f"| {_code(names)} | {number} | {'yes' if told else ''} | {reason} | {by} |"
    yield ""


def _checked() -> Iterable[str]:
    yield "## Allowed with a look at the arguments\n"
    yield "The first case that fits decides; `0&0xf` is the lowest four bits of the first argument.\n"
    yield "| call | what is allowed and why | cases |"
    yield "|---|---|---|"
    for names, rule, _, _, reason in table.CHECKED:
        cases = _cases(resolve.profile("default").call(names.split()[0]), owners="UID" in rule)
        yield f"| {_code(names)} | {reason} | {cases} |"
    yield ""


def _allowed() -> Iterable[str]:
    yield "## Allowed\n"
    yield "| for | calls |"
    yield "|---|---|"
    for reason, names in table.ALLOWED:
        yield f"| {reason} | {_code(names)} |"
    yield ""


def _changed() -> Iterable[str]:
    yield "## What the other profiles change\n"
    yield "| profile | calls | cases | why |"
    yield "|---|---|---|---|"
    for profile, rows in table.CHANGED.items():
        for names, _, _, _, reason in rows:
            cases = _cases(resolve.profile(profile).call(names.split()[0]))
            yield f"| `{profile}` | {_code(names)} | {cases} | {reason} |"
    yield ""


def _groups() -> Iterable[str]:
    yield "## Groups\n"
    yield "A group allows a call as far as the rule for its arguments goes. `clone3` is in none.\n"
    yield "| group | calls |"
    yield "|---|---|"
    for name, text in sorted(groups.GROUPS.items()):
        yield f"| `{name}` | {_code(text)} |"
    yield ""


def _code(names: str) -> str:
    return " ".join(f"`{name}`" for name in names.split())


def _cases(call: Call, *, owners: bool = False) -> str:
    if owners:
        return "allowed if owner and group are the command's own ids or -1; EINVAL"
    shown = []
    for case in call.cases:
        number = errno_of(case.action)
        tests = " and ".join(f"{n}&{mask:#x} = {value:#x}" for n, mask, value in case.tests)
        tests = tests.replace("&0xffffffff", "")
        shown.append(
            f"{errno.errorcode[number] if number else 'allowed'}{f' if {tests}' if tests else ''}"
        )
    return "; ".join(shown)
