"""`python -m benchmarks.study best-case --data-dir GLUE` searches among allocations, `report` makes tables and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("what", choices=("best-case", "report"))
    parser.add_argument(
        "--data-dir", default="../shared/data/glue", help="GLUE's own TSV files, a folder for each task"
    )
    arguments = parser.parse_args()
    if arguments.what == "best-case":
        import torch
        from benchmarks.study.best_case import confirm, search

        from glora.experiments.train import run

        torch.set_num_threads(1)
        folder = HERE / "best-case"
        confirm(folder, arguments.data_dir, search(folder, arguments.data_dir, run), run)
    else:
        from benchmarks.study.report import write_report

        write_report(HERE)


if __name__ == "__main__":
    main()
