"""Properties that all methods share on a model, and the control's shuffled ranks."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from glora.experiments.methods.adapted_model import adapted_layers
from glora.experiments.methods.glora import shuffle_ranks
from glora.experiments.methods.registry import METHODS
from glora.experiments.models.loading import load_classifier
from glora.experiments.models.modules import find_head_modules, find_target_modules
from unit.experiments.methods.method_case import adapt


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_every_method_adapts_every_encoder_matrix_and_trains_the_same_head(tiny_deberta: Path, method: str) -> None:
    adapted = adapt(tiny_deberta, method)
    model, _ = load_classifier(str(tiny_deberta), num_labels=2, label_names=("no", "yes"), seed=0)
    assert list(adapted.initial_ranks) == find_target_modules(model)
    matrix = dict(model.named_modules())
    assert adapted.module_shapes == {n: tuple(matrix[n].weight.shape) for n in adapted.initial_ranks}
    for head in find_head_modules(model):
        trained = {
            n.split(f"{head}.modules_to_save.default.")[1]: p
            for n, p in adapted.model.named_parameters()
            if f"{head}.modules_to_save." in n
        }
        for name, fresh in matrix[head].named_parameters():
            assert trained[name].requires_grad
            assert torch.equal(trained[name], fresh)
    frozen = {n for n, p in adapted.model.named_parameters() if not p.requires_grad}
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
