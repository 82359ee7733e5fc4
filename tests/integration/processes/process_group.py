"""Several processes that talk by gloo, each with a limit of time; a hung one fails its test and is killed."""

from __future__ import annotations

import datetime
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from new_process import fork

GRACE = 10  # seconds for the others to end with an error, once one has
TIMEOUT = 5  # seconds that a collective waits


def start(target: Callable[..., Any], size: int, folder: Path, *arguments: Any) -> list[BaseProcess]:
    """Start `target(*arguments)` in each process of a group; it writes its result, or its traceback, into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return [fork(_inside, target, rank, size, folder, arguments, daemon=True) for rank in range(size)]


def _inside(target: Callable[..., Any], rank: int, size: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}.items():
        os.environ[name] = str(value)
    try:
        store = dist.FileStore(str(folder / "store"), size)
        limit = datetime.timedelta(seconds=TIMEOUT)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        torch.save(target(*arguments), folder / f"result-{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)  # as an uncaught error would, and without waiting for threads of the others


def wait(processes: list[BaseProcess], folder: Path, limit: float = 60) -> list[str]:
    """Wait until all have ended, and give each one's traceback (empty: none); none is left running.

    Raises:
        AssertionError: one was still running at the limit, or a while after another had failed.
    """
    end = time.monotonic() + limit
    try:
        while any(process.is_alive() for process in processes):
            if any(process.exitcode not in (None, 0) for process in processes):
                end = min(end, time.monotonic() + GRACE)
            late = [rank for rank, process in enumerate(processes) if process.is_alive()]
            assert time.monotonic() < end, f"processes {late} hang; the others: {_errors(processes, folder)}"
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return _errors(processes, folder)


def _errors(processes: list[BaseProcess], folder: Path) -> list[str]:
    paths = [folder / f"error-{rank}.txt" for rank in range(len(processes))]
    return [path.read_text(encoding="utf-8") if path.exists() else "" for path in paths]


def together(target: Callable[..., Any], size: int, folder: Path, *arguments: Any, limit: float = 60) -> list[Any]:
    """Return the results of `target(*arguments)` in each process of a group."""
    processes = start(target, size, folder, *arguments)
    errors = wait(processes, folder, limit)
    assert not any(errors), "\n".join(errors)
    assert all(process.exitcode == 0 for process in processes), [process.exitcode for process in processes]
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(size)]
