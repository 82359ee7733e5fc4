"""The tables of `--plan`."""

from __future__ import annotations

import io
import json
from pathlib import Path

from glora.experiments.estimate import estimate
from glora.experiments.experiment import load_experiment
from glora.experiments.plan_view import describe_experiment
from glora.experiments.terminal import Terminal


def test_data_sets_whose_paths_end_alike_have_their_own_rows(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for split in ("train", "validation"):
            (tmp_path / folder / f"{split}.csv").write_text("text,label\ngood,0\nbad,1\n")
    datasets = [str(tmp_path / folder / "train.csv") for folder in "ab"]
    fields = {
        "models_to_use": ["all-MiniLM-L6-v2"],
        "datasets_to_use": datasets,
        "proposed_method": "GLoRA",
        "comparative_methods": ["LoRA"],
        "evaluation_metrics": ["Accuracy"],
    }
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps(fields))
    experiment = load_experiment(file)
    readings = dict.fromkeys(experiment.datasets.values(), "2 classes")
    console = Terminal(file=io.StringIO(), width=200)
    console.print(describe_experiment(experiment, estimate(experiment, tmp_path / "out"), tmp_path / "out", readings))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    for folder in "ab":
        assert any(f"{folder}/train.csv: 2 classes" in line for line in lines)
        assert sum(f" {folder}/train.csv  " in line for line in lines) == 2, "a row for each method"
