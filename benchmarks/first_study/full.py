"""The whole study on one GPU: every task at every rank, by several processes that share the card.

Runs of a small encoder leave most of a card idle, so several go on it at a time. Each process goes through all cells, each
from another one on; what is left of a cell is shared through one database, as `glora search --storage` shares it, so all are
busy to the end and any of them may die. Killed as a whole, the same command goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RANKS = (1, 2, 8)
SEEDS = {"rte": 10}
"""Of a task; RTE's dev set is small."""
USUAL_SEEDS = 5
MATRICES = 36
"""Of all-MiniLM-L6-v2's encoder."""
PARAMETERS = 1.29
"""Adapter parameters under GLoRA's rank budget, LoRA's = 1: the mean of CoLA, RTE and SST-2 at rank 2."""
EMBEDDED = "stdlib-docs"
"""The task that needs no files."""
TASKS = {
    "rte": ("GLUE RTE", {"epochs": 10, "max_length": 128}),
    "cola": ("GLUE CoLA", {"epochs": 5, "max_length": 64}),
    "sst-2": ("GLUE SST-2", {"epochs": 3, "max_length": 64, "train_limit": 10_000}),
    "stdlib-docs": (EMBEDDED, {"epochs": 5, "max_length": 64}),
}
METHODS = (
    "AdaLoRA",
    "shuffled",
    "glora:budget=parameters",
    "glora:signal=lora_b",
    "glora:budget=parameters:relative_to=weight",
)
LEARNING_RATES = "2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3"
TRIALS = 6


@dataclass(frozen=True)
class Cell:
    """A task at a rank."""

    name: str
    experiment: dict[str, Any]


def cells(ranks: Sequence[int] = RANKS, **settings: Any) -> Iterator[Cell]:
    """Every task at every rank, as experiment files have it; `settings` are given to all of them."""
    for task, (dataset, of_task) in TASKS.items():
        for rank in ranks:
            of_same_size = f"lora:total_rank={round(PARAMETERS * MATRICES * rank)}"
            yield Cell(
                f"{task}-r{rank}",
                {
                    "experiment_summary": f"The study: {dataset} at rank {rank}.",
                    "models_to_use": ["all-MiniLM-L6-v2"],
                    "datasets_to_use": [dataset],
                    "comparative_methods": [*METHODS, of_same_size],
                    "hyperparameters_to_search": [{"name": "learning_rate", "range": LEARNING_RATES}],
                    "seeds": list(range(SEEDS.get(task, USUAL_SEEDS))),
                    "settings": {
                        "rank": rank,
                        "batch_size": 16,
                        "precision": "bfloat16",
                        "group_by_length": True,
                        **of_task,
                        **settings,
                    },
                },
            )


def make(
    folder: Path, data_dir: str, processes: int, of: Sequence[Cell], *, trials: int = TRIALS, storage: str | None = None
) -> None:
    """Make all cells by `processes` processes; what each of them says is in `process-N.log`.

    Args:
        folder: gets a folder for each cell, with its records and its report.
        data_dir: GLUE's own files.
        processes: how many share the machine.
        of: the cells.
        trials: of each method.
        storage: the database; by default SQLite in the folder.

    Raises:
        SystemExit: a process failed, naming its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for cell in of:
        (folder / f"{cell.name}.json").write_text(json.dumps(cell.experiment, indent=1) + "\n", encoding="utf-8")
    url = storage or f"sqlite:///{folder.absolute() / 'study.db'}"
    begun = time.perf_counter()
    workers = [_worker(folder, data_dir, number, processes, of, trials, url) for number in range(processes)]
    failed = [number for number, worker in enumerate(workers) if worker.wait()]
    if failed:
        raise SystemExit(f"failed: {', '.join(str(folder / f'process-{number}.log') for number in failed)}")
    print(f"{len(of)} cells by {processes} processes: {time.perf_counter() - begun:.0f} s", flush=True)


def _worker(
    folder: Path, data_dir: str, number: int, processes: int, of: Sequence[Cell], trials: int, url: str
) -> subprocess.Popen[bytes]:
    """Goes through all cells, each process from another one on; a cell's records end in its folder and in copies of it."""
    own = folder if number == 0 else folder / f"process-{number}"
    first = number * len(of) // processes
    commands = []
    for cell in (*of[first:], *of[:first]):
        data = [] if cell.experiment["datasets_to_use"] == [EMBEDDED] else ["--data-dir", data_dir]
        shared = ["--storage", url, "--study", cell.name, "--output", str(own / cell.name)]
        experiment = [str(folder / f"{cell.name}.json"), "--trials", str(trials)]
        commands.append([sys.executable, "-m", "glora", "search", *experiment, *data, *shared])
    loop = "import json, subprocess, sys; [subprocess.run(c, check=True) for c in json.loads(sys.argv[1])]"
    with (folder / f"process-{number}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", loop, json.dumps(commands)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
