"""Layers and matrix types from module names of real architectures."""

from __future__ import annotations

import pytest

from glora.experiments.report.matrix_grid import MAX_COLUMNS, MAX_ROWS, MAX_TYPES, matrix_grid, matrix_map, place_of


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("encoder.layer.3.attention.self.query", ("encoder.layer", 3, "attention.self.query")),
        ("deberta.encoder.layer.11.output.dense", ("deberta.encoder.layer", 11, "output.dense")),
        ("decoder.block.2.layer.1.EncDecAttention.q", ("decoder.block", 2, "layer.1.EncDecAttention.q")),
        ("model.layers.0.mlp.experts.7.up_proj", ("model.layers", 0, "mlp.experts.7.up_proj")),
        ("pooler.dense", ("", None, "pooler.dense")),
        ("fc1", ("", None, "fc1")),
        ("0.weight", ("", 0, "weight")),
        ("layers.4", ("", None, "layers.4")),
    ],
)
def test_place_of(name: str, place: tuple[str, int | None, str]) -> None:
    assert place_of(name) == place


def test_layers_are_ordered_by_number_and_types_by_the_model() -> None:
    names = [f"encoder.layer.{i}.{kind}" for i in (10, 2, 0) for kind in ("query", "key")]
    grid = matrix_grid(["pooler.dense", *names])
    assert grid.row_labels == ("0", "2", "10", "–")
    assert grid.columns == ("pooler.dense", "query", "key")
    assert grid.cells[1, 2] == ("encoder.layer.2.key",)
    assert (0, 0) not in grid.cells


def test_two_stacks_keep_their_layers_apart() -> None:
    grid = matrix_grid([f"{stack}.block.{i}.q" for stack in ("encoder", "decoder") for i in (0, 1)])
    assert grid.row_labels == ("encoder.block 0", "encoder.block 1", "decoder.block 0", "decoder.block 1")


def test_experts_are_merged_when_there_are_many() -> None:
    few = [f"layers.0.experts.{e}.up" for e in range(MAX_TYPES)]
    assert len(matrix_grid(few).columns) == MAX_TYPES
    grid = matrix_grid([*few, f"layers.0.experts.{MAX_TYPES}.up"])
    assert grid.columns == ("experts.*.up",)
    assert len(grid.cells[0, 0]) == MAX_TYPES + 1


def test_every_module_is_in_exactly_one_cell() -> None:
    names = [f"a.{i}.b.{j}.c" for i in range(3) for j in range(20)] + ["x", "y.z"]
    grid = matrix_grid(names)
    assert sorted(name for cell in grid.cells.values() for name in cell) == sorted(names)


def test_a_map_that_can_be_looked_at_is_the_grid() -> None:
    names = [f"layer.{i}.{kind}" for i in range(MAX_ROWS) for kind in ("q", "v")]
    assert matrix_map(names) == matrix_grid(names)
    assert not matrix_map(names).merged


def test_neighbouring_layers_share_a_row_when_there_are_many() -> None:
    shown = matrix_map([f"layer.{i}.q" for i in range(2 * MAX_ROWS + 1)])
    assert len(shown.row_labels) == 67  # 201 layers, three a row
    assert shown.row_labels[:2] == ("0 to 2", "3 to 5")
    assert shown.cells[0, 0] == ("layer.0.q", "layer.1.q", "layer.2.q")
    assert shown.merged


def test_the_last_types_share_a_column_when_there_are_many() -> None:
    names = [f"layer.0.type_{chr(97 + i)}" for i in range(26)]
    shown = matrix_map(names)
    assert len(shown.columns) == MAX_COLUMNS
    assert shown.columns[-1] == "3 other types"
    assert shown.cells[0, MAX_COLUMNS - 1] == tuple(names[-3:])


def test_matrices_without_layers_stand_under_each_other() -> None:
    shown = matrix_map(["fc_in", "fc_out"])
    assert (shown.row_title, shown.row_labels, shown.columns) == ("matrix", ("fc_in", "fc_out"), ("all matrices",))
    assert shown.cells == {(0, 0): ("fc_in",), (1, 0): ("fc_out",)}


def test_every_module_is_in_exactly_one_cell_of_the_map() -> None:
    names = [f"layer.{i}.type_{chr(97 + j % 26)}{chr(97 + j // 26)}" for i in range(150) for j in range(40)]
    cells = matrix_map(names).cells
    assert sorted(name for cell in cells.values() for name in cell) == sorted(names)
