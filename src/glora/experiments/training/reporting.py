"""Watching the runs of an experiment in TensorBoard, W&B and the rest, through Trainer's `report_to`.

Every run reports into a folder, or as a run, of its own, named by its key. What is reported changes no result: it is written
with the clock stopped, and where it goes is not part of a run.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glora.rank_log import RankLogCallback, rank_log

if TYPE_CHECKING:
    from transformers import Trainer

    from glora.experiments.config import RunConfig
    from glora.experiments.methods.adapted_model import AdaptedModel

LOGS_FOLDER = "logs"

LOGS_OF_A_RUN = 100
"""Trainer logs so many times over a run that is reported; otherwise once an epoch."""


def reporters(report_to: str | None) -> list[str]:
    """The reporters' names, of a text with commas between them; none for None.

    Raises:
        ValueError: transformers has no such reporter, naming the nearest, or what it needs is not installed.
    """
    names = [name.strip() for name in (report_to or "").split(",") if name.strip()]
    if not names:
        return []
    from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    installed = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name.lower(), INTEGRATION_TO_CALLBACK, n=2)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise ValueError(f"report_to={name!r}: {hint}transformers reports to {', '.join(INTEGRATION_TO_CALLBACK)}")
        if name not in installed and name != "flyte":  # which transformers does not look for
            raise ValueError(f"report_to={name!r}: it is not installed; `pip install {name}`, or leave it out")
    return names


def reporting_arguments(config: RunConfig) -> dict[str, Any]:
    """What `TrainingArguments` are told about logging."""
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
    """Where a run's reporters write, `<logs>/<key>`, and the end of its reports; None for a run that is not reported.

    Args:
        config: the run's settings.
        logs: the folder of all runs' logs.
    """
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
    """Transformers leaves W&B's run open, and the next Trainer of the process would go on with it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish()


class AdaptedModelLog(RankLogCallback):
    """Tells the reporters what any method knows of its ranks and norms."""

    def __init__(self, trainer: Trainer, adaptation: AdaptedModel) -> None:
        super().__init__(trainer)
        self._adaptation = adaptation

    def check(self) -> None:
        """Every method can be watched."""

    def values(self) -> dict[str, float]:
        """Ranks, and norms during the warm-up."""
        adaptation, step = self._adaptation, self._trainer.state.global_step
        norms = adaptation.averaged_norms() if step <= adaptation.warmup_steps else None
        return rank_log(adaptation.ranks(), adaptation.adapter_parameters(), norms or {})
