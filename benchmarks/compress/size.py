"""Seconds and peak memory of compressing an adapter of a 7B model's size: 224 matrices of 4096 × 4096 at r = 64.

python -m benchmarks.compress.size --folder a/folder/with/one/GB
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file

from glora import compress_adapter
from glora.experiments.training.measurement import PeakMemory

LAYERS, WIDTH, RANK = 32, 4096, 64
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(folder: Path, dtype: torch.dtype) -> None:
    """Write a random adapter whose directions fall off in size."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(0, -2, RANK)
    tensors = {}
    for layer in range(LAYERS):
        for kind in KINDS:
            prefix = f"base_model.model.model.layers.{layer}.{kind}."
            tensors[f"{prefix}lora_A.weight"] = torch.randn(RANK, WIDTH, generator=generator).to(dtype)
            tensors[f"{prefix}lora_B.weight"] = (torch.randn(WIDTH, RANK, generator=generator) * sizes).to(dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME)
    LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(KINDS)).save_pretrained(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the adapters, which are deleted at the end")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the adapter's weights")
    arguments = parser.parse_args()
    adapter = arguments.folder / "adapter"
    try:
        write_adapter(adapter, getattr(torch, arguments.dtype))
        size = (adapter / SAFETENSORS_WEIGHTS_NAME).stat().st_size
        memory = PeakMemory()
        before = memory.read()
        begun = time.perf_counter()
        made = compress_adapter(adapter, parameters=0.25, output=arguments.folder / "smaller")
        seconds = time.perf_counter() - begun
        gib = (memory.read() - before) / 2**30
        what = f"{len(made.ranks)} matrices {WIDTH} × {WIDTH}, r = {RANK}, {arguments.dtype}, file {size / 1e6:.0f} MB"
        print(f"{made}\n{what}: {seconds:.1f} s on {torch.get_num_threads()} threads, {gib:.2f} GiB above the process")
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
