"""The newest checkpoint that can be resumed, after a run that was killed.

Trainer writes a checkpoint in place, file by file, trainer_state.json last, and removes old ones file by file as well. A run
that is killed at such a moment leaves a folder that looks like a checkpoint. `resume_from_checkpoint=True` takes the highest
number and fails on it or, where only the optimizer's file is missing, continues without it.
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
    """Return the newest complete checkpoint of a Trainer run.

        trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))

    This starts a run the first time, and continues it every time after that.

    A checkpoint is complete if trainer_state.json is of the folder's step, the weights are there, the states of optimizer,
    scheduler and random generators are all there (or none of them: save_only_model=True), and no file is cut off.

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
    """Return whether a file of tensors has its end: torch writes a zip archive, and safetensors' header has the length."""
    if path.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return True
        except (SafetensorError, OSError):
            return False
    return True
