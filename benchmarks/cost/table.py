"""Makes the tables of report.md from the records, in their place between its two marks.

python -m benchmarks.cost.table    writes report.md and README's lines
"""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

from benchmarks.tables import fill, table

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "records"
DOCUMENT, README = HERE / "report.md", HERE.parents[1] / "README.md"
RESAMPLES = 2000
Record = dict[str, Any]


def read_records(folder: Path) -> list[Record]:
    """The records of a machine, in the order of the tables: the first model's first, methods before peers, rank 8 first."""
    records = [_read(path) for path in sorted(folder.glob("*.json"))]
    kinds = ("steps", "shared input", "growth", "startup")
    models = ("minilm", "deberta", "smollm2", "qwen3")

    def place(record: Record) -> tuple[Any, ...]:
        model = models.index(record["model"]) if "model" in record else 0
        rank = record.get("rank", 0)
        return kinds.index(record["kind"]), record["group"] == "peers", model, rank != 8, rank

    return sorted(records, key=place)


def _read(path: Path) -> Record:
    group = "peers" if path.stem.endswith("-peers") else "methods"
    return {**json.loads(path.read_text(encoding="utf-8")), "group": group}


def machines() -> dict[str, list[Record]]:
    """Name -> records, a GPU's first."""
    every = [found for folder in sorted(RECORDS.iterdir()) if (found := read_records(folder))]
    every.sort(key=lambda records: all(record.get("device") != "cuda" for record in records))
    return {_machine(records[0]): records for records in every}


def _machine(record: Record) -> str:
    machine = record["provenance"]["machine"]
    return str(machine["accelerator"] if record.get("device") == "cuda" else machine["cpu"])


def render(records: list[Record]) -> str:
    sections = {"steps": _steps, "shared input": _shared_input, "growth": _growth, "startup": _startup}
    return "\n\n".join(sections[record["kind"]](record) for record in records)


