"""An experiment is a file: what is compared, on what, and what is to be seen of it.

The first seven fields are those of the experiment files that people already have; their values are free text, which
`experiment` finds in the registries. The others are settings of this project. A file is JSON or YAML, and the model here is
also the JSON schema that an editor can check it with (`glora run --schema`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from glora.config import ConfigurationError
from glora.experiments.config import DEFAULT_SEEDS, SETTINGS, settings_schema
from glora.experiments.data.structured_text import read_mapping
from glora.messages import did_you_mean

NOT_SETTINGS = {
    "model": "write it into models_to_use",
    "task": "write it into datasets_to_use",
    "method": "write it into comparative_methods",
    "seed": "write it into seeds",
    "data_dir": "write it into data_dir",
    "held_out": "it is an option of a search, `glora search --held-out`",
}
"""Fields of `RunConfig` that are said elsewhere than in an experiment file's settings -> what to do."""

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class InvalidExperimentError(ConfigurationError):
    """What is wrong with an experiment file.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, faults: Sequence[str]) -> None:
        self.path = path
        super().__init__(faults, where=str(path))


class Search(BaseModel):
    """A setting and the values that a search may give it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="A setting: learning_rate, beta, total_rank, warmup_steps, or another of a run.")
    range: str | int | float | list[Any] = Field(
        description='"1e-4-5e-4" (log), "0.8-0.99" (linear), "500-1500" (integers), "96,128,160" (one of these).'
    )


def _describe_settings(schema: dict[str, Any]) -> None:
    """So that an editor knows the settings by name, and their values."""
    schema["properties"] = {name: field for name, field in settings_schema().items() if name not in NOT_SETTINGS}
    schema["additionalProperties"] = False


class Experiment(BaseModel):
    """One experiment file, as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="GLoRA experiment")

    experiment_summary: str = Field("", description="What the experiment is to show; for people.")
    evaluation_metrics: list[Name] = Field(
        default_factory=list,
        description="What is to be seen in the report, such as Accuracy or Wall-clock Training Time. Default: what the "
        "data sets measure. The report always shows all that is measured.",
    )
    models_to_use: list[Name] = Field(
        min_length=1, description="Names of `glora list models`, hub ids (owner/name) or folders."
    )
    datasets_to_use: list[Name] = Field(
        min_length=1, description="Names of `glora list tasks`, such as GLUE MNLI or gsm8k, or data files of one's own."
    )
    proposed_method: str = Field("GLoRA", description="What is proposed; for people. The method that runs is glora.")
    comparative_methods: list[Name] = Field(
        default_factory=lambda: ["AdaLoRA"],
        description="Names of `glora list methods`. lora is always compared besides: every difference is one to lora.",
    )
    hyperparameters_to_search: list[Search] = Field(
        default_factory=list, description="Settings and the ranges in which a search may choose them."
    )

    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=lambda: list(DEFAULT_SEEDS), min_length=1, description="One run of each method for each seed."
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of a run that are not at their defaults, such as epochs, batch_size, train_limit.",
        json_schema_extra=_describe_settings,
    )
    model_overrides: dict[Name, Name] = Field(
        default_factory=dict,
        description="A name of models_to_use -> the folder or hub id that is loaded in its place.",
    )
    data_dir: Name | None = Field(
        None, description="Folder with the data sets' own files. Default: they come from the hub."
    )
    schema_file: str | None = Field(
        None, alias="$schema", description="The JSON schema that an editor checks this with."
    )


def read_experiment(path: Path, given: Mapping[str, Any] | None = None) -> tuple[Experiment, list[str], set[str]]:
    """Read a file and check the shape of its fields; what they name is not looked up.

    Args:
        path: the file.
        given: fields from elsewhere that win over the file's; mappings are merged into the file's.

    Returns:
        The experiment; the faults, as sentences; and the fields that are faulty. These hold defaults, and a list in which
        some members are faulty holds the others, so that what they name can be checked too and everything be reported at once.

    Raises:
        FileNotFoundError, IsADirectoryError, MalformedFileError: the file as a whole cannot be read.
    """
    content = read_mapping(path)
    for field, value in (given or {}).items():
        before = content.get(field)
        content[field] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    try:
        return Experiment.model_validate(content), [], set()
    except ValidationError as error:
        faults = [_in_words(fault) for fault in error.errors()]
        places: dict[str, list[tuple[int | str, ...]]] = {}
        for fault in error.errors():
            places.setdefault(str(fault["loc"][0]), []).append(fault["loc"][1:])
    sound = {field: value for field, value in content.items() if str(field) not in places}
    sound |= {field: left for field in places if (left := _sound_members(content.get(field), places[field]))}
    faulty = places.keys() - sound.keys()
    placeholders = {field: ["-"] for field in ("models_to_use", "datasets_to_use") if field in faulty}
    return Experiment.model_validate({**sound, **placeholders}), faults, faulty


def _sound_members(value: Any, faulty: Sequence[tuple[int | str, ...]]) -> list[Any]:
    """What is left of a list without its faulty members; nothing if the value as a whole is at fault."""
    if not isinstance(value, list) or not all(faulty):
        return []
    indices = {place[0] for place in faulty}
    return [member for i, member in enumerate(value) if i not in indices]


def _in_words(fault: Any) -> str:
    field, *inner = fault["loc"]
    where = str(field) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in _steps(inner))
    if fault["type"] == "extra_forbidden":
        known = Search.model_fields if inner else Experiment.model_fields
        if not inner and field in SETTINGS and field not in NOT_SETTINGS:
            return f"{where}: there is no such field here; it is a setting of a run: write it into settings"
        return f"{where}: there is no such field{did_you_mean(str(fault['loc'][-1]), known)}"
    if fault["type"] == "missing":
        return f"{where} is missing"
    if fault["type"] == "too_short":
        return f"{where} is empty; give at least one"
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{where}={fault['input']!r}: {message}"


def _steps(inner: Sequence[Any]) -> list[Any]:
    """The way into a field, without the names that pydantic gives to the members of a union."""
    members = {"str", "int", "float", "list[any]", "[key]"}
    return [part for part in inner if part not in members]
