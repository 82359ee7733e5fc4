"""Measures what LoRA, AdaLoRA, GLoRA and accelerate_lora cost, and writes one JSON record for each model and rank.

    python benchmarks/cost/measure.py                      everything; about 13 minutes on two quiet cores
    python benchmarks/cost/measure.py --only minilm --ranks 8 --rounds 5

Each record is made in a separate process: a process keeps what it has freed, in pieces, and a model of DeBERTa's size at
three ranks one after the other would not fit into 24 GiB.

On a GPU (`--device cuda`, chosen where there is one) models are in bfloat16 with 32 sequences of 128 tokens, there is a 0.6 B
decoder as well, and a wait for the device between the loss and zero_grad is an error. `table.py` makes report.md
from the records.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from growth import CASES, grow
from shared_input import measure_shared_input
from startup import start_up
from steps import CLOCKS, SETTLING, interleave, memory, profile
from variants import Factory, Variant
from workloads import WORKLOADS, make_batch

from glora.experiments.records.provenance import collect_provenance, utc_now

RECORDS = Path(__file__).parent / "records"
RANKS = (8, 2, 64)
OTHERS = ("shared-input", "growth", "startup")
ROUNDS = {"minilm": 20, "deberta": 8, "smollm2": 8, "qwen3": 20}
# At other ranks than the first, what changes with the rank.
AT_EVERY_RANK = (
    "LoRA",
    "frozen",
    "frozen, with LoRA's backward pass",
    "AdaLoRA",
    "GLoRA records, delta",
    "GLoRA reallocated",
    "LoRA of four times the rank",
    "GLoRA cut from four times the rank",
    "LoRA, accelerated",
    "LoRA, accelerated, by MKL",
    "GLoRA reallocated, accelerated",
)
PROFILED = (
    "frozen",
    "frozen, with LoRA's backward pass",
    "LoRA",
    "LoRA, accelerated",
    "LoRA, accelerated, by MKL",
    "AdaLoRA",
    "AdaLoRA without its penalty",
)


def measure_steps(
    key: str, rank: int, rounds: int, device: torch.device, clock: str, only: Sequence[str] | None = None
) -> dict[str, Any]:
    workload = WORKLOADS[key]
    torch.manual_seed(0)
    base = workload.build().requires_grad_(False).to(device)
    if device.type == "cuda":
        base = base.to(torch.bfloat16)
    batch = make_batch(workload, base, device)
    factory = Factory(base, batch, rank, workload.task)
    names = [
        name
        for name in factory.makers
        if (name in ("LoRA", *only) if only else rank == RANKS[0] or name in AT_EVERY_RANK)
    ]
    variants = {name: factory.makers[name]() for name in names}
    load = os.getloadavg()[0]
    seconds = interleave(variants, batch, rounds, device, clock)
    measured = {
        name: {
            "seconds": [round(s, 6) for s in seconds[name]],
            "trained_parameters": sum(p.numel() for p in variant.model.parameters() if p.requires_grad),
            "memory": memory(variant, batch, device),
            **{f"{what}_seconds": [round(s, 7) for s in spent[-rounds:]] for what, spent in variant.seconds.items()},
            **variant.notes,
        }
        for name, variant in variants.items()
    }
    if device.type == "cpu" and rank == RANKS[0]:
        for name in set(PROFILED) & measured.keys():
            measured[name]["profile_ms"] = {k: round(v, 3) for k, v in profile(variants[name], batch, rank).items()}
    tokens = batch["input_ids"].shape
    for variant in variants.values():
        if variant.allocator is not None:
            variant.allocator.detach()
    return {
        "kind": "steps",
        "model": key,
        "title": workload.title,
        "rank": rank,
        "device": device.type,
        "dtype": str(base.dtype).removeprefix("torch."),
        "sequences": tokens[0],
        "length": tokens[1],
        "matrices": len(factory.targets()),
        "rounds": rounds,
        "settling_rounds": SETTLING,
        "clock": clock,
        "load_average_before": round(load, 2),
        "load_average_after": round(os.getloadavg()[0], 2),
        "variants": measured,
    }


def write(record: dict[str, Any], name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**record, "measured_at": utc_now(), "provenance": collect_provenance().model_dump()}
    (folder / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"{folder / name}.json")


def measure_other(what: str, device: torch.device, clock: str) -> tuple[dict[str, Any], str]:
    """A record that is of no model, and its name."""
    if what == "shared-input":
        cases = measure_shared_input(200, CLOCKS[clock])
        return {"kind": "shared input", "device": "cpu", "clock": clock, "cases": cases}, "cpu-shared-input"
    if what == "growth":
        cases = [grow(*case, device, CLOCKS[clock]) for case in CASES]
        return {"kind": "growth", "device": device.type, "clock": clock, "cases": cases}, f"{device.type}-growth"
    return {"kind": "startup", "clock": clock, "commands": start_up(3, clock)}, "startup"


def in_its_own_process(only: str, rank: int, arguments: argparse.Namespace) -> None:
    options: dict[str, Any] = {**vars(arguments), "only": only, "ranks": rank}
    variants = options.pop("variants")
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    given += ["--variants", *variants] if variants else []
    subprocess.run([sys.executable, __file__, *given], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=[*WORKLOADS, *OTHERS], action="append")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--rounds", type=int, help="steps of each variant; default 20, for DeBERTa's size 8")
    parser.add_argument("--variants", nargs="+", help="measure only these, by their names in variants.py, and LoRA")
    parser.add_argument("--threads", type=int, default=2, help="threads of an operation on the CPU")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="'cpu' counts the process's own seconds, for a machine that others use; give it --threads 1",
    )
    parser.add_argument("--output", type=Path, default=RECORDS)
    arguments = parser.parse_args()
    logging.getLogger("glora").setLevel(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    clock = arguments.clock
    Variant.clock = CLOCKS[clock]
    device = torch.device(arguments.device)

    wanted = arguments.only or [*WORKLOADS, *OTHERS]
    cells = [
        (key, rank)
        for key, workload in WORKLOADS.items()
        for rank in arguments.ranks
        if key in wanted and device.type in workload.devices
    ]
    others = [other for other in OTHERS if other in wanted and (other != "shared-input" or device.type == "cpu")]
    if len(cells) + len(others) > 1:
        for name, rank in [*cells, *((other, RANKS[0]) for other in others)]:
            in_its_own_process(name, rank, arguments)
        return
    for key, rank in cells:
        record = measure_steps(key, rank, arguments.rounds or ROUNDS[key], device, clock, arguments.variants)
        write(record, f"{device.type}-{key}-rank-{rank}", arguments.output)
    for other in others:
        record, name = measure_other(other, device, clock)
        write(record, name, arguments.output)


if __name__ == "__main__":
    main()
