"""Where a matrix stands in its model, read from its name: the layer, and which matrix of the layer it is.

`encoder.layer.3.attention.self.query` is layer 3, matrix type `attention.self.query`. The first number in a
name is the layer; what stands before it is the stack (`encoder` and `decoder` of a T5 are two stacks), what
stands after it the type. Names without a number (`pooler.dense`, or every name of a small multilayer
perceptron) have no layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

MOST_TYPES = 16
"""More matrix types than this (the experts of a mixture, say) are merged over the inner numbers of the names."""


class Place(NamedTuple):
    """The place of a matrix: `stack` before the layer's number, `layer` (None without one), `matrix_type` after."""

    stack: str
    layer: int | None
    matrix_type: str


@dataclass(frozen=True)
class ModuleGrid:
    """The matrices of a model as layers × matrix types, in the order in which the model has them.

    Attributes:
        rows: (stack, layer) of each row; (“”, None) for matrices that are in no layer.
        columns: the matrix types.
        cells: (row, column) -> the modules there; more than one only where types were merged.
    """

    rows: tuple[tuple[str, int | None], ...]
    columns: tuple[str, ...]
    cells: dict[tuple[int, int], tuple[str, ...]]

    def column_modules(self, column: int) -> list[str]:
        """The modules of one matrix type, from the first layer to the last."""
        return [name for row in range(len(self.rows)) for name in self.cells.get((row, column), ())]

    @property
    def row_labels(self) -> tuple[str, ...]:
        """The layer's number, with the stack where there are several; "–" for no layer."""
        stacks = {stack for stack, layer in self.rows if layer is not None}
        return tuple(
            "–" if layer is None else f"{stack} {layer}" if len(stacks) > 1 else str(layer)
            for stack, layer in self.rows
        )


def place_of(module: str) -> Place:
    """Layer and matrix type of a module by its name."""
    parts = module.split(".")
    for position, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return Place(".".join(parts[:position]), int(part), ".".join(parts[position + 1 :]))
    return Place("", None, module)


def module_grid(modules: Iterable[str]) -> ModuleGrid:
    """Lay the modules out as layers × matrix types.

    Rows follow the model's order of stacks and the layers' numbers, with the matrices outside any layer last;
    columns follow the model's order.
    """
    places = {module: place_of(module) for module in modules}
    if len({place.matrix_type for place in places.values()}) > MOST_TYPES:
        places = {module: _merged(place) for module, place in places.items()}
    stacks = list(dict.fromkeys(place.stack for place in places.values()))
    rows = sorted(
        {(place.stack, place.layer) for place in places.values()},
        key=lambda row: (row[1] is None, stacks.index(row[0]), row[1] or 0),
    )
    columns = list(dict.fromkeys(place.matrix_type for place in places.values()))
    cells: dict[tuple[int, int], tuple[str, ...]] = {}
    for module, place in places.items():
        cell = rows.index((place.stack, place.layer)), columns.index(place.matrix_type)
        cells[cell] = (*cells.get(cell, ()), module)
    return ModuleGrid(tuple(rows), tuple(columns), cells)


def _merged(place: Place) -> Place:
    """Numbers inside the matrix type left open: `experts.3.up_proj` -> `experts.*.up_proj`."""
    parts = place.matrix_type.split(".")
    return place._replace(matrix_type=".".join("*" if part.isdecimal() else part for part in parts))
