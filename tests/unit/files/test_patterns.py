"""Patterns of paths."""

from __future__ import annotations

import fnmatch
import os
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capsule.files.patterns import Pattern


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        (".env", "/w/.env"),
        (".env", "/.env"),
        ("*.key", "/w/a/b/x.key"),
        ("*.key", "/w/.key"),
        ("a?c", "/w/abc"),
        ("[abc]x", "/w/bx"),
        ("[a-c]x", "/w/bx"),
        ("[!a-c]x", "/w/dx"),
        ("[]]x", "/w/]x"),
        ("[!]]x", "/w/ax"),
        ("[a-]x", "/w/-x"),
        ("[*]x", "/w/*x"),
        ("[x", "/w/[x"),
        ("config/*.key", "/w/deep/config/x.key"),
        ("config/*.key", "/config/x.key"),
        ("**/.env", "/w/.env"),
        ("**/.env", "/.env"),
        ("a/**/b", "/w/a/b"),
        ("a/**/b", "/w/a/x/y/b"),
        ("/w/**/b", "/w/x/a/b"),
        ("/w/*/b", "/w/x/b"),
        ("/w/**", "/w/x"),
        ("/w/**", "/w/x/y"),
        ("./x*//", "/w/xy"),
        ("a**b", "/w/axyb"),
        ("*", "/w/line\nbreak"),
        ("a?b", "/w/a\nb"),
        ("?", os.fsdecode(b"/w/\xff")),
        ("[!a]", os.fsdecode(b"/w/\xff")),
        (os.fsdecode(b"\xff*"), os.fsdecode(b"/w/\xff\xfe")),
        ("a:b\\c", "/w/a:b\\c"),
    ],
)
def test_matches(pattern: str, path: str) -> None:
    """Each pattern matches the path beside it, and its quick look at the last name agrees."""
    assert Pattern(pattern).matches(path)
    assert Pattern(pattern).may_match(path.rpartition("/")[2])


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        (".env", "/w/.env/x"),
        (".env", "/w/.envrc"),
        (".env", "/w/x.env"),
        ("*.key", "/w/x.keys"),
        ("a?c", "/w/ac"),
        ("a?c", "/w/a/c"),
        ("a*c", "/w/a/c"),
        ("[!a-c]x", "/w/bx"),
        ("config/*.key", "/w/config/sub/x.key"),
        ("config/*.key", "/w/myconfig/x.key"),
        ("/w/*/b", "/w/x/y/b"),
        ("/w/*/b", "/v/w/x/b"),
        ("/w/**", "/w"),
        ("a/**/b", "/w/a/bb"),
        ("X", "/w/x"),
        ("[]", "/w/x"),
    ],
)
def test_matches_not(pattern: str, path: str) -> None:
    """A component is matched as a whole, and only ``**`` goes over a slash."""
    assert not Pattern(pattern).matches(path)


@pytest.mark.parametrize(
    ("pattern", "prefix", "depth"),
    [
        ("/w/x/*.key", "/w/x", 3),
        ("/w/**/x", "/w", None),
        ("/*/x", "/", 2),
        ("/w/x/**", "/w/x", None),
        ("*.key", "/", None),
        ("a/b*", "/", None),
    ],
)
def test_bounds(pattern: str, prefix: str, depth: int | None) -> None:
    """A pattern knows where it cannot match, so that nobody looks there."""
    assert (Pattern(pattern).prefix, Pattern(pattern).depth) == (prefix, depth)


@given(st.text("ab*?[]!-", max_size=8), st.text("ab[]!-*?", max_size=8))
@example("[!-a]", "b")
def test_agrees_with_fnmatch(pattern: str, name: str) -> None:
    """Within one name it means what fnmatch(3) of the standard library means, bar falling ranges."""
    if not pattern or pattern in (".", "..") or not name or "**" in pattern:
        return
    if re.search(r"\[[^]]+-[^]]*\]", pattern):
        return
    assert Pattern(f"/{pattern}").matches(f"/{name}") == fnmatch.fnmatchcase(name, pattern)


def test_is_not_exponential() -> None:
    """A pattern of many stars takes no longer than its length times the name's."""
    start = time.monotonic()
    assert not Pattern("*a" * 60 + "b").matches("/" + "a" * 250)
    assert not Pattern("**/a/" * 60 + "b").matches("/a" * 1000)
    assert time.monotonic() - start < 20
