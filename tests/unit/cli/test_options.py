"""The flags: how they are taken from the front of a command line, and what they come to."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule.base.errors import PolicyError
from capsule.cli.options import FLAGS, OPTIONS, SHORT, Options, help_text, parse
from capsule.cli.request import effective, to_policy
from capsule.confine.seccomp.spec import Seccomp
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount
from capsule.policy.policy import IdMap, Network, Policy, System

SWITCHES = sorted(flag for flag, takes in FLAGS.items() if not takes)
MODIFIERS = OPTIONS["of the file option right before"]
VALUED = sorted(flag for flag, takes in FLAGS.items() if takes)


def policy_of(*words: str) -> Policy:
    """What the options of a run of `true` come to."""
    return to_policy(parse("run", [*words, "true"]))


def refused(*words: str) -> PolicyError:
    """The error that these options end with, in parsing or in what they ask for."""
    with pytest.raises(PolicyError) as caught:
        policy_of(*words)
    assert caught.value.exit_code == 2
    return caught.value


# --- words ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", VALUED)
@pytest.mark.parametrize("value", ["x", "", "-", "--", "-v", "--ro", "a=b", "=", "é \n"])
def test_a_value_follows_its_flag_in_either_spelling(flag: str, value: str) -> None:
    """`--flag VALUE` and `--flag=VALUE` are the same, whatever the value looks like."""
    for words in ([flag, value], [f"{flag}={value}"]):
        options = parse("run", [*words, "true"])
        assert (options.given, options.command) == ([(flag, value)], ["true"])


@pytest.mark.parametrize("words", [["-e", "A=1"], ["-eA=1"], ["--env", "A=1"], ["--env=A=1"]])
def test_a_short_flag_is_a_long_one(words: list[str]) -> None:
    """-e takes its value from the same word or the next."""
    assert parse("run", [*words, "true"]).given == [("--env", "A=1")]


@pytest.mark.parametrize("flag", SWITCHES)
def test_a_switch_takes_no_value(flag: str) -> None:
    """A switch stands alone; with a value, even an empty one, it is an error."""
    options = parse("run", [flag, "true"])
    assert (options.given, options.has(flag), options.command) == ([(flag, "")], True, ["true"])
    for text in ("", "yes"):
        assert f"{flag} takes no value" in str(refused(f"{flag}={text}"))


def test_the_short_flags() -> None:
    """Each stands for a long one, in `parse` as in the table."""
    for short, flag in SHORT.items():
        value = ["x"] if FLAGS[flag] else []
        assert [name for name, _ in parse("run", [short, *value, "true"]).given] == [flag]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["true"], ["true"]),
        (["ls", "-l", "--ro", "/x"], ["ls", "-l", "--ro", "/x"]),
        (["-v", "--", "-v"], ["-v"]),
        (["--", "--", "x"], ["--", "x"]),
        (["-v", "-", "-v"], ["-", "-v"]),
        (["--", "ls"], ["ls"]),
        (["-v", ""], [""]),
        (["x", "--"], ["x", "--"]),
    ],
)
def test_options_end_at_the_command(words: list[str], command: list[str]) -> None:
    """The first word that is no option begins the command; so does what follows `--`."""
    assert parse("run", words).command == command


@given(st.lists(st.text()))
def test_the_words_of_a_command_are_its_own(words: list[str]) -> None:
    """After the command's name nothing is interpreted."""
    assert parse("run", ["-q", "name", *words]).command == ["name", *words]
    assert parse("run", ["-q", "--", "-name", *words]).command == ["-name", *words]


def test_the_last_of_an_option_counts() -> None:
    """Of an option that is given twice the last value counts; all of them are kept in order."""
    options = parse("run", ["--uid", "1", "--net=host", "--uid=2", "true"])
    assert options.last("--uid") == "2"
    assert options.last("--gid") is None
    assert options.given == [("--uid", "1"), ("--net", "host"), ("--uid", "2")]
    assert policy_of("--uid", "1", "--uid", "2").uid == 2


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command given"),
        (["--"], "no command given"),
        (["--ro", "/x"], "no command given"),
        (["--ro"], "--ro needs a value: PATH[:AT]"),
        (["-e"], "--env needs a value: NAME[=VALUE]"),
        (["--nope", "true"], "unknown option --nope"),
        (["--nope=1", "true"], "unknown option --nope=1"),
        (["-x", "true"], "unknown option -x"),
        (["-vq", "true"], "--verbose takes no value"),
        (["--r", "/x", "true"], "unknown option --r"),
        (["--=x", "true"], "unknown option --=x"),
        (["---", "true"], "unknown option ---"),
        (["--RO", "/x", "true"], "unknown option --RO"),
    ],
)
def test_a_command_line_that_makes_no_sense(verb: str, words: list[str], message: str) -> None:
    """Each mistake is named, none is guessed at, and the hint leads to the verb's help."""
    with pytest.raises(PolicyError) as caught:
        parse(verb, words)
    assert caught.value.message == message
    assert caught.value.hint is not None
    assert f"capsule {verb} --help" in caught.value.hint


