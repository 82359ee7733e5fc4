"""The schema of records: the JSON file that one run leaves, with its configuration, results, versions and machine.

A record is written once, at the end of its run (`store`). Comparisons skip the runs whose record says "finished", and the
report is made from records alone. Its provenance follows PEFT's `method_comparison`.

The files are strict JSON: NaN and the infinities of a diverged run are the strings "NaN", "Infinity" and "-Infinity", and are
read back as floats.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from glora.experiments.config import RunConfig

SCHEMA_VERSION = 1
"""Goes up when a field changes its meaning, type or name, or is dropped; not for a new optional field."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class EpochMetrics(_Part):
    """One evaluation of one split, usually at the end of an epoch."""

    epoch: float = Field(description="Passes over the training data made so far.")
    step: int = Field(ge=0, description="Optimizer steps made so far.")
    split: str = Field(
        description='The split that was evaluated: the main one ("validation") or a secondary one such as '
        '"validation_mismatched".'
    )
    train_seconds: float = Field(
        ge=0, description="Seconds of training so far, evaluation left out: the time axis of the pictures."
    )
    train_loss: float | None = Field(
        None, description="Mean training loss since the evaluation before; None if nothing was trained."
    )
    loss: float | None = Field(
        None,
        description="Mean loss over the split, by batches; where answers are written it is among the values. None in records "
        "from before this field.",
    )
    values: dict[str, float] = Field(description="Metric name -> value, as scikit-learn scales it (not in percent).")


class NormSample(_Part):
    """The averaged gradient norms of all matrices after one warm-up step; a long warm-up may be thinned."""

    step: int = Field(ge=1, description="Optimizer steps that have entered the average, counted from 1.")
    values: dict[str, float] = Field(
        description="Module name -> g_k, the moving average that starts at zero, without bias correction; "
        "g_k / (1 - beta^step) is the corrected one."
    )


class WrittenAnswer(_Part):
    """One answer that the model wrote at the last evaluation, to see what it does."""

    prompt: str = Field(description="What was asked: the last message.")
    reference: str = Field(description="The answer in the data.")
    written: str = Field(description="The model's answer, up to where it ended or was cut off.")
    right: bool = Field(description="Whether it was scored as right.")


class GitState(_Part):
    """The checkout that glora was imported from."""

    commit: str = Field(description="Full hash of the commit.")
    dirty: bool = Field(description="Whether tracked files differed from that commit.")


class Machine(_Part):
    """The machine of a run. No host name and no path: records are meant to be published."""

    platform: str = Field(description="Operating system, release and architecture.")
    cpu: str = Field(description="Model name of the processor.")
    cores: int = Field(ge=1, description="Processor cores that the process may use.")
    memory_bytes: int | None = Field(None, description="Main memory in bytes; None if it could not be found out.")
    accelerator: str | None = Field(None, description="Name of the accelerator; None on a CPU.")
    torch_threads: int | None = Field(None, description="Threads of a torch operation; None without torch.")


class Provenance(_Part):
    """Origin of a result: software, machine, data."""

    versions: dict[str, str] = Field(
        description="Version of python, glora, torch, transformers, peft, accelerate, datasets, "
        "scikit-learn; what is not installed is left out."
    )
    git: GitState | None = Field(None, description="The checkout of glora; None if it was not run from one.")
    machine: Machine = Field(description="The machine.")
    process_started_at: str | None = Field(
        None,
        description="Start of the process that made the run, UTC, ISO 8601 to the microsecond: runs that share it were "
        "made one after the other by one command. None in older records.",
    )
    data_fingerprint: str | None = Field(
        None, description="Hash of the examples used, in order: equal fingerprints mean equal data."
    )
    model_fingerprint: str | None = Field(
        None,
        description='The model before training: "sha256:..." over the files of a folder, "commit:..." of the hub. None in '
        "records from before this field.",
    )


