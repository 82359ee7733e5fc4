"""`python -m benchmarks.planted run` makes the runs that are missing, `confirm` those on unseen seeds, `wide` those that start
wide, `report` the tables."""

from __future__ import annotations

import argparse
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted", description=__doc__)
    parser.add_argument("what", choices=("run", "confirm", "wide", "report"))
    parser.add_argument("--records", type=Path, default=HERE / "records.jsonl")
    parser.add_argument("--limit", type=int, help="make at most this many runs")
    parser.add_argument("--variants", nargs="+", help="make runs of these variants only")
    parser.add_argument("--settings", nargs="+", help="make runs at these settings only, by the names in grid.CELLS")
    arguments = parser.parse_args()
    if arguments.what != "report":
        import torch
        from benchmarks.planted.grid import confirmation, only, run_missing, runs, tuned, tuning, wide
        from benchmarks.records import read_lines

        torch.set_num_threads(1)  # the same bits in every run, and the matrices are too small for more
        if arguments.what == "wide":
            run_missing(arguments.records, tuning())
            run_missing(arguments.records, wide(tuned(read_lines(arguments.records))), arguments.limit)
            return
        wanted = only(runs() if arguments.what == "run" else confirmation(), arguments.variants, arguments.settings)
        run_missing(arguments.records, wanted, arguments.limit)
    else:
        from benchmarks.planted.report import write_report

        write_report(arguments.records, HERE)


if __name__ == "__main__":
    main()
