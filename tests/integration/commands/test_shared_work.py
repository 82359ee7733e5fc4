"""Commands that share their work on several machines: a real PostgreSQL server, three commands at once, some of them killed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pytest

from glora import cli
from glora.experiments.config import RunConfig
from glora.experiments.records import provenance
from glora.experiments.records.store import read_records
from glora.experiments.report import write as report
from glora.experiments.report.summary import side_by_side
from glora.experiments.search import sharing as shared_plan
from glora.experiments.search import storage as storage_module
from glora.experiments.search import study as study_module
from glora.experiments.search.storage import StorageError, open_storage, sqlite_url
from glora.experiments.training import run as train
from postgresql_server import PASSWORD
from unit.experiments.plan_case import FakeRuns, closeness, raising
from unit.experiments.search.search_case import together

SEEDS, METHODS = (0, 1, 2, 3), ("lora", "adalora", "glora")
OPTIONS = ("--methods", ",".join(METHODS), "--seeds", ",".join(map(str, SEEDS)))


@dataclass(frozen=True)
class Machine:
    """The command on a machine with its own folder; its runs are made without training, each written into a log.

    `dies_in` is the beginning of the label of the run in which the process is killed, such as "reporting adalora" or "tuning";
    until then the others stay in their first runs.
    """

    arguments: tuple[object, ...]
    log: Path
    dies_in: str = ""

    def __call__(self) -> None:
        quick = functools.partial(open_storage, heartbeat=1, grace=3)
        for module in (storage_module, shared_plan):  # in a separate process
            module.open_storage = quick  # type: ignore[attr-defined]
        study_module.HEARTBEAT_SECONDS = 1
        report.write_report = lambda folder, **_: folder / "report.md"  # type: ignore[assignment]
        train.run = FakeRuns(self.accuracy)  # type: ignore[assignment]
        provenance._PROCESS_STARTED_AT = datetime.now(timezone.utc).isoformat()  # a fork has its parent's
        sys.argv = ["glora", *map(str, self.arguments)]
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            cli.main()

    def accuracy(self, config: RunConfig) -> float:
        stage = "reporting" if config.held_out is None else "tuning"
        label = f"{stage} {config.method} {config.seed}"
        mark = self.log.with_name(f"died in {stage}")
        if self.dies_in and label.startswith(self.dies_in):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        until = time.monotonic() + 60
        while not (self.dies_in.startswith(stage) or mark.exists()) and time.monotonic() < until:
            time.sleep(0.1)
        with open(self.log, "a") as file:
            file.write(f"{label}\n")
        return closeness(config)

    @property
    def made(self) -> Counter[str]:
        """The runs that were made, by whichever machine."""
        return Counter(self.log.read_text().splitlines())


def test_three_machines_make_each_run_once_although_one_of_them_is_killed(
    server: str, tmp_path: Path, tiny_options: tuple[str, ...], shown: Callable[..., str]
) -> None:
    def machine(name: str, dies_in: str = "") -> Machine:
        folder = tmp_path / name / "shared"  # the name of the last folder names the work
        command = ("compare", *tiny_options, *OPTIONS, "--output", folder, "--storage", server)
        return Machine(command, tmp_path / "log", dies_in)

    machines = [machine("one"), machine("two", "reporting adalora"), machine("three")]
    assert together(machines) == [0, -signal.SIGKILL, 0]
    made = machines[0].made
    assert made == {f"reporting {method} {seed}": 1 for seed in SEEDS for method in METHODS}
    one, two, three = (read_records(tmp_path / name / "shared") for name in ("one", "two", "three"))
    assert one == three
    assert len(one) == 12
    assert {record.key for record in two} < {record.key for record in one}
    beside = Counter(
        side_by_side(record, lora)
        for record in one
        for lora in one
        if lora.config.method == "lora" and record.config.seed == lora.config.seed
    )
    assert beside == {True: 10, False: 2}, "times can be compared in all seeds but the one that was taken over"

    plan = shown(*machine("two").arguments, "--plan")
    assert f"as 'shared' in {server.replace(PASSWORD, '***')}, by seeds: 12 finished" in plan
    shown(*machine("two").arguments)
    assert machines[0].made == made, "nothing was left to do"
    assert read_records(tmp_path / "two" / "shared") == one
    shown("report", tmp_path / "two" / "shared")
    assert (tmp_path / "two" / "shared" / "report.html").is_file()


def test_three_machines_make_exactly_the_trials_and_the_runs_of_one(
    server: str, tmp_path: Path, tiny_options: tuple[str, ...], shown: Callable[..., str]
) -> None:
    def machine(name: str, dies_in: str = "") -> Machine:
        options = "--methods lora,glora --seeds 0,1 --trials 4 --range lr=1e-4-1e-2 --range beta=0.8-0.99 --study ours"
        command = ("search", *tiny_options, *options.split(), "--output", tmp_path / name, "--storage", server)
        return Machine(command, tmp_path / "log", dies_in)

    machines = [machine("one"), machine("two", "tuning"), machine("three", "reporting")]
    assert together(machines) == [0, -signal.SIGKILL, -signal.SIGKILL]
    made = machines[0].made
    assert made == {
        "tuning lora 2": 4,
        "tuning glora 2": 4,
        **{f"reporting {method} {seed}": 1 for method in ("lora", "glora") for seed in (0, 1)},
    }
    assert len(read_records(tmp_path / "one")) == 4
    shown(*machine("late").arguments)
    assert machines[0].made == made, "nothing was left to do"
    assert read_records(tmp_path / "late") == read_records(tmp_path / "one"), "and all records are there"


def test_a_wrong_password_is_told_and_not_shown(server: str) -> None:
    with pytest.raises(StorageError, match="password authentication failed") as caught:
        open_storage(server.replace(PASSWORD, "wrong-secret"))
    assert "secret" not in str(caught.value)
    assert "glora:***@127.0.0.1" in str(caught.value)


# The command, in this process


@pytest.fixture
def shown(call) -> Callable[..., str]:
    """`glora ...`, which ends with this code; what it prints."""

    def run_command(*arguments: object, code: int = 0) -> str:
        done = call(*arguments)
        assert done.code == code, done.err
        return done.out + done.err

    return run_command


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The runs that were made in this process, by a stand-in; there is no report."""
    runs = FakeRuns()
    monkeypatch.setattr(train, "run", runs)
    monkeypatch.setattr(report, "write_report", lambda folder, **_: folder / "report.md")
    return runs.made


