"""report.md, from the records and from counting alone."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import Any

from benchmarks.signal.cost import MINILM, SEVEN_B, count
from benchmarks.tables import table

Key = tuple[Any, ...]  # the fields of an Estimate


def report(records: list[dict[str, Any]], times: dict[str, Any]) -> str:
    """The tables."""
    records = sorted(records, key=lambda r: (r["setting"]["task"], r["steps"], r["seed"]))
    cells: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        cells[record["setting"]["task"], record["steps"]].append(record)
    return "\n".join(
        [
            "# The budget that each signal misplaces",
            "",
            "Made from `records.jsonl` by `python -m benchmarks.signal.measure report`. all-MiniLM-L6-v2, 36 matrices, rank 8,",
            "alpha 16, AdamW with a constant learning rate of 2e-4, 16 pairs a batch, β = 0.9, rank budget 288. pairs: does",
            "RTE's second text belong to the first, or to that of another example? 40 tokens a pair; rte: 64 tokens.",
            "",
            "Misplaced: ½·Σ|r_k − r*_k| / 288, where r* are the ranks by the exact ‖∂L/∂Δ‖_F of every step. One figure a seed;",
            "of a sketch the mean over independent draws of Ω and, in brackets, the worst draw of all seeds.",
            "",
            *_misplaced(cells),
            "",
            "## Two seeds agree",
            "",
            "Spearman's correlation of the ranks that the exact norm gives to two seeds, for each pair of seeds.",
            "",
            *_agreement(cells),
            "",
            "## What the norm follows",
            "",
            "R² over the 36 matrices of log g_k on the logarithms of the norms of the layer's input X and of its output's",
            "gradient dY, averaged as g_k is. One figure a seed.",
            "",
            *_explained(cells),
            "",
            "## Counted cost of a measured step",
            "",
            "Added to LoRA's step (rank 8; attention and the optimizer not counted). Divide by m for a measurement at every",
            "m-th step. Read: activations read once more, as a share of what the products with W, A and B read and write.",
            "",
            *_cost(),
            "",
            "## Timed",
            "",
            f"Step time relative to PEFT LoRA without an allocator, measured side by side in {times['rounds']} rounds: median",
            f"and quartiles. all-MiniLM-L6-v2, rank 8, 16 × 40 tokens, {times['processor']}, threads: {times['threads']}. Made",
            "by `python -m benchmarks.signal.measure cost --threads 1`, kept in `step_times.json`.",
            "",
            *_timed(times),
            "",
        ]
    )


def _label(key: Key) -> str:
    what, k, m, last = key
    if what in ("expected", "raw"):
        return {"expected": "√d_in/‖A‖ (A taken for random)", "raw": "‖∂L/∂B‖ itself (`lora_b`)"}[what]
    text = "exact ratio" if k is None else f"Ω with k = {k}"
    when = "every step" if m == 1 else f"every {m}th step" if m > 2 else "every 2nd step"
    if last is not None:
        when += f" of the last {last}"
    default = {("sketch", 8, 1, 30): " (`delta`)", ("ratio", None, 16, None): " (`delta_exact`)"}
    return f"{text}, {when}{default.get(key, '')}"


def _misplaced(cells: dict[tuple[str, int], list[dict[str, Any]]]) -> list[str]:
    found: dict[Key, dict[tuple[str, int], list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for cell, records in cells.items():
        for record in records:
            for *key, mean, worst in record["misplaced"]:
                found[tuple(key)][cell].append((mean, worst))
    rows = []
    for key, of_cells in found.items():
        row = [_label(key)]
        for cell in cells:
            figures = of_cells.get(cell, [])
            text = " ".join(f"{100 * mean:.1f}" for mean, _ in figures)
            worst = f" ({100 * max(w for _, w in figures):.1f})" if figures and key[1] is not None else ""
            row.append(f"{text}{worst} %" if figures else "")
        rows.append(row)
    return table(["ratio ‖G‖/‖G·Aᵀ‖ by", *(f"{task}, {steps} steps" for task, steps in cells)], rows)


def _agreement(cells: dict[tuple[str, int], list[dict[str, Any]]]) -> list[str]:
    from scipy.stats import spearmanr

    from glora import allocate_ranks

    rows = []
    for (task, steps), records in cells.items():
        of_beta = []
        for beta in ("0.9", "0.98", "mean"):
            ranks = [
                [*allocate_ranks(dict(zip(r["names"], r["exact"][beta])), 8 * len(r["names"])).values()]
                for r in records
            ]
            of_beta.append(", ".join(f"{spearmanr(a, b).statistic:.2f}" for a, b in combinations(ranks, 2)))
        if len(records) > 1:
            rows.append([task, steps, *of_beta])
    return table(["task", "steps", "β = 0.9", "β = 0.98", "plain mean"], rows)


def _explained(cells: dict[tuple[str, int], list[dict[str, Any]]]) -> list[str]:
    rows = []
    for (task, steps), records in cells.items():
        found = [record["explained"] for record in records if "explained" in record]
        of = [", ".join(f"{one[by]:.2f}" for one in found) for by in ("input", "output", "both")]
        if found:
            rows.append([task, steps, *of])
    return table(["task", "steps", "‖X‖", "‖dY‖", "both"], rows)


def _cost() -> list[str]:
    rows = []
    for name, shapes, tokens, size in (("MiniLM", MINILM, 1024, 4), ("7B decoder", SEVEN_B, 4096, 2)):
        for what, k in (*(("sketch", k) for k in (1, 4, 8)), ("exact", 0)):
            one = count(what, shapes, tokens, 8, k, size)
            title = "G itself" if what == "exact" else f"sketch, k = {k}"
            shares = f"+{one.multiplications:.1%}", f"+{one.read:.1%}"
            rows.append([name, f"{tokens:,}", title, *shares, _bytes(one.kept), _bytes(one.sent)])
    return table(["model", "tokens a step", "measured", "multiplications", "read", "kept", "sent"], rows)


def _timed(times: dict[str, Any]) -> list[str]:
    passes = times["forward_passes"]
    rows = [
        [signal, *("{:.3f} [{:.3f}, {:.3f}]".format(*of["ratios"][signal]) for of in passes.values())]
        for signal in next(iter(passes.values()))["ratios"]
    ]
    return table(["signal", *(f"{name}, {of['lora_ms']} ms a step" for name, of in passes.items())], rows)


def _bytes(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"
