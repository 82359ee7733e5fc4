"""README and docs can be followed: code compiles, names and options exist, links lead somewhere, messages are real."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import glora
from glora.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = sorted((ROOT / "src" / "glora").rglob("*.py"))


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """The fenced blocks in one of these languages, with the number of the line that each begins at."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start(2)) + 1, m[2]) for m in found if m[1] in languages]


def python_blocks() -> Iterator[tuple[str, ast.Module]]:
    """The blocks of Python; one that does not compile is an error."""
    for page in PAGES:
        for line, code in blocks(page, "python"):
            where = f"{page.name}:{line}"
            compile(code, where, "exec")
            yield where, ast.parse(code)


def test_there_are_pages_and_blocks() -> None:
    assert {"how-it-works.md", "usage.md", "choosing.md", "serving.md", "support.md"} <= {page.name for page in PAGES}
    assert len(list(python_blocks())) > 20
    assert all(page.read_text(encoding="utf-8").count("\n```") % 2 == 0 for page in PAGES), "a fence is not closed"


def test_the_site_has_every_page_and_every_public_name() -> None:
    contents = (ROOT / ".site" / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r"docs/(\S+\.md)$", contents, re.MULTILINE)) == [page.name for page in PAGES[1:]]
    described = re.findall(r"^::: glora\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {*described, "__version__"} == set(glora.__all__)


def test_imported_names_exist() -> None:
    wrong = [
        f"{where}: {alias.name}"
        for where, tree in python_blocks()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "glora"
        for alias in node.names
        if alias.name not in glora.__all__
    ]
    assert not wrong


def test_calls_have_the_arguments_that_exist() -> None:
    wrong, checked = [], 0
    for where, tree in python_blocks():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in glora.__all__:
                checked += 1
                parameters = dict(inspect.signature(getattr(glora, node.func.id)).parameters)
                if parameters.pop("fields", None):  # those of the configuration
                    parameters |= inspect.signature(glora.RankAllocationConfig).parameters
                named = {keyword.arg for keyword in node.keywords}
                wrong += [f"{where}: {node.func.id}({name}=...)" for name in named - parameters.keys() if name]
                if len(node.args) + len(named) > len(parameters):
                    wrong.append(f"{where}: {node.func.id} has too many arguments")
    assert not wrong
    assert checked > 10


def test_attributes_of_the_allocator_exist() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"]))
    allocator = glora.RankAllocator(
        model, torch.optim.AdamW(model.parameters()), glora.RankAllocationConfig(warmup_steps=1)
    )
    used = {
        (where, node.attr)
        for where, tree in python_blocks()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "allocator"
    }
    assert len(used) > 10
    assert not [f"{where}: allocator.{name}" for where, name in sorted(used) if not hasattr(allocator, name)]


def test_commands_and_options_exist() -> None:
    pytest.importorskip("cyclopts")

    wrong, checked = [], 0
    for page in PAGES:
        for line, text in blocks(page, "", "bash"):
            for command in re.findall(r"^glora (.*?)(?:\s+#.*)?$", text, re.MULTILINE):
                name, *words = command.split()
                checked += 1
                if name not in app:
                    wrong.append(f"{page.name}:{line}: glora {name}")
                    continue
                known = {option for argument in app[name].assemble_argument_collection() for option in argument.names}
                options = {word.split("=")[0] for word in words if word.startswith("-")}
                wrong += [f"{page.name}:{line}: glora {name} {option}" for option in sorted(options - known)]
    assert not wrong
    assert checked > 5


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(ROOT):
            wrong.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file):
            wrong.append(f"{target}: no such heading")
    assert not wrong


def texts_of_the_code() -> list[str]:
    """Every string of the sources, with a mark in the place of each value that is filled in."""
    found = []
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub("%[sd]", "\0", node.value))
    return found


def test_quoted_messages_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `(.+?)`", text, re.MULTILINE)
    assert len(quoted) > 12
    code = texts_of_the_code()
    wrong = []
    for message in quoted:
        # placeholders of values in the docs: dots, a single letter with what it counts, or the value of an example
        fragments = re.split(r"\.\.\.|\b[kmn]\b(?: (?:matrices|steps|times)\b)?|'default'|'pissa'|\bADALORA\b", message)
        wrong += [
            f"{fragment!r} of {message!r}"
            for fragment in map(str.strip, fragments)
            if len(fragment) > 3 and not any(fragment in known for known in code)
        ]
    assert not wrong
