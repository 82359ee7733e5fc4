"""Loading models: one head a seed, nothing else disturbed, and errors that name the fix."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

from glora.experiments.config import DEFAULT_MODEL
from glora.experiments.models import resolution
from glora.experiments.models.loading import _dequantized, load_causal_lm, load_classifier
from glora.experiments.models.modules import find_head_modules, find_target_modules
from glora.experiments.models.registry import ModelNotFoundError
from glora.experiments.models.resolution import resolve_model


def head(model: transformers.PreTrainedModel) -> torch.Tensor:
    names = find_head_modules(model)
    parameters = [p for name in names for p in model.get_submodule(name).parameters()]
    return torch.cat([p.detach().flatten() for p in parameters])


def test_one_head_for_one_seed_whatever_was_drawn_before(tiny_deberta: Path) -> None:
    first, _ = load_classifier(str(tiny_deberta), num_labels=3, seed=5)
    torch.rand(7)
    again, _ = load_classifier(str(tiny_deberta), num_labels=3, seed=5)
    other, _ = load_classifier(str(tiny_deberta), num_labels=3, seed=6)
    assert torch.equal(head(first), head(again))
    assert not torch.equal(head(first), head(other))
    assert head(first).std() > 0.01
    for name, parameter in first.deberta.named_parameters():
        assert torch.equal(parameter, other.deberta.get_parameter(name))


def test_global_random_states_are_as_before(tiny_deberta: Path) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    load_classifier(str(tiny_deberta), num_labels=2, seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_float32_whatever_the_checkpoint_has(tiny_deberta: Path, tmp_path: Path) -> None:
    model, tokenizer = load_classifier(str(tiny_deberta), num_labels=2)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_classifier(str(tmp_path), num_labels=2)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_class_names_are_in_the_config(tiny_deberta: Path) -> None:
    model, _ = load_classifier(str(tiny_deberta), num_labels=2, label_names=("no", "yes"))
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert model.config.label2id == {"no": 0, "yes": 1}
    assert model.classifier.out_features == 2


def test_regression_has_one_output_and_squared_error(tiny_deberta: Path) -> None:
    model, tokenizer = load_classifier(str(tiny_deberta), num_labels=1, regression=True)
    model.eval()
    inputs = tokenizer(["a red fox", "a dog"], padding=True, return_tensors="pt")
    output = model(**inputs, labels=torch.tensor([1.5, 3.0]))
    expected = ((output.logits.squeeze(1) - torch.tensor([1.5, 3.0])) ** 2).mean()
    torch.testing.assert_close(output.loss, expected)


def test_a_head_in_the_checkpoint_is_kept_if_it_fits_and_drawn_anew_if_not(tiny_deberta: Path, tmp_path: Path) -> None:
    trained, tokenizer = load_classifier(str(tiny_deberta), num_labels=3, seed=1)
    trained.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    kept, _ = load_classifier(str(tmp_path), num_labels=3, seed=2)
    assert torch.equal(head(kept), head(trained))
    fresh, _ = load_classifier(str(tmp_path), num_labels=2, seed=2)
    assert fresh.classifier.out_features == 2
    assert torch.equal(fresh.pooler.dense.weight, trained.pooler.dense.weight)


def test_loading_is_silent_and_leaves_the_verbosity(tiny_deberta: Path, capfd: pytest.CaptureFixture[str]) -> None:
    transformers.logging.set_verbosity_info()
    try:
        load_classifier(str(tiny_deberta), num_labels=2)
        assert transformers.logging.get_verbosity() == transformers.logging.INFO
        assert transformers.logging.is_progress_bar_enabled()
    finally:
        transformers.logging.set_verbosity_warning()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_causal_model_pads_with_its_end_token(tiny_deberta: Path, tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=80, n_embd=8, n_layer=1, n_head=1, n_positions=48)
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_deberta)
    backend = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]", unk_token="[UNK]"
    )
    backend.save_pretrained(tmp_path)
    model, loaded = load_classifier(str(tmp_path), num_labels=2)
    assert loaded.pad_token_id == model.config.pad_token_id == loaded.convert_tokens_to_ids("[SEP]")
    assert loaded.model_max_length == 48  # the tokenizer knows no limit, the model does
    assert model(**loaded(["a", "a red fox"], padding=True, return_tensors="pt")).logits.shape == (2, 2)


def test_what_the_hub_does_not_deliver(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'bert-base-uncasd': .*; did you mean 'bert-base-uncased'"):
        load_classifier("bert-base-uncasd", num_labels=2)
    with pytest.raises(ModelNotFoundError, match="folder .*local copy of FacebookAI/roberta-base"):
        load_classifier("roberta-base", num_labels=2)


def test_a_sentencepiece_tokenizer_without_its_packages(tiny_deberta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers then asks for tiktoken, which would not help."""

    def from_pretrained(*_: object, **__: object) -> None:
        raise ValueError("`tiktoken` is required to read a `tiktoken` file.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    monkeypatch.setattr(resolution, "_is_installed", lambda module: module != "google.protobuf")
    with pytest.raises(ModelNotFoundError, match="SentencePiece .*protobuf: pip install 'glora"):
        load_classifier(str(tiny_deberta), num_labels=2)


@pytest.mark.encoder
def test_the_embedded_encoder(embedded_encoder: Path) -> None:
    assert resolve_model(DEFAULT_MODEL) == str(embedded_encoder)
    model, tokenizer = load_classifier(DEFAULT_MODEL, num_labels=2)
    assert sum(p.numel() for p in model.bert.parameters()) == pytest.approx(22.7e6, rel=0.01)
    assert tokenizer.tokenize("Rank allocation.") == ["rank", "allocation", "."]
    assert len(find_target_modules(model)) == 36


@pytest.mark.parametrize("method", ["mxfp4", "fp8"])
def test_weights_that_cannot_be_trained_on_are_dequantized(method: str) -> None:
    dequantized = _dequantized(SimpleNamespace(quantization_config={"quant_method": method}))["quantization_config"]
    assert dequantized.get_loading_attributes()["dequantize"] is True, (
        "the one attribute that wins over the checkpoint's own"
    )
    assert _dequantized(SimpleNamespace(quantization_config=None)) == _dequantized(SimpleNamespace()) == {}
    assert _dequantized(SimpleNamespace(quantization_config={"quant_method": "bitsandbytes"})) == {}


def test_loading_a_causal_model(tiny_writer: Path, tiny_deberta: Path, tmp_path: Path) -> None:
    model, tokenizer = load_causal_lm(str(tiny_writer), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert (tokenizer.model_max_length, tokenizer.pad_token) == (48, "<pad>")
    with pytest.raises(ModelNotFoundError, match=r"\(deberta-v2\) is an encoder"):
        load_causal_lm(str(tiny_deberta), dtype=torch.float32)
    AutoModel.from_pretrained(tiny_writer).save_pretrained(tmp_path / "backbone")
    AutoTokenizer.from_pretrained(tiny_writer).save_pretrained(tmp_path / "backbone")
    with pytest.raises(ModelNotFoundError, match="no weights for lm_head.weight"):
        load_causal_lm(str(tmp_path / "backbone"), dtype=torch.float32)
