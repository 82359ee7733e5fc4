"""signal="delta_exact" against ∂L/∂Δ itself, which autograd gives for a network with Δ as a parameter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from glora import RankAllocationConfig, RankAllocator
from glora.lora.matrix import LoraMatrix
from integration.training.loop_case import update

SIZES = {"first": (6, 10), "second": (10, 14), "third": (14, 5)}
DROPOUT = 0.3


class Net(nn.Module):
    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant
        for name, (d_in, d_out) in SIZES.items():
            setattr(self, name, nn.Linear(d_in, d_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def segment(name: str, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(getattr(self, name)(x))

        for name in SIZES:
            if self.reentrant is None:
                x = segment(name, x)
            else:
                x = checkpoint(segment, name, x, use_reentrant=self.reentrant)
        return x


def lora(
    *, dropout: float = 0.0, reentrant: bool | None = None, net: type[Net] = Net, std: float = 0.1, **fields: object
) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=list(SIZES), lora_dropout=dropout, **fields)
    model = get_peft_model(net(reentrant), config)
    for layer in layers(model).values():
        nn.init.normal_(factors(layer)[1], std=std)  # as after some steps: G·Aᵀ is not a random sketch any more
    return model


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: getattr(model.base_model.model, name) for name in SIZES}


def factors(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    return LoraMatrix("", layer).factors


def exact_gradients(model: nn.Module, batches: list[torch.Tensor], dropout: float, seed: int) -> list[torch.Tensor]:
    """∂L/∂Δ_k of the sum over the batches, with Δ_k = s·B·A as a dense parameter beside W_k."""
    deltas = {}
    for name, layer in layers(model).items():
        A, B = factors(layer)
        deltas[name] = (layer.scaling["default"] * B @ A).detach().requires_grad_()
    torch.manual_seed(seed)
    for batch in batches:
        x = batch
        for name, layer in layers(model).items():
            dense = functional.dropout(x, dropout) @ deltas[name].T
            x = torch.tanh(functional.linear(x, layer.base_layer.weight, layer.base_layer.bias) + dense)
        x.square().mean().backward()
    return [delta.grad for delta in deltas.values()]


def norms(allocator: RankAllocator) -> torch.Tensor:
    return torch.tensor(list(allocator.norms.values()))


def exact_norms(model: nn.Module, step: int, count: int = 1) -> torch.Tensor:
    return torch.stack([G.norm() for G in exact_gradients(model, batches_of(step, count), 0.0, step)])


def batches_of(step: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(4, 6, generator=generator) * (i + 1) for i in range(count)]


def backward(model: nn.Module, batches: list[torch.Tensor], seed: int, scale: float = 1.0) -> None:
    torch.manual_seed(seed)
    for batch in batches:
        batch.requires_grad_(bool(model.base_model.model.reentrant))  # which the reentrant kind needs
        (model(batch).square().mean() * scale).backward()


def allocator_for(model: nn.Module, **fields: object) -> tuple[RankAllocator, torch.optim.Optimizer]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    settings = dict(signal="delta_exact", exact_every=1, beta=0.0, warmup_steps=100) | fields
    if settings["signal"] != "delta_exact":
        del settings["exact_every"]
    return RankAllocator(model, optimizer, RankAllocationConfig(**settings)), optimizer


CASES = {
    "plain": {},
    "accumulated": dict(count=3),
    "dropout": dict(dropout=DROPOUT),
    "accumulated with dropout": dict(dropout=DROPOUT, count=2),
    "checkpointed": dict(reentrant=False, count=2),
    "checkpointed, reentrant": dict(reentrant=True, count=2),
    "checkpointed with dropout": dict(reentrant=False, dropout=DROPOUT),
    "clipped": dict(clip=0.01, count=2),
    "scaled": dict(scale=1024.0, count=2),
}


def test_exact_with_dora() -> None:
    """Its magnitude is between B·A·x and the layer's output, so ∂L/∂Δ is not the output's gradient times the input."""
    model = lora(use_dora=True, std=0.3)
    for layer in layers(model).values():
        layer.lora_magnitude_vector["default"].weight.data *= 1 + 3 * torch.rand(layer.out_features)
    allocator, optimizer = allocator_for(model)
    x = batches_of(0, 1)[0]
    expected, deltas = x, []
    for layer in layers(model).values():
        A, B = factors(layer)
        W, delta = layer.base_layer.weight, (2 * B @ A).detach().requires_grad_()
        deltas.append(delta)
        # the norm in the denominator is a constant to PEFT, as in the DoRA paper's section 4.3
        magnitude = layer.lora_magnitude_vector["default"].weight / (W + delta).detach().norm(dim=1)
        expected = torch.tanh(functional.linear(expected, magnitude[:, None] * (W + delta), layer.base_layer.bias))
    output = model(x)
    torch.testing.assert_close(output, expected)
    expected.square().mean().backward()
    optimizer.zero_grad()
    output.square().mean().backward()
    update(optimizer, allocator)
    torch.testing.assert_close(
        norms(allocator), torch.stack([delta.grad.norm() for delta in deltas]), rtol=1e-4, atol=0
    )


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def test_hooks_on_every_mth_step_only_and_none_afterwards() -> None:
    model = lora()
    allocator, optimizer = allocator_for(model, exact_every=3, warmup_steps=8)
    hooked = []
    for step in range(11):
        hooked.append(hooks(model) > 0)
        backward(model, batches_of(step, 1), step)
        update(optimizer, allocator)
    assert hooked == [step in (0, 3, 6) for step in range(11)]
    assert allocator.allocated


def test_detach_leaves_nothing() -> None:
    model = lora()
    allocator, _ = allocator_for(model)
    assert hooks(model) == 3 * len(SIZES)
    model(batches_of(0, 1)[0])  # and no backward pass, as where it is interrupted
    allocator.detach()
    assert hooks(model) == 0


def test_the_next_training_of_the_adapter_ends_one_that_broke_off() -> None:
    """As in a notebook whose cell is run again: nobody has called detach(), and the old optimizer is stepped no more."""
    model = lora()
    broken_off, _ = allocator_for(model)
    model(batches_of(0, 1)[0])
    allocator, optimizer = allocator_for(model, warmup_steps=2)
    assert hooks(model) == 3 * len(SIZES)
    for step in range(3):
        backward(model, batches_of(step, 1), step)
        update(optimizer, allocator)
    assert hooks(model) == 0
    assert not broken_off._optimizer._optimizer_step_post_hooks


def test_between_measurements_the_last_ratio_is_used() -> None:
    model = lora()
    allocator, optimizer = allocator_for(model, exact_every=4)
    ratios = None
    for step in range(4):
        backward(model, batches_of(step, 1), step)
        sketch = torch.stack([factors(layer)[1].grad.norm() / 2 for layer in layers(model).values()])
        update(optimizer, allocator)
        now = norms(allocator) / sketch
        if ratios is not None:
            torch.testing.assert_close(now, ratios)
        ratios = now


def skipped(model: nn.Module, allocator: RankAllocator) -> None:
    """An overflow, which a gradient scaler answers by skipping the optimizer's step."""
    backward(model, batches_of(77, 1), 77, scale=float("inf"))
    allocator.step()


