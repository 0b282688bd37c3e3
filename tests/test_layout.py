"""The shape of the code: rooms and their arrows, sizes, parameters, docstrings.

Run it on its own while you write: ``.venv/bin/python -m pytest tests/test_layout.py``.
"""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "spvit_deploy"
FOLDERS = ("spvit_deploy", "search", "export", "benchmarks")
FLOORS = 8
MAX_PARAMETERS, MAX_LINES, MAX_FUNCTION = 8, 300, 40
# Modules that earn more lines, with the reason.
LONG_MODULES: dict[str, str] = {}
# Functions that earn more lines, with the reason.
LONG_FUNCTIONS: dict[str, str] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def sources() -> dict[str, ast.Module]:
    """Product code by path, without the symbolic links that show it twice."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    own = [file for file in files if not any(part.is_symlink() for part in file.parents)]
    return {str(f.relative_to(ROOT)): ast.parse(f.read_text(encoding="utf-8")) for f in own}


@cache
def rooms() -> dict[str, set[str]]:
    """Packages directly below ours, and which of them each imports."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    names = {name for name in graph.find_children(PACKAGE) if graph.find_children(name)}
    found: dict[str, set[str]] = {name.rpartition(".")[2]: set() for name in names}
    for module in graph.modules:
        parts = module.split(".")
        if len(parts) < 2 or parts[1] not in found:
            continue
        for imported in graph.find_modules_directly_imported_by(module):
            other = imported.split(".")
            if len(other) > 1 and other[1] in found and other[1] != parts[1]:
                found[parts[1]].add(other[1])
    return found


def layers() -> list[list[str]]:
    """The layers of the import contract, from the highest to the lowest."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    rows = setup["importlinter:contract:layers"]["layers"].split("\n")
    return [re.split(r"\s*[|:]\s*", row.strip()) for row in rows if row.strip()]


def floor(room: str) -> int:
    """Longest chain of imports below a room, itself included."""
    return 1 + max((floor(below) for below in rooms()[room]), default=0)


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """All functions and methods, by qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")


def public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def is_command(node: Function) -> bool:
    """Whether click hands the parameters over."""
    return any(".command" in ast.unparse(part) for part in node.decorator_list)


def everywhere() -> Iterator[tuple[str, str, Function]]:
    for path, tree in sources().items():
        for name, node in functions(tree):
            yield path, name, node


def test_hardly_a_module_stands_outside_the_rooms() -> None:
    directly = [path for path in sources() if re.fullmatch(r"spvit_deploy/\w+\.py", path)]
    assert len(directly) <= 4, directly


def test_rooms_have_few_floors_and_arrows_that_go_down() -> None:
    order = {room: level for level, row in enumerate(layers()) for room in row}
    assert set(order) == set(rooms())
    upward = [f"{a} → {b}" for a, found in rooms().items() for b in found if order[b] < order[a]]
    assert not upward
    # A circle would never end here.
    assert max(floor(room) for room in rooms()) <= FLOORS


def test_the_diagram_of_the_architecture_is_the_import_graph() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", text, re.S)
    drawn = set(re.findall(r"^\s*(\w+) --> (\w+)$", diagram, re.M))
    # `core` is imported by every room and is drawn without arrows.
    real = {(a, b) for a, found in rooms().items() for b in found if b != "core"}
    assert drawn == real, f"missing {sorted(real - drawn)}, too many {sorted(drawn - real)}"


def test_the_wheel_has_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    found = {
        (path if path.startswith(PACKAGE) else f"{PACKAGE}/{path}")
        .removesuffix("/__init__.py")
        .replace("/", ".")
        for path in sources()
        if path.endswith("/__init__.py")
    }
    assert listed == found, "the list `packages` of setup.cfg"


def test_every_runtime_is_in_the_contract_and_declares_without_heavy_imports() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["importlinter:contract:runtimes"]["modules"].split())
    infos = {path: tree for path, tree in sources().items() if path.endswith("/info.py")}
    infos.pop("spvit_deploy/runtimes/info.py")
    found = {path.removesuffix("/info.py").replace("/", ".") for path in infos}
    assert listed == found, "the list `modules` of importlinter:contract:runtimes in setup.cfg"
    for path, tree in infos.items():
        modules = {n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)}
        modules |= {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
        ours = {name for name in modules if name.startswith(f"{PACKAGE}.")}
        rest = {name.partition(".")[0] for name in modules - ours}
        assert not {n for n in ours if re.fullmatch(rf"{PACKAGE}\.runtimes\.\w+\.\w+", n)}, path
        assert rest <= set(sys.stdlib_module_names) | {"click"}, path


def test_no_function_has_many_parameters() -> None:
    long = []
    for path, name, node in everywhere():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        own = [one for one in arguments if one.arg not in ("self", "cls")]
        if len(own) > MAX_PARAMETERS and not is_command(node):
            long.append(f"{path}:{node.lineno} {name} has {len(own)}")
    assert not long, "\n".join(long)


def test_no_module_is_long() -> None:
    sizes = {path: len((ROOT / path).read_text().splitlines()) for path in sources()}
    long = {path: size for path, size in sizes.items() if size > MAX_LINES}
    assert set(long) == set(LONG_MODULES), long


def test_no_function_is_long() -> None:
    long = {}
    for path, name, node in everywhere():
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
        if lines > MAX_FUNCTION:
            long[f"{path}:{name}"] = lines
    assert set(long) == set(LONG_FUNCTIONS), long


@pytest.mark.parametrize("path", sorted(sources()))
def test_modules_and_public_names_are_documented(path: str) -> None:
    tree = sources()[path]
    assert ast.get_docstring(tree), "the module has no docstring"
    missing = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and public(node.name) and not ast.get_docstring(node)
    ]
    for name, node in functions(tree):
        text = ast.get_docstring(node) or ""
        if not public(name) or is_command(node):
            continue
        if not text:
            missing.append(f"{name}: no docstring")
        elif own_raises(node) and "Raises" not in text and "rrors" not in text:
            missing.append(f"{name}: raises {', '.join(sorted(own_raises(node)))}")
        elif shaped(node) and "[" not in text and "rguments" not in text:
            missing.append(f"{name}: no shapes")
    assert not missing, missing


def own_raises(node: Function) -> set[str]:
    """Errors of ours that a function raises itself, nested functions left out."""
    found: set[str] = set()
    todo: list[ast.AST] = list(node.body)
    while todo:
        part = todo.pop()
        if isinstance(part, Function):
            continue
        if isinstance(part, ast.Raise) and isinstance(part.exc, ast.Call):
            name = ast.unparse(part.exc.func)
            if name.endswith("Error") and name[:1].isupper():
                found.add(name)
        todo += ast.iter_child_nodes(part)
    return found


def shaped(node: Function) -> bool:
    """Whether arrays go in or come out."""
    if node.name == "forward":
        return True
    notes = [one.annotation for one in node.args.args if one.annotation] + [node.returns]
    return any(note and re.fullmatch(r"Tensor|Array", ast.unparse(note)) for note in notes)
