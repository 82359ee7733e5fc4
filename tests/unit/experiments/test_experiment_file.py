"""An experiment file: what its fields mean, and all that is wrong with it at once."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glora.experiments import plan as planning
from glora.experiments.config import SETTINGS
from glora.experiments.experiment import load_experiment
from glora.experiments.experiment_file import NOT_SETTINGS, Experiment, InvalidExperimentError, Search
from glora.experiments.models import loading as models
from glora.experiments.search.ranges import SearchRange

ROOT = Path(__file__).resolve().parents[3]
SEED_FILE = ROOT.parent / "shared" / "seed" / "experiment.json"
SMALLEST = {"models_to_use": ["all-MiniLM-L6-v2"], "datasets_to_use": ["stdlib-docs"]}

STUDY = {
    "experiment_summary": "GLoRA against AdaLoRA.",
    "evaluation_metrics": ["Accuracy", "Matthews Correlation", "Wall-clock Training Time"],
    "models_to_use": ["DeBERTa-v3-base (86M)"],
    "datasets_to_use": ["GLUE MNLI"],
    "proposed_method": "Gradient-Norm Aware Rank Allocation for LoRA (GLoRA)",
    "comparative_methods": ["AdaLoRA"],
    "hyperparameters_to_search": [
        {"name": "learning_rate", "range": "1e-4-5e-4"},
        {"name": "beta (EMA)", "range": "0.8-0.99"},
        {"name": "total_rank", "range": "96,128,160"},
        {"name": "warmup_steps", "range": "500-1500"},
    ],
}
"""The fields and spellings of the experiment files that people have."""


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Write an experiment file; by default the smallest, with the fields that are given."""

    def write(content: dict[str, Any] | None = None, **fields: Any) -> Path:
        path = tmp_path / "experiment.json"
        path.write_text(json.dumps({**(SMALLEST if content is None else content), **fields}))
        return path

    return write


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something is loaded")

    monkeypatch.setattr(models, "load_classifier", refuse)
    monkeypatch.setattr(planning, "load_task", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def errors(path: Path, given: dict[str, Any] | None = None) -> tuple[str, ...]:
    with pytest.raises(InvalidExperimentError) as refused:
        load_experiment(path, given)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert all(error in message for error in refused.value.errors)
    return refused.value.errors


def check_the_study(path: Path) -> None:
    found = load_experiment(path)
    assert found.models == {"DeBERTa-v3-base (86M)": "deberta-v3-base"}
    assert found.datasets == {"GLUE MNLI": "mnli"}
    assert list(found.metrics.values()) == ["accuracy", "matthews_correlation", "training time"]
    assert found.methods == ("lora", "adalora", "glora")
    assert found.seeds == (0, 1, 2)
    assert found.ranges == (
        SearchRange("learning_rate", "float", 1e-4, 5e-4, log=True),
        SearchRange("beta", "float", 0.8, 0.99),
        SearchRange("total_rank", "categorical", choices=(96, 128, 160)),
        SearchRange("warmup_steps", "integer", 500, 1500),
    )
    assert [(c.method, c.seed) for c in found.configs] == [(m, s) for s in (0, 1, 2) for m in found.methods]
    assert {(c.model, c.task, c.learning_rate, c.allocation.beta, c.allocation.total_rank) for c in found.configs} == {
        ("deberta-v3-base", "mnli", 2e-4, 0.9, None)
    }, "what is searched is at its default"


def test_the_study_is_understood(file: Callable[..., Path]) -> None:
    check_the_study(file(STUDY))


def test_the_users_own_file_is_understood_as_it_stands() -> None:
    if not SEED_FILE.is_file():
        pytest.skip("the study's own file is not here")
    check_the_study(SEED_FILE)


def test_the_example_is_understood() -> None:
    found = load_experiment(ROOT / "examples" / "experiment.json")
    assert set(STUDY) < set(json.loads(found.path.read_text())), "it has the fields that people's files have"
    assert list(found.models.values()) == ["all-MiniLM-L6-v2"]
    assert len(found.configs) == 8


def test_yaml_says_the_same(file: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "models_to_use: [all-MiniLM-L6-v2]\ndatasets_to_use:\n  - stdlib-docs\nsettings:\n  learning_rate: 1e-3\n"
        "hyperparameters_to_search:\n  - {name: total_rank, range: [96, 128]}\n  - {name: beta, range: 0.8-0.99}\n"
    )
    other = file(
        settings={"learning_rate": 1e-3},
        hyperparameters_to_search=[{"name": "total_rank", "range": "96,128"}, {"name": "beta", "range": "0.8-0.99"}],
    )
    in_yaml, in_json = load_experiment(path), load_experiment(other)
    assert in_yaml.configs == in_json.configs
    assert in_yaml.configs[0].learning_rate == 1e-3, "YAML 1.1 reads 1e-3 as a text"
    assert in_yaml.ranges == in_json.ranges


def test_an_editors_schema_may_be_named(file: Callable[..., Path]) -> None:
    assert load_experiment(file({"$schema": "experiment.schema.json", **SMALLEST})).configs


def test_lora_comes_first_and_glora_last_whatever_is_compared(file: Callable[..., Path]) -> None:
    assert load_experiment(file(comparative_methods=[])).methods == ("lora", "glora")
    found = load_experiment(file(comparative_methods=["GLoRA", "shuffled", "Vanilla LoRA", "AdaLoRA"]))
    assert found.methods == ("lora", "shuffled", "adalora", "glora")


def test_every_model_meets_every_data_set(file: Callable[..., Path]) -> None:
    found = load_experiment(
        file(models_to_use=["roberta-base", "Qwen3-0.6B"], datasets_to_use=["RTE", "GLUE SST-2"], seeds=[4])
    )
    pairs = [("roberta-base", "rte"), ("roberta-base", "sst2"), ("Qwen3-0.6B", "rte"), ("Qwen3-0.6B", "sst2")]
    assert [(pair.settings["model"], pair.settings["task"]) for pair in found.pairs] == pairs
    assert len(found.configs) == 4 * 3
    assert len({config.key for config in found.configs}) == 12


def test_settings_and_overrides(file: Callable[..., Path], glue_folder: Path, tiny_deberta: Path) -> None:
    path = file(
        STUDY,
        datasets_to_use=["GLUE MNLI", "stdlib-docs"],
        model_overrides={"deberta-v3-base": str(tiny_deberta)},
        data_dir=str(glue_folder),
        settings={"epochs": 1, "warmup_steps": 0.3, "max_length": 32},
    )
    found = load_experiment(path)
    assert {config.model for config in found.configs} == {str(tiny_deberta)}
    assert {(c.task, c.data_dir) for c in found.configs} == {("mnli", str(glue_folder)), ("stdlib-docs", None)}
    assert {config.epochs for config in found.configs} == {1}
    assert {c.method for c in found.configs if c.allocation.warmup_steps == 0.3} == {"glora"}, (
        "lora looks at no warm-up"
    )


def test_what_is_given_beside_the_file_wins(file: Callable[..., Path]) -> None:
    path = file(seeds=[0, 1], settings={"epochs": 2, "rank": 4})
    found = load_experiment(path, {"seeds": [7], "settings": {"epochs": "5"}})
    assert {(c.seed, c.epochs, c.rank) for c in found.configs} == {(7, 5, 4)}


def test_an_override_may_stand_for_a_model_that_nobody_knows(file: Callable[..., Path], tiny_deberta: Path) -> None:
    ours = {"models_to_use": ["our model"], "model_overrides": {"our model": str(tiny_deberta)}}
    found = load_experiment(file(**ours, settings={"max_length": 32}))
    assert found.models == {"our model": str(tiny_deberta)}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            {"evaluation_metrics": ["Accuracy"]},
            "'Accuracy' (accuracy) is not measured on alpaca-cleaned; choose from loss",
        ),
        ({"evaluation_metrics": ["Exact match"]}, "'Exact match' (exact_match) is not measured on alpaca-cleaned"),
        (
            {"datasets_to_use": ["gsm8k"], "evaluation_metrics": ["Pearson"]},
            "'Pearson' (pearson) is not measured on gsm8k",
        ),
        (
            {"datasets_to_use": ["GLUE RTE"], "evaluation_metrics": ["Perplexity"]},
            "(perplexity) is not measured on rte",
        ),
        ({"models_to_use": ["roberta-base"]}, "model='roberta-base' is an encoder: it gives labels and writes no text"),
        (
            {"datasets_to_use": ["GLUE RTE"], "settings": {"max_new_tokens": 5}},
            "max_new_tokens=5 is for written answers",
        ),
        ({"settings": {"temperature": 0}}, "settings: temperature=0: input should be greater than 0"),
    ],
)
def test_what_a_generative_task_contradicts_is_refused(file: Callable[..., Path], fields: dict, error: str) -> None:
    written = {
        "models_to_use": ["Qwen3-0.6B"],
        "datasets_to_use": ["alpaca-cleaned"],
        "evaluation_metrics": [],
    } | fields
    (found,) = errors(file(**written))
    assert error in found


