"""Well-known secrets in a home that is shown: hidden unless a mount names them."""

from __future__ import annotations

import os

from capsule.base.text import above, is_below, listed
from capsule.host.ids import group_of
from capsule.host.places import known_homes, real_path
from capsule.policy.mounts import Mount, MountKind
from capsule.policy.units import unknown

from .found import Found

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from .hides import Tree

# Below a home. docs/files.md has the same table; a test compares.
SECRETS = {
    "keys and passwords": (
        ".ssh", ".gnupg", ".password-store", ".local/share/keyrings", ".local/share/kwalletd",
        ".netrc", ".pgpass", ".my.cnf", ".git-credentials", ".config/git/credentials", ".vault-token",
        ".config/op", ".config/keepassxc", ".age", ".config/sops",
    ),
    "clouds and clusters": (
        ".aws", ".azure", ".config/gcloud", ".kube", ".docker/config.json", ".oci", ".s3cfg", ".boto",
        ".config/doctl", ".config/rclone", ".config/hcloud", ".terraform.d/credentials.tfrc.json",
        ".config/containers/auth.json", ".fly", ".config/heroku",
    ),
    "package registries and code hosts": (
        ".npmrc", ".yarnrc.yml", ".pypirc", ".cargo/credentials", ".cargo/credentials.toml",
        ".gem/credentials", ".m2/settings.xml", ".gradle/gradle.properties", ".composer/auth.json",
        ".config/composer/auth.json", ".config/gh", ".config/glab-cli", ".config/hub",
        ".huggingface/token", ".cache/huggingface/token", ".kaggle",
    ),
    "agents": (
        ".claude.json", ".claude/.credentials.json", ".codex/auth.json", ".gemini/oauth_creds.json",
        ".config/github-copilot", ".config/goose/secrets.yaml", ".local/share/opencode/auth.json",
        ".aider.conf.yml",
    ),
    "browsers and mail": (
        ".mozilla", ".config/google-chrome", ".config/chromium", ".config/BraveSoftware",
        ".config/microsoft-edge", ".config/vivaldi", ".config/opera", ".thunderbird",
        ".config/evolution", ".local/share/evolution",
    ),
    "histories": (
        ".bash_history", ".zsh_history", ".histfile", ".local/share/fish/fish_history",
        ".python_history", ".node_repl_history", ".psql_history", ".mysql_history",
        ".sqlite_history", ".rediscli_history", ".lesshst",
    ),
}  # fmt: skip


def check_names(shown: Collection[str]) -> None:
    """Check that the table has these names.

    Raises:
        PolicyError: one is unknown.
    """
    known = ["all", *(name for names in SECRETS.values() for name in names)]
    for name in shown:
        if name not in known:
            where = "docs/files.md has the names"
            raise unknown("show_secrets", "one of the secrets in a home", name, known, where)


def find_secrets(
    trees: Sequence[Tree], places: Collection[str], command_id: int, leave: Collection[str] = ()
) -> tuple[list[Found], list[str]]:
    """Return what hides the secrets of the homes that are shown as a whole, and notes.

    Args:
        trees: the directories of the host that are shown.
        places: where the policy's mounts stand: who names a secret means to show it.
        command_id: who the command is on the host.
        leave: names that are not hidden, or all.
    """
    if "all" in leave:
        return [], []
    found: dict[str, Found] = {}
    notes: list[str] = []
    shown = [tree for tree in trees if tree.mount is not None]
    for home in dict.fromkeys(known_homes()):
        holding = [tree for tree in shown if is_below(home, tree.path)]
        if not holding:
            continue
        names = []
        for name, path in _present(home):
            if name in leave:
                continue
            hides = list(_hide(path, holding, places, command_id))
            found.update((one.mount.at, one) for one in hides)
            names += [name] if hides else []
        if names:
            which = listed(names, "secrets")
            notes.append(f"hidden in {home}: {which}; a mount of one (--ro {home}/{names[0]}) shows it")
    return list(found.values()), notes


def _present(home: str) -> Iterator[tuple[str, str]]:
    """Yield (name, path without a symbolic link) of the secrets that a home has."""
    for names in SECRETS.values():
        for name in names:
            path = os.path.join(home, name)
            if os.path.lexists(path):
                real = real_path(path)
                # A link may lead anywhere: what holds the home itself is no secret of it.
                if os.path.lexists(real) and not is_below(home, real):
                    yield name, real


def _hide(
    path: str, trees: Sequence[Tree], places: Collection[str], command_id: int
) -> Iterator[Found]:
    for tree in trees:
        if not is_below(path, tree.path) or _is_closed(path, tree, command_id):
            continue
        place = tree.place(os.path.relpath(path, tree.path))
        if place not in places:
            # A cover of its own, in which there can be places to mount at.
            yield Found(Mount.hide(place, optional=True), "", os.path.isdir(path))


def _is_closed(path: str, tree: Tree, command_id: int) -> bool:
    """Return whether a command that root has started cannot get to a path: there is nothing to cover.

    It is nobody, and in what it may write the tree's owner; root's own only in an overlay.
    """
    if os.geteuid() != 0:
        return False
    top = os.stat(tree.path)
    owners, groups = {command_id}, {command_id}
    is_overlay = tree.mount is not None and tree.mount.kind is MountKind.OVERLAY
    if is_overlay or (tree.is_changeable and top.st_uid != 0):
        owners.add(top.st_uid)
        groups.add(group_of(top.st_uid, top.st_gid))
    for folder in above(os.path.dirname(path)):
        found = os.stat(folder)
        enters = found.st_mode & 0o001 or (found.st_mode & 0o010 and found.st_gid in groups)
        if is_below(folder, tree.path) and not enters and found.st_uid not in owners:
            return True
    return False
