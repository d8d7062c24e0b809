"""The built-in profiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsule import profile
from capsule.base.errors import PolicyError
from capsule.policy import builtin
from capsule.policy.mounts import Mount, MountKind
from capsule.policy.policy import Network, Policy, System

# --- the built-in ones --------------------------------------------------------------------------


def test_the_built_in_profiles(project: Path) -> None:
    """Each is the policy that docs/files.md describes."""
    home = str(project.parent)
    assert list(builtin.NAMES) == ["default", "strict", "dev", "offline-build"]
    assert builtin.builtin("default") == Policy()
    assert builtin.builtin("dev") == Policy(mounts=(Mount.read_write(project),))
    assert builtin.builtin("strict") == Policy(
        system=System.NEEDED,
        show_cwd=False,
        mounts=tuple(Mount.tmpfs(at, "64M", noexec=True) for at in ("/tmp", "/dev/shm", home)),
    )
    offline = builtin.builtin("offline-build")
    assert offline.network is Network.NONE
    assert offline.mounts[0] == Mount.read_write(project)
    assert all(mount.optional for mount in offline.mounts[1:])
    kinds = {mount.source.removeprefix(f"{home}/"): mount.kind for mount in offline.mounts[1:]}
    assert kinds.pop(".rustup") is MountKind.READ_ONLY
    assert set(kinds.values()) == {MountKind.OVERLAY}
    assert {".cargo/registry", ".m2/repository", "go/pkg/mod", ".npm/_cacache"} <= set(kinds)


@pytest.mark.usefixtures("project")
def test_every_built_in_profile_loads_back() -> None:
    """As TOML each is equal to itself; each has a maker and a line of text."""
    assert set(builtin._MAKERS) == set(builtin.NAMES)
    for name in builtin.NAMES:
        policy = builtin.builtin(name)
        assert profile.loads(profile.dump(policy)) == policy


@pytest.mark.parametrize(
    "secret",
    [
        ".cargo/credentials.toml", ".cargo/config.toml", ".m2/settings.xml", ".npmrc", ".pypirc",
        ".gradle/gradle.properties", ".config/pip/pip.conf", ".ssh/id_ed25519", ".docker/config.json",
        ".gem/credentials", ".config/gh/hosts.yml", ".git-credentials", ".yarnrc.yml", ".config/go/env",
        ".local/share/uv/credentials/x", ".netrc",
    ],
)  # fmt: skip
def test_no_profile_shows_a_credential(secret: str, project: Path) -> None:
    """No mount of a built-in profile is at or above a file that is known to hold a token."""
    path = f"{project.parent}/{secret}"
    for name in builtin.NAMES:
        for mount in builtin.builtin(name).mounts:
            assert not mount.source or not f"{path}/".startswith(f"{mount.source}/")


@pytest.mark.parametrize("name", ["dev", "offline-build"])
def test_no_home_is_made_writable(name: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In /, a home, above one or in a shared directory they are refused, with the remedy."""
    for place in ("/", project.parent, project.parent.parent, "/tmp", "/etc"):
        monkeypatch.chdir(place)
        with pytest.raises(PolicyError) as caught:
            builtin.builtin(name)
        assert caught.value.message.startswith(f"--profile {name} makes the working directory writable")
        assert "--rw" in (caught.value.hint or "")
    gone = project / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(PolicyError, match="gone"):
        builtin.builtin(name)


def test_a_project_in_a_cache(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is itself also where it is a cache, lies in one or holds one."""
    home = project.parent
    for place in ("go/pkg/mod", "go/pkg/mod/x", "go"):
        (home / place).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(home / place)
        mounts = builtin.builtin("offline-build").mounts
        assert Mount.read_write(home / place) in mounts
        own = next(mount for mount in reversed(mounts) if f"{home}/{place}".startswith(mount.at))
        assert own.kind is MountKind.READ_WRITE