def test_accuracy_is_what_the_data_sets_call_it(file: Callable[..., Path]) -> None:
    def named(*tasks: str) -> str:
        written = dict(models_to_use=["Qwen3-0.6B"], datasets_to_use=list(tasks), evaluation_metrics=["Accuracy"])
        return load_experiment(file(**written)).metrics["Accuracy"]

    assert (named("gsm8k", "MATH"), named("GLUE RTE"), named("gsm8k", "GLUE RTE")) == (
        "exact_match", "accuracy", "accuracy",
    )  # fmt: skip


def test_a_generative_task_has_longer_examples_unless_it_is_told(file: Callable[..., Path]) -> None:
    written = dict(models_to_use=["Qwen3-0.6B"], datasets_to_use=["gsm8k"], evaluation_metrics=["Accuracy"])
    assert {config.max_length for config in load_experiment(file(**written)).configs} == {1024}
    assert {c.max_length for c in load_experiment(file(**written, settings={"max_length": 300})).configs} == {300}
    assert {c.max_length for c in load_experiment(file()).configs} == {128}


def test_everything_wrong_is_said_at_once(file: Callable[..., Path]) -> None:
    found = errors(
        file(
            evaluation_metrics=["Acuracy", "Accuracy"],
            models_to_use=["DeBERTa-v3-bas", "roberta-base", "RoBERTa-base"],
            datasets_to_use=["GLUE MNLX", "gsm8"],
            comparative_methods=["AdaLoR"],
            hyperparameters_to_search=[
                {"name": "learning_rate", "range": "5e-4-1e-4"},
                {"name": "momentumm", "range": "0-1"},
                {"name": "beta", "range": "0.8-0.99"},
                {"name": "EMA beta", "range": "0.8-0.9"},
                {"name": "warmup_steps", "rnge": "5-10"},
            ],
            seeds=[0, 0],
            settings={"epoch": 1, "rank": 0, "held_out": 0.5, "seed": 3, "lr_scheduler": "linea"},
            model_overrides={"bert": "x/y"},
            epochs=1,
            metods=["lora"],
        )
    )
    expected = [
        "evaluation_metrics: 'Acuracy' is not a known metric; did you mean 'accuracy'",
        "models_to_use: 'DeBERTa-v3-bas' is not a known model; did you mean 'deberta-v3-base'",
        "models_to_use: roberta-base is given more than once",
        "datasets_to_use: 'GLUE MNLX' is not a known data set; did you mean ",
        "datasets_to_use: 'gsm8' is not a known data set; did you mean 'gsm8k'",
        "comparative_methods: 'AdaLoR' is not a known method; did you mean 'adalora'",
        "hyperparameters_to_search[4].rnge is not a field; did you mean 'range'?",
        "hyperparameters_to_search[4].range is missing",
        "hyperparameters_to_search: learning_rate: the range '5e-4-1e-4' has 5e-4 below",
        "hyperparameters_to_search: 'momentumm' ",
        "hyperparameters_to_search: beta is given more than once",
        "seeds: 0 is given more than once",
        "settings: epoch: there is no such setting; did you mean 'epochs'",
        "settings: rank=0: input should be greater than or equal to 1",
        "settings.seed: write it into seeds",
        "settings.held_out: it is an option of a search, `glora search --held-out`",
        "model_overrides: 'bert' is not in models_to_use",
        "epochs is a setting of a run; write it into settings",
        "metods is not a field",
    ]
    for start in expected:
        assert any(error.startswith(start) for error in found), (start, found)
    assert len(found) == len(expected), found


