"""Free text, found in the registries; and what must not be guessed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from glora.experiments.data.metric import METRICS
from glora.experiments.data.registry import TASKS, reads_data_dir, resolve_task
from glora.experiments.data.task import EXACT_MATCH_METRICS, LOSS_METRICS, DataNotFoundError
from glora.experiments.methods.registry import METHODS
from glora.experiments.models.registry import MODELS, ModelNotFoundError
from glora.experiments.models.resolution import resolve_model
from glora.experiments.name_resolution import (
    COLUMNS,
    UnknownNameError,
    measured_as,
    resolve_dataset_name,
    resolve_method_name,
    resolve_metric_name,
    resolve_model_name,
)
from glora.experiments.training import metrics

CAUSAL = {
    "Llama-4-Scout-17B-16E": "meta-llama/Llama-4-Scout-17B-16E",
    "Llama-4-Maverick-17B-128E": "meta-llama/Llama-4-Maverick-17B-128E",
    **{f"Qwen3-{size}": f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B")},
    "DeepSeek-v3": "deepseek-ai/DeepSeek-V3",
    "DeepSeek-V3.1": "deepseek-ai/DeepSeek-V3.1",
    "DeepSeek-V3.2-Exp": "deepseek-ai/DeepSeek-V3.2-Exp",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    **{f"gemma-3-{size}-it": f"google/gemma-3-{size}-it" for size in ("1b", "4b", "27b")},
}


@pytest.mark.parametrize(
    "text", ["DeBERTa-v3-base (86M)", "deberta-v3-base", "microsoft/deberta-v3-base", "DeBERTa v3 base [fp32]"]
)
def test_a_model_is_found_by_its_spellings(text: str) -> None:
    assert resolve_model_name(text) == "deberta-v3-base"
    assert resolve_model(resolve_model_name(text)) == "microsoft/deberta-v3-base"


@pytest.mark.parametrize(("text", "source"), CAUSAL.items())
def test_causal_models_are_known(text: str, source: str) -> None:
    entry = MODELS[resolve_model_name(text)]
    assert (entry.source, entry.kind) == (source, "causal-lm")


def test_hub_ids_and_folders_are_models(tmp_path: Path) -> None:
    assert resolve_model_name("someone/their-model") == "someone/their-model"
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model_name(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ModelNotFoundError):
        resolve_model_name(str(tmp_path / "absent"))


def test_an_unknown_model_has_its_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match="'DeBERTa-v3-bas'.*did you mean 'deberta-v3-base'"):
        resolve_model_name("DeBERTa-v3-bas")
    with pytest.raises(UnknownNameError, match="glora list models"):
        resolve_model_name("zzz")


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("GLUE MNLI", "mnli"),
        ("MNLI (matched)", "mnli"),
        ("glue/mnli", "mnli"),
        ("GLUE: SST-2", "sst2"),
        ("the RTE dataset", "rte"),
        ("STS-B benchmark", "stsb"),
        ("stdlib-docs", "stdlib-docs"),
    ],
)
def test_a_data_set_is_found_by_its_spellings(text: str, task: str) -> None:
    assert resolve_dataset_name(text) == task


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_found_by_its_name(task: str) -> None:
    assert resolve_dataset_name(task) == task


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("alpaca-cleaned", "alpaca-cleaned"),
        ("Alpaca (cleaned)", "alpaca-cleaned"),
        ("yahma/alpaca-cleaned", "alpaca-cleaned"),
        ("databricks-dolly-15k", "databricks-dolly-15k"),
        ("the Dolly dataset", "databricks-dolly-15k"),
        ("gsm8k", "gsm8k"),
        ("GSM8K (main)", "gsm8k"),
        ("GSM-8K benchmark", "gsm8k"),
        ("openai/gsm8k", "gsm8k"),
        ("MATH", "MATH"),
        ("math dataset", "MATH"),
        ("EleutherAI/hendrycks_math", "MATH"),
    ],
)
def test_generative_data_sets_are_found_by_what_people_call_them(text: str, name: str) -> None:
    assert resolve_dataset_name(text) == name
    assert reads_data_dir(name)


def test_a_path_is_no_name_of_a_generative_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataNotFoundError):
        resolve_dataset_name("./gsm8k")
    (tmp_path / "gsm8k").mkdir()
    assert resolve_dataset_name("gsm8k") == resolve_task("gsm8k").name == "gsm8k"
    with pytest.raises(DataNotFoundError, match=r"gsm8k.*train\.\w+"):
        resolve_task("./gsm8k")


def test_an_unknown_data_set_has_its_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match="'GLUE MNLX'.*did you mean .*'mnli'"):
        resolve_dataset_name("GLUE MNLX")
    with pytest.raises(UnknownNameError, match="did you mean 'gsm8k'"):
        resolve_dataset_name("gsm8")
    with pytest.raises(DataNotFoundError):
        resolve_dataset_name("absent/train.csv")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Accuracy", "accuracy"),
        ("Validation accuracy (%)", "accuracy"),
        ("dev-set accuracy", "accuracy"),
        ("Matthews Correlation", "matthews_correlation"),
        ("Matthews correlation coefficient (MCC)", "matthews_correlation"),
        ("MCC", "matthews_correlation"),
        ("F1", "f1"),
        ("F1-score", "f1"),
        ("Pearson correlation", "pearson"),
        ("Spearman", "spearman"),
        ("Exact match", "exact_match"),
        ("EM", "exact_match"),
        ("Perplexity", "perplexity"),
        ("Held-out loss", "loss"),
        ("Validation loss", "loss"),
        ("Loss", "loss"),
        ("Wall-clock Training Time", "training time"),
        ("wall-clock time", "training time"),
        ("Peak GPU memory", "peak memory"),
        ("Number of trainable parameters", "adapter parameters"),
    ],
)
def test_a_metric_is_found_by_its_spellings(text: str, name: str) -> None:
    assert resolve_metric_name(text) == name


@pytest.mark.parametrize("text", ["Macro F1", "Test accuracy", "Top-5 accuracy", "BLEU"])
def test_a_metric_that_is_not_measured_is_not_taken_for_another(text: str) -> None:
    with pytest.raises(UnknownNameError, match=f"'{re.escape(text)}'"):
        resolve_metric_name(text)


def test_accuracy_is_the_exact_match_of_a_model_that_writes() -> None:
    assert measured_as("accuracy", ("accuracy", "exact_match")) == "accuracy"
    assert measured_as("accuracy", ("exact_match", "loss")) == "exact_match"
    assert measured_as("accuracy", ("loss", "perplexity")) is None
    assert measured_as("exact_match", ("accuracy",)) is None


def test_the_metrics_are_those_that_are_computed() -> None:
    assert set(METRICS) == {*metrics.METRICS, *EXACT_MATCH_METRICS, *LOSS_METRICS}
    assert not set(METRICS) & set(COLUMNS)


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("AdaLoRA", "adalora"),
        ("LoRA", "lora"),
        ("Vanilla LoRA (r=8)", "lora"),
        ("ordinary LoRA with fixed rank", None),
        ("GLoRA", "glora"),
        ("LoRA+", "lora_plus"),
        ("LoRA-plus", "lora_plus"),
        ("PiSSA", "pissa"),
        ("LoRA-GA", "lora_ga"),
        ("EVA", "eva"),
        ("Explained Variance Adaptation (EVA)", "eva"),
        ("rsLoRA", "rslora"),
        ("Rank-Stabilized LoRA", "rslora"),
        ("DoRA", "dora"),
        ("Full fine-tuning", "full"),
        ("Full Finetuning (all weights)", "full"),
        ("Fine-tuning", "full"),
        ("Full", "full"),
        *((name, name) for name in METHODS),
    ],
)
def test_a_method_is_found_by_its_spellings(text: str, method: str | None) -> None:
    if method is None:
        with pytest.raises(UnknownNameError):
            resolve_method_name(text)
    else:
        assert resolve_method_name(text) == method


def test_an_unknown_method_has_its_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match="'AdaLoR'.*did you mean 'adalora'"):
        resolve_method_name("AdaLoR")
