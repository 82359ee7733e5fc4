"""A data set of the Hugging Face hub, or of the local cache of it."""

from __future__ import annotations

from typing import Any

from glora.experiments.data.task import DataNotFoundError


def load_hub_dataset(source: str, config: str | None, task: str, *, instead: str) -> Any:
    """All splits of a data set.

    Args:
        source: hub id.
        config: its configuration; None where it has one only.
        task: the task's name, for the message.
        instead: what to give as data_dir where there is no network.

    Raises:
        DataNotFoundError: the hub cannot be reached and the cache does not hold it.
    """
    from datasets import load_dataset

    try:
        return load_dataset(source, config)
    except (OSError, ValueError, RuntimeError) as error:  # what it raises offline depends on how far it got
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataNotFoundError(
            f"cannot load {task} from {source} on the Hugging Face hub: {reason} Without a network, give {instead} as "
            "data_dir."
        ) from error
