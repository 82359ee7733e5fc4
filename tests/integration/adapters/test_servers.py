"""Servers that do not read rank_pattern and alpha_pattern: which of their rules give an adapter's own logits."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer

from integration.adapters.adapter_life import Life, Setup, live_through, logits_of
from integration.adapters.layer_kinds import ATTENTION, causal, llama, text

Rule = Callable[[dict, LoraLayer], float]
RULES: dict[str, Rule] = {
    "both from the configuration (vLLM)": lambda config, layer: config["lora_alpha"] / config["r"],
    "rank of the tensor (llama.cpp)": lambda config, layer: config["lora_alpha"] / layer.r["default"],
}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    return live_through(Setup(llama, causal([*ATTENTION, "o_proj"]), text), tmp_path_factory.mktemp("adapters"))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["adapter", "uniform"])
def test_scaling_by_the_rule_of_a_server(life: Life, form: str, rule: str) -> None:
    folder = life.saved.with_name(form)
    served = PeftModel.from_pretrained(llama(), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    for layer in served.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling["default"] = RULES[rule](config, layer)
    error, effect = ((logits_of(m, text()) - life.logits).abs().max() for m in (served, llama()))
    if form == "adapter" and "llama.cpp" in rule:
        assert error > 0.5 * effect, "it needs the uniform export"
    else:
        assert error < 1e-5
