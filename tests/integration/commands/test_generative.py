"""Written answers from end to end: a tiny causal model learns sums, by `glora run` and in this process."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from glora.experiments.calibration import suggest
from glora.experiments.config import RunConfig
from glora.experiments.data.loading import load_task
from glora.experiments.methods.base import MethodContext, Schedule
from glora.experiments.methods.registry import METHODS
from glora.experiments.models.chat_format import ChatFormat
from glora.experiments.records.schema import EpochMetrics, RunRecord
from glora.experiments.records.store import read_records
from glora.experiments.training import generation
from glora.experiments.training.generative import Generation, perplexity
from glora.experiments.training.progress import RunProgress
from integration.adapters.model_families import FAMILIES
from new_process import run_glora
from one_run import run
from tiny_writer import build_tiny_writer, build_tokenizer, sums, write_lines

SETTINGS = {"learning_rate": 1e-2, "epochs": 4, "max_length": 48, "batch_size": 32}


@pytest.fixture
def config(tiny_writer: Path, sums_folder: Path) -> RunConfig:
    return RunConfig(model=str(tiny_writer), task="gsm8k", data_dir=str(sums_folder), method="lora", seed=0, **SETTINGS)


def ok(record: RunRecord) -> RunRecord:
    assert record.status == "finished", record.traceback
    return record


def untrained_loss(folder: Path, examples: list[dict[str, str]]) -> tuple[float, float]:
    """Loss by an independent loop, one example at a time: weighted by tokens, and as a mean over examples."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chat = ChatFormat(AutoTokenizer.from_pretrained(folder))
    total, tokens, means = 0.0, 0, []
    for row in examples:
        (example,) = chat.encode([[{"role": "user", "content": row["question"]}]], [row["answer"]])
        with torch.no_grad():
            logits = model(torch.tensor([example.prompt + example.answer])).logits[0].double()
        first = len(example.prompt)
        log_probs = torch.log_softmax(logits, -1)
        each = [-float(log_probs[first + i - 1, token]) for i, token in enumerate(example.answer)]
        total, tokens = total + sum(each), tokens + len(each)
        means.append(sum(each) / len(each))
    return total / tokens, sum(means) / len(means)


# The command


