"""GLoRA in a loop with accelerate: accumulation, clipping, and a checkpoint that holds the allocation.

The training goes to the end, then starts again from the checkpoint of its middle, on a new model, and gives the same loss.
The model's layers must have their ranks before weights are loaded into them, hence the two hooks.

    python examples/accelerate_loop.py
"""

import json
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from glora import RankAllocationConfig, RankAllocator

MIDDLE, END = 12, 24  # optimizer steps; the ranks change at step 8


def dataset():
    tokens = torch.randint(2, 100, (96, 12), generator=torch.Generator().manual_seed(0))
    return TensorDataset(tokens, (tokens[:, 0] > tokens[:, -1]).long())


def train(folder, resume=False):
    set_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    base = BertForSequenceClassification(BertConfig(vocab_size=100, **size))
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"], task_type="SEQ_CLS")
    model = get_peft_model(base, lora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    batches = DataLoader(dataset(), batch_size=8)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(rule="spectrum", average_rank=2, warmup_steps=8))

    def save_ranks(models, weights, directory):
        Path(directory, "glora.json").write_text(json.dumps(allocator.state_dict()))

    def load_ranks(models, directory):
        allocator.load_state_dict(json.loads(Path(directory, "glora.json").read_text()))

    accelerator.register_save_state_pre_hook(save_ranks)
    accelerator.register_load_state_pre_hook(load_ranks)
    steps = 0
    if resume:
        accelerator.load_state(folder)
        steps = MIDDLE
    model.train()
    while steps < END:
        for tokens, labels in batches:
            with accelerator.accumulate(model):
                loss = model(input_ids=tokens, labels=labels).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    allocator.step()
                optimizer.step()
                optimizer.zero_grad()
            steps += accelerator.sync_gradients
            if accelerator.sync_gradients and steps == MIDDLE and not resume:
                accelerator.save_state(folder)
    return loss.item(), allocator.ranks


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        loss, ranks = train(folder)
        print(f"uninterrupted: loss {loss:.6f}, ranks {min(ranks.values())} to {max(ranks.values())}")
        again, resumed_ranks = train(folder, resume=True)
        print(f"resumed at step {MIDDLE}: loss {again:.6f}, the same: {again == loss and resumed_ranks == ranks}")
