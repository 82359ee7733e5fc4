"""`stdlib-docs`: does this docstring describe this function? A real data set that every Python carries.

Text A is a function's signature in the running Python's standard library, text B the first paragraph of a docstring: its own
(class `own`) or that of another function of the same file (class `other`, a hard negative on the same subject). The files are
read with `ast`; nothing is imported, downloaded or stored. A model must read both texts, because

* each signature and each docstring occurs exactly once in either class;
* a docstring that occurs twice in the library describes no particular function and is left out;
* a negative never comes from a function of the same name (an override's docstring would fit);
* the splits share no top-level module.
"""

from __future__ import annotations

import ast
import hashlib
import os
import random
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from glora.experiments.data.source import LoadHub, Source
from glora.experiments.data.task import CLASSIFICATION_METRICS, DataError, DataNotFoundError, Examples, Task

SHARES = {"train": 0.70, "validation": 0.15, "test": 0.15}
"""Share of the pairs in each split, as nearly as whole modules allow. No command reads `test`: it is kept for a last figure."""

MIN_WORDS = 3
"""A shorter paragraph ("Constructor.") describes no particular function."""

SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "turtledemo"}  # tests and examples
    | {"site-packages", "dist-packages", "_vendor", "_bundled"}  # not the standard library's own
    | {"__pycache__", "lib-dynload"}
)


class DocumentedFunction(NamedTuple):
    """A function of the standard library with the first paragraph of its docstring, white space collapsed."""

    module: str
    """Top-level module, such as `asyncio`."""
    file: str
    """Path relative to the library's folder, with `/`."""
    name: str
    signature: str
    paragraph: str


def signature_text(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return `def taropen(cls, name, mode, fileobj)`: names only, without defaults, annotations and `**kwargs`."""
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        names.append("*")
    names += [a.arg for a in arguments.kwonlyargs]
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{keyword} {node.name}({', '.join(names)})"


def first_paragraph(docstring: str) -> str:
    """Return the text up to the first blank line, white space collapsed."""
    return " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())


def _functions(body: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function below `body`, methods and nested ones included, in the file's order."""
    for child in ast.iter_child_nodes(body):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):  # expressions hold no `def`
            yield from _functions(child)


def _source_files(library: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(library):
        subfolders[:] = sorted(d for d in subfolders if d not in SKIPPED_FOLDERS and "-" not in d)
        yield from (Path(folder) / name for name in sorted(names) if name.endswith(".py"))


def read_functions(library: Path) -> list[DocumentedFunction]:
    """Read every documented function below `library`, in a fixed order; files that do not parse are left out."""
    found = []
    for path in _source_files(library):
        source = path.read_bytes()
        if b"def " not in source:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of invalid escapes in old modules
                tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        file = path.relative_to(library)
        for node in _functions(tree):
            paragraph = first_paragraph(ast.get_docstring(node) or "")
            if len(paragraph.split()) >= MIN_WORDS:
                module = file.parts[0].removesuffix(".py")
                found.append(DocumentedFunction(module, file.as_posix(), node.name, signature_text(node), paragraph))
    occurrences = Counter(function.paragraph.casefold() for function in found)
    return [function for function in found if occurrences[function.paragraph.casefold()] == 1]


def pair_up(functions: list[DocumentedFunction], rng: random.Random) -> list[tuple[str, str, int]]:
    """Make (signature, paragraph, label) of one file's functions: each with its own and with another's docstring.

    The negatives are a permutation that never meets a function of the same name. It exists if no name has more than half of
    the functions; of a name that has more, as many are kept as there are other functions. Sorted by name and turned by the
    size m of the largest group of one name, no function meets its own group: the turn skips at least m and at most n - m
    positions, and no group is longer than m.
    """
    by_name: dict[str, list[DocumentedFunction]] = {}
    for function in functions:
        by_name.setdefault(function.name, []).append(function)
    groups = list(by_name.values())
    rng.shuffle(groups)
    largest = max(groups, key=len, default=[])
    del largest[len(functions) - len(largest) :]
    for group in groups:
        rng.shuffle(group)
    kept = [function for group in groups for function in group]
    turn = max((len(group) for group in groups), default=0)
    pairs = []
    for i, function in enumerate(kept):
        other = kept[(i + turn) % len(kept)]
        pairs += [(function.signature, function.paragraph, 1), (function.signature, other.paragraph, 0)]
    return pairs


def split_modules(sizes: dict[str, int], seed: int) -> dict[str, str]:
    """Assign whole modules to splits: in the order of their hashes, each to the split filled least for its share."""
    filled = dict.fromkeys(SHARES, 0)
    assignment = {}
    for module in sorted(sizes, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        split = min(SHARES, key=lambda s: (filled[s] + sizes[module]) / SHARES[s])
        filled[split] += sizes[module]
        assignment[module] = split
    return assignment


def build_splits(library: Path, seed: int = 0) -> dict[str, Examples]:
    """Make the data set from the library in this folder: split name -> examples in random order.

    The same files and the same seed give the same examples.

    Raises:
        DataNotFoundError: there is no source file, as in an interpreter that ships bytecode only.
        DataError: too few documented functions to fill the splits.
    """
    functions = read_functions(library)
    if not functions:
        raise DataNotFoundError(
            f"no Python source with docstrings under {str(library)!r}, from which stdlib-docs is made. Use a Python with its "
            "library's source files, or another task."
        )
    by_file: dict[str, list[DocumentedFunction]] = {}
    for function in functions:
        by_file.setdefault(function.file, []).append(function)
    rng = random.Random(seed)
    by_module: dict[str, list[tuple[str, str, int]]] = {}
    for members in by_file.values():
        by_module.setdefault(members[0].module, []).extend(pair_up(members, rng))
    assignment = split_modules({module: len(pairs) for module, pairs in by_module.items()}, seed)
    splits = {}
    for split in SHARES:
        rows = [(*pair, module) for module, found in by_module.items() if assignment[module] == split for pair in found]
        if not rows:
            raise DataError(
                f"{str(library)!r} has too few documented functions for stdlib-docs: none for {split}. Use a Python with its "
                "whole standard library."
            )
        rng.shuffle(rows)
        first, second, labels, modules = map(list, zip(*rows))
        splits[split] = Examples.labelled([first, second], labels, modules)
    return splits


class StdlibDocs(Source):
    """The data set of the running Python with seed 0, as a registered task."""

    task = Task(
        "stdlib-docs",
        "does this docstring describe this function? Pairs from Python's own standard library",
        metrics=CLASSIFICATION_METRICS,
        label_names=("other", "own"),
    )

    def read(self, data_dir: str | Path | None, load_hub: LoadHub, *, only_train: bool = False) -> dict[str, Examples]:
        """See `Source`."""
        splits = build_splits(Path(sysconfig.get_path("stdlib")))
        return {name: splits[name] for name in (("train",) if only_train else ("train", "validation"))}
