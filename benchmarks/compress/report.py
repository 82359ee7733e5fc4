"""report.md, from records.jsonl: `python -m benchmarks.compress.report`."""

from __future__ import annotations

import json
import statistics
from typing import Any

from benchmarks.compress.measure import RANK, RECORDS, SIZES, TRAINED_ON

from glora.experiments.records.store import write_whole
from glora.experiments.report.statistics import PairedDifference, paired_difference

WAYS = {
    "global": "`compress_adapter`",
    "uniform": "the same rank everywhere (`uniform=True`; PEFT's `convert_to_lora` with an int)",
    "share": "the same share of energy in every matrix (PEFT's `convert_to_lora` with a float)",
    "first": "the first columns",
    "trained": "trained at that size",
}
Values = dict[int, float]


def report(records: list[dict[str, Any]]) -> str:
    """The table and what it was made from."""
    cells: dict[tuple[str, float], dict[str, Values]] = {}
    for record in records:
        cell = cells.setdefault((record["way"], record["size"]), {})
        for name in ("loss", "accuracy", "parameters", "energy"):
            if record[name] is not None:
                cell.setdefault(name, {})[record["seed"]] = record[name]
    before = cells["before", 1.0]
    seeds = ", ".join(map(str, sorted(before["loss"])))
    accuracy, loss = (statistics.fmean(before[name].values()) for name in ("accuracy", "loss"))
    lines = [
        "# A smaller adapter: ways compared at equal size",
        "",
        f"Made from `records.jsonl` by `python -m benchmarks.compress.report`. LoRA, r = {RANK}, all-MiniLM-L6-v2, SST-2,",
        f"{TRAINED_ON:,} examples, two epochs, learning rate 1.5e-3, seeds {seeds}; measured on other sentences of the same",
        f"file, about 5,000. Before: accuracy {100 * accuracy:.2f} %, loss {loss:.4f}.",
        "",
        "Each figure is the change against the adapter before, seed by seed: the mean and, in brackets, its 95 % interval",
        "(Student's t). A lower loss is better.",
        "",
        "| size | way | parameters | energy kept | loss | accuracy (points) | seeds |",
        "|---|---|---:|---:|---|---|---:|",
    ]
    cuts = [(size, way) for size in SIZES for way in WAYS if (way, size) in cells]
    lines += [_row(size, WAYS[way], cells[way, size], before) for size, way in cuts]
    lines += [
        "",
        "## `compress_adapter` against the other ways",
        "",
        "The same figures for `compress_adapter` minus the other way, seed by seed.",
        "",
        "| size | other way | loss | accuracy (points) | seeds |",
        "|---|---|---|---|---:|",
    ]
    for size, way in cuts:
        if way != "global":
            loss, accuracy, seeds = _changes(cells["global", size], cells[way, size])
            lines.append(f"| {100 * size:g} % | {WAYS[way]} | {loss} | {accuracy} | {seeds} |")
    return "\n".join([*lines, ""])


def _changes(cell: dict[str, Values], reference: dict[str, Values]) -> tuple[str, str, int]:
    """Return the differences of loss and accuracy as text, and the number of seeds that both have."""
    found = [paired_difference(cell[name], reference[name]) for name in ("loss", "accuracy")]
    texts = [_text(each, scale, digits) for each, scale, digits in zip(found, (1, 100), (4, 2))]
    return texts[0], texts[1], len(cell["loss"].keys() & reference["loss"].keys())


def _row(size: float, way: str, cell: dict[str, Values], before: dict[str, Values]) -> str:
    loss, accuracy, seeds = _changes(cell, before)
    energy = f"{100 * statistics.fmean(cell['energy'].values()):.1f} %" if "energy" in cell else ""
    parameters = f"{statistics.fmean(cell['parameters'].values()):,.0f}"
    return f"| {100 * size:g} % | {way} | {parameters} | {energy} | {loss} | {accuracy} | {seeds} |"


def _text(found: PairedDifference | None, scale: float, digits: int) -> str:
    if found is None:
        return ""
    text = f"{scale * found.mean:+.{digits}f}"
    if found.low is None or found.high is None:
        return text
    return f"{text} [{scale * found.low:+.{digits}f}, {scale * found.high:+.{digits}f}]"


if __name__ == "__main__":
    found = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    write_whole(RECORDS.with_name("report.md"), report(found))
