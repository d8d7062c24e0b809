"""Where version managers and package managers of a user keep programs, and nothing but programs.

What lies there may be shown however one gets there: a link of an untrusted program that leads into it
shows what everybody can install.
"""

from __future__ import annotations

import os

from capsule.base.text import is_below
from capsule.host.places import real_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Of all users, and with loaders and libraries in directories of their own.
STORES = ("/nix/store", "/gnu/store")
# Directory of the home -> what its programs are made of: parts of it ("" is all), or ~/ of the home.
# docs/files.md has the same table; a test compares.
MANAGERS = {
    ".local": (
        "bin", "lib", "lib64", "pipx", "share/pipx", "share/uv/tools", "share/uv/python", "share/pnpm",
    ),
    ".local/share/uv": ("tools", "python"),
    ".local/share/pipx": ("",),
    ".local/share/pnpm": ("",),
    ".local/share/fnm": ("",),
    ".local/share/mamba": ("",),
    ".local/share/mise": ("shims", "installs", "plugins", "~/.local/bin", "~/.tool-versions"),
    ".asdf": ("", "~/.local/bin", "~/.tool-versions"),
    ".bun": ("bin", "install/global"),
    ".cargo": ("bin", "~/.rustup"),
    ".deno": ("bin",),
    ".dotnet": ("",),
    ".fnm": ("",),
    ".ghcup": ("",),
    ".goenv": ("",),
    ".linuxbrew": ("",),
    ".nodenv": ("",),
    ".nvm": ("versions",),
    ".pyenv": ("",),
    ".rbenv": ("",),
    ".rustup": ("",),
    ".sdkman": ("candidates",),
    ".volta": ("",),
    "anaconda3": ("",),
    "mambaforge": ("",),
    "micromamba": ("",),
    "miniconda3": ("",),
    "miniforge3": ("",),
}  # fmt: skip
# Where of these each directory is a virtual environment.
VENVS = {
    ".local": (".local/share/pipx/venvs", ".local/pipx/venvs", ".local/share/uv/tools"),
    ".local/share/pipx": (".local/share/pipx/venvs",),
    ".local/share/uv": (".local/share/uv/tools",),
}


def is_managed(path: str, home: str) -> bool:
    """Return whether a path without links lies where there is nothing but programs."""
    if any(is_below(path, store) for store in STORES):
        return True
    return any(is_below(path, part) for root in _roots(path, home) for part in parts(root, home))


def manager_of(path: str, home: str) -> str | None:
    """The directory of the home that a path lies in, of those that `MANAGERS` has."""
    return next(_roots(path, home), None)


def parts(root: str, home: str) -> Iterator[str]:
    """The paths of what programs of a directory of `MANAGERS` are made of."""
    for part in MANAGERS[root]:
        if part.startswith("~/"):
            moved = os.environ.get("RUSTUP_HOME") if part == "~/.rustup" else None
            yield moved or f"{home}{part[1:]}"
        else:
            yield f"{home}/{root}/{part}".rstrip("/")


def _roots(path: str, home: str) -> Iterator[str]:
    """Yield the keys of `MANAGERS` that a path lies in, the longest first."""
    for top in dict.fromkeys((home, real_path(home))):
        if path != top and is_below(path, top):
            names = path[len(top) + 1 :].split("/")[:3]
            while names:
                if (root := "/".join(names)) in MANAGERS:
                    yield root
                names.pop()
