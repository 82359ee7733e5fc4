"""A model's matrices, from its configuration alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import GptOssConfig

from glora.experiments.config import RunConfig
from glora.experiments.models.modules import find_expert_parameters, find_linear_layers, find_target_modules
from glora.experiments.models.registry import ModelNotFoundError
from glora.experiments.models.skeleton import build_skeleton, largest_ranks


def test_a_folder_without_weights_has_its_matrices(tiny_deberta: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_deberta / "config.json").read_bytes())
    model = build_skeleton(RunConfig(model=str(tmp_path)), "classification")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    hidden = json.loads((tmp_path / "config.json").read_text())["hidden_size"]
    assert set(largest_ranks(model, find_target_modules(model)).values()) == {hidden}


def test_the_largest_rank_of_stacked_experts_is_that_of_one(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    GptOssConfig(**sizes, num_key_value_heads=2, head_dim=4, num_local_experts=64, vocab_size=40).save_pretrained(
        tmp_path
    )
    model = build_skeleton(RunConfig(model=str(tmp_path)), "generation")
    experts = largest_ranks(model, find_expert_parameters(model))
    assert set(experts.values()) == {32, 16}
    assert min(largest_ranks(model, find_linear_layers(model)).values()) == 8, "two heads of four for keys and values"


def test_a_configuration_of_another_kind_is_refused(tiny_deberta: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="tiny-deberta"):
        build_skeleton(RunConfig(model=str(tiny_deberta)), "generation")
