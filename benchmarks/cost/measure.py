"""Measures what LoRA, AdaLoRA, GLoRA and accelerate_lora cost: one JSON record for each model, rank and group of variants.

    python -m benchmarks.cost.measure                      everything
    python -m benchmarks.cost.measure --only minilm --ranks 8 --group peers
    python -m benchmarks.cost.measure --since 2026-11-28   without the records that were made since then
    python -m benchmarks.cost.measure --device cuda        decoders in bfloat16, 32 sequences of 128 tokens

Each record is made in a separate process: a process keeps what it has freed, in pieces, and a model of DeBERTa's size at
three ranks one after the other would not fit into 24 GiB. It waits until other processes use less than half a core, and is
not written if they used more while it was made. `table.py` makes report.md from the records.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.cost.growth import CASES, grow
from benchmarks.cost.shared_input import measure_shared_input
from benchmarks.cost.startup import start_up
from benchmarks.cost.steps import (
    CLOCKS,
    SETTLING,
    STEPS_A_ROUND,
    compile_within,
    interleave,
    memory,
    profile,
    waits,
)
from benchmarks.cost.variants import Factory, Variant
from benchmarks.cost.workloads import WORKLOADS, make_batch
from benchmarks.machine_load import QUIET, OtherProcesses, wait_until_quiet

from glora.experiments.records.provenance import collect_provenance, utc_now

RECORDS = Path(__file__).resolve().parent / "records"
RANKS = {"cpu": (8, 2, 64), "cuda": (8,)}
GROUPS = ("methods", "peers")
OTHERS = ("shared-input", "growth", "startup")
ROUNDS = {"minilm": 20, "deberta": 8, "smollm2": 8, "qwen3": 8}
PEERS = (
    "LoRA",
    "LoRA, accelerated",
    "LoRA, compiled",
    "LoRA, compiled, max-autotune",
    "LoRA, accelerated, compiled",
    "LoRA of four times the rank",
    "LoRA of four times the rank, accelerated",
    "LoRA of four times the rank, compiled",
    "GLoRA cut from four times the rank, compiled",
    "LoRA, bf16",
    "LoRA, bf16, accelerated",
    "LoRA, bf16, compiled",
    "LoRA, bf16, compiled, max-autotune",
    "LoRA, bf16, accelerated, compiled",
)
"""At the first rank: beside what else makes LoRA faster. All other variants are methods."""
# At other ranks than the first, and on a GPU: what changes with the rank.
AT_EVERY_RANK = (
    "LoRA",
    "frozen",
    "frozen, with LoRA's backward pass",
    "AdaLoRA",
    "GLoRA records, delta",
    "GLoRA reallocated",
    "GLoRA reallocated, parameter budget",
    "LoRA of four times the rank",
    "GLoRA cut from four times the rank",
    "LoRA, accelerated",
    "LoRA, accelerated, by MKL",
    "GLoRA reallocated, accelerated",
    "LoRA of four times the rank, accelerated",
    "GLoRA cut from four times the rank, accelerated",
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


def names_of(group: str, rank: int, device: torch.device, made: Sequence[str]) -> list[str]:
    """Return the variants of a group."""
    if group == "peers":
        return list(PEERS)
    every = rank == RANKS["cpu"][0] and device.type == "cpu"
    wanted = [name for name in made if (every and (name not in PEERS or name == "LoRA")) or name in AT_EVERY_RANK]
    return [name for name in wanted if device.type == "cpu" or "MKL" not in name]


def measure_steps(
    key: str,
    rank: int,
    rounds: int,
    device: torch.device,
    clock: str,
    group: str = "methods",
    only: Sequence[str] | None = None,
    compile_seconds: float = 300,
    limit: float = math.inf,
) -> dict[str, Any]:
    workload = WORKLOADS[key]
    torch.manual_seed(0)
    base = workload.build().requires_grad_(False).to(device)
    if device.type == "cuda":
        base = base.to(torch.bfloat16)
    batch = make_batch(workload, base, device)
    factory = Factory(base, batch, rank, workload.task)
    torch._dynamo.config.recompile_limit = (
        64  # all variants share the forward's code; beyond it a model is not compiled
    )
    names = ["LoRA", *only] if only else names_of(group, rank, device, list(factory.makers))
    variants: dict[str, Variant] = {}
    failed: dict[str, str] = {}
    for name in dict.fromkeys(names):
        variant = factory.makers[name]()
        reason = compile_within(variant, batch, compile_seconds) if variant.compiles else None
        if reason is None:
            variants[name] = variant
        else:
            failed[name] = reason
    waiting = {name: waits(variant, batch, device) for name, variant in variants.items()}
    load, before, others = os.getloadavg()[0], wait_until_quiet(limit), OtherProcesses()
    seconds = interleave(variants, batch, rounds, device, clock)
    during = others.cores()
    steps = rounds * STEPS_A_ROUND[device.type]
    measured = {
        name: {
            "seconds": [round(s, 6) for s in seconds[name]],
            "trained_parameters": sum(p.numel() for p in variant.model.parameters() if p.requires_grad),
            "memory": memory(variant, batch, device),
            **{f"{what}_seconds": [round(s, 7) for s in spent[-steps:]] for what, spent in variant.seconds.items()},
            **({"waits": waiting[name]} if waiting[name] else {}),
            **variant.notes,
        }
        for name, variant in variants.items()
    }
    if device.type == "cpu" and rank == RANKS["cpu"][0]:
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
        "group": group,
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
        "others_before": round(before, 3),
        "others_during": round(during, 3),
        "failed": failed,
        "variants": measured,
    }


def machine_folder(device: torch.device) -> Path:
    """Return the folder of this machine's records, named after its processor or GPU."""
    machine = collect_provenance().machine
    name = (machine.accelerator if device.type == "cuda" else None) or machine.cpu
    return RECORDS / re.sub(r"[^a-z0-9]+", "-", name.lower().replace("(r)", "")).strip("-")


