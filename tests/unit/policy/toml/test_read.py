"""Profiles: TOML to a policy and back, errors with their line, and the built-in ones."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule import profile
from capsule.base.errors import PolicyError
from capsule.cli.options import parse
from capsule.cli.request import effective, place_error
from capsule.confine.seccomp import filters
from capsule.confine.seccomp.spec import Seccomp
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount, MountKind
from capsule.policy.policy import Policy
from capsule.policy.toml import document as toml_text
from capsule.policy.toml import keys as shapes
from tests.unit.policy.toml.policies import FLAG, MOUNTS, POLICIES

# --- there and back -----------------------------------------------------------------------------


@given(POLICIES, FLAG)
def test_what_is_written_loads_back(policy: Policy, everything: bool) -> None:
    """Any policy, whatever bytes its paths and variables have, is equal to what its TOML loads as."""
    text = profile.dump(policy, everything=everything)
    assert profile.loads(text) == profile.loads(text, "/elsewhere") == policy
    assert text.encode().decode() == text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_each_kind_of_mount_is_tried() -> None:
    """The random policies have every kind of mount, and each function's every parameter."""
    assert set(MOUNTS) == set(MountKind)
    assert {shape.name for kind in MountKind for shape in shapes.of_mount(kind).values()} == {
        "source", "at", "size", "keep", "noexec", "optional",
        "target", "mode", "data", "pattern", "node",
    }  # fmt: skip


def test_what_is_the_default_is_left_out() -> None:
    """The default policy is an empty text; on request every field that has a value is there."""
    assert profile.dump(Policy()) == ""
    assert profile.loads("") == Policy()
    text = profile.dump(Policy(), everything=True)
    assert profile.loads(text) == Policy()
    unset = {"root", "cwd", "env", "mounts", "tcp_connect", "tcp_bind"}
    assert set(re.findall(r"^\[?(\w+)", text, re.MULTILINE)) == (
        {*Policy.__value_fields__} - unset
        | set(Limits.__value_fields__)
        | set(Seccomp.__value_fields__)
    )