def broken_off(model: nn.Module, allocator: RankAllocator) -> None:
    """Memory runs out in the middle of the backward pass, and the loop goes on with the next batch."""

    def fail(gradient: torch.Tensor) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        handle = factors(layers(model)["second"])[0].register_hook(fail)
        try:
            backward(model, batches_of(78, 1), 78)
        finally:
            handle.remove()


def not_stepped(model: nn.Module, allocator: RankAllocator) -> None:
    """Gradients that somebody throws away."""
    backward(model, batches_of(79, 1), 79)
    allocator.step()


@pytest.mark.parametrize(
    ("trouble", "set_to_none"),
    # after a pass that broke off, zeroed gradients look like gradients that are about to be added to
    [(skipped, True), (skipped, False), (not_stepped, True), (not_stepped, False), (broken_off, True)],
)
def test_what_was_thrown_away_is_not_measured(
    trouble: Callable[[nn.Module, RankAllocator], None], set_to_none: bool
) -> None:
    model = lora()
    allocator, optimizer = allocator_for(model)
    for step in range(3):
        if step == 1:
            trouble(model, allocator)
            optimizer.zero_grad(set_to_none=set_to_none)
        expected = exact_norms(model, step, 2)
        backward(model, batches_of(step, 2), step)
        allocator.step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        torch.testing.assert_close(norms(allocator), expected, rtol=1e-4, atol=0)
    assert allocator.steps == 3


