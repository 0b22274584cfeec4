"""The plan of the rooms in docs/architecture.md and the imports agree; no room is too full."""

import ast
import importlib
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "model_compound_scaling", "model_quantization", "model_scoring")
FILES = [
    *ROOT.glob("run_*.py"),
    *(ROOT / "scripts").rglob("*.py"),
    *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")),
]
FACES = [path for path in FILES if path.name == "__init__.py"]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}
TREES = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}


def arrows(text: str) -> set[tuple[str, str]]:
    """`a --> b` for each arrow of the mermaid block; chains and `a & b` are several."""
    block = re.search(r"```mermaid\n(.*?)```", text, re.DOTALL)[1]
    found = set()
    for line in re.sub(r'\[".*?"\]', "", block).splitlines():
        ends = [[name.strip() for name in part.split("&")] for part in line.split("-->")]
        found |= {(a, b) for left, right in pairwise(ends) for a in left for b in right}
    return found


ARROWS = arrows((ROOT / "docs" / "architecture.md").read_text())
ROOMS = {room for arrow in ARROWS for room in arrow}


def earlier(room: str) -> set[str]:
    """All rooms from which arrows lead to this one."""
    direct = {a for a, b in ARROWS if b == room}
    return direct.union(*(earlier(one) for one in direct)) if direct else direct


def room_of(module: str) -> str | None:
    """The smallest room that holds a module; None for the scripts, which are above all rooms."""
    inside = [room for room in ROOMS if f"{module}.".startswith(f"{room}.")]
    return max(inside, key=len, default=None)


def imports(module: str) -> set[str]:
    """The modules of this project that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative imports hide where they lead"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= whole & set(MODULES) or {node.module}
    return {name for name in names if name.split(".")[0] in (*PACKAGES, *MODULES)}


def test_the_picture_shows_every_package_and_no_circle():
    assert all(any((ROOT / room.replace(".", "/")).glob("*.py")) for room in ROOMS)
    assert {room.split(".")[0] for room in ROOMS} >= set(PACKAGES)
    for room in ROOMS:  # a circle would have no end: earlier() raises RecursionError
        assert room not in earlier(room)


def test_imports_follow_the_arrows():
    against = []
    for module in MODULES:
        if here := room_of(module):
            allowed = {here, *earlier(here)}
            names = imports(module) - {"data.lazy_exports"}  # what every face is made with
            against += [f"{module} <- {name}" for name in names if room_of(name) not in allowed]
    assert not against


@pytest.mark.parametrize("face", FACES, ids=module_name)
def test_a_face_says_what_a_room_is_for_and_names_3_to_10(face):
    module = module_name(face)
    assert ast.get_docstring(TREES[module])
    assert imports(module) <= {"data.lazy_exports"}  # so that it loads nothing
    names = getattr(importlib.import_module(module), "__all__", [])
    holds_rooms_only = not set(face.parent.glob("*.py")) - {face}
    assert (0 if holds_rooms_only else 3) <= len(names) <= 10


def test_folders_files_functions_and_parameters_have_limits():
    too_much = [
        f"{folder.relative_to(ROOT)}: {count} files"
        for folder in {path.parent for path in FILES}
        if (count := len(list(folder.glob("*.py")))) > 13
    ]
    for module, path in MODULES.items():
        if (lines := len(path.read_text().splitlines())) > 320:
            too_much.append(f"{module}: {lines} lines")
        for node in ast.walk(TREES[module]):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = node.end_lineno - node.lineno + 1
            if lines > 60 and not re.fullmatch(r"build_parser|add_\w+_flags", node.name):
                too_much.append(f"{module}.{node.name}: {lines} lines")
            known = node.args
            parameters = [*known.posonlyargs, *known.args, *known.kwonlyargs]
            parameters += filter(None, (known.vararg, known.kwarg))
            if len(parameters) > 8:
                too_much.append(f"{module}.{node.name}: {len(parameters)} parameters")
    assert not too_much, "\n".join(too_much)
