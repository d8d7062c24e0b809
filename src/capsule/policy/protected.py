"""Names in a writable tree that trusted tools of the host later execute or obey, and how to find them.

What counts: it takes effect unasked, when somebody enters the directory, opens it in an editor, uses
git in it, or logs in. What is run because somebody asks for it (a Makefile, the scripts of a
package.json, conftest.py, .venv) is the work itself and not guarded. No such list is complete.

`sightings.look` finds what matches in a tree, before a capsule (`examine`) and after it (`aftermath`),
by the same rules, so that what is found only after it is new. It is given
``within(in_force(policy.protect, policy.unprotect), tree)``.
"""

from __future__ import annotations

import os
import sys

from capsule.base.errors import PolicyError
from capsule.base.text import printable
from capsule.base.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# A tree is looked through breadth first: its top, and so many levels below it,
GUARD_DEPTH = 4
# until so many entries were seen. What lies at the top is looked up directly and always found.
GUARD_ENTRIES = 20_000
# Each is a mount: of what is protected, and of every directory above it in its tree.
MOST_GUARDED = 2048
# PATH_MAX, with the NUL.
_PATH_BYTES = 4095


class Guard(Value):
    """A protected name.

    Attributes:
        name: a path such as ``.git/hooks``. With ``**/`` in front, one that the policy names although
            the table has it in fewer places.
        anywhere: whether it counts at any depth of a tree, or only at its top and in home directories.
        why: who executes or obeys it.
        unless_directory: a directory of that name is not meant.
        home: its name says nothing about a tree: it counts in home directories alone.
        at: where it stands in one tree, if that is not where its name says; see `within`.
    """

    name: str
    anywhere: bool
    why: str
    unless_directory: bool = False
    home: bool = False
    at: str = ""

    @property
    def path(self) -> str:
        """Its place below a tree's top, or, if it counts anywhere, below any directory."""
        return self.at or self.name.removeprefix("**/")


_GIT = "git runs it, or commands that it names"
_HOOKS = "git runs it where core.hooksPath names it"
_DIRECTORY = "read when a shell enters the directory"
_EDITOR = "the editor runs what it names"
_AGENT = "says what the coding agent may run unasked"
_SHELL = "the shell runs it"
_SESSION = "started with the session"
_PATH = "usually on PATH"
_TOOL = "names commands that the tool runs"

_ANYWHERE = {
    ".git/hooks": _GIT,
    ".git/config": _GIT,
    ".git/config.worktree": _GIT,
    ".git/commondir": "tells git to take hooks and configuration from elsewhere",
    ".githooks": _HOOKS,
    ".husky": _HOOKS,
    ".pre-commit-config.yaml": "pre-commit runs what it names at every commit",
    "lefthook.yml": "lefthook runs what it names at every commit",
    ".hg/hgrc": "Mercurial runs the hooks that it names",
    ".hg/sharedpath": "tells Mercurial to take its configuration from elsewhere",
    ".jj/repo/config.toml": "jj runs what it names",
    ".envrc": _DIRECTORY,
    ".direnv": _DIRECTORY,
    "mise.toml": _DIRECTORY,
    ".mise.toml": _DIRECTORY,
    ".vscode": _EDITOR,
    ".idea": _EDITOR,
    ".devcontainer": _EDITOR,
    ".devcontainer.json": _EDITOR,
    ".fleet": _EDITOR,
    ".helix": _EDITOR,
    ".zed": _EDITOR,
    ".exrc": _EDITOR,
    ".nvim.lua": _EDITOR,
    ".nvimrc": _EDITOR,
    ".vimrc": _EDITOR,
    ".dir-locals.el": _EDITOR,
    ".dir-locals-2.el": _EDITOR,
    ".aider.conf.yml": _AGENT,
    ".claude": _AGENT,
    ".codex": _AGENT,
    ".continue": _AGENT,
    ".cursor": _AGENT,
    ".gemini": _AGENT,
    ".kiro": _AGENT,
    ".mcp.json": _AGENT,
    ".opencode": _AGENT,
    ".qwen": _AGENT,
    ".windsurf": _AGENT,
    "opencode.json": _AGENT,
    ".gdbinit": "the debugger runs it",
    ".lldbinit": "the debugger runs it",
    ".pdbrc": "the debugger runs it",
    ".Rprofile": "R runs it",
    "capsule.toml": "Capsule obeys it",
}

