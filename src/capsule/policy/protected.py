"""Names in a writable tree that trusted tools of the host later execute or obey.

What counts: it takes effect unasked, when somebody enters the directory, opens it in an editor, uses
git in it, or logs in. What is run because somebody asks for it (a Makefile, the scripts of a
package.json, conftest.py, .venv) is the work itself and not guarded. No such list is complete.

`files.guarded` finds what matches in a tree, before a capsule and after it, by the same rules, so that
what is found only after it is new. `files.guards` says where a guard counts in a tree.
"""

from __future__ import annotations

from capsule.base.values import Value

from .units import unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


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
    ".git/info/attributes": "says which of the configured commands git runs on a file",
    ".git/objects/info/alternates": "has git read objects of another repository",
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
ITSELF = "capsule-itself"

TABLE: tuple[Guard, ...] = (
    # As a directory it is the repository itself, which commits change.
    Guard(".git", True, "leads git to a repository elsewhere, which it obeys", unless_directory=True),
    *(Guard(name, True, why) for name, why in _ANYWHERE.items()),
    *(Guard(name, False, why) for name, why in _TOP.items()),
    *(Guard(name, False, why, home=True) for name, why in _HOME.items()),
    Guard(ITSELF, False, "its code runs at the next start of a capsule", home=True),
)
_BY_NAME = {guard.name: guard for guard in TABLE}


# --- which guards count ---------------------------------------------------------------------


def in_force(protect: Iterable[str], unprotect: Iterable[str]) -> tuple[Guard, ...]:
    """The guards of a policy: the table without *unprotect*, and what *protect* names, at any depth.

    Raises:
        PolicyError: the table has no such name to leave out.
    """
    without = frozenset(unprotect)
    missing = sorted(without - _BY_NAME.keys() - {"all"})
    if missing:
        where = "`capsule policy protected` lists the names"
        raise unknown("unprotect", "a protected name", missing[0], ("all", *_BY_NAME), where)
    table = () if "all" in without else tuple(guard for guard in TABLE if guard.name not in without)
    own = (_given(name) for name in sorted(frozenset(protect)))
    return (*table, *(guard for guard in own if guard not in table))


def _given(name: str) -> Guard:
    """The table's guard, unless that counts in fewer places than a name that the policy gives."""
    guard = _BY_NAME.get(name)
    if guard is not None and guard.anywhere and not guard.unless_directory:
        return guard
    return Guard(name if guard is None else f"**/{name}", True, "the policy names it")


def named(names: Iterable[str]) -> tuple[Guard, ...]:
    """The guards whose `Guard.name` these are, as `in_force` gave them."""
    return tuple(_BY_NAME.get(name) or Guard(name, True, "the policy names it") for name in names)
