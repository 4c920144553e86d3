"""The architecture, as tests: floors, names, sizes, forbidden words."""

import ast
from pathlib import Path

import pytest

import fastcse

ROOT = Path(fastcse.__file__).resolve().parent
FILES = sorted(ROOT.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))

# A module imports from lower floors and from its own room. Rooms of one floor may know one another, without a circle;
# the backends may not: each is written against what lies below, so that any one of them can be taken out.
FLOORS = [
    {"errors", "transforms", "pairs"},
    {"files", "options", "plots"},
    {"kernels", "native", "reference"},
    {"engine"},
    {"ops"},
    {"losses"},
    {"modules", "clustering", "mining", "distributed"},
    {"__init__"},
    {"training", "evaluation", "integrations", "bench", "planning"},
    {"cli"},
    {"__main__"},  # `python -m fastcse`: starts the command line
]
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}
STRANGERS = {"kernels", "native", "reference"}
# The compiled module is the C++ half of `native`, and nobody else's business.
MAY_IMPORT_C = {"native"}
# What a floor may not lean on, whatever lies below it.
BANNED = {
    "kernels": {"torch.nn", "torch.autograd"},
    "engine": {"torch.autograd", "triton"},
    "transforms": {"triton"},
    "native": {"triton", "torch.nn", "torch.autograd"},
    "losses": {"triton"},
    "modules": {"triton"},
}
# file or file::function, and why it may be longer than the house allows.
EXCUSED_SIZE: dict[str, str] = {}
# Where any failure at all must be caught, and why.
EXCUSED_CATCH = {"bench/measure.py": "a peer's own failure is a finding, and must not end everybody's run"}
# A function is counted from its first statement after the docstring: a long signature or formula is not long code.
MOST_LINES, MOST_BODY = 250, 40


def room_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path):
    """Absolute dotted names of everything that a file imports, also inside functions."""
    package = ("fastcse", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                (node.module or "").split(".")
                if not node.level
                else [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
            )
            yield from (".".join([*base, alias.name]) for alias in node.names)


def misplaced(path):
    """Imports of a file that its floor forbids."""
    room = room_of(path)
    for name in imported(path):
        parts = name.split(".")
        if any(f"{name}.".startswith(f"{root}.") for root in BANNED.get(room, ())):
            yield name
        if parts[0] != "fastcse":
            continue
        target = parts[1] if len(parts) > 1 else "__init__"
        if target == "_C":
            if room not in MAY_IMPORT_C:
                yield name
        elif target != room:
            level = LEVEL.get(target, LEVEL["__init__"])
            if level > LEVEL[room] or {target, room} <= STRANGERS:
                yield name


@every_file
def test_imports_stay_below(path):
    assert room_of(path) in LEVEL, f"{path.name} stands on no floor: add it to FLOORS with a reason"
    assert not list(misplaced(path)), f"{path.relative_to(ROOT)} may not import these"


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("kernels/planted.py", "from fastcse.native import sweep", True),
        ("kernels/planted.py", "from ..reference import sweep", True),
        ("kernels/planted.py", "def f():\n    from .. import ops", True),
        ("kernels/planted.py", "from ..transforms import FOCAL", False),
        ("kernels/planted.py", "from .tile import load", False),
        ("native/planted.py", "from fastcse import _C", False),
        ("ops/planted.py", "from fastcse import _C", True),
        ("engine/planted.py", "import triton.language as tl", True),
        ("ops/planted.py", "import fastcse.engine", False),
        ("engine/planted.py", "import fastcse.ops.dispatch", True),
        ("losses/planted.py", "from fastcse import infonce_loss", True),
        ("training/planted.py", "from fastcse import infonce_loss", False),
        ("training/planted.py", "from fastcse.evaluation import sts", False),
        ("training/planted.py", "from fastcse.cli import console", True),
        ("cli/planted.py", "import fastcse.training", False),
    ],
)
def test_the_floor_test_can_fail(monkeypatch, file, line, wrong):
    monkeypatch.setattr(Path, "read_text", lambda self: line)
    assert bool(list(misplaced(ROOT / file))) == wrong


def test_rooms_of_one_floor_import_in_no_circle():
    knows = {room: set() for room in LEVEL}
    for path in FILES:
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "fastcse" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != room_of(path):
                knows[room_of(path)].add(parts[1])
    while ready := [room for room, others in knows.items() if not others & set(knows)]:
        for room in ready:
            del knows[room]
    assert not knows, f"these rooms import one another: {knows}"


@every_file
def test_names(path):
    words = set(path.relative_to(ROOT).with_suffix("").parts)
    forbidden = {"utils", "util", "helper", "helpers", "misc", "common", "tools", "manager"}
    assert not words & forbidden, f"name the thing: {path.relative_to(ROOT)}"
    assert path.stem not in fastcse.__all__, "a file named like a public function is hidden behind it"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert not set(node.name.lower().strip("_").split("_")) & forbidden, f"name the thing: {node.name}"


def body_lines(function):
    """Lines of a function from its first statement after the docstring to its end."""
    first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
    return function.end_lineno - first.lineno + 1


@every_file
def test_sizes(path):
    text, name = path.read_text(), str(path.relative_to(ROOT))
    lines = text.count("\n")
    assert lines < MOST_LINES or name in EXCUSED_SIZE, f"{name} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = body_lines(node)
            assert size < MOST_BODY or f"{name}::{node.name}" in EXCUSED_SIZE, f"{name}::{node.name} has {size} lines"


def test_every_excuse_is_still_needed():
    for name in EXCUSED_SIZE:
        file, _, function = name.partition("::")
        text = (ROOT / file).read_text()
        if function:
            sizes = [body_lines(n) for n in ast.walk(ast.parse(text)) if getattr(n, "name", None) == function]
            assert max(sizes) >= MOST_BODY, f"{name} fits by now"
        else:
            assert text.count("\n") >= MOST_LINES, f"{name} fits by now"


def forbidden_lines(tree):
    """What a library may not do: read the environment, print, swallow every exception."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and ast.unparse(node.value) == "os":
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            yield node.lineno, "print("
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            if node.type is None or "Exception" in caught.replace("(", " ").replace(",", " ").replace(")", " ").split():
                yield node.lineno, f"except {caught}"


@every_file
def test_forbidden_lines(path):
    if room_of(path) == "cli":
        return
    found = list(forbidden_lines(ast.parse(path.read_text())))
    if path.relative_to(ROOT).as_posix() in EXCUSED_CATCH:
        assert [what for _, what in found] == ["except Exception"]
        return
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import os\nos.environ['A']",
        "import os\nos.getenv('A')",
        "print(1)",
        "try:\n    1\nexcept Exception:\n    2",
        "try:\n    1\nexcept:\n    2",
        "try:\n    1\nexcept (ValueError, Exception) as e:\n    2",
    ],
)
def test_the_forbidden_lines_test_can_fail(line):
    assert list(forbidden_lines(ast.parse(line)))


def test_the_package_init_holds_names_and_no_code():
    for node in ast.parse((ROOT / "__init__.py").read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__version__")
        assert docstring or names or isinstance(node, ast.Import | ast.ImportFrom), ast.unparse(node)


def test_all_names_exist_and_nothing_else_is_public():
    modules = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    public = {name for name in vars(fastcse) if not name.startswith("_")} - modules
    assert public == set(fastcse.__all__)
