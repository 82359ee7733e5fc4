"""One configuration, one key."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from pydantic import ValidationError

from glora.config import ConfigurationError
from glora.experiments.config import SETTINGS, RunConfig
from glora.experiments.errors import collect, errors_of, repeated
from glora.experiments.methods.registry import find_method


def test_a_default_is_the_same_run_as_the_value_given() -> None:
    given = RunConfig(epochs=3, learning_rate=2e-4, rank=8, seed=0)
    assert given.key == RunConfig().key
    assert given.key == RunConfig.model_validate_json(RunConfig().model_dump_json()).key


def test_every_setting_that_changes_a_result_changes_the_key() -> None:
    changed = {"epochs": 2, "learning_rate": 1e-3, "rank": 4, "seed": 1, "method": "lora", "beta": 0.5, "task": "rte"}
    changed["trust_remote_code"] = True
    keys = {RunConfig(**{name: value}).key for name, value in changed.items()} | {RunConfig().key}
    assert len(keys) == len(changed) + 1


def test_a_setting_that_is_added_later_renames_no_finished_run() -> None:
    class Later(RunConfig):
        invented_since: int | None = None

    assert Later().key == RunConfig().key != Later(invented_since=1).key
    assert RunConfig().key.endswith("--ef995a8bca2e4d19"), "the default's, from before trust_remote_code"


def test_where_the_data_lie_is_not_part_of_the_run() -> None:
    here = RunConfig(task="rte", data_dir="some/folder")
    assert here.key == RunConfig(task="rte").key
    assert "some/folder" not in here.model_dump_json()
    assert find_method("lora").normalise(here, seed=1).data_dir == "some/folder"


def test_a_local_model_is_recorded_by_its_last_part_and_a_digest() -> None:
    config = RunConfig(model="/home/me/folder/tiny", task=r"C:\Users\me\train.csv:text:label")
    assert config.key.startswith("train.csv-text-label--tiny--glora--r8--seed0--")
    record = config.model_dump_json()
    assert not any(part in record for part in ("/home", "folder", "Users"))
    assert RunConfig.model_validate_json(record).key == config.key, "a record is found again"
    assert config.key != config.with_settings({"model": "/home/me/other/tiny"}).key


def test_a_warmup_is_a_share_or_whole_steps() -> None:
    assert [RunConfig(warmup_steps=v).setting("warmup_steps") for v in (None, 0.25, 1, 12.0, "3e1")] == [
        None,
        0.25,
        1,
        12,
        30,
    ]


def test_settings_go_by_flat_names_and_are_checked_together() -> None:
    config = RunConfig(beta=0.5).with_settings({"keep": "svd", "rank": 4})
    assert (config.setting("beta"), config.setting("keep"), config.allocation.keep, config.rank) == (
        0.5,
        "svd",
        "svd",
        4,
    )
    assert config.settings().keys() == SETTINGS.keys()
    assert config.with_settings(config.settings()) == config
    found: list[str] = []
    assert (
        collect(lambda: config.with_settings({"beta": 1, "total_rank": 0, "kep": "svd", "signal": "dleta"}), found)
        is None
    )
    assert len(found) == 2, "an unknown name and a wrong type hide the rules"
    assert re.search("kep: .*no such setting; .*'keep'", found[0] + found[1])
    assert "did you mean 'delta'" in found[0] + found[1]
    found = []
    collect(lambda: config.with_settings({"beta": 1, "total_rank": 0, "epochs": "x"}), found)
    assert [error.split("=")[0] for error in found] == ["epochs", "total_rank", "beta"]
    with pytest.raises(ValidationError, match="min_rank must be one int"):
        RunConfig(min_rank={"a": 1})


def test_every_setting_is_described() -> None:
    assert all(len(setting.description) > 10 for setting in SETTINGS.values())
    assert SETTINGS["budget"].choices == ("rank", "parameters")
    assert SETTINGS["min_rank"].type is int


def test_a_key_fits_into_a_file_name() -> None:
    config = RunConfig(model="é" * 200, task="x" * 200, seed=2**32 - 1)
    assert len(f"{config.key}.json".encode()) < 200
    assert config.key != config.with_settings({"model": "é" * 199}).key


@pytest.mark.parametrize(
    "fields",
    [
        *(
            {name: value}
            for name in ("learning_rate", "lora_alpha", "epochs")
            for value in (float("inf"), "nan", 0, -1)
        ),
        *({name: float("inf")} for name in ("weight_decay", "temperature", "beta", "warmup_steps")),
        *({name: 10**400} for name in ("rank", "batch_size", "max_length", "train_limit", "max_new_tokens")),
        *({"epochs": 1e300}, {"beta": 1.0}, {"rank": 0}, {"warmup_steps": 1.5}, {"seed": 2**32}, {"signal": "size"}),
    ],
)
def test_values_that_no_run_can_have_are_refused(fields: dict) -> None:
    found: list[str] = []
    assert collect(lambda: RunConfig(**fields), found) is None
    assert found[0].startswith(f"{next(iter(fields))}=")
    assert len(found[0]) < 250


def test_thousands_of_errors_are_one_short_message() -> None:
    found: list[str] = []
    collect(lambda: RunConfig.model_validate({f"setting{i}": "x" * 10_000 for i in range(200)}), found)
    collect(lambda: RunConfig(rank="x" * 10_000), found)
    message = str(ConfigurationError(found))
    assert "201 things are wrong" in message
    assert message.endswith("and 171 more")
    assert len(message) < 4000


def test_a_value_given_twice_is_found_among_many() -> None:
    (error,) = repeated("seeds", [*range(200_000), *range(100)])
    assert error.startswith("seeds: 0, 1, 2")
    assert len(error) < 250
    assert repeated("seeds", range(10)) == []


NUMBERS = sorted({name for name, s in SETTINGS.items() if {int, float} & {s.type, *get_args(s.type)}})


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", [*NUMBERS, "model", "signal"])
def test_true_is_no_number(name: str, value: bool) -> None:
    """YAML reads it from yes and on."""
    nested = {"allocation": {name: value}} if name in vars(RunConfig().allocation) else {}
    for form in ({name: value}, nested or {name: value}):
        with pytest.raises(ValidationError) as refused:
            RunConfig.model_validate(form)
        (error,) = errors_of(refused.value)
        assert re.match(f"{name}={value}: .*not true or false", error)


def test_settings_that_are_true_or_false_are_no_numbers() -> None:
    assert RunConfig(group_by_length=True, trust_remote_code=True).group_by_length


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_as_text_is_the_number(name: str) -> None:
    """YAML reads 2e-1 as a text."""
    number = 0.5 if SETTINGS[name].type in (float, float | None) and name != "start_factor" else 16
    others = {"energy": {"rule": "spectrum"}, "max_reallocations": {"reallocate_every": 1}}.get(name, {})
    for text in (str(number), f" {number} "):
        assert RunConfig(**others, **{name: text}) == RunConfig(**others, **{name: number})
        assert RunConfig(**others, **{name: text}).key == RunConfig(**others, **{name: number}).key
    with pytest.raises(ValidationError):
        RunConfig(**{name: "eight"})
