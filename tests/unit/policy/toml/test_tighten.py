"""A capsule.toml that is found in the working directory: it may only tighten."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given

from capsule import profile
from capsule.base.errors import PolicyError
from capsule.cli.options import parse
from capsule.cli.request import effective
from capsule.confine.seccomp import filters
from capsule.confine.seccomp.spec import Seccomp
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount, MountKind
from capsule.policy.policy import Network, Policy
from capsule.policy.toml import document as toml_text
from capsule.policy.toml import tighten
from tests.unit.policy.toml.policies import POLICIES

# --- a capsule.toml that is found ---------------------------------------------------------------


def tightened(text: str, *words: str) -> Policy:
    """What these options come to where the working directory's capsule.toml holds this."""
    Path("capsule.toml").write_text(text)
    policy, note = effective(parse("run", [*words, "true"]))
    assert note is not None
    assert note.startswith("capsule.toml of the working directory applies")
    return policy


def test_what_a_found_file_may_do(project: Path) -> None:
    """It hides, protects, lowers limits, takes the network and system calls away."""
    text = (
        'seccomp = { deny = ["ptrace", "flock"] }\nnetwork = "none"\n'
        'protect = ["x"]\nlimits = { timeout = 5, output = "1K" }\n'
        '[[mounts]]\nkind = "hide"\npattern = ".env"\n[[mounts]]\nkind = "hide"\npattern = "sub/key"\n'
    )
    words = ["--net=host", "--protect=y", "--timeout=5", "--ro=/data", "--allow-syscall=ptrace"]
    assert tightened(text, *words) == Policy(
        mounts=(Mount.read_only("/data"), Mount.hide(".env"), Mount.hide(project / "sub/key")),
        protect=("x", "y"),
        limits=Limits(5, 1024),
        seccomp=Seccomp(deny=("flock", "ptrace")),
    )
    assert tightened("") == effective(parse("run", ["true"]))[0] == Policy(limits=Limits(output=None))


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("limit", "flag", "found"),
    [
        ('memory = "64M"', "--memory=128M", Limits(None, None, memory=64 << 20)),
        ('memory = "64M"', "--memory=32M", Limits(None, None, memory=32 << 20)),
        ("pids = 9", "--swap=0", Limits(None, None, pids=9)),
        ("swap = 0", "--swap=1G", Limits(None, None)),
        ("cpus = 0.5", "--cpus=2", Limits(None, None, cpus=0.5)),
        ("idle = 5", "--idle=3", Limits(None, None, idle=3)),
    ],
)
def test_a_found_file_lowers_any_limit(limit: str, flag: str, found: Limits) -> None:
    """The stricter of the two counts."""
    assert tightened(f"[limits]\n{limit}", flag).limits == found


@pytest.mark.usefixtures("project")
def test_what_a_found_file_denies_is_denied() -> None:
    """Whatever the caller allows: the same name or group, a name of the group, a group of the name."""
    for allow in ("ptrace", "@debug"):
        for deny in ("ptrace", "@debug"):
            policy = tightened(f'seccomp.deny = ["{deny}"]', f"--allow-syscall={allow}")
            found = filters.load(policy.seccomp, arch="x86_64")
            assert found is not None
            assert not found.request.rules().call("ptrace").allowed, (allow, deny)


@pytest.mark.parametrize(
    ("text", "words", "where"),
    [
        ('\nnetwork = "host"', [], "capsule.toml:2: network"),
        ('\nnetwork = "host"', ["--net=host"], "capsule.toml:2: network"),
        ("uid = 1", [], "capsule.toml:1: uid"),
        ("env = {}", [], "capsule.toml:1: env"),
        ("inherit_env = false", [], "capsule.toml:1: inherit_env"),
        ('unprotect = ["all"]', [], "capsule.toml:1: unprotect"),
        ("show_cwd = false", [], "capsule.toml:1: show_cwd"),
        ('system = "needed"', [], "capsule.toml:1: system"),
        ('seccomp = "strict"', [], "capsule.toml:1: seccomp"),
        ('[seccomp]\ndeny = []\nprofile = "strict"', [], "capsule.toml:3: seccomp.profile"),
        ('seccomp.allow = ["ptrace"]', [], "capsule.toml:1: seccomp.allow"),
        ("pretend_chown = true", [], "capsule.toml:1: pretend_chown"),
        ('[limits]\ntimeout = "none"', ["--timeout=5"], "capsule.toml:2: limits.timeout"),
        ("limits.timeout = 'none'", [], "capsule.toml:1: limits.timeout"),
        ('[limits]\noutput = "none"', ["--json=-"], "capsule.toml:2: limits.output"),
        (
            '[[mounts]]\nkind = "hide"\npattern = "x"\n[[mounts]]\nkind = "read_only"\nsource = "/x"',
            [],
            "capsule.toml:5: mounts[1].kind",
        ),
        ('[[mounts]]\nkind = "tmpfs"\nat = "/x"', [], "capsule.toml:2: mounts[0].kind"),
    ],
)
@pytest.mark.usefixtures("project")
def test_what_a_found_file_may_not_do(text: str, words: list[str], where: str) -> None:
    """Any other key, or a looser value, is refused with its line and how to trust the file."""
    with pytest.raises(PolicyError) as caught:
        tightened(text, *words)
    assert caught.value.message == (
        f"{where}: a capsule.toml that is found in the working directory may only tighten"
    )
    assert "--profile ./capsule.toml" in (caught.value.hint or "")


