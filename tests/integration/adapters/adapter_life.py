"""The life of an adapter, the same for every kind of layer and every family of models.

Warm-up, reallocation, further training, saving, loading by stock PEFT on a fresh base, merging, padded export, growth. Every
stage is checked; what differs between kinds and families is only how the model, its adapter and its inputs are made.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from glora import RankAllocationConfig, RankAllocator, export_uniform
from glora.lora.adapter import RankedAdapter
from glora.lora.discovery import find_matrices
from integration.training.loop_case import update

WARMUP, AFTER = 2, 2


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    # A large step: the few that there are must show in every logit.
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)


@dataclass(frozen=True)
class Setup:
    """A model, its adapter and its inputs.

    Attributes:
        base: Makes the base model, with the same weights each time.
        config: Makes PEFT's configuration.
        inputs: Makes the keyword arguments of a forward pass.
        adapt: Gives a base model its adapter.
        optimizer: Makes the optimizer of the model that is to be trained.
        load: Puts a saved adapter on a fresh base model, without glora.
        merges: Whether PEFT can merge this kind of adapter.
        rounding: How far logits may be apart that are equal but for the order of additions.
    """

    base: Callable[[], nn.Module]
    config: Callable[[], LoraConfig]
    inputs: Callable[[], dict[str, Any]]
    adapt: Callable[[nn.Module, LoraConfig], nn.Module] = get_peft_model
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adamw
    load: Callable[[nn.Module, Path], nn.Module] = PeftModel.from_pretrained
    merges: bool = True
    rounding: float = 1e-5

    def adapted(self) -> nn.Module:
        base = self.base()
        torch.manual_seed(1)
        return self.adapt(base, self.config())


@dataclass(frozen=True)
class Life:
    """Result of a walk, for the checks that only one kind of layer needs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    allocator: RankAllocator
    saved: Path
    logits: torch.Tensor


def run(model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and logits."""
    output = model(**inputs)
    if torch.is_tensor(output):
        return output.square().mean(), output
    return output.loss, output.logits


def logits_of(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return run(model, inputs)[1]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, allocator: RankAllocator, inputs: dict[str, Any], steps: int
) -> None:
    model.train()
    for _ in range(steps):
        loss, _ = run(model, inputs)
        assert torch.isfinite(loss)
        loss.backward()
        update(optimizer, allocator)


def steering(adapter: RankedAdapter) -> dict[str, dict[str, int]]:
    """Bounds under which, of each kind of layer, the first gets its smallest rank, the second 1, and the last grows."""
    low, high = {}, {}
    for kind in {type(matrix.layer) for matrix in adapter.matrices.values()}:
        names = [name for name, matrix in adapter.matrices.items() if type(matrix.layer) is kind]
        if len(names) > 1:
            high[names[0]] = adapter.matrices[names[0]].min_supported_rank[0]
        if len(names) > 2:
            low[names[1]] = high[names[1]] = 1
        room = [n for n in names if n not in high and min(adapter.matrices[n].shape) >= adapter.initial_ranks[n] + 2]
        if room:
            low[room[-1]] = adapter.initial_ranks[room[-1]] + 2
    return {"min_rank": low, "max_rank": high}


@contextmanager
def every_saved_weight_is_loaded() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said = [str(warning.message) for warning in caught]
    assert not [message for message in said if "missing adapter keys" in message or "nexpected key" in message]


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    state = get_peft_model_state_dict(model, adapter_name=next(iter(model.peft_config)))
    return {key.removeprefix("base_model.model."): value for key, value in state.items()}


def live_through(setup: Setup, folder: Path) -> Life:
    """Walk through it all, and check all that does not depend on the kind of layer."""
    inputs = setup.inputs()
    model = setup.adapted()
    optimizer = setup.optimizer(model)
    adapter = RankedAdapter(model)
    config = RankAllocationConfig(warmup_steps=WARMUP, **steering(adapter))
    allocator = RankAllocator(adapter, optimizer, config)
    initial = allocator.initial_ranks

    train(model, optimizer, allocator, inputs, WARMUP)
    ranks = allocator.ranks
    assert allocator.allocated
    assert sum(ranks.values()) == sum(initial.values())
    assert any(ranks[name] > initial[name] for name in ranks)
    assert any(0 < ranks[name] < initial[name] for name in ranks)
    assert any(rank == 0 for rank in ranks.values()) == any(
        matrix.min_supported_rank[0] == 0 for matrix in adapter.matrices.values()
    )
    assert all(norm > 0 for norm in allocator.norms.values())
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    held = [id(p) for group in optimizer.param_groups for p in group["params"] if p.numel()]
    assert sorted(held) == sorted(trainable), (
        "the optimizer must hold what is trained, once, and else what is at rank 0"
    )

    present = adapter.factors
    before = [factor.detach().clone() for factor in present]
    train(model, optimizer, allocator, inputs, AFTER)
    for factor, old in zip(present, before):
        assert not torch.equal(factor, old)

    live = logits_of(model, inputs)
    assert torch.isfinite(live).all()
    saved = folder / "adapter"
    model.save_pretrained(saved)
    with every_saved_weight_is_loaded():
        loaded = setup.load(setup.base(), saved)
    mine, theirs = adapter_state(model), adapter_state(loaded)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert torch.equal(logits_of(loaded, inputs), live)
    if setup.merges:
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(logits_of(merged, inputs), live, rtol=10 * setup.rounding, atol=10 * setup.rounding)

    export_uniform(model, folder / "uniform")
    with every_saved_weight_is_loaded():
        uniform = setup.load(setup.base(), folder / "uniform")
    assert len({matrix.rank for matrix in find_matrices(uniform, trainable=False)[1].values()}) == 1
    torch.testing.assert_close(logits_of(uniform, inputs), live, rtol=setup.rounding, atol=setup.rounding)

    bound = {name: min(adapter.matrices[name].shape) for name in ranks}
    adapter.set_ranks({name: rank and min(rank + 2, bound[name]) for name, rank in ranks.items()}, optimizer=optimizer)
    torch.testing.assert_close(logits_of(model, inputs), live, rtol=setup.rounding, atol=setup.rounding)
    return Life(model, optimizer, allocator, saved, live)
