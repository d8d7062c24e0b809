"""The map of the package, read from its own docstring, and the sizes that keep it readable."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import capsule

PACKAGE = Path(__file__).parents[2] / "src" / "capsule"
MODULES = {path.stem: ast.parse(path.read_text()) for path in sorted(PACKAGE.glob("*.py"))}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def layers() -> list[list[str]]:
    """The left column of the map, from top to bottom; names on one line are of one layer."""
    assert capsule.__doc__
    rows = re.findall(r"^    (\w+(?:, \w+)*)(?:  .*)?$", capsule.__doc__, flags=re.MULTILINE)
    return [row.split(", ") for row in rows]


LAYER = {name: number for number, names in enumerate(layers()) for name in names}


def is_for_types(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, whose body is never executed."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, without what is there for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if is_for_types(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield other
                yield from executed(other)
        else:
            yield child
            yield from executed(child)


def imported(name: str) -> set[str]:
    """The modules of the package that a module imports when it is executed, at whatever depth."""
    found: set[str] = set()
    for node in executed(MODULES[name]):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
        assert not isinstance(node, ast.ImportFrom) or node.level < 2
        if isinstance(node, ast.Import | ast.ImportFrom):
            text = ast.unparse(node)
            assert "capsule" not in text.split()[1].split("."), f"{name}: {text}"
    return found & set(MODULES) | {module for module in found if module == "__init__"}


def in_a_cycle(graph: dict[str, set[str]]) -> set[str]:
    """The nodes that are left when those without an edge out are taken away again and again."""
    left = dict(graph)
    while True:
        free = {name for name, to in left.items() if not to & set(left)}
        if not free:
            return set(left)
        left = {name: to for name, to in left.items() if name not in free}


def test_the_map_is_complete() -> None:
    """Every module stands once in the left column of the map, and nothing that is not there."""
    names = [name for row in layers() for name in row]
    assert len(set(names)) == len(names)
    assert set(names) == set(MODULES) - {"__init__", "__main__"}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__init__", "__main__"}))
def test_nothing_imports_upward(name: str) -> None:
    """A module imports those of its own line of the map and of the lines below, and no other."""
    upward = {other for other in imported(name) if LAYER.get(other, -1) < LAYER.get(name, -1)}
    assert not upward
    assert "__init__" not in imported(name)


def test_there_is_no_cycle() -> None:
    """No module needs itself, not even through an import inside of a function."""
    graph = {name: imported(name) for name in MODULES if name not in ("__init__", "__main__")}
    assert not in_a_cycle(graph)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_short(name: str) -> None:
    """No module is longer than 400 lines."""
    assert len((PACKAGE / f"{name}.py").read_text().splitlines()) <= 400


def body_lines(function: Function) -> int:
    """Lines of a function's body, without its docstring."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_are_small() -> None:
    """Half of the functions have at most 8 lines of body, 95 of 100 at most 40, none more than 60."""
    sizes = {
        f"{name}.{node.name}": body_lines(node)
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }
    assert statistics.median(sizes.values()) <= 8
    assert statistics.quantiles(sizes.values(), n=20)[-1] <= 40
    assert {name: size for name, size in sizes.items() if size > 60} == {}


def test_the_public_names() -> None:
    """What the package exports is pinned: a name more or less is a decision."""
    assert set(capsule.__all__) == {
        "DEVNULL", "INHERIT", "PIPE", "STDOUT", "Action", "Change", "Layer", "SetAside", "System",
        "CapsuleError", "CommandFailed", "HostError", "InternalError", "PolicyError", "SetupError",
        "Host", "IdMap", "Limits", "Mount", "Network", "Outcome", "Plan", "Policy", "Process", "Result",
        "Denial", "Seccomp", "Terminal", "Usage", "__version__", "open_layer", "plan", "probe",
        "profile", "run", "start",
    }  # fmt: skip
    assert len(set(capsule.__all__)) == len(capsule.__all__)


def test_what_is_public_is_said_where_it_is() -> None:
    """Each exported class and function has a docstring."""
    for name in capsule.__all__:
        value = getattr(capsule, name)
        if callable(value):
            assert value.__doc__, name
