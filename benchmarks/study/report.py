"""report.md and the pictures, from the records alone."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair as alt
from benchmarks.interval_chart import save_picture
from benchmarks.study.analysis import BySeed, Comparison, by_seed, compare, family, holm, pool
from benchmarks.study.design import ARMS, TASKS
from benchmarks.study.records import HERE, Records, best_rate, read
from benchmarks.tables import fill, table, with_interval

from glora.experiments.records.store import write_whole
from glora.experiments.report.chart_style import LIGHT, data

NAMES = {"sst2": "SST-2", "gsm8k": "GSM8K", "retrieval": "retrieval", "stdlib-docs": "stdlib-docs"}
SCORES = {"sst2": "accuracy", "stdlib-docs": "accuracy", "retrieval": "mean reciprocal rank"}


def write_report(folder: Path = HERE, page: Path | None = None) -> None:
    """Write report.md and frontier.png into the folder of the records, and the table of a page between its marks.

    Raises:
        SystemExit: there are no records.
    """
    found = {task: records for task in TASKS if (records := read(task, folder))}
    if not found:
        raise SystemExit(f"{folder} has no records; run `python -m benchmarks.study run`")
    if page is not None:
        made = fill(page.read_text(encoding="utf-8"), "benchmarks/study/report.py", "\n".join(summary(found)))
        page.write_text(made, encoding="utf-8")
    families = {task: family(task, records) for task, records in found.items()}
    lines = [
        "# The study: tables",
        "",
        "Made from the records by `python -m benchmarks.study report`; [the design](../../docs/study-design.md) was written "
        "before the first run. Loss is the held-out loss; differences are paired by seed, with 95 % intervals.",
        "",
        *_over_tasks(families),
    ]
    for task, records in found.items():
        lines += [f"## {task}", "", *_progress(task, records), "", *_family(families[task])]
        for size in TASKS[task].sizes:
            for rate_of in (None, "uniform", "spectrum"):
                lines += _size(task, size, records, rate_of)
            lines += _described(task, size, records)
    write_whole(folder / "report.md", "\n".join(lines).encode())
    if panels := [panel for task, records in found.items() if (panel := _frontier(task, records)) is not None]:
        save_picture(
            alt.hconcat(*panels),
            "Held-out loss against the size of the adapter",
            "Relative to uniform LoRA of average rank 2 on the same seed; mean and 95 % interval over seeds; lower is better.",
            folder / "frontier.png",
        )


def summary(found: dict[str, Records]) -> list[str]:
    """Return README's table: the held-out loss against uniform LoRA at the same size, where three seeds have it."""
    arms = {
        "spectrum": "train wide, cut once",
        "uniform_cut": "the same, one rank for all",
        "compressed": "LoRA r × 4, then `glora compress`",
        "wide": "LoRA r × 4, four times as large",
    }
    rows = []
    for task, records in found.items():
        for size in TASKS[task].sizes:
            for rate_of, rates in ((None, "rates tuned"), ("spectrum", "one learning rate")):
                lora = by_seed(records, task, "uniform", size, rate_of=rate_of)
                cells = []
                for arm in arms:
                    mine = by_seed(records, task, arm, size, rate_of=rate_of) if size in ARMS[arm].sizes else {}
                    each = compare(task, size, arm, "uniform", mine, lora)
                    cells.append("" if each is None or each.p is None else _ratio(each))
                if any(cells):
                    rows.append([f"{NAMES[task]}, r = {size:g}, {rates}, {len(lora)} seeds", *cells])
    return table(["", *arms.values()], rows)


def _progress(task: str, records: Records) -> Iterator[str]:
    environments = {tuple(record["environment"].items()) for record in records.values()}
    processors = sorted({dict(each)["processor"] for each in environments})
    runs = sum(not compressed for _, compressed in records)
    yield f"{runs} runs, on {', '.join(processors)}, one thread each."


def _family(comparisons: list[Comparison]) -> Iterator[str]:
    if not comparisons:
        return
    yield "Prespecified comparisons, with Holm's correction:"
    yield ""
    rows = [
        [
            f"{each.size:g}",
            _named(each.arm, each.other),
            len(each.log_loss.seeds),
            _ratio(each),
            "" if p is None else f"{p:.3f}",
            f"±{100 * math.expm1(each.log_loss.smallest):.1f} %" if each.log_loss.smallest else "",
            "[{}, {}]".format(*map(_percent, each.by_examples)),
            _points(each),
            _verdict(each, p),
        ]
        for each, p in zip(comparisons, holm([each.p for each in comparisons]))
    ]
    columns = ["comparison", "seeds", "loss", "p, corrected", "smallest effect", "over examples", "score, points"]
    yield from table(["r̄", *columns, "verdict"], rows)
    yield ""


def _named(arm: str, other: str) -> str:
    return f"{ARMS[arm].label} against {ARMS[other].label}"


def _verdict(each: Comparison, p: float | None) -> str:
    if p is None:
        return "too few seeds"
    if p >= 0.05:
        return "no difference shown"
    return "lower loss" if each.log_loss.mean < 0 else "higher loss"