def test_errors_of_settings_are_said_once_for_all_pairs(file: Callable[..., Path]) -> None:
    found = errors(file(models_to_use=["roberta-base", "bert-base-uncased"], settings={"epochs": 0, "min_rank": 9}))
    (error,) = found
    assert re.match("settings: epochs=0: .*greater than 0", error)
    found = errors(file(models_to_use=["roberta-base", "bert-base-uncased"], settings={"min_rank": 9}))
    assert len(found) == 1
    assert found[0].startswith("settings: glora: min_rank=9")


def test_a_metric_that_no_data_set_has_is_refused(file: Callable[..., Path]) -> None:
    (error,) = errors(file(evaluation_metrics=["F1", "Accuracy"]))
    assert re.match(r"evaluation_metrics: 'F1' \(f1\) .*stdlib-docs; .*accuracy, matthews_correlation", error)
    assert load_experiment(file(evaluation_metrics=["F1"], datasets_to_use=["stdlib-docs", "MRPC"]))


def test_missing_fields_and_wrong_kinds(file: Callable[..., Path]) -> None:
    found = errors(file({"models_to_use": [], "seeds": [0, "one", -1, True], "evaluation_metrics": "Accuracy"}))
    for start in (
        "models_to_use is empty; give at least one",
        "datasets_to_use is missing",
        "seeds[1]='one': input should be a valid integer",
        "seeds[2]=-1: input should be greater than or equal to 0",
        "seeds[3]=True: expected a number or a text, not true or false",
        "evaluation_metrics='Accuracy': input should be a valid list",
    ):
        assert any(error.startswith(start) for error in found), (start, found)
    assert len(found) == 6


