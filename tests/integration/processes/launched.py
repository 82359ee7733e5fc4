"""The program that accelerate launch starts in tests/integration/processes/test_ddp.py: the loop of docs/processes.md."""

import os
import sys

import torch
import torch.distributed as dist

from integration.processes.process_cases import train_with_accelerate

if __name__ == "__main__":
    torch.set_num_threads(1)
    result = train_with_accelerate(int(os.environ["WORLD_SIZE"]))
    if dist.get_rank() == 0:
        torch.save(result | {"processes": dist.get_world_size()}, sys.argv[1])
    dist.destroy_process_group()
