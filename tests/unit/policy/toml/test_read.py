"""Profiles: TOML to a policy and back, errors with their line, and the built-in ones."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule import profile
from capsule.base.errors import PolicyError
from capsule.cli.options import parse
from capsule.cli.request import effective, place_error
from capsule.confine.seccomp import filters
from capsule.confine.seccomp.spec import Seccomp
from capsule.policy import builtin, protected
from capsule.policy.mounts import Mount, MountKind
from capsule.policy.policy import IdMap, Limits, Network, Policy, System
from capsule.policy.toml import document as toml_text
from capsule.policy.toml import keys as shapes
from capsule.policy.toml import tighten

# --- random policies ------------------------------------------------------------------------

# What a path, a word or a variable can be: any bytes but NUL.
_BYTES = st.binary(max_size=10).filter(lambda data: 0 not in data)
# Text that TOML could take for something else.
_SPECIAL = st.sampled_from(
    [
        "~/x",
        "~",
        "a\nb",
        'q"q',
        "'''",
        '"""',
        "\\",
        "\\u0041",
        "\x7f",
        "\x1b[31m",
        "é",
        "𝄞",
        "\r",
        "\t",
        "#",
    ]
)
_WORD = _BYTES.map(os.fsdecode) | _SPECIAL
_SOME = _WORD.filter(bool)
_ABSOLUTE = _SOME.map(lambda word: f"/{word}")
_SIZES = st.sampled_from([4096, 5000, "8K", "64M", 10**7, 2**40, 512 << 20])
_MODES = st.integers(0, 0o777)
_FLAG = st.booleans()
_Any = st.SearchStrategy[Any]


def _mount(make: Callable[..., Mount], *strategies: _Any, **named: _Any) -> st.SearchStrategy[Mount]:
    """Mounts of a kind, without those that its function refuses."""

    def attempt(values: tuple[tuple[object, ...], dict[str, object]]) -> Mount | None:
        with contextlib.suppress(PolicyError):
            return make(*values[0], **values[1])
        return None

    parts = st.tuples(*strategies)
    keys: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries({}, optional=named)
    made = st.tuples(parts, keys).map(attempt)
    return made.flatmap(lambda mount: st.nothing() if mount is None else st.just(mount))


_AT = st.none() | _ABSOLUTE
_BIND = {"noexec": _FLAG, "optional": _FLAG}
MOUNTS = {
    MountKind.READ_ONLY: _mount(Mount.read_only, _ABSOLUTE | _SOME, _AT, **_BIND),
    MountKind.READ_WRITE: _mount(Mount.read_write, _ABSOLUTE, _AT, **_BIND),
    MountKind.OVERLAY: _mount(Mount.overlay, _ABSOLUTE, _AT, size=_SIZES, keep=_SOME, **_BIND),
    MountKind.TMPFS: _mount(Mount.tmpfs, _ABSOLUTE, _SIZES, noexec=_FLAG),
    MountKind.HIDE: _mount(Mount.hide, _ABSOLUTE | _SOME | st.just("~/*"), optional=_FLAG),
    MountKind.SYMLINK: _mount(Mount.symlink, _SOME, _ABSOLUTE),
    MountKind.DIRECTORY: _mount(Mount.directory, _ABSOLUTE, _MODES),
    MountKind.FILE: _mount(Mount.file, _ABSOLUTE, _ABSOLUTE, mode=_MODES, optional=_FLAG),
    MountKind.CONTENT: _mount(Mount.content, st.binary() | st.text(), _ABSOLUTE, mode=_MODES),
    MountKind.DEVICE: _mount(Mount.device, _ABSOLUTE, _AT, optional=_FLAG),
}


def _in_force(mounts: list[Mount]) -> tuple[Mount, ...]:
    """As many of the mounts, from the first on, as do not contradict each other."""
    kept: tuple[Mount, ...] = ()
    for mount in mounts:
        with contextlib.suppress(PolicyError):
            kept = Policy(mounts=(*kept, mount)).mounts
    return kept


_PART = _SOME.filter(lambda word: "/" not in word and word not in (".", ".."))
_NAMES = st.lists(st.lists(_PART, min_size=1, max_size=2).map("/".join), max_size=3)
_PLAIN = frozenset("*?[" + "".join(map(chr, (*range(32), *range(127, 160)))))
_VARIABLE = _SOME.filter(lambda word: "=" not in word)
POLICIES = st.builds(
    Policy,
    mounts=st.lists(st.one_of(*MOUNTS.values()), max_size=5).map(_in_force),
    root=st.none() | _SOME,
    system=st.sampled_from(list(System)),
    show_cwd=_FLAG,
    protect=_NAMES.map(lambda names: [name for name in names if _PLAIN.isdisjoint(name)]),
    unprotect=st.lists(st.sampled_from([guard.name for guard in protected.TABLE]), max_size=3),
    network=st.sampled_from(list(Network)),
    hostname=st.from_regex(r"[a-z0-9][a-z0-9.-]{0,63}", fullmatch=True),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    id_map=st.sampled_from(list(IdMap)),
    env=st.none() | st.dictionaries(_VARIABLE, _WORD, max_size=3),
    extra_env=st.dictionaries(_VARIABLE, st.none() | _WORD, max_size=3),
    inherit_env=_FLAG,
    cwd=st.none() | _SOME,
    limits=st.builds(
        Limits,
        timeout=st.none()
        | st.floats(min_value=0, exclude_min=True, max_value=1e8)
        | st.integers(1, 10**6),
        output=st.none() | st.integers(0, 2**63 - 1) | _SIZES,
    ),
    seccomp=st.builds(
        Seccomp,
        st.sampled_from(
            ["default", "strict", "off", "@basic-io ~@chown", "/x/rules.json", "./~x.json"]
        ),
        st.lists(st.sampled_from(["ptrace", "@debug"])).map(tuple),
        st.lists(st.sampled_from(["flock", "@sync"])).map(tuple),
    ),
    pretend_chown=_FLAG,
)


# --- there and back -------------------------------------------------------------------------


@given(POLICIES, _FLAG)
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
    unset = {"root", "cwd", "env", "mounts"}
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


# --- reading --------------------------------------------------------------------------------


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


# --- errors ---------------------------------------------------------------------------------


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
        ("network = ['none']", "p.toml:1: network: not one of none, host"),
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


# --- the built-in ones ----------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a home, which is the working directory."""
    place = tmp_path / "home" / "project"
    place.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(place.parent))
    monkeypatch.chdir(place)
    return place


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


# --- system calls -----------------------------------------------------------------------------


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


# --- a capsule.toml that is found -------------------------------------------------------------


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
