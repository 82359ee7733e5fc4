"""Servers that do not read rank_pattern and alpha_pattern: which of their rules give an adapter's own logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM

from glora import RankAllocationConfig, RankAllocator, export_uniform

Rule = Callable[[dict, LoraLayer], float]
RULES: dict[str, Rule] = {
    "both from the configuration (vLLM)": lambda config, layer: config["lora_alpha"] / config["r"],
    "rank of the tensor (llama.cpp)": lambda config, layer: config["lora_alpha"] / layer.r["default"],
}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(1, 64, (4, 10), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=tokens(99)).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """An adapter with different ranks and its uniform export, and the logits of the model that was trained."""
    folder = tmp_path_factory.mktemp("adapters")
    model = get_peft_model(llama(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=3))
    for step in range(8):
        model(input_ids=tokens(step), labels=tokens(step)).loss.backward()
        allocator.step()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "mixed")
    export_uniform(model, folder / "uniform")
    return folder, logits(model)


@pytest.mark.parametrize(
    ("name", "rule", "right"),
    [
        ("mixed", "both from the configuration (vLLM)", True),
        ("mixed", "rank of the tensor (llama.cpp)", False),
        ("uniform", "both from the configuration (vLLM)", True),
        ("uniform", "rank of the tensor (llama.cpp)", True),
    ],
)
def test_scaling_by_the_rule_of_a_server(saved: tuple[Path, torch.Tensor], name: str, rule: str, right: bool) -> None:
    folder, expected = saved
    served = PeftModel.from_pretrained(llama(), folder / name)
    config = json.loads((folder / name / "adapter_config.json").read_text())
    for layer in served.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling["default"] = RULES[rule](config, layer)
    error = (logits(served) - expected).abs().max()
    effect = (logits(llama()) - expected).abs().max()
    assert error < 1e-5 if right else error > 0.5 * effect
