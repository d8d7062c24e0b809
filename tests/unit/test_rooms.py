"""The rooms of the package, and the sizes that keep it readable."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import capsule

PACKAGE = Path(__file__).parents[2] / "src" / "capsule"
PATHS = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in PATHS]
MODULES = {name: ast.parse((PACKAGE / name).read_text()) for name in NAMES}
Function = ast.FunctionDef | ast.AsyncFunctionDef

# From bottom to top; the two on one floor do not know each other.
ORDER = [
    "base",
    "launcher confine",
    "host",
    "policy",
    "files",
    "program",
    "planner",
    "changes",
    "process",
    "api",
    "fleet",
    "cli",
]
FLOOR = {room: number for number, rooms in enumerate(ORDER) for room in rooms.split()}
# What stands beside the rooms.
LOBBY = ["__init__", "__main__"]


def room(name: str) -> str:
    """The room of a module, by its path in the package."""
    return Path(name).parts[0].removesuffix(".py")


def imports(name: str) -> list[str]:
    """The modules of ours that a module names in an import, for types and in functions as well."""
    found = []
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            # Within its own folder; from the package's own, that is every room.
            assert node.level == 1, name
            here = [part for part in Path(name).parent.parts if part]
            module = [node.module] if node.module else []
            found += [".".join(["capsule", *here, *module, alias.name]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [one for one in found if one.split(".")[0] == "capsule"]


def neighbours(name: str) -> set[str]:
    """The modules of the same folder that a module imports, at whatever depth."""
    folder = Path(name).parent
    found = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom) and node.level:
            first = [node.module.split(".")[0]] if node.module else [one.name for one in node.names]
            found |= {str(folder / f"{one}.py") for one in first}
        elif isinstance(node, ast.Import):
            paths = [one.name.split(".")[1:] for one in node.names if one.name.startswith("capsule.")]
            found |= {f"{'/'.join(path)}.py" for path in paths if path[:-1] == [*folder.parts]}
    return found & set(MODULES)


def in_a_cycle(graph: dict[str, set[str]]) -> set[str]:
    """The nodes that are left when those without an edge out are taken away again and again."""
    left = dict(graph)
    while True:
        free = {name for name, to in left.items() if not to & set(left)}
        if not free:
            return set(left)
        left = {name: to for name, to in left.items() if name not in free}


def test_the_rooms_are_the_folder() -> None:
    """Nothing lies in the package's folder but the rooms of the order, and the map has them all."""
    assert sorted({room(name) for name in NAMES}) == sorted([*FLOOR, *LOBBY])
    assert capsule.__doc__
    listed = [line[4:24].strip() for line in capsule.__doc__.splitlines() if line.startswith("    ")]
    assert [set(one.replace(",", "").split()) for one in listed] == [
        set(rooms.split()) for rooms in reversed(ORDER)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_imports_upward(name: str) -> None:
    """A room imports itself and the rooms below; nothing else, types and lazy imports included."""
    here = room(name)
    for path in imports(name):
        if here in FLOOR:
            parts = path.split(".")
            other = parts[1] if len(parts) > 1 else ""
            # The version alone stands in no room.
            assert other == "__version__" or other == here or FLOOR[other] < FLOOR[here], path


def test_there_is_no_cycle() -> None:
    """No module of a room needs itself, not even for a type or inside of a function."""
    assert not in_a_cycle({name: neighbours(name) for name in NAMES})


@pytest.mark.parametrize("folder", sorted({path.parent for path in PATHS} - {PACKAGE}), ids=str)
def test_a_room_is_surveyable(folder: Path) -> None:
    """It has at most twelve modules, and its __init__ is a docstring of what it is for."""
    modules = sorted(path.name for path in folder.glob("*.py"))
    assert len(modules) - 1 <= 12, modules
    (statement,) = MODULES[str(folder.relative_to(PACKAGE) / "__init__.py")].body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Constant)
    assert isinstance(statement.value.value, str)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_short(name: str) -> None:
    """No module is longer than 400 lines."""
    assert len((PACKAGE / name).read_text().splitlines()) <= 400


def body_lines(function: Function) -> int:
    """Lines of a function's body, without its docstring."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_are_small() -> None:
    """Half of the functions have at most 8 lines of body, 95 of 100 at most 40, none more than 60."""
    sizes = {
        f"{name}:{node.name}": body_lines(node)
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
        "Git", "Host", "IdMap", "Limits", "Mount", "Network", "Outcome", "Plan", "Policy", "Pool",
        "Process", "Result", "Denial", "Seccomp", "Terminal", "Usage", "__version__", "open_layer",
        "plan", "probe", "profile", "run", "start", "AsyncProcess", "run_async", "start_async",
        "CallFailed", "Executor", "Garbled", "Contact",
    }  # fmt: skip
    assert len(set(capsule.__all__)) == len(capsule.__all__)


def test_the_package_shows_its_public_names_alone() -> None:
    """dir() has no room and no module of ours, whatever was imported meanwhile."""
    code = "import capsule; capsule.run; capsule.Layer; print(*dir(capsule))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == set(capsule.__all__)


def test_what_is_public_is_said_where_it_is() -> None:
    """Each exported class and function has a docstring."""
    for name in capsule.__all__:
        value = getattr(capsule, name)
        if callable(value):
            assert value.__doc__, name


def test_a_function_s_docstring_has_a_verb() -> None:
    """It says what the function does, not what its result would be called."""
    nouns = [
        f"{name}:{node.name}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, Function) and not node.decorator_list
        if (ast.get_docstring(node) or "").startswith(("What ", "Whether "))
    ]
    assert nouns == []


def test_the_unit_tests_mirror_the_rooms() -> None:
    """Each folder of theirs is a room, or a part of one."""
    here = Path(__file__).parent
    folders = {path.parent.relative_to(here) for path in here.rglob("test_*.py")} - {Path()}
    assert [str(folder) for folder in folders if not (PACKAGE / folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].rglob("*.py")), ids=lambda p: p.stem)
def test_a_test_file_is_short(path: Path) -> None:
    """No file of tests is longer than 600 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600
