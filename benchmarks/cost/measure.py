"""Measures what LoRA, AdaLoRA, GLoRA and accelerate_lora cost, and writes one JSON record for each model and rank.

    python benchmarks/cost/measure.py                      everything; about 13 minutes on two quiet cores
    python benchmarks/cost/measure.py --only minilm --ranks 8 --rounds 5

On a GPU (`--device cuda`, chosen where there is one) models are in bfloat16 with 32 sequences of 128 tokens, there is a 0.6 B
decoder as well, and a wait for the device between the loss and zero_grad is an error. `table.py` makes the tables of
docs/cost.md from the records.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from growth import CASES, grow
from shared_input import measure_shared_input
from startup import start_up
from steps import CLOCKS, SETTLING, interleave, memory, profile
from variants import Factory, Variant
from workloads import WORKLOADS, make_batch

from glora.experiments.provenance import collect_provenance, utc_now

RECORDS = Path(__file__).parent / "records"
RANKS = (8, 2, 64)
OTHERS = ("shared-input", "growth", "startup")
ROUNDS = {"minilm": 20, "deberta": 8, "qwen3": 20}
# At other ranks than the first, what changes with the rank.
AT_EVERY_RANK = (
    "LoRA",
    "frozen",
    "frozen, with LoRA's backward pass",
    "AdaLoRA",
    "GLoRA records, delta",
    "GLoRA reallocated",
    "LoRA, accelerated",
    "GLoRA reallocated, accelerated",
)
PROFILED = (
    "frozen",
    "frozen, with LoRA's backward pass",
    "LoRA",
    "LoRA, accelerated",
    "AdaLoRA",
    "AdaLoRA without its penalty",
)


def measure_steps(key: str, rank: int, rounds: int, device: torch.device, clock: str) -> dict[str, Any]:
    workload = WORKLOADS[key]
    torch.manual_seed(0)
    base = workload.build().requires_grad_(False).to(device)
    if device.type == "cuda":
        base = base.to(torch.bfloat16)
    batch = make_batch(workload, base, device)
    factory = Factory(base, batch, rank, workload.task)
    names = [name for name in factory.makers if rank == RANKS[0] or name in AT_EVERY_RANK]
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
        for name in PROFILED:
            measured[name]["profile_ms"] = {k: round(v, 3) for k, v in profile(variants[name], batch, rank).items()}
    tokens = batch["input_ids"].shape
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=[*WORKLOADS, *OTHERS], action="append")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--rounds", type=int, help="steps of each variant; default 20, for DeBERTa's size 8")
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
    for key, workload in WORKLOADS.items():
        if key in wanted and device.type in workload.devices:
            for rank in arguments.ranks:
                record = measure_steps(key, rank, arguments.rounds or ROUNDS[key], device, clock)
                write(record, f"{device.type}-{key}-rank-{rank}", arguments.output)
                gc.collect()
    if "shared-input" in wanted and device.type == "cpu":
        cases = measure_shared_input(200, CLOCKS[clock])
        write(
            {"kind": "shared input", "device": "cpu", "clock": clock, "cases": cases},
            "cpu-shared-input",
            arguments.output,
        )
    if "growth" in wanted:
        cases = [grow(*case, device, CLOCKS[clock]) for case in CASES]
        write(
            {"kind": "growth", "device": device.type, "clock": clock, "cases": cases},
            f"{device.type}-growth",
            arguments.output,
        )
    if "startup" in wanted:
        write({"kind": "startup", "clock": clock, "commands": start_up(3, clock)}, "startup", arguments.output)


if __name__ == "__main__":
    main()
