"""Cost of each signal: multiplications and bytes by counting, and step times side by side.

Counting, for one matrix and T tokens, without attention and the optimizer:

    LoRA's step      4·T·d_in·d_out for the frozen weight (forward, gradient of the input), 6·T·r·(d_in + d_out) for A and B
    a sketch         2·T·(r + k)·(d_in + d_out), of which r·d_in in PEFT's forward and in the fused one is LoRA's own h = x·Aᵀ
    the exact G      2·T·d_in·d_out, and 2·r·d_in·d_out for G·Aᵀ

A sketch reads x and g once more each, and keeps T·(r + k) numbers from the forward to the backward pass.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

MINILM = ((4 * 6, 384, 384), (6, 384, 1536), (6, 1536, 384))
"""(how many, d_in, d_out)."""
SEVEN_B = ((4 * 32, 4096, 4096), (2 * 32, 4096, 11008), (32, 11008, 4096))


@dataclass(frozen=True)
class Count:
    """Cost of one measured step, relative to LoRA's step, and in bytes.

    Attributes:
        multiplications: Added to the step's, as a share of them.
        read: Bytes of activations read again, as a share of what LoRA's own products read and write.
        kept: Bytes held from the forward to the backward pass, or to the end of the step.
        sent: Bytes that each process gives to an all-reduce.
    """

    multiplications: float
    read: float
    kept: int
    sent: int


def count(
    what: str, shapes: tuple[tuple[int, int, int], ...], tokens: int, rank: int, k: int = 0, size: int = 4
) -> Count:
    """Count one measured step.

    Args:
        what: "sketch" or "exact".
        shapes: (how many, d_in, d_out) of the adapted matrices.
        tokens: T of a step.
        rank: r.
        k: Columns of Ω.
        size: Bytes of an element of an activation.
    """
    step = extra = passes = again = kept = sent = 0
    for n, d_in, d_out in shapes:
        both = d_in + d_out
        step += n * (4 * tokens * d_in * d_out + 6 * tokens * rank * both)
        # W and, at the least, A and B read or write both ends
        passes += n * size * (4 * tokens * both + 2 * d_in * d_out)
        if what == "sketch":
            extra += n * 2 * tokens * (k * both + rank * d_out)
            again += n * size * tokens * both
            kept += n * (size * tokens * (rank + k) + 4 * d_out * (rank + k))
            sent += n * 4 * d_out * (rank + k)
        else:
            extra += n * (2 * tokens * d_in * d_out + 2 * rank * d_in * d_out)
            again += n * (size * tokens * both + 4 * 2 * d_in * d_out)
            kept += n * 4 * d_in * d_out
            sent += n * 4 * d_in * d_out
    return Count(extra / step, again / passes, kept, sent)


SIGNALS: dict[str, tuple[bool, dict[str, Any]]] = {
    "lora_b": (False, {"signal": "lora_b"}),
    "delta, a step that measures nothing": (False, {"signal": "delta"}),
    "delta, a measured step": (True, {"signal": "delta"}),
    "delta_exact, a measured step": (True, {"signal": "delta_exact", "exact_every": 1}),
}
"""What is timed: whether the step measures, and the allocation's settings."""


def time_steps(rounds: int, threads: int) -> dict[str, Any]:
    """Return the median step time of each signal relative to LoRA's, and the quartiles of the ratio, as a record."""
    import torch
    from benchmarks.cost.steps import interleave
    from benchmarks.cost.variants import Factory, accelerated
    from benchmarks.cost.workloads import minilm
    from benchmarks.signal.settings import Setting

    torch.set_num_threads(threads)
    setting, device = Setting(""), torch.device("cpu")
    ids = torch.randint(
        1000, 30000, (setting.batch_size, setting.max_length), generator=torch.Generator().manual_seed(0)
    )
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    factory = Factory(minilm().requires_grad_(False), batch, setting.rank, "SEQ_CLS")
    plain, forward_passes = factory.lora, {}
    for name, lora in (("PEFT", plain), ("accelerate_lora", lambda rank=None: accelerated(plain(rank)))):
        factory.lora, variants = lora, {"LoRA": lora()}
        for signal, (measures, fields) in SIGNALS.items():
            with _measuring(measures):
                variants[signal] = factory.recording(**fields)
            variants[signal].within = functools.partial(_measuring, measures)
        times = interleave(variants, batch, rounds, device, "wall")
        ratios = {signal: [mine / lora for mine, lora in zip(times[signal], times["LoRA"])] for signal in SIGNALS}
        forward_passes[name] = {
            "lora_ms": round(1e3 * statistics.median(times["LoRA"])),
            "ratios": {signal: _median_and_quartiles(of) for signal, of in ratios.items()},
        }
    return {"threads": threads, "rounds": rounds, "forward_passes": forward_passes}


def _median_and_quartiles(values: list[float]) -> list[float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return [round(value, 3) for value in (middle, low, high)]


@contextmanager
def _measuring(measures: bool) -> Iterator[None]:
    """Let the signal "delta" measure at every step, or at none."""
    with mock.patch("glora.scoring.recorder.measured_steps", return_value=10**6 if measures else 0):
        yield
