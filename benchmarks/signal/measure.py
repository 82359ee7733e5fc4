"""Make the records and the report of this benchmark.

    python -m benchmarks.signal.measure run --data-dir GLUE     the warm-ups that are missing, about five to twenty minutes each
    python -m benchmarks.signal.measure report                  report.md, from the records alone
    python -m benchmarks.signal.measure cost --threads 1        step_times.json: each signal, timed on a quiet machine

A record is a line of records.jsonl: one warm-up, one number of steps. A warm-up whose records are in the file is not made
again. GLUE is the folder that holds RTE/train.tsv.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.records import append_lines, read_lines, versions

HERE = Path(__file__).parent
STEP_TIMES = HERE / "step_times.json"


def run_missing(path: Path, data_dir: str | None) -> None:
    """Make the warm-ups that are not in the file, in the order of the seeds."""
    import torch
    from benchmarks.signal.settings import SEEDS, SETTINGS
    from benchmarks.signal.warm_up import warm_up

    torch.set_num_threads(1)  # the same bits in every run
    for seed in SEEDS:
        for setting in SETTINGS:
            settings = json.loads(json.dumps(dataclasses.asdict(setting)))
            known = {r["steps"] for r in read_lines(path) if r["setting"] == settings and r["seed"] == seed}
            if known == set(setting.steps):
                continue
            for seen in warm_up(setting, seed, data_dir, _progress(setting, seed)):
                if len(seen.losses) not in known:
                    record = evaluate(seen) | {"setting": settings, "seed": seed, "versions": versions()}
                    append_lines(path, [record])


def evaluate(seen: Any) -> dict[str, Any]:
    """Results of one warm-up: for each estimate the budget misplaced, averaged over its sketches, and at worst."""
    from benchmarks.signal import estimates as e

    steps = len(seen.losses)
    total = 8 * len(seen.names)
    exact = e.norms(seen, e.Estimate("exact"), steps, 0.9)
    truth = e.ranks(seen.names, exact, total)
    found = []
    for estimate in e.estimates():
        of_draws = []
        for draw in range(e.draws(estimate)):
            scores = e.norms(seen, estimate, steps, 0.9, draw)
            of_draws.append(e.misplaced(e.ranks(seen.names, scores, total), truth))
        found.append([*dataclasses.astuple(estimate), round(sum(of_draws) / len(of_draws), 4), round(max(of_draws), 4)])
    averages = {
        name: [float(f"{x:.3g}") for x in e.norms(seen, e.Estimate("exact"), steps, beta)]
        for name, beta in (("0.9", 0.9), ("0.98", 0.98), ("mean", None))
    }
    return {
        "steps": steps,
        "names": seen.names,
        "exact": averages,
        "explained": e.explained(seen, steps),
        "loss": [round(float(seen.losses[:10].mean()), 4), round(float(seen.losses[-10:].mean()), 4)],
        "misplaced": found,
    }


def _progress(setting: Any, seed: int) -> Any:
    def report(step: int, loss: float) -> None:
        if step % 10 == 0:
            print(f"{setting.task} seed {seed}  step {step:4}  loss {loss:.4f}", flush=True)

    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.signal.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("run", "report", "cost"))
    parser.add_argument("--records", type=Path, default=HERE / "records.jsonl")
    parser.add_argument("--data-dir", help="folder of GLUE's own files, for RTE")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each signal that are timed")
    parser.add_argument("--threads", type=int, default=1, help="threads of an operation that is timed")
    arguments = parser.parse_args()
    if arguments.what == "run":
        run_missing(arguments.records, arguments.data_dir)
    elif arguments.what == "report":
        from benchmarks.signal.report import report

        times = json.loads(STEP_TIMES.read_text(encoding="utf-8"))
        (HERE / "report.md").write_text(report(read_lines(arguments.records), times), encoding="utf-8")
    else:
        from benchmarks.signal.cost import time_steps

        from glora.experiments.records.provenance import collect_provenance

        machine = {"processor": collect_provenance().machine.cpu, "versions": versions()}
        times = machine | time_steps(arguments.rounds, arguments.threads)
        STEP_TIMES.write_text(json.dumps(times, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
