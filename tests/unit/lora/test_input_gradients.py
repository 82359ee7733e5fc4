"""After a reallocation nothing below the first adapter is differentiated, nor computed a second time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import TrainerControl, TrainerState

from glora import RankAllocationCallback, RankAllocationConfig, RankAllocator, accelerate_lora
from glora.lora.adapter import RankedAdapter
from glora.lora.input_gradients import release_input_gradients
from integration.adapters.layer_kinds import causal, llama, text

LAYERS, WARMUP = 3, 2


class Counted:
    """A model with adapters in all layers, which the reallocation leaves in the last one only."""

    def __init__(self, checkpointing: dict | None, *, before_peft: bool = False, accelerated: bool = False) -> None:
        base = llama(layers=LAYERS)
        if checkpointing is not None and before_peft:
            base.activation_checkpointing_enable(checkpointing)
        torch.manual_seed(1)
        self.model = get_peft_model(base, causal()())
        if checkpointing is not None:  # as Trainer does in any case
            base.activation_checkpointing_enable(checkpointing)
        if accelerated:
            accelerate_lora(self.model)
        self.base = base
        self.calls = [0] * LAYERS
        self.differentiated = [0] * LAYERS
        for k, layer in enumerate(base.model.layers):
            layer.self_attn.register_forward_pre_hook(lambda *_, k=k: self.count(self.calls, k))
            layer.mlp.down_proj.register_full_backward_hook(lambda *_, k=k: self.count(self.differentiated, k))
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-2)
        first = [name for name, _ in base.named_modules() if name.endswith("_proj") and "layers.2" not in name]
        names = {name: 0 for name in first if "self_attn" in name and "o_proj" not in name}
        self.allocator = RankAllocator(
            self.model, self.optimizer, RankAllocationConfig(warmup_steps=WARMUP, max_rank=names)
        )
        self.model.train()

    @staticmethod
    def count(what: list[int], k: int) -> None:
        what[k] += 1

    def step(self) -> torch.Tensor:
        self.calls[:], self.differentiated[:] = [0] * LAYERS, [0] * LAYERS
        loss = self.model(**text()).loss
        loss.backward()
        self.allocator.step()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def reallocate(self) -> None:
        for _ in range(WARMUP - self.allocator.steps):
            self.step()
        ranks = self.allocator.ranks
        assert [any(r for n, r in ranks.items() if f"layers.{k}." in n) for k in range(LAYERS)] == [False, False, True]


@pytest.fixture(scope="module")
def plain_loss() -> torch.Tensor:
    torch.manual_seed(0)
    run = Counted(None)
    run.reallocate()
    run.step()
    return run.step()


@pytest.mark.parametrize("accelerated", [False, True])
def test_without_checkpointing(accelerated: bool) -> None:
    run = Counted(None, accelerated=accelerated)
    run.step()
    assert run.differentiated == [1, 1, 1]
    run.reallocate()
    run.step()
    assert run.differentiated == [0, 0, 1]


@pytest.mark.parametrize("before_peft", [False, True])
@pytest.mark.parametrize("accelerated", [False, True])
def test_with_checkpointing(before_peft: bool, accelerated: bool, plain_loss: torch.Tensor) -> None:
    run = Counted({"use_reentrant": False}, before_peft=before_peft, accelerated=accelerated)
    embedding = run.base.get_input_embeddings()
    assert len(embedding._forward_hooks) > before_peft, "transformers forgets the first where it sets a second"
    run.step()
    assert run.calls == [2, 2, 2]
    run.reallocate()
    assert not embedding._forward_hooks
    run.step()
    assert (run.calls, run.differentiated) == ([1, 1, 2], [0, 0, 1])
    torch.testing.assert_close(run.step(), plain_loss, msg="the same training as without checkpointing")


def test_a_resumed_run_too() -> None:
    before, after = Counted({"use_reentrant": False}), Counted({"use_reentrant": False})
    before.reallocate()
    after.allocator.load_state_dict(before.allocator.state_dict())
    after.step()
    assert after.calls == [1, 1, 2]


def test_reentrant_checkpointing_needs_it(plain_loss: torch.Tensor) -> None:
    run = Counted({"use_reentrant": True})
    run.reallocate()
    assert run.base.get_input_embeddings()._forward_hooks
    run.step()
    assert run.calls == [2, 2, 2]
    torch.testing.assert_close(run.step(), plain_loss)


def test_what_the_user_asked_for_without_checkpointing_stays() -> None:
    base = llama(layers=LAYERS)
    base.enable_input_require_grads()
    other = base.get_input_embeddings().register_forward_hook(lambda module, inputs, output: None)
    assert not release_input_gradients(base)
    base.activation_checkpointing_enable({"use_reentrant": False})
    assert release_input_gradients(base)
    assert list(base.get_input_embeddings()._forward_hooks) == [other.id]


def test_what_the_user_asked_for_before_checkpointing_stays() -> None:
    """Saliency maps and adversarial noise read the gradient of the embedding's output."""
    base = llama(layers=LAYERS)
    model = get_peft_model(base, causal()())
    base.enable_input_require_grads()
    adapter = RankedAdapter(model)
    base.activation_checkpointing_enable({"use_reentrant": False})
    hooks = base.get_input_embeddings()._forward_hooks
    assert len(hooks) == 2
    assert release_input_gradients(base, adapter.input_hooks)
    assert set(hooks) == adapter.input_hooks
    assert len(hooks) == 1