@pytest.mark.usefixtures("project")
def test_of_two_limits_the_stricter_one_counts() -> None:
    """A found file whose limit is higher than the run's own changes nothing; a lower one counts."""
    words = ["--timeout=5", "--output=1K"]
    for text, limits in (
        ('limits = { timeout = 6, output = "2K" }', Limits(5, 1024)),
        ("limits = { timeout = 4, output = 1 }", Limits(4, 1)),
        ("limits = { timeout = 6, output = 1 }", Limits(5, 1)),
    ):
        assert tightened(text, *words).limits == limits
    assert tightened("limits = { timeout = 6 }").limits == Limits(6, None)


@pytest.mark.usefixtures("project")
def test_every_other_key_is_refused() -> None:
    """Of all fields only those that can take away are allowed; a new one is not."""
    values = profile.dump(Policy(), everything=True) + 'root = "/"\ncwd = "/"\n'
    lines = [line for line in values.split("\n[", 1)[0].splitlines() if line]
    names = {line.split()[0] for line in lines}
    allowed = {"network", "protect"}
    for line in lines:
        if line.split()[0] in allowed:
            tightened(line)
        else:
            with pytest.raises(PolicyError, match="may only tighten"):
                tightened(line)
    assert allowed <= names


@pytest.mark.usefixtures("project")
def test_a_mistake_in_a_found_file() -> None:
    """It is an error as in any profile, and one that hides what was asked for is one, too."""
    with pytest.raises(PolicyError, match=r"capsule\.toml:1: limits\.timeout: not a time"):
        tightened("limits = { timeout = 'soon' }")
    with pytest.raises(PolicyError, match=r"capsule\.toml:1: nope: unknown key"):
        tightened("nope = 1")
    with pytest.raises(PolicyError, match=r"capsule\.toml:1: mounts: hide /a would hide tmpfs /a/b"):
        tightened('[[mounts]]\nkind = "hide"\npattern = "/a"', "--tmpfs=/a/b")


def test_a_found_file_that_is_named_is_trusted(project: Path) -> None:
    """--profile ./capsule.toml, in whatever spelling, may do what any profile may."""
    Path("capsule.toml").write_text("uid = 7\n")
    for name in ("capsule.toml", "./capsule.toml", f"{project}/capsule.toml"):
        policy, note = effective(parse("run", ["--profile", name, "true"]))
        assert (policy.uid, note) == (7, None)
    Path("other.toml").write_text("uid = 7\n")
    for name in ("./other.toml", "strict"):
        with pytest.raises(PolicyError, match="may only tighten"):
            effective(parse("run", ["--profile", name, "true"]))


@pytest.mark.usefixtures("project")
def test_a_found_file_must_be_a_file() -> None:
    """A link, a directory, a pipe or a file of more than 1 MiB is refused, and not waited for."""
    file = Path("capsule.toml")
    Path("real.toml").write_text("")
    makers: dict[str, Callable[[], object]] = {
        "a symbolic link": lambda: file.symlink_to("real.toml"),
        "not a regular file": lambda: os.mkfifo(file),
        "larger than 1 MiB": lambda: file.write_bytes(b"#" * (toml_text.LARGEST_FILE + 1)),
    }
    for why, make in makers.items():
        make()
        with pytest.raises(PolicyError) as caught:
            effective(parse("run", ["true"]))
        assert caught.value.message == f"capsule.toml: cannot be read: {why}"
        file.unlink()
    file.symlink_to("nowhere")
    with pytest.raises(PolicyError, match="a symbolic link"):
        effective(parse("run", ["true"]))
    file.unlink()
    file.mkdir()
    with pytest.raises(PolicyError, match="not a regular file"):
        effective(parse("run", ["true"]))


def test_only_the_working_directory_is_looked_in(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the directory above, or in the one of --chdir, is not found."""
    Path("capsule.toml").write_text("uid = 7\n")
    (project / "sub").mkdir()
    monkeypatch.chdir(project / "sub")
    assert effective(parse("run", ["true"]))[1] is None
    assert effective(parse("run", ["--chdir", str(project), "true"]))[1] is None


@given(POLICIES, POLICIES)
def test_a_found_file_never_loosens(asked: Policy, written: Policy) -> None:
    """Whatever it holds: it is refused, or every part of the policy is as before or tighter."""
    text = profile.dump(written)
    document = toml_text.Document(text, "capsule.toml", "/")
    with contextlib.suppress(PolicyError):
        found_policy = tighten.tighten_by(asked, document)
        assert found_policy.mounts[: len(asked.mounts)] == asked.mounts or {
            mount.kind for mount in set(found_policy.mounts) - set(asked.mounts)
        } <= {MountKind.HIDE}
        assert set(asked.protect) <= set(found_policy.protect)
        same = found_policy.replace(
            mounts=asked.mounts, protect=asked.protect, network=asked.network, limits=asked.limits
        )
        assert same == asked
        assert found_policy.network in (asked.network, Network.NONE)
        for name in Limits.__value_fields__:
            before, after = getattr(asked.limits, name), getattr(found_policy.limits, name)
            assert before is None or (after is not None and after <= before)
