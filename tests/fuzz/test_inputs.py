"""What people write or hand on, changed at random: it is taken, or refused with an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule import profile
from capsule.base.errors import PolicyError
from capsule.base.text import describe_size
from capsule.confine.proxy import dns, opening
from capsule.confine.proxy.rules import Rules, is_name
from capsule.confine.seccomp import oci
from capsule.confine.seccomp.rules import decide
from capsule.policy import units
from capsule.policy.network import only, published
from tests.fuzz.mutants import mutants, seeds
from tests.unit.confine.proxy.test_dns import question
from tests.unit.confine.proxy.test_opening import HELLO, REQUEST, in_records
from tests.unit.confine.seccomp import machine, samples
from tests.unit.confine.seccomp.test_programs import called, emitted, returned

T = TypeVar("T")

# Digits that Python refuses to convert, and what is a digit to some functions and not to others.
_NUMBERS = [b"9" * 5000, b"-1", b"0", b"4294967296", b"18446744073709551615", b"1e999", b"nan"]
_NUMBERS += [b"a." * 3000, b"[" * 3000, b'"' * 999]
_NUMBERS += ["\u0663".encode(), "\u00b2".encode(), b"\xff", b"\x00", b"\x1b[2J"]


def taken(parse: Callable[..., T], *arguments: Any) -> T | None:
    """What it was taken for, or None: then it was refused, in words that say nothing to a terminal."""
    try:
        return parse(*arguments)
    except PolicyError as error:
        told = str(error)
    assert all(c.isprintable() or c == "\n" for c in told)
    return None


# --- profiles -----------------------------------------------------------------------------------

_PROFILE = [
    b'"',
    b"'''",
    b"\n",
    b"=",
    b"[[mounts]]\n",
    b"[limits]\n",
    b"{",
    b"}",
    b"#",
    b"\\u0000",
    b"~",
]
_PROFILE += [b"kind = ", b"size = ", b"true", b"[", b"]", b".", b"\r", b"inf", *_NUMBERS]


@given(mutants(seeds("profile"), _PROFILE))
def test_a_profile_is_a_policy_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """Whatever a file holds. A policy is written back as what it was read from."""
    path = tmp_path_factory.getbasetemp() / "profile.toml"
    path.write_bytes(data)
    policy = taken(profile.load, path)
    assert policy is None or profile.loads(profile.dump(policy)) == policy


# --- sizes, times, numbers ----------------------------------------------------------------------

_UNITS = [b"K", b"KiB", b"MB", b"T", b"ms", b"m", b"h", b".", b" ", b"+", b"_", b"e", *_NUMBERS]


@given(mutants(seeds("units"), _UNITS).map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_a_quantity_is_in_its_range_or_an_error(text: str) -> None:
    """Sizes, times, counts and CPUs, of any text; a size that is written again is the same."""
    for parse, least, most in (
        (units.parse_size, 0, 2**63),
        (units.parse_time, 0, 10 * 366 * 86400),
        (units.parse_cpus, 0.01, units.MOST_CPUS),
        (lambda value, field: units.parse_count(value, field, 100), 1, 100),
    ):
        value = taken(parse, text, "field")
        if value is None:
            continue
        assert least <= value <= most
        if parse is units.parse_size:
            assert units.parse_size(describe_size(int(value)), "field") == value


# --- the network --------------------------------------------------------------------------------

_HOSTS = [
    b"pypi.org:443,80",
    b"*.example.org",
    b"[2606:2800::/32]:22",
    b"10.0.0.0/8:1",
    b"localhost:8080",
    b"0.0.0.0:8080:80",
]
_MARKS = [b":", b".", b"*", b"/", b"[", b"]", b",", b"@", b"%", b"::", b"0x", b"xn--", *_NUMBERS]
_REQUESTS = [
    HELLO,
    in_records(HELLO, 7),
    REQUEST,
    b"GET http://a.b/ HTTP/1.1\nHost: c.d\n\n",
    b"CONNECT a.b:443 HTTP/1.1\r\n\r\n",
]
_OPENINGS = [b"\r\n", b"Host:", b" ", b"\0", b"\x16\x03\x01", b"\x00\x00", b"www.example.org", b"://"]


@given(mutants(_HOSTS, _MARKS).map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_a_rule_is_what_it_says_again_or_an_error(text: str) -> None:
    """Whatever is written: what is taken has one form, which is taken for the same."""
    rule = taken(only, [text])
    assert rule is None or only(list(rule.rules)) == rule
    ports = taken(partial(published, on_host=False), [text])
    assert ports is None or published(list(ports), on_host=False) == ports


@given(mutants([question(b"www.example.org"), question(b"x" * 63, 28)], [b"\xc0\x0c", b"\0", b"?"]))
def test_a_question_is_answered_or_not(data: bytes) -> None:
    """A name is what a host has, or is in no rule."""
    asked = dns.parse(data)
    if asked is not None:
        assert len(asked.answer(dns.OK, b"abcd")) <= dns.MOST + 16
        assert not Rules(["*:80"]).ports(asked.name) or is_name(asked.name)


@given(mutants(_REQUESTS, _OPENINGS), st.integers(0, 400))
def test_what_was_seen_of_a_beginning_stays_so(data: bytes, size: int) -> None:
    """A verdict on the first bytes is the verdict on all: nobody sends more to be for somebody else."""
    first = opening.look(data[:size])
    if first[0] in (opening.NAMED, opening.UNNAMED):
        assert opening.look(data)[:2] == first


# --- filters of Docker's format -----------------------------------------------------------------

_OCI = [b'"', b",", b"{", b"}", b"[", b"]", b"null", b"true", b'"args": ', b'"SCMP_CMP_GT"', b'"name"']
_OCI += [b'"SCMP_ACT_ERRNO"', b'"errnoRet": 4096', b'"index": 6', b"1.5", *_NUMBERS]


@given(mutants(seeds("oci"), _OCI), st.integers(0, 2**32))
def test_a_filter_does_what_its_rules_say_or_is_refused(data: bytes, seed: int) -> None:
    """A file that is taken compiles to a program that decides each call as the rules do."""
    rules = taken(oci.parse, data, "filter.json", "x86_64")
    code = taken(emitted, rules) if rules is not None else None
    if rules is None or code is None:
        return
    assert isinstance(json.loads(data), dict)
    assert not list(machine.shapes(code))
    for call in rules.calls[:40]:
        for arguments in (*samples.plain(call)[:20], *samples.wide(call, seed, 5)):
            said = returned(decide(call, arguments), told=True)
            assert called(code, call.name, *arguments) == said


def test_a_version_of_a_kernel_that_is_none() -> None:
    """A number that Python would not convert is no version, not a traceback."""
    rule = {"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "9" * 5000}}
    data = json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}).encode()
    with pytest.raises(PolicyError, match="minKernel"):
        oci.parse(data, "f", "x86_64")


def test_a_key_of_many_parts() -> None:
    """It is refused by its number of dots, whatever it stands in: reading it would take minutes."""
    for text in (
        "\n" + "a." * 50000 + "b = 1",
        "\n[" + "a . " * 50000 + "b]",
        '\nx={"a".' + "a." * 50000,
    ):
        with pytest.raises(PolicyError, match=r"profile:2: .* a key of a hundred parts"):
            profile.loads(text)
    words = "a.b " * 1000 + "w" * 100000 + "..." * 1000
    assert profile.loads(f"extra_env = {{ X = '{words}' }}").extra_env == (("X", words),)


def test_every_seed_is_what_it_is_meant_to_be(tmp_path: Path) -> None:
    """Of each target some seeds are taken: mutants of nothing but errors would try little."""
    profiles = 0
    for data in seeds("profile"):
        (tmp_path / "p").write_bytes(data)
        profiles += taken(profile.load, tmp_path / "p") is not None
    assert profiles >= 4
    assert [bool(oci.parse(data, "f", "x86_64").calls) for data in seeds("oci")[:2]] == [True, True]
