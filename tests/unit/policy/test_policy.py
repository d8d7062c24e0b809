"""Validation: what a policy takes, and the PolicyError that names the field of what it does not."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule.base.errors import PolicyError
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount, MountKind
from capsule.policy.policy import IdMap, Network, Policy
from capsule.policy.units import parse_size, parse_time

SIZES = {
    "0": 0,
    "1": 1,
    "17B": 17,
    "1K": 1024,
    "1k": 1024,
    "1Ki": 1024,
    "1KiB": 1024,
    "1KB": 1000,
    "1kb": 1000,
    "2M": 2 << 20,
    "2MiB": 2 << 20,
    "2MB": 2_000_000,
    "3G": 3 << 30,
    "3GB": 3_000_000_000,
    "1T": 1 << 40,
    "1TB": 10**12,
    "1.5K": 1536,
    "0.5M": 1 << 19,
    ".5K": 512,
    " 64M ": 64 << 20,
    "64 M": 64 << 20,
    "8191G": 8191 << 30,
}
NO_SIZES: list[Any] = [
    "", " ", "K", "1X", "1KK", "1e3", "-1", "-1K", "+1", "1,5K", "1.2.3", "0x10", "1_000", "١K",
    "0.3K", "1.0001", "inf", "nan", "9" * 400, "9000000T", "1K 1K",
    -1, True, False, 1.5, None, b"1K", [],
]  # fmt: skip
TIMES = {
    "10ms": 0.01,
    "2.5s": 2.5,
    "1m30s": 90.0,
    "1h": 3600.0,
    "1h1m1s1ms": 3661.001,
    "90": 90.0,
    "0.5": 0.5,
    "1M30S": 90.0,
    " 5s ": 5.0,
    "1.5h": 5400.0,
}
NO_TIMES: list[Any] = [
    "", "0", "0s", "-1s", "s", "1m30", "30s1m", "1s1s", "1d", "1 m", "1m 30s", "ms", "1e3", "inf",
    "nan", "1.2.3s", "9" * 400, "1000000h",
    0, -1, 0.0, -0.5, True, float("inf"), float("nan"), None, b"1s", [],
]  # fmt: skip


def refused(field: str, value: object, make: Any) -> PolicyError:
    """The error that names the field and holds the value."""
    with pytest.raises(PolicyError) as caught:
        make()
    error = caught.value
    assert error.field == field
    assert error.value is value or error.value == value
    assert error.message.startswith(f"{field}: ")
    return error


# --- sizes and times ------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_a_size(text: str, size: int) -> None:
    """K, M, G, T are 1024-based, KB, MB, GB, TB 1000-based; a fraction may be whole bytes."""
    assert parse_size(text, "size") == size


@pytest.mark.parametrize("value", NO_SIZES, ids=repr)
def test_no_size(value: Any) -> None:
    """What is no size, negative, no whole number of bytes or too large is refused with a hint."""
    assert refused("size", value, lambda: parse_size(value, "size")).hint


@given(st.integers(-(10**400), 10**400) | st.integers(2**52, 2**64))
def test_any_integer_is_that_size_or_none(value: int) -> None:
    """A number of bytes is taken exactly, up to what the kernel's types hold."""
    if 0 <= value < 2**63:
        assert parse_size(value, "size") == value
        assert parse_size(str(value), "size") == value
    else:
        refused("size", value, lambda: parse_size(value, "size"))


@pytest.mark.parametrize(("text", "seconds"), TIMES.items())
def test_a_time(text: str, seconds: float) -> None:
    """Parts in falling order of unit, or plain seconds."""
    assert parse_time(text, "timeout") == pytest.approx(seconds)


@pytest.mark.parametrize("value", NO_TIMES, ids=repr)
def test_no_time(value: Any) -> None:
    """What is no time, not above zero, or longer than anyone means is refused with a hint."""
    with pytest.raises(PolicyError) as caught:
        parse_time(value, "timeout")
    assert caught.value.field == "timeout"
    assert caught.value.hint


@given(st.integers() | st.floats() | st.just(10**400))
def test_any_number_is_that_time_or_none(value: float) -> None:
    """A number is that many seconds, or a PolicyError; never another exception."""
    try:
        assert parse_time(value, "timeout") == value
    except PolicyError:
        assert not 0 < value <= 10 * 365 * 86400


