"""Places of matrices in their model, read from their names: the layer, and which matrix of the layer it is.

`encoder.layer.3.attention.self.query` is layer 3, matrix type `attention.self.query`. The first number in a name is the layer;
the stack precedes it (`encoder` and `decoder` of a T5 are two stacks) and the type follows. Names without a number
(`pooler.dense`, or every name of a small multilayer perceptron) have no layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

MAX_TYPES = 16
"""With more matrix types (the experts of a mixture, say), types that differ only by a number are merged."""
MAX_ROWS, MAX_COLUMNS = 100, 24
"""A larger map is condensed."""
ALL_MATRICES = "all matrices"


class Place(NamedTuple):
    """The place of a matrix: `stack` before the layer's number, `layer` (None without one), `matrix_type` after."""

    stack: str
    layer: int | None
    matrix_type: str


@dataclass(frozen=True)
class MatrixGrid:
    """The matrices of a model as layers × matrix types, in the order in which the model has them.

    Attributes:
        row_title: "layer" or "matrix".
        row_labels: the layer's number, with the stack where there are several; "–" for no layer.
        columns: the matrix types.
        cells: (row, column) -> the modules there; more than one only where types or layers were merged.
    """

    row_title: str
    row_labels: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[int, int], tuple[str, ...]]

    @property
    def merged(self) -> bool:
        """True if any cell represents several matrices."""
        return any(len(modules) > 1 for modules in self.cells.values())


def place_of(module: str) -> Place:
    """Return layer and matrix type of a module by its name."""
    parts = module.split(".")
    for position, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return Place(".".join(parts[:position]), int(part), ".".join(parts[position + 1 :]))
    return Place("", None, module)


def matrix_grid(modules: Iterable[str]) -> MatrixGrid:
    """Lay the modules out: rows by stack and layer number, matrices outside any layer last; columns in the model's order."""
    places = {module: place_of(module) for module in modules}
    if len({place.matrix_type for place in places.values()}) > MAX_TYPES:
        places = {module: _merged(place) for module, place in places.items()}
    stacks = list(dict.fromkeys(place.stack for place in places.values()))
    rows = sorted(
        {(place.stack, place.layer) for place in places.values()},
        key=lambda row: (row[1] is None, stacks.index(row[0]), row[1] or 0),
    )
    columns = list(dict.fromkeys(place.matrix_type for place in places.values()))
    row_of, column_of = ({key: i for i, key in enumerate(keys)} for keys in (rows, columns))
    cells: dict[tuple[int, int], list[str]] = {}
    for module, place in places.items():
        cells.setdefault((row_of[place.stack, place.layer], column_of[place.matrix_type]), []).append(module)
    layered = {stack for stack, layer in rows if layer is not None}
    labels = ("–" if layer is None else f"{stack} {layer}" if len(layered) > 1 else str(layer) for stack, layer in rows)
    return MatrixGrid("layer", tuple(labels), tuple(columns), {cell: tuple(names) for cell, names in cells.items()})


def matrix_map(modules: Iterable[str], max_rows: int = MAX_ROWS) -> MatrixGrid:
    """Lay the modules out in a grid of bounded size: 10,000 matrices are at most `max_rows` × 24 cells.

    Matrices without a layer have a row each. Beyond `max_rows`, neighbouring rows are merged; beyond 24 types, the last ones.
    """
    grid = matrix_grid(modules)
    if set(grid.row_labels) <= {"–"}:
        names = [name for cell in grid.cells.values() for name in cell]
        grid = MatrixGrid("matrix", tuple(names), (ALL_MATRICES,), {(i, 0): (name,) for i, name in enumerate(names)})
    a_row = math.ceil(len(grid.row_labels) / max_rows) or 1
    columns = grid.columns
    if len(columns) > MAX_COLUMNS:
        columns = (*columns[: MAX_COLUMNS - 1], f"{len(columns) - MAX_COLUMNS + 1} other types")
    cells: dict[tuple[int, int], list[str]] = {}
    for (row, column), names_there in sorted(grid.cells.items()):
        cells.setdefault((row // a_row, min(column, len(columns) - 1)), []).extend(names_there)
    groups = [grid.row_labels[first : first + a_row] for first in range(0, len(grid.row_labels), a_row)]
    labels = tuple(group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}" for group in groups)
    return MatrixGrid(grid.row_title, labels, columns, {cell: tuple(names) for cell, names in cells.items()})


def _merged(place: Place) -> Place:
    """Numbers inside the matrix type left open: `experts.3.up_proj` -> `experts.*.up_proj`."""
    parts = place.matrix_type.split(".")
    return place._replace(matrix_type=".".join("*" if part.isdecimal() else part for part in parts))
