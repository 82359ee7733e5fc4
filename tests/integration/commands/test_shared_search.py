"""A search that several processes share on a real PostgreSQL server, as several machines would; one of them is killed."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glora.experiments.config import RunConfig, SearchOptions
from glora.experiments.records.store import read_records
from glora.experiments.search.plan import plan_search
from glora.experiments.search.ranges import parse_range
from glora.experiments.search.sharing import Sharing, make_shared_runs
from glora.experiments.search.storage import StorageError, open_storage
from glora.experiments.search.trials import plan_tuned_runs, run_trials
from glora.experiments.training.progress import RunProgress
from postgresql_server import PASSWORD
from unit.experiments.plan_case import FakeRuns
from unit.experiments.search.search_case import together

TRIALS, SEEDS = 4, (0, 1)


@dataclass(frozen=True)
class Machine:
    """`glora search --storage` on a machine with folders of its own; its runs are made without training.

    `dies_in` says in which run it is killed: "tuning", "reporting" or neither.
    """

    url: str
    folder: Path
    settings: dict[str, Any]
    log: Path
    dies_in: str = ""

    def __call__(self) -> None:
        storage = open_storage(self.url, heartbeat=1, grace=3)
        plan = plan_search(
            self.folder,
            "shared search",
            pairs=[self.settings],
            methods=("lora", "glora"),
            seeds=SEEDS,
            ranges=[parse_range("learning_rate", "1e-4-1e-2"), parse_range("beta", "0.8-0.99")],
            options=SearchOptions(TRIALS),
        )
        runs = FakeRuns(self.accuracy)
        outcomes = run_trials(plan, storage, RunProgress(), make_run=runs, look_after=0.3)
        sharing, plans = Sharing(storage, plan.name), plan_tuned_runs(plan, outcomes)
        make_shared_runs(sharing, plans, RunProgress(), make_run=runs, look_after=0.3)

    def accuracy(self, config: RunConfig) -> float:
        stage = "reporting" if config.held_out is None else "tuning"
        killed = self.log.with_name(f"killed in {stage}")
        if stage == self.dies_in:
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(600):  # whoever begins first leaves something for the one that is to be killed
            if killed.exists():
                break
            time.sleep(0.1)
        with open(self.log, "a") as file:
            file.write(f"{stage} {config.method} {config.seed}\n")
        return config.learning_rate


def test_three_machines_make_exactly_the_trials_and_the_runs_of_one(
    server: str, tmp_path: Path, tiny_deberta: Path, glue_folder: Path
) -> None:
    settings = {"model": str(tiny_deberta), "task": "rte", "data_dir": str(glue_folder), "rank": 4, "max_length": 32}
    machines = [
        Machine(server, tmp_path / name, settings, tmp_path / "log", dies_in)
        for name, dies_in in (("one", ""), ("two", "tuning"), ("three", "reporting"))
    ]
    assert together(machines) == [0, -signal.SIGKILL, -signal.SIGKILL]
    made = Counter((tmp_path / "log").read_text().splitlines())
    assert made == {
        "tuning lora 2": TRIALS,
        "tuning glora 2": TRIALS,
        **{f"reporting {method} {seed}": 1 for method in ("lora", "glora") for seed in SEEDS},
    }
    assert len(read_records(tmp_path / "one")) == 4
    late = Machine(server, tmp_path / "late", settings, tmp_path / "log")
    late()
    assert Counter((tmp_path / "log").read_text().splitlines()) == made, "nothing was left to do"
    assert read_records(tmp_path / "late") == read_records(tmp_path / "one"), "and all records are there"


def test_a_wrong_password_is_told_and_not_shown(server: str) -> None:
    with pytest.raises(StorageError, match="password authentication failed") as caught:
        open_storage(server.replace(PASSWORD, "wrong-secret"))
    assert "secret" not in str(caught.value)
    assert "glora:***@127.0.0.1" in str(caught.value)
