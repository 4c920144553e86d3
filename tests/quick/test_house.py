"""The architecture, as tests: floors, names, forbidden words. Lengths are alarms: tests/alarms.py."""

import ast
from pathlib import Path

import pytest

import fastcse

ROOT = Path(fastcse.__file__).resolve().parent
SOURCES = {path.relative_to(ROOT): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
TREES = {path: ast.parse(text) for path, text in SOURCES.items()}

# A module imports from lower floors and from its own room: a folder or file of the package, by its name. Rooms of one
# floor may know one another, without a circle; the backends may not: each is written against what lies below, so that
# any one of them can be taken out. A new room is one word here.
FLOORS = [
    "errors moved transforms pairs operands",
    "files options plots",
    "kernels native reference",
    "engine",
    "ops",
    "losses",
    "modules negative_queue clustering encoding retrieval mining distributed",
    "__init__",
    "training evaluation integrations bench planning",
    "cli",
    "__main__",  # `python -m fastcse`: starts the command line
]
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor.split()}
BACKENDS = {"kernels", "native", "reference"}
# What a floor may not import, whatever lies below it. The compiled module is the C++ half of `native` alone.
BANNED = {
    "kernels": {"torch.nn", "torch.autograd"},
    "engine": {"torch.autograd", "triton"},
    "transforms": {"triton"},
    "native": {"triton", "torch.nn", "torch.autograd"},
    "losses": {"triton"},
    "modules": {"triton"},
}
# Where any failure at all must be caught, and why.
EXCUSED_CATCH = {"bench/measure.py": "a peer's own failure is a finding, and must not end everybody's run"}
VAGUE = {"utils", "util", "helper", "helpers", "misc", "common", "tools", "manager"}


def room_of(path):
    return path.with_suffix("").parts[0]


def imported(path, tree):
    """Absolute dotted names of everything that a file imports, also inside functions."""
    package = ("fastcse", *path.parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def target_of(name):
    """The room that an imported name is of; None outside the package."""
    parts = name.split(".")
    if parts[0] != "fastcse":
        return None
    return parts[1] if len(parts) > 1 and (parts[1] in LEVEL or parts[1] == "_C") else "__init__"


def misplaced(path, tree):
    """Imports of a file that its floor forbids."""
    room = room_of(path)
    for name in imported(path, tree):
        target = target_of(name)
        if any(f"{name}.".startswith(f"{root}.") for root in BANNED.get(room, ())):
            yield name
        elif target == "_C":
            if room != "native":
                yield name
        elif target not in (None, room) and (LEVEL[target] > LEVEL[room] or {target, room} <= BACKENDS):
            yield name


def vague(path, tree):
    """Names that say nothing: of the file, and of what it defines."""
    yield from VAGUE & set(path.with_suffix("").parts)
    if path.stem in fastcse.__all__:
        yield f"{path.stem}: a file named like a public function is hidden behind it"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and VAGUE & set(node.name.lower().strip("_").split("_")):
            yield node.name


def forbidden(path, tree):
    """What a library may not do: read the environment, print, swallow every exception."""
    if room_of(path) == "cli":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and ast.unparse(node.value) == "os":
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            yield f"line {node.lineno}: print("
        if isinstance(node, ast.ExceptHandler) and path.as_posix() not in EXCUSED_CATCH:
            caught = "" if node.type is None else ast.unparse(node.type)
            if node.type is None or "Exception" in caught.replace("(", " ").replace(",", " ").replace(")", " ").split():
                yield f"line {node.lineno}: except {caught}"


def offenders(rule):
    return {str(path): found for path, tree in TREES.items() if (found := list(rule(path, tree)))}


def test_every_room_stands_on_a_floor():
    homeless = {room_of(path) for path in SOURCES} - set(LEVEL)
    assert not homeless, f"add to FLOORS: {homeless}"


@pytest.mark.parametrize("rule", [misplaced, vague, forbidden])
def test_no_file_offends(rule):
    assert not offenders(rule)


def test_an_excuse_is_still_needed(monkeypatch):
    excused = set(EXCUSED_CATCH)
    monkeypatch.setitem(globals(), "EXCUSED_CATCH", {})
    assert set(offenders(forbidden)) == excused


def test_rooms_of_one_floor_import_in_no_circle():
    knows = {room_of(path): set() for path in SOURCES}
    for path, tree in TREES.items():
        knows[room_of(path)] |= {target_of(name) for name in imported(path, tree)} - {None, "_C", room_of(path)}
    while ready := [room for room, others in knows.items() if not others & set(knows)]:
        for room in ready:
            del knows[room]
    assert not knows, f"these rooms import one another: {knows}"


@pytest.mark.parametrize(
    ("rule", "file", "code", "wrong"),
    [
        (misplaced, "kernels/planted.py", "from fastcse.native import sweep", True),
        (misplaced, "kernels/planted.py", "from ..reference import sweep", True),
        (misplaced, "kernels/planted.py", "def f():\n    from .. import ops", True),
        (misplaced, "kernels/planted.py", "from ..transforms import FOCAL\nfrom .tile import load", False),
        (misplaced, "native/planted.py", "from fastcse import _C", False),
        (misplaced, "ops/planted.py", "from fastcse import _C", True),
        (misplaced, "engine/planted.py", "import triton.language as tl", True),
        (misplaced, "engine/planted.py", "import fastcse.ops.dispatch", True),
        (misplaced, "losses/planted.py", "from fastcse import infonce_loss", True),
        (
            misplaced,
            "training/planted.py",
            "from fastcse import infonce_loss\nfrom fastcse.evaluation import sts",
            False,
        ),
        (misplaced, "training/planted.py", "from fastcse.cli import console", True),
        (vague, "ops/utils.py", "", True),
        (vague, "ops/topk.py", "", True),
        (vague, "ops/planted.py", "def _row_helper(): ...", True),
        (forbidden, "ops/planted.py", "import os\nos.environ['A']", True),
        (forbidden, "ops/planted.py", "import os\nos.getenv('A')", True),
        (forbidden, "ops/planted.py", "print(1)", True),
        (forbidden, "ops/planted.py", "try:\n    1\nexcept:\n    2", True),
        (forbidden, "ops/planted.py", "try:\n    1\nexcept (ValueError, Exception) as e:\n    2", True),
        (forbidden, "cli/planted.py", "print(1)", False),
    ],
)
def test_a_rule_can_fail(rule, file, code, wrong):
    assert bool(list(rule(Path(file), ast.parse(code)))) == wrong


def test_the_package_init_holds_names_and_no_code():
    for node in TREES[Path("__init__.py")].body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__version__")
        assert docstring or names or isinstance(node, ast.Import | ast.ImportFrom), ast.unparse(node)


def test_all_names_exist_and_nothing_else_is_public():
    modules = {path.parts[0].removesuffix(".py") for path in SOURCES}
    public = {name for name in vars(fastcse) if not name.startswith("_")} - modules
    assert public == set(fastcse.__all__)