def write(record: dict[str, Any], path: Path, limit: float) -> None:
    if record.get("others_during", 0) > limit:
        print(f"{path.name} not written: others used {record['others_during']:.1f} cores while it was made")
        return
    whole = {**record, "measured_at": utc_now(), "provenance": collect_provenance().model_dump()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(path, flush=True)


def measure_other(what: str, device: torch.device, clock: str) -> dict[str, Any]:
    """A record that is of no model."""
    if what == "shared-input":
        return {
            "kind": "shared input",
            "device": "cpu",
            "clock": clock,
            "cases": measure_shared_input(200, CLOCKS[clock]),
        }
    if what == "growth":
        cases = [grow(*case, device, CLOCKS[clock]) for case in CASES]
        return {"kind": "growth", "device": device.type, "clock": clock, "cases": cases}
    return {"kind": "startup", "clock": clock, "commands": start_up(3, clock)}


class Cell(NamedTuple):
    """A record: of a model's steps, or of something else."""

    what: str
    rank: int | None = None
    group: str | None = None

    def path(self, folder: Path, device: torch.device) -> Path:
        rank = None if self.rank is None else f"rank-{self.rank}"
        parts = [None if self.what == "startup" else device.type, self.what, rank, self.group]
        return folder / f"{'-'.join(part for part in parts if part not in (None, 'methods'))}.json"


def cells(arguments: argparse.Namespace, device: torch.device) -> list[Cell]:
    """Return the records that are wanted, in the order in which they are made."""
    wanted = arguments.only or [*WORKLOADS, *OTHERS]
    steps = [
        Cell(key, rank, group)
        for key, workload in WORKLOADS.items()
        for group in arguments.group or GROUPS
        for rank in arguments.ranks or RANKS[device.type]
        if key in wanted and device.type in workload.devices and (group == "methods" or rank == RANKS["cpu"][0])
    ]
    others = [Cell(other) for other in OTHERS if other in wanted and (device.type == "cpu" or other == "growth")]
    return steps + others


def is_there(path: Path, since: str | None) -> bool:
    """Return True if the record was made on this day or later."""
    return since is not None and path.exists() and json.loads(path.read_text(encoding="utf-8"))["measured_at"] >= since


def make(cell: Cell, arguments: argparse.Namespace, device: torch.device) -> None:
    limit = math.inf if arguments.any_load else QUIET
    if cell.rank is None or cell.group is None:
        wait_until_quiet(limit)
        record = measure_other(cell.what, device, arguments.clock)
    else:
        rounds = arguments.rounds or ROUNDS[cell.what]
        record = measure_steps(
            cell.what,
            cell.rank,
            rounds,
            device,
            arguments.clock,
            cell.group,
            arguments.variants,
            arguments.compile_seconds,
            limit,
        )
    write(record, cell.path(arguments.output, device), limit)


def in_its_own_process(cell: Cell) -> None:
    command = [sys.executable, "-m", "benchmarks.cost.measure", *sys.argv[1:], "--cell", json.dumps(cell)]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=[*WORKLOADS, *OTHERS], nargs="+")
    parser.add_argument("--ranks", type=int, nargs="+", help="default 8, 2 and 64; on a GPU 8")
    parser.add_argument("--group", choices=GROUPS, nargs="+", help="default both; peers are measured at rank 8")
    parser.add_argument("--rounds", type=int, help="steps of each variant; default 20 for MiniLM, else 8")
    parser.add_argument("--variants", nargs="+", help="measure only these, by their names in variants.py, and LoRA")
    parser.add_argument("--threads", type=int, default=2, help="threads of an operation on the CPU")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="'cpu' counts the process's own seconds, for a machine that others use; give it --threads 1",
    )
    parser.add_argument("--since", help="leave out the records that were made on this day (YYYY-MM-DD, UTC) or later")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no record after this many minutes")
    parser.add_argument("--compile-seconds", type=float, default=300, help="leave out what compiles longer")
    parser.add_argument("--any-load", action="store_true", help="measure beside other work, and keep the records")
    parser.add_argument("--output", type=Path, help="folder; default: that of this machine's processor in records/")
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    arguments.output = (arguments.output or machine_folder(device)).resolve()
    if arguments.cell:  # a process of its own, whose settings end with it
        logging.getLogger("glora").setLevel(logging.WARNING)
        torch.set_num_threads(arguments.threads)
        Variant.clock = CLOCKS[arguments.clock]
        make(Cell(*arguments.cell), arguments, device)
        return
    begun = time.monotonic()
    for cell in cells(arguments, device):
        if time.monotonic() - begun > 60 * arguments.minutes:
            return
        if not is_there(cell.path(arguments.output, device), arguments.since):
            in_its_own_process(cell)


if __name__ == "__main__":
    main()
