"""A change of ranks that fails while it is put in place leaves the model, its configuration and the optimizer as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from glora import resize_lora_layer
from glora.lora import adapter as adapter_module
from glora.lora.adapter import RankedAdapter
from glora.lora.matrix import LoraMatrix, Resized
from unit.lora.test_adapter import NAMES, Net, by_factor, lora

STEPS = [
    (Resized, "commit", 2),
    (LoraMatrix, "set_rank", 2),
    (LoraMatrix, "remove", 1),
    (LoraMatrix, "restore", 1),
    (RankedAdapter, "_put_into_tree", 1),
    (RankedAdapter, "_put_into_tree", 2),
    (adapter_module, "describe_ranks", 1),
]


def failing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int) -> None:
    call, calls = getattr(owner, name), []

    def fails(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == at:
            raise MemoryError(f"{name}, call {at}")
        return call(*arguments, **options)

    monkeypatch.setattr(owner, name, fails)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A step was made, and the gradients of the next are there."""
    model = lora()
    optimizer = by_factor(model)
    for _ in range(2):
        optimizer.step()
        model(torch.randn(3, 8)).square().mean().backward()
    return model, optimizer


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights = {name: (p.detach().clone(), p.grad, p.requires_grad) for name, p in model.named_parameters()}
    states = [[dict(optimizer.state.get(p, {})) for p in group["params"]] for group in optimizer.param_groups]
    return {"weights": weights, "states": states}


def texts_of(model: nn.Module) -> list[str]:
    layers = [(module.r, module.lora_alpha) for module in model.modules() if hasattr(module, "lora_alpha")]
    return [repr(model), repr(layers), repr(model.peft_config["default"])]


@pytest.mark.parametrize(("owner", "name", "at"), STEPS, ids=[f"{name} {at}" for _, name, at in STEPS])
def test_all_or_nothing(owner: Any, name: str, at: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, optimizer = trained()
    adapter = RankedAdapter(model)
    adapter.set_ranks({"first": 0, "second": 4, "third": 4}, optimizer=optimizer)
    before, texts, objects = tensors_of(model, optimizer), texts_of(model), list(map(id, model.parameters()))
    wanted = {"first": 3, "second": 0, "third": 6}
    with monkeypatch.context() as patch:
        failing(patch, owner, name, at)
        with pytest.raises(MemoryError):
            adapter.set_ranks(wanted, optimizer=optimizer)
    torch.testing.assert_close(tensors_of(model, optimizer), before, rtol=0, atol=0)
    assert texts_of(model) == texts
    assert list(map(id, model.parameters())) == objects
    adapter.set_ranks(wanted, optimizer=optimizer)
    assert adapter.ranks == wanted
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    torch.manual_seed(0)
    assert torch.equal(PeftModel.from_pretrained(Net(), tmp_path)(x), model.eval()(x))


def test_a_layer_of_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained()
    before, texts = tensors_of(model, optimizer), texts_of(model)
    with monkeypatch.context() as patch:
        failing(patch, LoraMatrix, "note_rank", 1)
        with pytest.raises(MemoryError):
            resize_lora_layer(model.base_model.model.first, 2, model=None, optimizer=optimizer)
    torch.testing.assert_close(tensors_of(model, optimizer), before, rtol=0, atol=0)
    assert texts_of(model) == texts
    assert list(RankedAdapter(model).ranks.values()) == [4] * len(NAMES)
