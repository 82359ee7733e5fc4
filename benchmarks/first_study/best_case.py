"""Does any allocation beat uniform LoRA? A search among allocations of equal parameters, and its winner on new seeds.

Allocations are drawn at random: each of the 18 groups of matrices (six kinds, in three thirds of the depth) gets a weight
exp(z), z from a standard normal distribution, and the ranks are shared out by these weights at the parameters of uniform
LoRA. All are trained from the first step on with the ranks that they have in the end, on a part of the training examples,
and judged by the loss on the rest of them: it is less noisy than the accuracy. The best go on to more seeds; the one that
is best over all of them is compared with uniform LoRA on the task's own split, with seeds that chose nothing.

The uniform allocation is in the race from the beginning, as number 0.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from glora import allocate_ranks
from glora.experiments.config import RunConfig
from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.methods.base import Method, MethodContext
from glora.experiments.methods.registry import METHODS
from glora.experiments.methods.uniform_lora import uniform_lora
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import finished_records, keep_record
from glora.experiments.report.statistics import estimate
from glora.lora.peft_config import exact_pattern

ALLOCATIONS = 10
FINALISTS = 3
SEARCH_SEEDS, MORE_SEEDS = (100,), (101, 102)
NEW_SEEDS = tuple(range(5))
SETTINGS = {
    "task": "sst2",
    "rank": 2,
    "learning_rate": 3e-3,
    "batch_size": 16,
    "epochs": 1,
    "max_length": 48,
    "train_limit": 2500,
    "group_by_length": True,
}


def method_name(number: int) -> str:
    return "uniform" if number == 0 else f"drawn-{number}"


def draw_ranks(shapes: Mapping[str, tuple[int, int]], rank: int, number: int) -> dict[str, int]:
    """The ranks of allocation `number`: matrix -> rank, at no more than uniform LoRA's parameters; number 0 is uniform."""
    names = list(shapes)
    if number == 0:
        return dict.fromkeys(names, rank)
    draw = random.Random(number)
    weights: dict[tuple[str, int], float] = {}
    scores = {}
    layers = 1 + max(map(layer_of, names))
    for name in names:
        group = kind_of(name), 3 * layer_of(name) // layers
        scores[name] = weights.setdefault(group, math.exp(draw.gauss(0, 1)))
    costs = {name: sum(shape) for name, shape in shapes.items()}
    limits = {name: min(shape) for name, shape in shapes.items()}
    return allocate_ranks(scores, rank * len(names), max_rank=limits, costs=costs)


def layer_of(name: str) -> int:
    """The first number in a module's name."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def kind_of(name: str) -> str:
    """Return the part behind the layer's number: `attention.self.query`."""
    return name.split(f".{layer_of(name)}.", 1)[1]


def apply_drawn(to: MethodContext, number: int) -> AdaptedModel:
    """LoRA with these ranks from the first step on; a matrix of rank 0 has no adapter."""
    modules = {name: to.model.get_submodule(name) for name in to.target_modules}
    shapes = {name: (module.out_features, module.in_features) for name, module in modules.items()}
    ranks = {name: r for name, r in draw_ranks(shapes, to.config.rank, number).items() if r}
    patterns = {exact_pattern(name): r for name, r in ranks.items()}
    alphas = {pattern: to.scaling * r for pattern, r in patterns.items()}
    adapted = dataclasses.replace(to, target_modules=list(ranks))
    return AdaptedModel(uniform_lora(adapted, rank_pattern=patterns, alpha_pattern=alphas))


def register() -> None:
    for number in range(ALLOCATIONS + 1):
        METHODS[method_name(number)] = Method(
            method_name(number),
            "drawn ranks",
            "A drawn allocation.",
            meets=("parameters",),
            implementation=functools.partial(apply_drawn, number=number),
        )


def last_loss(record: RunRecord) -> float:
    loss = record.metrics[-1].loss
    assert loss is not None
    return loss


def search(folder: Path, data_dir: str, make_run: Callable[[RunConfig], RunRecord]) -> int:
    """The number of the allocation whose mean loss over the search seeds is least; finished runs are not made again."""
    register()

    def mean_loss(number: int, seeds: tuple[int, ...]) -> float:
        losses = [last_loss(_made(folder, _config(number, seed, data_dir, held_out=0.4), make_run)) for seed in seeds]
        return estimate(losses).mean

    first = sorted(range(ALLOCATIONS + 1), key=lambda number: mean_loss(number, SEARCH_SEEDS))
    finalists = [number for number in first if number][:FINALISTS]
    return min(finalists, key=lambda number: mean_loss(number, SEARCH_SEEDS + MORE_SEEDS))


def confirm(folder: Path, data_dir: str, best: int, make_run: Callable[[RunConfig], RunRecord]) -> None:
    """The best allocation and uniform LoRA on the task's own split, with new seeds."""
    register()
    for seed in NEW_SEEDS:
        for number in (0, best):
            _made(folder, _config(number, seed, data_dir), make_run)
    (folder / "best.json").write_text(json.dumps({"best": method_name(best)}) + "\n", encoding="utf-8")


def _config(number: int, seed: int, data_dir: str, **more: Any) -> RunConfig:
    return RunConfig.model_validate(
        {**SETTINGS, "method": method_name(number), "seed": seed, "data_dir": data_dir, **more}
    )


def _made(folder: Path, config: RunConfig, make_run: Callable[[RunConfig], RunRecord]) -> RunRecord:
    done = finished_records(folder)
    if config.key not in done:
        record = make_run(config)
        keep_record(folder, record)
        if record.status != "finished":
            raise SystemExit(f"{config.key}: {record.error}")
        print(f"{config.method} seed {config.seed}: loss {last_loss(record):.4f}, {record.final}", flush=True)
        return record
    return done[config.key]
