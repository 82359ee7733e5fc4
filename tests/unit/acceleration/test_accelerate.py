"""accelerate_lora: which layers and which calls it is for, what it says of the others, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertModel
from transformers.pytorch_utils import Conv1D

from glora import RankAllocationConfig, RankAllocator, accelerate_lora
from glora.acceleration import accelerate as lora_acceleration
from glora.lora.discovery import find_matrices
from integration.training.loop_case import update

WIDTH = 12


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, WIDTH)
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.turned = Conv1D(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(self.table(x)))
        return self.turned(torch.tanh(self.third(torch.tanh(self.second(x)))))


LINEAR = ["first", "second", "third"]


def lora(adapters: int = 1, **fields: object) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(**dict(r=4, lora_alpha=8, target_modules=LINEAR) | fields)
    model = get_peft_model(Net(), config)
    for k in range(1, adapters):
        model.add_adapter(f"other{k}", config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and parameter.numel():
            nn.init.normal_(parameter, std=0.3)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(20, (3, 5), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rank of each call that was fused."""
    ranks: list[int] = []
    kernel = lora_acceleration.fused_lora

    def watch(x, W, b, A, *rest):
        ranks.append(A.shape[0])
        return kernel(x, W, b, A, *rest)

    monkeypatch.setattr(lora_acceleration, "fused_lora", watch)
    return ranks


# which layers


def test_it_names_what_it_accelerates_and_what_not(caplog: pytest.LogCaptureFixture, fused: list) -> None:
    model = lora(target_modules=[*LINEAR, "table", "turned"])
    with caplog.at_level(logging.INFO, "glora"):
        done = accelerate_lora(model)
    assert list(done.layers) == LINEAR
    assert done.left == {
        "table": "LoRA on Embedding (lora.layer.Embedding)",
        "turned": "LoRA on Conv1D (lora.layer.Linear)",
    }
    assert caplog.messages == [str(done)]
    assert str(done).startswith("accelerate_lora: 3 of 5 LoRA layers; ")
    expected = lora(target_modules=[*LINEAR, "table", "turned"])(tokens())
    torch.testing.assert_close(model(tokens()), expected)
    assert fused == [4, 4, 4]


def test_it_is_silent_where_all_layers_are_accelerated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "glora"):
        assert str(accelerate_lora(lora())) == "accelerate_lora: 3 of 3 LoRA layers"
    assert not caplog.messages


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"use_dora": True}, "Dora: first, second, third"),
        ({"lora_bias": True}, "lora_bias: first, second, third"),
        ({"target_modules": ["turned"]}, r"LoRA on Conv1D \(lora.layer.Linear\): turned"),
    ],
)
def test_refused_by_name_where_it_applies_to_nothing(fields: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=f"none of the . LoRA layers: {reason}.*nn.Linear"):
        accelerate_lora(lora(**fields))


def test_refused_without_lora() -> None:
    with pytest.raises(ValueError, match="nn.Linear, by peft.get_peft_model"):
        accelerate_lora(Net())


def test_a_forward_that_something_else_replaced_is_left_alone() -> None:
    model = lora()
    offloaded = model.base_model.model.second
    offloaded.forward = offloaded.base_layer.forward
    done = accelerate_lora(model)
    assert list(done.left) == ["second"]
    done.undo()
    assert "forward" in vars(offloaded)


def test_a_model_with_an_adapter_of_its_own(fused: list) -> None:
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20)
    model = BertModel(BertConfig(**sizes))
    model.add_adapter(LoraConfig(r=2, target_modules=["query", "value"]))
    assert set(accelerate_lora(model).layers) == {
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.attention.self.value",
    }
    model(tokens())
    assert fused == [2, 2]


# which calls


def hooked(layer: nn.Module) -> None:
    layer.lora_A["default"].register_forward_pre_hook(lambda module, inputs: None)


def trained(layer: nn.Module) -> None:
    layer.base_layer.weight.requires_grad_(True)


LEFT_TO_PEFT: dict[str, tuple[int, Callable[[PeftModel], object]]] = {
    "disabled": (1, lambda model: model.base_model.disable_adapter_layers()),
    "merged": (1, lambda model: model.merge_adapter()),
    "two active": (2, lambda model: model.base_model.set_adapter(["default", "other1"])),
    "a part is watched": (1, lambda model: [hooked(matrix.layer) for matrix in find_matrices(model)[1].values()]),
    "the base is trained": (1, lambda model: [trained(matrix.layer) for matrix in find_matrices(model)[1].values()]),
    "no adapter": (1, lambda model: [matrix.remove() for matrix in find_matrices(model)[1].values()]),
}


@pytest.mark.parametrize("case", LEFT_TO_PEFT)
def test_other_calls_are_pefts(case: str, fused: list) -> None:
    adapters, change = LEFT_TO_PEFT[case]
    model, twin = lora(adapters), lora(adapters)
    accelerate_lora(twin)
    change(model), change(twin)
    assert torch.equal(twin(tokens()), model(tokens()))
    assert not fused


