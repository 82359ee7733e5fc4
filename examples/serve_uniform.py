"""Serving: the saved adapter, and its padded form for servers that read one rank for all layers.

Both are loaded by stock PEFT and give the same logits; so does the model that they are merged into.

    python examples/serve_uniform.py [FOLDER]      default: a temporary folder
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from glora import RankAllocationConfig, RankAllocator, export_uniform


def base_model():
    set_seed(0)
    size = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(LlamaConfig(vocab_size=100, **size)).eval()


def train():
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base_model(), lora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(rule="spectrum", average_rank=4, warmup_steps=10))
    for _ in range(40):
        tokens = (torch.randint(100, (16, 1)) + torch.arange(12)) % 100
        model(input_ids=tokens, labels=tokens).loss.backward()
        allocator.step()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def describe(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    size = (folder / "adapter_model.safetensors").stat().st_size
    print(
        f"{folder.name}: r={config['r']}, lora_alpha={config['lora_alpha']}, {len(config['rank_pattern'])} entries in "
        f"rank_pattern, without an adapter: {config['exclude_modules'] or 'none'}, {size / 1024:.0f} KiB"
    )


@torch.no_grad()
def largest_difference(model, other, tokens):
    return (model(tokens).logits - other(tokens).logits).abs().max().item()


def main(folder):
    model = train()
    model.save_pretrained(folder / "adapter")
    export_uniform(model, folder / "uniform")

    tokens = torch.arange(32).reshape(2, 16)
    print(f"trained against base model: {largest_difference(model, base_model(), tokens):.2g}")
    for form in ("adapter", "uniform"):
        describe(folder / form)
        loaded = PeftModel.from_pretrained(base_model(), folder / form).eval()
        print(f"{form}: largest difference {largest_difference(model, loaded, tokens):.2g}", end=", ")
        print(f"merged {largest_difference(model, loaded.merge_and_unload(), tokens):.2g}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