def test_help_needs_no_command() -> None:
    """--help and -h are enough, wherever among the options they stand."""
    for words in (["--help"], ["-h"], ["-v", "--help", "--ro", "/x"]):
        assert parse("run", words).has("--help")
    assert not parse("run", ["ls", "--help"]).has("--help")


# --- help -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_help_is_one_screen(verb: str) -> None:
    """At most 70 lines of 80 columns, with every flag, its short form and every exit status."""
    text = help_text(verb)
    lines = text.splitlines()
    assert len(lines) <= 70
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: capsule {verb} ")
    for group, flags in OPTIONS.items():
        assert f"{group}:" in lines
        for flag, (takes, help_) in flags.items():
            assert [flag, *takes.split(), *help_.split()] in [line.split() for line in lines]
    for word in (*SHORT, "124", "125", "126", "127", "128+N"):
        assert word in text


# --- the policy -----------------------------------------------------------------------------


def test_no_option_is_the_default_policy() -> None:
    """The policy of no option is `Policy()`, but output that is not captured has no limit."""
    assert policy_of() == Policy(limits=Limits(output=None))


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--root", "/image"], "root", "/image"),
        (["--chdir", "/x"], "cwd", "/x"),
        (["--uid", "7"], "uid", 7),
        (["--uid", "4294967294"], "uid", 4294967294),
        (["--gid", "8"], "gid", 8),
        (["--uid-map", "auto"], "id_map", IdMap.AUTO),
        (["--uid-map", "caller"], "id_map", IdMap.CALLER),
        (["--uid-map", "host-root"], "id_map", IdMap.HOST_ROOT),
        (["--hostname", "box"], "hostname", "box"),
        (["--net", "host"], "network", Network.HOST),
        (["--net", "none"], "network", Network.NONE),
        (["--allow-net", "a.b", "--allow-net=c.d:1,2"], "network", Network.only("a.b", "c.d:1,2")),
        (["-p", "8080:80", "--publish=0:81"], "publish", ("127.0.0.1:8080:80", "127.0.0.1:0:81")),
        (["--inherit-env"], "inherit_env", True),
        (["--landlock", "off"], "landlock", "off"),
        (["--landlock=6"], "landlock", "6"),
        (["--tcp-connect=443", "--tcp-connect", "80"], "tcp_connect", (80, 443)),
        (["--tcp-bind", "8080"], "tcp_bind", (8080,)),
        (["--system", "needed"], "system", System.NEEDED),
        (["--system", "all"], "system", System.ALL),
        (["--no-cwd"], "show_cwd", False),
        (["--protect", "b", "--protect", "a/c"], "protect", ("a/c", "b")),
        (["--unprotect", ".git/hooks"], "unprotect", (".git/hooks",)),
        (["--unprotect=all"], "unprotect", ("all",)),
        (["-e", "A=1"], "extra_env", (("A", "1"),)),
        (["-eB", "-eA="], "extra_env", (("A", ""), ("B", None))),
        (["-e", "A=1", "-e", "A=2=3"], "extra_env", (("A", "2=3"),)),
        (["--timeout", "1m30s"], "limits", Limits(90.0, None)),
        (["-m256M", "--swap=1G"], "limits", Limits(None, None, memory=256 << 20, swap=1 << 30)),
        (["--cpus", "0.5", "--cpu-weight=50"], "limits", Limits(None, None, cpus=0.5, cpu_weight=50)),
        (["--pids", "32", "--open-files=99"], "limits", Limits(None, None, pids=32, open_files=99)),
        (["--cpu-time=2s", "--idle=10ms"], "limits", Limits(None, None, cpu_time=2.0, idle=0.01)),
        (
            ["--ulimit", "stack=8M", "--ulimit=core=0", "--ulimit=stack=1M:2M"],
            "limits",
            Limits(None, None, ulimits=["core=0", "stack=1M:2M"]),
        ),
        (["--file-size", "0"], "limits", Limits(None, None, file_size=0)),
        (
            ["--allow-degraded=pids", "--allow-degraded", "cpu-time"],
            "allow_degraded",
            ("cpu_time", "pids"),
        ),
        (["--output", "1K"], "limits", Limits(None, 1024)),
        (["--output", "0"], "limits", Limits(None, 0)),
        (["--json", "-"], "limits", Limits()),
        (["--json", "-", "--output", "1M"], "limits", Limits(None, 1 << 20)),
        (["--json", "file"], "limits", Limits(None, None)),
        (["--quiet", "--verbose"], "limits", Limits(None, None)),
    ],
)
def test_an_option_sets_a_field(words: list[str], field: str, value: object) -> None:
    """Each option sets the field that it names, and no other."""
    policy = policy_of(*words)
    assert getattr(policy, field) == value
    rest: dict[str, Any] = {"limits": Limits(output=None), field: value}
    assert policy == Policy(**rest)


