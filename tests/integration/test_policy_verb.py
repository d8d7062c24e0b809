"""`capsule policy`, --profile and capsule.toml, from the command line and in real capsules."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import profile
from capsule.policy import builtin, protected
from capsule.program import elf
from tests.support import CAPSULE, HANG, PYTHON, give, shared_directory

Done = subprocess.CompletedProcess[str]
COMMAND = [CAPSULE] if os.path.exists(CAPSULE) else [PYTHON, "-m", "capsule"]


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project in a home, which is the working directory; the capsule's outside ids may write it."""
    with shared_directory() as place:
        tree = place / "home" / "project"
        tree.mkdir(parents=True)
        give(tree)
        monkeypatch.setenv("HOME", str(tree.parent))
        monkeypatch.chdir(tree)
        yield tree


def cli(*words: str, **options: Any) -> Done:
    """Run the command; it shows no traceback."""
    done = subprocess.run(
        [*COMMAND, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG,
        **options,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def shown(*words: str) -> str:
    """What a command prints that ends with 0 and says nothing on standard error."""
    done = cli(*words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(*words: str) -> str:
    """The message of a command line that is refused with status 2."""
    done = cli(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("capsule: ")
    assert "The command was not run." in done.stderr
    return done.stderr.removeprefix("capsule: ")


# --- capsule policy ---------------------------------------------------------------------------


@pytest.mark.usefixtures("project")
def test_show_prints_what_loads_back() -> None:
    """The TOML of `policy show` is the policy of the same options, and --profile takes it."""
    words = [
        "--ro",
        "/usr/bin:/seen",
        "--noexec",
        "--uid=7",
        "-eA=1",
        "-eB",
        "--timeout=5",
        "--hide=.env",
    ]
    text = shown("policy", "show", *words)
    assert profile.loads(text) == capsule.Policy(
        mounts=(capsule.Mount.read_only("/usr/bin", "/seen", noexec=True), capsule.Mount.hide(".env")),
        uid=7,
        extra_env={"A": "1", "B": None},
        limits=capsule.Limits(5, None),
    )
    Path("shown.toml").write_text(text)
    assert shown("policy", "show", "--profile", "shown.toml") == text
    assert "show_cwd" not in text
    assert "show_cwd = true" in shown("policy", "show", "--all", *words)


@pytest.mark.usefixtures("project")
def test_list_names_the_profiles() -> None:
    """Each built-in one has a line, and each name can be shown."""
    names = [line.split()[0] for line in shown("policy", "list").splitlines()]
    assert names == list(builtin.NAMES)
    for name in names:
        shown("policy", "show", "--profile", name)


def test_the_protected_names() -> None:
    """Each name that --unprotect takes has a line that says why."""
    lines = shown("policy", "protected").splitlines()
    assert [line.split()[0] for line in lines] == [guard.name for guard in protected.TABLE]
    assert all(len(line.split()) > 1 for line in lines)
    assert "unprotect: not a protected name: typo" in refused("policy", "show", "--unprotect=typo")


def test_schema_is_json() -> None:
    """The schema is a document of the draft that it names."""
    assert json.loads(shown("policy", "schema"))["$schema"].endswith("2020-12/schema")


def test_help() -> None:
    """The verb's words, and the options of `policy show`."""
    for words in (["policy", "--help"], ["policy", "-h"]):
        assert all(word in shown(*words) for word in ("show", "list", "protected", "schema"))
    text = shown("policy", "show", "--help")
    assert text.startswith("usage: capsule policy show ")
    assert "--profile NAME|FILE" in text
    assert "policy" in shown("--help")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "policy: needs a word"),
        (["nope"], "policy: no nope"),
        (["list", "x"], "policy list takes nothing more: x"),
        (["protected", "x"], "policy protected takes nothing more: x"),
        (["schema", "--x"], "policy schema takes nothing more: --x"),
        (["show", "true"], "policy show takes no command: true"),
        (["show", "--", "true"], "policy show takes no command: true"),
        (["show", "--nope"], "unknown option --nope"),
        (["show", "--all=1"], "--all takes no value"),
        (["show", "--uid"], "--uid needs a value: N"),
        (["show", "--profile", "nosuch"], "profile: no built-in one is named nosuch"),
        (["show", "--profile", "./nosuch"], "./nosuch: cannot be read: No such file or directory"),
    ],
)
def test_words_that_make_no_sense(words: list[str], message: str) -> None:
    """Each mistake is named."""
    assert refused("policy", *words).splitlines()[0] == message
    assert "unknown option --all" in refused("run", "--all", "true")


# --- profiles in capsules -----------------------------------------------------------------------


@pytest.mark.usefixtures("project")
def test_a_mistake_in_a_profile_has_its_line() -> None:
    """For run, plan and policy show alike, the message names file, line and key."""
    Path("p.toml").write_text("uid = 1\n\n[limits]\ntimeout = 'soon'\n")
    for words in (["run"], ["plan"], ["policy", "show"]):
        command = [] if words[0] == "policy" else ["true"]
        first = refused(*words, "--profile", "p.toml", *command).splitlines()[0]
        assert first == 'p.toml:4: limits.timeout: not a time: "soon"'


MISSING = {
    'root = "nosuch"': "root: cannot read ",
    'cwd = "/nosuch"': "cwd: cannot start: change to the directory /nosuch: ",
    'mounts = [{ kind = "read_only", source = "nosuch" }]': "mounts[0]: cannot start: take ",
    'mounts = [{ kind = "file", source = "nosuch", at = "/f" }]': "mounts[0]: file ",
    'mounts = [{ kind = "hide", pattern = "./nosuch" }]': "mounts[0]: hide ",
}


@pytest.mark.parametrize(("line", "message"), MISSING.items())
def test_what_is_missing_on_the_host_has_its_line(line: str, message: str, project: Path) -> None:
    """What turns out at the start is said with file, line, key and remedy, in a report too."""
    text = line.replace("mounts = [{ ", "[[mounts]]\n").replace(", ", "\n").replace(" }]", "\n")
    (project / "p.toml").write_text(f"\n{text}\n")
    done = cli("run", "--profile=p.toml", "true")
    assert done.returncode in (2, 125)
    key = message.partition(":")[0]
    said = done.stderr.removeprefix("capsule: ")
    assert re.match(rf"p\.toml:[2345]: {re.escape(key)}(\.\w+)?: ", said)
    assert message.partition(": ")[2] in said
    assert "  hint: " in said
    report = json.loads(cli("run", "--json=-", "--profile=p.toml", "true").stdout)
    assert report["error"]["message"] == said.splitlines()[0]


def test_an_option_that_comes_on_top_is_no_line_s_fault(project: Path) -> None:
    """What the command line says instead of a profile is not said to be in the profile."""
    (project / "p.toml").write_text('cwd = "/usr"\n')
    done = cli("run", "--profile=p.toml", "--chdir=/nosuch", "true")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("capsule: cannot start: change to the directory /nosuch")


def test_a_named_pipe_is_refused(project: Path) -> None:
    """--profile of a pipe that nobody writes to ends at once; one that a shell makes is read."""
    os.mkfifo(project / "p.toml")
    assert "p.toml: cannot be read: not a regular file" in refused("run", "--profile=p.toml", "true")
    read, write = os.pipe()
    os.write(write, b"uid = 7\n")
    os.close(write)
    try:
        text = cli("policy", "show", f"--profile=/dev/fd/{read}", pass_fds=(read,)).stdout
    finally:
        os.close(read)
    assert "uid = 7" in text


def test_a_writable_profile_is_shown_as_it_is(project: Path) -> None:
    """What `policy show` prints of a profile loads as the profile does; its own guard is not in it."""
    (project / "p.toml").write_text(
        'limits.output = "1K"\n[[mounts]]\nkind = "read_write"\nsource = "."\n'
    )
    assert profile.loads(shown("policy", "show", "--profile=p.toml")) == profile.load("p.toml")
    assert "p.toml over itself (read-only)" in shown("plan", "--profile=p.toml", "true")


@pytest.mark.usefixtures("project")
def test_a_profile_is_what_runs() -> None:
    """What a file says is in force inside, relative paths counting from where it lies."""
    Path("conf/data").mkdir(parents=True)
    Path("conf/data/file").write_text("hello\n")
    Path("conf/p.toml").write_text(
        'uid = 7\n[env]\nA = "x"\nPATH = "/usr/bin:/bin"\n'
        '[[mounts]]\nkind = "read_only"\nsource = "data"\nat = "/input"\n'
    )
    script = "id -u; echo $A; cat /input/file"
    assert shown("run", "--profile", "conf/p.toml", "--", "sh", "-c", script) == "7\nx\nhello\n"


def test_strict(project: Path) -> None:
    """A command runs, wherever it is started, and sees neither the project nor other programs."""
    (project / "file").write_text("x")
    script = (
        f"for p in {project}/file /usr/bin/env; do test -e $p && echo $p; done; echo x >~/x && echo ok"
    )
    everything = f"{project}/file\n/usr/bin/env\nok\n"
    assert shown("run", "--", "sh", "-c", script) == everything
    assert shown("run", "--profile=strict", "--", "sh", "-c", script) == "ok\n"


@pytest.mark.usefixtures("project")
def test_strict_executes_nothing_that_is_written() -> None:
    """A program in a writable place runs in the default view; in the strict one it is EACCES."""
    os.chdir("/")
    script = "read -r line <$0; echo $line; exec $0"
    for at in ("/tmp/program", "/dev/shm/program", f"{os.environ['HOME']}/program"):
        program = capsule.Mount.content("#!/bin/sh\necho ran\n", at, mode=0o755)
        for name, status, ran in (("default", 0, "ran\n"), ("strict", 126, "")):
            policy = builtin.builtin(name)
            policy = policy.replace(mounts=(*policy.mounts, program))
            result = capsule.run(["sh", "-c", script, at], policy, text=True)
            assert (result.returncode, result.stdout) == (status, f"#!/bin/sh\n{ran}"), result.stderr
        assert "Permission denied" in str(result.stderr)


def test_dev(project: Path) -> None:
    """The project can be written to, the home is a private one, and a home is never shown."""
    script = "echo made >made && echo private >~/private && cat made ~/private"
    assert shown("run", "--profile=dev", "--", "sh", "-c", script) == "made\nprivate\n"
    assert (project / "made").read_text() == "made\n"
    assert not (project.parent / "private").exists()
    os.chdir(project.parent)
    assert "holds more than one project" in refused("run", "--profile=dev", "true")


def test_offline_build(project: Path) -> None:
    """A cache can be read and written, and stays as it was; what is beside it is not there."""
    cache = project.parent / ".cargo" / "registry"
    cache.mkdir(parents=True)
    give(cache)
    (cache / "crate").write_text("crate\n")
    (cache.parent / "credentials.toml").write_text("secret\n")
    script = "cat ~/.cargo/registry/crate; echo new >~/.cargo/registry/new && echo ok; ls ~/.cargo"
    assert shown("run", "--profile=offline-build", "--", "sh", "-c", script) == "crate\nok\nregistry\n"
    assert os.listdir(cache) == ["crate"]


def test_a_profile_in_a_writable_tree_is_read_only(project: Path) -> None:
    """The command may write beside the profile, but neither change, remove nor replace it."""
    (project / "conf").mkdir()
    give(project / "conf")
    file = project / "conf" / "p.toml"
    file.write_text("")
    give(file)
    tries = "echo 'uid = 7' >conf/p.toml || mv conf other || rm -f conf/p.toml"
    script = f"{tries} || echo free >conf/x && cat conf/x"
    words = ["--rw", str(project), "--", "sh", "-c", script]
    done = cli("run", "--profile", "conf/p.toml", *words)
    assert (done.returncode, done.stdout) == (0, "free\n"), done.stderr
    assert file.read_text() == ""
    (project / "conf" / "x").unlink()
    done = cli("run", *words)
    assert file.read_text() == "uid = 7\n"


# --- hints ------------------------------------------------------------------------------------


def test_a_hide_that_covers_the_program() -> None:
    """Where a hide takes away the program or its loader, that is the hint; a mount after it helps."""
    program = os.path.realpath("/bin/true")
    image = elf.read(program)
    if image is None or not image.interpreter:
        pytest.skip("/bin/true of this host is linked statically")
    loader = os.path.realpath(image.interpreter)
    for path, what in ((loader, "the dynamic loader"), (program, "the program")):
        done = cli("run", "--hide", path, "--", program)
        assert (done.returncode, done.stdout) == (126, "")
        assert f"hint: the policy's hide at {path} covers {what}" in done.stderr
    folder = os.path.dirname(loader)
    assert cli("run", "--hide", folder, "--", program).returncode == 126
    shown("run", "--hide", folder, "--ro", folder, "--", program)


def test_a_root_with_capsule_s_own_name(project: Path) -> None:
    """A root directory that holds .layers and an overlay: the hint names it; without it, it works."""
    (project / "image" / ".layers").mkdir(parents=True)
    (project / "low").mkdir()
    words = ["--root=image", f"--overlay={project}/low:/low", "--", "/nosuch"]
    done = cli("run", *words)
    assert done.returncode == 125
    assert "hint: the directory that is the root holds .layers" in done.stderr
    (project / "image" / ".layers").rmdir()
    assert cli("run", *words).returncode == 127


def test_a_root_of_many_entries(project: Path) -> None:
    """More entries than the launcher takes: the error names the limit and what to do."""
    for number in range(1025):
        (project / "image" / str(number)).mkdir(parents=True)
    done = cli("run", "--root=image", "--", "/nosuch")
    assert done.returncode in (2, 125)
    assert "1,024" in done.stderr


# --- capsule.toml -------------------------------------------------------------------------------


def test_a_found_file_tightens(project: Path) -> None:
    """It is applied for run, plan and policy show, -v says so, and nothing else does."""
    (project / "key").write_text("secret\n")
    words = ["run", "--", "cat", "key"]
    assert shown(*words) == "secret\n"
    (project / "capsule.toml").write_text('[[mounts]]\nkind = "hide"\npattern = "./key"\n')
    assert shown(*words) == ""
    assert f'pattern = "{project}/key"' in shown("policy", "show")
    assert cli("plan", "true").stdout.count(f"{project}/key")
    note = "capsule: capsule.toml of the working directory applies: mounts\n"
    assert note in cli("run", "-v", "true").stderr


def test_a_found_file_does_not_loosen(project: Path) -> None:
    """It is refused for every verb, with line and key, in a report too; named, it is trusted."""
    (project / "capsule.toml").write_text('protect = ["x"]\nnetwork = "host"\n')
    for words in (["run", "true"], ["plan", "true"], ["policy", "show"]):
        message = refused(*words)
        assert message.startswith("capsule.toml:2: network: a capsule.toml that is found")
        assert "--profile ./capsule.toml" in message
    done = cli("run", "--json=-", "true")
    assert json.loads(done.stdout)["error"]["type"] == "PolicyError"
    assert 'network = "host"' in shown("policy", "show", "--profile=./capsule.toml")


def test_python_looks_for_no_file(project: Path) -> None:
    """A capsule.toml is the command line's alone."""
    (project / "capsule.toml").write_text("nope = 1\n")
    assert capsule.run(["true"]).check().returncode == 0