# A project has no use for these names, so they are protected at the top of any tree: whose home it
# is cannot always be known.
_TOP = {
    ".bash_aliases": _SHELL,
    ".bash_login": _SHELL,
    ".bash_logout": _SHELL,
    ".bash_profile": _SHELL,
    ".bashrc": _SHELL,
    ".cshrc": _SHELL,
    ".inputrc": "binds keys to what the shell then runs",
    ".kshrc": _SHELL,
    ".login": _SHELL,
    ".profile": _SHELL,
    ".tcshrc": _SHELL,
    ".zlogin": _SHELL,
    ".zlogout": _SHELL,
    ".zprofile": _SHELL,
    ".zshenv": _SHELL,
    ".zshrc": _SHELL,
    ".config/fish": _SHELL,
    ".local/share/fish": _SHELL,
    ".pam_environment": _SESSION,
    ".xinitrc": _SESSION,
    ".xprofile": _SESSION,
    ".xsession": _SESSION,
    ".xsessionrc": _SESSION,
    ".config/autostart": _SESSION,
    ".config/environment.d": _SESSION,
    ".config/plasma-workspace": _SESSION,
    ".config/systemd": _SESSION,
    ".local/share/applications": "started in the place of programs of the same name",
    ".local/share/dbus-1": _SESSION,
    ".local/share/systemd": _SESSION,
    ".local/bin": _PATH,
    ".local/lib": "Python imports from it at every start",
    ".config/capsule": "Capsule obeys it",
    ".config/git": _GIT,
    ".gitconfig": _GIT,
    ".ssh": "says who may log in, and what ssh runs",
    ".gnupg": "says what gpg runs and trusts",
    ".config/emacs": _EDITOR,
    ".config/nvim": _EDITOR,
    ".emacs": _EDITOR,
    ".emacs.d": _EDITOR,
    ".gvimrc": _EDITOR,
    ".vim": _EDITOR,
    ".config/mise": _DIRECTORY,
    ".config/tmux": _TOOL,
    ".ipython": "IPython runs what lies in it",
    ".jupyter": "Jupyter runs what lies in it",
    ".psqlrc": _TOOL,
    ".screenrc": _TOOL,
    ".sqliterc": _TOOL,
    ".tmux.conf": _TOOL,
}

# Names that projects have for their own ends.
_HOME = {
    "bin": _PATH,
    ".aws": _TOOL,
    ".cargo/bin": _PATH,
    ".cargo/config": _TOOL,
    ".cargo/config.toml": _TOOL,
    ".cargo/env": _SHELL,
    ".claude.json": _AGENT,
    ".config/pip": "says from where pip installs",
    ".docker": _TOOL,
    ".kube": _TOOL,
    ".npmrc": _TOOL,
    ".pip": "says from where pip installs",
    ".pypirc": "says where packages are sent to",
    ".subversion": _TOOL,
    "go/bin": _PATH,
}

# Not a path: where Capsule and its Python are installed, if that is in the tree.
_ITSELF = "capsule-itself"

TABLE: tuple[Guard, ...] = (
    # As a directory it is the repository itself, which commits change.
    Guard(".git", True, "leads git to a repository elsewhere, which it obeys", unless_directory=True),
    *(Guard(name, True, why) for name, why in _ANYWHERE.items()),
    *(Guard(name, False, why) for name, why in _TOP.items()),
    *(Guard(name, False, why, home=True) for name, why in _HOME.items()),
    Guard(_ITSELF, False, "its code runs at the next start of a capsule", home=True),
)
_BY_NAME = {guard.name: guard for guard in TABLE}

# Of these, the repository of a submodule, a linked working tree and a bare repository has its own.
IN_GIT = (".git/hooks", ".git/config", ".git/config.worktree", ".git/commondir")
REPOSITORIES = ("modules", "worktrees")


# --- which guards count ---------------------------------------------------------------------


def in_force(protect: Iterable[str], unprotect: Iterable[str]) -> tuple[Guard, ...]:
    """The guards of a policy: the table without *unprotect*, and what *protect* names, at any depth.

    Raises:
        PolicyError: the table has no such name to leave out.
    """
    without = frozenset(unprotect)
    unknown = sorted(without - _BY_NAME.keys() - {"all"})
    if unknown:
        raise _no_such(unknown[0])
    table = () if "all" in without else tuple(guard for guard in TABLE if guard.name not in without)
    own = (_given(name) for name in sorted(frozenset(protect)))
    return (*table, *(guard for guard in own if guard not in table))


def _no_such(name: str) -> PolicyError:
    """The error about an unknown name: those that are like it, and where all of them are."""
    from difflib import get_close_matches  # slow to import

    close = get_close_matches(name, ("all", *_BY_NAME), 3)
    meant = f"do you mean {' or '.join(close)}? " if close else ""
    hint = f"{meant}`capsule policy protected` lists the names; all stands for the whole list"
    message = f"unprotect: not a protected name: {name}"
    return PolicyError(message, field="unprotect", value=name, hint=hint)


def _given(name: str) -> Guard:
    """The table's guard, unless that counts in fewer places than a name that the policy gives."""
    guard = _BY_NAME.get(name)
    if guard is not None and guard.anywhere and not guard.unless_directory:
        return guard
    return Guard(name if guard is None else f"**/{name}", True, "the policy names it")


