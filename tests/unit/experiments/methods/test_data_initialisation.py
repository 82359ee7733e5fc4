"""EVA and LoRA-GA: what they take from the data, and that they leave everything else alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig
from transformers import LlamaConfig, LlamaForCausalLM

from glora.experiments.config import RunConfig
from glora.experiments.methods import data_initialisation
from glora.experiments.methods.adapted_model import adapted_layers
from glora.experiments.methods.base import MethodContext, Schedule
from glora.experiments.methods.data_initialisation import NotSettledError, apply_eva
from glora.experiments.models.modules import find_target_modules
from glora.experiments.training.training_arguments import training_batches
from unit.experiments.methods import method_case
from unit.experiments.methods.method_case import adapt, adapter_parameters, batch, batches, classifier

QUERY = "deberta.encoder.layer.0.attention.self.query_proj"
VALUE = "deberta.encoder.layer.0.attention.self.value_proj"


def inputs_of(model: Any, module: str, count: int) -> torch.Tensor:
    """The rows of real tokens that a matrix sees in `count` batches, but for position embeddings."""
    seen = []
    handle = model.get_submodule(module).register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    with torch.no_grad():
        rows = []
        for each in itertools.islice(batches(), count):
            seen.clear()
            model.eval()(**each)
            rows.append(seen[0][each["attention_mask"].bool()])
    handle.remove()
    return torch.cat(rows)


# EVA


def test_eva_spends_the_rank_budget_unevenly(tiny_deberta: Path) -> None:
    adapted = adapt(tiny_deberta, "eva")
    ranks = adapted.ranks()
    assert ranks == adapted.initial_ranks
    assert sum(ranks.values()) == 4 * len(ranks)
    assert len(set(ranks.values())) > 1
    assert max(ranks.values()) <= 8, "ρ = 2"
    assert adapted.module_shapes.keys() == ranks.keys()
    assert adapted.adapter_parameters() == adapter_parameters(adapted.model)
    assert adapted.preparation_seconds > 0


def test_evas_a_spans_the_principal_components_of_the_tokens(tiny_deberta: Path) -> None:
    """The first matrix's inputs give it, which no adapter changes; computed from scratch, without the rows of positions."""
    layer = adapted_layers(adapt(tiny_deberta, "eva").model)[VALUE]
    A = layer.lora_A["default"].weight.detach()
    torch.testing.assert_close(A @ A.T, torch.eye(len(A)), rtol=0, atol=1e-4)
    rows = inputs_of(classifier(tiny_deberta), VALUE, 60)
    variances = torch.linalg.eigvalsh((rows - rows.mean(0)).T.cov())
    explained = (rows @ A.T).T.cov().diagonal().sum() / variances.sum()
    best = variances.flip(0)[: len(A)].sum() / variances.sum()
    assert explained > 0.97 * best
    assert not layer.lora_B["default"].weight.any()


def test_a_matrix_to_which_eva_gives_nothing_has_no_adapter(tiny_deberta: Path, monkeypatch) -> None:
    """PEFT takes such layers out; that they count as rank 0 must not depend on the data that this model sees."""

    def ranks_from_nothing(model: Any, *_: Any, **__: Any) -> None:
        parent = model.get_submodule(f"base_model.model.{VALUE.rsplit('.', 1)[0]}")
        parent.value_proj = parent.value_proj.get_base_layer()

    monkeypatch.setattr(data_initialisation, "initialize_lora_eva_weights", ranks_from_nothing)
    adapted = adapt(tiny_deberta, "eva")
    assert adapted.initial_ranks[VALUE] == 0
    assert Counter(adapted.initial_ranks.values()) == {4: 11, 0: 1}
    assert adapted.adapter_parameters() == adapter_parameters(adapted.model)


