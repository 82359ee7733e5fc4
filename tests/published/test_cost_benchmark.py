"""The benchmark runs: every variant on a tiny model, one round, and the record has what the tables need."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "cost"


def tiny() -> nn.Module:
    sizes = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    return BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=16))


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("measure", "workloads", "variants", "steps", "growth", "startup", "shared_input")
    for name in names:
        sys.modules.pop(name, None)
    module = importlib.import_module("measure")
    workload = importlib.import_module("workloads").Workload("tiny", "SEQ_CLS", 2, 8, tiny)
    monkeypatch.setitem(module.WORKLOADS, "tiny", workload)
    monkeypatch.setattr(module, "PROFILED", ("LoRA",))  # a profile takes seconds
    yield module
    for name in names:
        sys.modules.pop(name, None)


def test_every_variant_steps(measure) -> None:
    record = measure.measure_steps("tiny", 8, 1, torch.device("cpu"), "wall")
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


def test_growth(measure) -> None:
    case = measure.grow(6, 8, 2, torch.device("cpu"), measure.CLOCKS["cpu"])
    assert case["recording_seconds"] > 0
    assert case["reallocation_seconds"] > 0


def test_stacked_gradients_are_those_of_three_layers(measure) -> None:
    ways = sys.modules["shared_input"]._ways(12, 3)
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
