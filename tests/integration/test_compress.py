"""A compressed adapter is what stock PEFT loads, in a process that has no glora: the explicit SVD of what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from glora import compress_adapter
from glora.lora.discovery import find_matrices
from integration.test_saved_adapter import stock_logits
from integration.trainer_case import TAKEN_OUT, base_model, logits_of, peft_model, probe_batch


def filled(folder: Path, **fields: object) -> nn.Module:
    """An adapter as after training; one matrix has learned next to nothing."""
    model = peft_model(folder, r=8, **fields)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, matrix in find_matrices(model)[1].items():
            scale = 1e-4 if name == TAKEN_OUT else 0.2
            for factor in matrix.factors:
                factor.normal_(std=scale, generator=generator)
    return model


def truncated(model: nn.Module, folder: Path, ranks: dict[str, int]) -> nn.Module:
    """The base model with the truncated SVD of each PEFT's own Δ added to its weights."""
    merged = base_model(folder)
    with torch.no_grad():
        merged.load_state_dict(
            {
                key.removeprefix("base_model.model.")
                .replace("modules_to_save.default.", "")
                .replace("base_layer.", ""): v
                for key, v in model.state_dict().items()
                if "lora_" not in key and "original_module" not in key
            }
        )
        for name, matrix in find_matrices(model)[1].items():
            U, S, Vh = torch.linalg.svd(matrix.layer.get_delta_weight("default"), full_matrices=False)
            rank = ranks[name]
            merged.get_submodule(name).weight += U[:, :rank] * S[:rank] @ Vh[:rank]
    return merged


@pytest.mark.parametrize(
    "fields",
    [
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {
            "rank_pattern": {"query_proj": 4},
            "alpha_pattern": {"query_proj": 16},
            "exclude_modules": ["layer.1.output.dense"],
        },
    ],
    ids=str,
)
def test_stock_peft_loads_it(tiny_deberta: Path, glue_folder: Path, tmp_path: Path, fields: dict) -> None:
    model = filled(tiny_deberta, **fields)
    model.save_pretrained(tmp_path / "adapter")
    made = compress_adapter(tmp_path / "adapter", parameters=0.4, output=tmp_path / "small")
    assert made.ranks[TAKEN_OUT] == 0
    assert len(set(made.ranks.values())) > 2
    batch = probe_batch(tiny_deberta, glue_folder)
    expected = logits_of(truncated(model, tiny_deberta, made.ranks), batch)
    assert (logits_of(model, batch) - expected).abs().max() > 1e-3, "the case must tell the cut from the whole"
    for logits in stock_logits(tiny_deberta, batch, tmp_path, tmp_path / "small"):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    before = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert (tmp_path / "small" / "adapter_model.safetensors").stat().st_size < 0.8 * before
