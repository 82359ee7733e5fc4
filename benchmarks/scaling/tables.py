"""The tables of docs/scaling.md: what was measured, and what follows from it for large models.

    python benchmarks/scaling/tables.py

prints them. Every figure of the last table is an extrapolation: seconds by the growth between the largest sizes that were
measured, bytes by counting what the code sends, transfer times from the bandwidths and the latency below.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("record.json")
FAST, SLOW = 25e9, 1.25e9  # bytes a second: 200 Gb/s between nodes, 10 Gb/s
LATENCY = 1e-4  # seconds a collective, between nodes
PROCESSES = 64
RANK = 16
STATES = 2  # Adam's
FLOAT = 4


@dataclass(frozen=True)
class Model:
    """A model as far as it matters: its adapted matrices.

    Attributes:
        name: Which model.
        matrices: n.
        per_rank: Σ_k (d_in + d_out), times the experts of a stack: the adapter's parameters at rank 1.
        largest: The largest d_in + d_out of one matrix, times its experts.
        weights: Elements of all adapted matrices.
    """

    name: str
    matrices: int
    per_rank: int
    largest: int
    weights: int

    @property
    def adapter(self) -> int:
        """Parameters of the adapter at RANK."""
        return self.per_rank * RANK


def _model(name: str, kinds: list[tuple[int, int, int, int]]) -> Model:
    """Return the model of these kinds of matrices: (number, d_in, d_out, experts in a stack)."""
    return Model(
        name,
        sum(count for count, *_ in kinds),
        sum(count * (i + o) * experts for count, i, o, experts in kinds),
        max((i + o) * experts for _, i, o, experts in kinds),
        sum(count * i * o * experts for count, i, o, experts in kinds),
    )


# Llama-2-7B and Llama-3-70B: q, k, v, o, gate, up, down; DeepSeek-V3: q_a, q_b, kv_a, kv_b, o of 61 layers, 3 dense ones and
# 58 of a shared and 256 routed experts. The sizes are those of the models' configuration files.
_ATTENTION_V3 = [
    (61, 7168, 1536, 1),
    (61, 1536, 24576, 1),
    (61, 7168, 576, 1),
    (61, 512, 32768, 1),
    (61, 16384, 7168, 1),
    (6, 7168, 18432, 1),
    (3, 18432, 7168, 1),
    (116, 7168, 2048, 1),
    (58, 2048, 7168, 1),
]
MODELS = [
    _model("7B", [(128, 4096, 4096, 1), (64, 4096, 11008, 1), (32, 11008, 4096, 1)]),
    _model("70B", [(160, 8192, 8192, 1), (160, 8192, 1024, 1), (160, 8192, 28672, 1), (80, 28672, 8192, 1)]),
    _model("671B, no routed experts", _ATTENTION_V3),
    _model("671B, experts as stacks", [*_ATTENTION_V3, (58, 7168, 4096, 256), (58, 2048, 7168, 256)]),
    _model("671B, a module an expert", [*_ATTENTION_V3, (29696, 7168, 2048, 1), (14848, 2048, 7168, 1)]),
]


def grown(points: list[dict[str, Any]], key: str, n: float, power: int, of: str = "n") -> float:
    """A figure at n: between two sizes measured, on the line from one to the other; beyond, by a·n + b·n^power, b ≥ 0."""
    for one, other in pairwise(points):
        if one[of] <= n <= other[of]:
            part = (n - one[of]) / (other[of] - one[of])
            return float(one[key] + part * (other[key] - one[key]))
    (n1, t1), (n2, t2) = ((float(point[of]), float(point[key])) for point in points[-2:])
    b = max((t2 / n2 - t1 / n1) / (n2 ** (power - 1) - n1 ** (power - 1)), 0.0) if power > 1 else 0.0
    a = t2 / n2 - b * n2 ** (power - 1)
    return a * n + b * n**power


def slope(points: list[dict[str, Any]], key: str) -> float:
    """Seconds a parameter of the adapter, from the two largest sizes measured; what does not grow with the size drops out."""
    one, other = points[-2:]
    return float((other[key] - one[key]) / (other["parameters"] - one["parameters"]))


def seconds(value: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if value >= size or unit == "ms":
            return f"{value / size:.2g} {unit}" if value / size < 100 else f"{value / size:.0f} {unit}"
    raise AssertionError


def amount(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)):
        if value >= size:
            return f"{value / size:.2g} {unit}" if value / size < 100 else f"{value / size:.0f} {unit}"
    return "0 B"


def count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def measured(record: dict[str, Any]) -> str:
    by_n, by_d = record["by matrices"], record["by elements"]
    columns = list(range(len(by_n)))
    head = ["CPU seconds in one process, n matrices =", *[str(point["n"]) for point in by_n]]
    loading = {point["n"]: seconds(point["seconds"]) for point in record["loading"]}
    rows = [
        ["making the allocator", *[seconds(by_n[i]["construct"]) for i in columns]],
        ["reading the norms, each step of the warm-up", *[seconds(by_n[i]["read"]) for i in columns]],
        ["from norms to ranks", *[seconds(by_n[i]["allocate"]) for i in columns]],
        ["resizing layers and optimizer (16 × 16, rank 4)", *[seconds(by_n[i]["resize"]) for i in columns]],
        ["a new reducer", *[seconds(point["seconds"]) for point in record["reducer"]]],
        ["stock PEFT loads the saved adapter", *[loading.get(by_n[i]["n"], "") for i in columns]],
    ]
    first = table(head, rows)
    head = ["CPU seconds in one process, 14 matrices 64 × d, d =", *[str(point["d"]) for point in by_d]]
    rows = [
        ["reading the norms, each step of the warm-up", *[seconds(point["read"]) for point in by_d]],
        ["resizing layers and optimizer (rank 16)", *[seconds(point["resize"]) for point in by_d]],
        ["the adapter's parameters", *[count(point["parameters"]) for point in by_d]],
    ]
    return first + "\n" + table(head, rows)


def groups(record: dict[str, Any]) -> str:
    simulated = record["simulated"]
    head = ["56 matrices of 256 × 256, p processes =", *[str(group["processes"]) for group in simulated]]
    rows = [
        [
            f"{part}: collectives, bytes a process",
            *[f"{group[part]['collectives']}, {amount(group[part]['bytes'])}" for group in simulated],
        ]
        for part in ("first step", "later step", "reallocation", "step after it")
    ]
    real = {group["processes"]: group for group in record["real"]}
    for key in next(iter(real.values())):
        if key != "processes":
            cells = [seconds(real[g["processes"]][key]) if g["processes"] in real else "" for g in simulated]
            rows.append([f"gloo on 2 cores: {key}, by the clock", *cells])
    return table(head, rows)


def extrapolated(record: dict[str, Any]) -> str:
    by_n, by_d = record["by matrices"], record["by elements"]
    small = by_n[-1]["parameters"] / by_n[-1]["n"]  # parameters a matrix in the runs that grow n
    an_element, an_element_read = (slope(by_d, key) for key in ("resize", "read"))

    def row(label: str, of: Any) -> list[str]:
        return [label, *[of(model) for model in MODELS]]

    def resize(model: Model) -> float:
        return grown(by_n, "resize", model.matrices, 2) + an_element * (model.adapter - small * model.matrices)

    def read(model: Model) -> float:
        return grown(by_n, "read", model.matrices, 1) + an_element_read * model.adapter

    def wire(model: Model) -> float:
        return model.adapter * FLOAT * (1 + STATES)

    def sharded(model: Model) -> float:
        return 2 * wire(model)  # gathered, and process 0's broadcast

    def collectives(model: Model) -> int:
        return model.matrices * (2 * (1 + STATES) + 1)

    rows = [
        row("adapted matrices n", lambda m: f"{m.matrices:,}"),
        row(f"adapter at rank {RANK}", lambda m: count(m.adapter)),
        row("making the allocator", lambda m: seconds(grown(by_n, "construct", m.matrices, 2))),
        row("read the norms on a CPU, a step", lambda m: seconds(read(m))),
        row("from norms to ranks", lambda m: seconds(grown(record["allocate_ranks"], "ranks", m.matrices, 2))),
        row(
            'the same, `budget="parameters"`',
            lambda m: seconds(grown(record["allocate_ranks"], "parameters", m.matrices, 2)),
        ),
        row("resize on a CPU, all processes at once", lambda m: seconds(resize(m))),
        row("a new reducer", lambda m: seconds(grown(record["reducer"], "seconds", m.matrices, 1))),
        row("DDP: bytes from process 0", lambda m: amount(wire(m))),
        row("DDP: at 25 GB/s, at 1.25 GB/s", lambda m: transfer(wire(m), m.matrices)),
        row(f"checksums, {PROCESSES} processes", lambda m: amount(8 * (m.matrices + 1) * (PROCESSES - 1))),
        row("FSDP2: bytes gathered and sent", lambda m: amount(sharded(m))),
        row("FSDP2: at 25 GB/s, at 1.25 GB/s", lambda m: transfer(sharded(m), collectives(m))),
        row("FSDP2: all-reduce of norms, a step", lambda m: amount(2 * FLOAT * m.matrices)),
        row(
            "memory for a while, a matrix to rank 64", lambda m: amount(m.largest * (RANK + 64) * FLOAT * (1 + STATES))
        ),
        row("`delta_exact`: memory, and bytes sent, a measured step", lambda m: amount(m.weights * FLOAT)),
        row(
            "stock PEFT loads the saved adapter", lambda m: seconds(grown(record["loading"], "seconds", m.matrices, 2))
        ),
    ]
    return table(["extrapolated", *[model.name for model in MODELS]], rows)


def transfer(size: float, collectives: int) -> str:
    return ", ".join(seconds(size / bandwidth + collectives * LATENCY) for bandwidth in (FAST, SLOW))


def tables() -> dict[str, str]:
    """The tables by name, each as docs/scaling.md has it."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return {"measured": measured(record), "groups": groups(record), "extrapolated": extrapolated(record)}


if __name__ == "__main__":
    print("\n".join(tables().values()))