def test_every_option_has_an_effect() -> None:
    """Every flag but those of the reports is one that `to_policy` reads; a modifier after a mount."""
    examples = {
        "--ro": "/x", "--rw": "/x", "--tmpfs": "/x", "--root": "/x", "--chdir": "/x", "--uid": "1",
        "--gid": "1", "--uid-map": "auto", "--hostname": "x", "--env": "A", "--inherit-env": None,
        "--timeout": "1", "--output": "1", "--net": "host", "--overlay": "/x", "--hide": "/x",
        "--symlink": "t:/x", "--dir": "/x", "--file": "s:/x", "--dev": "/dev/kvm", "--system": "needed",
        "--no-cwd": None, "--git": None, "--keep-id": None, "--profile": "strict", "--protect": "x",
        "--unprotect": "all", "--show-secret": ".ssh",
        "--noexec": None, "--optional": None, "--size": "1M", "--keep": "/k", "--seccomp": "strict",
        "--allow-syscall": "unshare", "--deny-syscall": "flock", "--pretend-chown": None,
        "--cpu-time": "1", "--idle": "1", "--memory": "1M", "--swap": "1M", "--cpus": "1",
        "--cpu-weight": "1", "--pids": "1", "--file-size": "1", "--open-files": "16",
        "--allow-degraded": "cpu-time", "--tcp-connect": "443", "--tcp-bind": "80",
        "--ulimit": "rtprio=5", "--landlock": "off", "--allow-net": "a.b", "--publish": "8080:80",
    }  # fmt: skip
    assert set(examples) == set(FLAGS) - set(OPTIONS["reports"])
    for flag, value in examples.items():
        before = ["--overlay=/o"] if flag in MODIFIERS else []
        word = flag if value is None else f"{flag}={value}"
        assert policy_of(*before, word) != policy_of(*before), flag


def test_options_for_system_calls_come_on_top_of_a_profile(tmp_path: Path) -> None:
    """They add up; what is named on the command line is taken out of the profile's other list."""
    (tmp_path / "p.toml").write_text(
        'seccomp = { profile = "debug", allow = ["bpf"], deny = ["flock"] }'
    )
    words = ["--allow-syscall=flock", "--allow-syscall", "@aio", "--deny-syscall=bpf"]
    policy = policy_of(f"--profile={tmp_path}/p.toml", *words)
    assert policy.seccomp == Seccomp("debug", ("flock", "@aio"), ("bpf",))
    assert policy_of("--seccomp=x.json").seccomp.profile == os.path.abspath("x.json")
    assert policy_of("--seccomp", "@basic-io @sync").seccomp == Seccomp("@basic-io @sync")


@pytest.mark.parametrize(
    ("word", "source", "at"),
    [
        ("/data", "/data", "/data"),
        ("/data:/input", "/data", "/input"),
        ("data:/input", os.path.abspath("data"), "/input"),
        ("data", os.path.abspath("data"), os.path.abspath("data")),
        ("/a:b", "/a:b", "/a:b"),
        ("/a:b:/c", "/a:b", "/c"),
        ("/a:/b:/c", "/a:/b", "/c"),
        ("/a:b/c", "/a:b/c", "/a:b/c"),
        ("/a:", "/a:", "/a:"),
        ("a:", os.path.abspath("a:"), os.path.abspath("a:")),
        (":/a", os.path.abspath(":/a"), os.path.abspath(":/a")),
    ],
)
def test_a_path_and_its_place(word: str, source: str, at: str) -> None:
    """PATH[:AT]: the last colon before a slash divides; every other one belongs to the path."""
    assert policy_of("--ro", word).mounts == (Mount.read_only(source, at),)
    assert policy_of("--rw", word).mounts == (Mount.read_write(source, at),)


