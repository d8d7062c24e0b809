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
    """Return whether a path without links lies where there is nothing but programs of the caller's."""
    if any(is_below(path, store) for store in STORES):
        return True
    tops = (home, real_path(home))
    found = (one for one in managers_of(path) if one[0] in tops)
    return any(is_below(path, part) for top, root in found for part in parts(top, root))


def managers_of(path: str) -> Iterator[tuple[str, str]]:
    """Yield (home, its directory) of those of `MANAGERS` that a path lies in, the innermost first.

    The home is somebody's, and need not be the caller's: what is no home may have these names, too.
    """
    names = path.split("/")
    for start in range(len(names) - 1, 0, -1):
        for end in range(min(start + 3, len(names)), start, -1):
            if (root := "/".join(names[start:end])) in MANAGERS:
                yield "/".join(names[:start]), root


def parts(home: str, root: str) -> Iterator[str]:
    """The paths of what programs of a directory of `MANAGERS` are made of."""
    for part in MANAGERS[root]:
        if part.startswith("~/"):
            moved = os.environ.get("RUSTUP_HOME") if part == "~/.rustup" else None
            yield moved or f"{home}{part[1:]}"
        else:
            yield f"{home}/{root}/{part}".rstrip("/")
