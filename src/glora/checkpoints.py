"""The newest checkpoint that can be resumed, after a run that was killed or a power cut.

Trainer writes a checkpoint in place, file by file, trainer_state.json last, and removes old ones file by file as well. A run
that is killed at such a moment leaves a folder that looks like a checkpoint. `resume_from_checkpoint=True` takes the highest
number and fails on it or, where only the optimizer's file is missing, continues without it. A power cut can also leave files of
the right length whose end was never written. RankAllocationCallback therefore writes the checksums of a checkpoint's files
once they are on the disk; a checkpoint without them is checked as far as its formats allow.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open

from glora.messages import get_logger, pluralize
from glora.paths import replace_file

logger = get_logger()
CHECKSUMS = "glora_checksums.json"
PROMISED = "checksums"  # in the callback's state: this checkpoint gets checksums
_STATE, _ADAPTER_CONFIG = "trainer_state.json", "adapter_config.json"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_WEIGHTS = (*_ADAPTERS, "model.safetensors", "pytorch_model.bin")
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_0")  # Trainer's, and FSDP2's: whole, or in parts
_WEIGHTS_IN_PARTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_ZIPPED = (".pt", ".pth", ".bin")  # what torch.save writes
_CHECKED = (*_ZIPPED, ".safetensors", ".distcp", ".metadata")
_CHUNK = 1 << 20


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Return the newest complete checkpoint of a Trainer run, and warn of newer ones that are not complete.

        trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))

    This starts a run the first time, and continues it every time after that. A run that has ended within an epoch, by
    `max_steps`, is not left alone by Trainer: it trains one more step each time. docs/checkpoints.md shows how to ask first.

    A checkpoint is complete if trainer_state.json is of the folder's step, the weights and an adapter's configuration are
    there, the states of optimizer, scheduler and random generators are all there (or none of them: save_only_model=True), and
    no file is damaged. Checksums, which RankAllocationCallback writes, find any damage. Without them, files that are cut off
    are found, and damage to what torch.save wrote, but not to the numbers in a safetensors file.

    Args:
        output_dir: Trainer's output_dir; need not exist.

    Returns:
        The folder, or None if there is no complete checkpoint.
    """
    passed: list[str] = []
    complete = None
    for step, folder in sorted(_checkpoints(Path(output_dir)), reverse=True):
        if not (reason := _unusable(folder, step)):
            complete = str(folder)
            break
        passed.append(f"{folder.name} ({reason})")
    if passed:
        logger.warning(
            "%s cannot be resumed: %s; %s",
            pluralize(len(passed), "checkpoint"),
            ", ".join(passed),
            f"using {Path(complete).name}" if complete else "there is no complete checkpoint",
        )
    return complete


def write_checksums(folder: Path, *, others_write: str = "") -> None:
    """Write the checksums of a checkpoint's files, once the disk has them.

    Args:
        folder: The checkpoint, complete.
        others_write: A pattern of files that other processes may still be writing; they get no checksum.
    """
    checksums = {}
    for path in _files(folder):
        checked = path.name in (_STATE, _ADAPTER_CONFIG) or path.suffix in _CHECKED
        if checked and not (others_write and path.match(others_write)):
            checksums[path.relative_to(folder).as_posix()] = _checksum(path, to_disk=True)
    replace_file(folder / CHECKSUMS, json.dumps({"version": 1, "files": checksums}, indent=1).encode())


def _checkpoints(output_dir: Path) -> Iterator[tuple[int, Path]]:
    for path in output_dir.glob("checkpoint-*"):
        if (match := re.fullmatch(r"checkpoint-([0-9]{1,12})", path.name)) and path.is_dir():
            yield int(match[1]), path


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _unusable(folder: Path, step: int) -> str:
    """Return why a checkpoint cannot be resumed; empty if it can."""
    try:
        named = (path for path in folder.rglob("*") if path.suffix in _CHECKED or path.suffix == ".json")
        if odd := next((path for path in named if not path.is_file()), None):  # Trainer would wait for a pipe
            return f"{odd.name} is not a file"
        state = _read_json(folder / _STATE)
        if state.get("global_step") != step:
            return f"{_STATE} is of step {state.get('global_step')!s:.20}"
        return _missing(folder) or _damaged(folder, _promised(state))
    except _DamagedError as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"


def _missing(folder: Path) -> str:
    places = [folder, *(path for path in folder.iterdir() if path.is_dir())]  # adapters that have a name
    for index in (folder / name for name in _WEIGHTS_IN_PARTS):
        parts = _read_json(index).get("weight_map") if index.exists() else None
        if parts is not None:
            names = set(parts.values()) if isinstance(parts, dict) else {None}
            lost = [str(name) for name in names if not (isinstance(name, str) and (folder / name).exists())]
            return f"{min(lost)} is missing" if lost else _missing_states(folder)
    if not any((place / name).exists() for place in places for name in _WEIGHTS):
        return "the weights are missing"
    for place in places:
        if any((place / name).exists() for name in _ADAPTERS):
            _read_json(place / _ADAPTER_CONFIG)
    return _missing_states(folder)


def _missing_states(folder: Path) -> str:
    states = {
        "the optimizer's state": any((folder / name).exists() for name in _OPTIMIZERS),
        "scheduler.pt": (folder / "scheduler.pt").exists(),
        "the random state": any(folder.glob("rng_state*.pth")),
    }
    lost = [name for name, present in states.items() if not present]
    return f"{lost[0]} is missing" if 0 < len(lost) < len(states) else ""


def _promised(state: dict[str, Any]) -> bool:
    callbacks = state.get("stateful_callbacks")
    entries = callbacks.values() if isinstance(callbacks, dict) else ()
    attributes = [entry.get("attributes") for entry in entries if isinstance(entry, dict)]
    return any(isinstance(one, dict) and one.get(PROMISED) is True for one in attributes)


def _damaged(folder: Path, promised: bool) -> str:
    checksums: dict[str, Any] = {}
    if promised or (folder / CHECKSUMS).exists():
        checksums = _read_json(folder / CHECKSUMS).get("files", {})
        if not isinstance(checksums, dict):
            return f"{CHECKSUMS} is damaged"
    for name, checksum in checksums.items():
        if not (path := folder / name).is_file():
            return f"{name} is missing"
        if _checksum(path) != checksum:
            return f"{name} is damaged"
    unknown = (path for path in _files(folder) if path.relative_to(folder).as_posix() not in checksums)
    return next((f"{path.name} is damaged" for path in unknown if not _is_whole(path)), "")


class _DamagedError(Exception):
    pass


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise _DamagedError(f"{path.name} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # cut off, overwritten by zeros, nested too deep
        content = None
    if not isinstance(content, dict):
        raise _DamagedError(f"{path.name} is damaged")
    return content


def _checksum(path: Path, *, to_disk: bool = False) -> list[int]:
    """Return a file's size and CRC-32."""
    crc = size = 0
    with path.open("rb") as file:
        if to_disk:
            with suppress(OSError):  # some systems want a file open for writing
                os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return [size, crc]


def _is_whole(path: Path) -> bool:
    """Return whether a file of tensors is whole: torch writes a zip archive, and safetensors' header has the length."""
    try:
        if path.suffix in _ZIPPED:
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return True
    except OSError:
        raise
    except Exception:  # a damaged archive can raise any exception
        return False
    return True