def test_an_experiment_file_is_shared_by_runs(
    shown, made: list[RunConfig], tmp_path: Path, tiny_deberta: Path, glue_folder: Path
) -> None:
    file = tmp_path / "study.json"
    content = {
        "models_to_use": [str(tiny_deberta)],
        "comparative_methods": ["AdaLoRA"],
        "datasets_to_use": ["RTE", "SST-2"],
        "seeds": [0, 1],
        "data_dir": str(glue_folder),
        "settings": {"max_length": 32},
    }
    file.write_text(json.dumps(content))
    shared = ("--storage", sqlite_url(tmp_path), "--study", "ours", "--claim", "runs")
    plan = shown("run", file, "--output", tmp_path / "one", *shared, "--plan")
    assert plan.count("as 'ours' in sqlite:///") == 2
    assert plan.count("by runs: 6 waiting") == 2
    shown("run", file, "--output", tmp_path / "one", *shared)
    assert [(config.task, config.seed) for config in made] == [
        (task, seed) for seed in (0, 1) for task in ("rte", "sst2") for _ in METHODS
    ]
    shown("run", file, "--output", tmp_path / "two", *shared)
    assert len(made) == 12
    assert read_records(tmp_path / "two") == read_records(tmp_path / "one")
    shown("run", file, "--output", tmp_path / "one", "--seeds", "0,1,2", *shared)
    assert len(made) == 18
    other = shown("run", file, "--output", tmp_path / "three", "--set", "rank=4", *shared, code=2)
    assert "rank: it has 8; now 4" in other
    assert len(made) == 18


def test_ctrl_c_says_how_to_go_on_and_gives_the_seed_back(
    shown, made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_options: tuple[str, ...]
) -> None:
    options = (*tiny_options, "--seeds", "0")
    shared = ("--storage", sqlite_url(tmp_path), "--study", "ours")
    with monkeypatch.context() as patch:
        patch.setattr(train, "run", FakeRuns(raising(KeyboardInterrupt())))
        out = shown("compare", *options, *shared, "--output", tmp_path / "one", code=130)
    assert "the same command" in out
    began = time.monotonic()
    shown("compare", *options, *shared, "--output", tmp_path / "two")
    assert len(made) == 3
    assert time.monotonic() - began < 30, "nobody waited for a heartbeat to be missed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--claim", "runs"), "claim='runs' is for shared runs"),
        (("--storage", "redis://localhost"), "redis"),
        (("--storage", "sqlite:////nowhere/at/all.db"), "unable to open database file"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_data_is_read(
    shown, made: list[RunConfig], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in shown("compare", "--output", tmp_path / "out", *options, code=2)
    assert not made