@pytest.mark.parametrize(
    ("word", "mount"),
    [
        ("/t", Mount.tmpfs("/t")),
        ("/t:1M", Mount.tmpfs("/t", "1M")),
        ("/t:5MB", Mount.tmpfs("/t", 5_000_000)),
        ("/t:x:1M", Mount.tmpfs("/t:x", "1M")),
        ("/t:1M/x", Mount.tmpfs("/t:1M/x")),
    ],
)
def test_a_tmpfs_and_its_size(word: str, mount: Mount) -> None:
    """AT[:SIZE]: what follows the last colon is a size, unless a slash follows."""
    assert policy_of("--tmpfs", word).mounts == (mount,)


@pytest.mark.parametrize(
    ("words", "mount"),
    [
        (["--overlay", "/o"], Mount.overlay("/o")),
        (["--overlay", "/o:/a"], Mount.overlay("/o", "/a")),
        (["--hide", "/h"], Mount.hide("/h")),
        (["--hide", "**/.env"], Mount.hide("**/.env")),
        (["--hide", ".env"], Mount.hide(".env")),
        (["--hide", "sub/x"], Mount.hide(os.path.abspath("sub/x"))),
        (["--symlink", "t:/a"], Mount.symlink("t", "/a")),
        (["--symlink", "/x:/y:/a"], Mount.symlink("/x:/y", "/a")),
        (["--dir", "/d"], Mount.directory("/d")),
        (["--dir", "/d:/e"], Mount.directory("/d:/e")),
        (["--file", "/s:/a"], Mount.file("/s", "/a")),
        (["--file", "s:/a"], Mount.file("s", "/a")),
        (["--dev", "/dev/kvm"], Mount.device("/dev/kvm")),
    ],
)
def test_a_file_option_is_a_mount(words: list[str], mount: Mount) -> None:
    """Each file option makes the mount of its name, divided at the last colon before a slash."""
    assert policy_of(*words).mounts == (mount,)


@pytest.mark.parametrize(
    ("words", "mount"),
    [
        (["--ro=/x", "--noexec"], Mount.read_only("/x", noexec=True)),
        (["--ro=/x", "--optional", "--noexec"], Mount.read_only("/x", noexec=True, optional=True)),
        (["--rw=/x:/y", "--optional"], Mount.read_write("/x", "/y", optional=True)),
        (["--overlay=/x", "--size=1M"], Mount.overlay("/x", size="1M")),
        (["--overlay=/x", "--keep=/k"], Mount.overlay("/x", keep="/k")),
        (["--overlay=/x", "--noexec"], Mount.overlay("/x", noexec=True)),
        (["--tmpfs=/x", "--size=1M", "--noexec"], Mount.tmpfs("/x", "1M", noexec=True)),
        (["--tmpfs=/x:1M", "--size", "2M"], Mount.tmpfs("/x", "2M")),
        (["--hide=/x", "--optional"], Mount.hide("/x", optional=True)),
        (["--file=/x:/y", "--optional"], Mount.file("/x", "/y", optional=True)),
        (["--dev=/dev/kvm", "--optional"], Mount.device("/dev/kvm", optional=True)),
        (["--ro=/x", "--uid=1", "--noexec"], Mount.read_only("/x", noexec=True)),
    ],
)
def test_a_modifier_is_of_the_mount_before_it(words: list[str], mount: Mount) -> None:
    """--noexec, --optional, --size and --keep change the last file option, and no other."""
    other = ["--ro=/other"]
    assert policy_of(*words).mounts == (mount,)
    assert policy_of(*other, *words, *other).mounts == (mount, Mount.read_only("/other"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--noexec", "--ro=/x"], "--noexec: no file option before it"),
        (["--uid=1", "--optional"], "--optional: no file option before it"),
        (["--ro=/x", "--keep=/k"], "--keep does not go with --ro"),
        (["--ro=/x", "--size=1M"], "--size does not go with --ro"),
        (["--tmpfs=/x", "--keep=/k"], "--keep does not go with --tmpfs"),
        (["--tmpfs=/x", "--optional"], "--optional does not go with --tmpfs"),
        (["--hide=/x", "--noexec"], "--noexec does not go with --hide"),
        (["--symlink=t:/x", "--optional"], "--optional does not go with --symlink"),
        (["--dir=/x", "--noexec"], "--noexec does not go with --dir"),
        (["--file=s:/x", "--noexec"], "--noexec does not go with --file"),
        (["--dev=/dev/kvm", "--noexec"], "--noexec does not go with --dev"),
        (["--overlay=/x", "--keep=/k", "--size=1M"], "--keep has no limit of size"),
    ],
)
def test_a_modifier_that_fits_nothing(words: list[str], message: str) -> None:
    """A modifier without a file option before it, or of a kind that it does not fit, is an error."""
    error = refused(*words)
    assert error.message.startswith(message)
    assert error.field in words[-1] + words[0]


