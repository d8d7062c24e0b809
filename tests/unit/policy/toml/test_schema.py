"""The JSON Schema of a profile: it takes what the reader takes, and describes all of it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule import profile
from capsule.base.errors import PolicyError
from capsule.policy.limits import Limits
from capsule.policy.mounts import MountKind
from capsule.policy.policy import Policy
from capsule.policy.toml import keys
from capsule.policy.toml.schema import DIALECT, schema
from capsule.policy.units import parse_size, parse_time
from tests.unit.policy.toml.policies import POLICIES

SCHEMA = schema()
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "integer": (int,),
    "number": (int, float),
}  # fmt: skip
# The keywords that `fits` knows, and those that say nothing about a value.
KNOWN = {
    "$ref", "type", "const", "enum", "anyOf", "oneOf", "properties", "required", "additionalProperties",
    "items", "minimum", "maximum", "exclusiveMinimum", "pattern",
}  # fmt: skip
ANNOTATIONS = {"$schema", "$defs", "title", "description", "default", "contentEncoding"}


def fits(value: Any, rule: dict[str, Any]) -> bool:
    """Whether a value is valid; the part of JSON Schema that the schema uses."""
    assert set(rule) <= KNOWN | ANNOTATIONS, set(rule)
    checks: dict[str, Callable[[Any], bool]] = {
        "$ref": lambda ref: fits(value, SCHEMA["$defs"][ref.removeprefix("#/$defs/")]),  # type: ignore[index]
        "type": lambda name: _is(value, name),
        "const": lambda wanted: type(value) is type(wanted) and value == wanted,
        "enum": lambda all_: value in all_,
        "anyOf": lambda rules: any(fits(value, one) for one in rules),
        "oneOf": lambda rules: sum(fits(value, one) for one in rules) == 1,
        "properties": lambda known: all(fits(v, known[k]) for k, v in _items(value) if k in known),
        "required": lambda names: not isinstance(value, dict) or set(names) <= set(value),
        "additionalProperties": lambda more: all(
            more is not False and fits(v, more)
            for k, v in _items(value)
            if k not in rule.get("properties", {})
        ),
        "items": lambda one: not isinstance(value, list) or all(fits(v, one) for v in value),
        "minimum": lambda least: not _is(value, "number") or value >= least,
        "exclusiveMinimum": lambda least: not _is(value, "number") or value > least,
        "maximum": lambda most: not _is(value, "number") or value <= most,
        "pattern": lambda text: not isinstance(value, str) or re.search(text, value) is not None,
    }
    return all(checks[word](wanted) for word, wanted in rule.items() if word in KNOWN)


def _is(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def valid(text: str) -> bool:
    """Whether the schema takes what a TOML text holds."""
    return fits(tomllib.loads(text), SCHEMA)


@given(POLICIES, st.booleans())
def test_what_is_written_is_valid(policy: Policy, everything: bool) -> None:
    """The TOML of any policy is valid: no field and no kind of mount is missing in the schema."""
    assert valid(profile.dump(policy, everything=everything))


@pytest.mark.parametrize(
    "text",
    [
        "nope = 1", "limits = 5", "limits.nope = 1", "limits.timeout = 'soon'", "limits.timeout = 0",
        "limits.output = 1.5", "limits.output = 'big'", "limits.output = -1", "uid = -1", "uid = '1'",
        "uid = 4294967295", "show_cwd = 1", "network = 'some'", "protect = 'x'", "protect = [5]",
        "env.A = false", "env.A = 5", "extra_env.A = true", "root = { base64 = 5 }", "mounts = 5",
        "mounts = [{}]", "mounts = [{ kind = 'ro' }]", "mounts = [{ kind = 'tmpfs' }]",
        "mounts = [{ kind = 'tmpfs', at = '/x', source = '/x' }]",
        "mounts = [{ kind = 'tmpfs', at = '/x', size = 'none' }]",
        "mounts = [{ kind = 'directory', at = '/x', mode = '644' }]",
        "mounts = [{ kind = 'read_only', at = '/x' }]",
        "mounts = [{ kind = 'content', at = '/x', data = 5 }]",
    ],
)  # fmt: skip
def test_what_is_refused_is_not_valid(text: str) -> None:
    """What the reader refuses is marked in an editor: unknown keys, wrong types and bad values."""
    assert not valid(text)
    with pytest.raises(PolicyError):
        profile.loads(text)


@given(
    st.from_regex(r"[0-9.]{0,4} ?[KkMmIiBb]{0,3}", fullmatch=True)
    | st.from_regex(r"([0-9.]{0,3}(ms|s|m|h|x)?){0,3}", fullmatch=True)
)
def test_sizes_and_times_that_are_taken_are_valid(word: str) -> None:
    """An editor marks no size and no time that the reader takes."""
    for key, parse in {"output": parse_size, "timeout": parse_time}.items():
        try:
            parse(word, key)
        except PolicyError:
            continue
        assert valid(f"limits.{key} = '{word}'")


def test_it_says_what_it_is() -> None:
    """It names its dialect, is plain JSON, and no table takes a key that it does not name."""
    assert SCHEMA["$schema"] == DIALECT
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    tables = [SCHEMA, *SCHEMA["$defs"]["mount"]["oneOf"], SCHEMA["properties"]["limits"]]  # type: ignore[index]
    assert all(table["additionalProperties"] is False for table in tables)


def test_every_field_is_described() -> None:
    """Each key has its type's own documentation and, where it has one, its default."""
    properties: Any = SCHEMA["properties"]
    assert list(properties) == list(Policy.__value_fields__)
    assert list(properties["limits"]["properties"]) == list(Limits.__value_fields__)
    described = [*properties.values(), *properties["limits"]["properties"].values()]
    assert all(len(key["description"]) > 10 for key in described)
    assert properties["hostname"]["default"] == "capsule"
    assert properties["system"]["default"] == "all"
    assert properties["limits"]["properties"]["output"]["default"] == 16 << 20


@pytest.mark.parametrize("kind", MountKind)
def test_every_kind_of_mount_is_described(kind: MountKind) -> None:
    """The kinds are the functions of Mount; parameters without a default are required."""
    mounts: Any = SCHEMA["$defs"]
    (rule,) = [
        one for one in mounts["mount"]["oneOf"] if one["properties"]["kind"] == {"const": kind.value}
    ]
    known = keys.of_mount(kind)
    assert list(rule["properties"]) == ["kind", *known]
    assert rule["required"] == ["kind", *(name for name, shape in known.items() if shape.required)]
    assert rule["description"]
