"""The public functions name what they take: a type checker finds what is misspelt or of no use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from capsule.policy.limits import Limits
from capsule.policy.policy import Policy

ROOT = Path(__file__).parents[3]

RIGHT = """\
import capsule
policy = capsule.Policy(hostname="box", uid=5, network="host", limits=capsule.Limits(timeout="1s"))
policy = policy.replace(mounts=[capsule.Mount.tmpfs("/x")], env={"A": "1"}, extra_env={"B": None})
capsule.run(["x"], policy, timeout=3, memory="64M", cwd="/", check=True)
capsule.start(["x"], pids=3)
capsule.plan(["x"], protect=["a"])
"""
WRONG = """\
import capsule
capsule.Policy(hostnam=5)
capsule.Policy(mounts=7)
capsule.Policy(uid="x")
capsule.Policy(network="bridge")
capsule.Limits(timeuot=5)
capsule.Policy().replace(hostnam="x")
capsule.Limits().replace(memory=[])
capsule.run(["x"], timeut=3)
capsule.run(["x"], timeout=[3])
capsule.start(["x"], hostname=3)
capsule.plan(["x"], uid="x")
"""


def complaints(path: Path, code: str) -> list[str]:
    """What mypy --strict says of a program that uses the package of this tree: line and kind."""
    path.write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context"]
    command += ["--config-file", "", "--cache-dir", str(path.parent / "cache"), str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"MYPYPATH": str(ROOT / "src"), "PATH": "/usr/bin"}
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert done.returncode == bool(errors), done.stdout + done.stderr
    return [line.split(":")[1] + line[line.rindex(" ") :] for line in errors]


def test_a_type_checker_finds_wrong_calls(tmp_path: Path) -> None:
    """Each wrong call is an error of its line, and the same functions take what is right."""
    assert complaints(tmp_path / "right.py", RIGHT) == []
    found = complaints(tmp_path / "wrong.py", WRONG)
    assert [line.split()[0] for line in found] == [
        str(number) for number in range(2, 2 + len(WRONG.splitlines()) - 1)
    ]


def test_the_fields_are_those_of_the_values() -> None:
    """What the types say and what is taken are the same names, in the same order."""
    said = {
        node.name: tuple(ast.unparse(one.target) for one in node.body if isinstance(one, ast.AnnAssign))
        for name in ("limits", "policy")
        for node in ast.walk(ast.parse((ROOT / f"src/capsule/policy/{name}.py").read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert said["PolicyFields"] == Policy.__value_fields__
    assert said["LimitFields"] == Limits.__value_fields__