# --- the profile ------------------------------------------------------------------------------


def test_a_profile_is_what_the_other_options_come_on_top_of(tmp_path: Path) -> None:
    """Its mounts come first, scalars are replaced, lists and variables added, wherever it stands."""
    file = tmp_path / "profile.toml"
    file.write_text(
        'uid = 5\ngid = 6\nprotect = ["a"]\nextra_env = { A = "1", B = "2" }\n'
        'limits = { timeout = 9, output = "1K" }\n[[mounts]]\nkind = "tmpfs"\nat = "/one"\n'
    )
    named = f"--profile={file}"
    assert policy_of(named) == Policy(
        uid=5, gid=6, protect=("a",), extra_env={"A": "1", "B": "2"}, limits=Limits(9, 1024),
        mounts=(Mount.tmpfs("/one"),),
    )  # fmt: skip
    words = ["--uid=7", "--protect=b", "-eB=3", "-eC", "--timeout=8", "--tmpfs=/two"]
    wanted = Policy(
        uid=7, gid=6, protect=("a", "b"), extra_env={"A": "1", "B": "3", "C": None},
        limits=Limits(8, 1024), mounts=(Mount.tmpfs("/one"), Mount.tmpfs("/two")),
    )  # fmt: skip
    assert policy_of(named, *words) == policy_of(*words, named) == wanted


def test_output_of_a_profile_that_does_not_limit_it(tmp_path: Path) -> None:
    """The limit of captured output holds for --json - alone, unless the profile names one itself."""
    said = {
        "": (None, 16 << 20),
        'output = "none"': (None, None),
        'output = "16M"': (16 << 20, 16 << 20),
    }
    for text, (passed_through, captured) in said.items():
        file = tmp_path / "profile.toml"
        file.write_text(f"[limits]\n{text}\n")
        assert policy_of(f"--profile={file}").limits.output == passed_through
        assert policy_of(f"--profile={file}", "--json=-").limits.output == captured
        assert policy_of(f"--profile={file}", "--json=-", "--output=1").limits.output == 1


def test_a_writable_profile_protects_itself(tmp_path: Path) -> None:
    """In a tree that the command may write, the profile's own path is protected, through links too."""

    def guarded(*words: str) -> Policy:
        return effective(parse("run", [*words, "true"]))[0]

    tree = tmp_path / "tree"
    (tree / "conf").mkdir(parents=True)
    file = tree / "conf" / "real.toml"
    file.write_text("")
    (tree / "link.toml").symlink_to("conf/real.toml")
    (tmp_path / "other").symlink_to("tree")
    assert guarded(f"--profile={file}").protect == ()
    assert guarded(f"--profile={file}", f"--ro={tree}").protect == ()
    assert guarded(f"--profile={file}", f"--rw={file}").protect == ()
    for flag in ("--rw", "--overlay"):
        assert guarded(f"--profile={file}", f"{flag}={tree}").protect == ("conf/real.toml",)
        assert guarded(f"--profile={file}", f"{flag}={tmp_path}/other:/x").protect == (
            "conf/real.toml",
        )
        both = ("conf/real.toml", "link.toml")
        assert guarded(f"--profile={tree}/link.toml", f"{flag}={tree}").protect == both


def test_a_name_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A --profile without a slash that does not end in .toml is a built-in one, whatever lies there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strict").write_text("uid = 7\n")
    (tmp_path / "my.toml").write_text("uid = 7\n")
    assert policy_of("--profile=strict").uid == 0
    assert policy_of("--profile=./strict").uid == 7
    assert policy_of("--profile=my.toml").uid == 7
    assert "default, strict, dev, offline-build" in (refused("--profile=my").hint or "")