def test_how_it_is_written() -> None:
    """Sizes and modes as people write them, a table for each mount, defaults of mounts left out."""
    policy = Policy(
        mounts=(
            Mount.read_only("/data"),
            Mount.tmpfs("/scratch", "1G", noexec=True),
            Mount.overlay("/src", "/dst", keep="/keep"),
            Mount.content("a\nb", "/tmp/x", mode=0o600),
        ),
        network="host",
        extra_env={"A": "1", "B": None},
        limits=Limits("1m30s"),
    )
    assert profile.dump(policy) == (
        'network = "host"\n\n'
        "[limits]\ntimeout = 90\n\n"
        '[[mounts]]\nkind = "read_only"\nsource = "/data"\n\n'
        '[[mounts]]\nkind = "tmpfs"\nat = "/scratch"\nsize = "1G"\nnoexec = true\n\n'
        '[[mounts]]\nkind = "overlay"\nsource = "/src"\nat = "/dst"\nkeep = "/keep"\n\n'
        '[[mounts]]\nkind = "content"\ndata = "a\\nb"\nat = "/tmp/x"\nmode = 0o600\n\n'
        '[extra_env]\nA = "1"\nB = false\n'
    )


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ('root = "/image"', Policy(root="/image")),
        ('cwd = "sub"', Policy(cwd="sub")),
        ("env = {}", Policy(env={})),
        ('[env]\nA = "1"', Policy(env={"A": "1"})),
        ("[extra_env]\nA = false", Policy(extra_env={"A": None})),
        ('extra_env = { "base64=/w==" = { base64 = "/g==" } }', Policy(extra_env={"\udcff": "\udcfe"})),
        ('limits.timeout = "1m30s"', Policy(limits=Limits(90))),
        ("limits.timeout = 0.5", Policy(limits=Limits(0.5))),
        ('limits = { output = "none" }', Policy(limits=Limits(output=None))),
        ('limits = { timeout = "none", output = "1K" }', Policy(limits=Limits(output=1024))),
        ('root = { base64 = "L/8=" }', Policy(root="/\udcff")),
    ],
)
def test_a_key_sets_the_field_of_its_name(text: str, policy: Policy) -> None:
    """Each field as TOML has it: text or numbers for times and sizes, tables for variables."""
    assert profile.loads(text) == policy


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ('kind = "read_only"\nsource = "data"\nat = "/in"', Mount.read_only("/conf/data", "/in")),
        ('kind = "read_only"\nsource = "../x"', Mount.read_only("/x")),
        ('kind = "read_write"\nsource = "."', Mount.read_write("/conf")),
        ('kind = "overlay"\nsource = "/s"\nkeep = "k"', Mount.overlay("/s", keep="/conf/k")),
        ('kind = "overlay"\nsource = "/s"\nsize = 8192', Mount.overlay("/s", size=8192)),
        ('kind = "file"\nsource = "~/f"\nat = "/f"', Mount.file("/home/ada/f", "/f")),
        ('kind = "read_only"\nsource = "~"', Mount.read_only("/home/ada")),
        ('kind = "read_only"\nsource = "./~/x"', Mount.read_only("/conf/~/x")),
        ('kind = "read_only"\nsource = { base64 = "fi94" }', Mount.read_only("/conf/~/x")),
        ('kind = "symlink"\ntarget = "t"\nat = "/l"', Mount.symlink("t", "/l")),
        ('kind = "directory"\nat = "/d"\nmode = "0o700"', Mount.directory("/d", 0o700)),
        ('kind = "directory"\nat = "/d"\nmode = 0o700', Mount.directory("/d", 0o700)),
        ('kind = "content"\ndata = { base64 = "/w==" }\nat = "/c"', Mount.content(b"\xff", "/c")),
        (
            'kind = "device"\nnode = "/dev/kvm"\noptional = true',
            Mount.device("/dev/kvm", optional=True),
        ),
        ('kind = "hide"\npattern = ".env"', Mount.hide(".env")),
        ('kind = "hide"\npattern = "**/x"', Mount.hide("**/x")),
        ('kind = "hide"\npattern = "sub/x"', Mount.hide("/conf/sub/x")),
        ('kind = "hide"\npattern = "~/.x/*"', Mount.hide("/home/ada/.x/*")),
    ],
)
def test_a_mount(text: str, mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind is a function's name; paths of the host count from the file's directory or the home."""
    monkeypatch.setenv("HOME", "/home/ada")
    assert profile.loads(f"[[mounts]]\n{text}\n", "/conf").mounts == (mount,)


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's paths count from where it lies, whatever the working directory is."""
    (tmp_path / "p.toml").write_text('root = "image"\r\nuid = 7\r\n')
    wanted = Policy(root=f"{tmp_path}/image", uid=7)
    assert profile.load(tmp_path / "p.toml") == wanted
    monkeypatch.chdir(tmp_path)
    assert profile.load("p.toml") == wanted


# --- errors -------------------------------------------------------------------------------------


def refused(text: str) -> PolicyError:
    """The error that a profile ends with."""
    with pytest.raises(PolicyError) as caught:
        profile.loads(text, "/conf", name="p.toml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nnope = 1", "p.toml:3: nope: unknown key"),
        ("limits.nope = 1", "p.toml:1: limits.nope: unknown key"),
        ("[limits]\n\ntimeout = 'soon'", 'p.toml:3: limits.timeout: not a time: "soon"'),
        ("[limits]\ntimeout = 0", "p.toml:2: limits.timeout: not a time: 0"),
        ("[limits]\ntimeout = nan", "p.toml:2: limits.timeout: not a time: nan"),
        ("[limits]\noutput = 1.5", "p.toml:2: limits.output: not a size: 1.5"),
        ("limits = 5", "p.toml:1: limits: not a table: 5"),
        ("limits = [\n]", "p.toml:1: limits: not a table: []"),
        ("uid = '5'", 'p.toml:1: uid: not an id from 0 to 4294967294: "5"'),
        ("uid = true", "p.toml:1: uid: not an id"),
        ("show_cwd = 1", "p.toml:1: show_cwd: not true or false: 1"),
        ("hostname = ''", "p.toml:1: hostname: not a hostname"),
        ("hostname = 5", "p.toml:1: hostname: not text: 5"),
        ("network = 'some'", 'p.toml:1: network: not one of none, host: "some"'),
        ("network = ['none']", "p.toml:1: network[0]: not a host"),
        ("root = ''", 'p.toml:1: root: not a path: ""'),
        ('root = "a\\u0000b"', "p.toml:1: root: not a path"),
        ("root = { base64 = '?' }", 'p.toml:1: root: not base64: "?"'),
        ("root = { base64 = 'YQ==', more = 1 }", "p.toml:1: root: not text"),
        ("cwd = 1979-05-27", "p.toml:1: cwd: not text"),
        ("protect = 'x'", 'p.toml:1: protect: not an array of text: "x"'),
        ("uid = 1\nprotect = [\n 'x',\n 5]", "p.toml:2: protect[1]: not text: 5"),
        ("protect = ['x', '/y']", "p.toml:1: protect[1]: not a path inside of a tree"),
        ("env = 5", "p.toml:1: env: not a table of variables"),
        ("[env]\n'A=B' = '1'", "p.toml:2: env.A=B: not a variable's name"),
        ("[env]\nA = '1'\nB = false", "p.toml:3: env.B: not text"),
        ("[extra_env]\nA = true", "p.toml:2: extra_env.A: not text"),
        ("mounts = 5", "p.toml:1: mounts: not an array of tables: 5"),
        ("mounts = [5]", "p.toml:1: mounts[0]: a mount needs a kind"),
        ("[[mounts]]\nat = '/x'", "p.toml:1: mounts[0]: a mount needs a kind"),
        ("[[mounts]]\nkind = 'ro'", "p.toml:2: mounts[0].kind: not one of read_only, "),
        ("[[mounts]]\nkind = ['x']", "p.toml:2: mounts[0].kind: not one of"),
        ("[[mounts]]\nkind = 'tmpfs'", "p.toml:1: mounts[0]: a mount of kind tmpfs needs at"),
        (
            "[[mounts]]\nkind = 'symlink'",
            "p.toml:1: mounts[0]: a mount of kind symlink needs target and at",
        ),
        (
            "[[mounts]]\nkind='tmpfs'\nat='/x'\n[[mounts]]\n# x\nat='/y'\nkind='tmpfs'\nsize='X'",
            'p.toml:8: mounts[1].size: not a size: "X"',
        ),
        (
            "[[mounts]]\nkind = 'tmpfs'\nat = '/x'\nsize = 1",
            "p.toml:4: mounts[0].size: less than a page: 1",
        ),
        ("[[mounts]]\nkind = 'tmpfs'\nat = '/x'\nkeep = 'k'", "p.toml:4: mounts[0].keep: unknown key"),
        ("[[mounts]]\nkind = 'tmpfs'\nat = 'x'", "p.toml:3: mounts[0].at: not absolute: x"),
        ("[[mounts]]\nkind = 'tmpfs'\nat = '/'", "p.toml:3: mounts[0].at: cannot replace /"),
        ("[[mounts]]\nkind = 'read_only'\nsource = ''", 'p.toml:3: mounts[0].source: not a path: ""'),
        (
            "[[mounts]]\nkind = 'read_only'\nsource = '/x'\nnoexec = 1",
            "p.toml:4: mounts[0].noexec: not true or false: 1",
        ),
        (
            "[[mounts]]\nkind = 'directory'\nat = '/x'\nmode = '644'",
            'p.toml:4: mounts[0].mode: not permission bits: "644"',
        ),
        (
            "[[mounts]]\nkind = 'directory'\nat = '/x'\nmode = 644",
            "p.toml:4: mounts[0].mode: not permission",
        ),
        ("[[mounts]]\nkind = 'content'\nat = '/x'\ndata = 5", "p.toml:4: mounts[0].data: not text: 5"),
        (
            "mounts = [{kind = 'tmpfs', at = '/x', size = 1}]",
            "p.toml:1: mounts[0].size: less than a page: 1",
        ),
        (
            "[[mounts]]\nkind = 'tmpfs'\nat = '/x/y'\n[[mounts]]\nkind = 'tmpfs'\nat = '/x'",
            "p.toml:4: mounts[1]: tmpfs /x would hide tmpfs /x/y",
        ),
        ("a = ", "p.toml:1: not TOML: "),
        ("uid = 1\nuid = 2", "p.toml:2: not TOML: "),
        ("\n[limits\n", "p.toml:2: not TOML: "),
        ("uid = [\n1,\n", "p.toml:2: not TOML: "),
        ("uid = " + "9" * 5000, "p.toml:1: not TOML that is meant"),
        ("uid = " + "[" * 5000, "p.toml:1: not TOML"),
    ],
    ids=lambda text: text[:32],
)
def test_a_mistake_is_named_with_file_line_and_key(text: str, message: str) -> None:
    """No key is ignored, no value is guessed at: the error says where and what is wrong with it."""
    error = refused(text)
    assert error.message.startswith(message)
    assert error.exit_code == 2


