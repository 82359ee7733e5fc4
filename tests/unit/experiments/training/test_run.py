"""One run, for real, on a tiny DeBERTa and GLUE files: 12 to 18 steps each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from glora.experiments.config import RunConfig
from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.methods.registry import METHODS
from glora.experiments.records.schema import RunRecord
from glora.experiments.training import run as train
from one_run import run
from unit.experiments.training.run_case import measured, of, ok, record_of


class Spy:
    """Records what the model sees at each training step and what it is made of at the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[list[int]]] = []
        self.heads: dict[str, torch.Tensor] = {}
        self.factors: dict[str, torch.Tensor] = {}
        step = Trainer.training_step

        def training_step(trainer: Trainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.batches:
                named = list(model.named_parameters())
                self.heads = {
                    n.removeprefix("base_model.model.").replace(".modules_to_save.default", ""): p.detach().clone()
                    for n, p in named
                    if p.requires_grad and ("classifier" in n or "pooler" in n)
                }
                self.factors = {n: p.detach().clone() for n, p in named if "lora_A" in n}
            self.batches.append(inputs["input_ids"].tolist())
            return step(trainer, model, inputs, *args, **kwargs)

        monkeypatch.setattr(Trainer, "training_step", training_step)


# What a run leaves behind


@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_learns_and_says_all_about_it(config: RunConfig, method: str) -> None:
    record = record_of(of(config, method))
    text = record.model_dump_json()
    assert RunRecord.model_validate_json(text).model_dump_json() == text
    assert "data_dir" not in text
    assert record.key == record.config.key
    assert record.steps == 18
    assert record.examples == {"train": 192, "validation": 48}
    assert record.primary_metric == "accuracy"
    assert [(m.epoch, m.step, m.split) for m in record.metrics] == [(e, 6 * e, "validation") for e in (1, 2, 3)]
    assert record.final == record.metrics[-1].values
    assert set(record.final) == {"accuracy", "matthews_correlation"}
    losses = [m.train_loss for m in record.metrics]
    assert losses[-1] < losses[0]
    assert all(0 < m.loss < 2 for m in record.metrics)
    seconds = [m.train_seconds for m in record.metrics]
    assert 0 < seconds[0] < seconds[1] < seconds[2] <= record.train_seconds
    assert 0 < record.seconds_per_step < record.train_seconds
    assert record.peak_memory_bytes > 50e6
    assert record.peak_memory_source
    matrices = len(record.initial_ranks)
    assert record.ranks.keys() == record.initial_ranks.keys() == record.module_shapes.keys()
    assert sum(record.ranks.values()) == 4 * matrices
    assert record.provenance.data_fingerprint


@pytest.mark.parametrize("method", list(METHODS))
def test_a_method_ends_with_the_parameters_that_it_says(config: RunConfig, method: str) -> None:
    record, lora = record_of(of(config, method)), record_of(of(config, "lora"))
    if METHODS[method].meets == ("rank", "parameters") and method not in ("glora", "shuffled"):  # those are asked which
        assert record.adapter_parameters_after == lora.adapter_parameters_after
        assert record.trainable_parameters_after == lora.trainable_parameters_after


def test_preparation_is_training_time_but_no_step(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    eva = record_of(of(config, "eva"))
    assert 0 < eva.preparation_seconds < eva.metrics[0].train_seconds
    assert record_of(of(config, "lora")).preparation_seconds == 0
    monkeypatch.setattr(AdaptedModel, "preparation_seconds", 1000.0)
    late = ok(run(of(config, "lora", epochs=1)))
    assert 1000 < late.metrics[0].train_seconds < 1100
    assert late.seconds_per_step < 100


def test_lora_keeps_its_ranks_and_trains_less_than_full_fine_tuning(config: RunConfig) -> None:
    lora, full = record_of(of(config, "lora")), record_of(of(config, "full"))
    assert lora.ranks == lora.initial_ranks
    assert (lora.norms, lora.reallocated_at) == ([], None)
    assert lora.trainable_parameters_before == lora.trainable_parameters_after
    cost = sum(4 * sum(shape) for shape in lora.module_shapes.values())
    assert lora.adapter_parameters_before == lora.adapter_parameters_after == cost
    assert full.trainable_parameters_after > 4 * lora.trainable_parameters_after


def test_adalora_ends_with_the_budget_and_keeps_its_masked_parameters(config: RunConfig) -> None:
    record = record_of(of(config, "adalora"))
    assert len(set(record.ranks.values())) > 1
    assert record.trainable_parameters_after == record.trainable_parameters_before
    assert record.adapter_parameters_after < record.adapter_parameters_before
    assert record.reallocated_at == 18 - 9 + 1


@pytest.mark.parametrize("method", ["glora", "shuffled"])
def test_glora_reallocates_after_its_warmup(config: RunConfig, method: str) -> None:
    record = ok(run(of(config, method, warmup_steps=7)))
    assert record.reallocated_at == 7
    assert [sample.step for sample in record.norms] == [1, 2, 3, 4, 5, 6, 7]
    assert all(set(sample.values) == set(record.ranks) for sample in record.norms)
    assert len(set(record.ranks.values())) > 1
    cost = sum(rank * sum(record.module_shapes[name]) for name, rank in record.ranks.items())
    assert record.adapter_parameters_after == cost
    grown = record.trainable_parameters_after - record.trainable_parameters_before
    assert grown == record.adapter_parameters_after - record.adapter_parameters_before


def test_every_variation_of_the_method_reaches_it(config: RunConfig) -> None:
    record = record_of(of(config, "glora", reallocate_every=6, max_reallocations=2, min_rank=1))
    assert record.reallocated_at == 12
    assert sum(record.ranks.values()) == sum(record_of(of(config, "glora")).ranks.values())
    assert min(record.ranks.values()) == 1


def test_a_parameter_budget_is_kept(config: RunConfig) -> None:
    record = ok(run(of(config, "glora", budget="parameters")))
    dearest = max(sum(shape) for shape in record.module_shapes.values())
    assert 0 <= record.adapter_parameters_before - record.adapter_parameters_after < dearest


def test_shuffled_has_gloras_ranks_in_other_places(config: RunConfig) -> None:
    glora, shuffled = record_of(of(config, "glora")), record_of(of(config, "shuffled"))
    assert sorted(glora.ranks.values()) == sorted(shuffled.ranks.values())
    assert glora.ranks != shuffled.ranks
    assert glora.adapter_parameters_after == shuffled.adapter_parameters_after
    assert glora.norms == shuffled.norms, "until the reallocation they are the same run"


def test_norms_of_a_long_warmup_are_thinned(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glora.experiments.training.timed_trainer.NORM_SAMPLES", 4)
    record = ok(run(of(config, "glora", warmup_steps=14)))
    assert [sample.step for sample in record.norms] == [1, 4, 8, 12, 14]


def test_both_dev_sets_of_mnli_are_evaluated_and_the_first_is_the_result(config: RunConfig) -> None:
    record = ok(run(config.model_copy(update={"task": "mnli", "epochs": 1.5})))
    assert [(m.step, m.split) for m in record.metrics] == [
        (6, "validation_matched"),
        (6, "validation_mismatched"),
        (9, "validation_matched"),
        (9, "validation_mismatched"),
    ]
    assert record.final["accuracy"] == record.metrics[2].values["accuracy"]
    assert record.final["validation_mismatched/accuracy"] == record.metrics[3].values["accuracy"]
    assert record.steps == 9


def test_a_regression_task_is_scored_by_correlation(config: RunConfig) -> None:
    record = ok(run(of(config, "glora", task="stsb")))
    assert record.primary_metric in record.final
    assert set(record.final) == {"pearson", "spearman"}


def test_bfloat16_trains_under_autocast(config: RunConfig) -> None:
    single, half = record_of(of(config, "lora")), ok(run(of(config, "lora", precision="bfloat16")))
    losses = [[m.train_loss for m in record.metrics] for record in (single, half)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_runs_share_the_tokens_of_the_same_model_and_examples_alone(config: RunConfig) -> None:
    short, cache = of(config, "lora", epochs=1), {}
    kept = [ok(run(each, cache=cache)) and dict(cache) for each in (short, short, of(short, "lora", train_limit=32))]
    (first,), (again,), (other,) = (each.values() for each in kept)
    assert again is first
    assert (len(first.train), len(other.train)) == (192, 32)


def test_batches_of_one_length_have_less_padding(config: RunConfig, tmp_path: Path) -> None:
    lines = [f"{'a ' * (1 + i % 20)},{i % 2}" for i in range(160)]
    for name in ("train.csv", "dev.csv"):
        (tmp_path / name).write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    padded = {}
    for grouped in (None, True):
        with pytest.MonkeyPatch.context() as patch:
            spy = Spy(patch)
            own = of(config, "lora", task=str(tmp_path / "train.csv"), data_dir=None, epochs=1, batch_size=4)
            ok(run(own.model_copy(update={"group_by_length": grouped})))
        padded[grouped] = sum(len(row) for batch in spy.batches for row in batch)
    assert padded[True] < 0.85 * padded[None]


# The same for every method


def test_methods_see_the_same_batches_from_the_same_start(config: RunConfig) -> None:
    spies = {}
    for method in METHODS:
        with pytest.MonkeyPatch.context() as patch:
            spies[method] = Spy(patch)
            ok(run(of(config, method, seed=1, epochs=2, train_limit=64)))
    reference = spies["lora"]
    assert len(reference.batches) == 4
    assert reference.batches[:2] != reference.batches[2:], "each epoch has its own order"
    for method, spy in spies.items():
        assert spy.batches == reference.batches, method
        assert spy.heads.keys() == reference.heads.keys() != set()
        assert all(torch.equal(spy.heads[name], reference.heads[name]) for name in reference.heads), method
        if method not in ("adalora", "pissa", "eva", "lora_ga", "full"):
            assert spy.factors.keys() == reference.factors.keys() != set()
            assert all(torch.equal(spy.factors[name], reference.factors[name]) for name in reference.factors), method


def test_another_seed_is_another_order_another_head_and_other_factors(config: RunConfig) -> None:
    spies = {}
    for seed in (0, 1):
        with pytest.MonkeyPatch.context() as patch:
            spies[seed] = Spy(patch)
            ok(run(of(config, "lora", seed=seed, epochs=2)))
    orders = [spies[seed].batches[start : start + 6] for seed in (0, 1) for start in (0, 6)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i]), "no epoch of one seed repeats another's"
    for part in ("heads", "factors"):
        drawn = [getattr(spies[seed], part) for seed in (0, 1)]
        assert any(not torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


@pytest.mark.parametrize("method", ["lora", "adalora", "glora"])
def test_the_same_configuration_gives_the_same_result(config: RunConfig, method: str) -> None:
    first = record_of(of(config, method))
    torch.manual_seed(2)  # regardless of what happened before in the process
    assert measured(ok(run(of(config, method)))) == measured(first)


def test_the_rehearsal_leaves_no_trace(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = of(config, "glora", lora_dropout=0.2, epochs=2)
    first = ok(run(settings))
    monkeypatch.setattr(train, "warm_up_kernels", lambda trainer: None)
    assert measured(ok(run(settings))) == measured(first)


def test_adaloras_penalty_is_in_the_loss_that_trainer_minimises(config: RunConfig) -> None:
    slow = {"learning_rate": 1e-6, "epochs": 1}
    first_epoch = {m: ok(run(of(config, m, **slow))).metrics[0].train_loss for m in ("lora", "adalora")}
    # Both start at the same function; Q and P are nearly 0 at first, so each ‖QQᵀ - I‖ is nearly √6.
    assert first_epoch["adalora"] - first_epoch["lora"] == pytest.approx(0.1 * math.sqrt(6), rel=0.03)
