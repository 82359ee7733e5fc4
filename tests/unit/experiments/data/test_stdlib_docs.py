"""`stdlib-docs`: exact texts from a library written here, and the invariants on the running Python's own."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glora.experiments.data.stdlib_docs import (
    SHARES,
    DocumentedFunction,
    build_splits,
    first_paragraph,
    pair_up,
    read_functions,
    signature_text,
    split_modules,
)
from glora.experiments.data.task import DataError, DataNotFoundError, Examples


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('def taropen(cls, name, mode="r", fileobj=None, **kwargs): ...', "def taropen(cls, name, mode, fileobj)"),
        ("async def gather(*tasks, limit: int = 3): ...", "async def gather(*tasks, limit)"),
        ("def dump(node, /, *, indent=None) -> str: ...", "def dump(node, *, indent)"),
        ("def f(): ...", "def f()"),
    ],
)
def test_signature_text(source: str, expected: str) -> None:
    assert signature_text(ast.parse(source).body[0]) == expected


def test_first_paragraph_ends_at_a_blank_line_and_collapses_white_space() -> None:
    assert first_paragraph("\n  One  line\n  and another.\n  \n  Not this.") == "One line and another."


def write_library(folder: Path) -> Path:
    (folder / "pkg/test").mkdir(parents=True)
    (folder / "site-packages").mkdir()
    (folder / "alpha.py").write_text(
        '''
class Store:
    def get(self, key):
        """Return the value
        stored under key.

        Raises KeyError."""
    def put(self, key, value=None):
        """Store a value under key."""
        def check(value):
            """Tell whether a value may be stored."""
    if True:
        async def flush(self):
            """Write everything that is pending."""
    def undocumented(self): pass
    def short(self):
        """Too short."""
    def first(self):
        """The same words again."""
    def second(self):
        """The same Words again."""
'''
    )
    (folder / "broken.py").write_text('def f(:\n  """Never read by anybody at all."""')
    hidden = 'def hidden():\n    """Never read by anybody at all."""\n'
    (folder / "pkg/test/tests.py").write_text(hidden)
    (folder / "site-packages/vendored.py").write_text(hidden)
    (folder / "pkg/core.py").write_text('def run(x):\n    """Run it to the very end."""\nimport nothing_of_this_name\n')
    return folder


def test_read_functions(tmp_path: Path) -> None:
    found = read_functions(write_library(tmp_path))
    assert [(f.module, f.file, f.signature, f.paragraph) for f in found] == [
        ("alpha", "alpha.py", "def get(self, key)", "Return the value stored under key."),
        ("alpha", "alpha.py", "def put(self, key, value)", "Store a value under key."),
        ("alpha", "alpha.py", "def check(value)", "Tell whether a value may be stored."),
        ("alpha", "alpha.py", "async def flush(self)", "Write everything that is pending."),
        ("pkg", "pkg/core.py", "def run(x)", "Run it to the very end."),
    ]


@given(st.lists(st.sampled_from("abcde"), max_size=12), st.integers(0, 3))
def test_pairs_are_balanced_and_negatives_come_from_another_name(names: list[str], seed: int) -> None:
    functions = [DocumentedFunction("m", "m.py", n, f"def {n}({i})", f"docs {i}") for i, n in enumerate(names)]
    name_of = {f.paragraph: f.name for f in functions}
    paragraph_of = {f.signature: f.paragraph for f in functions}
    pairs = pair_up(functions, random.Random(seed))
    positives = [(a, b) for a, b, label in pairs if label == 1]
    negatives = [(a, b) for a, b, label in pairs if label == 0]
    assert all(paragraph_of[a] == b for a, b in positives)
    assert all(name_of[paragraph_of[a]] != name_of[b] for a, b in negatives)
    for column in (0, 1):  # neither text alone tells the class
        assert sorted(p[column] for p in positives) == sorted(n[column] for n in negatives)
    largest = max(Counter(names).values(), default=0)
    assert len(positives) == min(len(names), 2 * (len(names) - largest))  # no more is lost than must be


def test_split_modules_follows_the_shares_and_ignores_the_order_of_the_modules() -> None:
    rng = random.Random(0)
    sizes = {f"module{i}": rng.randrange(1, 60) for i in range(150)}
    assignment = split_modules(sizes, seed=0)
    shuffled = dict(sorted(sizes.items(), key=lambda item: item[1]))
    assert split_modules(shuffled, seed=0) == assignment
    assert split_modules(sizes, seed=1) != assignment
    total = sum(sizes.values())
    for split, share in SHARES.items():
        assert sum(n for m, n in sizes.items() if assignment[m] == split) / total == pytest.approx(share, abs=0.02)


@pytest.fixture(scope="module")
def splits() -> dict[str, Examples]:
    return build_splits(Path(sysconfig.get_path("stdlib")))


def test_the_running_pythons_library(splits: dict[str, Examples]) -> None:
    total = sum(len(rows) for rows in splits.values())
    assert total > 8000
    paragraphs = {}
    for split, rows in splits.items():
        assert len(rows) / total == pytest.approx(SHARES[split], abs=0.04)
        assert sum(rows.columns["label"]) * 2 == len(rows)
        paragraphs[split] = set(rows.columns["text_b"])
        assert len(paragraphs[split]) * 2 == len(rows)
    assert not paragraphs["train"] & (paragraphs["validation"] | paragraphs["test"])
    assert not paragraphs["validation"] & paragraphs["test"]
    taropen = "def taropen(cls, name, mode, fileobj)"
    columns = next(rows.columns for rows in splits.values() if taropen in rows.columns["text_a"])
    found = {label: second for first, second, label in zip(*columns.values()) if first == taropen}
    assert found[1] == "Open uncompressed tar archive name for reading or writing."
    assert found[0] != found[1]


def test_another_seed_is_another_split() -> None:
    library = Path(sysconfig.get_path("stdlib")) / "asyncio"  # its files are the top-level modules here
    one, again, other = build_splits(library, 1), build_splits(library, 1), build_splits(library, 2)
    assert one == again
    assert one["train"].columns["text_a"] != other["train"].columns["text_a"]


def test_without_source_files(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="library's source files"):
        build_splits(tmp_path)


def test_too_small_a_library(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stdlib-docs.* Use a Python with"):
        build_splits(write_library(tmp_path))
