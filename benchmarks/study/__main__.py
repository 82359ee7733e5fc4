"""`python -m benchmarks.study run sst2` makes the runs that are missing, `report` the tables and the pictures."""

from __future__ import annotations

import argparse
import functools
import time
import zlib
from pathlib import Path

from benchmarks.study.design import TASKS, runs
from benchmarks.study.records import append, best_rate, read

from glora.experiments.config import DEFAULT_MODEL
from glora.experiments.models.registry import PACKAGED_LLM


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("tasks", nargs="*", default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with glue/ and gsm8k/")
    parser.add_argument("--llm", default=PACKAGED_LLM.model, help="the model of gsm8k")
    parser.add_argument("--minutes", type=float, help="begin no run after this many minutes")
    parser.add_argument(
        "--worker", default="0/1", help="I/N: of N processes this is number I, from 0; each has its share of the runs"
    )
    arguments = parser.parse_args()
    if arguments.what == "report":
        from benchmarks.study.records import README
        from benchmarks.study.report import write_report

        write_report(page=README)
        return
    import torch
    from benchmarks.study.training import Bench

    torch.set_num_threads(1)  # the same bits in every run, however many go on beside it
    begun = time.monotonic()
    number, workers = map(int, arguments.worker.split("/"))
    benches: dict[str, Bench] = {}
    while not arguments.minutes or time.monotonic() - begun < 60 * arguments.minutes:
        records = {key: record for task in arguments.tasks for key, record in read(task).items()}
        wanted = dict.fromkeys(runs(arguments.tasks, functools.partial(best_rate, records)))
        missing = [run for run in wanted if (run, False) not in records]
        if not missing:
            return
        mine = [run for run in missing if zlib.crc32(repr(run).encode()) % workers == number]
        run = (mine or missing[::-1])[0]  # at the end what another may be making: the first record counts
        if run.task not in benches:
            model = arguments.llm if run.task == "gsm8k" else DEFAULT_MODEL
            benches[run.task] = Bench(run.task, arguments.data, model)
        for record in append(list(benches[run.task].make(run))):
            compressed = " compressed" if record["compressed"] else ""
            score = record["score"] or float("nan")
            print(
                f"{record['task']} {record['method']}{compressed} r={record['rank']} {record['where']} "
                f"lr={record['learning_rate']:g} seed={record['seed']}: loss {record['loss']:.4f} "
                f"score {score:.4f} {record['parameters']:,} parameters {record['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
