"""The figures of docs/scaling.md are those that the record gives."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_tables", ROOT / "benchmarks" / "scaling" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["measured", "groups", "extrapolated"])
def test_the_page_has_the_tables_of_the_record(made: ModuleType, name: str) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert made.tables()[name] in page, "copy what benchmarks/scaling/tables.py prints"


def test_the_models_have_the_sizes_that_are_known(made: ModuleType) -> None:
    """Against figures from elsewhere: 40.0 M for rank 16 on all linear layers of Llama-2-7B; the experts of DeepSeek-V3."""
    sizes = {model.name: model for model in made.MODELS}
    assert sizes["7B"].adapter == 39_976_960
    assert sizes["7B"].matrices == 32 * 7
    assert sizes["70B"].matrices == 80 * 7
    assert 660e9 < sizes["671B, experts as stacks"].weights < 671e9
    assert sizes["671B, a module an expert"].weights == sizes["671B, experts as stacks"].weights


def test_the_cut_on_paper() -> None:
    d, r, after, n, weights, tokens = 4096, 64, 16, 224, 6.74e9, 2048
    parts = [4 * 2 * d * r**2, 30 * r**3, 6 * 2 * after * r * d]
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for part, cells in zip([*parts, sum(parts)], ("134 M | 30 G", "7.9 M | 1.8 G", "50 M | 11 G", "192 M | 43 G")):
        one, every = (float(cell.split()[0]) for cell in cells.split(" | "))
        assert (part / 1e6, n * part / 1e9) == (pytest.approx(one, rel=0.02), pytest.approx(every, rel=0.05))
        assert f"| {cells} |" in page
    steps = [factor * weights * tokens / 1e12 for factor in (6, 4)]
    assert f"| {steps[0]:.0f} T; {steps[1]:.0f} T |" in page
    assert n * sum(parts) < 1e-3 * steps[1] * 1e12


def test_growth_passes_through_what_was_measured(made: ModuleType) -> None:
    points = [{"n": n, "t": 3.0 * n + 0.5 * n**2} for n in (10, 20, 40)]
    assert made.grown(points, "t", 20, 2) == points[1]["t"]
    assert made.grown(points, "t", 30, 2) == (points[1]["t"] + points[2]["t"]) / 2
    assert made.grown(points, "t", 1000, 2) == pytest.approx(3.0 * 1000 + 0.5 * 1000**2)
    assert made.grown([{"n": n, "t": 2.0 * n} for n in (10, 20)], "t", 100, 2) == pytest.approx(200)
    assert made.grown([{"n": n, "t": 5.0 * n} for n in (10, 20)], "t", 70, 1) == pytest.approx(350)
