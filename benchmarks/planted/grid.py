"""The cells of the benchmark, and running those that are missing.

The core cell compares every variant at the base setting. The others change one factor of it and compare the variants that say
whether the result still holds. Each record is a line of a JSON-lines file, written when its run has ended; a run that is in the
file is not made again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.planted.task import Setting
from benchmarks.planted.variants import VARIANTS as NARROW
from benchmarks.planted.wide import ADALORA, VARIANTS
from benchmarks.records import append_lines, read_lines, versions

BASE = Setting()
SEEDS = range(10)
COMPARED = ("uniform", "planted", "estimate", "delta", "last_value")
UNSEEN = range(10, 20)
"""Seeds that nothing was chosen by: what looks best on the others is confirmed here, or not."""
CONFIRMED = ("uniform", "estimate", "delta", "last_value_svd", "planted", "per_weight")

CELLS: dict[str, Setting] = {
    "base": BASE,
    "parameter budget": dataclasses.replace(BASE, budget="parameters"),
    "warm-up 50 %": dataclasses.replace(BASE, warmup=0.50),
    "warm-up 10 %": dataclasses.replace(BASE, warmup=0.10),
    "warm-up 5 %": dataclasses.replace(BASE, warmup=0.05),
    "rank 2": dataclasses.replace(BASE, rank=2),
    "rank 8": dataclasses.replace(BASE, rank=8),
    "noise 0.1": dataclasses.replace(BASE, noise=0.1),
    "noise 0.3": dataclasses.replace(BASE, noise=0.3),
    "width 32": dataclasses.replace(BASE, width=32),
    "width 128": dataclasses.replace(BASE, width=128),
    "learning rate 5e-3": dataclasses.replace(BASE, learning_rate=5e-3),
    "learning rate 2e-2": dataclasses.replace(BASE, learning_rate=2e-2),
    "1,200 steps": dataclasses.replace(BASE, steps=1200),
}


WIDE_SEEDS = range(50, 60)
"""Seeds of the comparison of adapters that start wider than they end."""
TUNING_SEEDS = range(3)
"""Seeds on which AdaLoRA's learning rate is chosen; it is on another scale than LoRA's."""
AT_EVERY_RANK = ("uniform", "spectrum_4", "uniform_cut_4", "delta", "planted", "spectrum_2", "spectrum_8", "wide")
AT_RANK_4 = ("uniform_cut_8", "spectrum_4_cuts_2", "spectrum_4_cuts_4", "spectrum_4_input", "spectrum_4_gauss_newton")
EQUAL_PARAMETERS = dataclasses.replace(BASE, budget="parameters")

AVERAGE_RANKS = {f"r̄ = {rank}": dataclasses.replace(EQUAL_PARAMETERS, rank=rank) for rank in (1, 2, 4, 8)}
WIDE_CELLS: dict[str, Setting] = {
    **AVERAGE_RANKS,
    "r̄ = 4, warm-up 10 %": dataclasses.replace(EQUAL_PARAMETERS, warmup=0.10),
    "r̄ = 4, warm-up 50 %": dataclasses.replace(EQUAL_PARAMETERS, warmup=0.50),
    "r̄ = 4, rank budget": BASE,
}


def tuning() -> Iterator[tuple[Setting, str, int]]:
    """The runs that AdaLoRA's learning rate is chosen by."""
    yield from ((EQUAL_PARAMETERS, variant, seed) for variant in ADALORA for seed in TUNING_SEEDS)


def tuned(records: list[dict[str, Any]]) -> list[str]:
    """AdaLoRA from each start, at the learning rate with the smallest geometric mean loss over the tuning seeds."""
    losses: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record["variant"] in ADALORA and record["seed"] in TUNING_SEEDS:
            losses[record["variant"]].append(math.log(record["loss"]))
    best: dict[float, str] = {}
    for variant in sorted(losses, key=lambda variant: math.fsum(losses[variant]) / len(losses[variant])):
        best.setdefault(ADALORA[variant].start, variant)
    return [best[start] for start in sorted(best)]


def wide(adalora: Sequence[str]) -> Iterator[tuple[Setting, str, int]]:
    """Every run of the comparison of wide starts.

    Args:
        adalora: The tuned variants of AdaLoRA.
    """
    for cell, setting in WIDE_CELLS.items():
        variants = (*AT_EVERY_RANK, *adalora) if cell in AVERAGE_RANKS else AT_EVERY_RANK[:5]
        if cell == "r̄ = 4":
            variants += AT_RANK_4
        yield from ((setting, variant, seed) for variant in variants for seed in WIDE_SEEDS)


def runs() -> Iterator[tuple[Setting, str, int]]:
    """Every run of the benchmark: five seeds of everything, and then the other five."""
    for seeds in (SEEDS[:5], SEEDS[5:]):
        yield from ((BASE, variant, seed) for variant in NARROW for seed in seeds)
        for setting in CELLS.values():
            yield from ((setting, variant, seed) for variant in COMPARED for seed in seeds)


def confirmation() -> Iterator[tuple[Setting, str, int]]:
    """The runs on the unseen seeds, at the base setting and at equal parameters."""
    settings = (BASE, CELLS["parameter budget"])
    yield from ((setting, variant, seed) for variant in CONFIRMED for setting in settings for seed in UNSEEN)


def only(
    wanted: Iterator[tuple[Setting, str, int]], variants: Sequence[str] | None, settings: Sequence[str] | None
) -> Iterator[tuple[Setting, str, int]]:
    """The wanted runs of these variants at the settings of these names; None is all.

    Raises:
        SystemExit: there is no such variant or setting.
    """
    for name, known in [(v, VARIANTS) for v in variants or ()] + [(s, CELLS) for s in settings or ()]:
        if name not in known:
            raise SystemExit(f"{name!r} is not in the benchmark; choose from {', '.join(known)}")
    cells = [CELLS[name] for name in settings or CELLS]
    return (run for run in wanted if run[0] in cells and (variants is None or run[1] in variants))


def settings_of(setting: Setting) -> dict[str, Any]:
    """A setting as its records have it."""
    return dataclasses.asdict(setting)


def identity(setting: dict[str, Any], variant: str, seed: int) -> str:
    """Key of a run; warm-up and budget do not matter to a variant that does not read them."""
    if not VARIANTS[variant].reads_budget:
        setting = {name: value for name, value in setting.items() if name not in ("warmup", "budget")}
    return json.dumps([setting, variant, seed], sort_keys=True)


def run_missing(path: Path, wanted: Iterator[tuple[Setting, str, int]], limit: int | None = None) -> int:
    """Make the runs that are not in the file; returns how many were made."""
    from benchmarks.planted.training import train

    done = {identity(record["setting"], record["variant"], record["seed"]) for record in read_lines(path)}
    made = 0
    for setting, variant, seed in wanted:
        key = identity(settings_of(setting), variant, seed)
        if key in done or (limit is not None and made >= limit):
            continue
        record = train(setting, variant, seed) | {"versions": versions()}
        append_lines(path, [record])
        print(f"{variant:20} seed {seed}  loss {record['loss']:.3e}  {record['seconds']:.0f} s", flush=True)
        done.add(key)
        made += 1
    return made