def test_a_secret_is_not_shown() -> None:
    """The value of a variable that cannot be meant is not in the message."""
    for value in ("12345", "['12345']", "{ base64 = 5, x = '12345' }"):
        assert "12345" not in str(refused(f"[env]\nA = {value}"))


def test_a_hint_names_what_there_is() -> None:
    """An unknown key's hint lists the keys; a mount's those of its kind."""
    assert "show_cwd" in (refused("nope = 1").hint or "")
    assert refused("[[mounts]]\nkind = 'tmpfs'\nx = 1").hint == "the keys are kind, at, size, noexec"


@given(POLICIES)
def test_the_line_of_every_key(policy: Policy) -> None:
    """Each line that holds a key is the line of that key, whatever the values hold."""
    text = profile.dump(policy, everything=True)
    lines = text.splitlines()
    found_lines = toml_text.key_lines(text)
    for path, line in found_lines.items():
        shown = lines[line - 1]
        if isinstance(path[-1], int):
            assert shown == "[[mounts]]"
        elif not shown.startswith("["):
            assert shown.startswith(f"{toml_text.key(path[-1])} = ")
    # Every line but the blank ones is some key's.
    assert set(found_lines.values()) == {n for n, line in enumerate(lines, 1) if line}


@given(st.text("[]{}=.\"'\\#\n ab1,", max_size=40))
def test_any_text_is_a_profile_or_an_error(text: str) -> None:
    """Whatever a file holds, it is a policy or a PolicyError; of what is TOML every key has a line."""
    with contextlib.suppress(PolicyError):
        profile.loads(text)
    with contextlib.suppress(PolicyError):
        document = toml_text.Document(text, "p.toml", "")
        assert {(name,) for name in document.data} <= {path[:1] for path in toml_text.key_lines(text)}