def test_mounts_keep_their_order() -> None:
    """The order of --ro, --rw and --tmpfs is the policy's: of two at one place the later counts."""
    mounts = policy_of("--tmpfs=/c", "--rw=/b", "--hostname=x", "--ro=/a").mounts
    assert [mount.at for mount in mounts] == ["/c", "/b", "/a"]


@pytest.mark.parametrize("flag", ["--uid", "--gid"])
@pytest.mark.parametrize(
    "word",
    ["", "-1", "+1", "1.5", "0x10", "1_0", " 1", "1 ", "٣", "²", "root", "4294967295", "9" * 5000],
    ids=lambda word: word[:12],
)
def test_no_id(flag: str, word: str) -> None:
    """Digits up to the last id that means somebody, and nothing else: the error names the field."""
    error = refused(f"{flag}={word}")
    assert error.field == flag[2:]


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--ro="], "mounts"),
        (["--ro", "/a:/.."], "mounts"),
        (["--ro", "/a:/"], "mounts"),
        (["--tmpfs", ""], "mounts"),
        (["--tmpfs", "t"], "mounts"),
        (["--tmpfs", "/t:"], "--tmpfs"),
        (["--tmpfs", "/t:big"], "--tmpfs"),
        (["--tmpfs", "/t:-1"], "--tmpfs"),
        (["--tmpfs", "/t:1"], "size"),
        (["--overlay="], "mounts"),
        (["--hide="], "mounts"),
        (["--hide=.."], "mounts"),
        (["--symlink=target"], "mounts"),
        (["--symlink=:/at"], "mounts"),
        (["--file=source"], "mounts"),
        (["--file=source:at"], "mounts"),
        (["--dir=relative"], "mounts"),
        (["--dev="], "mounts"),
        (["--system=some"], "system"),
        (["--protect=/absolute"], "protect"),
        (["--unprotect=../x"], "unprotect"),
        (["--tmpfs=/t", "--size=big"], "size"),
        (["--profile=nosuch"], "profile"),
        (["--profile="], "profile"),
        (["--profile=/nowhere/file"], "profile"),
        (["--profile=strict", "--profile=strict"], "profile"),
        (["--root="], "root"),
        (["--chdir="], "cwd"),
        (["--hostname="], "hostname"),
        (["--hostname", "a b"], "hostname"),
        (["--env="], "extra_env"),
        (["--env==x"], "extra_env"),
        (["--net", "some"], "network"),
        (["--net="], "network"),
        (["--allow-net="], "network"),
        (["--allow-net", "none"], "network"),
        (["--allow-net", "a.b", "--net=host"], "network"),
        (["-p80"], "publish"),
        (["-p8080:80", "--net=host"], "publish"),
        (["--uid-map", "all"], "id_map"),
        (["--timeout="], "timeout"),
        (["--timeout", "soon"], "timeout"),
        (["--timeout", "0"], "timeout"),
        (["--timeout", "30s1m"], "timeout"),
        (["--output", "much"], "output"),
        (["--output", "-1"], "output"),
        (["--output="], "output"),
    ],
)
def test_a_value_that_cannot_be_meant(words: list[str], field: str) -> None:
    """A bad value is a PolicyError that names its field: nothing is left to a default."""
    assert refused(*words).field == field


# What execve(2) can hand over: any bytes but NUL.
_WORD = st.binary(max_size=12).filter(lambda data: 0 not in data).map(os.fsdecode) | st.text(
    "/:=-0123456789abKMs.", max_size=8
)


@given(st.lists(_WORD | st.sampled_from([*FLAGS, *SHORT, "--"]), max_size=6))
def test_any_words_are_options_or_an_error(words: list[str]) -> None:
    """Whatever a command line holds, it is parsed or refused; no other exception gets out."""
    with contextlib.suppress(PolicyError):
        command = parse("run", words).command
        assert words[len(words) - len(command) :] == command


@given(st.lists(st.tuples(st.sampled_from(VALUED), _WORD), max_size=4))
def test_any_values_are_a_policy_or_an_error(given_: list[tuple[str, str]]) -> None:
    """Whatever the options' values are, they are a policy or a PolicyError."""
    with contextlib.suppress(PolicyError):
        assert isinstance(to_policy(Options(given_, ["true"])), Policy)