@pytest.fixture(scope="module")
def ran(tiny_writer: Path, sums_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Output folder, and what was printed."""
    folder = tmp_path_factory.mktemp("generative")
    file = folder / "sums.json"
    file.write_text(
        json.dumps(
            {
                "evaluation_metrics": ["Accuracy", "Exact match", "Perplexity", "Wall-clock Training Time"],
                "models_to_use": ["Qwen3-0.6B"],
                "datasets_to_use": ["gsm8k"],
                "comparative_methods": [],
                "seeds": [0],
                "settings": SETTINGS,
                "model_overrides": {"Qwen3-0.6B": str(tiny_writer)},
                "data_dir": str(sums_folder),
            }
        )
    )

    done = run_glora("run", file, "--output", folder / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out", done.stdout


@pytest.mark.slow
def test_glora_run_learns_to_write_sums(ran, tiny_writer: Path, sums_folder: Path) -> None:
    output, printed = ran
    assert "2 = 1 model × 1 data set × 2 methods × 1 seed" in printed
    records = {record.config.method: ok(record) for record in read_records(output)}
    assert set(records) == {"lora", "glora"}
    untrained, _ = untrained_loss(tiny_writer, sums(60, 1))
    for method, record in records.items():
        assert record.primary_metric == "exact_match"
        assert set(record.final) == {"exact_match", "loss", "perplexity"}
        assert record.examples == {"train": 400, "test": 60}
        scores = [found.values["exact_match"] for found in record.metrics]
        assert scores[-1] >= 0.5, f"{method}: {scores}; guessing the most frequent sum gives 0.2"
        assert record.final["loss"] < 0.3 * untrained
        assert record.final["perplexity"] == pytest.approx(math.exp(record.final["loss"]))
        assert len(record.ranks) == 14
        assert [answer.prompt for answer in record.answers] == [row["question"] for row in sums(60, 1)[:5]]
        assert {answer.right for answer in record.answers} <= {True, False}
        for answer in record.answers:
            assert answer.right == (answer.written.split()[-1] == answer.reference.split()[-1])
            assert "<end>" not in answer.written
    assert len(set(records["glora"].ranks.values())) > 2
    assert sum(records["glora"].ranks.values()) == sum(records["lora"].ranks.values())
    report = (output / "report.md").read_text()
    assert all(word in report for word in ("Exact match (%)", "Perplexity", "glora"))
    assert "gsm8k" in printed


# One run


class Heard(RunProgress):
    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []
        self.ticks = 0

    def evaluation_begins(self, split: str, batches: int) -> None:
        self.batches.append((split, batches))

    def evaluation_batch(self) -> None:
        self.ticks += 1

    def evaluated(self, metrics: EpochMetrics) -> None:
        assert self.ticks == self.batches[-1][1], "the bar of an evaluation is full when it ends"
        self.ticks = 0


def test_the_held_out_loss_is_that_of_the_tokens_whatever_the_batches(
    config: RunConfig, tiny_writer: Path, tmp_path: Path
) -> None:
    """Answers of very different lengths: a mean over batches or examples would be another number."""
    long = {"question": "how much ?", "answer": " ".join(["1 plus 2"] * 8) + " #### 3"}
    rows = [{"question": "?", "answer": "#### 1"}, *sums(4, 3), long]
    train = write_lines(tmp_path / "train.jsonl", sums(8, 0))
    write_lines(tmp_path / "dev.jsonl", rows)
    expected, naive = untrained_loss(tiny_writer, rows)
    assert abs(expected - naive) > 0.01
    for batch_size in (1, 8):
        heard = Heard()
        changes = {"task": str(train), "data_dir": None, "batch_size": batch_size, "epochs": 1, "learning_rate": 1e-30}
        record = ok(run(config.model_copy(update=changes), progress=heard))
        assert record.final["loss"] == pytest.approx(expected, rel=1e-5)
        assert record.final["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
        assert heard.batches == [("validation", 2 * math.ceil(6 / (2 * batch_size)))]


def test_the_training_loss_is_that_of_the_answers_and_has_adaloras_penalty(
    config: RunConfig, tiny_writer: Path, sums_folder: Path
) -> None:
    """TRL leaves out what a model's forward adds to its loss; PEFT's AdaLoRA adds its penalty there."""
    first = {"epochs": 1, "train_limit": 32, "learning_rate": 1e-30}
    lora = ok(run(config.model_copy(update=first)))
    train = load_task("gsm8k", data_dir=str(sums_folder), train_limit=32).train
    seen = [{"question": row["prompt"][0]["content"], "answer": row["answer"]} for row in train]
    expected, _ = untrained_loss(tiny_writer, seen)
    assert lora.metrics[0].train_loss == pytest.approx(expected, rel=1e-4)
    adalora = ok(run(config.model_copy(update=first | {"method": "adalora", "batch_size": 16})))
    assert adalora.metrics[0].train_loss > expected + 0.1
    assert adalora.final["loss"] == pytest.approx(lora.final["loss"], rel=1e-4), (
        "the penalty is not part of what is held out"
    )


def test_nothing_is_written_where_the_loss_is_asked_for(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    written = ok(run(short := config.model_copy(update={"epochs": 1, "train_limit": 32, "eval_limit": 8})))
    monkeypatch.setattr(generation, "generate_answers", lambda *_, **__: pytest.fail("an answer was written"))
    record = ok(run(short.with_settings({"max_new_tokens": 0})))
    assert record.primary_metric == "loss"
    assert record.final == {name: written.final[name] for name in ("loss", "perplexity")}
    assert not record.answers


def test_generating_is_not_training_time(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = generation.generate_answers

    def slowly(*arguments: Any, **settings: Any) -> Any:
        time.sleep(3)
        return generate(*arguments, **settings)

    monkeypatch.setattr(generation, "generate_answers", slowly)
    record = ok(run(config.model_copy(update={"epochs": 1, "train_limit": 32})))
    assert record.train_seconds is not None
    assert record.train_seconds < 3


def test_the_same_run_again_gives_the_same(config: RunConfig) -> None:
    short = config.model_copy(update={"epochs": 2, "train_limit": 64, "eval_limit": 16, "method": "glora"})
    first, again = (ok(run(short)) for _ in range(2))
    assert first.final == again.final
    assert first.ranks == again.ranks


def test_bfloat16(config: RunConfig) -> None:
    """The frozen weights in bfloat16, the adapters in float32; full fine-tuning trains in float32."""
    short = config.model_copy(update={"epochs": 1, "train_limit": 64, "eval_limit": 8, "precision": "bfloat16"})
    for method in ("lora", "full"):
        record = ok(run(short.model_copy(update={"method": method})))
        assert math.isfinite(record.final["loss"])


def test_a_model_without_a_chat_template_learns_too(config: RunConfig, tmp_path: Path) -> None:
    bare = build_tiny_writer(tmp_path / "bare", template=None)
    record = ok(run(config.model_copy(update={"model": str(bare), "epochs": 3})))
    assert record.final["exact_match"] > 0.3


def test_what_leaves_no_room_is_said(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    def failure(**changes: Any) -> str:
        record = run(config.model_copy(update={"epochs": 1, "train_limit": 32, "eval_limit": 4} | changes))
        assert not record.steps, "known before the first step"
        return str(record.error)

    assert re.search("max_length=64 .*more than .*to 48 or less", failure(max_length=64))
    assert re.search("max_length=8 .*no token .*answer", failure(max_length=8))
    assert re.search("48: .*max_new_tokens=40; .*to 36", failure(max_new_tokens=40))
    caplog.clear()
    ok(run(config.model_copy(update={"epochs": 1, "train_limit": 32, "eval_limit": 4, "max_length": 16})))
    assert re.search("32 of 32 .*longer than max_length=16", caplog.text)


def test_a_loss_beyond_a_float_is_an_infinite_perplexity() -> None:
    assert perplexity(0.0) == 1
    assert perplexity(1e4) == math.inf


# The matrices


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.lora.get("task_type") == "CAUSAL_LM"], ids=lambda family: family.name
)
def test_every_matrix_that_is_adapted_learns(family) -> None:
    """All linear layers of the decoder and all experts; no head, no router, no vision tower."""
    model, kind = family.base(), Generation()
    layers, stacks = kind.target_modules(model, None), kind.target_parameters(model, None)
    assert not [name for name in layers if "lm_head" in name or "router" in name or "vision" in name]
    assert bool(stacks) == (family.name in ("Qwen3-MoE", "Llama 4", "DeepSeek-V3", "DeepSeek-V3.2", "gpt-oss"))
    to = MethodContext(
        model=model,
        config=RunConfig(rank=2),
        schedule=Schedule(4, 2),
        target_modules=layers,
        target_parameters=stacks,
        head_modules=[],
        batches=None,
        task_type=kind.adapter_task_type,
    )
    if stacks:
        with pytest.raises(ValueError, match="adalora .*stacked experts, .*model.layers"):
            METHODS["adalora"].apply(to)
    adapted = METHODS["lora"].apply(to)
    assert set(adapted.ranks()) == {*layers, *stacks}
    assert set(adapted.ranks().values()) == {2}
    factors = {name: p for name, p in adapted.model.named_parameters() if "lora_" in name}
    assert adapted.adapter_parameters() == sum(parameter.numel() for parameter in factors.values())
    text = torch.arange(3, 11)[None]  # a model that also sees is trained on text alone
    adapted.model(input_ids=text, labels=text).loss.backward()
    assert [name for name, p in factors.items() if "lora_B" in name and not p.grad.any()] == []
    with pytest.raises(ValueError, match="'q_prox' matches no linear layer or stack"):
        kind.target_modules(family.base(), ("q_prox",))


@pytest.mark.parametrize("name", ["Qwen3-MoE", "Llama 4", "DeepSeek-V3", "gpt-oss", "Gemma 3 with images"])
def test_a_run_and_suggested_ranks_of_every_kind_of_model(name: str, config: RunConfig, tmp_path: Path) -> None:
    """Loaded from a folder, trained, its experts' ranks allocated, and evaluated."""
    (family,) = (family for family in FAMILIES if family.name == name)
    family.base().save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    changes = {"model": str(tmp_path), "train_limit": 32, "eval_limit": 2, "batch_size": 8, "epochs": 2, "rank": 4}
    small = config.model_copy(update=changes | {"method": "glora", "max_new_tokens": 4})
    record = ok(run(small))
    assert sum(record.ranks.values()) == sum(record.initial_ranks.values()) == 4 * len(record.ranks)
    assert len(set(record.ranks.values())) > 1
    assert record.norms
    assert set(record.norms[0].values) == set(record.ranks)
    suggested = suggest(small, batches=1).patterns["rank_pattern"]
    assert {pattern.replace("\\", "").lstrip("^") for pattern in suggested} == set(record.ranks)
