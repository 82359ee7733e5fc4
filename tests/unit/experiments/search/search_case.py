"""Parts of the search's tests: a storage for each test, and processes that work on one study."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from glora.experiments.search.storage import SharedStorage, open_storage, sqlite_url
from glora.experiments.search.study import Job, item_of, open_study, work

HEARTBEAT, GRACE, LOOK = 1, 3, 0.3
optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True)
class Worker:
    """Works on a study of `items` trials in a separate process, and writes a line for each one that it makes.

    `die_in` names items in the midst of which the process is killed, once each.
    """

    url: str
    log: Path
    items: int
    die_in: tuple[str, ...] = ()
    seconds: float = 0.02
    grace: int = GRACE

    def __call__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        items: dict[str, dict[str, Any]] = {f"trial {i}": {} for i in range(self.items)}
        storage = open_storage(self.url, heartbeat=HEARTBEAT, grace=self.grace)
        study = open_study(storage, "shared", items, {"trials": self.items})
        work([Job(study, items, self.do)], waiting=lambda _: None, look_after=LOOK)

    def do(self, trial: optuna.Trial) -> float:
        value = trial.suggest_float("x", 0, 1)
        mark = self.log.with_name(f"died in {item_of(trial)}")
        if item_of(trial) in self.die_in and not mark.exists():
            mark.write_text(str(value))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        with open(self.log, "a") as file:
            file.write(f"{item_of(trial)},{os.getpid()},{value}\n")
        return value

    @property
    def done(self) -> list[str]:
        """The items that were made, by whomever."""
        return [line.split(",")[0] for line in self.log.read_text().splitlines()] if self.log.exists() else []


@functools.cache
def _empty_database() -> bytes:
    """A database with Optuna's tables; to make them takes ten times as long as to open a copy."""
    with tempfile.TemporaryDirectory(prefix="glora-search-") as folder:
        open_storage(sqlite_url(Path(folder))).engine.dispose()
        return Path(folder, "search.db").read_bytes()


def quick_storage(folder: Path, **options: int) -> SharedStorage:
    """A storage that does not wait for the disk."""
    if not (folder / "search.db").exists():
        (folder / "search.db").write_bytes(_empty_database())
    storage = open_storage(sqlite_url(folder), **{"heartbeat": HEARTBEAT, "grace": GRACE, **options})
    sqlalchemy.event.listen(storage.engine, "connect", lambda made, _: made.execute("PRAGMA synchronous=OFF"))
    storage.engine.dispose()
    return storage


def together(workers: Sequence[Callable[[], None]], seconds: float = 240) -> list[int | None]:
    """Run workers side by side; their exit codes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=worker) for worker in workers]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def read_trials(url: str, study: str = "shared") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(storage=open_storage(url), study_name=study).get_trials()
