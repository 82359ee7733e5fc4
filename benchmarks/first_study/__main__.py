"""`python -m benchmarks.first_study report` makes tables and a picture, `best-case` searches allocations."""

from __future__ import annotations

import argparse
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_study", description=__doc__)
    parser.add_argument("what", choices=("report", "best-case"))
    parser.add_argument(
        "--data-dir", default="../shared/data/glue", help="GLUE's own TSV files, a folder for each task"
    )
    arguments = parser.parse_args()
    if arguments.what == "best-case":
        import torch
        from benchmarks.first_study.best_case import confirm, search

        from glora.experiments.config import RunConfig
        from glora.experiments.plan import TaskLoader
        from glora.experiments.records.schema import RunRecord
        from glora.experiments.training.run import runs_of

        torch.set_num_threads(1)
        folder, load = HERE / "best-case", TaskLoader()
        make = runs_of(folder)

        def make_run(config: RunConfig) -> RunRecord:
            return make(config, load(config))

        confirm(folder, arguments.data_dir, search(folder, arguments.data_dir, make_run), make_run)
    else:
        from benchmarks.first_study.report import write_report

        write_report(HERE, HERE.parents[1] / "docs" / "first-study.md")


if __name__ == "__main__":
    main()
