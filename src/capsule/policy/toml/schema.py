"""The JSON Schema of a profile, for editors; made from the same types as the reader."""

from __future__ import annotations

from capsule.confine import landlock
from capsule.policy.mounts import Mount, MountKind
from capsule.policy.policy import LANDLOCK_AUTO, LANDLOCK_OFF, Network
from capsule.policy.units import MOST_CPUS, parse_size

from . import keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .keys import Shape

    Schema = dict[str, object]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SIZE = r"^\s*(\d+\.?\d*|\.\d+)\s*([KMGTkmgt][Ii]?[Bb]?|[Bb])?\s*$"
_TIME = r"^\s*((\d+\.?\d*|\.\d+)([Mm][Ss]|[SsMmHh]))*(\d+\.?\d*|\.\d+)?\s*$"


def schema() -> Schema:
    """Return what the command `capsule policy schema` prints."""
    return {
        "$schema": DIALECT,
        "title": "A profile of Capsule",
        **_table(keys.of_policy()),
        "$defs": _definitions(),
    }


def _definitions() -> Schema:
    return {
        "text": {
            "description": "text, or bytes that are not UTF-8",
            "anyOf": [{"type": "string"}, {"$ref": "#/$defs/bytes"}],
        },
        "bytes": {
            "type": "object",
            "properties": {"base64": {"type": "string", "contentEncoding": "base64"}},
            "required": ["base64"],
            "additionalProperties": False,
        },
        "mount": {"oneOf": [_mount(kind) for kind in MountKind]},
    }


def _table(known: dict[str, Shape]) -> Schema:
    return {
        "type": "object",
        "properties": {name: _key(shape) for name, shape in known.items()},
        "additionalProperties": False,
    }


def _mount(kind: MountKind) -> Schema:
    """A mount of a kind; its first line of documentation says what it does."""
    known = keys.of_mount(kind)
    table = _table(known)
    first = (getattr(Mount, kind.value).__doc__ or "").partition("\n")[0]
    properties = {"kind": {"const": kind.value}, **table["properties"]}  # type: ignore[dict-item]
    required = ["kind", *(name for name, shape in known.items() if shape.required)]
    described: Schema = {"description": first} if first else {}
    return {**described, **table, "properties": properties, "required": required}


def _key(shape: Shape) -> Schema:
    schema = dict(_value(shape))
    if shape.text:
        schema["description"] = shape.text
    default = _default(shape)
    if default is not None:
        schema["default"] = default
    return schema


def _default(shape: Shape) -> object:
    """As JSON has it. A table or an array that is left out is an empty one."""
    if shape.shape in keys.CHOICES or shape.shape == "network":
        return getattr(shape.default, "value", None)
    if shape.shape == "size" and shape.default is not None:
        return parse_size(shape.default, "size")  # type: ignore[arg-type]
    return shape.default if isinstance(shape.default, (str, int, float)) else None


def _value(shape: Shape) -> Schema:
    if shape.shape in keys.CHOICES:
        return {"enum": [member.value for member in keys.CHOICES[shape.shape]]}
    if shape.shape == "network":
        kinds = [member.value for member in Network]
        return {"anyOf": [{"enum": kinds}, {"type": "array", "items": {"type": "string"}}]}
    if shape.shape == "limits":
        return _table(keys.of_limits())
    if shape.shape == "seccomp":
        return {"anyOf": [_TEXT, _table(keys.of_seccomp())]}
    if shape.shape == "variables":
        return _variables(may_pass=shape.name == "extra_env")
    schema = _SIMPLE[shape.shape]
    # Only a limit can be none: a mount always has a size.
    can_be_none = shape.name in _LIMITS and shape.shape in _ANY
    return {"anyOf": [{"const": "none"}, *_ANY[shape.shape]]} if can_be_none else schema


def _variables(*, may_pass: bool) -> Schema:
    """A table of variables; in one of them false passes the caller's on."""
    text: Schema = {"$ref": "#/$defs/text"}
    values: Schema = {"anyOf": [text, {"const": False}]} if may_pass else text
    return {"type": "object", "additionalProperties": values}


_LIMITS = keys.of_limits()
_TEXT: Schema = {"$ref": "#/$defs/text"}
_ANY: dict[str, list[Schema]] = {
    "size": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": _SIZE}],
    "time": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": _TIME}],
    "cpus": [
        {"type": "number", "minimum": 0.01, "maximum": MOST_CPUS},
        {"type": "string", "pattern": r"^(\d+\.?\d*|\.\d+)$"},
    ],
    "count": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^\d+$"}],
    "mode": [
        {"type": "integer", "minimum": 0, "maximum": 0o777},
        {"type": "string", "pattern": "^0o[0-7]{1,4}$"},
    ],
}
_SIMPLE: dict[str, Schema] = {
    "text": _TEXT,
    "path": _TEXT,
    "pattern": _TEXT,
    "data": _TEXT,
    "texts": {"type": "array", "items": _TEXT},
    "landlock": {
        "anyOf": [
            {"enum": [LANDLOCK_AUTO, LANDLOCK_OFF]},
            {"type": "integer", "minimum": 1, "maximum": landlock.NEWEST},
            {"type": "string", "pattern": f"^[1-{landlock.NEWEST}]$"},
        ]
    },
    "ports": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}},
    "flag": {"type": "boolean"},
    "id": {"type": "integer", "minimum": 0, "maximum": 2**32 - 2},
    "mounts": {"type": "array", "items": {"$ref": "#/$defs/mount"}},
    **{name: {"anyOf": kinds} for name, kinds in _ANY.items()},
}
