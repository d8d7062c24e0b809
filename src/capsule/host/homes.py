"""Which directories are homes, and which may be shown without being asked for."""

from __future__ import annotations

import os

from capsule.base.paths import is_below

from .places import CLOSED, SHARED, SYSTEM


def real_path(path: str) -> str:
    """The path with its links followed, as far as the caller may read them."""
    try:
        return os.path.realpath(path)
    except OSError:
        return path


_homes_cache: dict[tuple[str, int, int], list[str]] = {}


def known_homes() -> list[str]:
    """Home directories, the caller's first: none of them is shown unasked."""
    try:
        changed = os.stat("/etc/passwd").st_mtime_ns
    except OSError:
        changed = 0
    key = (os.environ.get("HOME", ""), os.geteuid(), changed)
    if key not in _homes_cache:
        _homes_cache.clear()
        _homes_cache[key] = _find_homes(key[0])
    return _homes_cache[key]


def _find_homes(own: str) -> list[str]:
    homes = [os.path.normpath(own)] if own.startswith("/") and own != "/" else ["/root"]
    uid = str(os.geteuid())
    try:
        with open("/etc/passwd", encoding="utf-8", errors="surrogateescape") as lines:
            rows = [line.rstrip("\n").split(":") for line in lines]
    except OSError:
        rows = []
    homes += [
        os.path.normpath(row[5])
        for row in rows
        if len(row) == 7 and (row[2] in (uid, "0") or (row[2].isdigit() and int(row[2]) >= 1000))
    ]
    homes += [real for home in homes if (real := real_path(home)) != home]
    return [home for home in homes if home.startswith("/") and home != "/"]


def home_inside(own: str, *, whole_root: bool) -> str:
    """Where the private home is: at the caller's own path, unless that is part of the system."""
    places = (*SYSTEM, *CLOSED)
    if whole_root or any(is_below(own, place) for place in places) or own in SHARED:
        return "/root"
    return own


def may_show(path: str, homes: list[str]) -> bool:
    """Return whether a directory may be shown without being asked for."""
    for name in {path, real_path(path)}:
        if name == "/" or name in SHARED or any(is_below(home, name) for home in homes):
            return False
        if any(is_below(name, place) for place in CLOSED):
            return False
    return True