@pytest.mark.parametrize(
    "text",
    [
        'x = """\n[a]\n"""\ny = 1', "x = '''\n#\"\n'''\ny = 1", 'x = "a\\"]"\n\ny = 1',
        "x = [ # ]\n[1], ']'\n]\ny = 1", "x = {a = [\n1\n]}\n# y\ny = 1", 'x = """""a"""""\n\n\ny = 1',
        "x.z.'y y' = 1\n\n\ny = 1", "\n\n\n y = 1 # x", '"x" = 1\n\n\n"y" = 1',
    ],
)  # fmt: skip
def test_the_line_after_any_value(text: str) -> None:
    """Strings over several lines, brackets and comments do not confuse the count."""
    assert toml_text.key_lines(text)["y",] == len(text.splitlines())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """What is missing, no file, too large or not UTF-8 is an error that names the file."""
    large, binary = tmp_path / "large.toml", tmp_path / "binary.toml"
    large.write_bytes(b"#" * (toml_text.LARGEST_FILE + 1))
    binary.write_bytes(b"a = 1\nb = '\xff'\n")
    cases = {
        tmp_path / "nosuch": "cannot be read: No such file or directory",
        tmp_path: "cannot be read: not a regular file",
        Path("/dev/null"): "cannot be read: not a regular file",
        large: "cannot be read: larger than 1 MiB",
    }
    for path, message in cases.items():
        with pytest.raises(PolicyError) as caught:
            profile.load(path)
        assert caught.value.message == f"{path}: {message}"
    with pytest.raises(PolicyError, match=r"binary\.toml:2: not TOML: not UTF-8"):
        profile.load(binary)
    large.write_bytes(b"#" * toml_text.LARGEST_FILE)
    assert profile.load(large) == Policy()


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe in the file system may never have a writer: it is refused, whoever names it."""
    os.mkfifo(tmp_path / "p.toml")
    with pytest.raises(PolicyError, match=r"p\.toml: cannot be read: not a regular file"):
        profile.load(tmp_path / "p.toml")


def test_a_pipe_that_is_written_to_later() -> None:
    """A descriptor's pipe is waited for until its writer closes it."""
    read, write = os.pipe()
    try:
        writer = threading.Thread(target=_write_in_parts, args=(write, [b"uid ", b"= 7\n"]))
        writer.start()
        assert profile.load(f"/proc/self/fd/{read}") == Policy(uid=7)
        writer.join()
    finally:
        os.close(read)


