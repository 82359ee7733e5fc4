"""report.md and curves.png, from the records alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import altair as alt
from benchmarks.end_to_end.design import ARMS, RACES, RANK
from benchmarks.end_to_end.records import HERE, Records, best_rate, read
from benchmarks.interval_chart import save_picture
from benchmarks.tables import table, with_interval

from glora.experiments.records.store import write_whole
from glora.experiments.report.chart_style import LIGHT, data
from glora.experiments.report.statistics import paired_ratio
from glora.messages import pluralize

BySeed = dict[int, dict[str, Any]]


def seconds_to(record: dict[str, Any], loss: float) -> float | None:
    """Return the seconds of training until this loss, linearly between two evaluations; None if it is never reached."""
    before = None
    for _, seconds, found in record["curve"]:
        if found <= loss:
            if before is None:
                return float(seconds)
            earlier, higher = before
            return float(earlier + (seconds - earlier) * (higher - loss) / (higher - found))
        before = seconds, found
    return None


def by_arm(race: str, records: Records) -> dict[str, BySeed]:
    """Return the compared runs: arm -> seed -> record, of arms and seeds that uniform LoRA has a run beside."""
    runs: dict[str, BySeed] = {}
    for name, arm in ARMS.items():
        rate = best_rate(records, race, arm.trains_as)
        runs[name] = {
            entry.seed: record
            for entry, record in records.items()
            if (entry.arm, entry.learning_rate) == (name, rate) and entry.seed in RACES[race].seeds
        }
    return {
        name: found
        for name, seeds in runs.items()
        if (found := {seed: record for seed, record in seeds.items() if seed in runs["uniform"]})
    }


def write_report(folder: Path = HERE) -> None:
    """Write report.md and curves.png into the folder of the records.

    Raises:
        SystemExit: there are no records.
    """
    found = {race: runs for race in RACES if (runs := by_arm(race, read(race, folder)))}
    if not found:
        raise SystemExit(f"{folder} has no compared runs; run `python -m benchmarks.end_to_end run`")
    lines = [
        "# End to end: tables",
        "",
        "Made from the records by `python -m benchmarks.end_to_end report`. The goal is uniform LoRA's final held-out loss on "
        "the same seed; time is that of training, without the evaluations, and linear between two of them. "
        "Ratios are within a seed; mean and 95 % interval over seeds. Where a seed does not reach the goal, the time of its "
        "whole run is counted, and the ratio is a lower bound (≥).",
        "",
    ]
    for race, runs in found.items():
        lines += [*_table(race, runs), ""]
    write_whole(folder / "report.md", "\n".join(lines).encode())
    save_picture(
        alt.vconcat(*(_curves(race, runs) for race, runs in found.items())),
        "Held-out loss against seconds of training",
        "A line is a seed, in grey uniform LoRA's; a dot is an evaluation, which is not in the clock. "
        "The dashed line is uniform LoRA's mean final loss.",
        folder / "curves.png",
    )


def _table(race: str, runs: dict[str, BySeed]) -> list[str]:
    lora = runs["uniform"]
    goals = {seed: _final_loss(record) for seed, record in lora.items()}
    reference = {seed: seconds_to(record, goals[seed]) for seed, record in lora.items()}
    rows = []
    for name, found in runs.items():
        times = {seed: seconds_to(record, goals[seed]) for seed, record in found.items()}
        reached = sum(seconds is not None for seconds in times.values())
        counted = {seed: found[seed]["seconds"] if seconds is None else seconds for seed, seconds in times.items()}
        rows.append(
            [
                ARMS[name].label,
                f"{next(iter(found.values()))['learning_rate']:g}",
                f"{reached} of {len(found)}",
                ("" if reached == len(found) else "≥ ") + _ratio(counted, reference),
                *(
                    _ratio(*({seed: of(record) for seed, record in each.items()} for each in (found, lora)))
                    for of in (itemgetter("seconds"), _final_loss, itemgetter("peak_memory"))
                ),
            ]
        )
    ratios = [f"{each} / LoRA" for each in ("time to the goal", "whole run", "final loss", "peak memory")]
    return [f"## {race}", "", _measured(race, runs), "", *table(["", "learning rate", "reached", *ratios], rows)]


def _ratio(values: Mapping[int, float], reference: Mapping[int, float]) -> str:
    return with_interval(paired_ratio(values, reference), lambda value: f"{value:.3f}")


def _final_loss(record: dict[str, Any]) -> float:
    return float(record["curve"][-1][-1])


def _measured(race: str, runs: dict[str, BySeed]) -> str:
    every = [record for found in runs.values() for record in found.values()]
    machines = {
        f"{machine['accelerator'] or machine['cpu']}, {pluralize(machine['torch_threads'], 'thread')}"
        for machine in (record["provenance"]["machine"] for record in every)
    }
    lora = statistics.median(record["seconds"] for record in runs["uniform"].values())
    return (
        f"r̄ = {RANK:g}, {every[0]['steps']} steps, {RACES[race].held_out} held-out examples; {'; '.join(sorted(machines))}. "
        f"LoRA's run: {lora:.1f} s, peak memory {next(iter(runs['uniform'].values()))['peak_memory'] / 2**20:,.0f} MiB "
        f"({every[0]['memory_source']}). Other processes used at most {max(r['others_during'] for r in every):.2f} cores."
    )


def _curves(race: str, runs: dict[str, BySeed]) -> Any:
    """A panel for each arm, over uniform LoRA in grey; every seed is a line."""
    goal = statistics.fmean(_final_loss(record) for record in runs["uniform"].values())
    rule = alt.Chart(data([{"loss": goal}])).mark_rule(strokeDash=[4, 4], color=LIGHT["muted"]).encode(y="loss:Q")
    lora = _lines(runs["uniform"], LIGHT["muted"], opacity=0.45)
    colors = dict(zip(ARMS, LIGHT["series"]))
    panels = [
        alt.layer(rule, lora, _lines(found, colors[name], opacity=0.9)).properties(width=300, height=170, title=title)
        for name, found in runs.items()
        if name != "uniform"
        for title in [f"{race}: {ARMS[name].label}"]
    ]
    return alt.concat(*panels, columns=2)


def _lines(found: BySeed, color: str, opacity: float) -> alt.Chart:
    rows = [
        {"seed": seed, "seconds": seconds, "loss": loss}
        for seed, record in found.items()
        for _, seconds, loss in record["curve"]
    ]
    return (
        alt.Chart(data(rows))
        .mark_line(
            point=alt.OverlayMarkDef(size=14, color=color, opacity=opacity),
            strokeWidth=1.2,
            color=color,
            opacity=opacity,
        )
        .encode(
            x=alt.X("seconds:Q", title="seconds of training"),
            y=alt.Y("loss:Q", title="held-out loss", scale=alt.Scale(type="log", nice=False, zero=False)),
            detail="seed:N",
        )
    )
