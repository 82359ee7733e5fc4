"""What an experiment has still to do, judged by the records of earlier runs."""

from __future__ import annotations

import json
from pathlib import Path

from glora.experiments.experiment import load_experiment
from glora.experiments.experiment_plan import outlook
from glora.experiments.records import write_record
from unit.experiments.synthetic_records import finished_run


def test_earlier_runs_tell_steps_and_time_wherever_the_data_lie(tmp_path: Path, glue_folder: Path) -> None:
    file = tmp_path / "experiment.json"
    fields = {"models_to_use": ["all-MiniLM-L6-v2"], "datasets_to_use": ["GLUE RTE"], "data_dir": str(glue_folder)}
    file.write_text(json.dumps(fields))
    earlier = finished_run(task="rte", method="lora", seed=7, train_seconds=60.0, data_dir="elsewhere")
    write_record(tmp_path / "out", earlier.model_copy(update={"examples": {"train": 192}, "steps": 9}))
    for run in outlook(load_experiment(file), tmp_path / "out").to_make:
        assert run.steps == 18, "192 examples in batches of 32, three times"
        assert run.seconds is not None
        assert run.seconds >= 120, "twice the steps of the earlier run"
