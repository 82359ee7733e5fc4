"""Ranks from a few calibration batches: no training, and the model is left as it was.

What comes back is a `rank_pattern` for peft.LoraConfig. From then on everything is plain PEFT: training it needs no glora.

    python examples/suggest_ranks.py
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

from glora import suggest_ranks

R, ALPHA = 8, 16


def calibration_batches(count, vocabulary):
    """Counting up or down from a random number, as token ids; use batches of your own training data."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        start = torch.randint(vocabulary, (8, 1), generator=generator)
        direction = torch.randint(2, (8, 1), generator=generator) * 2 - 1
        tokens = (start + direction * torch.arange(24)) % vocabulary
        yield {"input_ids": tokens, "labels": tokens}


def main():
    set_seed(0)
    size = dict(hidden_size=64, intermediate_size=192, num_hidden_layers=3, head_dim=16)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=100, **size, **heads))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    lora = dict(r=R, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    patterns = suggest_ranks(model, calibration_batches(16, vocabulary=100), LoraConfig(**lora), budget="parameters")

    after = model.state_dict()
    untouched = after.keys() == before.keys() and all(torch.equal(before[name], after[name]) for name in before)
    print(f"the model is as it was: {untouched}")
    for pattern, rank in patterns["rank_pattern"].items():
        print(f"{rank:4}  {pattern}")

    uniform = get_peft_model(Qwen3ForCausalLM(model.config), LoraConfig(**lora))
    allocated = get_peft_model(model, LoraConfig(**lora, **patterns))
    print(f"parameters: {allocated.get_nb_trainable_parameters()[0]:,}, uniform", end=" ")
    print(f"{uniform.get_nb_trainable_parameters()[0]:,}")


if __name__ == "__main__":
    main()
