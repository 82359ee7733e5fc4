"""A model that cannot write is refused before anything of it is loaded, and wherever it comes from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from glora.experiments.config import RunConfig
from glora.experiments.models.model_fit import length_errors, positions, why_it_writes_no_text
from glora.experiments.plan import InvalidComparisonError, check_settings, plan_comparison

TINY = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4}


def error(**settings: object) -> str:
    with pytest.raises(InvalidComparisonError) as refused:
        check_settings(settings)
    (found,) = refused.value.errors
    return found


def test_encoders_write_no_answers(tmp_path: Path, tiny_deberta: Path, sums_folder: Path) -> None:
    data = {"task": "gsm8k", "data_dir": str(sums_folder)}
    assert "model='roberta-base' is an encoder" in error(model="roberta-base", **data)
    assert "causal model, such as Qwen3-0.6B" in error(model="microsoft/deberta-v3-base", **data)
    assert "(deberta-v2) is an encoder" in error(model=str(tiny_deberta), **data)
    for kind, message in (("t5", "an encoder and a decoder"), ("vit", "is not a causal language model")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "is_encoder_decoder": kind == "t5"}))
        assert message in error(model=str(tmp_path), **data)
    with pytest.raises(InvalidComparisonError, match="all-MiniLM-L6-v2.* name a causal model"):
        plan_comparison(tmp_path / "out", settings=data)  # the default model


def test_causal_models_and_models_of_the_hub_pass(tiny_writer: Path, sums_folder: Path) -> None:
    data = {"task": "gsm8k", "data_dir": str(sums_folder)}
    for model in ("Qwen3-0.6B", "someone/some-model", str(tiny_writer)):
        assert check_settings({"model": model, "max_length": 40, **data}).model == model
    assert check_settings({"model": "Qwen3-0.6B", "task": "rte"}).task == "rte", "causal models classify, too"


def test_more_tokens_than_a_model_reads_are_refused_at_once(
    tmp_path: Path, tiny_deberta: Path, tiny_writer: Path, glue_folder: Path, sums_folder: Path
) -> None:
    found = error(model=str(tiny_deberta), task="rte", data_dir=str(glue_folder), max_length=65)
    assert re.fullmatch(f"max_length=65 .*64 tokens .*{tiny_deberta} .*to 64 or less", found)
    assert check_settings({"model": str(tiny_deberta), "task": "rte", "max_length": 64}).max_length == 64
    found = error(model=str(tiny_writer), task="gsm8k", data_dir=str(sums_folder))
    assert re.match("max_length=1024 .*48 tokens", found), "by default it is 1024 where answers are written"
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "max_position_embeddings": 34, "pad_token_id": 1}')
    assert "to 32 or less" in error(model=str(tmp_path), task="rte", max_length=33), "no tokenizer says more"


def test_a_model_that_cannot_be_had_is_told_before_the_first_run(tmp_path: Path, glue_folder: Path) -> None:
    settings = {"model": "someone/some-model", "task": "rte", "data_dir": str(glue_folder)}
    with pytest.raises(InvalidComparisonError, match="model 'someone/some-model'.*glora list models"):
        plan_comparison(tmp_path / "out", methods=("lora",), seeds=(0,), settings=settings)
    (tmp_path / "config.json").write_text('{"model_type": "no such model"}')
    assert "from the folder" in error(model=str(tmp_path), task="rte")


def test_without_trl_written_answers_are_refused_at_once(monkeypatch: pytest.MonkeyPatch, sums_folder: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = error(model="Qwen3-0.6B", task="gsm8k", data_dir=str(sums_folder))
    assert re.fullmatch(r"gsm8k .*TRL, .*not installed: pip install 'glora\[experiments]'", found)
    assert check_settings({"model": "roberta-base", "task": "rte"}).task == "rte"


def test_what_says_nothing_is_not_refused() -> None:
    assert why_it_writes_no_text({}) is None
    assert why_it_writes_no_text({"model_type": "bert", "is_decoder": True}) is None
    assert "is an encoder" in (why_it_writes_no_text({"model_type": "bert"}) or "")


def test_settings_of_written_answers_are_for_them() -> None:
    assert re.match("max_new_tokens=9 .*written answers, .*rte ", error(task="rte", max_new_tokens=9))
    assert "temperature=0.5 is for written answers" in error(task="rte", temperature=0.5)


def tiny(kind: str, **fields: Any) -> Any:
    return AutoConfig.for_model(kind, **{**TINY, "max_position_embeddings": 16, "pad_token_id": 1, **fields})


def reads(config: Any, tokens: int) -> bool:
    model = AutoModel.from_config(config).eval()
    try:
        with torch.no_grad():
            model(input_ids=torch.full((1, tokens), 5))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (tiny("bert"), 16),
        (tiny("roberta"), 14),
        (tiny("mpnet"), 14),
        (tiny("gpt2", n_embd=8, n_layer=1, n_head=2), 16),
        (tiny("deberta-v2", position_biased_input=True, **RELATIVE), 16),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_learned_positions_end(config: Any, limit: int) -> None:
    assert positions(config) == limit
    assert reads(config, limit)
    assert not reads(config, limit + 1)


def test_relative_positions_do_not_end() -> None:
    config = tiny("deberta-v2", position_biased_input=False, **RELATIVE)
    assert positions(config) is None
    assert reads(config, 40)
    assert positions(AutoConfig.for_model("t5")) is None


def test_of_a_model_of_images_and_text_the_text_counts() -> None:
    config = AutoConfig.for_model("gemma3")
    assert positions(config) == config.text_config.max_position_embeddings


@pytest.mark.parametrize(("stated", "limit"), [(12, 12), (10**30, 14), (None, 14)])
def test_the_tokenizer_speaks_first(stated: int | None, limit: int, tmp_path: Any) -> None:
    tiny("roberta").save_pretrained(tmp_path)
    if stated is not None:
        (tmp_path / "tokenizer_config.json").write_text(f'{{"model_max_length": {stated}}}')
    found = [length_errors(RunConfig(model=str(tmp_path), max_length=length)) for length in (limit, limit + 1)]
    assert [len(errors) for errors in found] == [0, 1]
