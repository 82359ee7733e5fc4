"""A cut in tables and as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from glora.compress import CompressibleAdapter, Compression, Size
from glora.experiments.compression.view import file_size, plan_table, ranks_table, save_picture, size_text
from unit.test_export import lora, trained


def shown(table: object) -> list[list[str]]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return [line.split() for line in capture.get().splitlines()]


def test_ranks_by_kind_of_matrix() -> None:
    before = {"layer.0.query": 8, "layer.1.query": 8, "layer.0.dense": 4}
    after = {"layer.0.query": 3, "layer.1.query": 0, "layer.0.dense": 4}
    made = Compression(before, after, 0.9, 600, 310)
    _, *rows = shown(ranks_table(made, {"layer.0.query": 20, "layer.1.query": 20, "layer.0.dense": 70}))
    assert rows == [
        ["query", "2", "8", "0", "to", "3", "1.5", "320", "60"],
        ["dense", "1", "4", "4", "4.0", "280", "280"],
        ["all", "3", "4", "to", "8", "0", "to", "4", "2.3", "600", "340"],
    ]


def test_the_plan_and_the_picture(tmp_path: Path) -> None:
    """Sizes that pay for no direction are left out; what is wrong with all of them is an error."""
    trained(lora()).save_pretrained(tmp_path / "adapter")
    adapter = CompressibleAdapter(tmp_path / "adapter")

    def cut(share: float) -> Compression:
        return adapter.cut(Size(parameters=share))

    _, _, *rows = shown(plan_table(cut, adapter))
    assert [row[0] for row in rows] == [f"{100 * int(row[2]) / 76:.3g}" for row in rows]
    _, _, *bounded = shown(plan_table(lambda share: adapter.cut(Size(parameters=share, max_rank=1)), adapter))
    assert [row[0] for row in bounded] == ["34.2", "18.4"]  # 26 and 14 of 76 parameters
    assert rows[0][-2:] == ["100.00", "%"]
    energies = [float(row[-2]) for row in rows]
    assert energies == sorted(energies, reverse=True)
    even = adapter.cut(Size(parameters=0.75, uniform=True))
    _, _, *beside = shown(plan_table(cut, adapter, one_rank=lambda s: adapter.cut(Size(parameters=s, uniform=True))))
    assert beside[0][-4:] == ["100.00", "%", "100.00", "%"]
    assert beside[1][2:3] + beside[1][-2:] == [str(even.parameters), f"{100 * even.energy:.2f}", "%"]
    assert beside[2] == rows[2], "one rank for all has no size near"
    asked = adapter.cut(Size(parameters=0.6))
    _, _, *marked = shown(plan_table(cut, adapter, asked))
    assert [row[-2:] == ["<-", "asked"] for row in marked] == [False, False, True, False, False]
    _, _, *same = shown(plan_table(cut, adapter, cut(0.5)))
    assert [row[-1] == "asked" for row in same] == [False, False, True, False]
    with pytest.raises(ValueError, match="max_rank=0"):
        plan_table(lambda share: adapter.cut(Size(parameters=share, max_rank=0)), adapter)
    save_picture(tmp_path / "curve.png", {"global cut": cut}, "an adapter")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_size_of_the_file(tmp_path: Path) -> None:
    """To within the header."""
    trained(lora(lora_bias=True)).save_pretrained(tmp_path / "adapter")
    adapter = CompressibleAdapter(tmp_path / "adapter")
    made = adapter.write(adapter.cut(Size(parameters=0.6)), tmp_path / "out")
    for folder, ranks in (("adapter", made.ranks_before), ("out", made.ranks)):
        size = (tmp_path / folder / "adapter_model.safetensors").stat().st_size
        assert 0 < size - file_size(adapter, ranks) < 1000
    assert [size_text(n) for n in (999, 1_234_000, 2_500_000_000)] == ["1 kB", "1.2 MB", "2.5 GB"]
