"""An accelerated layer against PEFT's own, number by number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from glora import accelerate_lora
from glora.acceleration import accelerate as lora_acceleration
from glora.acceleration import products as fast_product
from glora.acceleration.fused_lora import fused_lora

D_IN, D_OUT, TOKENS = 24, 40, 18
PAIRS = {  # dtype of the base, dtype of the adapter, relative error of one rounding
    "float32": (torch.float32, torch.float32, 2e-6),
    "bfloat16": (torch.bfloat16, torch.bfloat16, 2**-7),
    "bfloat16, adapter in float32": (torch.bfloat16, torch.float32, 2**-7),
    "float32, adapter in bfloat16": (torch.float32, torch.bfloat16, 2**-7),
    "float16": (torch.float16, torch.float16, 2**-9),
}


def layer(
    pair: str = "float32", rank: int = 4, dropout: float = 0.0, biased: bool = True, **fields: object
) -> nn.Module:
    torch.manual_seed(0)
    base, adapter, _ = PAIRS[pair]
    model = get_peft_model(
        nn.Sequential(nn.Linear(D_IN, D_OUT, bias=biased)),
        LoraConfig(r=rank, lora_alpha=3 * rank, lora_dropout=dropout, target_modules=["0"], **fields),
    )
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(adapter if "lora_" in name else base)
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.train()


def flat(*leading: int) -> Callable[[torch.dtype], torch.Tensor]:
    return lambda dtype: torch.randn(*leading, D_IN, generator=torch.Generator().manual_seed(1)).to(dtype)


SHAPES = {
    "one row": flat(),
    "2-D": flat(TOKENS),
    "3-D": flat(3, TOKENS // 3),
    "4-D": flat(3, 2, TOKENS // 6),
    "transposed": lambda dtype: flat(TOKENS // 3, 3)(dtype).transpose(0, 1),
    "strided": lambda dtype: torch.cat([flat(TOKENS)(dtype)] * 2, dim=1)[:, ::2],
    "empty": flat(0, 5),
}


def run(model: nn.Module, x: torch.Tensor, context: Callable = nullcontext) -> dict[str, torch.Tensor]:
    """Output and gradients of one forward and backward pass, whose gradients do not depend on one direction by chance."""
    x = x.detach().requires_grad_()
    torch.manual_seed(2)
    with context():
        y = model(x)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    (y * weight).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"output": y.detach(), "x": x.grad, **gradients, "random": torch.rand(3)}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rounding: float) -> None:
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        got = actual[name]
        assert got.dtype == wanted.dtype, name
        assert got.shape == wanted.shape, name
        scale = wanted.float().abs().max().item() if wanted.numel() else 0.0
        torch.testing.assert_close(got.float(), wanted.float(), rtol=0, atol=rounding * scale + 1e-12, msg=name)


def accelerated(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    assert len(accelerate_lora(twin).layers) == 1
    return twin


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The inputs' shapes of the calls that were fused; a test of equality shows nothing if all of them were left to PEFT."""
    seen: list[tuple[int, ...]] = []
    kernel = lora_acceleration.fused_lora

    def watch(x: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return kernel(x, *rest)

    monkeypatch.setattr(lora_acceleration, "fused_lora", watch)
    return seen


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("pair", PAIRS)
def test_same_numbers(pair: str, dropout: float, shape: str, fused: list) -> None:
    rounding = PAIRS[pair][2]
    model, x = layer(pair, dropout=dropout), SHAPES[shape](PAIRS[pair][0])
    assert_same(run(accelerated(model), x), run(model, x), 4 * rounding)
    assert fused == [tuple(x.shape)]


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Products that oneDNN made, on a processor where it is faster at every size."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch was built without oneDNN")
    taken: list[bool] = []
    rule = fast_product._use_onednn
    monkeypatch.setattr(fast_product, "MIN_MULTIPLICATIONS", 1)
    monkeypatch.setattr(fast_product, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(fast_product, "_use_onednn", lambda x, W: taken.append(rule(x, W)) or taken[-1])
    return taken


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rank", "dropout", "biased"), [(4, 0.0, True), (1, 0.0, False), (24, 0.4, True)])
def test_same_numbers_by_onednn(
    shape: str, rank: int, dropout: float, biased: bool, by_onednn: list[bool], fused: list
) -> None:
    model, x = layer(rank=rank, dropout=dropout, biased=biased), SHAPES[shape](torch.float32)
    assert_same(run(accelerated(model), x), run(model, x), 1e-5)
    assert any(by_onednn) == (shape != "empty")
    assert all(by_onednn) or shape in ("empty", "one row", "strided"), "whose first product is on a weight with gaps"
    assert fused


def test_an_expanded_gradient_by_onednn(by_onednn: list[bool]) -> None:
    """The gradient of a sum has one number in its storage, which oneDNN would read past."""
    model, x = layer(), SHAPES["3-D"](torch.float32).requires_grad_()
    twin = accelerated(model)
    twin(x).sum().backward()
    ours = x.grad
    x.grad = None
    model(x).sum().backward()
    torch.testing.assert_close(ours, x.grad)
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters()):
        assert parameter.grad is None or torch.allclose(other.grad, parameter.grad, atol=1e-5), name
    assert True in by_onednn
    assert False in by_onednn


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("pair", ["float32", "bfloat16, adapter in float32"])
def test_same_numbers_under_autocast(pair: str, dropout: float, fused: list) -> None:
    model, x = layer(pair, dropout=dropout), SHAPES["3-D"](PAIRS[pair][0])
    under = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    assert_same(run(accelerated(model), x, under), run(model, x, under), 2**-5)
    assert fused


