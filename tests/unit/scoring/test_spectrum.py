"""Spectra of a model in half precision, of a rank that fills its matrix, and of more matrices than are stacked at once."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from glora.lora.adapter import RankedAdapter
from glora.scoring import spectrum
from glora.scoring.spectrum import spectra
from unit.test_allocator import lora


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_decomposed_in_float32(dtype: torch.dtype) -> None:
    adapter = RankedAdapter(lora(r=4, lora_alpha=4))
    with torch.no_grad():
        for factor in adapter.factors:
            factor.copy_(torch.randn_like(factor).to(dtype))
    exact = spectra(adapter.present)
    for factor in adapter.factors:
        factor.data = factor.data.to(dtype)
    assert spectra(adapter.present) == exact


def test_a_rank_of_the_whole_matrix_has_as_many_singular_values() -> None:
    adapter = RankedAdapter(lora(r=4, lora_alpha=4))  # first: 6 -> 12
    adapter.set_ranks({"first": 6, "second": 4})
    values = spectra(adapter.present)["first"]
    assert len(values) == 6
    assert values[-1] < 1e-5


@pytest.mark.parametrize(("matrices_at_once", "stacks"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (3, [3, 3, 1]), (7, [7])])
def test_a_group_is_gathered_in_parts_with_the_same_spectra(
    matrices_at_once: int, stacks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LoraConfig(r=3, target_modules=[str(i) for i in range(7)], init_lora_weights=False)
    adapter = RankedAdapter(get_peft_model(nn.Sequential(*(nn.Linear(8, 12) for _ in range(7))), config))
    at_once = spectra(adapter.present)
    stacked, together = spectrum._stacked, []
    monkeypatch.setattr(spectrum, "_stacked", lambda members: together.append(members) or stacked(members))
    monkeypatch.setattr(spectrum, "MAX_BYTES", matrices_at_once * 4 * 3 * (8 + 12) + 1)
    assert spectra(adapter.present) == at_once
    assert [len(members) for members in together] == stacks
    monkeypatch.setattr(spectrum, "MAX_BYTES", 1)
    assert spectra(adapter.present) == at_once, "a matrix that is larger goes alone"