def test_a_watched_part_of_a_step_is_heard(fused: list) -> None:
    model = lora()
    accelerate_lora(model)
    seen: list[torch.Size] = []
    hook = model.base_model.model.second.lora_A["default"].register_forward_hook(lambda m, i, o: seen.append(o.shape))
    model(tokens())
    hook.remove()
    model(tokens())
    assert seen == [(3, 5, 4)]
    assert len(fused) == 2 + 3


def test_a_batch_of_mixed_adapters_is_pefts(fused: list) -> None:
    model, twin = lora(2).eval(), lora(2).eval()
    accelerate_lora(twin)
    names = ["default", "other1", "__base__"]
    assert torch.equal(twin(tokens(), adapter_names=names), model(tokens(), adapter_names=names))
    assert not fused


def test_the_active_adapter_counts(fused: list) -> None:
    model, twin = lora(2), lora(2)
    accelerate_lora(twin)
    model.set_adapter("other1"), twin.set_adapter("other1")
    torch.testing.assert_close(twin(tokens()), model(tokens()))
    twin(tokens()).sum().backward()
    layer = twin.base_model.model.first
    assert layer.lora_A["other1"].weight.grad is not None
    assert layer.lora_A["default"].weight.grad is None
    assert fused


@pytest.mark.parametrize("dynamic", [True, False])
def test_compiled(dynamic: bool, fused: list) -> None:
    torch._dynamo.reset()
    model = lora()
    expected = model(tokens())
    accelerate_lora(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    actual = compiled(tokens())
    torch.testing.assert_close(actual, expected)
    actual.sum().backward()
    assert model.base_model.model.first.lora_A["default"].weight.grad is not None
    assert not fused, "the compiler sees PEFT's operations and joins them itself"


def test_functorch_sees_pefts_operations(fused: list) -> None:
    model = lora()
    accelerate_lora(model)
    layer = model.base_model.model.second
    gradient = torch.func.grad(lambda x: layer(x).sum())(torch.randn(2, WIDTH))
    assert gradient.shape == (2, WIDTH)
    assert not fused


# what is left behind: nothing


def test_undone(fused: list) -> None:
    model = lora()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    with accelerate_lora(model) as done:
        model(tokens())
        assert len(fused) == 3
    assert before == {name: set(vars(module)) for name, module in model.named_modules()}
    model(tokens())
    assert len(fused) == 3
    done.undo()
    assert len(accelerate_lora(model).layers) == len(accelerate_lora(model).layers) == 3, "as often as one likes"


def test_what_is_saved_is_a_plain_adapter(tmp_path: Path) -> None:
    plain, model = lora(), lora()
    accelerate_lora(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    for name, each in (("plain", plain), ("accelerated", model)):
        each.save_pretrained(tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "accelerated" / file).read_bytes()
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(Net(), tmp_path / "accelerated")
    torch.testing.assert_close(loaded(tokens()), model(tokens()))
    torch.testing.assert_close(model.merge_and_unload()(tokens()), loaded(tokens()))
    assert load_file(tmp_path / "accelerated" / "adapter_model.safetensors")


def test_a_copy_computes_with_its_own_weights(fused: list) -> None:
    model = lora()
    accelerate_lora(model)
    before = model(tokens())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.base_model.model.first.lora_B["default"].weight.zero_()
    assert not torch.equal(twin(tokens()), before)
    assert torch.equal(model(tokens()), before)
    assert len(fused) == 9, "and it is as fast"


def test_pickled_and_back(fused: list) -> None:
    model = lora()
    accelerate_lora(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded(tokens()), model(tokens()))
    assert len(fused) == 3, "with PEFT's forward"
    assert len(accelerate_lora(loaded).layers) == 3


# together with the reallocation of ranks


@pytest.mark.parametrize("signal", ["delta", "delta_exact"])
def test_ranks_change_under_an_accelerated_model(signal: str, fused: list) -> None:
    """The same norms, ranks, and weights as without, through a reallocation with a rank of 0."""

    def train(accelerated: bool) -> tuple[RankAllocator, nn.Module]:
        model = lora()
        if accelerated:
            accelerate_lora(model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        exact = {"exact_every": 2} if signal == "delta_exact" else {}
        allocator = RankAllocator(
            model,
            optimizer,
            RankAllocationConfig(warmup_steps=4, signal=signal, max_rank={"second": 0, "third": 5}, **exact),
        )
        for _ in range(7):
            model(tokens()).square().mean().backward()
            update(optimizer, allocator)
        return allocator, model

    (ours, model), (theirs, plain) = train(True), train(False)
    assert ours.ranks == theirs.ranks
    assert ours.ranks["second"] == 0
    assert len(set(ours.ranks.values())) > 2
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-4)
    torch.testing.assert_close(model(tokens()), plain(tokens()))
    assert set(fused[4 * 3 :]) == {rank for rank in ours.ranks.values() if rank}
    assert len(fused) == 4 * 3 + 3 * 2 + 2, "steps that are measured are accelerated as well"