def test_what_the_user_asked_for_after_checkpointing_cannot_be_told_apart() -> None:
    """Both hooks are one function of transformers, set by one method; the remedy in docs/support.md is a hook of your own."""
    base = llama(layers=LAYERS)
    model = get_peft_model(base, causal()())
    adapter = RankedAdapter(model)
    base.activation_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()
    hooks = base.get_input_embeddings()._forward_hooks
    assert len({hook.__code__ for hook in hooks.values()}) == 1 < len(hooks)
    own = base.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    assert release_input_gradients(base, adapter.input_hooks)
    assert list(hooks) == [own.id]


def test_an_embedding_whose_gradient_is_read_keeps_it() -> None:
    base = llama(layers=LAYERS)
    base.activation_checkpointing_enable({"use_reentrant": False})
    read = []
    base.get_input_embeddings().register_full_backward_hook(lambda module, inputs, outputs: read.append(outputs[0]))
    assert not release_input_gradients(base)
    base.requires_grad_(False).train()(**text()).loss.backward()
    assert len(read) == 1


@pytest.mark.parametrize(
    ("library", "arguments", "released"), [("transformers", "TrainingArguments", 0), ("trl", "SFTConfig", 1)]
)
def test_trl_s_hook_is_not_the_user_s(library: str, arguments: str, released: int, tmp_path: Path) -> None:
    """TRL's trainers call enable_input_require_grads() themselves before any callback sees the model."""
    kind = getattr(pytest.importorskip(library), arguments)
    args = kind(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    base = llama(layers=1)
    model = get_peft_model(base, causal()())
    base.enable_input_require_grads()
    callback = RankAllocationCallback()
    callback.on_init_end(args, TrainerState(), TrainerControl(), model=model)
    base.activation_checkpointing_enable({"use_reentrant": False})
    release_input_gradients(base, callback._following.adapter.input_hooks)
    assert len(base.get_input_embeddings()._forward_hooks) == 1 - released


def test_a_trained_embedding_keeps_its_gradient() -> None:
    base = llama(layers=1)
    model = get_peft_model(base, causal(modules_to_save=["embed_tokens"])())
    base.activation_checkpointing_enable({"use_reentrant": False})
    assert release_input_gradients(base)
    model.train()(**text()).loss.backward()
    trained: nn.Module = base.model.embed_tokens.modules_to_save["default"]
    assert trained.weight.grad.abs().sum() > 0
