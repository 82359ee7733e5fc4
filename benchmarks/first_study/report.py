"""The study's tables over all tasks and its picture, from the records alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import altair as alt
from benchmarks.first_study.best_case import SEARCH_SEEDS, kind_of, layer_of
from benchmarks.first_study.comparison import (
    Comparison,
    Runs,
    agreement_of_seeds,
    agreement_of_tasks,
    by_task,
    compare,
    log_loss,
    mean_ranks,
    metric,
)
from benchmarks.interval_chart import interval, interval_panel, save_picture
from benchmarks.tables import fill, percent, table, with_interval

from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import read_records
from glora.experiments.report.statistics import PairedDifference, estimate, paired_difference

TASKS = ("cola", "rte", "sst-2")
"""Folders of the records, in the order of the tables."""

ONE_RATE = 1.5e-3
"""Of the runs that are compared at one learning rate."""

QUESTIONS = (
    ("Is it the matrices that the norm chose, or only unequal ranks?", "glora", "shuffled"),
    ("Is it the ranks, or the parameters that they cost?", "glora", "lora:total_rank=93"),
    ("Does the raw norm of B's gradient do as well?", "glora:signal=lora_b", "glora"),
    ("Norms relative to the weights?", "glora:budget=parameters:relative_to=weight", "glora:budget=parameters"),
    ("AdaLoRA or GLoRA?", "glora", "adalora"),
)
NAMES = {
    "lora": "uniform LoRA",
    "lora:total_rank=93": "uniform LoRA, 93 ranks",
    "adalora": "AdaLoRA",
    "glora": "GLoRA as published",
    "shuffled": "its ranks shuffled",
    "glora:signal=lora_b": 'GLoRA, `signal="lora_b"`',
    "glora:budget=parameters": 'GLoRA, `budget="parameters"`',
    "glora:budget=parameters:relative_to=weight": 'the same, `relative_to="weight"`',
}
AGAINST_LORA = tuple(NAMES)[1:]


def write_report(folder: Path, page: Path | None = None) -> None:
    """Write report.md and study.png into the folder of the records, and the tables of docs/first-study.md between its marks.

    Raises:
        SystemExit: there are no records.
    """
    tuned = [record for task in TASKS for record in _records(folder / task)]
    runs = by_task(tuned)
    if not runs:
        raise SystemExit(f"{folder} has no records; README.md says how to make them")
    lines = [
        "# The study on real tasks",
        "",
        "Made from the records by `python -m benchmarks.first_study report`. Each method has the learning rate found for it.",
        "Metric: accuracy, for CoLA Matthews correlation, times 100. Loss: on the evaluation split after the last step.",
        "Differences are paired by seed, with 95 % intervals (Student's t); over all tasks, pairs are of one task and seed.",
        "",
        "## Each method",
        "",
        *_results(runs),
        "",
        "## Against uniform LoRA",
        "",
        *_comparisons([(method, compare(runs, method, "lora")) for method in AGAINST_LORA]),
    ]
    lines += _questions(runs)
    more = [record for task in TASKS for record in _records(folder / f"{task}-one-rate")]
    at_one_rate = by_task([record for record in (*tuned, *more) if record.config.learning_rate == ONE_RATE])
    if more:
        lines += [
            "",
            f"## At one learning rate, {ONE_RATE:g}",
            "",
            "What a search finds with one seed is partly luck, and two methods with two rates differ by the rates too. Here",
            "all have the same one; runs that the search had not made with it were made besides.",
            "",
            *_results(at_one_rate),
            "",
            *_comparisons([(method, compare(at_one_rate, method, "lora")) for method in AGAINST_LORA]),
            *_questions(at_one_rate, "###"),
        ]
    lines += ["", "## Where the ranks go", "", *_where(runs)]
    if (folder / "best-case" / "best.json").is_file():
        lines += ["", "## The best allocation that a search finds", "", *_best_case(folder / "best-case")]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _draw(runs, at_one_rate if more else {}, folder / "study.png")
    if page is not None:
        made = f"\n{summary(runs, at_one_rate)}\n"
        page.write_text(
            fill(page.read_text(encoding="utf-8"), "benchmarks/first_study/report.py", made), encoding="utf-8"
        )


def summary(tuned: Runs, at_one_rate: Runs) -> str:
    """The two tables of docs/first-study.md."""
    one, own = [], []
    for method, name in NAMES.items():
        rows = compare(at_one_rate, method, "lora") if method != "lora" else []
        over_all = ["", ""]
        if rows:
            last = rows[-1]
            over_all = [
                f"{_points(last.metric)}, {len(last.metric.seeds)} pairs",
                with_interval(last.training_loss, percent),
            ]
        one.append(_minus([name, *_cells(at_one_rate, method, tuned), *over_all]))
        own.append(_minus([name, *_cells(tuned, method, tuned, rate=True)]))
    lines = [
        f"At one learning rate, {ONE_RATE * 1e3:g}e-3: accuracy, for CoLA Matthews correlation, times 100; behind it the "
        "difference to uniform LoRA.",
        "",
        *table(["", "parameters", *tuned, "all: metric", "all: training loss"], one),
        "",
        "Each at the learning rate that its tuning found:",
        "",
        *table(["", "parameters", *tuned], own),
    ]
    return "\n".join(lines)


def _cells(runs: Runs, method: str, tasks: Iterable[str], *, rate: bool = False) -> list[str]:
    """The adapter's parameters, LoRA's = 1, and for each task the metric and its difference to LoRA's."""
    sizes = [
        (record.adapter_parameters_after or 0) / (uniform.adapter_parameters_after or 1)
        for of in runs.values()
        for record, uniform in zip(of.get(method, {}).values(), of["lora"].values())
    ]
    cells = [f"{estimate(sizes).mean:.2f}" if sizes else ""]
    for task in tasks:
        of = list(runs.get(task, {}).get(method, {}).values())
        value = _result(of)[1] if of else ""
        rows = compare({task: runs[task]}, method, "lora") if of and method != "lora" else []
        value += f"; {_points(rows[0].metric)}" if rows else ""
        cells.append(value + (f" at {of[0].config.learning_rate * 1e3:g}e~3" if rate and of else ""))
    return cells


