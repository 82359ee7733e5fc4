"""Full fine-tuning has no adapter, trains everything, and has a learning rate of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from glora.experiments.config import RunConfig
from glora.experiments.methods.registry import METHODS
from unit.experiments.methods.method_case import adapt, classifier, logits


def test_everything_is_trained_and_nothing_is_adapted(tiny_deberta: Path) -> None:
    adapted, plain = adapt(tiny_deberta, "full"), classifier(tiny_deberta)
    assert not any(isinstance(module, BaseTunerLayer) for module in adapted.model.modules())
    assert all(p.requires_grad for p in adapted.model.parameters())
    assert adapted.trainable_parameters() == sum(p.numel() for p in plain.parameters())
    assert adapted.ranks() == adapted.initial_ranks == adapted.module_shapes == {}
    assert adapted.adapter_parameters() == 0
    assert torch.equal(logits(adapted.model), logits(plain))


def test_its_learning_rate_is_its_own_unless_one_is_given() -> None:
    full = METHODS["full"]
    assert full.normalise(RunConfig(), 0).learning_rate == 2e-5
    assert full.normalise(RunConfig(learning_rate=2e-4), 0).learning_rate == 2e-4, "given, if only the default"
    assert full.normalise(RunConfig(epochs=1), 3) == RunConfig(method="full", seed=3, epochs=1, learning_rate=2e-5)
    assert METHODS["lora"].normalise(RunConfig(), 0).learning_rate == 2e-4
