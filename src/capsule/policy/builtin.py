"""The built-in profiles. docs/files.md says what each shows, and why."""

from __future__ import annotations

import os

from capsule.base.errors import PolicyError
from capsule.base.text import is_below
from capsule.host.places import home_inside, known_homes, may_show

from .mounts import Mount
from .policy import Policy, System

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Below the home. None of them holds a token: those lie beside them (~/.cargo/credentials.toml,
# ~/.m2/settings.xml, ~/.gradle/gradle.properties, ~/.npmrc), which is why no parent is shown.
CACHES = (
    ".cache/ccache", ".cache/go-build", ".cache/pip", ".cache/uv", ".cache/yarn",
    ".cargo/git", ".cargo/registry", ".gradle/caches", ".gradle/wrapper", ".ivy2/cache",
    ".local/share/pnpm/store", ".m2/repository", ".npm/_cacache", "go/pkg/mod",
)  # fmt: skip
TOOLCHAINS = (".rustup",)


def default() -> Policy:
    """The host's programs and the working directory, read-only; no network."""
    return Policy()


def strict(home: str) -> Policy:
    """Nothing of the host but the command and its libraries; what can be written cannot be executed."""
    places = dict.fromkeys(("/tmp", "/dev/shm", home))
    return Policy(
        system=System.NEEDED,
        show_cwd=False,
        mounts=tuple(Mount.tmpfs(place, "64M", noexec=True) for place in places),
    )


def dev(work: str) -> Policy:
    """The working directory writable, but for what trusted tools would execute; the home private."""
    return Policy(mounts=(Mount.read_write(work),))


def offline_build(home: str, work: str) -> Policy:
    """As dev, with the caller's package caches in overlays, so that builds need no network."""
    shown = [Mount.read_only(f"{home}/{name}", optional=True) for name in TOOLCHAINS]
    shown += [Mount.overlay(f"{home}/{name}", optional=True) for name in CACHES]
    # What lies in another comes after it. A working directory that is a cache is that one, not a copy.
    above = [mount for mount in shown if mount.at != work and is_below(work, mount.at)]
    others = [mount for mount in shown if not is_below(work, mount.at)]
    return Policy(mounts=(*above, Mount.read_write(work), *others))


def _working_directory(name: str) -> str:
    """The directory to make writable: one project, never all that somebody owns."""
    try:
        path = os.getcwd()
    except FileNotFoundError:
        path = ""
    if path and may_show(path, known_homes()):
        return path
    what = f"not in {path}, which holds more than one project" if path else "the directory is gone"
    hint = "change to the project's own directory, or name what to make writable with --rw"
    message = f"--profile {name} makes the working directory writable: {what}"
    raise PolicyError(message, field="profile", value=path, hint=hint)


_MAKERS: dict[str, Callable[[], Policy]] = {
    "default": default,
    "strict": lambda: strict(home_inside(known_homes()[0], whole_root=False)),
    "dev": lambda: dev(_working_directory("dev")),
    "offline-build": lambda: offline_build(known_homes()[0], _working_directory("offline-build")),
}
# Each with a line on what it is for.
NAMES = {
    "default": "the host's programs and the working directory, read-only; no network",
    "strict": "only the command and its libraries; what can be written cannot be executed",
    "dev": "the working directory writable, but for what trusted tools would execute",
    "offline-build": "as dev, with private copies of the caller's package caches",
}


def builtin(name: str) -> Policy:
    """Return a built-in profile as it is in this working directory, for this caller.

    Raises:
        PolicyError: there is none of that name, or it must not be used in this directory.
    """
    if name not in _MAKERS:
        hint = f"the names are {', '.join(NAMES)}; a file has a / in it or ends in .toml"
        raise PolicyError(f"profile: no built-in one is named {name}", field="profile", hint=hint)
    return _MAKERS[name]()