def test_a_backward_pass_that_comes_after_its_step_leaves_nothing() -> None:
    model = lora()
    allocator, optimizer = allocator_for(model, exact_every=9)
    late = model(batches_of(9, 1)[0]).square().mean()
    backward(model, batches_of(0, 1), 0)
    update(optimizer, allocator)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # when it has come to the second layer
        late.backward()
    assert not allocator._recorder.ratios.products


def test_a_call_for_each_micro_batch_is_right_as_well() -> None:
    model = lora()
    allocator, optimizer = allocator_for(model)
    expected = exact_norms(model, 0, 3)
    for batch in batches_of(0, 3):
        model(batch).square().mean().backward()
        allocator.step()
    optimizer.step()
    torch.testing.assert_close(norms(allocator), expected, rtol=1e-4, atol=0)


def test_a_gradient_of_zero_measures_nothing() -> None:
    model = lora()
    allocator, optimizer = allocator_for(model, exact_every=5)
    backward(model, batches_of(0, 1), 0, scale=0.0)
    update(optimizer, allocator)
    assert not norms(allocator).any()
    backward(model, batches_of(1, 1), 1)
    update(optimizer, allocator)
    assert norms(allocator).all(), "the expectation is used until something is measured"


def test_a_layer_that_is_used_twice() -> None:
    """Two checkpointed segments use it: recomputing the second must not drop what the first has given."""

    class Twice(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(self.first(x))
            x = checkpoint(lambda x: torch.tanh(self.second(x)), x, use_reentrant=False)
            x = checkpoint(lambda x: torch.tanh(self.second(x[:, :10])), x, use_reentrant=False)
            return self.third(x)

    model = lora(net=Twice)
    allocator, optimizer = allocator_for(model)
    products: list[torch.Tensor] = []

    def watch(module: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if output.requires_grad:
            x = given[0].detach()
            output.register_hook(lambda gradient: products.append(gradient.T @ x))

    seen = layers(model)["second"].register_forward_hook(watch)
    model(batches_of(0, 1)[0]).square().mean().backward()
    seen.remove()
    update(optimizer, allocator)
    assert len(products) == 2
    assert allocator.norms["second"] == pytest.approx(sum(products).norm().item(), rel=1e-4)


def test_compiled_models_are_refused() -> None:
    with pytest.raises(ValueError, match='delta_exact.* use signal="delta".* without torch.compile'):
        allocator_for(torch.compile(lora()))
    model = lora()
    model.base_model.model.second.compile()
    with pytest.raises(ValueError, match='use signal="delta", or'):
        allocator_for(model)


def test_gradients_that_no_hook_saw_are_an_error() -> None:
    model = lora()
    allocator, _ = allocator_for(model)
    sum((B @ A).square().sum() for A, B in (factors(layer) for layer in layers(model).values())).backward()
    with pytest.raises(RuntimeError, match='delta_exact.* Use signal="delta"'):
        allocator.step()


def test_before_backward_the_usual_error_comes() -> None:
    allocator, _ = allocator_for(lora())
    with pytest.raises(RuntimeError, match="call allocator.step\\(\\) after loss.backward"):
        allocator.step()
