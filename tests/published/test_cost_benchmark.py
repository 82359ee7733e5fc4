"""The benchmark runs: every variant on a tiny model, one round, and the record has what the tables need."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.cost import measure, table
from benchmarks.cost.growth import grow
from benchmarks.cost.measure import Cell
from benchmarks.cost.shared_input import _ways
from benchmarks.cost.steps import waits
from benchmarks.cost.variants import Variant
from benchmarks.cost.workloads import WORKLOADS, Workload
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

CPU = torch.device("cpu")


def tiny() -> nn.Module:
    sizes = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    return BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=16))


@pytest.fixture(autouse=True)
def tiny_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKLOADS, "tiny", Workload("tiny", "SEQ_CLS", 2, 8, tiny))
    monkeypatch.setitem(measure.ROUNDS, "tiny", 1)
    monkeypatch.setattr(measure, "PROFILED", ("LoRA",))  # a profile takes seconds


def test_every_variant_steps() -> None:
    record = measure.measure_steps("tiny", 8, 1, CPU, "wall")
    variants = record["variants"]
    assert len(variants) > 15
    lora, third = variants["LoRA"], variants["GLoRA reallocated, last third only"]
    for name, variant in variants.items():
        assert len(variant["seconds"]) == 1, name
        assert all(bytes_ > 0 for bytes_ in variant["memory"].values()), name
    assert third["matrices_without_adapter"] >= 12
    assert third["memory"]["kept"] < 0.6 * lora["memory"]["kept"], "nothing is kept below the first adapter"
    assert variants["LoRA, accelerated"]["memory"]["kept"] == lora["memory"]["kept"]
    assert variants["GLoRA records, delta"]["memory"] == lora["memory"], "recording takes no memory of a step's size"
    assert variants["full fine-tuning"]["trained_parameters"] > variants["LoRA"]["trained_parameters"]
    assert variants["frozen"]["trained_parameters"] == 0
    assert lora["profile_ms"]["thin products"] > 0


def test_peers_and_what_does_not_compile() -> None:
    """The table reads the record, and names what failed."""
    names = ["LoRA, compiled", "LoRA, bf16", "LoRA of four times the rank"]
    record = measure.measure_steps("tiny", 8, 1, CPU, "wall", "peers", names, compile_seconds=1e-3)
    assert list(record["variants"]) == ["LoRA", "LoRA, bf16", "LoRA of four times the rank"]
    assert "within 0.001 s" in record["failed"]["LoRA, compiled"]
    machine = {"cpu": "any", "cores": 2, "torch_threads": 1}
    provenance = {"machine": machine, "versions": {"torch": "2"}}
    text = table.render([record | {"measured_at": "2026-11-28", "provenance": provenance}])
    assert "| LoRA, compiled | left out: " in text
    assert "beside torch.compile" in text


def test_every_variant_is_in_a_group() -> None:
    made = list(measure.Factory(tiny(), {}, 8, "SEQ_CLS").makers)
    groups = [measure.names_of(group, 8, CPU, made) for group in measure.GROUPS]
    assert set(groups[0]) | set(groups[1]) == set(made)
    assert set(groups[0]) & set(groups[1]) >= {"LoRA", "LoRA, accelerated", "LoRA of four times the rank"}
    assert set(measure.AT_EVERY_RANK) <= set(made)
    on_gpu = measure.names_of("methods", 8, torch.device("cuda"), made)
    assert not [name for name in on_gpu if "MKL" in name]
    assert "AdaLoRA" in on_gpu


def test_records_made_since_a_day_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Cell] = []
    monkeypatch.setattr(measure, "in_its_own_process", made.append)
    cell = Cell("minilm", 8, "peers")
    path = cell.path(tmp_path, CPU)
    assert path.name == "cpu-minilm-rank-8-peers.json"
    path.write_text(json.dumps({"measured_at": "2026-11-28T01:00:00+00:00"}))
    for since in ("2026-11-28", "2026-11-29"):
        options = ["--device", "cpu", "--only", "minilm", "startup", "--since", since, "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["measure", *options])
        measure.main()
    methods = [Cell("minilm", rank, "methods") for rank in (8, 2, 64)]
    assert made == [*methods, Cell("startup"), *methods, cell, Cell("startup")]


def test_what_waits_for_the_gpu_is_noted_and_not_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The debug mode of torch.cuda is played by a step that fails while it is on."""
    mode = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)

    class Waiting(Variant):
        def loss(self, batch: Any) -> torch.Tensor:
            loss = self.model(torch.ones(1)).sum()
            loss.register_hook(lambda _: self.wait())
            return loss

        def wait(self) -> None:
            if mode[-1] == "error" and batch["reads"]:
                raise RuntimeError("called a synchronizing CUDA operation\nat")

    for reads, found in ((False, None), (True, "called a synchronizing CUDA operation")):
        batch = {"reads": reads}
        assert waits(Waiting(nn.Linear(1, 1)), batch, torch.device("cuda")) == found
        assert mode[-1] == "default"
    assert waits(Waiting(nn.Linear(1, 1)), batch, CPU) is None


def test_growth() -> None:
    case = grow(6, 8, 2, CPU, measure.CLOCKS["cpu"])
    assert all(case[f"{what}_seconds"] > 0 for what in ("recording", "reallocation", "cut", "compress"))


def test_stacked_gradients_are_those_of_three_layers() -> None:
    ways = _ways(12, 3)
    x = torch.randn(5, 12, requires_grad=True)
    results = []
    for way in ways.values():
        outputs = way(x)
        g = torch.arange(60.0).view(5, 12)
        torch.autograd.backward(outputs, [g, 2 * g, 3 * g])
        results.append([*outputs, x.grad])
        x.grad = None
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])