def test_a_range_of_true_is_no_range_of_one(file: Callable[..., Path]) -> None:
    assert Search(name="rank", range=True).range is True
    (error,) = errors(file(hyperparameters_to_search=[{"name": "rank", "range": True}]))
    assert error.startswith("hyperparameters_to_search: rank: the range ")
    assert load_experiment(file(hyperparameters_to_search=[{"name": "group_by_length", "range": [True, False]}]))


def test_a_data_folder_that_no_data_set_reads_or_that_is_not_there(
    file: Callable[..., Path], glue_folder: Path
) -> None:
    (error,) = errors(file(data_dir=str(glue_folder)))
    assert "is for GLUE" in error
    (error,) = errors(file(datasets_to_use=["RTE"], data_dir=str(glue_folder / "absent")))
    assert "there is no folder" in error


def test_the_schema_describes_every_field() -> None:
    schema = Experiment.model_json_schema()
    assert set(STUDY) < set(schema["properties"])
    assert schema["required"] == ["models_to_use", "datasets_to_use"]
    assert schema["additionalProperties"] is False
    assert "$schema" in schema["properties"]
    assert all(field["description"] for field in schema["properties"].values())


def test_an_editor_knows_the_settings_and_their_values() -> None:
    settings = Experiment.model_json_schema()["properties"]["settings"]
    assert settings["additionalProperties"] is False, "a misspelt setting is underlined"
    assert settings["properties"]["precision"]["enum"] == ["float32", "bfloat16"]
    assert settings["properties"]["epochs"]["exclusiveMinimum"] == 0
    assert settings["properties"].keys() == SETTINGS.keys() - NOT_SETTINGS.keys()
