"""What is wrong with a profile is said with file, line and key, whenever it turns out."""

from __future__ import annotations

import datetime
import errno
import pickle
import re

import pytest

from capsule import profile
from capsule.base.errors import CapsuleError, PolicyError
from capsule.launcher import steps as s
from capsule.launcher.failure import SetupError
from capsule.policy.mounts import MountKind
from capsule.policy.toml import document as toml_text
from capsule.policy.toml import keys


def refused(text: str) -> PolicyError:
    """The error that a profile ends with."""
    with pytest.raises(PolicyError) as caught:
        profile.loads(text, "/conf", name="p.toml")
    return caught.value


# For each way to write a value, some that it is not.
_MISFITS: dict[str, list[str]] = {
    "mounts": ["5", "'x'", "true", "[5]", "{}", "[{}]", "[{ kind = 5 }]", "[{ kind = 'no' }]"],
    "texts": ["5", "true", "'x'", "[5]", "['']", "[[]]", "{}", "['/x']", "['a/../b']"],
    "text": ["5", "true", "[]", "{}", "1979-05-27", "{ base64 = 5 }", "{ base64 = '?' }"],
    "path": ["5", "true", "[]", "''", "{ base64 = 'AA==' }"],
    "pattern": ["5", "true", "[]", "''", "'..'"],
    "data": ["5", "true", "[]", "{ base64 = '?' }"],
    "id": ["-1", "4294967295", "'5'", "true", "1.5", "[]"],
    "landlock": ["0", "99", "'no'", "true", "1.5", "[]"],
    "ports": ["5", "'443'", "[0]", "[65536]", "['443']", "[true]", "[1.5]", "{}"],
    "network": ["5", "'no'", "true", "[5]", "[[]]", "['host']", "['a b']", "['a:0']", "{}"],
    "flag": ["1", "'true'", "[]"],
    "variables": ["5", "[]", "'A=1'", "{ A = 5 }", "{ '' = 'x' }", "{ 'A=B' = 'x' }", "{ A = true }"],
    "limits": ["5", "[]", "'1s'", "{ nope = 1 }", "{ timeout = true }", "{ output = 1.5 }"],
    "seccomp": ["5", "true", "[]", "''", "{ nope = 1 }", "{ profile = 5 }", "{ allow = 'x' }"],
    "time": ["0", "-1", "'soon'", "true", "nan", "[]"],
    "size": ["-1", "'much'", "true", "1.5", "[]"],
    "count": ["0", "-1", "'x'", "1.5", "true", "[]", "99999999999"],
    "cpus": ["0", "-1", "0.001", "'x'", "nan", "inf", "true", "[]"],
    "mode": ["-1", "512", "'644'", "'x'", "true", "1.5", "[]"],
    **{name: ["5", "'no'", "true", "[]"] for name in keys.CHOICES},
}


def _misfits() -> list[tuple[str, str]]:
    """(A profile, the line and key that its error names) of each key of the schema and each misfit."""
    cases = [
        (f"\n{name} = {value}\n", f"p.toml:2: {name}")
        for name, shape in keys.of_policy().items()
        for value in _MISFITS[shape.shape]
    ]
    cases += [
        (f"[limits]\n{name} = {value}\n", f"p.toml:2: limits.{name}: ")
        for name, shape in keys.of_limits().items()
        for value in _MISFITS[shape.shape]
    ]
    for kind in MountKind:
        known = keys.of_mount(kind)
        needed = [n for n, shape in known.items() if shape.required]
        for name, shape in known.items():
            lines = "".join(f"{n} = '/some/place'\n" for n in needed if n != name)
            head = f"[[mounts]]\nkind = '{kind.value}'\n{lines}"
            where = f"p.toml:{head.count(chr(10)) + 1}: mounts[0].{name}: "
            cases += [(f"{head}{name} = {value}\n", where) for value in _MISFITS[shape.shape]]
    return cases


@pytest.mark.parametrize(("text", "where"), _misfits(), ids=lambda text: text[-40:])
def test_no_misfit_of_any_key_is_taken(text: str, where: str) -> None:
    """For each key of the schema, a wrong type or value is an error with its line, key and a remedy."""
    error = refused(text)
    assert error.message.startswith(where)
    assert error.hint
    assert not re.search(r"\b(True|False|None)\b", error.message)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, "true"),
        ("x", '"x"'),
        ([1, "a", False], '[1, "a", false]'),
        ({"a b": {}, "c": 1.5}, '{ "a b" = {}, c = 1.5 }'),
        (datetime.date(1979, 5, 27), "1979-05-27"),
        ("\x1b", '"\\u001b"'),
        ("y" * 50, f'"{"y" * 39}...'),
    ],
)
def test_a_value_is_shown_as_it_is_written(value: object, written: str) -> None:
    """In a message a value looks as in the file, and not longer than needed."""
    assert toml_text.shown(value) == written


def test_an_unknown_name_to_leave_writable() -> None:
    """The table of protected names is asked when the file is read: there is the line."""
    error = refused('uid = 7\nunprotect = [".envrc", ".enwrc"]')
    assert error.message == "p.toml:2: unprotect[1]: not a protected name: .enwrc"
    assert error.hint


def about(path: str) -> PolicyError:
    """An error about a mount, as the survey of the host makes it."""
    return PolicyError("mounts: x", field="mounts", value=path)


def failed(step: s.Step) -> SetupError:
    """A step that failed."""
    return SetupError(step, 0, 9, errno.ENOENT, hint=None, exit_code=125)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (PolicyError("root: cannot read /image", field="root"), "p.toml:1: root: cannot read /image"),
        (about("/data"), "p.toml:6: mounts[0].source: x"),
        (about("/keep"), "p.toml:11: mounts[1].keep: x"),
        (about("/conf/sub/key"), "p.toml:14: mounts[2].pattern: x"),
        (about("/other"), "mounts: x"),
        (PolicyError("uid: 7 is outside", field="uid"), "uid: 7 is outside"),
        (PolicyError("gid: 7 is outside", field="gid"), "gid: 7 is outside"),
        (PolicyError("p.toml:9: uid: no", field="uid"), "p.toml:9: uid: no"),
        (failed(s.Tree("/data", 7, 0)), "p.toml:6: mounts[0].source: "),
        (failed(s.Attach(0, "/in", "it")), "p.toml:7: mounts[0].at: "),
        (failed(s.Chdir("/gone")), "p.toml:3: cwd: cannot start: "),
        (failed(s.Tree("/usr", 7, 0)), "cannot start: "),
    ],
)
def test_the_place_of_what_turns_out_later(error: CapsuleError, where: str) -> None:
    """An error that the host makes names the value of the file that it is about, unless overridden."""
    text = (
        'root = "/image"\nuid = 7\ncwd = "gone"\n'
        '[[mounts]]\nkind = "read_only"\nsource = "/data"\nat = "/in"\n'
        '[[mounts]]\nkind = "overlay"\nsource = "/src"\nkeep = "/keep"\n'
        '[[mounts]]\nkind = "hide"\npattern = "sub/key"\n'
    )
    document = toml_text.Document(text, "p.toml", "/conf")
    profile.place_error(error, [document], {"uid"})
    assert error.message.startswith(where)
    again = pickle.loads(pickle.dumps(error))
    assert (again.message, str(again)) == (error.message, str(error))
