"""What `make check` reports and never fails on: long files and functions, many parameters, unformatted code.

A length is a hint to look, not a rule. The worst ten of each kind, or all: python tests/alarms.py all
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("fastcse", "benchmarks", "tests")
MOST_LINES, MOST_BODY, MOST_PARAMETERS, MOST_IN_A_KERNEL = 400, 60, 10, 30
TABLES = (ast.Dict, ast.List, ast.Tuple, ast.Set)


def body_lines(function):
    """Lines of a function from its first statement after the docstring: a long signature or formula is no long code."""
    first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
    return function.end_lineno - first.lineno + 1


def parameters(function):
    a = function.args
    return len([*a.posonlyargs, *a.args, *a.kwonlyargs]) + bool(a.vararg) + bool(a.kwarg)


def is_kernel(function):
    return any("triton.jit" in ast.unparse(d) for d in function.decorator_list)


def table_ends(tree):
    """The last lines of tables of data: literals that are assigned, and lists of a test's parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, TABLES):
            yield node.end_lineno
        yield from (d.end_lineno for d in getattr(node, "decorator_list", ()) if "parametrize" in ast.unparse(d))


def alarms(name, text):
    """(kind, size, place) of everything in one file that wants a look."""
    lines, tree = text.splitlines(), ast.parse(text)
    if len(lines) > MOST_LINES:
        yield f"lines in a file, more than {MOST_LINES}", len(lines), name
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            place = f"{name}:{node.lineno} {node.name}"
            if body_lines(node) > MOST_BODY:
                yield f"lines in a function, more than {MOST_BODY}", body_lines(node), place
            most = MOST_IN_A_KERNEL if is_kernel(node) else MOST_PARAMETERS
            if parameters(node) > most:
                yield f"parameters, more than {MOST_PARAMETERS} ({MOST_IN_A_KERNEL})", parameters(node), place
    packed = {k for k, line in enumerate(lines, 1) if "# fmt: " + "skip" in line} - set(table_ends(tree))
    if packed:
        yield "places kept from the formatter that are no tables", len(packed), f"{name}:{min(packed)}"


def main():
    found = {}
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for kind, size, place in alarms(path.relative_to(ROOT).as_posix(), path.read_text()):
            found.setdefault(kind, []).append((size, place))
    for kind, places in found.items():
        sys.stdout.write(f"{kind}: {len(places)}\n")
        for size, place in sorted(places, key=lambda found: (-found[0], found[1]))[: None if "all" in sys.argv else 10]:
            sys.stdout.write(f"  {size:5d}  {place}\n")


if __name__ == "__main__":
    main()
