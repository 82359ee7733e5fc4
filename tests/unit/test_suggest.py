"""suggest_ranks: the ranks of a warm-up's first steps, and a model that is left as it was."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from glora import RankAllocationConfig, RankAllocator, suggest_ranks
from glora.lora.peft_config import exact_pattern

TARGETS = ["query", "value", "intermediate.dense", "output.dense"]


def bert() -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    return BertForSequenceClassification(BertConfig(**sizes, initializer_range=0.2))


def batches(count: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(0, 50, (6, 9), generator=generator),
            "labels": torch.randint(0, 2, (6,), generator=generator),
        }
        for _ in range(count)
    ]


def lora(**fields: object) -> LoraConfig:
    return LoraConfig(**dict(r=4, lora_alpha=8, target_modules=TARGETS) | fields)


def everything(model: nn.Module) -> tuple:
    return (
        {n: (id(p), p.requires_grad, p.grad) for n, p in model.named_parameters()},
        [
            (
                n,
                id(m),
                m.training,
                sorted(vars(m)),
                len(m._forward_pre_hooks),
                len(m._forward_hooks),
                len(m._backward_hooks),
            )
            for n, m in model.named_modules()
        ],
        {n: t.clone() for n, t in model.state_dict().items()},
        torch.get_rng_state(),
    )


def assert_same(before: tuple, after: tuple) -> None:
    assert before[0].keys() == after[0].keys()
    for name, (identity, trainable, grad) in before[0].items():
        assert after[0][name][:2] == (identity, trainable), name
        assert after[0][name][2] is grad, name
    assert before[1] == after[1]
    assert all(torch.equal(before[2][n], after[2][n]) for n in before[2])
    assert torch.equal(before[3], after[3])


def suggested(*arguments: Any, **options: Any) -> dict[str, int]:
    """The ranks alone."""
    return suggest_ranks(*arguments, **options)["rank_pattern"]


def test_the_model_is_left_as_it_was() -> None:
    model = bert().train()
    model.bert.encoder.layer[0].eval()
    model.classifier.bias.requires_grad_(False)
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    before = everything(model)
    ranks = suggested(model, batches(), lora())
    assert_same(before, everything(model))
    assert sum(ranks.values()) == 10 * 4
    assert len(set(ranks.values())) > 2


def test_also_after_an_error() -> None:
    model = bert()
    before = everything(model)
    with pytest.raises(ValueError, match="scalar"):
        suggest_ranks(
            model, [{"input_ids": torch.zeros(2, 3, dtype=torch.long)}], lora(), loss=lambda m, b: m(**b).logits
        )
    assert_same(before, everything(model))


@pytest.mark.parametrize("use_rslora", [False, True])
def test_ready_for_lora_config(use_rslora: bool) -> None:
    model = bert()
    config = dict(use_rslora=use_rslora)
    patterns = suggest_ranks(model, batches(), lora(**config))
    built = get_peft_model(model, lora(**config, **patterns))
    layers = {n: m for n, m in built.get_base_model().named_modules() if hasattr(m, "lora_A")}
    assert {exact_pattern(n): m.r["default"] for n, m in layers.items()} == patterns["rank_pattern"]
    uniform = get_peft_model(bert(), lora(**config)).get_base_model()
    (scaling,) = {m.scaling["default"] for m in uniform.modules() if hasattr(m, "lora_A")}
    assert [m.scaling["default"] for m in layers.values()] == pytest.approx([scaling] * len(layers))


def test_they_are_the_ranks_of_a_warmup_of_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """At B = 0 the first step of training sees what the probe sees, on an adapter with the same A, if nothing is measured."""
    monkeypatch.setattr("glora.scoring.recorder.measured_steps", lambda beta: 0)
    (batch,) = batches(1)
    model = get_peft_model(bert(), lora()).eval()
    ranks = suggested(model, [batch])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=1, min_rank=1))
    model(**batch).loss.backward()
    allocator.step()
    optimizer.step()
    assert {exact_pattern(n): r for n, r in allocator.ranks.items()} == ranks


def test_norms_are_near_the_exact_gradient_of_the_weights() -> None:
    model = bert().eval()
    (batch,) = batches(1)
    exact = copy.deepcopy(model)
    exact(**batch).loss.backward()
    weights = {n.removesuffix(".weight"): p.grad.norm().item() for n, p in exact.named_parameters()}
    ranks = suggested(model, [batch], lora(r=16), total_rank=160)
    total = sum(weights[n] for n in weights if exact_pattern(n) in ranks)
    for pattern, rank in ranks.items():
        name = re.sub(r"\\(.)", r"\1", pattern[1:])
        assert rank == pytest.approx(160 * weights[name] / total, rel=0.5, abs=2)


@pytest.mark.parametrize("fields", [{"task_type": "SEQ_CLS"}, {"modules_to_save": ["classifier"]}], ids=str)
def test_a_head_that_training_trains_whole_gets_no_rank(fields: dict) -> None:
    everywhere = dict(target_modules=[*TARGETS, "classifier"])
    assert any("classifier" in name for name in suggested(bert(), batches(), lora(**everywhere)))
    config = lora(**everywhere, **fields)
    ranks = suggested(bert(), batches(), config)
    built = get_peft_model(bert(), config).get_base_model()
    adapted = {exact_pattern(n) for n, m in built.named_modules() if hasattr(m, "lora_A")}
    assert set(ranks) == adapted
    excluded = lora(**everywhere, **fields, exclude_modules=["layer.0.attention.self.query"])
    assert len(suggested(bert(), batches(), excluded)) == len(ranks) - 1


def test_the_same_seed_gives_the_same_ranks() -> None:
    model = bert()
    assert suggest_ranks(model, batches(), lora()) == suggest_ranks(model, batches(), lora())


def test_bounds_and_the_parameter_budget_hold() -> None:
    model = bert()
    ranks = suggested(model, batches(), lora(), budget="parameters", max_rank=9)
    assert max(ranks.values()) <= 9
    shapes = {exact_pattern(n): m.weight.shape for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    costs = {n: sum(shapes[n]) for n in ranks}
    left = 4 * sum(costs.values()) - sum(ranks[n] * costs[n] for n in ranks)
    assert 0 <= left < 64


def test_a_configuration_of_another_type() -> None:
    with pytest.raises(TypeError, match="config .*dict; .*peft.LoraConfig"):
        suggest_ranks(bert(), batches(1), {"r": 4})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batches=[], config=lora()), "batches is empty"),
        (dict(batches=batches(1)), "no LoRA layer .*BertForSequenceClassification.* `config`"),
        (
            dict(batches=batches(1), config=lora(layer_replication=[(0, 2), (0, 2)])),
            "layer_replication.* without `config`",
        ),
        (dict(batches=batches(1), config=lora(), min_rank=0), "min_rank=0 .*≥ 1; "),
        (dict(batches=batches(1), config=lora(), max_rank=0), "min_rank=1 is above max_rank=0"),
        (dict(batches=batches(1), config=lora(), min_rank=3, max_rank=2), "min_rank=3 is above max_rank=2"),
        (dict(batches=batches(1), config=lora(), max_rank=2.5), "max_rank=2.5"),
        (dict(batches=batches(1), config=lora(), total_rank="64"), "total_rank='64'"),
        (dict(batches=[{"input_ids": batches(1)[0]["input_ids"]}], config=lora()), "no loss .* input_ids; add labels"),
        (dict(batches=[tuple(batches(1)[0].values())], config=lora()), "a tuple, .* dictionaries"),
        (dict(batches=batches(1)[0], config=lora()), "a str, .* dictionaries"),
        (dict(batches=batches(1), config=lora(), loss=lambda m, b: m(**b).loss.detach()), "batch 0 has no gradient"),
        (
            dict(batches=batches(1), config=lora(), loss=lambda m, b: m(**b).logits),
            r"batch 0 .*tensor .*\(6, 2\)",
        ),
        (dict(batches=batches(1), config=lora(), loss=lambda m, b: 1.0), "batch 0 .*float; .*scalar"),
        (dict(batches=batches(1), config=lora(), budget="time"), "budget='time' .* rank, parameters"),
        (dict(batches=batches(1), config=lora(), total_rank=3), "total_rank=3 cannot give 10 matrices"),
        (dict(batches=batches(1), config=lora(), loss=lambda m, b: m(**b).loss * float("nan")), "batch 0 .*inf or NaN"),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suggest_ranks(bert(), **arguments)


def test_numpy_s_integers_are_integers() -> None:
    numbers = dict(total_rank=np.int64(50), min_rank=np.int32(2), max_rank=np.int64(9), seed=np.uint8(0))
    plain = {name: int(value) for name, value in numbers.items()}
    assert suggest_ranks(bert(), batches(1), lora(), **numbers) == suggest_ranks(bert(), batches(1), lora(), **plain)
    config = RankAllocationConfig(total_rank=np.int64(64), beta=np.float32(0.5), max_rank={"a": np.int64(3)})
    assert json.loads(json.dumps(config.to_dict()))["total_rank"] == 64
    assert config == RankAllocationConfig(total_rank=64, beta=0.5, max_rank={"a": 3})


def test_a_model_with_an_adapter_takes_no_configuration() -> None:
    """PEFT would make the second adapter the active one, in settings that nothing puts back."""
    model = get_peft_model(bert(), lora())
    with pytest.raises(ValueError, match=r"\(default\).* leave out `config`"):
        suggest_ranks(model, batches(1), lora())
    assert model.base_model.active_adapters == ["default"]
    assert list(model.peft_config) == ["default"]
