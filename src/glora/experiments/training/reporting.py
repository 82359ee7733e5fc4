"""Report runs to TensorBoard, W&B and others, through Trainer's `report_to`.

Each run reports as a separate run, named by its key. Reporting changes no result: it happens with the clock stopped, and its
destination is not part of a run's key.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from glora.experiments.config import RunConfig
from glora.messages import did_you_mean

LOGS_FOLDER = "logs"

LOGS_OF_A_RUN = 100
"""Number of Trainer's logs over a run that is reported; otherwise Trainer logs once an epoch."""


def reporters(report_to: str | None) -> list[str]:
    """Return the reporters' names, of a text with commas between them; none for None.

    Raises:
        ValueError: transformers has no such reporter, or its package is not installed.
    """
    names = [name.strip() for name in (report_to or "").split(",") if name.strip()]
    if not names:
        return []
    integrations = transformers.integrations
    known, installed = integrations.INTEGRATION_TO_CALLBACK, integrations.get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise ValueError(
                f"report_to={name!r} is unknown{did_you_mean(name, known) or '.'} Reporters: {', '.join(known)}"
            )
        if name not in installed and name != "flyte":  # which transformers does not look for
            raise ValueError(f"report_to={name!r}: it is not installed; `pip install {name}`, or leave it out")
    return names


def reporting_arguments(config: RunConfig) -> dict[str, Any]:
    """Return the `TrainingArguments` of logging."""
    names = reporters(config.report_to)
    if not names:
        return {"report_to": "none", "logging_strategy": "epoch"}
    return {
        "report_to": names,
        "run_name": config.key,
        "logging_strategy": "steps",
        "logging_steps": 1 / LOGS_OF_A_RUN,
        "logging_first_step": True,
    }


@contextlib.contextmanager
def report_folder(config: RunConfig, logs: Path) -> Iterator[Path | None]:
    """Make the folder for a run's reporters, `<logs>/<key>`, and end the reports; None for a run that is not reported."""
    if not reporters(config.report_to):
        yield None
        return
    folder = logs / config.key
    folder.mkdir(parents=True, exist_ok=True)
    name, before = "TENSORBOARD_LOGGING_DIR", os.environ.get("TENSORBOARD_LOGGING_DIR")
    os.environ[name] = str(folder)  # else it would be a folder named by the time and the machine
    try:
        yield folder
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
        _finish_wandb()


def _finish_wandb() -> None:
    """Transformers leaves W&B's run open, and the next Trainer of the process would continue it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish()