def check_places(places: Iterable[str]) -> None:
    """Whether all these places, of what is protected and of what is above, can be mounts.

    Raises:
        PolicyError: they are too many, or the path of one is longer than the kernel takes.
    """
    number = 0
    for place in places:
        number += 1
        if len(os.fsencode(place)) > _PATH_BYTES:
            message = f"mounts: a protected path is longer than {_PATH_BYTES} bytes: {printable(place)}"
            hint = "show its tree at a shorter place (--rw PATH:/AT), or leave the name out (unprotect)"
            raise PolicyError(message, field="mounts", value=place, hint=hint)
    if number > MOST_GUARDED:
        message = f"mounts: protected paths in writable trees, and the directories above them: {number}"
        message += f"; at most {MOST_GUARDED} can be protected"
        hint = "show smaller trees, or leave names out of the protected ones (unprotect)"
        raise PolicyError(message, field="mounts", value=number, hint=hint)


def named(names: Iterable[str]) -> tuple[Guard, ...]:
    """The guards whose `Guard.name` these are, as `in_force` gave them."""
    return tuple(_BY_NAME.get(name) or Guard(name, True, "the policy names it") for name in names)


def within(guards: Iterable[Guard], tree: str) -> tuple[Guard, ...]:
    """The guards as they count in the tree at this path of the host, which has no link in it.

    A guard of home directories becomes one for a place in this tree, or is left out; likewise if the
    tree is itself part of what a guard names, as *project*/.git is.
    """
    homes = _homes(tree)
    found: dict[tuple[str, bool], Guard] = {}
    for guard in guards:
        for one in _placed(guard, tree, homes):
            found.setdefault((one.path, one.unless_directory), one)
    return tuple(found.values())


def _placed(guard: Guard, tree: str, homes: list[str]) -> list[Guard]:
    """One guard for each place that it has in a tree."""
    top = tree.rstrip("/") + "/"
    placed = [
        guard.replace(anywhere=False, home=False, at=place[len(top) :])
        for place in _places(guard, tree, homes)
        if place.startswith(top)
    ]
    return placed if guard.home else [guard, *placed]


def _places(guard: Guard, tree: str, homes: list[str]) -> list[str]:
    """Paths of the host that a guard names, besides those that its name says in a tree."""
    if guard.name == _ITSELF:
        own = (sys.prefix, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        return [os.path.realpath(path) for path in own]
    path = guard.path
    if not guard.anywhere:
        return [f"{home}/{path}" for home in homes]
    parts = path.split("/")
    beginnings = ["/" + "/".join(parts[:end]) for end in range(1, len(parts))]
    return [
        f"{tree.removesuffix(beginning)}/{path}" for beginning in beginnings if tree.endswith(beginning)
    ]


def _homes(tree: str) -> list[str]:
    """The caller's home directories and that of the tree's owner, without a link."""
    import pwd

    homes = [os.environ.get("HOME", "")]
    uids = {os.geteuid()}
    try:
        uids.add(os.stat(tree).st_uid)
    except OSError:
        pass
    for uid in uids:
        try:
            homes.append(pwd.getpwuid(uid).pw_dir)
        except KeyError:
            continue
    real = {os.path.realpath(home) for home in homes if home.startswith("/")}
    return sorted(real - {"/"})


def match(relative: str, guards: Iterable[Guard], kind: str = "directory") -> Guard | None:
    """The guard that protects a path, because it names that or a directory above it.

    Nothing is looked at. Names compare byte for byte; `sightings` knows file systems that fold case.

    Args:
        relative: the path from the tree's top.
        guards: as `in_force` or `within` gives them.
        kind: what stands there; "symlink" also matches where a link in the place of a directory would
            lead to what a guard names.
    """
    parts = relative.split("/")
    for guard in guards:
        if not (guard.home and not guard.at) and _matches(guard, parts, kind):
            return guard
    return None


def _matches(guard: Guard, parts: list[str], kind: str) -> bool:
    name = guard.path.split("/")
    starts = range(len(parts)) if guard.anywhere else range(1)
    if any(_matches_from(guard, name, parts[start:], kind) for start in starts):
        return True
    # The tree may be a .git directory itself.
    whole = parts if guard.anywhere else [".git", *parts]
    return guard.name in IN_GIT and _in_repository(name[-1], whole)


def _matches_from(guard: Guard, name: list[str], parts: list[str], kind: str) -> bool:
    if guard.unless_directory:
        return parts == name and kind != "directory"
    if parts[: len(name)] == name:
        return True
    return kind == "symlink" and parts == name[: len(parts)]


def _in_repository(last: str, parts: list[str]) -> bool:
    """Whether it may be such a name in the repository of a submodule or a linked working tree."""
    for number, part in enumerate(parts[:-2]):
        if part == ".git" and parts[number + 1] in REPOSITORIES and last in parts[number + 2 :]:
            return True
    return False
