"""The registry and what each method puts on a model. Real PEFT on a tiny DeBERTa, a few hand-made steps."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model

from glora.experiments.config import RunConfig
from glora.experiments.methods.adalora import ORTHOGONALITY_WEIGHT, AdaLoraSchedule
from glora.experiments.methods.adapted_model import AdaptedModel, adapted_layers
from glora.experiments.methods.base import METHODS, Schedule, find_method
from glora.experiments.methods.glora import shuffle_ranks
from glora.experiments.models.loading import load_classifier
from glora.experiments.models.modules import find_head_modules, find_target_modules
from unit.experiments.methods.method_case import adapt, batch


class State:
    """What AdaLoraStepper reads of Trainer's state."""

    def __init__(self, global_step: int) -> None:
        self.global_step = global_step


# Names


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        ValueError, match=r"unknown method 'adalore': did you mean 'adalora'.*lora, rslora, .*, adalora, glora"
    ):
        find_method("adalore")


def test_every_method_says_in_a_line_what_it_is() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert 20 < len(method.summary) < 120
        assert "\n" not in method.summary


def test_settings_that_a_method_does_not_look_at_do_not_make_its_runs_new_ones() -> None:
    changed = RunConfig(beta=0.95, warmup_steps=7, total_rank=40, min_rank=1)
    assert METHODS["lora"].normalise(changed, 3).key == METHODS["lora"].normalise(RunConfig(), 3).key
    assert METHODS["adalora"].normalise(changed, 3).allocation.total_rank == 40
    assert METHODS["adalora"].normalise(changed, 3).allocation.beta == 0.9
    for name in ("glora", "shuffled"):
        kept = METHODS[name].normalise(changed, 3)
        assert kept == changed.model_copy(update={"method": name, "seed": 3})


# Schedules


@pytest.mark.parametrize(
    ("examples", "batch_size", "epochs", "total", "per_epoch"),
    [(100, 32, 3, 12, 4), (96, 32, 3, 9, 3), (100, 32, 2.5, 10, 4), (100, 32, 0.3, 2, 4), (5, 32, 1, 1, 1)],
)
def test_steps_are_counted_as_trainer_counts_them(examples, batch_size, epochs, total, per_epoch) -> None:
    schedule = Schedule.of(examples, batch_size, epochs)
    assert (schedule.total_steps, schedule.steps_per_epoch) == (total, per_epoch)


def test_warmup_is_an_epoch_a_share_or_steps() -> None:
    schedule = Schedule(total_steps=30, steps_per_epoch=10)
    assert [schedule.warmup_steps(w) for w in (None, 0.25, 1, 12.0)] == [10, 8, 1, 12]


@pytest.mark.parametrize(("warmup", "steps", "told"), [(None, 4, "default is one epoch"), (12, 12, "12 steps")])
def test_a_warmup_that_is_not_shorter_than_training_is_refused(warmup, steps, told) -> None:
    config = RunConfig(method="glora", warmup_steps=warmup)
    (fault,) = METHODS["glora"].schedule_faults(config, Schedule(total_steps=steps, steps_per_epoch=4))
    assert told in fault
    assert "not shorter than the training" in fault
    assert METHODS["glora"].schedule_faults(config, Schedule(total_steps=steps + 1, steps_per_epoch=4)) == []
    assert METHODS["lora"].schedule_faults(config, Schedule(total_steps=steps, steps_per_epoch=4)) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"min_rank": 5, "max_rank": 4, "total_rank": 90}, "min_rank=5 is above max_rank=4"),
        ({"min_rank": 9}, "min_rank=9 is more than the budget, rank=8 on average"),
        ({"max_rank": 7}, "max_rank=7 cannot spend the budget, rank=8 on average"),
    ],
)
def test_bounds_that_no_model_can_meet_are_refused_before_one_is_loaded(settings: dict[str, int], told: str) -> None:
    (fault,) = METHODS["glora"].setting_faults(RunConfig(**settings))
    assert told in fault
    assert METHODS["lora"].setting_faults(RunConfig(**settings)) == []