def test_eva_prints_nothing(tiny_deberta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapt(tiny_deberta, "eva")
    assert capsys.readouterr().out == ""


def test_components_that_do_not_settle_are_told(tiny_deberta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_initialisation, "EVA_BATCHES", 2)
    with pytest.raises(NotSettledError, match="not settled .*2 batches of 32; .*larger batches"):
        adapt(tiny_deberta, "eva")


def test_eva_looks_at_the_answer_alone_where_every_token_has_a_label() -> None:
    @dataclasses.dataclass
    class Config:
        eva_config: Any

    tokens = batch(0)
    labels = torch.full_like(tokens["input_ids"], -100)
    labels[:, 2:5] = 1
    mask = data_initialisation._token_mask({**tokens, "labels": labels}, Config(EvaConfig()))
    assert torch.equal(mask, labels == 1)
    mask = data_initialisation._token_mask(tokens, Config(EvaConfig()))
    assert torch.equal(mask, tokens["attention_mask"].bool()), "one label an example says nothing about tokens"


# LoRA-GA


def test_lora_ga_starts_along_the_gradient(tiny_deberta: Path) -> None:
    """A has the leading right singular vectors of the mean gradient of 4 batches of 32, found by autograd alone."""
    adapted = adapt(tiny_deberta, "lora_ga")
    model = classifier(tiny_deberta).train()
    model.requires_grad_(False)
    weights = {name: model.get_submodule(name).weight.requires_grad_() for name in adapted.initial_ranks}
    for each in itertools.islice(batches(), 4):
        model(**each).loss.backward()
    for name, layer in adapted_layers(adapted.model).items():
        A, B = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        assert B.any()
        _, _, right = torch.linalg.svd(weights[name].grad)
        overlap = torch.linalg.svdvals(A @ right[:4].T)
        assert overlap.min() > 0.98, name
        change = weights[name].detach() - layer.base_layer.weight
        torch.testing.assert_close(change, 3 * B @ A, rtol=1e-3, atol=1e-6)
        assert change.any()
    assert adapted.preparation_seconds > 0
    assert all(p.grad is None for p in adapted.model.parameters())


# Both


@pytest.mark.parametrize("method", ["eva", "lora_ga"])
def test_looking_at_the_data_uses_up_no_random_number(tiny_deberta: Path, method: str, monkeypatch) -> None:
    states = []

    def watched() -> Any:
        states.append(torch.random.get_rng_state())
        torch.rand(1)  # as dropout would
        return batches()

    monkeypatch.setattr(method_case, "batches", watched)
    adapt(tiny_deberta, method)
    assert torch.equal(torch.random.get_rng_state(), states[0])


@pytest.mark.parametrize("method", ["eva", "lora_ga"])
def test_both_work_on_a_causal_model(method: str) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )

    def answers() -> Any:
        for each in batches():
            labels = each["input_ids"].masked_fill(each["attention_mask"] == 0, -100)
            labels[:, :4] = -100
            yield {**each, "labels": labels}

    def says(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=batch(0)["input_ids"]).logits

    before = says(model)
    to = MethodContext(
        model=model,
        config=RunConfig(rank=2, method=method),
        schedule=Schedule(12, 4),
        target_modules=find_target_modules(model),
        head_modules=(),
        batches=answers,
        task_type="CAUSAL_LM",
    )
    adapted = apply_eva(to) if method == "eva" else data_initialisation.apply_lora_ga(to)
    assert type(adapted.model).__name__ == "PeftModelForCausalLM"
    assert sum(adapted.ranks().values()) == 2 * 7
    assert adapted.adapter_parameters() == adapted.trainable_parameters() == adapter_parameters(adapted.model)
    torch.testing.assert_close(says(adapted.model), before, rtol=0, atol=1e-5)


# The batches


def test_training_batches_have_an_order_of_their_own_and_no_end() -> None:
    rows = list(range(10))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    drawn = list(itertools.islice(training_batches(rows, lambda rows: {"x": torch.tensor(rows)}, 4, seed=1), 5))
    assert torch.equal(torch.random.get_rng_state(), before)
    again = list(itertools.islice(training_batches(rows, lambda rows: {"x": torch.tensor(rows)}, 4, seed=1), 5))
    other = next(training_batches(rows, lambda rows: {"x": torch.tensor(rows)}, 4, seed=2))
    assert [b["x"].tolist() for b in drawn] == [b["x"].tolist() for b in again]
    assert other["x"].tolist() != drawn[0]["x"].tolist()
    assert all(len(b["x"]) == 4 for b in drawn), "whole batches only"
    assert len(set(drawn[0]["x"].tolist() + drawn[1]["x"].tolist())) == 8, "no example twice in a pass"
    assert drawn[0]["x"].tolist() != drawn[2]["x"].tolist(), "another order in the next pass"
    few = next(training_batches([1, 2], lambda rows: {"x": torch.tensor(rows)}, 4, seed=1))
    assert sorted(few["x"].tolist()) == [1, 2]
