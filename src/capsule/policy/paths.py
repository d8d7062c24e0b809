"""Paths in a policy: of the host, and of the capsule."""

from __future__ import annotations

import os

from capsule.base.errors import PolicyError
from capsule.base.text import shown


def check_path(value: object, field: str, *, absolute: bool = False) -> str:
    """Return a path as text.

    Raises:
        PolicyError: it is no path, is empty, holds a NUL byte, or is relative where it must not be.
    """
    try:
        path = os.fsdecode(value)  # type: ignore[arg-type]
        os.fsencode(path)
    except (TypeError, UnicodeError):
        path = ""
    if not path or "\0" in path:
        hint = "write a path of one character or more, without NUL bytes"
        raise PolicyError(f"{field}: not a path: {shown(value)}", field=field, value=value, hint=hint)
    if absolute and not path.startswith("/"):
        hint = "write the path from the root, beginning with /"
        raise PolicyError(f"{field}: not absolute: {path}", field=field, value=value, hint=hint)
    return path


def absolute(path: str, field: str) -> str:
    """Return the path from the root; a relative one counts from the working directory.

    Raises:
        PolicyError: there is no working directory any more.
    """
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        hint = "change to a directory that exists, or write the path from the root"
        message = f"{field}: the working directory is gone, from which {path} counts"
        raise PolicyError(message, field=field, value=path, hint=hint) from None


def inside_path(value: object, field: str) -> str:
    """Return a normal absolute path inside the capsule: no ``.``, ``..`` or double slash."""
    path = check_path(value, field, absolute=True)
    if ".." in path.split("/"):
        hint = f"write where that leads: {os.path.normpath(path)}"
        raise PolicyError(f"{field}: contains '..': {path}", field=field, value=value, hint=hint)
    return "/" + os.path.normpath(path).lstrip("/")