def _minus(cells: Iterable[str]) -> list[str]:
    return [cell.replace("-", "−").replace("e~3", "e-3") for cell in cells]


def _records(folder: Path) -> list[RunRecord]:
    return read_records(folder) if folder.is_dir() else []


def _questions(runs: Runs, heading: str = "##") -> list[str]:
    lines = []
    for question, method, other in QUESTIONS:
        rows = compare(runs, method, other)
        if rows:
            lines += ["", f"{heading} {question}", "", *_comparisons([(f"{method} against {other}", rows)])]
    return lines


def _results(runs: Runs) -> list[str]:
    rows = [
        [task, f"`{method}`", *_result(of := list(methods[method].values())), len(of)]
        for task, methods in runs.items()
        for method in ("lora", *AGAINST_LORA)
        if method in methods
    ]
    return table(["task", "method", "learning rate", "metric", "loss", "training loss", "parameters", "seeds"], rows)


def _result(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    rates = sorted({record.config.learning_rate for record in runs})
    of_metric = estimate([metric(record) for record in runs])
    spread = "" if of_metric.sd is None else f" ± {of_metric.sd:.1f}"
    last = [record.metrics[-1] for record in runs]
    return (
        ", ".join(f"{rate:g}" for rate in rates),
        f"{of_metric.mean:.1f}{spread}",
        f"{estimate([m.loss or math.nan for m in last]).mean:.3f}",
        f"{estimate([m.train_loss or math.nan for m in last]).mean:.3f}",
        f"{estimate([float(record.adapter_parameters_after or 0) for record in runs]).mean:,.0f}",
    )


def _comparisons(rows: Sequence[tuple[str, Sequence[Comparison]]]) -> list[str]:
    cells = [
        [
            name,
            each.task or "all",
            _points(each.metric),
            with_interval(each.loss, percent),
            with_interval(each.training_loss, percent),
            f"{each.parameters:.2f}",
            len(each.metric.seeds),
        ]
        for name, comparisons in rows
        for each in comparisons
    ]
    return table(["", "task", "metric", "loss", "training loss", "parameters", "pairs"], cells)


def _where(runs: Runs) -> list[str]:
    methods = [m for m in AGAINST_LORA if m.startswith("glora") and any(m in of for of in runs.values())]
    kinds = list(
        dict.fromkeys(kind for of in runs.values() if "glora" in of for kind in mean_ranks(of["glora"], kind_of))
    )
    layers = sorted({layer for of in runs.values() if "glora" in of for layer in mean_ranks(of["glora"], layer_of)})
    columns = [f"`{kind}`" for kind in kinds] + [f"layer {layer}" for layer in layers]
    rows = []
    for task, of in runs.items():
        for method in [m for m in methods if m in of]:
            by_kind, by_layer = (mean_ranks(of[method], part) for part in (kind_of, layer_of))
            agree = agreement_of_seeds(of[method])
            cells = [f"{by_kind[kind]:.1f}" for kind in kinds] + [f"{by_layer[layer]:.1f}" for layer in layers]
            rows.append([task, f"`{method}`", *cells, "" if agree is None else f"{agree:.2f}"])
    lines = [
        *table(["task", "method", *columns, "seeds agree"], rows),
        "",
        "Mean ranks over layers or kinds, and seeds; uniform LoRA has 2 everywhere. Seeds agree: mean Spearman correlation of",
        "the ranks of two seeds.",
    ]
    for method in methods:
        found = agreement_of_tasks(runs, method)
        if found:
            texts = [f"{a} and {b} {value:.2f}" for (a, b), value in found.items()]
            lines += ["", f"The ranks of two tasks, `{method}`, Spearman: {', '.join(texts)}."]
    return lines


def _best_case(folder: Path) -> list[str]:
    best = json.loads((folder / "best.json").read_text(encoding="utf-8"))["best"]
    records = [record for record in read_records(folder) if record.status == "finished"]
    searched = {r.config.method: r for r in records if r.config.held_out and r.config.seed in SEARCH_SEEDS}
    order = sorted(searched, key=lambda method: log_loss(searched[method]))
    final: dict[str, dict[int, RunRecord]] = {"uniform": {}, best: {}}
    for record in records:
        if not record.config.held_out and record.config.method in final:
            final[record.config.method][record.config.seed] = record
    differences = [
        paired_difference(*({seed: of(run) for seed, run in final[method].items()} for method in (best, "uniform")))
        for of in (metric, log_loss)
    ]
    losses = [math.exp(log_loss(run)) for run in searched.values()]
    uniform = order.index("uniform") + 1
    points, loss = _points(differences[0]), with_interval(differences[1], percent)
    return [
        f"{len(searched) - 1} drawn allocations of equal parameters, SST-2, one epoch of 1,500 examples, judged by the loss on",
        f"1,000 others. Of the {len(searched)} with one seed, uniform LoRA is number {uniform} by its loss; they reach from",
        f"{min(losses):.3f} to {max(losses):.3f}.",
        "",
        f"The best after three seeds, `{best}`, against uniform LoRA with {len(final[best])} new seeds, on 2,500 examples and",
        f"the task's own split: metric {points} points, loss {loss}.",
    ]


def _points(found: PairedDifference | None) -> str:
    return with_interval(found, lambda value: f"{value:+.1f}")


def _draw(tuned: Runs, at_one_rate: Runs, path: Path) -> None:
    panels: list[tuple[str, Runs, Callable[[Comparison], PairedDifference], Callable[[float], float]]] = [
        ("metric (points), rates as found", tuned, lambda each: each.metric, lambda value: value)
    ]
    if at_one_rate:
        panels += [
            ("metric (points), one rate", at_one_rate, lambda each: each.metric, lambda value: value),
            ("training loss (%), one rate", at_one_rate, lambda each: each.training_loss, _in_percent),
        ]
    methods = [m for m in AGAINST_LORA if any(m in of for of in tuned.values())]
    tasks: list[str | None] = [*tuned, *([None] if len(tuned) > 1 else [])]
    detail = (
        "Each method against uniform LoRA of rank 2, paired by seed, with 95 % intervals. Of a metric, right of zero is "
        f"better; of a loss, left of it. One learning rate: {ONE_RATE:g} for all."
    )
    shown = []
    for title, runs, of, scale in panels:
        found = [(method, {each.task: each for each in compare(runs, method, "lora")}) for method in methods]
        rows = [
            interval(method, task or "all", of(compared[task]), scale)
            for method, compared in found
            for task in tasks
            if task in compared
        ]
        shown.append(interval_panel(rows, title, [task or "all" for task in tasks], width=230))
    chart = alt.hconcat(*shown).resolve_scale(y="shared")
    save_picture(chart, "Real tasks: what an allocation is worth", detail, path)


def _in_percent(log_ratio: float) -> float:
    return 100 * math.expm1(log_ratio)