def _size(task: str, size: float, records: Records, rate_of: str | None) -> Iterator[str]:
    arms = [arm for arm in TASKS[task].arms if size in ARMS[arm].sizes]
    runs: dict[str, BySeed] = {
        arm: found for arm in arms if (found := by_seed(records, task, arm, size, rate_of=rate_of))
    }
    if not runs or (rate_of and len(runs) < 2):
        return
    rates = {arm: best_rate(records, task, rate_of or arm, size) for arm in runs}
    at = f"all at the learning rate of {ARMS[rate_of].label}" if rate_of else "each at its own learning rate"
    yield f"### r̄ = {size:g}, {at}"
    yield ""
    score = SCORES.get(task)
    rows = []
    for arm, found in runs.items():
        against = compare(task, size, arm, "uniform", found, runs.get("uniform", {})) if arm != "uniform" else None
        cells = [ARMS[arm].label, f"{rates[arm]:g}", len(found), f"{_mean(found, 'parameters'):,.0f}"]
        cells += [_spread(found, "loss", 4), _ratio(against)]
        cells += [_spread(found, "score", 2, 100), _points(against)] if score else []
        rows.append([*cells, f"{_mean(found, 'seconds'):.0f}"])
    columns = ["arm", "learning rate", "seeds", "parameters", "loss", "against uniform LoRA"]
    yield from table([*columns, *([score, "points"] if score else []), "s"], rows)
    yield ""


def _described(task: str, size: float, records: Records) -> Iterator[str]:
    """Yield the cost of compressing, and the gain of uniform LoRA by the learning rate of spectrum."""
    own = {arm: by_seed(records, task, arm, size) for arm in ("uniform", "wide", "compressed")}
    pairs = {
        "Compressed to r̄ against before": ("compressed", "wide", own["compressed"], own["wide"]),
        "Uniform LoRA at spectrum's learning rate against its own": (
            "uniform",
            "uniform",
            by_seed(records, task, "uniform", size, rate_of="spectrum"),
            own["uniform"],
        ),
    }
    for what, (arm, other, mine, theirs) in pairs.items():
        each = compare(task, size, arm, other, mine, theirs) if mine else None
        if each is not None and mine != theirs:
            yield f"- {what}, {len(each.log_loss.seeds)} seeds: loss {_ratio(each)}" + (
                f", score {_points(each)} points" if task in SCORES else ""
            )
    yield ""


def _over_tasks(families: dict[str, list[Comparison]]) -> Iterator[str]:
    every = list(itertools.chain.from_iterable(families.values()))
    rows = []
    for key in dict.fromkeys((each.arm, each.other, each.size) for each in every):
        pooled = pool([each for each in every if (each.arm, each.other, each.size) == key])
        if pooled:
            arm, other, size = key
            loss = with_interval(pooled, lambda value: _percent(math.expm1(value)))
            rows.append([f"{size:g}", _named(arm, other), loss, ", ".join(pooled.tasks)])
    if rows:
        yield from ("## Over tasks", "", *table(["r̄", "comparison", "loss", "tasks"], rows), "")


def _frontier(task: str, records: Records) -> Any | None:
    reference = by_seed(records, task, "uniform", 2.0)
    rows = []
    for arm in ("uniform", "spectrum", "uniform_cut", "compressed", "gradient_norm"):
        for size in TASKS[task].sizes:
            found = by_seed(records, task, arm, size) if size in ARMS[arm].sizes else {}
            each = compare(task, size, arm, "uniform", found, reference)
            if each:
                ends = [each.log_loss.low, each.log_loss.high]
                low, high = (None if end is None else 100 * math.expm1(end) for end in ends)
                middle = 100 * math.expm1(each.log_loss.mean)
                rows.append(
                    {
                        "arm": ARMS[arm].label,
                        "parameters": _mean(found, "parameters"),
                        "loss": middle,
                        "low": low,
                        "high": high,
                    }
                )
    if not rows:
        return None
    names = list(dict.fromkeys(row["arm"] for row in rows))
    color = alt.Color(
        "arm:N", title=None, sort=names, scale=alt.Scale(domain=names, range=list(LIGHT["series"][: len(names)]))
    )
    marks = alt.Chart(data(rows)).encode(
        x=alt.X("parameters:Q", title="adapter parameters", scale=alt.Scale(type="log")), color=color
    )
    bars = marks.mark_rule().encode(y=alt.Y("low:Q", title="loss against uniform LoRA, r̄ = 2 (%)"), y2="high:Q")
    return alt.layer(bars, marks.mark_line(point=True).encode(y="loss:Q")).properties(width=300, height=260, title=task)


def _mean(found: BySeed, name: str) -> float:
    return statistics.fmean(record[name] for record in found.values())


def _spread(found: BySeed, name: str, digits: int, scale: float = 1) -> str:
    values = [scale * record[name] for record in found.values()]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %".replace("-", "−")


def _ratio(each: Comparison | None) -> str:
    return with_interval(each and each.log_loss, lambda value: _percent(math.expm1(value)))


def _points(each: Comparison | None) -> str:
    return with_interval(each and each.score, lambda value: f"{100 * value:+.2f}").replace("-", "−")
