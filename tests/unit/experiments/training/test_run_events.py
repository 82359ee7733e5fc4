"""A run that fails or is interrupted, its progress, and its measurement."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import Trainer
from typing_extensions import override

from glora.experiments.config import RunConfig
from glora.experiments.models.loading import load_classifier
from glora.experiments.models.weights import weights_fingerprint
from glora.experiments.records.interrupts import record_before_interrupts
from glora.experiments.records.schema import EpochMetrics
from glora.experiments.training import run as train
from glora.experiments.training.classification import Classification
from glora.experiments.training.measurement import PeakMemory, TrainingClock
from glora.experiments.training.progress import RunProgress
from glora.experiments.training.timed_trainer import RunRecorder
from one_run import run
from unit.experiments.training.run_case import of, ok


def test_a_run_that_diverges_is_recorded_with_advice(config: RunConfig) -> None:
    record = run(of(config, "glora", learning_rate=1e30))
    assert record.kind == "diverged"
    assert re.match("DivergedError: .*loss .*nan .*step 6", record.error)
    assert "learning rate (1e+30)" in record.advice
    assert record.steps == 6
    assert record.initial_ranks


def test_an_error_before_training_is_recorded_too(config: RunConfig) -> None:
    record = run(config.model_copy(update={"target_modules": ("querry_proj",)}))
    assert (record.status, record.exception) == ("failed", "ValueError")
    assert "'querry_proj'" in record.error
    assert "query_proj" in record.error.replace("querry_proj", "")
    assert record.examples == {"train": 192, "validation": 48}
    assert record.steps is None


def test_ctrl_c_is_not_an_outcome(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "warm_up_kernels", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(config)


@pytest.mark.parametrize(("epoch", "kept"), [(1, 0), (2, 1)])
def test_ctrl_c_from_the_last_evaluation_on_waits_for_the_record(
    config: RunConfig, tmp_path: Path, epoch: int, kept: int
) -> None:
    class Interrupted(RunProgress):
        @override
        def evaluated(self, metrics: EpochMetrics) -> None:
            if metrics.epoch == epoch:
                signal.raise_signal(signal.SIGINT)

    records = []
    with pytest.raises(KeyboardInterrupt), record_before_interrupts():
        records.append(ok(run(config.model_copy(update={"epochs": 2}), progress=Interrupted(), output=tmp_path)))
    assert len(records) == kept
    assert not list(tmp_path.iterdir()), "no temporary files are left"
    assert [r.provenance.model_fingerprint for r in records] == [weights_fingerprint(config.model)] * kept


def test_ctrl_c_that_a_library_swallows_ends_the_run_at_its_next_step(config: RunConfig) -> None:
    steps = []

    class Interrupted(RunProgress):
        @override
        def step(self) -> None:
            steps.append(1)
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), record_before_interrupts():
        run(config, progress=Interrupted())
    assert len(steps) == 1


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("eva", [f"principal components of the inputs, batch {n}, until they settle" for n in (1, 1, 2)]),
        (
            "lora_ga",
            [*(f"gradients of the weights, batch {n} of 4" for n in (1, 2, 3, 4)), "singular vectors of the gradients"],
        ),
        ("pissa", ["singular vectors of the weights"]),
    ],
)
def test_progress_hears_what_a_method_does_before_the_first_step(
    config: RunConfig, method: str, expected: list[str]
) -> None:
    class Heard(RunProgress):
        events: ClassVar[list[str]] = []

        @override
        def preparing(self, what: str, how_far: str = "") -> None:
            self.events.append(f"{what}, {how_far}" if how_far else what)

        @override
        def step(self) -> None:
            self.events.append("step")

    ok(run(of(config, method, epochs=1), progress=Heard()))
    before = Heard.events[: Heard.events.index("step")]
    assert before[: len(expected)] == expected
    assert set(Heard.events[len(before) :]) == {"step"}


def test_progress_hears_of_everything_in_order(config: RunConfig) -> None:
    class Heard(RunProgress):
        events: list[str]

        def __init__(self) -> None:
            self.events = []

        def __getattribute__(self, name: str) -> Any:
            if name in ("run_begins", "step", "evaluation_begins", "evaluation_batch", "evaluated", "run_ends"):
                self.events.append(name)
            return super().__getattribute__(name)

    heard = Heard()
    ok(run(config.model_copy(update={"epochs": 2}), progress=heard))
    evaluation = ["evaluation_begins", "evaluation_batch", "evaluated"]
    assert heard.events == ["run_begins", *["step"] * 6, *evaluation, *["step"] * 6, *evaluation, "run_ends"]


# The matrices


def test_target_modules_are_endings_within_the_encoder(tiny_deberta: Path) -> None:
    model, _ = load_classifier(str(tiny_deberta), num_labels=2)
    target_modules = Classification().target_modules
    assert target_modules(model, ("query_proj", "layer.1.output.dense")) == [
        "deberta.encoder.layer.0.attention.self.query_proj",
        "deberta.encoder.layer.1.attention.self.query_proj",
        "deberta.encoder.layer.1.output.dense",
    ]
    assert all(name.startswith("deberta.encoder.") for name in target_modules(model, ("dense",)))
    with pytest.raises(ValueError, match="'roj' matches no linear layer"):
        target_modules(model, ("roj",))


def test_only_the_wanted_matrices_are_adapted(config: RunConfig) -> None:
    record = ok(run(of(config, "glora", target_modules=("query_proj", "value_proj"))))
    assert len(record.ranks) == 4
    assert all(name.endswith(("query_proj", "value_proj")) for name in record.ranks)


# Measuring


def test_the_clock_stands_still_while_it_is_paused() -> None:
    clock = TrainingClock()
    clock.start()
    time.sleep(0.02)
    clock.step()
    with clock.paused():
        before = clock.seconds
        with clock.paused():
            time.sleep(0.05)
        time.sleep(0.05)
        assert clock.seconds == before
    time.sleep(0.02)
    clock.step()
    assert len(clock.step_seconds) == 2
    assert sum(clock.step_seconds) == pytest.approx(clock.seconds, abs=0.005)
    assert 0.04 <= clock.seconds < 0.09


def test_evaluation_is_not_training_time(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is put forward by 1000 s by an evaluation, or by reading the norms."""
    ahead = [0.0]

    def slow(function: Callable[..., Any]) -> Callable[..., Any]:
        def slowed(*args: Any, **kwargs: Any) -> Any:
            ahead[0] += 1000
            return function(*args, **kwargs)

        return slowed

    monkeypatch.setattr(TrainingClock, "_now", staticmethod(lambda: time.perf_counter() + ahead[0]))
    monkeypatch.setattr(Trainer, "evaluation_loop", slow(Trainer.evaluation_loop))
    monkeypatch.setattr(RunRecorder, "_sample_norms", slow(RunRecorder._sample_norms))
    record = ok(run(of(config, "glora")))
    assert ahead[0] == 1000 * (3 + 18)
    assert record.train_seconds < 1000
    assert max(m.train_seconds for m in record.metrics) < 1000


def test_peak_memory_is_that_of_the_run() -> None:
    ballast = torch.ones(50_000_000)  # 200 MB
    peak = PeakMemory().read()
    del ballast
    memory = PeakMemory()
    if "since the process began" in memory.source:
        pytest.skip("this system does not let a process reset its peak")
    assert memory.read() < peak - 150e6
    ballast = torch.ones(50_000_000)
    assert memory.read() > peak - 50e6
    del ballast
