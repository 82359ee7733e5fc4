"""Made-up records of the size and shape of real ones, for the tests of what is drawn and written from them."""

from __future__ import annotations

import math
import random

from glora.experiments.config import RunConfig
from glora.experiments.records.schema import EpochMetrics, Machine, NormSample, Provenance, RunRecord

WIDTH = 384
TYPES = {
    "attention.self.query": (WIDTH, WIDTH),
    "attention.self.key": (WIDTH, WIDTH),
    "attention.self.value": (WIDTH, WIDTH),
    "attention.output.dense": (WIDTH, WIDTH),
    "intermediate.dense": (4 * WIDTH, WIDTH),
    "output.dense": (WIDTH, 4 * WIDTH),
}
MACHINE = Machine(
    platform="Linux-6.1-x86_64", cpu="Synthetic CPU", cores=2, memory_bytes=2**33, accelerator=None, torch_threads=1
)
SECONDS = {"lora": 100.0, "adalora": 121.0, "glora": 101.0, "shuffled": 100.5}
GAIN = {"lora": 0.0, "adalora": 0.004, "glora": 0.009, "shuffled": -0.002}


def bert_shapes(layers: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of the linear layers of a BERT encoder."""
    return {f"encoder.layer.{i}.{name}": shape for i in range(layers) for name, shape in TYPES.items()}


def failed_run(error: str = "ValueError: out of cheese", **settings: object) -> RunRecord:
    config = RunConfig.model_validate(settings)
    return RunRecord(
        config=config,
        key=config.key,
        status="failed",
        error=error,
        traceback=f"Traceback (most recent call last):\n{error}\n",
        started_at="2026-01-31T12:00:00+00:00",
        finished_at="2026-01-31T12:00:01+00:00",
        provenance=Provenance(versions={"glora": "0.1.0"}, machine=MACHINE),
    )


def finished_run(
    *,
    final: dict[str, float] | None = None,
    train_seconds: float | None = None,
    shapes: dict[str, tuple[int, int]] | None = None,
    data: str = "0123456789abcdef",
    machine: Machine = MACHINE,
    steps_per_epoch: int = 120,
    **settings: object,
) -> RunRecord:
    """A finished run; what is not given is drawn from the method and the seed."""
    config = RunConfig.model_validate(settings)
    draw = random.Random(f"{config.method} {config.seed}")
    shapes = bert_shapes(6) if shapes is None else shapes
    seconds = train_seconds or SECONDS.get(config.method, 105.0) * draw.uniform(0.98, 1.02)
    epochs = math.ceil(config.epochs)
    if final is None:
        accuracy = 0.80 + GAIN.get(config.method, 0.0) + draw.gauss(0, 0.004)
        final = {"accuracy": accuracy, "matthews_correlation": 2 * accuracy - 1.02}
    metrics = []
    for epoch in range(1, epochs + 1):
        reached = 1 - 0.35 * math.exp(-1.4 * (epoch - 1)) * (epoch < epochs)
        metrics.append(
            EpochMetrics(
                epoch=epoch,
                step=epoch * steps_per_epoch,
                split="validation",
                train_seconds=seconds * epoch / epochs,
                train_loss=0.7 / epoch,
                values={name: value * reached for name, value in final.items()},
            )
        )
    initial = dict.fromkeys(shapes, config.rank)
    ranks, norms, reallocated_at = dict(initial), [], None
    if config.method in ("adalora", "glora", "shuffled"):
        level = {name: _level(name, config.seed) for name in shapes}
        total = sum(level.values())
        budget = config.rank * len(shapes)
        ranks = {name: round(budget * level[name] / total) for name in shapes}
        if config.method == "adalora":
            initial = dict.fromkeys(shapes, 12)
        else:
            reallocated_at = steps_per_epoch
            norms = _norms(level, config, reallocated_at)
    cost = {name: sum(shape) for name, shape in shapes.items()}
    before = sum(initial[name] * cost[name] for name in shapes)
    after = sum(ranks[name] * cost[name] for name in shapes)
    head = 2 * WIDTH + 2
    return RunRecord(
        config=config,
        key=config.key,
        status="finished",
        started_at="2026-01-31T12:00:00+00:00",
        finished_at="2026-01-31T12:05:00+00:00",
        primary_metric=next(iter(final)),
        metrics=metrics,
        final=final,
        train_seconds=seconds,
        seconds_per_step=seconds / (epochs * steps_per_epoch),
        steps=epochs * steps_per_epoch,
        peak_memory_bytes=int(1.1e9 + 2e7 * draw.random()),
        peak_memory_source="peak resident set of the process during the run",
        trainable_parameters_before=before + head,
        trainable_parameters_after=after + head,
        adapter_parameters_before=before,
        adapter_parameters_after=after,
        ranks=ranks,
        initial_ranks=initial,
        module_shapes=shapes,
        norms=norms,
        reallocated_at=reallocated_at,
        examples={"train": 32 * steps_per_epoch, "validation": 500},
        provenance=Provenance(
            versions={"python": "3.11.7", "glora": "0.1.0", "torch": "2.13.0", "peft": "0.21.2"},
            machine=machine,
            process_started_at="2026-01-31T11:59:50.000000+00:00",
            data_fingerprint=data,
        ),
    )


def study(methods: tuple[str, ...], seeds: tuple[int, ...], **settings: object) -> list[RunRecord]:
    """One finished run for each method and seed."""
    return [finished_run(method=method, seed=seed, **settings) for method in methods for seed in seeds]


def _level(name: str, seed: int) -> float:
    """Size of a matrix's gradients: by its type, growing with depth, with noise from the seed."""
    kind = sum(map(ord, name.split(".", 3)[-1])) % 7 + 1
    depth = int(name.split(".")[2]) if name.split(".")[2:3] and name.split(".")[2].isdecimal() else 1
    return 0.02 * kind * (1 + 0.25 * depth) * random.Random(f"{name} {seed}").uniform(0.8, 1.25)


def _norms(level: dict[str, float], config: RunConfig, steps: int) -> list[NormSample]:
    draw = random.Random(config.seed)
    average = dict.fromkeys(level, 0.0)
    samples = []
    for step in range(1, steps + 1):
        batch = draw.lognormvariate(0, 0.25)
        for name in average:
            norm = level[name] * batch * draw.lognormvariate(0, 0.3) * (1 + 0.5 * step / steps)
            beta = config.allocation.beta
            average[name] = beta * average[name] + (1 - beta) * norm
        samples.append(NormSample(step=step, values=dict(average)))
    return samples