def test_bounds_that_a_model_may_meet_are_not_refused() -> None:
    for settings in ({}, {"min_rank": 8, "max_rank": 8}, {"min_rank": 9, "total_rank": 900}, {"signal": "lora_b"}):
        assert METHODS["glora"].setting_faults(RunConfig(**settings)) == []


# AdaLoRA


@pytest.mark.parametrize(
    ("steps", "tinit", "tfinal", "interval"),
    [
        (2, 0, 1, 1),
        (3, 0, 2, 1),
        (10, 1, 5, 1),
        (100, 12, 50, 1),
        (6_700, 804, 3350, 13),
        (85_900, 10_308, 42_950, 100),
    ],
)
def test_adalora_schedule_has_the_authors_proportions_at_any_length(steps, tinit, tfinal, interval) -> None:
    schedule = AdaLoraSchedule.of(steps)
    assert (schedule.tinit, schedule.tfinal, schedule.deltaT) == (tinit, tfinal, interval)


def test_adalora_schedule_always_prunes_after_something_was_measured() -> None:
    for steps in range(2, 300):
        schedule = AdaLoraSchedule.of(steps)
        first_final_step = steps - schedule.tfinal  # counted from 0; importance is measured at the steps before
        assert schedule.tinit < first_final_step <= steps - 1
        assert schedule.tfinal >= 1


def test_adalora_refuses_a_run_of_one_step() -> None:
    (fault,) = METHODS["adalora"].schedule_faults(RunConfig(), Schedule(total_steps=1, steps_per_epoch=1))
    assert "at least 2 optimiser steps" in fault


@pytest.mark.parametrize("steps", [2, 3, 12])
@pytest.mark.parametrize("total_rank", [None, 37])
def test_adalora_prunes_to_the_budget_and_the_ranks_differ(tiny_deberta: Path, steps: int, total_rank) -> None:
    adaptation = adapt(tiny_deberta, "adalora", steps=steps, total_rank=total_rank)
    matrices = len(adaptation.initial_ranks)
    budget = total_rank or 4 * matrices
    assert sum(adaptation.initial_ranks.values()) >= 1.5 * budget
    train_by_hand(adaptation, steps)
    ranks = adaptation.ranks()
    assert sum(ranks.values()) == budget
    assert ranks.keys() == adaptation.initial_ranks.keys()
    assert len(set(ranks.values())) > 1
    for name, layer in adapted_layers(adaptation.model).items():
        (singular_values,) = layer.lora_E.values()
        assert int((singular_values != 0).sum()) == ranks[name], "a masked direction is zero at the end"
    schedule = adaptation.schedule
    assert adaptation.reallocated_at == steps - schedule.tfinal + 1
    shapes = adaptation.module_shapes
    assert adaptation.adapter_parameters() == sum(r * (sum(shapes[name]) + 1) for name, r in ranks.items())


def train_by_hand(adaptation: AdaptedModel, steps: int) -> None:
    """The order in which Trainer calls things."""
    optimizer = torch.optim.AdamW([p for p in adaptation.model.parameters() if p.requires_grad], lr=1e-2)
    (stepper,) = adaptation.callbacks
    adaptation.model.train()
    for step in range(steps):
        adaptation.model(**batch(step)).loss.backward()
        optimizer.step()
        stepper.on_optimizer_step(None, State(step), None)
        optimizer.zero_grad()


def test_before_the_first_mask_adalora_has_its_initial_ranks(tiny_deberta: Path) -> None:
    adaptation = adapt(tiny_deberta, "adalora")
    assert adaptation.ranks() == adaptation.initial_ranks
    assert set(adaptation.initial_ranks.values()) == {6}
    assert adaptation.reallocated_at is None
    adapters = sum(p.numel() for n, p in adaptation.model.named_parameters() if "lora_" in n and p.requires_grad)
    assert adaptation.adapter_parameters() == adapters


