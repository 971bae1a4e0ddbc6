"""Each folder is a layer: an import only goes down."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parent.parent / "cacheagent"

LAYERS = (
    {"errors", "mistakes", "model", "units"},
    {"configtypes"},
    {"config", "metrics", "log", "policy", "sync"},
    {"process"},
    {"sandbox"},
    {"backends"},
    {"service"},
    {"loops"},
    {"api", "live"},
    {"wiring"},
    {"daemon", "check", "imageserver", "client"},
    {"cli"},
    {"__main__"},
)
"""The rooms of the package, from the lowest up: one imports from lower rooms, and from itself."""

LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

STRANGERS = {"backends", "loops"}
"""Rooms whose modules never import one another. A backend or loop that is a folder is one."""

IMPURE = {
    *("aiofiles", "asyncio", "fcntl", "io", "os", "random", "secrets", "shutil", "socket"),
    *("sqlite3", "subprocess", "sys", "tempfile", "threading", "time"),
}
"""Modules by which a pure decision would reach for the world."""

IMPURE_CALLS = {
    *("open", "now", "utcnow", "today", "print", "input"),
    *("read_text", "read_bytes", "write_text", "write_bytes", "exists", "stat", "lstat"),
    *("iterdir", "glob", "rglob", "is_file", "is_dir", "is_symlink", "mkdir", "unlink", "rmdir"),
    *("rename", "touch", "resolve", "readlink", "symlink_to", "hardlink_to", "chmod"),
}
"""Functions and methods (of paths, of datetime) that would do so too."""


def violations(package: Path) -> list[str]:
    """List what breaks the layers below ``package``, a sentence for each."""
    return [
        f"{'.'.join(module)} {problem}"
        for module, tree in _modules(package)
        for problem in (*_wrong_imports(package.name, module, tree), *_impurities(module, tree))
    ]


def _modules(package: Path) -> Iterator[tuple[tuple[str, ...], ast.Module]]:
    """Give each module by its names below the package, with what is written in it."""
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package).with_suffix("").parts
        if module[-1] == "__init__":
            module = module[:-1]
        yield module, ast.parse(path.read_text(), str(path))


def _imports(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """Give the dotted name of whatever is imported, those for type checking included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from ((*start.split("."), alias.name) for alias in node.names)


def _wrong_imports(package: str, module: tuple[str, ...], tree: ast.Module) -> Iterator[str]:
    for name in _imports(tree):
        if name[0] == "":
            yield "imports by a relative name"
        elif name[0] == package and not _may(module, name[1:]):
            yield f"imports {'.'.join(name[1:])}"


def _may(module: tuple[str, ...], target: tuple[str, ...]) -> bool:
    """Tell whether the module may import the target, both named below the package."""
    if module == ():
        return False
    if target in {(), ("__version__",)}:
        return True  # the package itself: it defines its version and imports nothing
    if module[0] not in LEVELS or target[0] not in LEVELS:
        return False
    if module[0] != target[0]:
        return LEVELS[target[0]] < LEVELS[module[0]]
    return module[0] not in STRANGERS or module[:2] == target[:2]


def _impurities(module: tuple[str, ...], tree: ast.Module) -> Iterator[str]:
    if module[:1] != ("policy",):
        return
    for name in _imports(tree):
        if name[0] in IMPURE:
            yield f"is pure and imports {name[0]}"
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield "is pure and waits"
        if isinstance(node, ast.Call) and (call := _called(node)) in IMPURE_CALLS:
            yield f"is pure and calls {call}"


def _called(call: ast.Call) -> str | None:
    """Give the last part of the name that is called."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else None


def test_imports_only_go_down() -> None:
    """No module of the package imports from its own level or above, and policy is pure."""
    assert violations(PACKAGE) == []


def test_every_room_has_a_level() -> None:
    """A new module or folder gets its place in the table before it is used."""
    rooms = {module[0] for module, _ in _modules(PACKAGE) if module}
    assert rooms <= set(LEVELS)


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("model.py", "import rooms.errors", "model imports errors"),
        ("model.py", "from rooms import errors", "model imports errors"),
        ("sync/a.py", "from rooms.policy.b import c", "sync.a imports policy.b.c"),
        ("backends/a.py", "from rooms.service import b", "backends.a imports service.b"),
        ("backends/a.py", "from rooms.backends import b", "backends.a imports backends.b"),
        ("backends/a.py", "from rooms.backends.b import c", "backends.a imports backends.b.c"),
        (
            "backends/a/x.py",
            "from rooms.backends.b.y import z",
            "backends.a.x imports backends.b.y.z",
        ),
        ("loops/a.py", "def f():\n    import rooms.loops.b", "loops.a imports loops.b"),
        ("api/a.py", "if TYPE_CHECKING:\n    from rooms.daemon import D", "api.a imports daemon.D"),
        ("client.py", "from rooms.imageserver import x", "client imports imageserver.x"),
        ("service/a.py", "from . import b", "service.a imports by a relative name"),
        ("service/a.py", "from ..api.b import c", "service.a imports by a relative name"),
        ("attic/a.py", "from rooms.model import b", "attic.a imports model.b"),
        ("service/a.py", "from rooms.attic import b", "service.a imports attic.b"),
        ("__init__.py", "from rooms.model import b", " imports model.b"),
        ("policy/a.py", "import asyncio", "policy.a is pure and imports asyncio"),
        ("policy/a.py", "from os.path import join", "policy.a is pure and imports os"),
        ("policy/a.py", "async def f(): pass", "policy.a is pure and waits"),
        ("policy/a.py", "datetime.now(UTC)", "policy.a is pure and calls now"),
        ("policy/a.py", "path.exists()", "policy.a is pure and calls exists"),
        ("policy/a.py", "open('x')", "policy.a is pure and calls open"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, path: str, text: str, expected: str) -> None:
    """Each way to break the layers is seen and named."""
    assert violations(_tree(tmp_path, path, text)) == [expected]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("config.py", "from rooms.model import a\nimport os"),
        ("policy/a.py", "from rooms.policy.b import c\nfrom datetime import timedelta"),
        ("policy/a.py", "functions[0](now)"),
        ("sync/a.py", "from rooms.errors import B\nimport asyncio"),
        ("backends/a.py", "from rooms.policy import b\nfrom rooms.sync.c import d"),
        ("backends/a/x.py", "from rooms.backends.a.y import z\nfrom rooms.backends.a import y"),
        ("service/a.py", "from rooms.service.b import c\nimport rooms.backends.d"),
        ("cli.py", "from rooms import __version__\nfrom rooms.daemon import e"),
        ("cli.py", "import rooms"),
    ],
)
def test_what_goes_down_is_allowed(tmp_path: Path, path: str, text: str) -> None:
    """Imports of lower rooms, and within a room that allows it, are no violation."""
    assert violations(_tree(tmp_path, path, text)) == []


def _tree(folder: Path, path: str, text: str) -> Path:
    """Write a package of one module."""
    package = folder / "rooms"
    module = package / path
    module.parent.mkdir(parents=True)
    module.write_text(text)
    return package