@given(st.text("0123456789.msMShkKBi -+e", max_size=12))
def test_any_text_is_a_value_or_an_error(text: str) -> None:
    """Text is a size and a time or a PolicyError; never another exception."""
    with contextlib.suppress(PolicyError):
        assert parse_size(text, "field") >= 0
    with contextlib.suppress(PolicyError):
        assert parse_time(text, "field") > 0


# --- fields ---------------------------------------------------------------------------------

WRONG: dict[str, list[Any]] = {
    "mounts": ["/data", [1], ["/data"], 5, None, {"/a": "/b"}],
    "root": ["", "a\0b", 5],
    "network": ["bridge", 1, None, [1], {"a": 1}],
    "publish": ["8080:80", 1, [80], None],
    "id_map": ["root", 1, None],
    "hostname": ["", "-a", ".a", "a b", "a_b", "a\n", "ä", "x" * 65, "a\0", 5, None],
    "uid": [-1, 2**32 - 1, 2**64, True, "0", 1.0, None],
    "gid": [-1, 2**32 - 1, 2**64, False, "0", 1.0, None],
    "inherit_env": [1, 0, "yes", None],
    "cwd": ["", "a\0b", 5],
    "limits": [5, None, {"timeout": 1}],
}


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in WRONG.items() for v in values], ids=repr
)
def test_a_wrong_value_names_its_field(field: str, value: Any) -> None:
    """A value that cannot be meant is a PolicyError with the field, the value and exit status 2."""
    error = refused(field, value, lambda: Policy(**{field: value}))
    assert error.exit_code == 2
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hostname", "a"),
        ("hostname", "x" * 64),
        ("hostname", "A-1.example"),
        ("uid", 2**32 - 2),
        ("gid", 0),
        ("cwd", "relative"),
    ],
)
def test_a_value_at_the_edge_is_taken(field: str, value: Any) -> None:
    """The largest and smallest values that the kernel takes."""
    assert getattr(Policy(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value", "meant"),
    [
        ("network", "host", Network.HOST),
        ("id_map", "auto", IdMap.AUTO),
        ("network", "none", Network.NONE),
    ],
)
def test_a_choice_may_be_text(field: str, value: Any, meant: object) -> None:
    """The word of the command line is the value's own."""
    assert getattr(Policy(**{field: value}), field) is meant


def test_an_unknown_field_is_named() -> None:
    """A misspelt field is a PolicyError that names it and lists the fields there are."""
    with pytest.raises(PolicyError, match="'netwrok'") as caught:
        Policy(netwrok="none")  # type: ignore[call-arg]
    assert caught.value.field == "netwrok"
    for field in Policy.__value_fields__:
        assert field in str(caught.value.hint)


def test_replace_validates() -> None:
    """A policy that is derived from another is validated like the first."""
    policy = Policy(uid=5)
    assert policy.replace(gid=6) == Policy(uid=5, gid=6)
    refused("uid", -1, lambda: policy.replace(uid=-1))
    with pytest.raises(PolicyError, match="unknown policy field 'x'"):
        policy.replace(x=1)  # type: ignore[call-arg]


def test_limits() -> None:
    """Times and sizes become numbers; None is no limit; the name of a bad one is in the error."""
    assert Limits(timeout="1m30s", output="1K") == Limits(timeout=90, output=1024)
    assert (Limits().timeout, Limits(output=None).output) == (None, None)
    refused("timeout", "soon", lambda: Limits(timeout="soon"))
    refused("output", -1, lambda: Limits(output=-1))


# --- mounts ---------------------------------------------------------------------------------


def test_a_mount_has_its_own_path_unless_given() -> None:
    """Without a place, a source is shown where it is; a relative one counts from here."""
    assert Mount.read_only("/data") == Mount(MountKind.READ_ONLY, "/data", "/data")
    here = os.path.abspath("some")
    assert Mount.read_write("some") == Mount(MountKind.READ_WRITE, here, here)
    assert Mount.read_only(Path("/data/"), at="/x//y/./z/").at == "/x/y/z"
    assert Mount.tmpfs("/t", size="1M") == Mount(MountKind.TMPFS, "/t", "", 1 << 20)


@pytest.mark.parametrize("at", ["", "x", "./x", "/", "//", "/..", "/a/../b", "/a\0", 5])
def test_a_place_is_absolute_and_plain(at: Any) -> None:
    """A place is absolute, has no '..' and is not the root; the error names the field."""
    with pytest.raises(PolicyError) as bind:
        Mount.read_only("/data", at=at)
    with pytest.raises(PolicyError) as tmpfs:
        Mount.tmpfs(at)
    assert bind.value.field == tmpfs.value.field == "mounts"


@pytest.mark.parametrize("at", ["/proc", "/dev"])
def test_capsules_own_places_cannot_be_replaced(at: str) -> None:
    """/proc and /dev are the capsule's own: another thing there would be left out or break them."""
    with pytest.raises(PolicyError) as bind:
        Mount.read_only("/data", at=at)
    with pytest.raises(PolicyError) as tmpfs:
        Mount.tmpfs(at)
    assert bind.value.field == tmpfs.value.field == "mounts"


@pytest.mark.parametrize("source", ["", "a\0b", 5])
def test_a_source_is_a_path(source: Any) -> None:
    """An empty source, a NUL byte or no path at all is a PolicyError."""
    for make in (Mount.read_only, Mount.read_write):
        with pytest.raises(PolicyError) as caught:
            make(source)
        assert caught.value.field == "mounts"


@pytest.mark.parametrize("size", [0, 4095, "1K", "-1", "much"])
def test_a_tmpfs_holds_a_page(size: Any) -> None:
    """Less than a page is no tmpfs: the kernel would take 0 for no limit."""
    with pytest.raises(PolicyError) as caught:
        Mount.tmpfs("/t", size=size)
    assert caught.value.field == "size"


# --- environment ----------------------------------------------------------------------------


def test_variables_are_sorted_pairs() -> None:
    """A mapping or pairs, text or bytes, come to the same policy."""
    one = Policy(env={"B": "2", "A": "1"})
    assert one == Policy(env=(("A", "1"), ("B", "2"))) == Policy(env={b"A": b"1", b"B": b"2"})
    assert one.env == (("A", "1"), ("B", "2"))
    assert Policy(extra_env={"TERM": None}).extra_env == (("TERM", None),)
    assert Policy(env={}).env == ()


@pytest.mark.parametrize("field", ["env", "extra_env"])
@pytest.mark.parametrize(
    "value",
    [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "x\0"}, {5: "x"}, {"A": 5}, 5, "text", ["A"]],
    ids=repr,
)
def test_a_variable_that_execve_cannot_take(field: str, value: Any) -> None:
    """A name that is empty or holds '=', a NUL byte, or what is no text names the field."""
    with pytest.raises(PolicyError) as caught:
        Policy(**{field: value})
    assert caught.value.field == field


