"""report.md, from records.jsonl: `python -m benchmarks.compress.report`."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.compress.measure import RANK, RECORDS, SETTINGS
from benchmarks.records import read_lines
from benchmarks.tables import with_interval

from glora.experiments.records.store import write_whole
from glora.experiments.report.statistics import paired_difference

WAYS = {
    "global": "`compress_adapter`",
    "uniform": "the same rank everywhere (`uniform=True`; PEFT's `convert_to_lora` with an int)",
    "share": "the same share of energy in every matrix (PEFT's `convert_to_lora` with a float)",
    "first": "the first columns",
    "trained": "trained at that size",
    "faster": "trained at that size, twice the learning rate",
}
Values = dict[int, float]


ABOUT = {
    "sst2": "all-MiniLM-L6-v2 on SST-2: 2,500 examples, two epochs; measured on about 5,000 other sentences of the same file",
    "rte": "all-MiniLM-L6-v2 on RTE: all 2,490 examples, four epochs; measured on the 277 of the development split",
    "gsm8k": "SmolLM2-135M-Instruct on GSM8K: 160 problems, one epoch; measured by the answers' loss on 100 test problems",
}


def report(records: list[dict[str, Any]]) -> str:
    """Everything, task by task."""
    lines = [
        "# A smaller adapter: ways compared at equal size",
        "",
        f"Made from `records.jsonl` by `python -m benchmarks.compress.report`. LoRA, r = {RANK}. Each figure is the change",
        "against the adapter before, seed by seed: the mean and, in brackets, its 95 % interval (Student's t). A lower loss is",
        "better.",
        "",
    ]
    for task in SETTINGS:
        if found := [record for record in records if record["task"] == task]:
            lines += _task(task, found)
    return "\n".join(lines)


def _task(task: str, records: list[dict[str, Any]]) -> list[str]:
    """The tables of a task and what they were made from."""
    cells: dict[tuple[str, float], dict[str, Values]] = {}
    for record in records:
        cell = cells.setdefault((record["way"], record["size"]), {})
        for name in ("loss", "accuracy", "parameters", "energy"):
            if record.get(name) is not None:
                cell.setdefault(name, {})[record["seed"]] = record[name]
    before = cells["before", 1.0]
    seeds = ", ".join(map(str, sorted(before["loss"])))
    accuracy = f"accuracy {100 * statistics.fmean(before['accuracy'].values()):.2f} %, " if "accuracy" in before else ""
    lines = [
        f"## {task}",
        "",
        f"{ABOUT[task]}.",
        f"Learning rate {SETTINGS[task].settings['learning_rate']:g}, seeds {seeds}. Before: {accuracy}loss "
        f"{statistics.fmean(before['loss'].values()):.4f}.",
        "",
        "| size | way | parameters | energy kept | loss | accuracy (points) | seeds |",
        "|---|---|---:|---:|---|---|---:|",
    ]
    cuts = [(size, way) for size in SETTINGS[task].sizes for way in WAYS if (way, size) in cells]
    lines += [_row(size, WAYS[way], cells[way, size], before) for size, way in cuts]
    lines += [
        "",
        "`compress_adapter` minus the other way, seed by seed:",
        "",
        "| size | other way | loss | accuracy (points) | seeds |",
        "|---|---|---|---|---:|",
    ]
    for size, way in cuts:
        if way != "global":
            loss, accuracy, seeds = _changes(cells["global", size], cells[way, size])
            lines.append(f"| {100 * size:g} % | {WAYS[way]} | {loss} | {accuracy} | {seeds} |")
    return [*lines, ""]


def _changes(cell: dict[str, Values], reference: dict[str, Values]) -> tuple[str, str, int]:
    """Return the differences of loss and accuracy as text, and the number of seeds that both have."""
    found = [paired_difference(cell.get(name, {}), reference.get(name, {})) for name in ("loss", "accuracy")]
    loss = with_interval(found[0], lambda value: f"{value:+.4f}")
    accuracy = with_interval(found[1], lambda value: f"{100 * value:+.2f}")
    return loss, accuracy, len(cell["loss"].keys() & reference["loss"].keys())


def _row(size: float, way: str, cell: dict[str, Values], before: dict[str, Values]) -> str:
    loss, accuracy, seeds = _changes(cell, before)
    energy = f"{100 * statistics.fmean(cell['energy'].values()):.1f} %" if "energy" in cell else ""
    parameters = f"{statistics.fmean(cell['parameters'].values()):,.0f}"
    return f"| {100 * size:g} % | {way} | {parameters} | {energy} | {loss} | {accuracy} | {seeds} |"


if __name__ == "__main__":
    write_whole(RECORDS.with_name("report.md"), report(read_lines(RECORDS)))