def test_adaloras_orthogonality_penalty_is_in_the_loss(tiny_deberta: Path) -> None:
    adaptation = adapt(tiny_deberta, "adalora")
    model = adaptation.model.eval()
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
    adaptation = adapt(tiny_deberta, "adalora")
    name, layer = next(iter(adapted_layers(adaptation.model).items()))
    for factor in (layer.lora_A, layer.lora_B, layer.lora_E):
        torch.nn.init.normal_(factor["default"])
    with torch.no_grad():
        product = layer.lora_B["default"] @ torch.diag(layer.lora_E["default"][:, 0]) @ layer.lora_A["default"]
        torch.testing.assert_close(layer.get_delta_weight("default"), 12 / 4 * product, rtol=1e-4, atol=1e-4)
    assert adaptation.initial_ranks[name] == 6


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


# What the methods share


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_every_method_adapts_every_encoder_matrix_and_trains_the_same_head(tiny_deberta: Path, method: str) -> None:
    adaptation = adapt(tiny_deberta, method)
    model, _ = load_classifier(str(tiny_deberta), num_labels=2, label_names=("no", "yes"), seed=0)
    assert list(adaptation.initial_ranks) == find_target_modules(model)
    matrix = dict(model.named_modules())
    assert adaptation.module_shapes == {n: tuple(matrix[n].weight.shape) for n in adaptation.initial_ranks}
    for head in find_head_modules(model):
        trained = {
            n.split(f"{head}.modules_to_save.default.")[1]: p
            for n, p in adaptation.model.named_parameters()
            if f"{head}.modules_to_save." in n
        }
        for name, fresh in matrix[head].named_parameters():
            assert trained[name].requires_grad
            assert torch.equal(trained[name], fresh)
    frozen = {n for n, p in adaptation.model.named_parameters() if not p.requires_grad}
    assert not any(re.search(r"lora_[ABE]|modules_to_save", n) for n in frozen)


def test_lora_glora_and_shuffled_start_from_the_same_adapters(tiny_deberta: Path) -> None:
    def factors(method: str, seed: int) -> dict[str, torch.Tensor]:
        layers = adapted_layers(adapt(tiny_deberta, method, seed=seed).model)
        return {name: layer.lora_A["default"].weight.detach() for name, layer in layers.items()}

    reference = factors("lora", 1)
    for method in ("glora", "shuffled"):
        mine = factors(method, 1)
        assert all(torch.equal(mine[name], reference[name]) for name in reference)
    other_seed = factors("lora", 2)
    assert not any(torch.equal(other_seed[name], reference[name]) for name in reference)


def test_uniform_lora_costs_what_its_ranks_say(tiny_deberta: Path) -> None:
    adaptation = adapt(tiny_deberta, "lora")
    assert set(adaptation.ranks().values()) == {4}
    adapters = sum(p.numel() for n, p in adaptation.model.named_parameters() if "lora_" in n)
    assert adaptation.adapter_parameters() == adapters
    layer = next(iter(adapted_layers(adaptation.model).values()))
    assert layer.scaling["default"] == 12 / 4
    assert adaptation.reallocated_at is None
    assert adaptation.averaged_norms() is None


# The control


def test_shuffling_keeps_the_ranks_of_each_shape() -> None:
    shapes = {f"q{i}": (32, 32) for i in range(8)} | {f"up{i}": (64, 32) for i in range(8)}
    ranks = {name: i for i, name in enumerate(shapes)}
    shuffled = shuffle_ranks(ranks, shapes, seed=0)
    assert list(shuffled) == list(ranks)
    assert shuffled != ranks
    for shape in set(shapes.values()):
        alike = [name for name in shapes if shapes[name] == shape]
        assert Counter(shuffled[name] for name in alike) == Counter(ranks[name] for name in alike)


def test_shuffling_depends_on_the_seed_and_on_nothing_else() -> None:
    shapes = {f"q{i}": (32, 32) for i in range(10)}
    ranks = {name: i for i, name in enumerate(shapes)}
    backwards = dict(reversed(ranks.items()))
    assert shuffle_ranks(ranks, shapes, 1) == shuffle_ranks(backwards, shapes, 1)
    assert shuffle_ranks(ranks, shapes, 1) != shuffle_ranks(ranks, shapes, 2)
