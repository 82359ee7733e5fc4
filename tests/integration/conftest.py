"""A small Trainer run with the tiny DeBERTa-v2 and RTE's files, in the folder of the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from integration.training.resume_case import Job
from integration.training.trainer_case import make_trainer, peft_model, probe_batch


@pytest.fixture
def trainer_of(tiny_deberta: Path, glue_folder: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """`trainer_of(*callbacks, model=None, output=None, **arguments)`"""

    def make(
        *callbacks: TrainerCallback, model: nn.Module | None = None, output: Path | None = None, **arguments: object
    ) -> Trainer:
        model = peft_model(tiny_deberta) if model is None else model
        return make_trainer(model, tiny_deberta, glue_folder, output or tmp_path, list(callbacks), **arguments)

    return make


@pytest.fixture
def job(tiny_deberta: Path, glue_folder: Path, tmp_path: Path) -> Job:
    return Job(tiny_deberta, glue_folder, tmp_path / "run")


@pytest.fixture(scope="session")
def batch(tiny_deberta: Path, glue_folder: Path) -> dict[str, torch.Tensor]:
    """Sequences to compare logits on."""
    return probe_batch(tiny_deberta, glue_folder)
