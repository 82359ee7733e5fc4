"""`search.json`: how a search found each method's settings, for the report and for readers.

It is written when the search begins, for its name, and again when the trials are over. All trials are in the database, which
Optuna's own tools read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glora.experiments.records.store import RecordError, schema_errors, write_whole

SEARCH_FILE = "search.json"
SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class TunedMethod(_Part):
    """One study."""

    task: str = Field(description="The task, as configured.")
    model: str = Field(description="The model, as configured.")
    rank: int = Field(description="Rank of uniform LoRA.")
    method: str = Field(description="The method that was tuned.")
    searched: dict[str, str] = Field(description="Setting -> the values that were searched, in words.")
    best: dict[str, Any] = Field(description="Setting -> the value that the reported runs have.")
    best_value: float = Field(description="The metric on the tuning split with these values, after the last step.")
    best_trial: str = Field(description="The trial that had them.")
    metric: str = Field(description="What trials were judged by.")
    direction: Literal["maximize", "minimize"] = Field(description="Whether more or less of it is better.")
    trials: dict[str, int] = Field(description='How trials ended: "complete", "stopped early", "failed".')
    examples: dict[str, int] = Field(
        description="Split -> examples of a trial; `tuning` is held out of the training data."
    )
    data_fingerprint: str = Field(description="Hash of these examples, in order.")


class SearchRecord(_Part):
    """A search."""

    schema_version: int = Field(SCHEMA_VERSION, description="Version of this schema.")
    name: str = Field(
        description="Name of the search; the studies' names in the storage begin with it, if the folder is renamed too."
    )
    trials: int = Field(description="Most trials of a study.")
    sampler: str = Field(description="What chose the settings of trials.")
    pruner: str = Field(description="What ended trials early.")
    held_out: float = Field(description="Share of the training examples that trials were judged by.")
    trial_seed: int = Field(description="Seed with which all trials were trained; none of `seeds`.")
    seeds: list[int] = Field(description="Seeds of the reported runs.")
    methods: list[TunedMethod] = Field(description="What was found; empty until the trials are over.")


def search_name(directory: str | os.PathLike[str], study: str | None = None) -> str:
    """Return the name of a folder's search: `study`, else the one it began with, else the folder's.

    A folder that was copied or renamed so goes on with its search.

    Raises:
        RecordError: `search.json` cannot be read.
    """
    if study is not None:
        return study
    record = read_search_record(directory)
    return record.name if record else Path(directory).resolve().name


def write_search_record(directory: str | os.PathLike[str], record: SearchRecord) -> Path:
    """Write `<directory>/search.json`, whole or not at all.

    Raises:
        NotWrittenError: the file cannot be written; an earlier one is untouched.
    """
    path = Path(directory) / SEARCH_FILE
    write_whole(path, record.model_dump_json(indent=1) + "\n")
    return path


def read_search_record(directory: str | os.PathLike[str]) -> SearchRecord | None:
    """The search that a folder's runs were tuned by; None if there was none.

    Raises:
        RecordError: the file cannot be read.
    """
    path = Path(directory) / SEARCH_FILE
    if not path.is_file():
        return None
    try:
        return SearchRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        reason = schema_errors(error) if isinstance(error, ValidationError) else str(error)
        raise RecordError(f"{path}: {reason}. Move it away, and `glora search` writes it again.") from error