def test_backward_within_autocast_computes_as_outside(fused: list) -> None:
    model, x = accelerated(layer()), SHAPES["3-D"](torch.float32).requires_grad_()
    model(x).square().sum().backward()
    outside = x.grad.clone()
    x.grad = None
    y = model(x).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        y.backward()
    torch.testing.assert_close(x.grad, outside)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_same_numbers_with_checkpointing(reentrant: bool, dropout: float, fused: list) -> None:
    model, x = layer(dropout=dropout), SHAPES["3-D"](torch.float32)
    twin = accelerated(model)

    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    assert_same(run(Checkpointed(twin), x), run(Checkpointed(model), x), 1e-5)
    assert len(fused) == 2


def test_a_trained_bias_gets_its_gradient(fused: list) -> None:
    model, x = layer(bias="lora_only"), SHAPES["3-D"](torch.float32)
    expected = run(model, x)
    assert any("base_layer.bias" in name for name in expected)
    assert_same(run(accelerated(model), x), expected, 1e-5)
    assert fused


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B", "x"])
def test_only_what_is_trained_gets_a_gradient(frozen: str, fused: list) -> None:
    model, x = layer(), SHAPES["3-D"](torch.float32)
    for name, parameter in model.named_parameters():
        if frozen in name:
            parameter.requires_grad_(False)
    twin = accelerated(model)
    if frozen == "x":
        for each in (model, twin):
            each(x).square().sum().backward()
        gradients = [{n: p.grad for n, p in each.named_parameters() if p.grad is not None} for each in (twin, model)]
        assert_same(*gradients, 1e-5)
    else:
        assert_same(run(twin, x), run(model, x), 1e-5)
    assert fused


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_same_numbers_without_gradients(mode: Callable, fused: list) -> None:
    model, x = layer(dropout=0.4), SHAPES["3-D"](torch.float32)
    twin = accelerated(model)
    with mode():
        for training in (True, False):
            model.train(training), twin.train(training)
            torch.manual_seed(4)
            expected = model(x)
            torch.manual_seed(4)
            torch.testing.assert_close(twin(x), expected)
    assert len(fused) == 2


def test_gradients_agree_with_differences_in_float64() -> None:
    """Against no other implementation: the formulas themselves."""
    torch.manual_seed(0)
    x, A, B, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((5, 4), (2, 4), (3, 2), (3,)))
    W = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, b, A, B: fused_lora(x, W, b, A, B, 1.7), (x, b, A, B))


def test_a_second_derivative_is_refused() -> None:
    model, x = accelerated(layer()), SHAPES["2-D"](torch.float32).requires_grad_()
    with pytest.raises(RuntimeError, match=r"create_graph=True.*undo\(\)"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)


# memory


def saved_bytes(model: nn.Module, x: torch.Tensor, forward: Callable | None = None) -> int:
    """Bytes kept for the backward pass, each storage once, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = (forward or model)(x)
    del y
    return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_more_is_kept(pair: str, dropout: float, autocast: bool, fused: list) -> None:
    model, x = layer(pair, dropout=dropout), SHAPES["3-D"](PAIRS[pair][0]).requires_grad_()
    twin = accelerated(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = saved_bytes(twin, x), saved_bytes(model, x)
    assert ours <= theirs
    assert fused


def test_layers_that_share_an_input_keep_it_once(fused: list) -> None:
    x = SHAPES["3-D"](torch.float32).requires_grad_()

    def kept(*models: nn.Module) -> int:
        return saved_bytes(nn.ModuleList(models), x, lambda x: sum(model(x) for model in models))

    theirs = [kept(*(layer(dropout=0.4) for _ in range(count))) for count in (1, 3)]
    ours = [kept(*(accelerated(layer(dropout=0.4)) for _ in range(count))) for count in (1, 3)]
    assert ours[1] <= theirs[1] - 2 * x.nbytes
    assert fused


def test_no_activation_is_made_on_the_way(fused: list) -> None:
    """The output, the input's gradient, and thin things: nothing else of an activation's size."""

    class Sizes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.large: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            storages = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
            made = isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in storages
            if made and result.numel() >= TOKENS * D_IN:
                self.large.append(str(func))
            return result

    x = SHAPES["3-D"](torch.float32).requires_grad_()
    counts = []
    for model in (layer(), accelerated(layer())):
        with Sizes() as sizes:
            y = model(x)
            y.backward(torch.ones_like(y))
        counts.append([name for name in sizes.large if "ones_like" not in name])
    assert [name.split(".")[1] for name in counts[1]] == ["addmm", "mm"]
    assert len(counts[0]) > 5
    assert fused
