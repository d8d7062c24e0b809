"""Policy → TOML that loads back to an equal policy."""

from __future__ import annotations

import base64
import os

from capsule.base.text import describe_size
from capsule.policy.mounts import OVERLAY_SIZE
from capsule.policy.paths import inside_path
from capsule.policy.policy import Network
from capsule.policy.units import parse_size

from . import document, keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from capsule.confine.seccomp.spec import Seccomp
    from capsule.policy.limits import Limits
    from capsule.policy.mounts import Mount
    from capsule.policy.policy import Policy

    from .keys import Shape

# A variable's name that is not Unicode; no real one holds the sign.
ENCODED_NAME = "base64="
NO_LIMIT = "none"


def dump(policy: Policy, *, everything: bool = False) -> str:
    """TOML that loads back to an equal policy. What is the default is left out unless asked for."""
    values: list[str] = []
    tables: list[str] = []
    for name, shape in keys.of_policy().items():
        value = getattr(policy, name)
        if value is None or (value == shape.default and not everything):
            continue
        if shape.shape == "mounts":
            tables += [_mount_table(mount, everything=everything) for mount in value]
        elif shape.shape == "limits":
            tables.insert(0, _table(name, _limit_lines(value, everything=everything)))
        elif shape.shape == "seccomp":
            tables.append(_table(name, _seccomp_lines(value, everything=everything)))
        elif shape.shape == "variables":
            tables.append(_table(name, [_variable_line(*pair) for pair in value]))
        else:
            values.append(_line(name, shape.shape, value))
    return "\n".join(["".join(values), *tables] if values else tables)


def _table(name: str, lines: list[str]) -> str:
    return f"[{name}]\n{''.join(lines)}"


def _line(name: str, shape: str, value: Any) -> str:
    return f"{name} = {_written(shape, value)}\n"


def _written(shape: str, value: Any) -> str:
    if shape == "network" and not isinstance(value, Network):
        return document.literal(value.rules)
    if shape in keys.CHOICES or shape == "network":
        return document.literal(value.value)
    if shape == "size":
        return _size(value)
    if shape == "mode":
        return f"0o{value:03o}"
    if shape in ("time", "cpus") and value == int(value):
        return str(int(value))
    if shape == "pattern" and value.startswith("~"):
        # As text it would be a path in the home.
        return document.encoded(os.fsencode(value))
    return document.literal(_as_text(value) if shape == "data" else value)


def _as_text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _size(number: int) -> str:
    text = describe_size(number)
    return text if text.isdigit() else f'"{text}"'


def written_name(name: str) -> str:
    """A variable's name as a key."""
    if document.is_unicode(name):
        return name
    return ENCODED_NAME + base64.b64encode(os.fsencode(name)).decode()


def _variable_line(name: str, value: str | None) -> str:
    content = document.literal(False if value is None else value)
    return f"{document.key(written_name(name))} = {content}\n"


def _limit_lines(limits: Limits, *, everything: bool) -> list[str]:
    return [
        _line(name, "text", NO_LIMIT) if value is None else _line(name, shape.shape, value)
        for name, shape in keys.of_limits().items()
        if (value := getattr(limits, name)) != shape.default or everything
    ]


def _seccomp_lines(seccomp: Seccomp, *, everything: bool) -> list[str]:
    return [
        _line(name, shape.shape, value)
        for name, shape in keys.of_seccomp().items()
        if (value := getattr(seccomp, name)) != shape.default or everything
    ]


def _mount_table(mount: Mount, *, everything: bool) -> str:
    lines = [_line("kind", "text", mount.kind.value)]
    for name, shape in keys.of_mount(mount.kind).items():
        value = getattr(mount, keys.ATTRIBUTES.get(name, name))
        unset = name in ("keep", "size") and not value
        if shape.required or not (unset or (_is_default(mount, shape, value) and not everything)):
            lines.append(_line(name, shape.shape, value))
    return f"[[mounts]]\n{''.join(lines)}"


def _is_default(mount: Mount, shape: Shape, value: object) -> bool:
    if shape.name == "at":
        return value == inside_path(mount.source, "mounts")
    if shape.shape == "size":
        default = OVERLAY_SIZE if shape.default is None else shape.default
        return value == parse_size(default, "size")  # type: ignore[arg-type]
    return value == shape.default
