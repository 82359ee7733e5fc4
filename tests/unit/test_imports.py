"""What imports what: one way only, the core light, and the package quick to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import glora

PACKAGE = Path(glora.__file__).parent
COMMAND_LINE = {PACKAGE / "__main__.py", *PACKAGE.glob("cli/*.py")}
CORE = sorted(set(PACKAGE.rglob("*.py")) - COMMAND_LINE - set(PACKAGE.rglob("experiments/**/*.py")))
ALLOWED = {"torch", "transformers", "peft", "accelerate", "safetensors", "regex", "glora"} | set(
    sys.stdlib_module_names
)
STRANGERS = {"scoring.gradient_norms", "allocation.shares", "lora.resize"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_core_imports_little_and_nothing_above_it() -> None:
    assert len(CORE) > 10
    for path in CORE:
        names = imported(path)
        roots = {name.split(".")[0] for name in names}
        assert roots <= ALLOWED, f"{path.name} imports {sorted(roots - ALLOWED)}"
        above = [n for n in names if n.startswith(("glora.experiments", "glora.cli"))]
        assert not above, f"{path.name} imports {above}"


def test_the_experiments_do_not_know_the_command_line() -> None:
    for path in (PACKAGE / "experiments").rglob("*.py"):
        assert not any(name.startswith("glora.cli") for name in imported(path)), path.name


def test_norms_allocation_and_resize_do_not_know_each_other() -> None:
    for name in STRANGERS:
        others = {f"glora.{other}" for other in STRANGERS - {name}}
        assert not imported(PACKAGE / f"{name.replace('.', '/')}.py") & others, name


def test_importing_glora_imports_no_torch() -> None:
    """Asked of a new process, since this one has imported everything."""
    program = "import sys, glora; print(sorted({'torch', 'peft', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_has_a_home() -> None:
    for name in glora.__all__:
        assert getattr(glora, name) is not None
    assert set(glora._HOMES) | {"__version__"} == set(glora.__all__)
