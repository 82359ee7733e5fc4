"""The newest checkpoint that can be resumed, after a run that was killed.

Trainer writes a checkpoint in place, file by file, trainer_state.json last, and removes old ones file by file as well. A run
that is killed meanwhile leaves a folder that looks like a checkpoint. `resume_from_checkpoint=True` takes the one with the
highest number and fails on it, or, where only the optimiser's file is missing, goes on without.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "pytorch_model.bin")
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_0")  # Trainer's, and FSDP2's: whole, or in parts
_WEIGHTS_IN_PARTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint of a Trainer run that was written to its end.

        trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))

    starts anew the first time and goes on ever after, however often the run is killed.

    A checkpoint counts as complete if trainer_state.json is there and of the right step, the weights are there, the optimiser,
    the scheduler and the random state are all there (or none of them: save_only_model=True), and no file has been cut off.

    Args:
        output_dir: Trainer's output_dir; need not exist.

    Returns:
        The folder, or None if there is no complete checkpoint.
    """
    folders = [(int(match[1]), path) for path in Path(output_dir).glob("checkpoint-*") if (match := _numbered(path))]
    return next((str(path) for step, path in sorted(folders, reverse=True) if _is_complete(path, step)), None)


def _numbered(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"checkpoint-(\d+)", path.name)


def _is_complete(folder: Path, step: int) -> bool:
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or cut off
        return False
    if state.get("global_step") != step:
        return False
    weights = any((folder / name).exists() for name in (*_WEIGHTS, *_WEIGHTS_IN_PARTS))
    in_subfolders = any((path / name).exists() for path in folder.iterdir() if path.is_dir() for name in _WEIGHTS)
    states = [
        any((folder / name).exists() for name in _OPTIMIZERS),
        (folder / "scheduler.pt").exists(),
        any(folder.glob("rng_state*.pth")),
    ]
    return (weights or in_subfolders) and len(set(states)) == 1 and all(map(_is_whole, folder.rglob("*")))


def _is_whole(path: Path) -> bool:
    """Whether a file of tensors has its end: torch's is a zip archive, and safetensors' header gives its length."""
    if path.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return True
        except (SafetensorError, OSError):
            return False
    return True
