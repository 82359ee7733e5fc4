"""AdaLoRA on a tiny DeBERTa: its budget, penalty, scaling and first step."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model

from glora.experiments.methods.adalora import ORTHOGONALITY_WEIGHT
from glora.experiments.methods.adapted_model import AdaptedModel, adapted_layers
from unit.experiments.methods.method_case import adapt, batch


@pytest.mark.parametrize("steps", [2, 3, 12])
@pytest.mark.parametrize("total_rank", [None, 37])
def test_adalora_prunes_to_the_budget_and_the_ranks_differ(tiny_deberta: Path, steps: int, total_rank) -> None:
    adapted = adapt(tiny_deberta, "adalora", steps=steps, total_rank=total_rank)
    matrices = len(adapted.initial_ranks)
    budget = total_rank or 4 * matrices
    assert sum(adapted.initial_ranks.values()) >= 1.5 * budget
    train_by_hand(adapted, steps)
    ranks = adapted.ranks()
    assert sum(ranks.values()) == budget
    assert ranks.keys() == adapted.initial_ranks.keys()
    assert len(set(ranks.values())) > 1
    for name, layer in adapted_layers(adapted.model).items():
        (singular_values,) = layer.lora_E.values()
        assert int((singular_values != 0).sum()) == ranks[name], "a masked direction is zero at the end"
    schedule = adapted.schedule
    assert adapted.reallocated_at == steps - schedule.tfinal + 1
    shapes = adapted.module_shapes
    assert adapted.adapter_parameters() == sum(r * (sum(shapes[name]) + 1) for name, r in ranks.items())


def train_by_hand(adapted: AdaptedModel, steps: int) -> None:
    """The order in which Trainer calls things."""
    optimizer = torch.optim.AdamW([p for p in adapted.model.parameters() if p.requires_grad], lr=1e-2)
    (stepper,) = adapted.callbacks
    adapted.model.train()
    for step in range(steps):
        adapted.model(**batch(step)).loss.backward()
        optimizer.step()
        stepper.on_optimizer_step(None, SimpleNamespace(global_step=step), None)
        optimizer.zero_grad()


def test_before_the_first_mask_adalora_has_its_initial_ranks(tiny_deberta: Path) -> None:
    adapted = adapt(tiny_deberta, "adalora")
    assert adapted.ranks() == adapted.initial_ranks
    assert set(adapted.initial_ranks.values()) == {6}
    assert adapted.reallocated_at is None


def test_adaloras_orthogonality_penalty_is_in_the_loss(tiny_deberta: Path) -> None:
    adapted = adapt(tiny_deberta, "adalora")
    model = adapted.model.eval()
    with torch.no_grad():
        outputs = model(**batch(0))
        penalties = []
        for layer in adapted_layers(model).values():
            (Q,), (P,) = layer.lora_A.values(), layer.lora_B.values()
            penalties += [(Q @ Q.T - torch.eye(6)).norm(), (P.T @ P - torch.eye(6)).norm()]
        error = torch.nn.functional.cross_entropy(outputs.logits, batch(0)["labels"])
    penalty = torch.stack(penalties).mean()
    assert penalty > 1
    torch.testing.assert_close(outputs.loss, error + ORTHOGONALITY_WEIGHT * penalty)


def test_adaloras_update_has_loras_scaling(tiny_deberta: Path) -> None:
    adapted = adapt(tiny_deberta, "adalora")
    name, layer = next(iter(adapted_layers(adapted.model).items()))
    for factor in (layer.lora_A, layer.lora_B, layer.lora_E):
        torch.nn.init.normal_(factor["default"])
    with torch.no_grad():
        product = layer.lora_B["default"] @ torch.diag(layer.lora_E["default"][:, 0]) @ layer.lora_A["default"]
        torch.testing.assert_close(layer.get_delta_weight("default"), 12 / 4 * product, rtol=1e-4, atol=1e-4)
    assert adapted.initial_ranks[name] == 6


def test_adaloras_first_step_is_as_small_as_the_documentation_says() -> None:
    """‖Δ‖ after one step of Adam on a 768 × 768 matrix at s = 2, rank 8 and 12: what its learning rate must make up for."""

    def first_step(config: Any, name: str) -> float:
        model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(768, 768, bias=False)), config)
        layer = model.base_model.model[0]
        trained = [p for n, p in model.named_parameters() if name in n]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, eps=1e-30)
        x, wanted = torch.randn(64, 768), torch.randn(64, 768)
        (layer(x) - wanted).square().mean().backward()
        optimizer.step()
        return layer.get_delta_weight("default").norm().item()

    lora = first_step(LoraConfig(r=8, lora_alpha=16, target_modules=["0"]), "lora_B")
    config = AdaLoraConfig(init_r=12, target_r=8, lora_alpha=24, total_step=10, target_modules=["0"])
    adalora = first_step(config, "lora_E")
    assert lora == pytest.approx(2 * 1e-3 * math.sqrt(8 * 768 / 3), rel=0.1)
    assert adalora == pytest.approx(2 * 1e-3 * math.sqrt(12) * 0.02**2 * 768, rel=0.1)
    assert lora / adalora == pytest.approx(42, rel=0.15)
