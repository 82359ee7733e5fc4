"""A model that cannot write is refused before anything of it is loaded, and wherever it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from glora.experiments.models.causal_loading import _dequantised, load_causal_lm
from glora.experiments.models.model_fit import why_it_writes_no_text
from glora.experiments.models.registry import ModelNotFoundError
from glora.experiments.plan import InvalidComparisonError, check_settings, plan_comparison


def fault(**settings: object) -> str:
    with pytest.raises(InvalidComparisonError) as refused:
        check_settings(settings)
    (found,) = refused.value.faults
    return found


def test_encoders_write_no_answers(tmp_path: Path, tiny_deberta: Path, sums_folder: Path) -> None:
    data = {"task": "gsm8k", "data_dir": str(sums_folder)}
    assert "model='roberta-base' is an encoder" in fault(model="roberta-base", **data)
    assert "name a causal model, such as Qwen3-0.6B" in fault(model="microsoft/deberta-v3-base", **data)
    assert "(deberta-v2) is an encoder" in fault(model=str(tiny_deberta), **data)
    for kind, message in (("t5", "an encoder and a decoder"), ("vit", "is no causal language model")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "is_encoder_decoder": kind == "t5"}))
        assert message in fault(model=str(tmp_path), **data)
    with pytest.raises(InvalidComparisonError, match="is an encoder"):
        plan_comparison(tmp_path / "out", settings=data)  # the default model


def test_causal_models_and_models_of_the_hub_pass(tiny_writer: Path, sums_folder: Path) -> None:
    data = {"task": "gsm8k", "data_dir": str(sums_folder)}
    for model in ("Qwen3-0.6B", "someone/some-model", str(tiny_writer)):
        assert check_settings({"model": model, "max_length": 40, **data}).model == model
    assert check_settings({"model": "Qwen3-0.6B", "task": "rte"}).task == "rte", "causal models classify, too"


def test_more_tokens_than_a_model_reads_are_refused_at_once(
    tmp_path: Path, tiny_deberta: Path, tiny_writer: Path, glue_folder: Path, sums_folder: Path
) -> None:
    found = fault(model=str(tiny_deberta), task="rte", data_dir=str(glue_folder), max_length=65)
    assert found == f"max_length=65 is more than the 64 tokens that {tiny_deberta} reads; lower it to 64 or less"
    assert check_settings({"model": str(tiny_deberta), "task": "rte", "max_length": 64}).max_length == 64
    found = fault(model=str(tiny_writer), task="gsm8k", data_dir=str(sums_folder))
    assert found.startswith("max_length=1024 is more than the 48 tokens"), (
        "by default it is 1024 where answers are written"
    )
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "max_position_embeddings": 34, "pad_token_id": 1}')
    assert "lower it to 32 or less" in fault(model=str(tmp_path), task="rte", max_length=33), "no tokenizer says more"


def test_a_model_that_cannot_be_had_is_told_before_the_first_run(tmp_path: Path, glue_folder: Path) -> None:
    settings = {"model": "someone/some-model", "task": "rte", "data_dir": str(glue_folder)}
    with pytest.raises(InvalidComparisonError, match=r"cannot load the model 'someone/some-model'.*glora list models"):
        plan_comparison(tmp_path / "out", methods=("lora",), seeds=(0,), settings=settings)
    (tmp_path / "config.json").write_text('{"model_type": "no such model"}')
    assert "cannot load a model from the folder" in fault(model=str(tmp_path), task="rte")


def test_without_trl_written_answers_are_refused_at_once(monkeypatch: pytest.MonkeyPatch, sums_folder: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = fault(model="Qwen3-0.6B", task="gsm8k", data_dir=str(sums_folder))
    assert found == "gsm8k is trained by TRL, which is not installed: pip install 'glora[experiments]'"
    assert check_settings({"model": "roberta-base", "task": "rte"}).task == "rte"


def test_what_says_nothing_is_not_refused() -> None:
    assert why_it_writes_no_text({}) is None
    assert why_it_writes_no_text({"model_type": "bert", "is_decoder": True}) is None
    assert "is an encoder" in (why_it_writes_no_text({"model_type": "bert"}) or "")


def test_settings_of_written_answers_are_for_them() -> None:
    assert fault(task="rte", max_new_tokens=9) == (
        "max_new_tokens=9 is for tasks whose answers are written, and rte is none; leave it out"
    )
    assert "temperature=0.5 is for tasks" in fault(task="rte", temperature=0.5)


@pytest.mark.parametrize("method", ["mxfp4", "fp8"])
def test_weights_that_cannot_be_trained_on_are_dequantised(method: str) -> None:
    told = _dequantised(SimpleNamespace(quantization_config={"quant_method": method}))["quantization_config"]
    assert told.get_loading_attributes()["dequantize"] is True, "the one attribute that wins over the checkpoint's own"
    assert _dequantised(SimpleNamespace(quantization_config=None)) == _dequantised(SimpleNamespace()) == {}
    assert _dequantised(SimpleNamespace(quantization_config={"quant_method": "bitsandbytes"})) == {}


def test_loading_a_causal_model(tiny_writer: Path, tiny_deberta: Path, tmp_path: Path) -> None:
    model, tokenizer = load_causal_lm(str(tiny_writer), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert (tokenizer.model_max_length, tokenizer.pad_token) == (48, "<pad>")
    with pytest.raises(ModelNotFoundError, match=r"\(deberta-v2\) is an encoder"):
        load_causal_lm(str(tiny_deberta), dtype=torch.float32)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ModelNotFoundError, match="cannot load a causal language model from the folder"):
        load_causal_lm(str(tmp_path), dtype=torch.float32)
    AutoModel.from_pretrained(tiny_writer).save_pretrained(tmp_path / "backbone")
    AutoTokenizer.from_pretrained(tiny_writer).save_pretrained(tmp_path / "backbone")
    with pytest.raises(ModelNotFoundError, match="has no weights for lm_head.weight; without them"):
        load_causal_lm(str(tmp_path / "backbone"), dtype=torch.float32)