class RunRecord(_Part):
    """Everything that is known about one run. A failed run keeps what had been measured until it failed."""

    schema_version: int = Field(SCHEMA_VERSION, description="Version of this schema.")
    config: RunConfig = Field(description="The run's settings.")
    key: str = Field(description="`config.key` at the time of the run; names the record's file.")
    status: Literal["finished", "failed"] = Field(description="How the run ended.")
    error: str | None = Field(None, description='Of a failed run: "ExceptionType: message".')
    exception: str | None = Field(
        None, description="Of a failed run: name of the exception's class. None in records from before this field."
    )
    kind: Literal["diverged", "no model"] | None = Field(
        None,
        description='Of a failed run: "diverged" if the loss or the predictions became NaN or infinite, which other settings '
        'may prevent; "no model" if the model could not be loaded, so that no other run of the same model has one.',
    )
    advice: str | None = Field(None, description="Of a failed run: what may prevent the failure, where that is known.")
    traceback: str | None = Field(None, description="Of a failed run: the traceback, without machine paths.")
    started_at: str = Field(description="Start, UTC, ISO 8601.")
    finished_at: str = Field(description="End, UTC, ISO 8601.")

    primary_metric: str | None = Field(
        None, description="The metric the task is judged by; a key of `final` in a finished run."
    )
    metrics: list[EpochMetrics] = Field(
        default_factory=list, description="Every evaluation, in the order in which they were made."
    )
    final: dict[str, float] = Field(
        default_factory=dict,
        description='Metrics after the last step: "accuracy" for the main split, '
        '"validation_mismatched/accuracy" for a secondary one.',
    )

    baseline: dict[str, float] = Field(
        default_factory=dict,
        description="By the keys of `final`: the metrics of always answering the most frequent class of the training "
        "examples; empty where no class is learned, and in records from before this field.",
    )

    answers: list[WrittenAnswer] = Field(
        default_factory=list,
        description="Where answers are written and scored: the first few of the main split at the last evaluation.",
    )

    train_seconds: float | None = Field(
        None,
        ge=0,
        description="Seconds of training, reallocation and a method's preparation included, evaluation and loading "
        "left out.",
    )
    preparation_seconds: float | None = Field(
        None,
        ge=0,
        description="Of `train_seconds`, what the method took before the first step, such as EVA's look at the "
        "activations; None in a record made before this was written down.",
    )
    seconds_per_step: float | None = Field(None, ge=0, description="Median seconds of one optimizer step.")
    steps: int | None = Field(None, ge=0, description="Optimizer steps made.")
    peak_memory_bytes: int | None = Field(None, ge=0, description="Peak memory of the run in bytes.")
    peak_memory_source: str | None = Field(
        None,
        description='How the peak was measured, such as "torch.cuda.max_memory_allocated" or '
        '"resident set of the process".',
    )

    trainable_parameters_before: int | None = Field(
        None, ge=0, description="Parameters that get gradients at the first step, head included."
    )
    trainable_parameters_after: int | None = Field(
        None, ge=0, description="Parameters that get gradients at the last step, head included."
    )
    adapter_parameters_before: int | None = Field(
        None, ge=0, description="Parameters of the adapters alone at the first step."
    )
    adapter_parameters_after: int | None = Field(
        None,
        ge=0,
        description="Parameters of the adapters alone at the last step; a masked direction counts as gone.",
    )

    ranks: dict[str, int] = Field(
        default_factory=dict, description="Module name -> rank at the end; 0 where the adapter was taken out."
    )
    initial_ranks: dict[str, int] = Field(default_factory=dict, description="Module name -> rank at the start.")
    module_shapes: dict[str, tuple[int, int]] = Field(
        default_factory=dict,
        description="Module name -> (d_out, d_in); a rank costs d_out + d_in parameters.",
    )
    norms: list[NormSample] = Field(
        default_factory=list,
        description="The averaged gradient norms over the warm-up; empty for other methods.",
    )
    reallocated_at: int | None = Field(
        None, ge=0, description="Optimizer step after which the ranks changed; None if they never did."
    )
    examples: dict[str, int] = Field(
        default_factory=dict, description="Split -> number of examples that were used, after the limits."
    )

    provenance: Provenance = Field(description="Software, machine and data.")

    @property
    def main_split(self) -> str | None:
        """The split that is evaluated first; None before the first evaluation."""
        return self.metrics[0].split if self.metrics else None

    @property
    def failure(self) -> str:
        """The error of a failed run, with the advice."""
        return ". ".join(part for part in (self.error, self.advice) if part)

    @model_validator(mode="after")
    def _status_fits(self) -> RunRecord:
        if self.status == "failed" and not self.error:
            raise ValueError('a failed run needs `error`: "ExceptionType: message"')
        if self.status == "finished":
            if self.error:
                raise ValueError(f"a finished run has no `error`, but this one has {self.error!r}")
            if self.primary_metric is None or self.primary_metric not in self.final:
                raise ValueError(
                    f"a finished run needs its primary metric in `final`: {self.primary_metric!r} "
                    f"is not among {sorted(self.final)}"
                )
            if self.train_seconds is None:
                raise ValueError("a finished run needs `train_seconds`")
        return self
