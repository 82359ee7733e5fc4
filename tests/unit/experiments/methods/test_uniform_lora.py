"""The change that each relative of uniform LoRA makes, in numbers: PEFT's layers on a tiny DeBERTa."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import TrainingArguments

from glora.experiments.methods.adapted_model import AdaptedModel, adapted_layers
from glora.experiments.methods.registry import METHODS
from glora.experiments.methods.uniform_lora import even_ranks
from unit.experiments.methods.method_case import adapt, adapter_parameters, batch, classifier, logits


def scalings(adapted: AdaptedModel) -> set[float]:
    return {layer.scaling["default"] for layer in adapted_layers(adapted.model).values()}


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_before_training_every_method_is_the_pretrained_model(tiny_deberta: Path, method: str) -> None:
    adapted = logits(adapt(tiny_deberta, method).model)
    torch.testing.assert_close(adapted, logits(classifier(tiny_deberta)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_the_parameters_that_are_counted_are_those_that_are_trained(tiny_deberta: Path, method: str) -> None:
    adapted = adapt(tiny_deberta, method)
    assert adapted.adapter_parameters() == adapter_parameters(adapted.model)
    head = sum(p.numel() for n, p in adapted.model.named_parameters() if "modules_to_save" in n)
    assert adapted.trainable_parameters() == adapted.adapter_parameters() + head


@pytest.mark.parametrize("method", list(METHODS))
def test_a_method_meets_the_budgets_that_it_says(tiny_deberta: Path, method: str) -> None:
    """Before training; for those that change their ranks later, test_train looks at the end."""
    if method in ("adalora", "full"):
        assert METHODS[method].meets == (("rank",) if method == "adalora" else ())
        return
    lora, adapted = adapt(tiny_deberta, "lora"), adapt(tiny_deberta, method)
    assert sum(adapted.ranks().values()) == sum(lora.ranks().values())
    same_size = adapted.adapter_parameters() == lora.adapter_parameters()
    assert same_size == ("parameters" in METHODS[method].meets)


def test_full_fine_tuning_trains_everything_and_adapts_nothing(tiny_deberta: Path) -> None:
    adapted, plain = adapt(tiny_deberta, "full"), classifier(tiny_deberta)
    assert not any(isinstance(module, BaseTunerLayer) for module in adapted.model.modules())
    assert all(p.requires_grad for p in adapted.model.parameters())
    assert adapted.trainable_parameters() == sum(p.numel() for p in plain.parameters())
    assert adapted.ranks() == adapted.initial_ranks == adapted.module_shapes == {}
    assert adapted.adapter_parameters() == 0
    assert torch.equal(logits(adapted.model), logits(plain))


def test_the_scaling_is_loras_but_for_rslora(tiny_deberta: Path) -> None:
    for method in ("lora", "dora", "pissa", "eva", "lora_ga", "lora_plus"):
        assert scalings(adapt(tiny_deberta, method)) == {12 / 4}, method
    assert scalings(adapt(tiny_deberta, "rslora")) == {12 / math.sqrt(4)}


def test_dora_trains_a_magnitude_for_every_row(tiny_deberta: Path) -> None:
    adapted, lora = adapt(tiny_deberta, "dora"), adapt(tiny_deberta, "lora")
    for name, layer in adapted_layers(adapted.model).items():
        magnitude = layer.lora_magnitude_vector["default"].weight
        assert magnitude.requires_grad
        torch.testing.assert_close(magnitude.detach(), layer.base_layer.weight.norm(dim=1))
        assert magnitude.shape == (adapted.module_shapes[name][0],)
    rows = sum(rows for rows, _ in adapted.module_shapes.values())
    assert adapted.adapter_parameters() == lora.adapter_parameters() + rows


def test_pissa_moves_the_largest_singular_values_into_the_adapter(tiny_deberta: Path) -> None:
    adapted = adapt(tiny_deberta, "pissa")
    before = dict(classifier(tiny_deberta).named_modules())
    for name, layer in adapted_layers(adapted.model).items():
        moved, weight = layer.get_delta_weight("default").detach(), before[name].weight.detach()
        torch.testing.assert_close(layer.base_layer.weight + moved, weight, rtol=0, atol=1e-6)
        largest = torch.linalg.svdvals(weight)[:4]  # of a random matrix, whose values are close together
        assert moved.norm() > 0.99 * largest.norm(), name
        assert torch.linalg.svdvals(moved)[3] > 0.95 * largest[3], name
    assert adapted.preparation_seconds > 0


def test_loras_b_learns_sixteen_times_as_fast_under_lora_plus(tiny_deberta: Path, tmp_path: Path) -> None:
    """Adam's first step is the learning rate, for any gradient."""
    adapted = adapt(tiny_deberta, "lora_plus")
    for layer in adapted_layers(adapted.model).values():  # at B = 0 there is no gradient of A
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    arguments = TrainingArguments(output_dir=str(tmp_path), learning_rate=1e-3, weight_decay=0.0, use_cpu=True)
    optimizer = adapted.make_optimizer(arguments)
    trained = {n: p for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in trained.values()}
    assert isinstance(optimizer, torch.optim.AdamW)
    before = {name: p.detach().clone() for name, p in trained.items()}
    adapted.model.train()(**batch(0)).loss.backward()
    optimizer.step()
    step = {name: (p.detach() - before[name]).abs().max().item() for name, p in trained.items()}
    rates = {"lora_A": 1e-3, "lora_B": 16e-3, "dense.weight": 1e-3}
    for part, rate in rates.items():
        moved = [moved for name, moved in step.items() if part in name]
        assert moved
        assert moved == pytest.approx([rate] * len(moved), rel=1e-3), part


def test_lora_plus_decays_weights_as_the_others_do(tiny_deberta: Path, tmp_path: Path) -> None:
    adapted = adapt(tiny_deberta, "lora_plus")
    arguments = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.1, use_cpu=True)
    decays = {group["weight_decay"] for group in adapted.make_optimizer(arguments).param_groups if group["params"]}
    assert decays == {0.1, 0.0}


def test_only_lora_plus_brings_an_optimiser(tiny_deberta: Path, tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert adapt(tiny_deberta, "lora").make_optimizer(arguments) is None


def test_lora_with_a_total_rank_is_even_and_scales_every_matrix_alike(tiny_deberta: Path) -> None:
    reference = adapt(tiny_deberta, "lora")
    total = sum(reference.ranks().values()) + 5
    adapted = adapt(tiny_deberta, "lora", total_rank=total)
    ranks = adapted.ranks()
    assert sum(ranks.values()) == total
    assert set(ranks.values()) == {4, 5}
    assert {layer.scaling["default"] for layer in adapted_layers(adapted.model).values()} == {12 / 4}
    assert torch.equal(logits(adapted.model), logits(reference.model))


@pytest.mark.parametrize(("matrices", "total"), [(4, 4), (4, 7), (37, 97), (5, 14)])
def test_even_ranks_are_even_and_spend_the_total(matrices: int, total: int) -> None:
    ranks = list(even_ranks([f"m{i}" for i in range(matrices)], total).values())
    assert sum(ranks) == total
    assert max(ranks) - min(ranks) <= 1
    halves = sum(ranks[: matrices // 2]) / (matrices // 2), total / matrices
    assert abs(halves[0] - halves[1]) <= 0.5 + 1e-9  # spread over the model, not heaped at one end


def test_too_few_ranks_for_each_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match="lora:total_rank=3 .*below 1 .*4 matrices; give 4 "):
        even_ranks("abcd", 3)
