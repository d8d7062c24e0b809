"""Policies at random, for tests of profiles."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from capsule.base.errors import PolicyError
from capsule.confine.seccomp.spec import Seccomp
from capsule.policy import protected
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount, MountKind
from capsule.policy.policy import IdMap, Network, Policy, System

# --- random policies ----------------------------------------------------------------------------

# What a path, a word or a variable can be: any bytes but NUL.
_BYTES = st.binary(max_size=10).filter(lambda data: 0 not in data)
# Text that TOML could take for something else.
_SPECIAL = st.sampled_from(
    [
        "~/x",
        "~",
        "a\nb",
        'q"q',
        "'''",
        '"""',
        "\\",
        "\\u0041",
        "\x7f",
        "\x1b[31m",
        "é",
        "𝄞",
        "\r",
        "\t",
        "#",
    ]
)
_WORD = _BYTES.map(os.fsdecode) | _SPECIAL
_SOME = _WORD.filter(bool)
_ABSOLUTE = _SOME.map(lambda word: f"/{word}")
_SIZES = st.sampled_from([4096, 5000, "8K", "64M", 10**7, 2**40, 512 << 20])
_MODES = st.integers(0, 0o777)
FLAG = st.booleans()
_Any = st.SearchStrategy[Any]


def _mount(make: Callable[..., Mount], *strategies: _Any, **named: _Any) -> st.SearchStrategy[Mount]:
    """Mounts of a kind, without those that its function refuses."""

    def attempt(values: tuple[tuple[object, ...], dict[str, object]]) -> Mount | None:
        with contextlib.suppress(PolicyError):
            return make(*values[0], **values[1])
        return None

    parts = st.tuples(*strategies)
    keys: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries({}, optional=named)
    made = st.tuples(parts, keys).map(attempt)
    return made.flatmap(lambda mount: st.nothing() if mount is None else st.just(mount))


_AT = st.none() | _ABSOLUTE
_BIND = {"noexec": FLAG, "optional": FLAG}
MOUNTS = {
    MountKind.READ_ONLY: _mount(Mount.read_only, _ABSOLUTE | _SOME, _AT, **_BIND),
    MountKind.READ_WRITE: _mount(Mount.read_write, _ABSOLUTE, _AT, **_BIND),
    MountKind.OVERLAY: _mount(Mount.overlay, _ABSOLUTE, _AT, size=_SIZES, keep=_SOME, **_BIND),
    MountKind.TMPFS: _mount(Mount.tmpfs, _ABSOLUTE, _SIZES, noexec=FLAG),
    MountKind.HIDE: _mount(Mount.hide, _ABSOLUTE | _SOME | st.just("~/*"), optional=FLAG),
    MountKind.SYMLINK: _mount(Mount.symlink, _SOME, _ABSOLUTE),
    MountKind.DIRECTORY: _mount(Mount.directory, _ABSOLUTE, _MODES),
    MountKind.FILE: _mount(Mount.file, _ABSOLUTE, _ABSOLUTE, mode=_MODES, optional=FLAG),
    MountKind.CONTENT: _mount(Mount.content, st.binary() | st.text(), _ABSOLUTE, mode=_MODES),
    MountKind.DEVICE: _mount(Mount.device, _ABSOLUTE, _AT, optional=FLAG),
}


def _in_force(mounts: list[Mount]) -> tuple[Mount, ...]:
    """As many of the mounts, from the first on, as do not contradict each other."""
    kept: tuple[Mount, ...] = ()
    for mount in mounts:
        with contextlib.suppress(PolicyError):
            kept = Policy(mounts=(*kept, mount)).mounts
    return kept


_PART = _SOME.filter(lambda word: "/" not in word and word not in (".", ".."))
_NAMES = st.lists(st.lists(_PART, min_size=1, max_size=2).map("/".join), max_size=3)
_PLAIN = frozenset("*?[" + "".join(map(chr, (*range(32), *range(127, 160)))))
_VARIABLE = _SOME.filter(lambda word: "=" not in word)


def _policy(**fields: Any) -> Policy:
    """What listens in the host's network cannot be published."""
    return Policy(**fields | ({"publish": ()} if fields["network"] is Network.HOST else {}))


POLICIES = st.builds(
    _policy,
    mounts=st.lists(st.one_of(*MOUNTS.values()), max_size=5).map(_in_force),
    root=st.none() | _SOME,
    system=st.sampled_from(list(System)),
    show_cwd=FLAG,
    protect=_NAMES.map(lambda names: [name for name in names if _PLAIN.isdisjoint(name)]),
    unprotect=st.lists(st.sampled_from([guard.name for guard in protected.TABLE]), max_size=3),
    network=st.sampled_from([*Network, ("pypi.org",), ("*.example.org:22,443", "[2001:4860::/32]")]),
    publish=st.sampled_from([(), ("8080:80",), ("0:80", "[::1]:53:53")]),
    hostname=st.from_regex(r"[a-z0-9][a-z0-9.-]{0,63}", fullmatch=True),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    id_map=st.sampled_from(list(IdMap)),
    env=st.none() | st.dictionaries(_VARIABLE, _WORD, max_size=3),
    extra_env=st.dictionaries(_VARIABLE, st.none() | _WORD, max_size=3),
    inherit_env=FLAG,
    cwd=st.none() | _SOME,
    limits=st.builds(
        Limits,
        timeout=st.none()
        | st.floats(min_value=0, exclude_min=True, max_value=1e8)
        | st.integers(1, 10**6),
        output=st.none() | st.integers(0, 2**63 - 1) | _SIZES,
    ),
    seccomp=st.builds(
        Seccomp,
        st.sampled_from(
            ["default", "strict", "off", "@basic-io ~@chown", "/x/rules.json", "./~x.json"]
        ),
        st.lists(st.sampled_from(["ptrace", "@debug"])).map(tuple),
        st.lists(st.sampled_from(["flock", "@sync"])).map(tuple),
    ),
    pretend_chown=FLAG,
    landlock=st.sampled_from(["auto", "off", "6", 3]),
    tcp_connect=st.none() | st.lists(st.integers(1, 65535), max_size=3),
    tcp_bind=st.none() | st.lists(st.integers(1, 65535), max_size=3),
)
