"""`python -m benchmarks.end_to_end run sst2` makes the runs that are missing, `report` the table and the picture."""

from __future__ import annotations

import argparse
import functools
import math
import time
from pathlib import Path

import torch
from benchmarks.end_to_end.design import RACES, entries
from benchmarks.end_to_end.records import HERE, best_rate, read
from benchmarks.end_to_end.report import write_report
from benchmarks.end_to_end.training import Track
from benchmarks.machine_load import QUIET, wait_until_quiet
from benchmarks.study.design import TUNING_SEED
from benchmarks.study.records import append

from glora.experiments.config import DEFAULT_MODEL
from glora.experiments.models.registry import PACKAGED_LLM


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument(
        "what", choices=("tune", "run", "report"), help="`tune`: only the runs that choose learning rates"
    )
    parser.add_argument("tasks", nargs="*", default=["sst2", "gsm8k"], metavar="TASK", help=", ".join(RACES))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with glue/ and gsm8k/")
    parser.add_argument("--llm", default=PACKAGED_LLM.model, help="the model of gsm8k")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after this many minutes")
    parser.add_argument("--threads", type=int, default=2, help="threads of an operation on the CPU")
    parser.add_argument("--any-load", action="store_true", help="time runs beside other work, and keep them")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the records are")
    arguments = parser.parse_args()
    if arguments.what == "report":
        write_report(arguments.folder)
        return
    torch.set_num_threads(arguments.threads)
    limit = math.inf if arguments.any_load else QUIET
    begun = time.monotonic()
    for race in arguments.tasks:
        model = arguments.llm if RACES[race].task == "gsm8k" else DEFAULT_MODEL
        track = Track(race, arguments.data, model)
        while time.monotonic() - begun < 60 * arguments.minutes:
            records = read(race, arguments.folder)
            wanted = entries(race, functools.partial(best_rate, records, race))
            missing = [
                entry
                for entry in wanted
                if entry not in records and (entry.seed == TUNING_SEED or arguments.what == "run")
            ]
            if not missing:
                break
            tuning = missing[0].seed == TUNING_SEED  # only its losses count
            others = None if tuning else wait_until_quiet(limit)
            record = track.make(missing[0]) | {"others_before": others}
            kept = tuning or record["others_during"] < limit
            if kept:
                append([record], arguments.folder)
            print(
                f"{race} {record['arm']} lr={record['learning_rate']:g} seed={record['seed']}: loss "
                f"{record['curve'][-1][-1]:.4f} after {record['seconds']:.1f} s, others used "
                f"{record['others_during']:.2f} cores{'' if kept else ': not kept'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
