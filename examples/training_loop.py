"""GLoRA in your own training loop: two lines more than plain LoRA.

A small network that reads handwritten digits learns to read them with black and white exchanged. Accumulation and clipping
are there to show where `allocator.step()` belongs: after both, before the optimizer. The digits come with scikit-learn.

    python examples/training_loop.py
"""

import torch
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_digits
from torch import nn

from glora import RankAllocationConfig, RankAllocator

ACCUMULATE, AVERAGE_RANK = 2, 4


def accuracy(model, images, digits):
    with torch.no_grad():
        return (model(images).argmax(-1) == digits).float().mean().item()


def pretrained(images, digits):
    network = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(150):
        rows = torch.randint(len(images), (64,))
        nn.functional.cross_entropy(network(images[rows]), digits[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


def main():
    torch.manual_seed(0)
    data = load_digits()
    images, digits = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    train, test = slice(0, 1200), slice(1200, None)
    network = pretrained(images[train], digits[train])
    negatives = 1 - images
    print(f"before: accuracy on negatives {accuracy(network, negatives[test], digits[test]):.2f}")

    lora = LoraConfig(r=4 * AVERAGE_RANK, lora_alpha=8 * AVERAGE_RANK, target_modules=["0", "2", "4"])
    model = get_peft_model(network, lora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    allocator = RankAllocator(
        model, optimizer, RankAllocationConfig(rule="spectrum", average_rank=AVERAGE_RANK, warmup_steps=100)
    )

    for step in range(1, 401):
        for _ in range(ACCUMULATE):
            rows = torch.randint(1200, (32,))
            loss = nn.functional.cross_entropy(model(negatives[rows]), digits[rows]) / ACCUMULATE
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        allocator.step()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}: ranks {allocator.ranks}, {allocator.parameters:,} parameters")

    print(f"after: accuracy on negatives {accuracy(model, negatives[test], digits[test]):.2f}")


if __name__ == "__main__":
    main()
