"""The division into encoder and head, on tiny random models of many families, as PEFT then carries it out."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from glora.experiments.config import RunConfig
from glora.experiments.models.loading import build_skeleton
from glora.experiments.models.modules import (
    choose_modules,
    find_expert_parameters,
    find_head_modules,
    find_linear_layers,
    find_target_modules,
    largest_ranks,
)
from glora.experiments.models.registry import ModelNotFoundError

WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
BASE = {**WIDTH, "vocab_size": 40, "max_position_embeddings": 32, "num_labels": 3, "pad_token_id": 0}
DECODER = {**BASE, "num_key_value_heads": 1, "head_dim": 8}

# family -> config, linear layers in one encoder layer, linear layers outside of them, head modules
FAMILIES = {
    "bert": (transformers.BertConfig(**BASE), 6, 0, ["bert.pooler", "classifier"]),
    "deberta-v2": (
        transformers.DebertaV2Config(
            **BASE, relative_attention=True, share_att_key=True, pos_att_type=["p2c", "c2p"], pooler_hidden_size=16
        ),
        6,
        0,
        ["pooler", "classifier"],
    ),
    "roberta": (transformers.RobertaConfig(**BASE), 6, 0, ["classifier"]),
    "electra": (transformers.ElectraConfig(**BASE, embedding_size=8), 6, 1, ["classifier"]),
    "albert": (
        transformers.AlbertConfig(**{**BASE, "num_hidden_layers": 1}, embedding_size=8),
        6,
        1,
        ["albert.pooler", "classifier"],
    ),
    "modernbert": (
        transformers.ModernBertConfig(**BASE, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
        4,
        0,
        ["head", "classifier"],
    ),
    "distilbert": (
        transformers.DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3),
        6,
        0,
        ["pre_classifier", "classifier"],
    ),
    "gpt2": (
        transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=0),
        4,
        0,
        ["score"],
    ),
    "t5": (
        transformers.T5Config(
            vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2, num_labels=3
        ),
        8,  # an encoder layer has 6 and a decoder layer 10
        0,
        ["classification_head"],
    ),
    "qwen3": (transformers.Qwen3Config(**DECODER), 7, 0, ["score"]),
    "llama": (transformers.LlamaConfig(**DECODER), 7, 0, ["score"]),
}


def build(family: str) -> transformers.PreTrainedModel:
    return transformers.AutoModelForSequenceClassification.from_config(FAMILIES[family][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_peft_trains_is_what_was_found(family: str) -> None:
    _, per_layer, outside, heads = FAMILIES[family]
    layers = 1 if family == "albert" else 2
    model = build(family)
    assert find_head_modules(model) == heads
    targets = find_target_modules(model)
    assert len(targets) == len(set(targets)) == per_layer * layers + outside

    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(r=2, target_modules=targets, modules_to_save=[*heads], task_type=peft.TaskType.SEQ_CLS),
    )
    base = wrapped.get_base_model()
    adapted = [name for name, module in base.named_modules() if isinstance(module, LoraLayer)]
    saved = [name for name, module in base.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    assert sorted(adapted) == sorted(targets)
    assert sorted(saved) == sorted(heads)
    for name, parameter in base.named_parameters():
        in_head = ".modules_to_save." in name
        assert parameter.requires_grad == (in_head or ".lora_" in name), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_what_the_bare_encoder_does_not_use(family: str) -> None:
    """Independent of names: weights of the encoder change its last hidden states, weights of the head do not."""
    model = build(family).eval()
    encoder = getattr(model, model.base_model_prefix)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    if family == "t5":
        inputs["decoder_input_ids"] = torch.tensor([[5, 6]])
    heads, targets = find_head_modules(model), find_target_modules(model)
    with torch.no_grad():
        before = encoder(**inputs).last_hidden_state
        for name in heads:
            for parameter in model.get_submodule(name).parameters():
                parameter.add_(1.0)
        assert torch.equal(encoder(**inputs).last_hidden_state, before)
        for name in (targets[0], targets[-1]):
            model.get_submodule(name).weight.mul_(1.5)
            changed = encoder(**inputs).last_hidden_state
            assert not torch.equal(changed, before), name
            before = changed


def test_no_parameter_is_left_out() -> None:
    """Everything outside the encoder is head, under any name."""
    model = build("bert")
    model.extra_projection = nn.Linear(2, 2)
    model.parameterless = nn.Dropout()
    assert find_head_modules(model) == ["bert.pooler", "classifier", "extra_projection"]


def test_a_model_that_does_not_name_its_encoder() -> None:
    with pytest.raises(ValueError, match="the encoder of Sequential .* target_modules"):
        find_target_modules(nn.Sequential(nn.Linear(2, 2)))


def test_an_encoder_without_linear_layers() -> None:
    model = nn.Module()
    model.base_model_prefix = "encoder"
    model.encoder = nn.Sequential(nn.Conv1d(2, 2, 1))
    with pytest.raises(ValueError, match="'encoder' of Module .*another model"):
        find_target_modules(model)


def test_modules_are_chosen_by_full_names_and_endings() -> None:
    names = ["a.0.query", "a.0.key", "a.1.query"]
    assert choose_modules(names, None, what="layer") == names
    assert choose_modules(names, ["0.query", "a.1.query"], what="layer") == ["a.0.query", "a.1.query"]
    with pytest.raises(ValueError, match="target_modules: 'qery' matches no layer; .*'query'"):
        choose_modules(names, ["qery"], what="layer")
    with pytest.raises(ValueError, match="'xyz' matches no layer; .*0.key, 0.query"):
        choose_modules(names, ["xyz"], what="layer")


# from the configuration alone


def test_a_folder_without_weights_has_its_matrices(tiny_deberta: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_deberta / "config.json").read_bytes())
    model = build_skeleton(RunConfig(model=str(tmp_path)), "classification")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    hidden = json.loads((tmp_path / "config.json").read_text())["hidden_size"]
    assert set(largest_ranks(model, find_target_modules(model)).values()) == {hidden}


def test_the_largest_rank_of_stacked_experts_is_that_of_one(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    transformers.GptOssConfig(
        **sizes, num_key_value_heads=2, head_dim=4, num_local_experts=64, vocab_size=40
    ).save_pretrained(tmp_path)
    model = build_skeleton(RunConfig(model=str(tmp_path)), "generation")
    experts = largest_ranks(model, find_expert_parameters(model))
    assert set(experts.values()) == {32, 16}
    assert min(largest_ranks(model, find_linear_layers(model)).values()) == 8, "two heads of four for keys and values"


def test_a_configuration_of_another_kind_is_refused(tiny_deberta: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="tiny-deberta"):
        build_skeleton(RunConfig(model=str(tiny_deberta)), "generation")
