"""What a profile may hold, read from the types themselves.

Its keys are the fields of Policy and Limits, and the parameters of the functions that make a Mount. A
shape is how a value is written in TOML. A new field of a known type needs nothing here.
"""

from __future__ import annotations

import re

from capsule.base.values import Choice, Value
from capsule.confine.seccomp.spec import Seccomp
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount, MountKind
from capsule.policy.policy import Git, IdMap, Policy, System

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CHOICES: dict[str, type[Choice]] = {kind.__name__: kind for kind in (System, Git, IdMap)}

# What the types say -> shape. The Any of a variable takes more in Python than TOML has.
_OF_POLICY = {
    "tuple[Mount, ...]": "mounts",
    "tuple[str, ...]": "texts",
    "tuple[int, ...] | None": "ports",
    "str | None": "text",
    "str": "text",
    "int": "id",
    "bool": "flag",
    "Any": "variables",
    "Limits": "limits",
    "Seccomp": "seccomp",
    "Network | Only": "network",
    **{name: name for name in CHOICES},
}
_OF_LIMITS = {"float | None": "time", "int | None": "size", "tuple[str, ...]": "texts"}
_OF_SECCOMP = {"str": "text", "tuple[str, ...]": "texts"}
_OF_MOUNT = {
    "str | os.PathLike[str]": "path",
    "str | os.PathLike[str] | None": "path",
    "str": "text",
    "str | None": "text",
    "int | str": "size",
    "int | str | None": "size",
    "int": "mode",
    "bool": "flag",
    "bytes | str": "data",
}
# A path of the host counts from the file's directory; the target of a link does not.
_BY_NAME = {
    "root": "path",
    "pattern": "pattern",
    "target": "text",
    "landlock": "landlock",
    "cpus": "cpus",
    "cpu_weight": "count",
    "pids": "count",
    "open_files": "count",
}
# Parameter -> attribute of a Mount, where they differ.
ATTRIBUTES = {"target": "source", "node": "source", "pattern": "at"}


class Shape(Value):
    """A key of a profile.

    Attributes:
        name: the key.
        shape: how its value is written.
        default: the value without it; None also if there is none.
        required: whether it cannot be left out.
        text: what it means, of the documentation of its type.
    """

    name: str
    shape: str
    default: object = None
    required: bool = False
    text: str = ""


def of_policy() -> dict[str, Shape]:
    """The keys of a profile."""
    return _of_value(Policy, _OF_POLICY)


def of_limits() -> dict[str, Shape]:
    """The keys of its table ``limits``."""
    return _of_value(Limits, _OF_LIMITS)


def of_seccomp() -> dict[str, Shape]:
    """The keys of its table ``seccomp``."""
    return _of_value(Seccomp, _OF_SECCOMP)


def _of_value(kind: type[Value], shapes: dict[str, str]) -> dict[str, Shape]:
    texts = _attributes(kind.__doc__)
    return {
        name: Shape(
            name,
            _BY_NAME.get(name) or shapes[kind.__annotations__[name]],
            getattr(kind, name),
            text=texts.get(name, ""),
        )
        for name in kind.__value_fields__
    }


def of_mount(kind: MountKind) -> dict[str, Shape]:
    """The keys of a mount of a kind: the parameters of the function of that name."""
    function = getattr(Mount, kind.value).__func__
    code = function.__code__
    names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    positional = function.__defaults__ or ()
    first = code.co_argcount - len(positional)
    defaults = dict(zip(code.co_varnames[first : code.co_argcount], positional, strict=True))
    defaults |= function.__kwdefaults__ or {}
    texts = _attributes(Mount.__doc__)
    return {
        name: Shape(
            name,
            _BY_NAME.get(name) or _OF_MOUNT[function.__annotations__[name]],
            defaults.get(name),
            name not in defaults,
            texts.get(ATTRIBUTES.get(name, name), ""),
        )
        for name in names
    }


def _attributes(docstring: str | None) -> dict[str, str]:
    """The texts of a docstring's section ``Attributes:``; nothing under ``python -OO``."""
    # Since 3.13 the compiler takes the indentation away, and the last line's end.
    section = re.search(
        r"^( *)Attributes:\n((?:\1 {4}.*\n|\s*\n)*)", f"{docstring or ''}\n", re.MULTILINE
    )
    return dict(_entries(section[1], section[2])) if section else {}


def _entries(indentation: str, section: str) -> Iterator[tuple[str, str]]:
    for entry in re.split(rf"^{indentation} {{4}}(?=\w+: )", section, flags=re.MULTILINE):
        name, colon, text = entry.partition(": ")
        if colon:
            yield name, " ".join(text.split())