def test_only_extra_env_passes_on() -> None:
    """None, "the caller's value", has no meaning in a whole environment."""
    with pytest.raises(PolicyError) as caught:
        Policy(env={"A": None})  # type: ignore[arg-type]
    assert caught.value.field == "env"


@pytest.mark.parametrize("field", ["env", "extra_env"])
def test_a_variables_value_is_not_shown(field: str) -> None:
    """The error about a variable names it and keeps its value, which may be a secret."""
    given: dict[str, Any] = {field: {"TOKEN": "hunter2\0"}}
    with pytest.raises(PolicyError) as caught:
        Policy(**given)
    assert "TOKEN" in str(caught.value)
    assert "hunter2" not in str(caught.value)


# --- text that is no text -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("mounts", lambda word: Mount.read_only("/" + word)),
        ("mounts", lambda word: Mount.tmpfs("/" + word)),
        ("root", lambda word: Policy(root="/" + word)),
        ("cwd", lambda word: Policy(cwd="/" + word)),
        ("env", lambda word: Policy(env={word: ""})),
        ("env", lambda word: Policy(env={"A": word})),
        ("extra_env", lambda word: Policy(extra_env={"A": word})),
    ],
)
def test_a_surrogate_that_is_no_byte(field: str, make: Any) -> None:
    """A word that no file name can hold is refused here and not, as another error, by the encoding."""
    make("\udc80")  # how Python writes the byte 0x80
    with pytest.raises(PolicyError) as caught:
        make("\ud800")
    assert caught.value.field == field


# --- values ---------------------------------------------------------------------------------


def test_a_policy_is_a_value() -> None:
    """Equal policies are one key, print what they are and survive pickle."""
    one = Policy(mounts=[Mount.tmpfs("/t")], limits=Limits(timeout=1), env={"A": "1"})
    two = Policy(mounts=(Mount.tmpfs("/t"),), limits=Limits(timeout="1s"), env={"A": "1"})
    assert one == two
    assert len({one, two}) == 1
    assert one != two.replace(uid=1)
    assert pickle.loads(pickle.dumps(one)) == one
    assert "Mount(kind=" in repr(one)