def _write_in_parts(fd: int, parts: list[bytes]) -> None:
    for part in parts:
        os.write(fd, part)
    os.close(fd)


def test_a_pipe_is_a_file() -> None:
    """What a shell makes of <(...) can be read."""
    read, write = os.pipe()
    os.write(write, b"uid = 7\n")
    os.close(write)
    assert profile.load(f"/dev/fd/{read}") == Policy(uid=7)
    os.close(read)


# --- system calls -------------------------------------------------------------------------------


def test_ways_to_write_what_system_calls_there_are() -> None:
    """A profile's name alone or a table; a file of rules lies beside the profile, or in the home."""
    home = os.path.expanduser("~")
    for text, expected in (
        ('seccomp = "debug"', Seccomp("debug")),
        ('seccomp = "~@chown @sync"', Seccomp("~@chown @sync")),
        ('[seccomp]\nallow = ["ptrace"]', Seccomp(allow=("ptrace",))),
        ('seccomp = "rules.json"', Seccomp("/conf/rules.json")),
        ('seccomp.profile = "../x/rules"', Seccomp("/x/rules")),
        ('seccomp = "~/rules.json"', Seccomp(f"{home}/rules.json")),
    ):
        assert profile.loads(text, "/conf") == Policy(seccomp=expected)


@pytest.mark.usefixtures("project")
def test_an_unknown_system_call_in_a_profile_is_placed() -> None:
    """Only the plan knows the names; its error says where in the file the value stands."""
    Path("p.toml").write_text('uid = 5\nseccomp.allow = ["pttrace"]\n')
    options = parse("run", ["--profile=p.toml", "true"])
    policy, _ = effective(options)
    with pytest.raises(PolicyError) as caught:
        filters.load(policy.seccomp)
    place_error(options, caught.value)
    assert caught.value.message == "p.toml:2: seccomp: no such system call: pttrace"
