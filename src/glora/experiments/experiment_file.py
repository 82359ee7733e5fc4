"""The fields of an experiment file, JSON or YAML, and reading one.

The first seven fields are those of existing experiment files; their values are free text, which `experiment` resolves. The
others are settings of this project. The model is also the JSON schema for editors (`glora run --schema`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from glora.config import ConfigurationError
from glora.experiments.config import DEFAULT_SEEDS, SETTINGS, not_a_boolean, settings_schema
from glora.experiments.errors import message_of, shown
from glora.experiments.structured_text import read_mapping
from glora.messages import did_you_mean

NOT_SETTINGS = {
    "model": "write it into models_to_use",
    "task": "write it into datasets_to_use",
    "method": "write it into comparative_methods",
    "seed": "write it into seeds",
    "data_dir": "write it into data_dir",
    "held_out": "it is an option of a search, `glora search --held-out`",
}
"""Fields of `RunConfig` that do not belong into an experiment file's settings -> what to do."""

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class InvalidExperimentError(ConfigurationError):
    """All errors of an experiment file.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, errors: Sequence[str]) -> None:
        self.path = path
        super().__init__(errors, where=str(path))


class Search(BaseModel):
    """A setting and the range in which a search may choose it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="A setting: learning_rate, beta, total_rank, warmup_steps, or another of a run.")
    range: bool | str | int | float | list[Any] = Field(
        description='"1e-4-5e-4" (log), "0.8-0.99" (linear), "500-1500" (integers), "96,128,160" (one of these).'
    )


def _describe_settings(schema: dict[str, Any]) -> None:
    """Let an editor know the settings by name, and their values."""
    schema["properties"] = {name: field for name, field in settings_schema().items() if name not in NOT_SETTINGS}
    schema["additionalProperties"] = False


class Experiment(BaseModel):
    """One experiment file, as written."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="GLoRA experiment")

    experiment_summary: str = Field("", description="The question of the experiment; for people.")
    evaluation_metrics: list[Name] = Field(
        default_factory=list,
        description="Metrics for the report, such as Accuracy or Wall-clock Training Time. Default: those of the data "
        "sets. The report always shows all metrics.",
    )
    models_to_use: list[Name] = Field(
        min_length=1,
        description="Names of `glora list models`, hub ids (owner/name) or folders.",
    )
    datasets_to_use: list[Name] = Field(
        min_length=1,
        description="Names of `glora list tasks`, such as GLUE MNLI or gsm8k, or custom data files.",
    )
    proposed_method: str = Field("GLoRA", description="The proposed method; for people. The method that runs is glora.")
    comparative_methods: list[Name] = Field(
        default_factory=lambda: ["AdaLoRA"],
        description="Names of `glora list methods`. lora is always compared too: every difference is one to lora.",
    )
    hyperparameters_to_search: list[Search] = Field(
        default_factory=list,
        description="Settings and the ranges in which a search may choose them.",
    )

    seeds: list[Annotated[int, BeforeValidator(not_a_boolean), Field(ge=0)]] = Field(
        default_factory=lambda: list(DEFAULT_SEEDS),
        min_length=1,
        description="One run of each method for each seed.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of a run that are not at their defaults, such as epochs, batch_size, train_limit.",
        json_schema_extra=_describe_settings,
    )
    model_overrides: dict[Name, Name] = Field(
        default_factory=dict,
        description="A name of models_to_use -> the folder or hub id to load instead.",
    )
    data_dir: Name | None = Field(
        None, description="Folder with the data sets' own files. Default: they come from the hub."
    )
    schema_file: str | None = Field(
        None, alias="$schema", description="The JSON schema that an editor checks this with."
    )


def read_experiment(path: Path, given: Mapping[str, Any] | None = None) -> tuple[Experiment, list[str]]:
    """Read a file and check the shape of its fields; names are not looked up.

    Args:
        path: the file.
        given: fields that replace the file's; mappings are merged.

    Returns:
        The experiment, and the errors, as sentences. Invalid fields hold defaults or nothing, and a list with invalid members
        holds the others, so that all names can be checked and all errors be reported at once.

    Raises:
        FileNotFoundError, IsADirectoryError, MalformedFileError: the file as a whole cannot be read.
    """
    content = read_mapping(path)
    for field, value in (given or {}).items():
        before = content.get(field)
        content[field] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    try:
        return Experiment.model_validate(content), []
    except ValidationError as error:
        errors = [_in_words(detail) for detail in error.errors()]
        places: dict[str, list[tuple[int | str, ...]]] = {}
        for detail in error.errors():
            places.setdefault(str(detail["loc"][0]), []).append(detail["loc"][1:])
    sound = {field: value for field, value in content.items() if str(field) not in places}
    sound |= {field: left for field in places if (left := _sound_members(content.get(field), places[field]))}
    needed = [field for field in ("models_to_use", "datasets_to_use") if field not in sound]
    experiment = Experiment.model_validate({**sound, **{field: ["-"] for field in needed}})
    return experiment.model_copy(update={field: [] for field in needed}), errors


def _sound_members(value: Any, invalid: Sequence[tuple[int | str, ...]]) -> list[Any]:
    """The valid members of a list; none if the value as a whole is invalid."""
    if not isinstance(value, list) or not all(invalid):
        return []
    indices = {place[0] for place in invalid}
    return [member for i, member in enumerate(value) if i not in indices]


def _in_words(detail: Any) -> str:
    field, *inner = detail["loc"]
    where = str(field) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in _steps(inner))
    if detail["type"] == "extra_forbidden":
        if not inner and field in SETTINGS and field not in NOT_SETTINGS:
            return f"{where} is a setting of a run; write it into settings"
        known = Search.model_fields if inner else Experiment.model_fields
        return f"{where} is not a field{did_you_mean(str(detail['loc'][-1])[:100], known)}"
    if detail["type"] == "missing":
        return f"{where} is missing"
    if detail["type"] == "too_short":
        return f"{where} is empty; give at least one"
    return f"{where}={shown(detail['input'])}: {message_of(detail)}"


def _steps(inner: Sequence[Any]) -> list[Any]:
    """The way into a field, without the names that pydantic gives to the members of a union."""
    members = {"bool", "str", "int", "float", "list[any]", "[key]"}
    return [part for part in inner if part not in members]
