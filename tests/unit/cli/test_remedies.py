"""Every error about a request says what to do about it."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import profile
from capsule.base.errors import PolicyError
from capsule.cli import policy as policy_verb
from capsule.cli import report
from capsule.cli.options import parse
from capsule.cli.request import effective
from capsule.policy import builtin, protected
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount
from capsule.policy.paths import absolute, check_path, inside_path
from capsule.policy.policy import Policy
from capsule.policy.toml import document, tighten
from capsule.policy.units import parse_size, parse_time

SOURCES = sorted(Path(capsule.__file__).parent.rglob("*.py"))
# What makes an error about a request, besides the class itself.
MAKERS = ("PolicyError", "_wrong", "document.error")

_Make = Callable[[], object]
TMP = Mount.tmpfs("/t/u")


def options(*words: str) -> _Make:
    """What these options come to."""
    return lambda: effective(parse("run", [*words, "true"]))


def found_file(text: str) -> _Make:
    """A policy that a file of this text tightens."""
    policy = Policy(mounts=(TMP,))
    return lambda: tighten.tighten_by(policy, document.Document(text, "capsule.toml", "/"))


def field(**fields: Any) -> _Make:
    """A policy of these fields."""
    return lambda: Policy(**fields)


WRONG: dict[str, _Make] = {
    "no path": lambda: check_path("", "root"),
    "a NUL byte": lambda: check_path("a\0b", "root"),
    "no text": lambda: check_path(5, "root"),
    "relative": lambda: check_path("a", "mounts", absolute=True),
    "two dots": lambda: inside_path("/a/../b", "mounts"),
    "no size": lambda: parse_size("much", "size"),
    "no time": lambda: parse_time("soon", "timeout"),
    "less than a page": lambda: Mount.tmpfs("/t", 1),
    "no mode": lambda: Mount.directory("/d", 0o1000),
    "no flag of a mount": lambda: Mount.read_only("/d", noexec=1),  # type: ignore[arg-type]
    "no pattern": lambda: Mount.hide(".."),
    "no content": lambda: Mount.content(5, "/c"),  # type: ignore[arg-type]
    "large content": lambda: Mount.content(b"x" * (8 << 20 | 1), "/c"),
    "much content": field(mounts=[Mount.content(b"x" * (5 << 20), f"/c{n}") for n in range(2)]),
    "kept and sized": lambda: Mount.overlay("/d", keep="/k", size="1M"),
    "the root": lambda: Mount.tmpfs("/"),
    "Capsule's own": lambda: Mount.tmpfs("/proc"),
    "hides an earlier one": field(mounts=[TMP, Mount.tmpfs("/t")]),
    "lies in a link": field(mounts=[Mount.symlink("x", "/t"), TMP]),
    "no mounts": field(mounts=5),
    "an unknown field": field(nope=5),
    "no root": field(root=5),
    "no choice": field(network="some"),
    "no hostname": field(hostname="-"),
    "no id": field(uid=-1),
    "no flag": field(show_cwd=5),
    "no limits": field(limits=5),
    "no timeout": lambda: Limits(timeout=0),
    "no names": field(protect=5),
    "no name": field(protect=["/x"]),
    "a pattern": field(protect=["*.py"]),
    "a control character": field(protect=["a\nb"]),
    "no variables": field(env=5),
    "no variable": field(env={"A=B": "x"}),
    "no value": field(env={"A": None}),
    "no text as value": field(extra_env={"A": 5}),
    "an unknown option": options("--nope"),
    "no value of an option": lambda: parse("run", ["--ro"]),
    "a value of a switch": options("--no-cwd=1"),
    "no command": lambda: parse("run", []),
    "no uid": options("--uid=me"),
    "two profiles": options("--profile=dev", "--profile=strict"),
    "no such profile": options("--profile=nosuch"),
    "no such file": options("--profile=./nosuch.toml"),
    "a modifier alone": options("--noexec"),
    "a modifier of another": options("--dir=/d", "--noexec"),
    "a size of a kept layer": options("--overlay=/d", "--keep=/k", "--size=1M"),
    "no place of a link": options("--symlink=a"),
    "no place of a file": options("--file=a:b"),
    "a size of a tmpfs": options("--tmpfs=/t:much"),
    "no report": lambda: report.Report("/nonexistent/report.json"),
    "no verb of policy": lambda: policy_verb.main(["nope"]),
    "too many words": lambda: policy_verb.main(["list", "x"]),
    "a command to show": lambda: policy_verb.main(["show", "true"]),
    "an unknown protected name": lambda: policy_verb.main(["show", "--unprotect=typo"]),
    "the same elsewhere": lambda: protected.in_force((), ("typo",)),
    "no TOML": lambda: profile.loads("a = "),
    "a file that is found": found_file("uid = 1"),
    "a higher limit": found_file("limits.timeout = 'none'"),
    "a hide over a mount": found_file("mounts = [{ kind = 'hide', pattern = '/t' }]"),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_a_wrong_request_has_a_remedy(make: _Make) -> None:
    """Each mistake is an error whose hint is a sentence, on a line of its own."""
    with pytest.raises(PolicyError) as caught:
        make()
    hint = caught.value.hint
    assert hint
    assert hint.isprintable()
    assert not hint.endswith(".")
    assert str(caught.value).splitlines()[-1] == f"  hint: {hint}"


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths that count from it have a remedy, and so has a profile that would make it writable."""
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    for make in (lambda: absolute("x", "root"), lambda: builtin.builtin("dev")):
        with pytest.raises(PolicyError) as caught:
            make()
        assert caught.value.hint
    os.chdir("/")


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in MAKERS
    ]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_error_about_a_request_is_made_without_a_hint(source: Path) -> None:
    """Wherever the code makes one, it gives the remedy with it."""
    for call in _calls(ast.parse(source.read_text(encoding="utf-8"))):
        given = {keyword.arg for keyword in call.keywords}
        own = ast.unparse(call.func) == "_wrong" and len(call.args) == 4
        assert own or "hint" in given, f"{source.name}:{call.lineno}"
