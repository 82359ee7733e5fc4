"""Records in the storage that processes share: where they come together, whoever made the run.

A record is a trial of a study of its own, which is written when the run is over and never changed. Optuna writes such a trial
with all its attributes in one transaction, so that the storage has a record whole or not at all. Of two records of one run the
first finished one counts, for every process.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping

import optuna
from optuna import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from glora.experiments.records.schema import RunRecord
from glora.experiments.search.shared_trials import LONGEST_NAME
from glora.experiments.search.storage import SharedStorage

CHUNK = 32_000
"""Characters of a record in one attribute: MySQL's TEXT, which Optuna uses, holds 65,535 bytes."""

KEY, CHUNKS = "run", "chunks"
"""User attributes of a record's trial, beside "chunk 0", "chunk 1", ..."""


class SharedRecords:
    """The records under one name.

    Args:
        storage: where they are kept.
        name: of the plan that they belong to.
        create: whether there is to be a place for them if there is none yet.
    """

    def __init__(self, storage: SharedStorage, name: str, *, create: bool = True) -> None:
        self._study = _study(storage, f"{name} / records"[-LONGEST_NAME:], create)
        self._read_trials: set[int] = set()
        self._records: dict[str, RunRecord] = {}

    def read(self) -> Mapping[str, RunRecord]:
        """The key of each run that has ended -> its record: the first finished one, else the last that failed."""
        for trial in [] if self._study is None else self._study.get_trials(deepcopy=False):
            if trial.number in self._read_trials:
                continue
            self._read_trials.add(trial.number)
            key = trial.user_attrs[KEY]
            if key not in self._records or self._records[key].status == "failed":
                self._records[key] = _record(trial)
        return self._records

    def finished(self) -> set[str]:
        """The keys of the runs that need not be made again."""
        return {key for key, record in self.read().items() if record.status == "finished"}

    def add(self, record: RunRecord) -> None:
        """Keep a record for all."""
        assert self._study is not None, "opened to look only"
        text = base64.b64encode(zlib.compress(record.model_dump_json().encode())).decode()
        chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
        attributes = {KEY: record.key, CHUNKS: len(chunks), **{f"chunk {i}": chunk for i, chunk in enumerate(chunks)}}
        if record.status == "failed":
            trial = create_trial(state=TrialState.FAIL, user_attrs=attributes)
        else:
            value = record.final[record.primary_metric or ""]
            trial = create_trial(value=value if math.isfinite(value) else 0.0, user_attrs=attributes)
        self._study.add_trial(trial)


def _study(storage: SharedStorage, name: str, create: bool) -> Study | None:
    if create:
        return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    try:
        return optuna.load_study(storage=storage, study_name=name)
    except KeyError:
        return None


def _record(trial: FrozenTrial) -> RunRecord:
    text = "".join(trial.user_attrs[f"chunk {i}"] for i in range(trial.user_attrs[CHUNKS]))
    return RunRecord.model_validate_json(zlib.decompress(base64.b64decode(text)))