def median_ratio(seconds: list[float], of: list[float]) -> tuple[float, float, float]:
    """The median over the rounds of the ratio within a round, and its bootstrap interval of 95 %."""
    ratios = [a / b for a, b in zip(seconds, of, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return statistics.median(ratios), medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]


def _steps(record: Record) -> str:
    variants = record["variants"]
    lora = variants["LoRA"]
    step = statistics.median(lora["seconds"])
    tokens = f"{record['sequences']} × {record['length']} tokens"
    rows: list[list[Any]] = []
    for name, variant in variants.items():
        ratio, low, high = median_ratio(variant["seconds"], lora["seconds"])
        shown = ["1", ""] if variant is lora else [f"{ratio:.3f}", f"{low:.3f} to {high:.3f}"]
        kept = f"{variant['memory']['kept'] / 2**20:.1f} MiB"
        rows.append([name, *shown, f"{_height(variant) / _height(lora):.3f}", kept])
    rows += [[name, f"left out: {reason}", "", "", ""] for name, reason in record.get("failed", {}).items()]
    parts = [
        f"### {record['title']}, rank {record['rank']}, {record['dtype']}{_beside(record)}\n",
        f"{record['matrices']} matrices, {tokens}, {record['rounds']} rounds. LoRA's step: {step * 1e3:.0f} ms "
        f"({_where(record)}; {_load(record)}).\n",
        *table(["", "step, of LoRA's", "95 % interval", "memory, of LoRA's", "kept for the backward pass"], rows),
    ]
    if whole := _whole_run(record):
        parts += ["", whole]
    parts += ["", *_asides(record, step)]
    if any("profile_ms" in variant for variant in variants.values()):
        parts += ["", *_profile(record)]
    return "\n".join(parts)


def _beside(record: Record) -> str:
    return ", beside torch.compile and bf16 autocast" if record["group"] == "peers" else ""


def _load(record: Record) -> str:
    if "others_during" in record:
        return f"other processes used {record['others_during']:.2f} cores"
    return f"load {record['load_average_before']:.1f} before, {record['load_average_after']:.1f} after"


def _whole_run(record: Record) -> str:
    """The time of a run with a quarter of its steps before the cut, where both kinds of step were measured."""
    variants, lines = record["variants"], []
    for ending in ("", ", accelerated", ", compiled"):
        wide, cut = (
            variants.get(f"{name}{ending}")
            for name in ("LoRA of four times the rank", "GLoRA cut from four times the rank")
        )
        if wide and cut:
            steps = [0.25 * a + 0.75 * b for a, b in zip(wide["seconds"], cut["seconds"], strict=True)]
            ratio, low, high = median_ratio(steps, variants["LoRA"]["seconds"])
            lines.append(f"{ratio:.3f} ({low:.3f} to {high:.3f}){ending}")
    return f"A whole run, a quarter of it at four times the rank, of LoRA's: {'; '.join(lines)}." if lines else ""


def _height(variant: Record) -> int:
    return int(variant["memory"]["held"] + variant["memory"]["step"])


def _asides(record: Record, step: float) -> list[str]:
    """The parts that were timed within the steps."""
    rows = []
    for name, variant in record["variants"].items():
        timed = {
            "reading norms and averaging": [sum(both) for both in zip(*_recording(variant), strict=True)],
            "update_and_allocate": variant.get("after_step_seconds"),
            "compiling, once": [variant["compilation_seconds"]] if "compilation_seconds" in variant else None,
            "the reallocation, once": [variant["reallocation_seconds"]] if "reallocation_seconds" in variant else None,
        }
        for what, seconds in timed.items():
            if seconds:
                spent = statistics.median(seconds)
                ranks = ""
                if "largest_rank" in variant:
                    without = variant["matrices_without_adapter"]
                    ranks = f" ({without} without an adapter, largest rank {variant['largest_rank']})"
                share = f"{spent / step:.2f} steps" if spent > step / 10 else f"{spent / step:.2%}"
                rows.append([f"{name}: {what}{ranks}", f"{spent * 1e3:.2f} ms", share])
        if "waits" in variant:
            rows.append([f"{name}: waits for the GPU between the loss and zero_grad", "", ""])
    return table(["within a step", "time", "of LoRA's step"], rows) if rows else []


def _recording(variant: Record) -> list[list[float]]:
    """Before the optimizer's step, and after it."""
    return [variant[what] for what in ("recording_seconds", "averaging_seconds") if what in variant]


def _profile(record: Record) -> list[str]:
    profiles = {name: v["profile_ms"] for name, v in record["variants"].items() if "profile_ms" in v}
    kinds = sorted({kind for p in profiles.values() for kind in p}, key=lambda k: -profiles["LoRA"].get(k, 0))
    return table(
        ["profile, ms", *profiles], ([kind, *(f"{p.get(kind, 0):.1f}" for p in profiles.values())] for kind in kinds)
    )


def _shared_input(record: Record) -> str:
    rows = []
    for case in record["cases"]:
        peft = case["seconds"]["PEFT"]
        ratios = [median_ratio(case["seconds"][way], peft) for way in ("accelerated", "accelerated, A stacked")]
        shown = [f"{ratio:.3f} ({low:.3f} to {high:.3f})" for ratio, low, high in ratios]
        rows.append([case["tokens"], case["d"], case["rank"], f"{statistics.median(peft) * 1e3:.2f} ms", *shown])
    return "\n".join(
        [
            "### Query, key and value alone\n",
            f"Three matrices of d × d on one input, forward and backward; times of PEFT's ({_where(record)}).\n",
            *table(["tokens", "d", "r", "PEFT", "accelerated", "accelerated, A stacked"], rows),
        ]
    )


def _growth(record: Record) -> str:
    columns = ["allocator.step()", "the reallocation", "the cut to r/4", "compress_adapter to r/4"]
    rows = [
        [
            *(f"{case['matrices']:,}", f"{case['d']:,}", case["rank"]),
            f"{case['recording_seconds'] * 1e3:.2f} ms",
            *(
                f"{case[f'{what}_seconds'] * 1e3:,.0f} ms" if f"{what}_seconds" in case else ""
                for what in ("reallocation", "cut", "compress")
            ),
        ]
        for case in record["cases"]
    ]
    return "\n".join(
        [
            "### Growth\n",
            f"Square matrices, gradients drawn at random ({_where(record)}).\n",
            *table(["matrices", "d", "r", *columns], rows),
        ]
    )


def _startup(record: Record) -> str:
    rows = [
        [f"`{name}`", f"{statistics.median(seconds):.2f} s", f"{min(seconds):.2f} to {max(seconds):.2f} s"]
        for name, seconds in record["commands"].items()
    ]
    runs = len(next(iter(record["commands"].values())))
    return "\n".join(
        [
            "### Start-up\n",
            f"A new process each, {runs} times in turn ({_where(record)}).\n",
            *table(["", "median", "all"], rows),
        ]
    )


def _where(record: Record) -> str:
    machine = record["provenance"]["machine"]
    where = machine["accelerator"] if record.get("device") == "cuda" else f"{machine['cpu']}, {machine['cores']} cores"
    if "device" in record and record["device"] == "cpu":
        where += f", {machine['torch_threads']} thread{'s' if machine['torch_threads'] != 1 else ''}"
    if record.get("clock") == "cpu":
        where += ", processor seconds on a busy machine"
    return f"{where}; {record['measured_at'][:10]}, torch {record['provenance']['versions']['torch']}"


def summary(machines: dict[str, list[Record]]) -> str:
    """README's lines: what a step of each costs, of LoRA's, at rank 8."""
    shown = {
        "AdaLoRA": "AdaLoRA",
        "GLoRA records, delta": "GLoRA while it records",
        "GLoRA reallocated": "after the reallocation",
        "LoRA, accelerated": "LoRA under `accelerate_lora`",
    }
    lines = []
    for machine, records in machines.items():
        for record in records:
            if record["kind"] == "steps" and record["rank"] == 8 and shown.keys() <= record["variants"].keys():
                lora = record["variants"]["LoRA"]["seconds"]
                ratios = {n: median_ratio(record["variants"][n]["seconds"], lora)[0] for n in shown}
                costs = ", ".join(f"{shown[name]} {ratio:.2f}" for name, ratio in ratios.items())
                lines.append(f"- {record['title']} ({machine}, rank 8): {costs}")
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    found = machines()
    text = "\n\n".join(f"## {name}\n\n{render(records)}" for name, records in found.items())
    made = {DOCUMENT: f"\n{text}\n", README: summary(found)}
    return {
        page: fill(page.read_text(encoding="utf-8"), "benchmarks/cost/table.py", text) for page, text in made.items()
    }


def main() -> None:
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
